#!/usr/bin/env bash
# minari 0.5.4 with gymnasium 1.4.0.
#
# Expected: DataCollector records what the environment and the agent said at each step.
#
# Behaviour: it keeps references until the episode ends and copies none. An agent that writes its action into one
# array (np.clip(..., out=action) is enough), or an environment that returns one array over and over, is recorded with
# its last value at every step. Shapes, lengths and rewards are right, and nothing warns.
#
# Who is hurt: offline and model-based learning from such data: every action of an episode is the same, and the
# dynamics are independent of it.
#
# Seen: actions taken 0 1 2 3 4, recorded 4 4 4 4 4; observations returned 0 1 2 3 4 5, recorded 5 5 5 5 5 5
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet "minari[create,hdf5]==0.5.4" "gymnasium==1.4.0" "numpy==2.4.6" "jax[cpu]==0.10.2"
MINARI_DATASETS_PATH="$folder/datasets" "$folder/venv/bin/python" -W ignore - <<'PYTHON'
import gymnasium
import minari
import numpy as np


class Counter(gymnasium.Env):
    """Counts its steps in one array that it returns each time; an episode lasts five steps."""

    observation_space = action_space = gymnasium.spaces.Box(-10.0, 10.0, (1,), np.float32)

    def __init__(self):
        self.count = np.zeros(1, np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.count[:] = 0
        return self.count, {}

    def step(self, action):
        self.count += 1
        return self.count, 0.0, False, bool(self.count == 5), {}


env = minari.DataCollector(Counter())
returned, taken, action = [env.reset(seed=0)[0].item()], [], np.zeros(1, np.float32)
for step in range(5):
    action[:] = step
    taken.append(action.item())
    returned.append(env.step(action)[0].item())
recorded = env.create_dataset("counting/references-v0", eval_env="Pendulum-v1")[0]
print("actions taken", taken, "recorded", recorded.actions.ravel())
print("observations returned", returned, "recorded", recorded.observations.ravel())
assert (recorded.actions == taken[-1]).all(), "the actions are copied now"
assert (recorded.observations == returned[-1]).all(), "the observations are copied now"
PYTHON
