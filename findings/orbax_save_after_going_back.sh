#!/usr/bin/env bash
# orbax-checkpoint 0.12.8 with jax 0.10.2 on CPU.
#
# Expected: CheckpointManager.save(step) saves every step that the save interval allows and that is not there yet, or
# raises.
#
# Behaviour: below the newest step of the folder it saves nothing, returns False, and warns of nothing. A run that goes
# back to an earlier checkpoint (the best policy, the last one before a NaN) and on from there has no checkpoint until
# it has passed the place where it was; killed before, it begins at what it had thrown away.
#
# Who is hurt: whoever restores an older step in place. Delete the newer ones first (manager.delete) or use another
# folder, and look at what save() returns. force=True saves, but to the next process the newest step is still the one
# that was thrown away.
#
# Seen: steps 100, 200 and 300 saved; from 100 on: save(150) False, save(250) False; steps [100, 200, 300]; with
# force=True: save(150) True, latest in the next process 300; after deleting 200 and 300: save(250) True
set -euo pipefail
folder=$(mktemp -d)
touch "$folder/warnings"
trap 'test $? = 0 || cat "$folder/warnings" >&2; rm -rf "$folder"' EXIT
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
        steps = sorted(manager.all_steps())
        forced = save(manager, 150, force=True)
    with ocp.CheckpointManager(folder) as manager:
        latest = manager.latest_step()
        for step in (200, 300):
            manager.delete(step)
        deleted = save(manager, 250)
print(f"steps 100, 200, 300 saved; restored 100; saved anew: {again}; steps {steps}")
print(f"forced: {forced}, latest in the next process {latest}; after deleting the newer ones: {deleted}")
assert again == {150: False, 250: False} and steps == [100, 200, 300], "they are saved now"
assert forced and latest == 300 and deleted, "this has changed"
PYTHON
! grep -i "skip\|not sav\|not allowed" "$folder/warnings"
