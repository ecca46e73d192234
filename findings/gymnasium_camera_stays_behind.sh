#!/usr/bin/env bash
# gymnasium 1.4.0 with mujoco 4.0.0 (and 1.2.3 with 3.3.7 beside it), Hopper-v5, Walker2d-v5, HalfCheetah-v5, rgb_array.
#
# Behaviour: pictures of a task made with render_mode="rgb_array" and nothing else come from a camera that stays where
# the episode began, although the models have a camera named "track" and two of the tasks name a body to track. Since 1.4
# the renderer takes a free camera in place of the model's and leaves its type free, so that trackbodyid has no effect.
# After a few metres the film shows the floor alone. Under 1.2.3 the same lines follow the body. camera_name="track"
# brings that back.
#
# Who is hurt: whoever films a policy that walks, e.g. by RecordVideo.
#
# Seen (pixels of the body, at 0 m and at 9 m): 1.4.0: Hopper-v5 7219 and 0, Walker2d-v5 4053 and 0, HalfCheetah-v5 7021
# and 0; with camera_name="track" 9168 and 8756, 7455 and 7262, 11221 and 10616; 1.2.3 (MuJoCo 3.3.7) without it 9163 and
# 8766, 7451 and 7256, 11235 and 10594.
# Needs a GL library (Debian: libegl1 libopengl0).
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cat > "$folder/film.py" <<'PYTHON'
import sys

import gymnasium
import numpy as np


def pixels_of_the_body(task, metres, **options):
    """How many pixels change when everything but the floor is made transparent."""
    base = gymnasium.make(task, render_mode="rgb_array", **options).unwrapped
    base.reset(seed=0)
    base.render()  # the camera is placed at the first picture
    pictures = []
    for alpha in (1.0, 0.0):
        pose = base.model.qpos0.copy()
        pose[0] = metres
        base.set_state(pose, np.zeros(base.model.nv))
        base.model.geom_rgba[1:, 3] = alpha
        pictures.append(np.array(base.render(), float))
    base.close()
    return int((np.abs(pictures[0] - pictures[1]).max(axis=-1) > 30).sum())


print("gymnasium", gymnasium.__version__)
for task in ("Hopper-v5", "Walker2d-v5", "HalfCheetah-v5"):
    for options in ({}, {"camera_name": "track"}):
        near, far = (pixels_of_the_body(task, metres, **options) for metres in (0.0, 9.0))
        print(f"{task} {options}: {near} pixels at 0 m, {far} at 9 m")
        assert near > 500
        follows = far > near / 2
        assert follows == (bool(options) or sys.argv[1] == "follows"), "the camera behaves otherwise now"
PYTHON
for version in "1.4.0 4.0.0 stays" "1.2.3 3.3.7 follows"; do
  read -r gymnasium mujoco does <<< "$version"
  "${PYTHON:-python3}" -m venv "$folder/$gymnasium"
  "$folder/$gymnasium/bin/pip" install --quiet "gymnasium[mujoco]==$gymnasium" "mujoco==$mujoco" "numpy==2.4.6"
  MUJOCO_GL=egl "$folder/$gymnasium/bin/python" "$folder/film.py" "$does" 2> "$folder/warnings" || { cat "$folder/warnings"; exit 1; }
done
