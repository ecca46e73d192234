#!/usr/bin/env bash
# tensorboard 2.21.0 with tensorboardX 2.6.5.
#
# Expected: EventAccumulator reads the scalars that are in the event file.
#
# Behaviour: without a size_guidance it keeps 10,000 points of a tag, drawn at random by reservoir sampling; the last
# is always among them, the others need not be. No warning tells of it. size_guidance={"scalars": 0} reads all.
#
# Who is hurt: whoever draws figures or computes areas under a curve, best returns or "first step at which" from event
# files: peaks and crossings of long runs are missing.
#
# Seen: written 20000, read 10000, with size_guidance 20000; of 20 peaks 7 were read
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet "tensorboard==2.21.0" "tensorboardX==2.6.5" "numpy==2.4.6"
"$folder/venv/bin/python" -W ignore - <<'PYTHON'
import tempfile

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboardX import SummaryWriter

with tempfile.TemporaryDirectory() as folder:
    with SummaryWriter(folder) as writer:
        for step in range(20_000):
            writer.add_scalar("return", float(step % 1000 == 500), step)
    by_default, everything = EventAccumulator(folder), EventAccumulator(folder, size_guidance={"scalars": 0})
    by_default.Reload()
    everything.Reload()
    read, complete = by_default.Scalars("return"), everything.Scalars("return")
peaks = [int(sum(point.value for point in points)) for points in (complete, read)]
print(f"written 20000, read {len(read)}, with size_guidance {len(complete)}; of {peaks[0]} peaks {peaks[1]} were read")
assert len(read) == 10_000 and len(complete) == 20_000 and peaks[1] < peaks[0] == 20, "the default reads all now"
PYTHON
