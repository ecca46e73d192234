#!/usr/bin/env bash
# gymnasium 1.4.0 with mujoco 4.0.0, Ant-v5.
#
# Expected: an episode starts in a pose the robot can hold; ant.xml even has one, as a numeric named init_qpos.
#
# Behaviour: nothing reads that numeric. reset() takes the model's zero pose, in which all four ankles are 30 degrees
# outside of their ranges, and adds noise of at most 0.1 rad. So the limits kick the legs: a first action of zero
# leaves a joint at 10 rad/s, where from the pose in the file all of them stay nearly still.
#
# Who is hurt: whoever fits a model or a normaliser to short episodes (each start adds the outliers), starts imagined
# roll-outs from real first states, or reads the speed in the first steps as the policy's doing.
#
# Seen: ankles outside of their range in 100 starts: 24 to 36 degrees
#       fastest joint after a zero action: 10.5 rad/s, from the file's pose 0.01 rad/s
set -euo pipefail
folder=$(mktemp -d)
trap 'test $? = 0 || cat "$folder/warnings" >&2; rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet "gymnasium[mujoco]==1.4.0" "mujoco==4.0.0" "numpy==2.4.6"
"$folder/venv/bin/python" - 2> "$folder/warnings" <<'PYTHON'
import gymnasium
import numpy as np

env = gymnasium.make("Ant-v5").unwrapped
limited = env.model.jnt_limited.astype(bool)
low, high = env.model.jnt_range[limited].T
outside, speeds = [], []
for seed in range(100):
    env.reset(seed=seed)
    angles = env.data.qpos[env.model.jnt_qposadr[limited]]
    outside.append(np.rad2deg(np.maximum(low - angles, angles - high)).clip(0.0))
    env.step(np.zeros(8))
    speeds.append(np.abs(env.data.qvel[6:]).max())
ankles = np.array(outside)[:, 1::2]

env.set_state(env.model.numeric("init_qpos").data, np.zeros(14))
env.step(np.zeros(8))
from_file = np.abs(env.data.qvel[6:]).max()
print(f"ankles outside of their range in 100 starts: {ankles.min():.0f} to {ankles.max():.0f} degrees")
print(f"fastest joint after a zero action: {np.mean(speeds):.1f} rad/s, from the file's pose {from_file:.2f} rad/s")
assert ankles.min() > 20 and np.mean(speeds) > 4 * from_file, "Ant starts within its limits now"
PYTHON
