"""Does an imagined batch move the policy where the real world would?

Two truths, from the same simulator states and with the same critic. The **closed loop**: the policy acts in MuJoCo; its
gradient there is what imagination is for. The **open loop**: the imagined actions are replayed in MuJoCo, so that
advantages compare one by one and parts of a trajectory (observations, rewards, terminals) can be exchanged, which shows
the one that misleads. The open loop alone deceives: an unstable body falls under actions that were chosen for slightly
other states, three times as often as under its policy.
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


def _segment(observations: np.ndarray, actions: np.ndarray, rewards: np.ndarray, terminals: np.ndarray) -> Segment:
    ended = absorbing(terminals)
    before = np.concatenate([np.zeros_like(ended[:, :1]), ended[:, :-1]], axis=1)
    return Segment(
        observations=observations[:, :-1].astype(np.float32),
        actions=np.asarray(actions, np.float32),
        rewards=(rewards * (1.0 - before)).astype(np.float32),
        terminals=ended,
    )


class Learning(NamedTuple):
    """What a batch teaches: advantages and weights of the transitions ``[B, H - 1]``, the network's gradient, flat."""

    advantages: np.ndarray
    weights: np.ndarray
    gradient: np.ndarray


def learning(learner: a2c.A2CState, segment: Segment, config: A2CConfig, spec: EnvSpec) -> Learning:
    """The first-order part of :func:`polygrad_jax.agents.a2c.update`, entropy bonus left out."""
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
        scaled = a2c.standardise(advantages)

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


def terminal_errors(ours: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    """Of terminals ``[B, H]``, the last step not counted: shares of trajectories, and steps too late where both end."""
    ours, truth = absorbing(ours)[:, :-1] > 0.5, absorbing(truth)[:, :-1] > 0.5
    ends, should = ours[:, -1], truth[:, -1]
    both = ends & should
    late = (np.argmax(ours, axis=1) - np.argmax(truth, axis=1))[both]
    return {
        "terminals_true": float(should.mean()),
        "terminals_missed": float((should & ~ends).mean()),
        "terminals_false": float((ends & ~should).mean()),
        "terminals_steps_late": float(late.mean()) if len(late) else float("nan"),
        "terminals_steps_off": float(np.abs(late).mean()) if len(late) else float("nan"),
    }


def closed_errors(
    learner: a2c.A2CState, imagined: Segment, closed: tuple[Segment, Segment], config: A2CConfig, spec: EnvSpec
) -> dict[str, float]:
    """Of the imagined batch against two of the closed loop from the same states under other draws.

    ``closed_cosine`` is between its gradient and that of both together; ``closed_ceiling`` between theirs, which is
    what a perfect model of this size of batch would have against one of them. ``ends``: share of trajectories that end.
    """
    imagined = imagined.replace(terminals=absorbing(imagined.terminals), rows=None)
    ours = learning(learner, imagined, config, spec)
    first, second = (learning(learner, segment, config, spec) for segment in closed)
    return {
        "closed_cosine": cosine(ours.gradient, first.gradient + second.gradient),
        "closed_ceiling": cosine(first.gradient, second.gradient),
        "closed_norm_ratio": float(np.linalg.norm(ours.gradient) / np.linalg.norm(first.gradient)),
        "ends_imagined": float(imagined.terminals[:, -2].mean()),
        "ends_closed": float(np.mean([segment.terminals[:, -2].mean() for segment in closed])),
    }


def gradient_errors(
    learner: a2c.A2CState, imagined: Segment, truth: Segment, config: A2CConfig, spec: EnvSpec
) -> dict[str, float]:
    """The measures above for the imagined batch, and for it with one part of the truth put in.

    ``halves_cosine`` is the cosine between the gradients of the two halves of the truth: what sampling alone costs.
    """
    imagined = imagined.replace(terminals=absorbing(imagined.terminals), rows=None)
    real = learning(learner, truth, config, spec)
    half = len(truth.rewards) // 2
    first, second = (jax.tree.map(lambda x, s=s: x[s], truth) for s in (slice(half), slice(half, 2 * half)))
    halves = [learning(learner, part, config, spec).gradient for part in (first, second)]
    exchanged = {
        "true_observations": imagined.replace(observations=truth.observations),
        "true_terminals": imagined.replace(terminals=truth.terminals),
        "true_rewards": imagined.replace(rewards=truth.rewards),
    }
    with_parts = {
        f"gradient_cosine_{name}": compare(learning(learner, segment, config, spec), real)["gradient_cosine"]
        for name, segment in exchanged.items()
    }
    return (
        compare(learning(learner, imagined, config, spec), real)
        | with_parts
        | {"halves_cosine": cosine(*halves)}
        | terminal_errors(imagined.terminals, truth.terminals)
    )
