#!/usr/bin/env bash
# gymnasium 1.4.0 with mujoco 4.0.0, make_vec("Hopper-v5").
#
# Expected: each call of step() gives one transition of the environment: the action had the effect that is returned.
#
# Behaviour: vector environments reset in the step after the end (AutoresetMode.NEXT_STEP, the default since 1.0).
# That step ignores its action and returns reward 0, not terminated, not truncated and the first observation of the
# next episode. A loop that stores (observation, action, reward, next observation) stores a jump from a fallen robot
# to a standing one as an ordinary transition. Nothing in the values returned marks it.
#
# Who is hurt: replay buffers and world models above all: with a bad policy, when episodes are short, one transition
# in twenty is false, and it teaches that falling leads to standing again. Drop the transition after each end.
#
# Seen: of 2000 transitions 90 never happened; actions -1 and 1, next state equal: True
set -euo pipefail
folder=$(mktemp -d)
trap 'test $? = 0 || cat "$folder/warnings" >&2; rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet "gymnasium[mujoco]==1.4.0" "mujoco==4.0.0" "numpy==2.4.6"
"$folder/venv/bin/python" -W ignore - 2> "$folder/warnings" <<'PYTHON'
import gymnasium
import numpy as np

envs = gymnasium.make_vec("Hopper-v5", num_envs=1)
envs.action_space.seed(0)
envs.reset(seed=0)
ended, false_transitions = False, 0
for _ in range(2000):
    _, reward, terminated, truncated, _ = envs.step(envs.action_space.sample())
    if ended:
        false_transitions += 1
        assert reward[0] == 0 and not terminated[0] and not truncated[0], "the step after an end is marked now"
    ended = terminated[0] or truncated[0]


def after_the_end(value):
    """The observation of the step after a first episode's end, for an action of the given value."""
    envs.action_space.seed(0)
    envs.reset(seed=0)
    while True:
        _, _, terminated, truncated, _ = envs.step(envs.action_space.sample())
        if terminated[0] or truncated[0]:
            return envs.step(np.full(envs.action_space.shape, value, np.float32))[0]


ignored = bool(np.array_equal(after_the_end(-1.0), after_the_end(1.0)))
print(f"of 2000 transitions {false_transitions} never happened; actions -1 and 1, next state equal: {ignored}")
assert false_transitions > 40 and ignored, "the default no longer resets in the next step"
PYTHON
