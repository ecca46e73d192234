"""Whole episodes with a given policy, many at a time. Host only."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from polygrad_jax.config import EnvConfig
from polygrad_jax.envs import tasks as registry
from polygrad_jax.envs.collector import EVALUATION_STREAM, EnvStepError, episode_seed

MOST_STEPS = 10_000
"""Where an episode of a task without a time limit is cut: a policy that never fails would be measured for ever."""


@dataclass(frozen=True)
class EpisodeResults:
    """One entry per episode, E in all."""

    returns: np.ndarray  # [E] float64, sums of raw rewards
    lengths: np.ndarray  # [E] int64, environment steps
    distances: np.ndarray  # [E] float64, metres travelled; NaN where the environment does not tell


def run_episodes(
    env_config: EnvConfig,
    act: Callable[[np.ndarray], np.ndarray],
    episodes: int,
    seed: int,
    on_frame: Callable[[np.ndarray], None] | None = None,
) -> EpisodeResults:
    """Runs ``episodes`` (E) episodes side by side; what happens follows from ``seed`` and ``act``.

    Those of a task without a time limit are cut after MOST_STEPS.

    Args:
        env_config: which task.
        act: observations ``[E, O]`` float32 raw to actions ``[E, A]`` raw; clipped when executed. The batch keeps
            its size: an episode that has ended stays in it with its last observation, and its action is unused.
        episodes: E, at least 1.
        seed: of the run; the episodes' seeds are not those of training.
        on_frame: is given every frame ``[height, width, 3]`` uint8 of the first episode, the one at reset included.

    Raises:
        ConfigError: see `registry.make`.
        EnvStepError: an environment raised; names the episode's seed and the step.
        ValueError: ``episodes`` is below 1.
    """
    if episodes < 1:
        raise ValueError(f"episodes is {episodes}; allowed is 1 or more")
    render_modes = ["rgb_array" if on_frame is not None and e == 0 else None for e in range(episodes)]
    envs = [registry.make(env_config, mode) for mode in render_modes]
    seeds = [episode_seed(seed, EVALUATION_STREAM, e) for e in range(episodes)]
    observations = np.empty((episodes, registry.spec_of(envs[0]).observation_size), np.float32)
    starts, unlimited = np.empty(episodes), envs[0].spec.max_episode_steps is None
    for e, env in enumerate(envs):
        observations[e], info = env.reset(seed=seeds[e])
        starts[e] = registry.start_of(info)
    returns, distances = np.zeros(episodes), np.full(episodes, np.nan)
    lengths, running = np.zeros(episodes, np.int64), np.ones(episodes, bool)
    if on_frame is not None:
        on_frame(envs[0].render())
    while running.any():
        first_is_running = running[0]
        # A copy: a device array made from it may share its memory, and we write to it below.
        actions = np.clip(np.asarray(act(observations.copy()), np.float32), -1.0, 1.0)
        for e in np.flatnonzero(running):
            try:
                observations[e], reward, terminal, truncated, info = envs[e].step(actions[e])
            except Exception as error:
                where = f"{envs[e].spec.id} evaluation episode {e} (seed {seeds[e]}), step {lengths[e]}"
                raise EnvStepError(f"{where} failed: {type(error).__name__}: {error}") from error
            returns[e] += reward
            lengths[e] += 1
            distances[e] = registry.distance(info) - starts[e]
            running[e] = not (terminal or truncated or (unlimited and lengths[e] == MOST_STEPS))
        if on_frame is not None and first_is_running:
            on_frame(envs[0].render())
    for env in envs:
        env.close()
    return EpisodeResults(returns=returns, lengths=lengths, distances=distances)
