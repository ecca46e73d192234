#!/usr/bin/env bash
# gymnasium 1.4.0 with mujoco 4.0.0, ClipAction around Hopper-v5.
#
# Expected: ClipAction only brings actions back into the box; action_space.sample() still draws random actions
# uniformly over it.
#
# Behaviour: the wrapper's action space is unbounded, and an unbounded Box draws from the standard normal distribution.
# So the usual line for random steps, env.step(env.action_space.sample()), clips a third of all entries, and in two
# actions of three some joint is at its bound. Without the wrapper none is.
#
# Who is hurt: prefill and exploration by random actions (replay buffers, world models, normalisers): the data differ
# from those of the same script without the wrapper, and pile up at full torque. Scaling by action_space.high gives
# inf.
#
# Seen: Hopper-v5: std 0.575, entries at a bound 0.000, actions with a joint at a bound 0.000; in ClipAction: std
# 0.719, entries at a bound 0.317, actions with a joint at a bound 0.683, high inf
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet "gymnasium[mujoco]==1.4.0" "mujoco==4.0.0"
"$folder/venv/bin/python" -W ignore - <<'PYTHON'
import gymnasium
import numpy as np


class Executed(gymnasium.ActionWrapper):
    """Keep every action as the task receives it."""

    def __init__(self, env):
        super().__init__(env)
        self.seen = []

    def action(self, action):
        self.seen.append(np.array(action))
        return action


def random_steps(wrap, count=10_000):
    """Return what reaches Hopper when the outermost action space draws at random, and the bound of that space."""
    inner = Executed(gymnasium.make("Hopper-v5"))
    env = wrap(inner)
    env.reset(seed=0)
    env.action_space.seed(0)
    for _ in range(count):
        *_, terminated, truncated, _ = env.step(env.action_space.sample())
        if terminated or truncated:
            env.reset()
    return np.stack(inner.seen), float(env.action_space.high[0])


shares = {}
for name, wrap in (("Hopper-v5", lambda env: env), ("in ClipAction", gymnasium.wrappers.ClipAction)):
    actions, high = random_steps(wrap)
    at_bound = np.abs(actions) >= 1.0
    shares[name] = at_bound.mean()
    print(
        f"{name}: std {actions.std():.3f}, entries at a bound {at_bound.mean():.3f}, "
        f"actions with a joint at a bound {at_bound.any(axis=1).mean():.3f}, high {high}"
    )
assert shares["Hopper-v5"] < 0.001 and 0.28 < shares["in ClipAction"] < 0.36, "this has changed"
PYTHON
