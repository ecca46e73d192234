"""Simulator states are there only where a restored copy is the task; else one line says what differs."""

import re

import numpy as np
import pytest
import tasks_of_users as users

from polygrad_jax.config import ConfigError, EnvConfig
from polygrad_jax.envs import mujoco_state, simulator_check, tasks
from polygrad_jax.envs.collector import Collector, uniform_action
from polygrad_jax.envs.prediction_error import StoredSteps, stored_difference, why_not_replayed

STOCK = ("hopper", "walker2d", "inverted_pendulum", "Reacher-v5", "Reacher-v4", "Ant-v5", "Ant-v4")
HUMANOIDS = ("Humanoid-v5",)


def collected(config, steps, seed=5):
    """Steps as training collects them."""
    collector = Collector(config, seed)
    found = [collector.step(uniform_action(seed, k, collector.spec.action_size)) for k in range(steps)]
    collector.close()
    return found


def stored(steps):
    return StoredSteps(
        actions=np.stack([s.action for s in steps]),
        rewards=np.float32([s.reward for s in steps]),
        terminals=np.array([s.terminal for s in steps]),
        next_observations=np.stack([s.next_observation for s in steps]),
        followed=np.ones(len(steps), bool),
    )


# --- at the start ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*STOCK, *users.EQUAL])
def test_a_restored_copy_of_a_task_that_its_state_determines_is_the_task(name):
    """Whatever wrappers do to observations and rewards: what was collected is what the copies give, bit for bit."""
    config = EnvConfig(users.EQUAL[name](name) if name in users.EQUAL else name)
    assert mujoco_state.why_no_simulator_states(config) is None
    steps = collected(config, 40)
    states = np.stack([s.simulator_state for s in steps])
    after = mujoco_state.step_copies(config, states, np.stack([s.action for s in steps]))
    np.testing.assert_array_equal(after.rewards, [s.reward for s in steps])
    np.testing.assert_array_equal(after.terminals, [s.terminal for s in steps])
    np.testing.assert_array_equal(after.observations.astype(np.float32), [s.next_observation for s in steps])
    shown = mujoco_state.observations_of(config, states[::-1])
    np.testing.assert_array_equal(shown[::-1].astype(np.float32), [s.observation for s in steps])
    assert stored_difference(config, states, stored(steps)) is None


@pytest.mark.parametrize("name", [*users.UNEQUAL, *HUMANOIDS])
def test_a_task_that_its_state_does_not_determine_has_no_simulator_states(name):
    config = EnvConfig(users.UNEQUAL[name](name) if name in users.UNEQUAL else name)
    reason = mujoco_state.why_no_simulator_states(config)
    thing, number = "(reward|terminal|next observation|observation)", r"[1-9][\d.e+-]*|0\.0*[1-9]\d*"
    differs = rf"differs by up to ({number})|has \d+ numbers, the task's \d+"
    assert re.fullmatch(f"the {thing} of a restored copy ({differs})", reason), reason
    collector = Collector(config, 0)
    step = collector.step(np.zeros(collector.spec.action_size))
    assert step.simulator_state is None and collector.simulator_state_size == 0
    collector.close()
    calls = (
        lambda: mujoco_state.replay_actions(config, np.zeros((1, 7)), np.zeros((1, 2, 1))),
        lambda: mujoco_state.step_copies(config, np.zeros((1, 7)), np.zeros((1, 1))),
        lambda: mujoco_state.observations_of(config, np.zeros((1, 7))),
    )
    for call in calls:
        with pytest.raises(ConfigError, match=re.escape(f"{config.name}: no simulator states: {reason}")):
            call()


@pytest.mark.parametrize("name", ["Trading", "Pendulum-v1"])
def test_a_task_with_the_attributes_of_a_mujoco_task_is_none(name):
    config = EnvConfig(users.register(users.Trading, name) if name == "Trading" else name)
    env = tasks.make(config)
    assert not mujoco_state.is_mujoco(env) and mujoco_state.state_size(env) == 0
    for given in (None, env):
        assert mujoco_state.why_no_simulator_states(config, env=given) == mujoco_state.NOT_MUJOCO
    assert collected(config, 3)[0].simulator_state is None


@pytest.mark.parametrize(
    ("task", "words"),
    [
        (users.StrictAboutItsEnd, "reset me first"),
        (users.NoRewardBehindItsEnd, "step failed: ValueError"),  # of math.sqrt, which words it by the Python
        (users.OneInstance, "the socket is in use"),
    ],
)
def test_a_task_whose_copies_cannot_be_stepped_trains_without_simulator_states(task, words):
    config = EnvConfig(users.register(task))
    collector = Collector(config, 0)
    assert words in collector.why_no_simulator_states and "\n" not in collector.why_no_simulator_states
    assert collector.step(np.zeros(1)).simulator_state is None
    collector.close()


def test_the_answer_is_kept(monkeypatch):
    config = EnvConfig("inverted_pendulum")
    mujoco_state.why_no_simulator_states(config)
    monkeypatch.setattr(simulator_check, "walk", None)
    assert mujoco_state.why_no_simulator_states(config) is None


def test_the_walk_goes_to_an_end_with_actions_of_full_amplitude():
    env = tasks.make(EnvConfig("inverted_pendulum"))
    walked = simulator_check.walk(env, mujoco_state.read_state)
    assert walked.terminals.sum() >= simulator_check.EPISODES and len(walked.rewards) >= simulator_check.STEPS
    assert 0.2 < (np.abs(walked.actions) == 1).mean() < 0.5 and np.abs(walked.actions).max() == 1


def test_differences_by_hand():
    """A column's largest number is the unit: 1e-3 beside 1e6 is rounding at 1e-8, 1e-3 beside 1 is not."""
    column = np.array([[1e6, 1.0], [-1e6, 0.5]])
    first = simulator_check.first_difference
    assert first({"x": column}, {"x": column + [1e-3, 0]}, 1e-8) is None
    assert first({"x": column}, {"x": column + [0, 1e-3]}, 1e-8).endswith("x of a restored copy differs by up to 0.001")
    assert first({"x": column}, {"x": column[:, :1]}, 1.0) == "the x of a restored copy has 1 numbers, the task's 2"
    bad = np.array([1.0, np.nan, np.inf])
    assert first({"x": np.ones(3)}, {"x": bad}, 1.0) is not None
    assert first({"x": np.full(2, np.inf)}, {"x": np.full(2, np.inf)}, 0.0) is None
    assert first({"x": np.empty((0, 2))}, {"x": np.empty((0, 2))}, 0.0) is None
    assert first({"end": np.array([True])}, {"end": np.array([False])}, 1e-5).endswith("differs by up to 1")


# --- from what was stored --------------------------------------------------------------------------------------------


def test_what_changes_late_shows_in_stored_steps():
    """The start saw nothing; the newest of 760 stored steps differ from their repetition."""
    config = EnvConfig(users.register(users.Later))
    assert mujoco_state.why_no_simulator_states(config) is None
    steps = collected(config, 760)
    states = np.stack([s.simulator_state for s in steps])
    assert stored_difference(config, states[:50], stored(steps[:50])) is None
    words = "the reward of a restored copy differs by up to 0.5 from what was stored"
    assert stored_difference(config, states[-50:], stored(steps[-50:])) == words


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda r: {"rewards": r["rewards"] * np.float32(1.001)}, "the reward"),
        (lambda r: {"terminals": ~r["terminals"]}, "the terminal"),
        (lambda r: {"observations": r["observations"] + np.float32(0.01)}, "the next observation"),
        (lambda r: {"simulator_states": r["simulator_states"][:, :5]}, "those stored have 5 numbers, the task's 7"),
        (lambda r: {"simulator_states": r["simulator_states"][:, :0]}, "none were stored"),
        (lambda r: {"simulator_states": r["simulator_states"] + 0.01}, "the "),
    ],
)
def test_stored_states_of_another_physics_are_not_used(spoil, words):
    from polygrad_jax.data.transition_log import TransitionRecord

    steps = collected(EnvConfig("inverted_pendulum"), 80)
    record = {
        "observations": np.stack([s.observation for s in steps]),
        "actions": np.stack([s.action for s in steps]),
        "rewards": np.float32([s.reward for s in steps]),
        "terminals": np.array([s.terminal for s in steps]),
        "truncations": np.array([s.truncated for s in steps]),
        "simulator_states": np.stack([s.simulator_state for s in steps]),
    }
    config = EnvConfig("inverted_pendulum")
    assert why_not_replayed(config, TransitionRecord(**record)) is None
    assert why_not_replayed(config, TransitionRecord(**record | spoil(record))).startswith(words)
