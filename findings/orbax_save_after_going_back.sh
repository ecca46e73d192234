#!/usr/bin/env bash
# orbax-checkpoint 0.12.8 with jax 0.10.2 on CPU.
#
# Expected: CheckpointManager.save(step) saves every step that the save interval allows and that is not there yet, or
# raises.
#
# Behaviour: below the newest step of the folder it saves nothing, returns False, and warns of nothing. A run that goes
# back to an earlier checkpoint (the best policy, the last one before a NaN) and on from there has no checkpoint until
# it has passed the place where it was; killed before, it begins at what it had thrown away. restore() without a step
# gives that too.
#
# Who is hurt: whoever restores an older step in place. Delete the newer ones first (manager.delete), use another
# folder, or pass force=True; and look at what save() returns.
#
# Seen: steps 100, 200 and 300 saved; from 100 on: save(150) False, save(250) False; steps [100, 200, 300]; latest 300;
# with force=True: save(150) True
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet "orbax-checkpoint==0.12.8" "jax[cpu]==0.10.2" "numpy==2.4.6"
JAX_PLATFORMS=cpu "$folder/venv/bin/python" - 2> "$folder/warnings" <<'PYTHON'
import tempfile

import numpy as np
import orbax.checkpoint as ocp


def save(manager, step, force=False):
    """Save some weights, wait until they are written, and return what ``save`` said."""
    said = manager.save(step, args=ocp.args.StandardSave({"weights": np.full(2, step)}), force=force)
    manager.wait_until_finished()
    return said


with tempfile.TemporaryDirectory() as folder:
    with ocp.CheckpointManager(folder) as manager:
        assert all(save(manager, step) for step in (100, 200, 300))
    with ocp.CheckpointManager(folder) as manager:  # a new process, as after a failure
        manager.restore(100, args=ocp.args.StandardRestore({"weights": np.zeros(2, np.int64)}))
        again = {step: save(manager, step) for step in (150, 250)}
        steps, latest = sorted(manager.all_steps()), manager.latest_step()
        forced = save(manager, 150, force=True)
print(f"steps 100, 200, 300 saved; restored 100; saved anew: {again}; steps {steps}, latest {latest}; forced: {forced}")
assert again == {150: False, 250: False} and steps == [100, 200, 300] and latest == 300, "they are saved now"
PYTHON
! grep -i "skip\|not sav" "$folder/warnings"
