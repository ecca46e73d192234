#!/usr/bin/env bash
# jax 0.10.2 on CPU, and scipy 1.17.1 beside it.
#
# Expected: jax.random.truncated_normal(key, 6, 7) draws what a normal number is like between 6 and 7: mostly just
# above 6, the end that lies nearer to zero.
#
# Behaviour: all draws are one number, 7, the end that lies further away. Draws go through the error function, which is
# 1 in float32 from 5.5 standard deviations on; its inverse there is infinite and is clipped to the bound. Between 5
# and 6 there are ten different numbers. There is no NaN and no warning.
#
# Who is hurt: bounded policies and noise by truncated Gaussians. A mean of 1.2 with std 0.02 in a box from -1 to 1 has
# its bounds at -110 and -10: the action should be about 1, and is -1.
#
# Seen: 3 to 4: mean 3.261 (scipy 3.260), 8956 different; 5 to 6: mean 5.214 (scipy 5.183), 10 different; 6 to 7: mean
# 7.000 (scipy 6.157), 1 different; -110 to -10: mean -110.000 (scipy -10.098), 1 different
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet "jax[cpu]==0.10.2" "scipy==1.17.1"
JAX_PLATFORMS=cpu "$folder/venv/bin/python" - <<'PYTHON'
import jax
import numpy as np
from scipy.stats import truncnorm

means = {}
for low, high in ((3, 4), (5, 6), (6, 7), (-110, -10)):
    drawn = np.asarray(jax.random.truncated_normal(jax.random.key(0), low, high, (10_000,)), np.float64)
    true = truncnorm(low, high).mean()
    means[low] = drawn.mean()
    different = len(np.unique(drawn))
    print(f"{low} to {high}: mean {drawn.mean():.3f} (scipy {true:.3f}), {different} different")
assert abs(means[3] - 3.26) < 0.02 and means[6] > 6.99 and means[-110] < -109.99, "this has changed"
PYTHON
