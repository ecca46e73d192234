"""Run whole episodes under a policy, many at a time. Host only."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass

import numpy as np

from polygrad_jax.config import ConfigError, EnvConfig
from polygrad_jax.envs import random_steps, tasks
from polygrad_jax.envs.checked_task import CheckedTask, EnvStepError
from polygrad_jax.envs.collector import EVALUATION_STREAM, episode_seed

MOST_STEPS = 10_000
"""Steps after which an episode of a task without a time limit is cut, as a policy may never fail."""

Act = Callable[[np.ndarray], np.ndarray]
"""Observations ``[E, O]`` float32 raw to raw actions ``[E, A]``."""


@dataclass(frozen=True)
class EpisodeResults:
    """One entry per episode, E in all."""

    returns: np.ndarray  # [E] float64, sums of raw rewards
    lengths: np.ndarray  # [E] int64, environment steps
    distances: np.ndarray  # [E] float64, metres travelled; NaN where the last step tells no x_position
    remarks: tuple[str, ...] = ()
    """What a reader of the numbers must know: episodes that were cut, copies that could not be made."""


def run_episodes(
    env_config: EnvConfig,
    act: Act,
    episodes: int,
    seed: int,
    watch: Callable[[CheckedTask], None] | None = None,
    *,
    restart: Callable[[], None] = lambda: None,
    spare: Callable[[], AbstractContextManager[CheckedTask]] | None = None,
    most_steps: int = 0,
) -> EpisodeResults:
    """Run ``episodes`` (E) episodes side by side; ``seed`` and ``act`` determine the results.

    A task that cannot have E copies at once, or whose copies disturb each other, runs its episodes one group after
    another, in as many copies as there are; the results are the same. Episodes of a task without a time limit are cut
    after MOST_STEPS, or after ``most_steps`` where that is more.

    Args:
        env_config: which task.
        act: observations ``[E, O]`` float32 raw to raw actions ``[E, A]``, which are executed as ``env.actions`` says.
            The batch keeps its size: an ended episode stays in it with its last observation, and its action is unused.
        episodes: E, at least 1.
        seed: of the run; the episodes' seeds are not those of training.
        watch: called with the task of the first episode, which can draw itself (``rgb_array``), after its reset and
            after each of its steps; never where no copy can be made that draws.
        restart: called before every group of episodes, so that ``act`` forgets those before.
        spare: lends a copy that exists already, for a task of which no other can be made.
        most_steps: length of an episode that the task is known to end itself.

    Raises:
        ConfigError: see `tasks.make`.
        EnvStepError: an action is not finite, or the task failed; the message names the episode's seed and the step.
        ValueError: ``episodes`` is below 1.
    """
    if episodes < 1:
        raise ValueError(f"episodes is {episodes}; allowed is 1 or more")
    with ExitStack() as opened:
        envs, remarks = _copies(env_config, episodes, watch is not None, spare, opened)
        watched = watch is not None and envs[0].render_mode == "rgb_array"
        name, limit = envs[0].name, envs[0].time_limit or max(MOST_STEPS, most_steps)
        observations = np.zeros((episodes, tasks.spec_of(envs[0]).observation_size), np.float32)
        returns, distances = np.zeros(episodes), np.full(episodes, np.nan)
        lengths, cut = np.zeros(episodes, np.int64), False
        for first in range(0, episodes, len(envs)):
            restart()
            running = dict(zip(range(first, episodes), envs, strict=False))
            for e, env in running.items():
                observations[e], _ = env.reset(seed=episode_seed(seed, EVALUATION_STREAM, e))
            if watched and first == 0:
                watch(envs[0])
            while running:
                first_is_running = 0 in running
                # A copy: a device array may share the memory of ``observations``, which is written to below.
                actions = tasks.executed(act(observations.copy()), env_config.actions)
                for e, env in list(running.items()):
                    if not np.isfinite(actions[e]).all():  # MuJoCo would take it for zero and go on
                        where = f"{name} (seed {episode_seed(seed, EVALUATION_STREAM, e)}), step {lengths[e]}"
                        raise EnvStepError(f"{where}: the evaluated policy's action is {actions[e]}; it must be finite")
                    observations[e], reward, terminal, truncated, _ = env.step(actions[e])
                    returns[e] += reward
                    lengths[e] += 1
                    over = terminal or truncated
                    if over or lengths[e] == limit:
                        distances[e], cut = env.distance, cut or not over
                        del running[e]
                if watched and first_is_running:
                    watch(envs[0])
    if cut:
        why = f"{name} has no time limit (max_episode_steps)"
        remarks.append(f"warning: {why}: an evaluation episode was cut after {limit:,} steps")
    return EpisodeResults(returns, lengths, distances, tuple(remarks))


def _copies(
    env_config: EnvConfig,
    wanted: int,
    drawing: bool,
    spare: Callable[[], AbstractContextManager[CheckedTask]] | None,
    opened: ExitStack,
) -> tuple[list[CheckedTask], list[str]]:
    """Make as many copies of a task as it allows, up to ``wanted``, which ``opened`` closes; say where it allows fewer.

    Where copies disturb each other there is one, which is the spare one if there is.

    Raises:
        ConfigError: not one can be made, and none is spare.
    """
    envs: list[CheckedTask] = []
    if why := random_steps.why_not_side_by_side(env_config):
        if spare is None:
            envs.append(tasks.make(env_config, "rgb_array" if drawing else None))
            opened.callback(envs[-1].close)
        else:
            envs.append(opened.enter_context(spare()))
        return envs, [f"evaluation runs episodes in turn: copies of the task disturb each other ({why})"]
    for e in range(wanted):
        try:
            envs.append(_copy(env_config, drawing and e == 0, spare is not None))
        except ConfigError as error:
            if not envs and spare is None:
                raise
            why, where = error, "in turn" if envs else "in turn, in the copy that training collects from"
            envs = envs or [opened.enter_context(spare())]
            return envs, [f"evaluation runs episodes {where}: no more than {len(envs)} at once ({why})"]
        opened.callback(envs[-1].close)
    return envs, []


def _copy(env_config: EnvConfig, drawing: bool, goes_without: bool) -> CheckedTask:
    """Make a copy that draws if that is asked for, or one that ``goes_without`` where none can.

    Raises:
        ConfigError: it cannot be made.
    """
    if drawing:
        try:
            return tasks.make(env_config, "rgb_array")
        except ConfigError:
            if not goes_without:
                raise
    return tasks.make(env_config)
