#!/usr/bin/env bash
# flax 0.12.8 with jax 0.10.2 on CPU.
#
# Expected: flax.serialization.from_bytes(target, data) raises when the data does not fit the target.
#
# Behaviour: it checks the names only. Shapes and types are those of the file, whatever the target says.
#
# Who is hurt: whoever saves more than a module's parameters, whose shapes apply() checks later: a normaliser's mean,
# the moments of an optimiser, a log standard deviation. One of length 1, read for six joints, broadcasts and computes
# on, and one in float16 turns a float32 statistic to float16.
#
# Seen: target (6,) float32, read (1,) float16; normalised observation of six joints (6,)
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet "flax==0.12.8" "jax[cpu]==0.10.2" "numpy==2.4.6"
JAX_PLATFORMS=cpu "$folder/venv/bin/python" - <<'PYTHON'
import jax.numpy as jnp
import numpy as np
from flax import serialization

saved = serialization.to_bytes({"mean": np.zeros(1, np.float16)})
target = {"mean": jnp.ones(6, jnp.float32)}
read = serialization.from_bytes(target, saved)["mean"]
print(f"target {target['mean'].shape} {target['mean'].dtype}, read {read.shape} {read.dtype};", end=" ")
print(f"normalised observation of six joints {(np.ones(6) - read).shape}")
assert read.shape == (1,) and read.dtype == np.float16, "the shape or the type is checked now"
PYTHON
