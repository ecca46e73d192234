#!/usr/bin/env bash
# rliable 1.2.0 with scipy 1.17.1.
#
# Expected: the interquartile mean leaves out the lowest and the highest quarter of the runs, so that one run that is
# out of line does not move it; that is why it is quoted in the place of the mean.
#
# Behaviour: it is scipy's trim_mean at 0.25, which cuts a whole number of runs from each end, rounded down. Of three
# runs it cuts none: the number is the plain mean, run out of line and all. Of seven it cuts one from each end, a
# seventh in the place of a quarter. Only where tasks times runs is a multiple of four is it the mean of the middle
# half.
#
# Who is hurt: tables of a single task with three seeds, which are many: what is headed "IQM" there is no more robust
# than the mean, and one lucky seed in three carries it.
#
# Seen: runs 3: IQM 1070.0, mean 1070.0, cut 0 of each end; runs 4: IQM 107.5, mean 828.8, cut 1 of each end; runs 7:
# IQM 106.0, mean 518.6, cut 1 of each end
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet "rliable==1.2.0" "scipy==1.17.1"
"$folder/venv/bin/python" - <<'PYTHON'
import numpy as np
from rliable import metrics


def look(runs):
    """IQM and mean of scores of which one is out of line, and how many runs the IQM leaves out at each end."""
    scores = np.append(np.linspace(100, 110, runs - 1), 3000.0)
    iqm = float(metrics.aggregate_iqm(scores[:, None]))
    cut = next(n for n in range(runs) if np.isclose(scores[n : runs - n].mean(), iqm))
    print(f"runs {runs}: IQM {iqm:.1f}, mean {scores.mean():.1f}, cut {cut} of each end")
    return iqm, scores.mean(), cut


three, four, seven = look(3), look(4), look(7)
assert three[0] == three[1] and four[0] < 200 and (four[2], seven[2]) == (1, 1), "this has changed"
PYTHON
