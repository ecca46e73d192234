#!/usr/bin/env bash
# gymnasium 1.4.0 with mujoco 4.0.0: Walker2d-v5, Hopper-v5 and, which does not do so, HalfCheetah-v5.
#
# Expected: the observation has the simulator's velocities; observation_space is unbounded, and so are its entries.
#
# Behaviour: Hopper and Walker2d cut every observed velocity off at -10 and 10 (rad/s, m/s). Two states that differ only
# beyond it have the same observation, and another one after the same action. Walker2d's joints turn at up to 59 rad/s
# under random actions: in 83 % of its steps at least one entry is at the limit. HalfCheetah's are shown as they are.
#
# Who is hurt: world models and Q functions that take the observation for the state: the same observation and action
# have several successors and rewards. What members of an ensemble disagree on is then not lack of data. Nothing shows
# it from outside: the space is said to be unbounded.
#
# Seen: at the limit in 0.83 of Walker2d-v5's steps (fastest velocity 59.2), in 0.00 of HalfCheetah-v5's (26.7);
# Hopper-v5 with a foot that turns at 15 and at 40: observations apart 0.0, after one step 0.5, rewards 0.05
set -euo pipefail
folder=$(mktemp -d)
touch "$folder/warnings"
trap 'test $? = 0 || cat "$folder/warnings" >&2; rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet "gymnasium[mujoco]==1.4.0" "mujoco==4.0.0"
"$folder/venv/bin/python" -W ignore - 2> "$folder/warnings" <<'PYTHON'
import gymnasium
import numpy as np


def at_the_limit(task, steps=5_000):
    """Return the share of random steps with an observed velocity of exactly 10, and the fastest true one."""
    env = gymnasium.make(task)
    assert not np.isfinite(env.observation_space.high).any()
    env.reset(seed=0)
    env.action_space.seed(0)
    count, fastest = 0, 0.0
    for _ in range(steps):
        observation, _, terminated, truncated, _ = env.step(env.action_space.sample())
        velocities = env.unwrapped.data.qvel
        count += bool((np.abs(observation[-velocities.size :]) == 10.0).any())
        fastest = max(fastest, float(np.abs(velocities).max()))
        if terminated or truncated:
            env.reset()
    return count / steps, fastest


def observations(turning):
    """Return Hopper's observation with a foot that turns so fast; of a step without torque observation and reward."""
    env = gymnasium.make("Hopper-v5")
    env.reset(seed=0)
    bare = env.unwrapped
    velocities = np.zeros_like(bare.data.qvel)
    velocities[-1] = turning
    bare.set_state(bare.init_qpos + [0, 0.5, 0, 0, 0, 0], velocities)  # in the air
    return bare._get_obs(), *env.step(np.zeros(3, np.float32))[:2]


shares = {task: at_the_limit(task) for task in ("Walker2d-v5", "HalfCheetah-v5")}
for task, (share, fastest) in shares.items():
    print(f"{task}: at the limit in {share:.2f} of random steps; the largest velocity is {fastest:.1f}")
before, after, rewards = (float(np.abs(a - b).max()) for a, b in zip(observations(15.0), observations(40.0)))
print(f"Hopper-v5 with a foot that turns at 15 and at 40 rad/s: observations apart {before}")
print(f"after one step: observations apart {after:.1f}, rewards {rewards:.2f}")
assert shares["Walker2d-v5"][0] > 0.5 and shares["HalfCheetah-v5"][0] == 0.0 and shares["HalfCheetah-v5"][1] > 10.0
assert before == 0.0 and after > 0.1 and rewards > 0.01, "this has changed"
PYTHON
