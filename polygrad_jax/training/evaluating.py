"""Measuring the policy in its environment, and what the model imagines against the simulator.

The simulator is looked at too: stored steps taken again must do what was stored.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from polygrad_jax.config import ConfigError, EnvConfig
from polygrad_jax.data import normaliser as normalisers
from polygrad_jax.data import replay as replays
from polygrad_jax.envs.checked_task import CheckedTask
from polygrad_jax.envs.episodes import EpisodeResults, run_episodes
from polygrad_jax.envs.mujoco_state import no_simulator_states
from polygrad_jax.envs.prediction_error import (
    NEWEST_CHECKED,
    OTHERS_CHECKED,
    StoredSteps,
    simulator_errors,
    stored_difference,
)
from polygrad_jax.runs.console import announce
from polygrad_jax.training.collecting import Collecting, Decide, HostMemory, on_the_host
from polygrad_jax.training.train_state import TrainState, key_for
from polygrad_jax.types import Agent, Array, Params, Segment, WorldModel
from polygrad_jax.world_models.model_table import SIMULATOR

EVALUATION_STREAM = 2


def evaluation_seed(seed: int, env_step: int) -> int:
    """Return the seed of the evaluation at ``env_step``: other episodes every time, the same in a resumed run."""
    return int(np.random.SeedSequence([seed, EVALUATION_STREAM, env_step]).generate_state(1)[0])


@dataclass
class MeanActions:
    """The actor for :func:`run_episodes`: the mean action at every step of episodes that begin together."""

    agent: Agent
    decide: Decide
    params: Params  # on the host
    seed: int
    memory: HostMemory = None
    steps: int = 0

    def __call__(self, raw_obs: np.ndarray) -> np.ndarray:
        """Return the mean actions ``[E, A]`` at ``raw_obs [E, O]``, the observations of the episodes' next step."""
        mean, _, seen = self.decide(self.params, self.memory, raw_obs, (self.seed, self.steps))
        self.memory, self.steps = self.agent.remember(seen, mean), self.steps + 1
        return mean

    def restart(self) -> None:
        """Forget the episodes so far: others begin."""
        self.memory, self.steps = None, 0


def mean_actions(agent: Agent, decide: Decide, params: Params, seed: int) -> MeanActions:
    """Make the actor that shows the mean action."""
    return MeanActions(agent, decide, on_the_host(params), seed)


def evaluate_policy(
    config: EnvConfig,
    agent: Agent,
    decide: Decide,
    params: Params,
    episodes: int,
    seed: int,
    watch: Callable[[CheckedTask], None] | None = None,
    spare: Callable[[], AbstractContextManager[CheckedTask]] | None = None,
    most_steps: int = 0,
) -> EpisodeResults:
    """Run whole episodes with the mean action: returns, lengths and distances, ``[episodes]`` each.

    What a reader of the numbers must know is said aloud, once. For ``watch``, ``spare`` and
    ``most_steps`` see :func:`run_episodes`.

    Raises:
      EnvStepError: the environment failed, or gave what cannot be used (``CheckedTask``).
    """
    act = mean_actions(agent, decide, params, seed)
    known = {"restart": act.restart, "spare": spare, "most_steps": most_steps}
    results = run_episodes(config, act, episodes, seed, watch, **known)
    for remark in results.remarks:
        _announce_once(remark)
    return results


def beats(value: float, best: float | None) -> bool:
    """Return whether a finite value is greater than the best so far.

    There may be none yet, or one that is not finite, which older versions kept.
    """
    return math.isfinite(value) and (best is None or not math.isfinite(best) or value > best)


@functools.cache
def _announce_once(remark: str) -> None:
    announce(remark)


def evaluation_row(episodes: EpisodeResults) -> dict[str, float | None]:
    """Return the columns of ``eval.csv``; None for distances where an episode has none."""
    distances = episodes.distances if np.isfinite(episodes.distances).all() else None
    return {
        "return_mean": float(episodes.returns.mean()),
        "return_std": float(episodes.returns.std()),
        "length_mean": float(episodes.lengths.mean()),
        "distance_mean": None if distances is None else float(distances.mean()),
        "distance_std": None if distances is None else float(distances.std()),
    }


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


ReadStored = Callable[[TrainState, Array], tuple[Array, StoredSteps]]


def make_read_stored() -> ReadStored:
    """Make ``(state, counter) -> (rows [B], the stored steps)``: the newest of the replay, and others of all of it."""

    @jax.jit
    def read_stored(state: TrainState, counter: Array) -> tuple[Array, StoredSteps]:
        replay, key = state.replay, key_for(state.root_key, "stored", counter)
        oldest = jnp.maximum(replay.total - replay.rewards.shape[0], 0)
        newest = jnp.maximum(replay.total - 1 - jnp.arange(NEWEST_CHECKED, dtype=jnp.int32), oldest)
        others = jax.random.randint(key, (OTHERS_CHECKED,), oldest, replay.total, jnp.int32)
        rows = jnp.concatenate([newest, others])
        step, behind, followed = replays.read_steps(replay, rows)
        return rows, StoredSteps(step.actions, step.rewards, step.terminals, behind.observations, followed)

    return read_stored


class Against(NamedTuple):
    """What it takes to compare imagination with the simulator."""

    read_stored: ReadStored
    imagine_from_replay: ImagineFromReplay | None
    """None where no trajectories are compared."""


def make_against(collecting: Collecting, world_model: WorldModel) -> Against | None:
    """Return what compares with the simulator; None where there are no simulator states, or nothing is compared."""
    config = collecting.config
    trajectories, learns_from_it = config.loop.error_trajectories, config.world_model == SIMULATOR
    if collecting.collector.simulator_state_size == 0 or not (trajectories or learns_from_it):
        return None
    imagine = make_imagine_from_replay(world_model, collecting.agent, trajectories) if trajectories else None
    return Against(make_read_stored(), imagine)


def errors_of_imagination(against: Against, collecting: Collecting, state: TrainState) -> dict[str, float]:
    """Return the errors of trajectories imagined from the replay; none once the simulator is not the task.

    Raises:
      ConfigError: see :func:`simulator_is_the_task`.
    """
    if not simulator_is_the_task(against, collecting, state) or against.imagine_from_replay is None:
        return {}
    segment = jax.device_get(against.imagine_from_replay(state, jnp.int32(collecting.at.env_steps)))
    states = collecting.simulator_log.get(segment.rows[:, 0])
    return simulator_errors(collecting.config.env, segment, states)


def simulator_is_the_task(against: Against, collecting: Collecting, state: TrainState) -> bool:
    """Whether stored steps, taken again from their simulator states, do what was stored; what differs is said once.

    Raises:
      ConfigError: they do not, and the world model is the simulator.
    """
    at, config = collecting.at, collecting.config
    if at.simulator_differs is not None:
        return False
    rows, stored = jax.device_get(against.read_stored(state, jnp.int32(at.env_steps)))
    at.simulator_differs = stored_difference(config.env, collecting.simulator_log.get(rows), stored)
    if at.simulator_differs is None:
        return True
    line = f"{no_simulator_states(config.env, at.simulator_differs)} (found at environment step {at.env_steps})"
    if config.world_model == SIMULATOR:
        raise ConfigError(f"world_model is simulator; {line}; allowed: another world model")
    announce(f"{line}; no errors of imagination are measured from here on")
    return False
