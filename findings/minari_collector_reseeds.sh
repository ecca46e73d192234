#!/usr/bin/env bash
# minari 0.5.4 with gymnasium 1.4.0.
#
# Expected: a wrapper that records leaves the environment as it is. In Gymnasium reset(seed=0) seeds an environment
# once; the resets after it draw from that generator, so a whole run repeats.
#
# Behaviour: DataCollector gives each reset that names no seed a fresh one from the system. So only the first episode
# of a seeded run repeats; the others differ from those without the collector and from one run to the next.
# reset(options={"minari_autoseed": False}) brings the contract back.
#
# Who is hurt: whoever collects a dataset and trains in the same run and expects the seed to hold.
#
# Seen: start of the second episode equal in two runs with seed 0: bare environment True, collector False,
#       collector without its own seeds True
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet "minari[hdf5]==0.5.4" "gymnasium==1.4.0" "numpy==2.4.6"
MINARI_DATASETS_PATH="$folder/datasets" "$folder/venv/bin/python" -W ignore - <<'PYTHON'
import gymnasium
import minari
import numpy as np

no_seeds = {"options": {"minari_autoseed": False}}
bare = gymnasium.make("Pendulum-v1")
collector = minari.DataCollector(gymnasium.make("Pendulum-v1"))
repeats = {}
for name, env, arguments in (("bare", bare, {}), ("collector", collector, {}), ("without seeds", collector, no_seeds)):
    starts = []
    for _ in range(2):
        env.reset(seed=0)
        starts.append(env.reset(**arguments)[0])
    repeats[name] = bool(np.array_equal(*starts))
print("start of the second episode equal in two runs with seed 0:", repeats)
assert repeats == {"bare": True, "collector": False, "without seeds": True}, "this has changed"
PYTHON
