#!/usr/bin/env bash
# jax 0.10.2 on CPU.
#
# Expected: jax.random.normal and categorical in bfloat16 draw as in float32 and round.
#
# Behaviour: the uniform number below them is drawn with the 7 bits that bfloat16 has. A million normal numbers take
# 128 values, none beyond 2.9, where rounded float32 numbers take thousands and reach 4.6. categorical adds noise of
# the logits' type, so that with bfloat16 logits a category with probability 0.001 comes seventeen times too seldom.
#
# Who is hurt: diffusion models and policies in mixed precision: asking for the noise in the type of the network's
# input gives a coarse noise with short tails, and an action's true frequency is not the probability in its
# log-probability.
#
# Seen: drawn in bfloat16: 128 values, the largest 2.89; drawn in float32 and rounded: 3598 values, the largest 4.66
#       category with probability 0.001: share 0.000956 with float32 logits, 0.000059 with bfloat16 logits
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet "jax[cpu]==0.10.2" "numpy==2.4.6"
JAX_PLATFORMS=cpu "$folder/venv/bin/python" - <<'PYTHON'
import jax
import jax.numpy as jnp
import numpy as np

key, draws = jax.random.key(0), (1_000_000,)
direct = np.asarray(jax.random.normal(key, draws, jnp.bfloat16).astype(jnp.float32))
rounded = np.asarray(jax.random.normal(key, draws).astype(jnp.bfloat16).astype(jnp.float32))
for name, numbers in (("drawn in bfloat16", direct), ("drawn in float32 and rounded", rounded)):
    print(f"{name}: {len(np.unique(numbers))} values, the largest {np.abs(numbers).max():.2f}")

probabilities = jnp.array([0.9, 0.09, 0.009, 0.001])
shares = {}
for dtype in (jnp.float32, jnp.bfloat16):
    drawn = jax.random.categorical(key, jnp.log(probabilities).astype(dtype), shape=draws)
    shares[dtype.__name__] = np.bincount(np.asarray(drawn), minlength=4) / draws[0]
    print(f"{dtype.__name__} logits, shares of categories with {probabilities}: {shares[dtype.__name__]}")
assert len(np.unique(direct)) == 128 and len(np.unique(rounded)) > 1000, "normal numbers in bfloat16 are finer now"
rare = {name: share[3] / 0.001 for name, share in shares.items()}
assert 0.8 < rare["float32"] < 1.2 and rare["bfloat16"] < 0.2, "the rare category gets another share now"
PYTHON
