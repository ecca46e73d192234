#!/usr/bin/env bash
# tensorboard 2.21.0 with tensorboardX 2.6.5.
#
# Behaviour: a chart of the page Custom Scalars draws no line of a tag with parentheses, such as "return (raw)" or
# "length (steps)". The server sends the points, the list under the chart names the match and the axes are scaled to it,
# but the lines are missing, without a message on the page. The page names a line "TAG (RUN)" and reads the run off again
# from the first parenthesis on, so that "return (raw)" of run a is a line of the run "raw) (a", which has no colour: an
# exception in the browser's console, once for every such line. The page Scalars draws the same tags.
#
# Who is hurt: whoever puts units or a marker in parentheses behind the names of metrics and lays out a page of them.
#
# Seen in Chromium: a chart of "loss" has its lines, one of "return (raw)" none. Seen here, without a browser: both tags
# are served with 30 points to the page; the expression shipped in index.js, run on the names that it makes, gives the
# runs "a" and "raw) (a".
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet "tensorboard==2.21.0" "tensorboardX==2.6.5" "numpy==2.4.6" "setuptools==80.9.0"
cat > "$folder/page.py" <<'PYTHON'
import json
import re
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
import zipfile
from importlib.metadata import version
from pathlib import Path

import tensorboard
from tensorboardX import FileWriter
from tensorboardX.proto.summary_pb2 import Summary

TAGS = ("loss", "return (raw)")
logs = sys.argv[1]
writer = FileWriter(f"{logs}/a")
for step in range(30):
    writer.add_summary(Summary(value=[Summary.Value(tag=tag, simple_value=float(step)) for tag in TAGS]), step)
writer.close()


def served(address, tag):
    asked = urllib.parse.urlencode({"tag": re.escape(tag) + "$", "run": "a"})
    with urllib.request.urlopen(f"{address}data/plugin/custom_scalars/scalars?{asked}") as answer:
        return {name: len(points) for name, points in json.load(answer)["tag_to_events"].items()}


command = [sys.executable, "-m", "tensorboard.main", "--logdir", logs, "--port", "0"]
with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as server:
    try:
        address = next(word for line in server.stderr for word in line.split() if word.startswith("http://"))
        for _ in range(120):  # until the file has been read
            time.sleep(0.5)
            try:
                found = {tag: served(address, tag) for tag in TAGS}
            except urllib.error.HTTPError:
                continue
            if all(found.values()):
                break
    finally:
        server.terminate()
print("tensorboard", version("tensorboard"), "serves to the page:", found)
assert found == {tag: {tag: 30} for tag in TAGS}

script = zipfile.ZipFile(Path(tensorboard.__file__).parent / "webfiles.zip").read("index.js").decode()
shipped = re.search(r"parseRunName\((\w+)\)\{let (\w+)=\1\.match\(/(.+?)/\);", script)
assert shipped, "the page reads the run off in another way now"
runs = {tag: re.search(shipped.group(3), f"{tag} (a)").group(1) for tag in TAGS}
print(f"runs that {shipped.group(3)} reads off the names of the lines: {runs}")
assert runs["loss"] == "a" and runs["return (raw)"] != "a", "tags with parentheses are drawn now"
PYTHON
"$folder/venv/bin/python" -W ignore "$folder/page.py" "$folder/logs"
