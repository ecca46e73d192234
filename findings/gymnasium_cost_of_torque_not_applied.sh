#!/usr/bin/env bash
# gymnasium 1.4.0 with mujoco 4.0.0: HalfCheetah-v5, Hopper-v5, Ant-v5.
#
# Expected: an action outside of the box is refused, or clipped to it and rewarded as what was applied.
#
# Behaviour: it goes to the engine, which clips each torque to its actuator's range, and the next state is, to the last
# bit, that of the action at the bound. The control cost is taken from the action as given: one of 5 where 1 is the
# most costs HalfCheetah 14.4 a step and Ant 96 that nothing was applied for. Nothing warns.
#
# Who is hurt: Gaussian policies whose samples go to step() as they are: at std 1 a third of the entries lies outside,
# and the return falls although the motion is the same. World models and datasets that store the clipped action: two
# rewards belong to one and the same state and action. Clip before step().
#
# Seen: HalfCheetah-v5: states apart 0.0, reward at the bound 0.415, beyond it -13.985; Hopper-v5: states apart 0.0,
# reward at the bound 1.052, beyond it 0.980; Ant-v5: states apart 0.0, reward at the bound -2.910, beyond it -98.910
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet "gymnasium[mujoco]==1.4.0" "mujoco==4.0.0"
"$folder/venv/bin/python" -W ignore - <<'PYTHON'
import gymnasium
import numpy as np


def first_step(task, entry):
    """Return state and reward of one step with every entry of the action at the same value."""
    env = gymnasium.make(task)
    env.reset(seed=0)
    _, reward, *_ = env.step(np.full(env.action_space.shape, entry, np.float32))
    data = env.unwrapped.data
    return np.concatenate([data.qpos, data.qvel]), float(reward)


costs = {}
for task in ("HalfCheetah-v5", "Hopper-v5", "Ant-v5"):
    at_bound, beyond = first_step(task, 1.0), first_step(task, 5.0)
    apart = float(np.abs(at_bound[0] - beyond[0]).max())
    costs[task] = round(at_bound[1] - beyond[1], 3)
    print(f"{task}: states apart {apart}, reward at the bound {at_bound[1]:.3f}, beyond it {beyond[1]:.3f}")
    assert apart == 0.0, "this has changed"
assert costs == {"HalfCheetah-v5": 14.4, "Hopper-v5": 0.072, "Ant-v5": 96.0}, "this has changed"
PYTHON
