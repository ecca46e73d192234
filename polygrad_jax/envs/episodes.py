"""Run whole episodes under a policy, many at a time. Host only."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from polygrad_jax.config import EnvConfig
from polygrad_jax.envs import tasks
from polygrad_jax.envs.collector import EVALUATION_STREAM, EnvStepError, episode_seed

MOST_STEPS = 10_000
"""Steps after which an episode of a task without a time limit is cut, as a policy may never fail."""


@dataclass(frozen=True)
class EpisodeResults:
    """One entry per episode, E in all."""

    returns: np.ndarray  # [E] float64, sums of raw rewards
    lengths: np.ndarray  # [E] int64, environment steps
    distances: np.ndarray  # [E] float64, metres travelled; NaN where the environment has no x_position


def run_episodes(
    env_config: EnvConfig,
    act: Callable[[np.ndarray], np.ndarray],
    episodes: int,
    seed: int,
    on_frame: Callable[[np.ndarray], None] | None = None,
) -> EpisodeResults:
    """Run ``episodes`` (E) episodes side by side; ``seed`` and ``act`` determine the results.

    Episodes of a task without a time limit are cut after MOST_STEPS.

    Args:
        env_config: which task.
        act: observations ``[E, O]`` float32 raw to raw actions ``[E, A]``, which are executed as ``env.actions`` says.
            The batch keeps its size: an ended episode stays in it with its last observation, and its action is unused.
        episodes: E, at least 1.
        seed: of the run; the episodes' seeds are not those of training.
        on_frame: called with every frame ``[height, width, 3]`` uint8 of the first episode, from the reset on.

    Raises:
        ConfigError: see `tasks.make`.
        EnvStepError: an environment raised; the message names the episode's seed and the step.
        ValueError: ``episodes`` is below 1.
    """
    if episodes < 1:
        raise ValueError(f"episodes is {episodes}; allowed is 1 or more")
    render_modes = ["rgb_array" if on_frame is not None and e == 0 else None for e in range(episodes)]
    envs = [tasks.make(env_config, mode) for mode in render_modes]
    seeds = [episode_seed(seed, EVALUATION_STREAM, e) for e in range(episodes)]
    observations = np.empty((episodes, tasks.spec_of(envs[0]).observation_size), np.float32)
    starts, unlimited = np.empty(episodes), envs[0].spec.max_episode_steps is None
    for e, env in enumerate(envs):
        observations[e], info = env.reset(seed=seeds[e])
        starts[e] = tasks.start_of(info)
    returns, distances = np.zeros(episodes), np.full(episodes, np.nan)
    lengths, running = np.zeros(episodes, np.int64), np.ones(episodes, bool)
    if on_frame is not None:
        on_frame(envs[0].render())
    while running.any():
        first_is_running = running[0]
        # A copy: a device array may share the memory of ``observations``, which is written to below.
        actions = tasks.executed(act(observations.copy()), env_config.actions)
        for e in np.flatnonzero(running):
            try:
                observations[e], reward, terminal, truncated, info = envs[e].step(actions[e])
            except Exception as error:
                where = f"{envs[e].spec.id} evaluation episode {e} (seed {seeds[e]}), step {lengths[e]}"
                raise EnvStepError(f"{where} failed: {type(error).__name__}: {error}") from error
            returns[e] += reward
            lengths[e] += 1
            distances[e] = tasks.distance(info) - starts[e]
            running[e] = not (terminal or truncated or (unlimited and lengths[e] == MOST_STEPS))
        if on_frame is not None and first_is_running:
            on_frame(envs[0].render())
    for env in envs:
        env.close()
    return EpisodeResults(returns=returns, lengths=lengths, distances=distances)
