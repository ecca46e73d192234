#!/usr/bin/env bash
# gymnasium 1.4.0 with mujoco 4.0.0 and PyOpenGL 3.1.10, MUJOCO_GL=egl, rgb_array.
#
# Behaviour: a task draws in whatever GL context is current, not in its own. As soon as a second task has drawn, the first
# one's picture of the same state is another one, drawn in the second one's context, without an error. Once the second one
# is closed, the first one's pictures are black (MujocoRenderer._get_viewer makes a context current only where one renderer
# has two viewers). Calling make_context_current() of the task's viewer before a picture gives the first one's own back.
#
# Who is hurt: whoever films a policy while another task draws, e.g. RecordVideo on both a training and an evaluation
# task, or learning from pixels in several tasks in one process.
#
# Seen (Hopper-v5 beside Ant-v5, 64 x 64, seed 0; greatest and mean difference of the first one's pictures, of 255): alone
# 0 and 0; after Ant-v5 has drawn 228 and 59.8; after Ant-v5 is closed every pixel is 0; with make_context_current() 0 and 0.
# Needs a GL library (Debian: libegl1 libopengl0).
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet "gymnasium[mujoco]==1.4.0" "mujoco==4.0.0" "numpy==2.4.6" "PyOpenGL==3.1.10"
cat > "$folder/draw.py" <<'PYTHON'
import gymnasium
import numpy as np


def made(task):
    env = gymnasium.make(task, render_mode="rgb_array", width=64, height=64)
    env.reset(seed=0)
    return env


def picture(env):
    return np.array(env.render(), int)


def say(when, before, now):
    difference = np.abs(now - before)
    print(f"{when}: greatest difference {difference.max()}, mean {difference.mean():.1f}")
    return difference.max()


print("gymnasium", gymnasium.__version__)
hopper = made("Hopper-v5")
alone = picture(hopper)
assert say("Hopper-v5 alone, twice", alone, picture(hopper)) == 0
ant = made("Ant-v5")
picture(ant)
assert say("after Ant-v5 has drawn", alone, picture(hopper)) > 30, "each task draws in its own context now"
ant.close()
black = picture(hopper)
print(f"after Ant-v5 is closed: pixels from {black.min()} to {black.max()}")
assert black.max() == 0, "the picture is no longer black"
hopper.unwrapped.mujoco_renderer.viewer.make_context_current()
assert say("with its context made current", alone, picture(hopper)) == 0
PYTHON
MUJOCO_GL=egl "$folder/venv/bin/python" "$folder/draw.py"
