"""Setting the simulator to a stored state and replaying actions: equal to the real environment, bit for bit."""

import numpy as np
import pytest

from polygrad_jax.config import ConfigError, EnvConfig
from polygrad_jax.envs import mujoco_state, tasks
from polygrad_jax.envs.collector import uniform_action

TASKS = ("hopper", "walker2d", "halfcheetah", "inverted_pendulum")
HORIZON = 10


@pytest.mark.parametrize("version", [5, 4])
@pytest.mark.parametrize("task", TASKS)
def test_replay_is_exact_from_the_middle_of_an_episode(task, version):
    config = EnvConfig(task, version)
    env = tasks.make(config)
    size = tasks.spec_of(env).action_size
    states, observations, actions, rewards, terminals = [], [], [], [], []
    episodes = [0]
    observation, _ = env.reset(seed=0)
    for k in range(120):
        action = np.clip(1.5 * uniform_action(0, k, size), -1, 1)
        states.append(mujoco_state.read_state(env))
        observations.append(observation)
        actions.append(action)
        observation, reward, terminal, truncated, _ = env.step(action)
        rewards.append(reward)
        terminals.append(terminal)
        episodes.append(episodes[-1])
        if terminal or truncated:
            observation, _ = env.reset(seed=k)
            episodes[-1] += 1
    whole = [k for k in range(120 - HORIZON) if episodes[k] == episodes[k + HORIZON - 1]]
    windows = np.asarray(whole)[:, None] + np.arange(HORIZON)
    states, actions = np.stack(states), np.stack(actions)
    got = mujoco_state.replay_actions(config, states[windows[:, 0]], actions[windows[:, :-1]])
    assert len(whole) > 3
    np.testing.assert_array_equal(got[0], np.stack(observations)[windows])
    np.testing.assert_array_equal(got[1], np.asarray(rewards)[windows[:, :-1]])
    np.testing.assert_array_equal(got[2], np.asarray(terminals)[windows[:, :-1]])


def test_actions_are_clipped_and_the_episode_goes_on_past_its_end():
    # The pendulum has no way back from 0.2 rad under full force; three times the bound is the bound.
    env = tasks.make(EnvConfig("inverted_pendulum"))
    env.reset(seed=0)
    state = mujoco_state.read_state(env)[None]
    once = mujoco_state.replay_actions(EnvConfig("inverted_pendulum"), state, np.ones((1, 40, 1)))
    thrice = mujoco_state.replay_actions(EnvConfig("inverted_pendulum"), state, 3 * np.ones((1, 40, 1)))
    np.testing.assert_array_equal(once[0], thrice[0])
    first_end = int(np.argmax(once[2][0]))
    assert 0 < first_end < 20 and once[2][0, first_end:].all()
    assert np.abs(np.diff(once[0][0], axis=0)).sum(1).min() > 0  # still moving behind the end


def test_squashed_actions_are_replayed_as_the_task_given_their_tanh():
    plain, squashed = EnvConfig("hopper"), EnvConfig("hopper", actions="squashed")
    env = tasks.make(plain)
    env.reset(seed=0)
    states, raw = mujoco_state.read_state(env)[None], np.random.default_rng(0).normal(0, 1.5, (1, 8, 3))
    seen = [env.step(np.tanh(action.astype(np.float32)))[0] for action in raw[0]]
    np.testing.assert_array_equal(mujoco_state.replay_actions(squashed, states, raw)[0][0, 1:], seen)
    np.testing.assert_array_equal(mujoco_state.step_copies(squashed, states, raw[:, 0]).observations[0], seen[0])
    closed = mujoco_state.close_loop(squashed, states, lambda k, _: raw[:, k], 8)
    np.testing.assert_array_equal(closed[0][0, 1:], seen)
    np.testing.assert_array_equal(closed[1], raw.astype(np.float32))
    assert np.abs(mujoco_state.replay_actions(plain, states, raw)[0][0, 1:] - seen).max() > 1e-3


@pytest.mark.parametrize("task", TASKS)
def test_a_closed_loop_is_its_own_replay(task):
    """Choosing step by step, with the states put in and read out in between, changes no bit; the chooser sees them."""
    env = tasks.make(EnvConfig(task))
    env.reset(seed=3)
    size, starts = tasks.spec_of(env).action_size, []
    for k in range(5):
        starts.append(mujoco_state.read_state(env))
        env.step(uniform_action(0, k, size))
    starts, seen = np.stack(starts), []

    def act(k, observations):
        seen.append(observations)
        return 1.5 * np.sin(k + observations[:, :1]) * np.ones(size)

    observations, actions, rewards, terminals = mujoco_state.close_loop(EnvConfig(task), starts, act, HORIZON)
    np.testing.assert_array_equal(np.stack(seen, axis=1), observations[:, :-1])
    assert len({*actions[:, 3, 0]}) == 5
    again = mujoco_state.replay_actions(EnvConfig(task), starts, actions)
    for ours, replay in zip((observations, rewards, terminals), again, strict=True):
        np.testing.assert_array_equal(ours, replay)


def test_the_warm_start_matters():
    """Without it a replay is right only to rounding: the reason why it is stored."""
    env = tasks.make(EnvConfig("walker2d"))
    env.reset(seed=0)
    states = []
    for k in range(60):
        states.append(mujoco_state.read_state(env))
        if env.step(uniform_action(0, k, 6))[2]:
            env.reset(seed=k)
    states = np.stack(states)
    without = states.copy()
    without[:, -env.unwrapped.model.nv :] = 0
    actions = np.tile(np.stack([uniform_action(1, k, 6) for k in range(9)]), (60, 1, 1))
    exact = mujoco_state.replay_actions(EnvConfig("walker2d"), states, actions)[0]
    rounded = mujoco_state.replay_actions(EnvConfig("walker2d"), without, actions)[0]
    assert 0 < np.abs(exact - rounded).max() < 1e-9


def test_environments_without_a_simulator_are_refused():
    env = tasks.make(EnvConfig("Pendulum-v1"))
    assert not mujoco_state.is_mujoco(env) and mujoco_state.state_size(env) == 0
    with pytest.raises(ConfigError, match="Pendulum-v1: has no MuJoCo state"):
        mujoco_state.read_state(env)
    with pytest.raises(ConfigError, match="Pendulum-v1: no simulator states: it is no task of Gymnasium's MuJoCo"):
        mujoco_state.replay_actions(EnvConfig("Pendulum-v1"), np.zeros((1, 0)), np.zeros((1, 9, 1)))


def test_wrong_shapes_are_refused():
    with pytest.raises(ValueError, match=r"\[B, 19\] and \[B, H - 1, 3\]"):
        mujoco_state.replay_actions(EnvConfig("hopper"), np.zeros((2, 19)), np.zeros((2, 9, 2)))
    with pytest.raises(ValueError, match="do not fit"):
        mujoco_state.close_loop(EnvConfig("hopper"), np.zeros((2, 5)), lambda k, o: o, 3)
    env = tasks.make(EnvConfig("hopper"))
    env.reset(seed=0)
    with pytest.raises(ValueError, match=r"needs \(19,\)"):
        mujoco_state.set_state(env, np.zeros(18))
