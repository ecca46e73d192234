#!/usr/bin/env bash
# imageio 2.38.1 with Pillow 13.0.0, and the frame rates of gymnasium 1.4.0's MuJoCo tasks (mujoco 4.0.0).
#
# Behaviour: a GIF counts hundredths of a second. Hopper-v5 and Walker2d-v5 name 125 frames per second (render_fps), so a
# frame is to be shown for 8 ms, which is written as 0 without a word; the 14.9 ms of Humanoid-v5 and HumanoidStandup-v5
# are written as 10, half as fast again. HalfCheetah-v5 and Ant-v5 (50 ms) come out right, and so does every fifth frame
# of Hopper-v5. What a viewer does with 0 is its own affair; browsers are known to take 0 and 10 ms for 100 (not run here),
# so that Hopper hops 12.5 times too slowly.
#
# Who is hurt: whoever puts a film of Hopper or Walker2d on a page or into TensorBoard as a GIF and judges the gait by it.
#
# Seen (milliseconds per frame asked for and written): Hopper-v5 8.0 and 0; Walker2d-v5 8.0 and 0; Humanoid-v5 and
# HumanoidStandup-v5 14.9 and 10; HalfCheetah-v5 and Ant-v5 50.0 and 50; every fifth frame of Hopper-v5 40.0 and 40.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet "gymnasium[mujoco]==1.4.0" "mujoco==4.0.0" "imageio==2.38.1" "pillow==13.0.0" "numpy==2.4.6"
cat > "$folder/film.py" <<'PYTHON'
import sys
from importlib.metadata import version

import gymnasium
import imageio.v2 as imageio
import numpy as np
from PIL import Image


def written(milliseconds):
    path = f"{sys.argv[1]}/film.gif"
    with imageio.get_writer(path, format="GIF", duration=milliseconds) as writer:
        for k in range(10):
            writer.append_data(np.full((16, 16, 3), 20 * k, np.uint8))
    film, durations = Image.open(path), set()
    for k in range(1, film.n_frames):
        film.seek(k)
        durations.add(film.info["duration"])
    (each,) = durations
    return each


print("imageio", version("imageio"), "gymnasium", gymnasium.__version__)
found = {}
for task in ("Hopper-v5", "Walker2d-v5", "Humanoid-v5", "HumanoidStandup-v5", "HalfCheetah-v5", "Ant-v5"):
    env = gymnasium.make(task)
    asked = 1000.0 / env.metadata["render_fps"]
    env.close()
    found[task] = written(asked)
    print(f"{task}: {asked:.1f} ms per frame asked for, {found[task]} written")
fifth = written(40.0)
print(f"every fifth frame of Hopper-v5: 40.0 ms per frame asked for, {fifth} written")
assert found["Hopper-v5"] == found["Walker2d-v5"] == 0, "8 ms are no longer written as 0"
assert found["Humanoid-v5"] == found["HumanoidStandup-v5"] == 10
assert found["HalfCheetah-v5"] == found["Ant-v5"] == 50 and fifth == 40
PYTHON
"$folder/venv/bin/python" "$folder/film.py" "$folder"
