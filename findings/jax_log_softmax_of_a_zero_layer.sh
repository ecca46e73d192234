#!/usr/bin/env bash
# jax 0.10.2 on a CPU (an AMD EPYC of family 25, Zen 4), float32.
#
# Expected: log_softmax(x @ W) is -log(n) everywhere where W is zero: a last layer that begins at zero, as heads of
# policies, rewards and values do, says that all n outcomes are as likely.
#
# Behaviour: compiled with W as a constant, it is any number for many shapes: 1e34, infinity, NaN, others in the next
# process, and nothing is raised. With W as an argument it is right, and so it is operation by operation. jax 0.10.1
# is right, and so were 0.10.0, 0.9.2, 0.8.3 and 0.7.2, tried by hand.
#
# Who is hurt: whoever compiles a function that closes over the parameters of an untrained network, as notebooks, tests
# and null cases do: jax.jit(lambda x: head.apply(params, x)). Compiled functions that take params are right.
#
# Seen: 0.10.1: constant wrong in 0 of 24 shapes, argument in 0
#       0.10.2: constant wrong in 6 to 10 of 24 shapes, argument in 0
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
cat > "$folder/head.py" <<'PYTHON'
import sys

import jax
import jax.numpy as jnp
import numpy as np


def says(x, weights):
    return jax.nn.log_softmax(x @ weights)


def is_right(found, outcomes):
    return np.allclose(found, -np.log(outcomes))


wrong = {"constant": 0, "argument": 0}
shapes = [(rows, width, n) for rows in (32, 64, 128) for width in (8, 128) for n in (64, 128, 255, 512)]
for rows, width, n in shapes:
    x, weights = jnp.ones((rows, width)), jnp.zeros((width, n))
    assert is_right(says(x, weights), n)
    wrong["constant"] += not is_right(jax.jit(lambda x, weights=weights: says(x, weights))(x), n)
    wrong["argument"] += not is_right(jax.jit(says)(x, weights), n)
print(
    f"{jax.__version__}: constant wrong in {wrong['constant']} of {len(shapes)} shapes, argument in {wrong['argument']}"
)
assert wrong["argument"] == 0 and (wrong["constant"] > 0) == (sys.argv[1] == "wrong"), "this has changed"
PYTHON
for case in "0.10.1 right" "0.10.2 wrong"; do
  read -r version expected <<< "$case"
  "$folder/venv/bin/pip" install --quiet "jax==$version" "jaxlib==$version" "numpy==2.4.6"
  JAX_PLATFORMS=cpu "$folder/venv/bin/python" "$folder/head.py" "$expected"
done
