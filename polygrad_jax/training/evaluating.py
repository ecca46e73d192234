"""Measuring a policy in its environment, and an imagined trajectory against the simulator."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import numpy as np

from polygrad_jax.config import Config, EnvConfig, EnvSpec
from polygrad_jax.data import normaliser as normalisers
from polygrad_jax.data import replay as replays
from polygrad_jax.envs.episodes import EpisodeResults, run_episodes
from polygrad_jax.envs.mujoco_state import replay_actions
from polygrad_jax.networks.rssm import Latent
from polygrad_jax.agents import a2c
from polygrad_jax.agents import dreamer_actor_critic as dreamer
from polygrad_jax.training.step import TrainState, key_for
from polygrad_jax.training.learners import make_learner
from polygrad_jax.analysis.action_spread import before_ends, mean_where, squared_errors
from polygrad_jax.types import Array, Params, Segment
from polygrad_jax.world_models.dreamer import make_latent_model
from polygrad_jax.world_models.model_table import make_world_model
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


Memory = dict[str, np.ndarray] | None
"""What a policy knows of its episode, float32 ``[B, ...]``; None before the first step, and of one that knows none."""


class Behaviour(NamedTuple):
    """How the host acts with a policy that may remember its episode.

    ``decide(params, memory, raw_obs [B, O] or [O], (seed, step)) -> (mean, std, memory)``, of actions ``[B, A]`` or
    ``[A]``; what it draws (for what it knows, never for the action) follows from the two numbers.
    ``took(memory, actions) -> memory``, which must be told the actions as sampled before the next step.
    """

    decide: Callable[[Params, Memory, np.ndarray, tuple[int, int]], tuple[np.ndarray, np.ndarray, Memory]]
    took: Callable[[Memory, np.ndarray], Memory]


def make_behaviour(config: Config, spec: EnvSpec) -> Behaviour:
    """How the policy of ``config.learner`` acts, given what ``acting_params`` hands out; on the CPU, in float32."""
    if config.learner == "latent":
        return _make_latent_behaviour(config, spec)
    act = make_act(config, spec)

    def decide(params: Params, memory: Memory, raw_obs: np.ndarray, draw: tuple[int, int]):
        return *act(params, raw_obs), None

    return Behaviour(decide, lambda memory, actions: None)


def _make_latent_behaviour(config: Config, spec: EnvSpec) -> Behaviour:
    """The posterior latent is kept from step to step, and the action that was taken in it."""
    latent = make_latent_model(replace(config, precision="float32"), spec)
    policy = dreamer.make_policy(spec.action_size, config.latent_policy)
    cpu = jax.local_devices(backend="cpu")[0]

    @jax.jit
    def see(params: Params, memory: Any, raw_obs: Array, draw: Array) -> tuple[Array, Array, dict[str, Array]]:
        key = jax.random.fold_in(jax.random.key(draw[0]), draw[1])
        before = None if memory is None else (Latent(memory["deter"], memory["stoch"]), memory["action"])
        seen = latent.see(params["model"], before, raw_obs, key)
        return *policy(params["actor"], latent.features(seen)), {"deter": seen.deter, "stoch": seen.stoch}

    def decide(params: Params, memory: Memory, raw_obs: np.ndarray, draw: tuple[int, int]):
        batch = np.atleast_2d(np.asarray(raw_obs, np.float32))
        given = jax.device_put((memory, batch, np.asarray(draw, np.uint32)), cpu)
        mean, std, seen = jax.tree.map(np.asarray, see(params, *given))
        shape = (*np.shape(raw_obs)[:-1], spec.action_size)
        return mean.reshape(shape), std.reshape(shape), seen

    def took(memory: Memory, actions: np.ndarray) -> Memory:
        return memory | {"action": np.atleast_2d(np.asarray(actions, np.float32))}

    return Behaviour(decide, took)


def mean_actions(behaviour: Behaviour, params: Params, seed: int) -> Callable[[np.ndarray], np.ndarray]:
    """For :func:`run_episodes`: the mean action at every step of episodes that all begin at the first call."""
    memory, steps = None, 0

    def act(raw_obs: np.ndarray) -> np.ndarray:
        nonlocal memory, steps
        mean, _, seen = behaviour.decide(params, memory, raw_obs, (seed, steps))
        memory, steps = behaviour.took(seen, mean), steps + 1
        return mean

    return act


def evaluate_policy(
    config: EnvConfig, behaviour: Behaviour, params: Params, episodes: int, seed: int
) -> EpisodeResults:
    """Whole episodes with the policy's mean action: returns, lengths and distances, ``[episodes]`` each."""
    return run_episodes(config, mean_actions(behaviour, params, seed), episodes, seed)


ImagineFromReplay = Callable[[TrainState, Array], Segment]


def make_imagine_from_replay(
    config: Config, spec: EnvSpec, trajectories: int, host: SimulatorHost | None = None
) -> ImagineFromReplay:
    """``(state, counter) -> Segment [trajectories, H]`` imagined under the current policy from states of the replay.

    ``rows`` of the result hold the row of each trajectory's first state (``[B, 1]``), by which the host finds the
    simulator's state.
    """
    world_model = make_world_model(config, spec, host)
    learner = make_learner(config, spec, world_model)

    @jax.jit
    def imagine_from_replay(state: TrainState, counter: Array) -> Segment:
        key = key_for(state.root_key, "errors", counter)
        context_key, imagine_key = jax.random.split(key)
        context = replays.sample_contexts(state.replay, context_key, trajectories, world_model.context_length)
        normaliser = normalisers.to_normaliser(state.replay.moments)
        segment = learner.imagine(state.learner, state.world_model, context, normaliser, imagine_key)
        return segment.replace(rows=context.rows[:, -1:])

    return imagine_from_replay


def simulator_errors(
    config: EnvConfig, segment: Segment, simulator_states: np.ndarray, past_ends: bool = True
) -> dict[str, Any]:
    """How far imagined trajectories are from MuJoCo replaying the same actions from the same simulator state.

    Squared error in raw units, averaged over observation dimensions and trajectories, for every horizon 1 to H - 1;
    trajectories go on past termination; the reward error is that of the first step (paper, Appendix C.1). Without
    ``past_ends`` a trajectory counts until MuJoCo ends it; a horizon that none lives to see is NaN.

    Args:
      simulator_states: ``[B, S]``, the simulator's state at each first observation.
    """
    observations, rewards, terminals = replay_actions(config, simulator_states, np.asarray(segment.actions[:, :-1]))
    counted = np.ones(terminals.shape, bool) if past_ends else before_ends(terminals)
    by_horizon = mean_where(squared_errors(segment.observations, observations), counted)
    reward = np.square(np.asarray(segment.rewards[:, 0]) - rewards[:, 0]).mean()
    errors = {f"error/observation_mse_{h:03d}": float(error) for h, error in enumerate(by_horizon, start=1)}
    return errors | {"error/reward_mse": float(reward)}
