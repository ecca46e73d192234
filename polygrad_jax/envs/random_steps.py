"""Step a task under random actions for a moment, and keep what it shows. Host only."""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from polygrad_jax.config import ConfigError, EnvConfig
from polygrad_jax.envs import tasks
from polygrad_jax.envs.checked_task import CheckedTask, EnvStepError
from polygrad_jax.envs.collector import PREFILL_STREAM, episode_seed, uniform_action

SEED = 0
MOST_STEPS = 3_000
MOST_SECONDS = 2.0
"""Of `take`, whichever comes first."""
REPEATED_STEPS = 50
"""Steps after which the beginning of an episode is taken for the episode."""


@dataclass(frozen=True)
class RandomSteps:
    """N steps of a task under actions that are uniform over their bounds, and its E finished episodes."""

    observations: np.ndarray  # [N, O] float32, raw
    rewards: np.ndarray  # [N] float64, raw
    lengths: np.ndarray  # [E] int64
    returns: np.ndarray  # [E] float64
    terminated: int  # how many of the episodes the task ended itself
    steps_per_second: float


def take(env: CheckedTask) -> RandomSteps:
    """Step an environment of `tasks.make` as the random steps at the start of a run do.

    Raises:
        EnvStepError: the task failed, or gave what cannot be used.
    """
    observations, rewards, lengths, returns = [], [], [], []
    terminated, open_length, open_return = 0, 0, 0.0
    size = tasks.spec_of(env).action_size
    env.reset(seed=episode_seed(SEED, PREFILL_STREAM, 0))
    began = time.perf_counter()  # after it: a reset may take longer than all the steps may
    while len(rewards) < MOST_STEPS and time.perf_counter() - began < MOST_SECONDS:
        observation, reward, terminal, truncated, _ = env.step(uniform_action(SEED, len(rewards), size))
        observations.append(np.array(observation, np.float32))
        rewards.append(reward)
        open_length, open_return = open_length + 1, open_return + reward
        if terminal or truncated:
            lengths.append(open_length)
            returns.append(open_return)
            terminated, open_length, open_return = terminated + terminal, 0, 0.0
            env.reset(seed=episode_seed(SEED, PREFILL_STREAM, len(lengths)))
    seconds = time.perf_counter() - began
    return RandomSteps(
        observations=np.stack(observations),
        rewards=np.array(rewards),
        lengths=np.array(lengths, np.int64),
        returns=np.array(returns),
        terminated=terminated,
        steps_per_second=len(rewards) / seconds,
    )


def why_not_repeatable(env_config: EnvConfig, env: CheckedTask) -> str | None:
    """Say where an episode from the same seed, under the same actions, is another one; None where it is the same.

    The episode is repeated in ``env``, with another one between, in a copy where the task allows one, and beside
    another copy. Resuming a run repeats its open episode.

    Raises:
        EnvStepError: the task failed, or gave what cannot be used.
    """
    first = _episode(env, 1)
    _episode(env, 2)
    if (where := _difference(first, _episode(env, 1))) is not None:
        return f"{where} after another episode"
    try:
        made = tasks.make(env_config)
    except ConfigError:  # one instance only: a resumed run makes it in another process
        return None
    with contextlib.closing(made) as copy:
        where = _difference(first, _episode(copy, 1))
    return why_not_side_by_side(env_config) if where is None else f"{where} in a copy of the task"


@functools.cache
def why_not_side_by_side(env_config: EnvConfig) -> str | None:
    """Say where an episode is another one because a copy of the task is stepped beside it; None where it is the same.

    Copies may share a generator (``np.random.seed`` in reset) or an array of their class. None, too, where an episode
    on its own is another one every time, one copy can be made only, or the task fails, which whoever steps it next
    says. The answer is kept: asking steps copies, which disturb an open episode.
    """
    with contextlib.suppress(ConfigError, EnvStepError), contextlib.ExitStack() as opened:
        env, copy = (opened.enter_context(contextlib.closing(tasks.make(env_config))) for _ in range(2))
        alone, beside, other = _episode(env, 1), [], _steps(copy, 2)
        if _difference(alone, _episode(env, 1)) is not None:
            return None
        for seen in _steps(env, 1):
            beside.append(seen)
            next(other, None)
        if (where := _difference(alone, beside)) is not None:
            return f"{where} while a copy of the task is stepped"
    return None


def repeatable_warnings(env_config: EnvConfig) -> list[str]:
    """Return the warning that a run of a task cannot be resumed, where that is so; a task that fails is none's here."""
    with contextlib.suppress(EnvStepError), contextlib.closing(tasks.make(env_config)) as env:
        if (why := why_not_repeatable(env_config, env)) is not None:
            return [not_repeatable(env.name, why)]
    return []


def not_repeatable(name: str, why: str) -> str:
    """Return the line that says what follows for a run of the task ``name``."""
    remedy = "let reset(seed=...) renew everything that the task remembers (random generators, counters, statistics)"
    return f"warning: {name} does not repeat an episode ({why}), so a run of it may not be resumed; {remedy}"


def _episode(env: CheckedTask, number: int) -> list[tuple[np.ndarray, float, bool]]:
    return list(_steps(env, number))


def _steps(env: CheckedTask, number: int) -> Iterator[tuple[np.ndarray, float, bool]]:
    """Go through the beginning of an episode; per step the observation ``[O]``, the reward and whether it ended."""
    size = tasks.spec_of(env).action_size
    observation, _ = env.reset(seed=number)
    yield np.array(observation), 0.0, False
    for step in range(REPEATED_STEPS):
        observation, reward, terminal, truncated, _ = env.step(uniform_action(number, step, size))
        yield np.array(observation), reward, terminal or truncated
        if terminal or truncated:
            break


def _difference(first: list[tuple[np.ndarray, float, bool]], again: list[tuple[np.ndarray, float, bool]]) -> str | None:
    for step, (one, other) in enumerate(zip(first, again, strict=False)):
        for name, here, there in zip(("observation", "reward", "end"), one, other, strict=True):
            if not np.array_equal(here, there):
                return f"the {name} of step {step} is another one"
    return None
