#!/usr/bin/env bash
# mujoco-mjx 3.17.0, the newest, with mujoco 3.17.0 and with mujoco 4.0.0; jax 0.10.2, float64.
#
# Expected: MJX is MuJoCo's own engine in JAX. With both packages at their newest, which is what pip installs and
# nothing warns of, a step of one is a step of the other.
#
# Behaviour: mujoco 4.0.0 corrected RK4 for free and ball joints; no MJX has followed, and it allows any newer mujoco.
# A thrown box, with no contact anywhere, is the same to rounding with both at 3.17.0 and half a millionth apart after
# a single step with the newest of each. Models with hinges and slides only (Hopper, Walker2d, HalfCheetah) agree.
#
# Who is hurt: whoever trains Ant or Humanoid in MJX and measures in Gymnasium, or checks gradients through MJX against
# finite differences of MuJoCo: the difference is no rounding, and switching to float64 does not take it away.
#
# Seen: mujoco 3.17.0, mjx 3.17.0: positions differ by 2.2e-16 after 1 step, 1.9e-15 after 100
#       mujoco 4.0.0, mjx 3.17.0: positions differ by 5.0e-07 after 1 step, 3.8e-05 after 100
set -euo pipefail
folder=$(mktemp -d)
trap 'test $? = 0 || cat "$folder/warnings" >&2; rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
cat > "$folder/throw.py" <<'PYTHON'
import contextlib
import importlib.metadata
import io
import sys

import jax
import mujoco
import numpy as np

with contextlib.redirect_stdout(io.StringIO()):  # it says that it lacks warp
    from mujoco import mjx

jax.config.update("jax_enable_x64", True)
model = mujoco.MjModel.from_xml_string("""
<mujoco>
  <option integrator="RK4" timestep="0.01"/>
  <worldbody><body><freejoint/><geom type="box" size="0.3 0.2 0.05" mass="1"/></body></worldbody>
</mujoco>""")
data = mujoco.MjData(model)
data.qvel[:] = 1, 0, 0, 3, 2, 1
in_jax, step = mjx.put_data(model, data), jax.jit(mjx.step)
on_device, apart = mjx.put_model(model), {}
for k in range(1, 101):
    mujoco.mj_step(model, data)
    in_jax = step(on_device, in_jax)
    apart[k] = np.abs(np.asarray(in_jax.qpos) - data.qpos).max()
print(
    f"mujoco {mujoco.__version__}, mjx {importlib.metadata.version('mujoco-mjx')}: "
    f"positions differ by {apart[1]:.1e} after 1 step, {apart[100]:.1e} after 100"
)
low, high = (float(bound) for bound in sys.argv[1:])
assert low <= apart[1] < high, "the difference has changed"
PYTHON
throw() {
  "$folder/venv/bin/pip" uninstall --quiet --yes mujoco 2> "$folder/warnings"  # 4.0.0 over 3.17.0 does not import
  "$folder/venv/bin/pip" install --quiet "mujoco-mjx==3.17.0" "mujoco==$1" "jax==0.10.2" "numpy==2.4.6"
  "$folder/venv/bin/python" "$folder/throw.py" "$2" "$3" 2> "$folder/warnings"
}
throw 3.17.0 0 1e-14
throw 4.0.0 1e-8 1e-5
