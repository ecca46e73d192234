"""The tasks, the collector and its exact restart, and whole episodes."""

import subprocess
import sys

import gymnasium as gym
import numpy as np
import pytest

from polygrad_jax.config import ConfigError, EnvConfig, EnvSpec
from polygrad_jax.envs import episodes, random_steps, tasks
from polygrad_jax.envs.collector import (
    EVALUATION_STREAM,
    TRAINING_STREAM,
    Collector,
    EnvRestartError,
    EnvStepError,
    episode_seed,
    uniform_action,
)

TASKS = ("hopper", "walker2d", "halfcheetah", "inverted_pendulum")


class Scripted(gym.Env):
    """Counts its steps; spaces and misbehaviour are arguments."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 30}

    def __init__(
        self, observation_space=None, action_space=None, fail_at=None, nan_at=None, drift=False, render_mode=None
    ):
        self.observation_space = observation_space or gym.spaces.Box(-np.inf, np.inf, (2,), np.float64)
        self.action_space = action_space or gym.spaces.Box(-2.0, 2.0, (1,), np.float32)
        self.fail_at, self.nan_at, self.drift, self.resets = fail_at, nan_at, drift, 0
        self.render_mode = render_mode
        self.received = []

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.count, self.resets = 0, self.resets + 1
        self.start = self.np_random.uniform() + (self.resets if self.drift else 0)
        return np.array([self.start, 0.0]), {}

    def step(self, action):
        self.received.append(np.array(action))
        self.count += 1
        if self.count == self.fail_at:
            raise ZeroDivisionError("the motor is gone")
        reward = np.nan if self.count == self.nan_at else float(self.count)
        return np.array([self.start, self.count]), reward, self.count == 5, False, {}

    def render(self):
        return np.full((2, 2, 3), self.count, np.uint8)


def register(name: str, **kwargs) -> str:
    full = f"PolygradTest{name}-v0"
    if full not in gym.registry:
        gym.register(full, entry_point=lambda **given: Scripted(**kwargs, **given))
    return full


@pytest.mark.parametrize(
    ("name", "sizes"),
    [("hopper", (11, 3)), ("walker2d", (17, 6)), ("halfcheetah", (17, 6)), ("inverted_pendulum", (4, 1))],
)
@pytest.mark.parametrize("version", [4, 5])
def test_named_tasks(name, version, sizes):
    env = tasks.make(EnvConfig(name, version))
    assert tasks.spec_of(env) == EnvSpec(*sizes)
    assert env.spec.id.endswith(f"-v{version}")
    np.testing.assert_array_equal(env.action_space.low, -np.ones(sizes[1], np.float32))
    np.testing.assert_array_equal(env.action_space.high, np.ones(sizes[1], np.float32))
    action = np.random.default_rng(0).uniform(-1, 1, sizes[1]).astype(np.float32)
    scale = 3.0 if name == "inverted_pendulum" else 1.0  # its force spans [-3, 3]; for the others nothing changes
    received = []
    env.unwrapped.do_simulation = lambda executed, frames: received.append(np.array(executed))
    env.reset(seed=0)
    env.step(action)
    np.testing.assert_allclose(received, [scale * action], rtol=0 if scale == 1 else 1e-6)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (EnvConfig("hoper"), r"env.name is 'hoper'; allowed is one of hopper.*near: hopper"),
        (EnvConfig("Hopper-v55"), r"env.name is 'Hopper-v55'.*near: .*Hopper-v5"),
        (EnvConfig("hopper", 3), r"env.version is 3; allowed for hopper is one of \(4, 5\)"),
        (EnvConfig("no_such_module:Thing-v0"), r"'no_such_module:Thing-v0', which does not start"),
        (EnvConfig("CartPole-v1"), r"action space is Discrete\(2\); allowed is a Box"),
        (EnvConfig("FrozenLake-v1"), r"observation space is Discrete\(16\); allowed is a Box"),
        (EnvConfig("Blackjack-v1"), r"observation space is Tuple"),
        (EnvConfig("CarRacing-v3"), r"env.name 'CarRacing-v3'|env.name is 'CarRacing-v3'|observation space"),
    ],
)
def test_what_cannot_be_run_is_refused_in_one_line(config, message):
    with pytest.raises(ConfigError, match=message) as caught:
        tasks.make(config)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "spaces", "message"),
    [
        ("Infinite", {"action_space": gym.spaces.Box(-np.inf, np.inf, (1,), np.float32)}, "finite bounds only"),
        ("Image", {"observation_space": gym.spaces.Box(0.0, 1.0, (4, 4), np.float32)}, r"shape \(O,\)"),
        ("Dict", {"observation_space": gym.spaces.Dict(a=gym.spaces.Box(0.0, 1.0, (4,)))}, "FlattenObservation"),
    ],
)
def test_other_spaces_are_refused(name, spaces, message):
    with pytest.raises(ConfigError, match=message) as caught:
        tasks.make(EnvConfig(register(name, **spaces)))
    assert "\n" not in str(caught.value)


def test_mujoco_stays_silent_and_writes_no_file(tmp_path):
    program = (
        "import sys; from polygrad_jax.config import EnvConfig; from polygrad_jax.envs import collector, tasks\n"
        "from polygrad_jax.envs import episodes, mujoco_state, prediction_error\n"
        "tasks.make(EnvConfig('halfcheetah', 4)).reset(seed=0)\n"
        "assert not [m for m in sys.modules if m.split('.')[0] in ('jax', 'jaxlib', 'flax')]"
    )
    import polygrad_jax.config

    root = polygrad_jax.config.__file__.rsplit("/", 3)[0]
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, env={"PYTHONPATH": root}, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert not list(tmp_path.iterdir())


def test_actions_are_clipped_when_executed_and_stored_as_sampled():
    collector = Collector(EnvConfig(register("Plain")), run_seed=0)
    step = collector.step(np.array([1.5], np.float32))
    assert step.action.tolist() == [1.5]
    assert collector.env.unwrapped.received[0].tolist() == [2.0]  # clipped to 1, times the bound 2
    collector.step(np.array([-0.25], np.float32))
    assert collector.env.unwrapped.received[1].tolist() == [-0.5]


class InPlace(Scripted):
    """Hands out its own state and goes on writing to it."""

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.state = np.zeros(2, np.float32)
        return self.state, {}

    def step(self, action):
        self.state += 1.0
        return self.state, 1.0, False, False, {}


def test_what_is_stored_is_a_copy():
    box = gym.spaces.Box(-np.inf, np.inf, (2,), np.float32)
    gym.register("InPlace-v0", lambda **kw: InPlace(observation_space=box, **kw), max_episode_steps=9)
    collector = Collector(EnvConfig("InPlace-v0"), run_seed=0)
    steps = [collector.step(np.zeros(1)) for _ in range(2)]
    assert [(s.observation[0], s.next_observation[0]) for s in steps] == [(0.0, 1.0), (1.0, 2.0)]


def test_an_episode_ends_and_the_next_begins():
    collector = Collector(EnvConfig(register("Plain")), run_seed=0)
    first = collector.observation
    steps = [collector.step(np.zeros(1)) for _ in range(6)]
    assert [s.terminal for s in steps] == [False, False, False, False, True, False]
    assert steps[4].next_observation[1] == 5 and steps[5].observation[1] == 0
    assert steps[5].observation[0] != first[0]  # each episode has its own seed
    assert steps[4].episode.episode_return == 1 + 2 + 3 + 4 + 5
    assert (steps[4].episode.index, steps[4].episode.length) == (0, 5)
    assert np.isnan(steps[4].episode.distance)
    assert [s.episode is None for s in steps] == [True] * 4 + [False, True]
    assert steps[0].simulator_state is None and collector.simulator_state_size == 0


def test_time_limit_is_truncation():
    collector = Collector(EnvConfig("halfcheetah"), run_seed=0)
    steps = [collector.step(np.zeros(6)) for _ in range(1000)]
    assert steps[-1].truncated and not any(s.terminal for s in steps)
    assert steps[-1].episode.length == 1000
    start = steps[0].info["x_position"] - steps[0].info["x_velocity"] * 0.05
    np.testing.assert_allclose(steps[-1].episode.distance, steps[-1].info["x_position"] - start, atol=1e-9)


def test_a_failing_environment_is_named():
    collector = Collector(EnvConfig(register("Fails", fail_at=3)), run_seed=7)
    collector.step(np.zeros(1))
    collector.step(np.zeros(1))
    seed = episode_seed(7, TRAINING_STREAM, 0)
    with pytest.raises(EnvStepError, match=rf"Fails-v0 \(seed {seed}\), step 2: step failed.*motor is gone"):
        collector.step(np.zeros(1))
    with pytest.raises(EnvStepError, match="given action .*must be finite"):
        Collector(EnvConfig("inverted_pendulum"), 0).step(np.full(1, np.nan))
    with pytest.raises(EnvStepError, match="step 0: step gave reward nan; allowed: finite numbers"):
        Collector(EnvConfig(register("Explodes", nan_at=1)), 0).step(np.zeros(1))


@pytest.mark.parametrize("task", TASKS)
def test_restart_is_exact(task):
    def go(collector, first, count):
        size = collector.spec.action_size
        return [collector.step(uniform_action(3, k, size)) for k in range(first, first + count)]

    one = Collector(EnvConfig(task), run_seed=11)
    go(one, 0, 130)
    snapshot = one.snapshot()
    other = Collector(EnvConfig(task), run_seed=11)
    go(other, 500, 17)  # whatever it did before
    other.restore(snapshot)
    for a, b in zip(go(one, 130, 100), go(other, 130, 100), strict=True):
        np.testing.assert_array_equal(a.observation, b.observation)
        np.testing.assert_array_equal(a.simulator_state, b.simulator_state)
        assert (a.reward, a.terminal, a.truncated) == (b.reward, b.terminal, b.truncated)
        assert repr(a.episode) == repr(b.episode)  # as text, since NaN (no distance) is not equal to itself


def test_an_inexact_restart_is_noticed():
    collector = Collector(EnvConfig(register("Drifts", drift=True)), run_seed=0)
    collector.step(np.zeros(1))
    with pytest.raises(EnvRestartError, match="episode 0 .*differ by up to 1"):
        collector.restore(collector.snapshot())


def test_uniform_actions():
    draws = np.stack([uniform_action(5, k, 3) for k in range(4000)])
    np.testing.assert_array_equal(draws[17], uniform_action(5, 17, 3))
    assert np.abs(draws).max() <= 1 and len(np.unique(draws)) > 11_000
    # Standard error of the mean 1 / sqrt(3 * 4000) = 0.009, of the variance (1/3) about 0.005.
    np.testing.assert_allclose(draws.mean(0), 0, atol=0.04)
    np.testing.assert_allclose(draws.var(0), 1 / 3, atol=0.02)
    assert np.abs(np.corrcoef(draws.T) - np.eye(3)).max() < 0.07
    assert np.any(uniform_action(6, 17, 3) != draws[17])


@pytest.mark.parametrize("how", ["clipped", "squashed"])
def test_random_actions_are_uniform_as_executed(how):
    """The largest gap between the distribution functions of 12,000 draws and of U(-1, 1) is below 0.015 (1.63 / sqrt n
    for one in a hundred); of clipped arctanh it is 0.12."""
    draws = np.stack([tasks.raw_of(uniform_action(5, k, 3), how) for k in range(4000)])
    ordered = np.sort(tasks.executed(draws, how), axis=None)
    gaps = np.arange(12_000) / 12_000 - (ordered + 1) / 2
    assert np.abs(gaps).max() < 0.015
    assert np.isfinite(draws).all() and np.abs(draws).max() < 4


@pytest.mark.parametrize(("how", "by_hand"), [("clipped", [1.0, -0.5]), ("squashed", np.tanh([1.5, -0.5]))])
def test_the_environment_receives_the_executed_action(how, by_hand):
    """In collecting, in going back to a snapshot and in evaluation; the task's own actions are twice as large."""
    config, raw = EnvConfig(register("Spied"), actions=how), np.array([[1.5], [-0.5]], np.float32)
    collector = Collector(config, run_seed=0)
    received = collector.env.unwrapped.received
    steps = [collector.step(action) for action in raw]
    np.testing.assert_allclose(np.ravel(received), 2 * np.array(by_hand), rtol=1e-6)
    np.testing.assert_array_equal([step.action for step in steps], raw)
    snapshot, before = collector.snapshot(), list(received)
    collector.restore(snapshot)
    np.testing.assert_array_equal(received[2:], before)

    assert random_steps.why_not_side_by_side(config) is None  # which makes copies once
    made, make = [], tasks.make
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tasks, "make", lambda *given: made.append(make(*given)) or made[-1])
        episodes.run_episodes(config, lambda observations: raw, 2, seed=0)
    for env, expected in zip(made, by_hand, strict=True):
        np.testing.assert_allclose(env.unwrapped.received, np.full((5, 1), 2 * expected), rtol=1e-6)


def test_evaluation_equals_single_episodes():
    def act(observations):
        assert observations.shape == (4, 4)  # fixed, so that a jitted policy is traced once
        return observations[:, 1:2] * 2.0 + observations[:, 3:4] * 0.3

    config = EnvConfig("inverted_pendulum")
    got = episodes.run_episodes(config, act, 4, seed=1)
    again = episodes.run_episodes(config, act, 4, seed=1)
    np.testing.assert_array_equal(got.returns, again.returns)
    for e in range(4):
        env = tasks.make(config)
        observation, _ = env.reset(seed=episode_seed(1, EVALUATION_STREAM, e))
        rewards, over = [], False
        while not over:
            actions = act(np.tile(observation.astype(np.float32), (4, 1)))
            observation, reward, terminal, truncated, _ = env.step(np.clip(actions[0], -1, 1))
            rewards.append(reward)
            over = terminal or truncated
        assert (got.returns[e], got.lengths[e]) == (sum(rewards), len(rewards))
    assert len(set(got.lengths.tolist())) > 1
    assert np.isnan(got.distances).all()


def test_evaluation_measures_distance():
    got = episodes.run_episodes(EnvConfig("hopper"), lambda o: np.ones((len(o), 3)), 2, seed=0)
    env = tasks.make(EnvConfig("hopper"))
    for e in range(2):
        _, start = env.reset(seed=episode_seed(0, EVALUATION_STREAM, e))
        info = [env.step(np.ones(3, np.float32))[4] for _ in range(got.lengths[e])][-1]
        np.testing.assert_allclose(got.distances[e], info["x_position"] - start["x_position"], rtol=1e-12)


def test_frames_are_those_of_the_first_episode():
    frames = []
    config = EnvConfig(register("Plain"))
    zero, watch = (lambda o: np.zeros((len(o), 1))), (lambda env: frames.append(env.render()[0, 0, 0]))
    episodes.run_episodes(config, zero, 3, 0, watch)
    assert frames == [0, 1, 2, 3, 4, 5]


def test_an_episode_that_nothing_ends_is_cut(monkeypatch):
    """The task ends itself after 5 steps and has no limit; one with a limit is never cut by ours."""

    def zero(observations):
        return np.zeros((len(observations), 1))

    config = EnvConfig(register("Plain"))
    for most, steps in ((3, 3), (5, 5), (9, 5)):
        monkeypatch.setattr(episodes, "MOST_STEPS", most)
        assert episodes.run_episodes(config, zero, 2, 0).lengths.tolist() == [steps, steps]
    monkeypatch.setattr(episodes, "MOST_STEPS", 1)
    assert episodes.run_episodes(EnvConfig("inverted_pendulum"), zero, 1, 0).lengths[0] > 1
