"""``polygrad check``: what the page says of a task is what its definition says, and what is refused is refused."""

import time

import gymnasium as gym
import numpy as np
import pytest

from polygrad_jax import cli
from polygrad_jax.analysis import task_page
from polygrad_jax.config import EnvConfig
from polygrad_jax.envs import random_steps, tasks


class Clock(gym.Env):
    """Observes the step of the episode and what it remembers of earlier ones; ends at step 7."""

    observation_space = gym.spaces.Box(-np.inf, np.inf, (2,), np.float32)
    action_space = gym.spaces.Box(np.float32([0, 5]), np.float32([1, 5]))
    remembers = False
    reward = 0.5
    episodes = 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.steps, self.episodes = 0, self.episodes + self.remembers
        return np.float32([self.steps, self.episodes]), {}

    def step(self, action):
        self.steps += 1
        return np.float32([self.steps, self.episodes]), self.reward, self.steps == 7, False, {}


class Remembers(Clock):
    remembers = True


class DrawnOnce(Clock):
    def __init__(self):
        self.episodes = np.random.default_rng().uniform()


class Broken(Clock):
    reward = np.nan


class InThousands(Clock):
    reward = -5e3


class Unclosable(Clock):
    def close(self):
        raise OSError("the port is gone")


class Slow(Clock):
    def reset(self, *, seed=None, options=None):
        time.sleep(0.2)
        return super().reset(seed=seed)


class Offset(Clock):
    """Observes a constant that no float32 is, and a coin behind a large offset."""

    def step(self, action):
        _, *rest = super().step(action)
        return np.float32([0.1, 1e6 + self.np_random.integers(2)]), *rest


class Images(Clock):
    observation_space = gym.spaces.Box(0, 255, (8, 8, 3), np.uint8)


def register(kind, **kwargs):
    name = f"Page{kind.__name__}-v0"
    if name not in gym.registry:
        gym.register(name, kind, **kwargs)
    return name


@pytest.fixture(autouse=True)
def few_steps(monkeypatch):
    monkeypatch.setattr(random_steps, "MOST_STEPS", 70)
    monkeypatch.setattr(task_page, "matrix_gflops", lambda: task_page.MEASURED_GFLOPS)


def page(capsys, name):
    """The entries of a task's page, and the lines behind them."""
    assert cli.main(["check", name, "--preset", "cpu"]) == 0
    shown = capsys.readouterr().out
    lines = " ".join(shown.replace("\n              ", " ").split(" ")).splitlines()
    entries = dict(line.split(maxsplit=1) for line in lines if not line.startswith("warning"))
    return entries, [line for line in lines if line.startswith("warning")]


def test_the_page_says_what_the_task_is(capsys):
    entries, warnings = page(capsys, register(Clock, max_episode_steps=20))
    assert entries["task"] == "PageClock-v0, without MuJoCo"
    assert entries["observations"].startswith("2 numbers (float32) without bounds; seen 0 to 7, ")
    assert entries["observations"].endswith("1 never moved (number 1 first)")
    assert entries["actions"].startswith("2 numbers (float32) between (0 to 5) and (1 to 5); ")
    assert entries["rewards"] == "0.5 to 0.5 per step, 0.5 in the mean; 3.5 per episode (standard deviation 0)"
    ten = "10 of 7 steps; 10 terminated, 0 truncated; time limit 20 steps"
    assert entries["episodes"] == ten
    assert entries["repeatable"].startswith("yes")
    assert entries["simulator"] == "no states: it is no task of Gymnasium's MuJoCo"
    assert entries["preset"].startswith("cpu (asked for): 80,000 environment steps, about 5")
    assert entries["train:"].endswith("train --env PageClock-v0 --preset cpu")
    assert warnings == []


def test_the_command_that_trains_has_what_was_asked_for(capsys):
    name = register(Clock, max_episode_steps=20)
    assert cli.main(["check", name, "--preset", "smoke", "--horizon", "5", "--a2c.no-search"]) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.endswith(f"train --env {name} --preset smoke --horizon 5 --a2c.no-search")


def test_simulator_states_are_said_to_be_exact_where_they_are(capsys):
    entries, _ = page(capsys, "inverted_pendulum")
    assert entries["simulator"].startswith("exact") and "MuJoCo 4" in entries["task"]


@pytest.mark.parametrize(
    ("kind", "limit", "words"),
    [
        (Remembers, 20, "does not repeat an episode (the observation of step 0 is another one after another episode)"),
        (DrawnOnce, 20, "does not repeat an episode (the observation of step 0 is another one in a copy of the task)"),
        (Clock, None, "PageClock-v0 has no time limit"),
        (Clock, 5, "time limit is 5 steps"),
        (InThousands, 20, "rewards are around -5e+03"),
    ],
    ids=["memory", "drawn once", "no limit", "short limit", "units"],
)
def test_what_a_run_would_be_warned_of_is_said(capsys, kind, limit, words):
    gym.registry.pop(f"Page{kind.__name__}-v0", None)
    _, warnings = page(capsys, register(kind, max_episode_steps=limit))
    gym.registry.pop(f"Page{kind.__name__}-v0")
    assert any(words in line for line in warnings), warnings


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (Broken, "reward nan; allowed: finite numbers"),
        (Images, "observation space is Box(0, 255, (8"),
        (Unclosable, "close failed: OSError: the port is gone"),
    ],
    ids=["nan", "images", "close"],
)
def test_what_cannot_be_trained_on_is_refused_in_one_line(capsys, kind, words):
    assert cli.main(["check", register(kind, max_episode_steps=20)]) == cli.BAD_INPUT
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1) and words in err


@pytest.mark.parametrize(("kind", "repeats"), [(Clock, True), (Remembers, False), (DrawnOnce, False)])
def test_a_run_is_warned_of_what_it_could_not_resume(kind, repeats):
    warnings = random_steps.repeatable_warnings(EnvConfig(name=register(kind, max_episode_steps=20)))
    assert len(warnings) == (0 if repeats else 1)


def test_random_steps_count_what_happens():
    env = tasks.make(EnvConfig(name=register(Clock, max_episode_steps=20)))
    seen = random_steps.take(env)
    assert (len(seen.rewards), seen.lengths.tolist(), seen.terminated) == (70, [7] * 10, 10)
    assert seen.observations.shape == (70, 2) and seen.returns.tolist() == [3.5] * 10


def test_a_reset_that_takes_all_the_time_leaves_steps(monkeypatch):
    monkeypatch.setattr(random_steps, "MOST_SECONDS", 0.1)
    seen = random_steps.take(tasks.make(EnvConfig(name=register(Slow, max_episode_steps=20))))
    assert 1 <= len(seen.rewards) <= 7


def test_statistics_of_the_page_do_not_round(capsys, monkeypatch):
    monkeypatch.setattr(random_steps, "MOST_STEPS", 2_000)
    monkeypatch.setattr(random_steps, "MOST_SECONDS", 60.0)
    entries, _ = page(capsys, register(Offset, max_episode_steps=20))
    assert entries["observations"].endswith("standard deviations 0 to 0.5; 1 never moved (number 0 first)")
