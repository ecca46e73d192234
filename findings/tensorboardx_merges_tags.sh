#!/usr/bin/env bash
# tensorboardX 2.6.5, read with tensorboard 2.21.0.
#
# Expected: two tags are two curves.
#
# Behaviour: tensorboardX turns each character of a tag that is not a letter, a digit or one of -/_. into an
# underscore, so tags that differ in such characters alone become one: "return (real)" and "return [real]", "hit@5"
# and "hit%5", "q=0.5" and "q<0.5". The one curve holds both values at each step, and what a reader shows of it
# depends on the reader.
#
# Who is hurt: whoever logs quantiles, conditions or spaces by such names: two measures are drawn as one zigzag curve.
# The writer says so only at the log level INFO.
#
# Seen: tags written 4, tags read 2: q_0.5 [1.0, 2.0], return__real_ [3.0, 4.0]
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet "tensorboardX==2.6.5" "tensorboard==2.21.0" "numpy==2.4.6"
"$folder/venv/bin/python" -W ignore - <<'PYTHON'
import tempfile

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboardX import SummaryWriter

with tempfile.TemporaryDirectory() as folder:
    with SummaryWriter(folder) as writer:
        for value, tag in enumerate(("q<0.5", "q>0.5", "return (real)", "return [real]"), start=1):
            writer.add_scalar(tag, value, 0)
    reader = EventAccumulator(folder)
    reader.Reload()
    curves = {tag: [point.value for point in reader.Scalars(tag)] for tag in reader.Tags()["scalars"]}
print("tags written 4, tags read", len(curves), curves)
assert curves == {"q_0.5": [1.0, 2.0], "return__real_": [3.0, 4.0]}, "the tags are kept apart now"
PYTHON
