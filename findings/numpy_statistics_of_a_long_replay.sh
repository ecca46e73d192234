#!/usr/bin/env bash
# numpy 2.4.6.
#
# Expected: mean and standard deviation of float32 columns are right to five digits: NumPy sums in pairs, so that
# errors hardly grow with the length.
#
# Behaviour: along the first axis of a table it does not. Each column is summed one row after the other in float32, so
# that a sum of ones stands still at 2^24, and of ten million rows around 1.25 the mean is 1.17. With a spread of 0.1
# that is nearly a whole deviation; the deviation itself is 27 % too large. The same column alone, contiguous, is
# right, and so is dtype=np.float64. There is no warning.
#
# Who is hurt: normalisers of observations, whose statistics are x.mean(axis=0) and x.std(axis=0) of a replay in
# float32. A height of 1.25 m, the mean of a walking robot, is off first: it varies little beside its mean.
#
# Seen: table: mean 1.1697, std 0.1272; column alone: mean 1.2500, std 0.1000; table in float64: mean 1.2500, std
# 0.1000; sum of 20,000,000 ones: 16777216
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet "numpy==2.4.6"
"$folder/venv/bin/python" - <<'PYTHON'
import numpy as np

ROWS = 10_000_000
replay = np.zeros((ROWS, 3), np.float32)
replay[:, 0] = np.random.default_rng(0).normal(1.25, 0.1, ROWS)
alone = np.ascontiguousarray(replay[:, 0])
found = {
    "table": (replay.mean(axis=0)[0], replay.std(axis=0)[0]),
    "column alone": (alone.mean(), alone.std()),
    "table in float64": (replay.mean(axis=0, dtype=np.float64)[0], replay.std(axis=0, dtype=np.float64)[0]),
}
for name, (mean, std) in found.items():
    print(f"{name}: mean {mean:.4f}, std {std:.4f}")
ones = np.ones((20_000_000, 3), np.float32).sum(axis=0)[0]
print(f"sum of 20,000,000 ones: {ones:.0f}")
right = all(abs(found[name][0] - 1.25) < 1e-3 and abs(found[name][1] - 0.1) < 1e-3 for name in list(found)[1:])
assert right and found["table"][0] < 1.18 and found["table"][1] > 0.12 and ones == 2**24, "this has changed"
PYTHON
