#!/usr/bin/env bash
# tensorboard 2.21.0 (tensorboard-data-server 0.7.2) with tensorboardX 2.6.5.
#
# Behaviour: 0 means two things. EventAccumulator's size_guidance={"scalars": 0} reads every point, as its documentation
# says; the command's --samples_per_plugin scalars=0 serves none: the run and the tag are listed, and every chart is
# empty, without a word. It is the same with and without the data server (--load_fast=false). A large number serves all.
#
# Who is hurt: whoever passes 0 to see every point of a long training, or every image.
#
# Seen (1,200 points written): size_guidance 0 reads 1200; the command serves 1000 by default, 0 with scalars=0, 1200 with
# scalars=1000000; with --load_fast=false 1000, 0 and 1200.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet "tensorboard==2.21.0" "tensorboardX==2.6.5" "numpy==2.4.6" "setuptools==80.9.0"
cat > "$folder/serve.py" <<'PYTHON'
import json
import subprocess
import sys
import time
import urllib.error
import urllib.request

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboardX import SummaryWriter

POINTS = 1_200
logs = sys.argv[1]
with SummaryWriter(f"{logs}/run") as writer:
    for step in range(POINTS):
        writer.add_scalar("loss", float(step), step)
reader = EventAccumulator(f"{logs}/run", size_guidance={"scalars": 0})
print("EventAccumulator with size_guidance 0 reads", len(reader.Reload().Scalars("loss")))
assert len(reader.Scalars("loss")) == POINTS


def served(*options):
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", logs, "--port", "0", *options]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as server:
        try:
            address = next(word for line in server.stderr for word in line.split() if word.startswith("http://"))
            for _ in range(120):  # until the file has been read
                time.sleep(0.5)
                try:
                    with urllib.request.urlopen(f"{address}data/plugin/scalars/tags") as answer:
                        if "loss" not in json.load(answer).get("run", {}):
                            continue
                    time.sleep(2.0)
                    with urllib.request.urlopen(f"{address}data/plugin/scalars/scalars?tag=loss&run=run") as answer:
                        return len(json.load(answer))
                except urllib.error.HTTPError:
                    continue
        finally:
            server.terminate()
    raise SystemExit("the tag was never served")


for loading in ([], ["--load_fast=false"]):
    found = [served(*loading, *(["--samples_per_plugin", f"scalars={n}"] if n is not None else [])) for n in (None, 0, 10**6)]
    print(*loading, "served by default, with scalars=0, with scalars=1000000:", *found)
    assert found[1] == 0, "0 no longer means none"
    assert found[0] < POINTS and found[2] == POINTS
PYTHON
"$folder/venv/bin/python" -W ignore "$folder/serve.py" "$folder/logs"
