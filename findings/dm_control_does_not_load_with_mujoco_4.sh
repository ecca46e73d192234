#!/usr/bin/env bash
# dm_control 1.0.50 with mujoco 4.0.0, the newest of both.
#
# Expected: dm_control asks for mujoco>=3.17.0, so pip's choice of 4.0.0 works.
#
# Behaviour: no task loads. suite.load raises AttributeError: dm_control's tables of MuJoCo's fields are made when it
# is built, and mujoco 4.0.0 has taken flex_vertedge away (its changelog, item 15). pip check is content. With mujoco
# 3.17.0 it loads.
#
# Who is hurt: every fresh `pip install dm_control`, and whoever installs it beside a program that needs mujoco 4.
#
# Seen: mujoco 4.0.0: AttributeError, names flex_vertedge: True; mujoco 3.17.0: loads
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
pip="$folder/venv/bin/pip"
cat > "$folder/load.py" <<'PYTHON'
import sys

import mujoco

try:
    from dm_control import suite

    suite.load("cartpole", "balance")
    outcome = "loads"
except AttributeError as error:
    outcome = f"AttributeError, names flex_vertedge: {'flex_vertedge' in str(error)}"
print(f"mujoco {mujoco.__version__}: {outcome}")
assert outcome == sys.argv[1], "this has changed"
PYTHON

"$pip" install --quiet "dm_control==1.0.50" "mujoco==4.0.0" "numpy==2.4.6"
"$pip" check
MUJOCO_GL=disable "$folder/venv/bin/python" "$folder/load.py" "AttributeError, names flex_vertedge: True"
"$pip" uninstall --quiet --yes mujoco mujoco-core mujoco-studio
"$pip" install --quiet "mujoco==3.17.0"
MUJOCO_GL=disable "$folder/venv/bin/python" "$folder/load.py" "loads"
