#!/usr/bin/env bash
# jax 0.10.2 on CPU.
#
# Expected: the gradient of a clipped value is 1 inside of the bounds, 0 outside, and one of the two at a bound.
#
# Behaviour: at a bound it is 0.5, since jnp.clip is a minimum of a maximum and JAX halves the gradient at a tie. A
# second clip at the same bound leaves 0.25. jnp.minimum of equals shares the gradient likewise, while jax.nn.relu
# says 0.
#
# Who is hurt: parameters that start at their bound (a log standard deviation at its upper limit) get half or a
# quarter of their gradient, and a gradient check against other libraries fails at the bounds.
#
# Seen: clip 0.5, clip twice 0.25, minimum of equals 0.5, relu 0.0
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet "jax[cpu]==0.10.2" "numpy==2.4.6"
JAX_PLATFORMS=cpu "$folder/venv/bin/python" - <<'PYTHON'
import jax
import jax.numpy as jnp

functions = {
    "clip": lambda x: jnp.clip(x, -1.0, 1.0),
    "clip twice": lambda x: jnp.clip(jnp.clip(x, -1.0, 1.0), -2.0, 1.0),
    "minimum of equals": lambda x: jnp.minimum(x, 1.0),
    "relu": lambda x: jax.nn.relu(x - 1.0),
}
gradients = {name: float(jax.grad(function)(1.0)) for name, function in functions.items()}
print("gradient at the bound:", gradients)
assert list(gradients.values()) == [0.5, 0.25, 0.5, 0.0], "ties are shared otherwise now"
PYTHON
