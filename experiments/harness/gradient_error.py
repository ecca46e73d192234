"""Does an imagined batch move the policy where the real world would?

Two truths, from the same simulator states and with the same critic. The **closed loop**: the policy acts in MuJoCo; its
gradient there is what imagination is for. The **open loop**: the imagined actions are replayed in MuJoCo, so that
advantages compare one by one. The open loop alone deceives: an unstable body falls under actions that were chosen for
slightly other states, three times as often as under its policy.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from polygrad_jax.agents import a2c
from polygrad_jax.agents.gae import gae
from polygrad_jax.config import A2CConfig, EnvConfig, EnvSpec
from polygrad_jax.envs.mujoco_state import close_loop, replay_actions
from polygrad_jax.types import Array, Params, Policy, Segment


def absorbing(terminals: np.ndarray) -> np.ndarray:
    """``[B, H]``: 1 from the first terminal on."""
    return np.maximum.accumulate(np.asarray(terminals, np.float32), axis=1)


def replayed(env: EnvConfig, simulator_states: np.ndarray, segment: Segment) -> Segment:
    """What MuJoCo does under the actions of ``segment [B, H]``, raw; behind a terminal the reward is 0.

    Args:
      simulator_states: ``[B, S]``, the simulator's at the first observations.
    """
    observations, rewards, terminals = replay_actions(env, simulator_states, np.asarray(segment.actions))
    return _segment(observations, segment.actions, rewards, terminals)


def played(env: EnvConfig, simulator_states: np.ndarray, policy: Policy, horizon: int, seed: int) -> Segment:
    """What the policy does in MuJoCo, ``[B, horizon]`` raw; behind a terminal the reward is 0.

    Args:
      simulator_states: ``[B, S]``, the simulator's at the first observations.
    """
    random, choose = np.random.default_rng(seed), jax.jit(Policy.__call__)

    def act(_: int, raw_obs: np.ndarray) -> np.ndarray:
        mean, std = jax.device_get(choose(policy, jnp.asarray(raw_obs, jnp.float32)))
        return mean + std * random.standard_normal(mean.shape)

    observations, actions, rewards, terminals = close_loop(env, simulator_states, act, horizon)
    return _segment(observations, actions, rewards, terminals)


def before_end(terminals: np.ndarray) -> np.ndarray:
    """``[B, H]``: 1 up to the first terminal, whose reward still counts, and 0 behind it."""
    ended = absorbing(terminals)
    return 1.0 - np.concatenate([np.zeros_like(ended[:, :1]), ended[:, :-1]], axis=1)


def _segment(observations: np.ndarray, actions: np.ndarray, rewards: np.ndarray, terminals: np.ndarray) -> Segment:
    return Segment(
        observations=observations[:, :-1].astype(np.float32),
        actions=np.asarray(actions, np.float32),
        rewards=(rewards * before_end(terminals)).astype(np.float32),
        terminals=absorbing(terminals),
    )


class Learning(NamedTuple):
    """What a batch teaches: advantages and weights of the transitions ``[B, H - 1]``, the network's gradient, flat."""

    advantages: np.ndarray
    weights: np.ndarray
    gradient: np.ndarray


def learning(learner: a2c.A2CState, segment: Segment, config: A2CConfig, spec: EnvSpec) -> Learning:
    """The first-order part of :func:`polygrad_jax.agents.a2c.update`, as one minibatch, entropy bonus left out."""
    lesson = _make_lesson(config, spec)(learner, jax.tree.map(jnp.asarray, segment))
    advantages, weights, gradient = jax.device_get(lesson)
    return Learning(advantages, weights, np.concatenate([np.ravel(x) for x in jax.tree.leaves(gradient)]))


@functools.lru_cache
def _make_lesson(config: A2CConfig, spec: EnvSpec):
    """Make ``(learner, segment) -> (advantages, weights, gradient)``, compiled once for equal settings."""
    policy_apply, value_apply = a2c.make_policy_apply(spec, config), a2c.make_value_apply(config)

    @jax.jit
    def lesson(learner: a2c.A2CState, segment: Segment) -> tuple[Array, Array, Params]:
        values = value_apply(learner.target_critic, segment.observations)
        advantages, _ = gae(segment.rewards, values, segment.terminals, config.gamma, config.gae_lambda)
        weights = a2c.reality_weights(segment.terminals[:, :-1], config.train_terminal_transitions)
        raw_obs, actions = segment.observations[:, :-1], segment.actions[:, :-1]
        scaled = a2c.standardise_as_learnt(advantages, weights, config)

        def loss(params: Params) -> Array:
            return a2c.actor_loss(params, policy_apply, raw_obs, actions, scaled, weights, 0.0)[0]

        return advantages, weights, jax.grad(loss)(learner.actor)["network"]

    return lesson


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    """Of the angle between two vectors."""
    return float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)))


def compare(ours: Learning, truth: Learning) -> dict[str, float]:
    """Correlation and scale of the advantages where both count, and the cosine between the gradients."""
    both = (ours.weights > 0) & (truth.weights > 0)
    a, b = ours.advantages[both], truth.advantages[both]
    return {
        "advantage_correlation": float(np.corrcoef(a, b)[0, 1]),
        "advantage_std_ratio": float(a.std() / b.std()),
        "gradient_cosine": cosine(ours.gradient, truth.gradient),
    }
