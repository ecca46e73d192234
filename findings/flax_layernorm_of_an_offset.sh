#!/usr/bin/env bash
# flax 0.12.8 with jax 0.10.2 on CPU.
#
# Expected: LayerNorm in float32 is right to five digits on inputs far from zero; removing the mean is what it is for.
#
# Behaviour: by default (use_fast_variance=True) the variance is the mean of squares less the square of the mean. In
# float32 that cancels when the mean is a thousand times the spread: the outputs are then wrong by more than they are
# large. use_fast_variance=False is right. BatchNorm and GroupNorm have the same default. There is no warning.
#
# Who is hurt: networks that see raw observations with an offset (a position far along the track, a height, a
# temperature) and trust the first LayerNorm to centre them.
#
# Seen: error of the output at means of 0, 10, 100 and 1000: 2e-07, 0.007, 0.7, 2e+02
#       with use_fast_variance=False:                        2e-07, 3e-05, 0.0002, 0.0008
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet "flax==0.12.8" "jax[cpu]==0.10.2" "numpy==2.4.6"
JAX_PLATFORMS=cpu "$folder/venv/bin/python" - <<'PYTHON'
import flax.linen as nn
import jax
import numpy as np

spread = 0.1 * np.random.default_rng(0).normal(size=(4, 32))
errors = {}
for offset in (0.0, 10.0, 100.0, 1000.0):
    x = (offset + spread).astype(np.float32)
    exact = x.astype(np.float64)
    exact = (exact - exact.mean(-1, keepdims=True)) / np.sqrt(exact.var(-1, keepdims=True) + 1e-6)
    for fast in (True, False):
        layer = nn.LayerNorm(use_fast_variance=fast)
        out = layer.apply(layer.init(jax.random.key(0), x), x)
        errors[offset, fast] = float(np.abs(out - exact).max())
    print(f"mean {offset:.0f}, spread 0.1: error {errors[offset, True]:.1g}, slow variance {errors[offset, False]:.1g}")
assert errors[0.0, True] < 1e-5 and errors[1000.0, False] < 0.01, "the accurate cases have changed"
assert errors[100.0, True] > 0.1 and errors[1000.0, True] > 1.0, "the default is accurate now"
PYTHON
