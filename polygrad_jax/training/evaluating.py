"""Measuring the policy in its environment, and what the model imagines against the simulator."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from polygrad_jax.config import EnvConfig
from polygrad_jax.data import normaliser as normalisers
from polygrad_jax.data import replay as replays
from polygrad_jax.envs.episodes import EpisodeResults, run_episodes
from polygrad_jax.training.collecting import Decide, on_the_host
from polygrad_jax.training.train_state import TrainState, key_for
from polygrad_jax.types import Agent, Array, Params, Segment, WorldModel

EVALUATION_STREAM = 2


def evaluation_seed(seed: int, env_step: int) -> int:
    """Return the seed of the evaluation at ``env_step``: other episodes every time, the same in a resumed run."""
    return int(np.random.SeedSequence([seed, EVALUATION_STREAM, env_step]).generate_state(1)[0])


def mean_actions(agent: Agent, decide: Decide, params: Params, seed: int) -> Callable[[np.ndarray], np.ndarray]:
    """Make the actor for :func:`run_episodes`: the mean action at every step of episodes that begin together."""
    params, memory, steps = on_the_host(params), None, 0

    def act(raw_obs: np.ndarray) -> np.ndarray:
        nonlocal memory, steps
        mean, _, seen = decide(params, memory, raw_obs, (seed, steps))
        memory, steps = agent.remember(seen, mean), steps + 1
        return mean

    return act


def evaluate_policy(
    config: EnvConfig,
    agent: Agent,
    decide: Decide,
    params: Params,
    episodes: int,
    seed: int,
    on_frame: Callable[[np.ndarray], None] | None = None,
) -> EpisodeResults:
    """Run whole episodes with the mean action: returns, lengths and distances, ``[episodes]`` each."""
    return run_episodes(config, mean_actions(agent, decide, params, seed), episodes, seed, on_frame)


def evaluation_row(episodes: EpisodeResults) -> dict[str, Any]:
    """Return the columns of ``eval.csv``; distances only where the environment tells positions."""
    row = {
        "return_mean": float(episodes.returns.mean()),
        "return_std": float(episodes.returns.std()),
        "length_mean": float(episodes.lengths.mean()),
    }
    if np.isfinite(episodes.distances).all():
        row["distance_mean"] = float(episodes.distances.mean())
        row["distance_std"] = float(episodes.distances.std())
    return row


ImagineFromReplay = Callable[[TrainState, Array], Segment]


def make_imagine_from_replay(world_model: WorldModel, agent: Agent, trajectories: int) -> ImagineFromReplay:
    """Make ``(state, counter) -> Segment [trajectories, H]``, imagined under the policy from states of the replay.

    ``rows`` of the result hold the row of each trajectory's first state (``[B, 1]``), by which the host finds the
    simulator's state.
    """

    @jax.jit
    def imagine_from_replay(state: TrainState, counter: Array) -> Segment:
        key = key_for(state.root_key, "errors", counter)
        context_key, imagine_key = jax.random.split(key)
        context = replays.sample_contexts(state.replay, context_key, trajectories, world_model.context_length)
        normaliser = normalisers.to_normaliser(state.replay.moments)
        segment, _ = agent.imagine(state.agent, state.world_model, context, normaliser, imagine_key)
        return segment.replace(rows=context.rows[:, -1:])

    return imagine_from_replay
