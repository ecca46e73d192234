#!/usr/bin/env bash
# gymnasium 1.4.0 with mujoco 4.0.0, RescaleAction around Hopper-v5.
#
# Expected: an action inside of the wrapper's Box becomes an action inside of the environment's Box.
#
# Behaviour: the bounds of the rescaling are kept exactly in the Box but the map is computed in float32 as a slope and
# an intercept. With bounds that float32 does not hold, the upper one is mapped to 1.0000001, and
# action_space.contains() of the environment is False. Policies meet this often, since a squashed or clipped action
# sits exactly at a bound. Bounds of -1 and 1 are exact here.
#
# Who is hurt: environments and recorders that check contains() strictly, and arctanh of recorded actions, which is
# nan outside of [-1, 1]: log-probabilities under a tanh policy become nan.
#
# Seen: bounds -0.1, 0.3: reached 1.0000001192092896, contained False, arctanh nan
#       bounds -1.0, 1.0: reached 1.0, contained True, arctanh inf
set -euo pipefail
folder=$(mktemp -d)
touch "$folder/warnings"
trap 'test $? = 0 || cat "$folder/warnings" >&2; rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet "gymnasium[mujoco]==1.4.0" "mujoco==4.0.0" "numpy==2.4.6"
"$folder/venv/bin/python" -W ignore - 2> "$folder/warnings" <<'PYTHON'
import gymnasium
import numpy as np
from gymnasium.wrappers import RescaleAction


class Reached(gymnasium.ActionWrapper):
    """Remembers the last action that reached the environment."""

    def action(self, action):
        self.last = action
        return action


contained = {}
for low, high in ((-0.1, 0.3), (-1.0, 1.0)):
    inner = Reached(gymnasium.make("Hopper-v5"))
    outer = RescaleAction(inner, low, high)
    outer.reset(seed=0)
    action = outer.action_space.high
    assert outer.action_space.contains(action)
    outer.step(action)
    contained[high] = inner.action_space.contains(inner.last)
    largest = inner.last.max()
    print(f"bounds {low}, {high}: reached {largest}, contained {contained[high]}, arctanh {np.arctanh(largest)}")
assert contained == {0.3: False, 1.0: True}, "the rescaled bound is now inside"
PYTHON
