"""Measuring a policy in its environment, and an imagined trajectory against the simulator."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from polygrad_jax.config import Config, EnvConfig, EnvSpec
from polygrad_jax.data import normaliser as normalisers
from polygrad_jax.data import replay as replays
from polygrad_jax.envs.evaluation import EpisodeResults, run_episodes
from polygrad_jax.envs.simulator import replay_actions
from polygrad_jax.rl import a2c
from polygrad_jax.training.iteration import TrainState, key_for
from polygrad_jax.types import Array, Params, Segment
from polygrad_jax.world_models.registry import make_world_model
from polygrad_jax.world_models.simulator import SimulatorHost

Act = Callable[[Params, np.ndarray], tuple[np.ndarray, np.ndarray]]
"""``(actor params, raw_obs [..., O]) -> (mean [..., A], std [..., A])`` on the host."""


def make_act(config: Config, spec: EnvSpec) -> Act:
    """The policy as the host calls it: jitted for the CPU, where the environment lives, whatever learns elsewhere."""
    apply = jax.jit(a2c.make_policy_apply(spec, config.a2c, "float32"))
    cpu = jax.local_devices(backend="cpu")[0]

    def act(params: Params, raw_obs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        mean, std = apply(params, jax.device_put(np.asarray(raw_obs, np.float32), cpu))
        return np.asarray(mean), np.asarray(std)

    return act


def evaluate_policy(config: EnvConfig, act: Act, params: Params, episodes: int, seed: int) -> EpisodeResults:
    """Whole episodes with the policy's mean action: returns, lengths and distances, ``[episodes]`` each."""
    return run_episodes(config, lambda obs: act(params, obs)[0], episodes, seed)


ImagineFromReplay = Callable[[TrainState, Array], Segment]


def make_imagine_from_replay(
    config: Config, spec: EnvSpec, trajectories: int, host: SimulatorHost | None = None
) -> ImagineFromReplay:
    """``(state, counter) -> Segment [trajectories, H]`` imagined under the current policy from states of the replay.

    ``rows`` of the result hold the row of each trajectory's first state (``[B, 1]``), by which the host finds the
    simulator's state.
    """
    world_model = make_world_model(config, spec, host)
    policy_apply = a2c.make_policy_apply(spec, config.a2c, config.precision)

    @jax.jit
    def imagine_from_replay(state: TrainState, counter: Array) -> Segment:
        key = key_for(state.root_key, "errors", counter)
        context_key, imagine_key = jax.random.split(key)
        context = replays.sample_contexts(state.replay, context_key, trajectories, world_model.context_length)
        normaliser = normalisers.to_normaliser(state.replay.moments)
        _, segment, _ = world_model.imagine(
            state.world_model, policy_apply, state.learner.actor, context, normaliser, imagine_key, config.horizon
        )
        return segment.replace(rows=context.rows[:, -1:])

    return imagine_from_replay


def simulator_errors(config: EnvConfig, segment: Segment, simulator_states: np.ndarray) -> dict[str, Any]:
    """How far imagined trajectories are from MuJoCo replaying the same actions from the same simulator state.

    Squared error in raw units, averaged over observation dimensions and trajectories, for every horizon 1 to H - 1;
    trajectories go on past termination; the reward error is that of the first step (paper, Appendix C.1).

    Args:
      simulator_states: ``[B, S]``, the simulator's state at each first observation.
    """
    observations, rewards, _ = replay_actions(config, simulator_states, np.asarray(segment.actions[:, :-1]))
    by_horizon = np.square(np.asarray(segment.observations) - observations).mean(axis=(0, 2))
    reward = np.square(np.asarray(segment.rewards[:, 0]) - rewards[:, 0]).mean()
    errors = {f"error/observation_mse_{h:03d}": float(by_horizon[h]) for h in range(1, by_horizon.shape[0])}
    return errors | {"error/reward_mse": float(reward)}
