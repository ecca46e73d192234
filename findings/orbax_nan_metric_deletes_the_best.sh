#!/usr/bin/env bash
# orbax-checkpoint 0.12.8 with jax 0.10.2 on CPU.
#
# Expected: with best_fn and max_to_keep=1 the checkpoint with the best metric is kept; a metric of NaN counts as
# none, or as the worst.
#
# Behaviour: checkpoints are sorted by their metrics, and NaN, which is neither larger nor smaller, breaks the sort.
# One NaN between them can put the best below a later, worse one; it is then deleted. best_step() names the worse one.
#
# Who is hurt: long runs whose evaluation fails once (no episode ended, an unstable simulation): the best policy so
# far is gone, and nothing says so.
#
# Seen: returns 1.0, 3.0, 2.0: kept 3.0; returns 1.0, 3.0, nan, 2.0: kept 2.0; the same with 2 kept: nan, 2.0
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


def kept(returns, number):
    """The returns of the checkpoints that are left after saving one for each return."""
    options = ocp.CheckpointManagerOptions(max_to_keep=number, best_fn=lambda metrics: metrics["return"])
    with tempfile.TemporaryDirectory() as folder, ocp.CheckpointManager(folder, options=options) as manager:
        for step, value in enumerate(returns):
            manager.save(step, args=ocp.args.StandardSave({"weights": np.ones(2)}), metrics={"return": value})
            manager.wait_until_finished()
        return [returns[step] for step in manager.all_steps()]


finite = kept([1.0, 3.0, 2.0], 1)
one, two = (kept([1.0, 3.0, float("nan"), 2.0], number) for number in (1, 2))
print(f"returns 1, 3, 2: kept {finite}; returns 1, 3, nan, 2: kept {one}; the same with two kept: {two}")
assert finite == [3.0] and one == [2.0] and 3.0 not in two, "the best checkpoint is kept now"
PYTHON
