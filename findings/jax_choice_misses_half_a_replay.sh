#!/usr/bin/env bash
# jax 0.10.2, float32 (the default), CPU.
#
# Behaviour: jax.random.choice(key, n, p=p) looks up one float32 uniform number in the sum of p. Such a number has 23
# random bits, so that at most 2^23 = 8,388,608 different indices can come out, whatever n and p are. With 2^24 equal
# weights half of all indices have probability 0 and the other half twice their share; with ten million, 16 % are never
# drawn. Of one million each has eight or nine of the 2^23 values, where equal shares would be 8.39. Nothing is raised.
# Without p (it draws whole numbers), or with p in float64 under jax_enable_x64, every index comes out.
#
# Who is hurt: prioritised replay, or windows weighted by what they are worth, in a buffer on the device: some transitions
# are never learnt from, always the same for the same weights.
#
# Seen: of 2^24 indices, 33,554,432 draws with equal p find 49.1 % (twice as many draws would not find more than half);
# without p 86.5 %, which is what chance gives; with p in float64 86.5 %.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet "jax==0.10.2" "jaxlib==0.10.2" "numpy==2.4.6"
cat > "$folder/indices.py" <<'PYTHON'
import math
import sys

import jax
import jax.numpy as jnp
import numpy as np

case = sys.argv[1]
jax.config.update("jax_enable_x64", case == "float64")
SIZE, BATCH, BATCHES = 2**24, 2**22, 8
weights = None if case == "none" else jnp.full(SIZE, 1 / SIZE, case)
draw = jax.jit(lambda key: jax.random.choice(key, SIZE, (BATCH,), p=weights))
seen = np.zeros(SIZE, bool)
for key in jax.random.split(jax.random.key(0), BATCHES):
    seen[np.asarray(draw(key))] = True
found, chance = seen.mean(), 1 - math.exp(-BATCH * BATCHES / SIZE)
print(f"jax {jax.__version__}, p {case}: {found:.3f} of {SIZE} indices come out; by chance {chance:.3f}")
assert 0.485 < found <= 0.5 if case == "float32" else abs(found - chance) < 0.005, "it draws otherwise now"
PYTHON
for case in float32 none float64; do JAX_PLATFORMS=cpu "$folder/venv/bin/python" "$folder/indices.py" "$case"; done
