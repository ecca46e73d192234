#!/usr/bin/env bash
# gymnasium 1.4.0 with mujoco 3.17.0 and with mujoco 4.0.0: Ant-v5, whose XML asks for RK4.
#
# Expected: the fourth-order Runge-Kutta method is of fourth order: half the time step, a sixteenth of the error.
#
# Behaviour: until mujoco 3.17.0 the orientation of a free (or ball) joint is of second order under RK4, since the
# stages' angular velocities were added without a correction for the rotation between them. Four times the work of
# Euler bought Ant and Humanoid no fourth order. mujoco 4.0.0 corrects it (its changelog, item 5), and thereby
# Ant-v5's next state changes again. Hopper and Walker2d, with hinges and slides only, are the same in both versions.
#
# Who is hurt: whoever checks a learnt or differentiable model of Ant against a finer step and takes the simulator's
# own error for the model's, or mixes data of the two versions.
#
# Seen: 3.17.0: errors of the orientation at 10 ms and 5 ms 3.6e-06, 9.1e-07: order 2.0
#       4.0.0: errors of the orientation at 10 ms and 5 ms 1.5e-10, 9.1e-12: order 4.0
set -euo pipefail
folder=$(mktemp -d)
trap 'test $? = 0 || cat "$folder/warnings" >&2; rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
cat > "$folder/order.py" <<'PYTHON'
import sys

import gymnasium
import mujoco
import numpy as np

env = gymnasium.make("Ant-v5").unwrapped
env.reset(seed=0)
assert env.model.opt.integrator == mujoco.mjtIntegrator.mjINT_RK4


def orientation(step):
    """Quaternion of Ant's torso 0.1 s after a throw high above the floor, with moderate spin and still joints."""
    env.model.opt.timestep = step
    qpos, qvel = env.init_qpos.copy(), np.zeros(env.model.nv)
    qpos[2] = 10.0
    limited = env.model.jnt_limited.astype(bool)
    qpos[env.model.jnt_qposadr[limited]] = env.model.jnt_range[limited].mean(axis=1)
    qvel[3:6] = 3.0, 2.0, 1.0
    env.set_state(qpos, qvel)
    for _ in range(round(0.1 / step)):
        mujoco.mj_step(env.model, env.data)
    return env.data.qpos[3:7].copy()


exact = orientation(0.0001)
coarse, fine = (np.abs(orientation(step) - exact).max() for step in (0.01, 0.005))
order = np.log2(coarse / fine)
print(f"{mujoco.__version__}: errors of the orientation at 10 ms and 5 ms {coarse:.1e}, {fine:.1e}: order {order:.1f}")
low, high = (float(bound) for bound in sys.argv[1:])
assert low < order < high, "the order has changed"
PYTHON
order() {
  "$folder/venv/bin/pip" uninstall --quiet --yes mujoco 2> "$folder/warnings"  # 4.0.0 over 3.17.0 does not import
  "$folder/venv/bin/pip" install --quiet "gymnasium[mujoco]==1.4.0" "mujoco==$1" "numpy==2.4.6"
  "$folder/venv/bin/python" "$folder/order.py" "$2" "$3" 2> "$folder/warnings"
}
order 3.17.0 1.5 2.5
order 4.0.0 3.5 4.5
