#!/usr/bin/env bash
# gymnasium 1.4.0.
#
# Expected: NormalizeReward estimates the spread of discounted returns episode by episode.
#
# Behaviour: only a termination ends its running return. A truncation does not, and neither does reset(), so the
# return runs on from one episode into the next. Two environments with the same rewards and the same lengths of
# episode, one ended by termination and one by its time limit, get reward scales that differ several-fold.
#
# Who is hurt: tasks that end by their time limit (HalfCheetah, Ant with unhealthy termination off, most control
# suites): the scale belongs to an endless task, and comparing two variants of a task changes the learner's reward
# scale too.
#
# Seen: episodes of 10 steps with reward 1: ended by termination 0.366, by truncation 0.081
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet "gymnasium==1.4.0" "numpy==2.4.6"
"$folder/venv/bin/python" -W ignore - <<'PYTHON'
import gymnasium
import numpy as np
from gymnasium.wrappers import NormalizeReward


class TenSteps(gymnasium.Env):
    """Ten steps with a reward of 1 each, then a termination or a truncation."""

    observation_space = action_space = gymnasium.spaces.Box(-1.0, 1.0, (1,), np.float32)

    def __init__(self, by_time_limit):
        self.by_time_limit = by_time_limit

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.steps = 0
        return np.zeros(1, np.float32), {}

    def step(self, action):
        self.steps += 1
        ended = self.steps == 10
        return np.zeros(1, np.float32), 1.0, ended and not self.by_time_limit, ended and self.by_time_limit, {}


scaled = {}
for name, by_time_limit in (("termination", False), ("truncation", True)):
    env = NormalizeReward(TenSteps(by_time_limit))
    for _ in range(300):
        env.reset()
        for _ in range(10):
            scaled[name] = float(env.step(np.zeros(1, np.float32))[1])
print("a reward of 1 after 300 episodes of 10 steps:", {name: round(reward, 3) for name, reward in scaled.items()})
assert scaled["termination"] > 3 * scaled["truncation"], "a truncation ends the running return now"
PYTHON
