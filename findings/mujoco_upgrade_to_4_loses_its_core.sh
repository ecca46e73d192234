#!/usr/bin/env bash
# mujoco 3.17.0, then `pip install --upgrade mujoco==4.0.0`.
#
# Expected: an upgrade that pip reports as successful, and `pip check` as sound, imports.
#
# Behaviour: `import mujoco` raises ImportError. Since 4.0.0 the package is three wheels, and mujoco-core writes its
# files into the folder mujoco/ too. pip installs mujoco-core first, as it is a dependency, and then uninstalls mujoco
# 3.17.0, whose list of files names many of those just written. `pip list` and `pip check` look at metadata alone and
# see nothing. Uninstalling mujoco first is the way round; a fresh environment is unharmed (mujoco's changelog says
# so).
#
# Who is hurt: environments that are kept and upgraded, which is how a training machine or a container's layer lives.
#
# Seen: pip check: No broken requirements found. import: ImportError. After uninstall and install: imports 4.0.0
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
pip="$folder/venv/bin/pip"
import() { "$folder/venv/bin/python" -c "import mujoco; print('imports', mujoco.__version__)" 2> "$folder/error"; }

"$pip" install --quiet "mujoco==3.17.0" "numpy==2.4.6"
import
"$pip" install --quiet --upgrade "mujoco==4.0.0" "mujoco-core==4.0.0" "mujoco-studio==4.0.0"
"$pip" check
if import; then echo "the upgraded package imports now"; exit 1; fi
grep --only-matching "^ImportError" "$folder/error"
"$pip" uninstall --quiet --yes mujoco mujoco-core mujoco-studio
"$pip" install --quiet "mujoco==4.0.0" "mujoco-core==4.0.0" "mujoco-studio==4.0.0"
import
