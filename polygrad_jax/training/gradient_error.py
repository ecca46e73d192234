"""Does an imagined batch move the policy where the real world would?

The same actions are replayed in MuJoCo from the same simulator states; advantages and the policy's gradient are then
computed twice, from what was imagined and from what happened, with the same critic. The parts of a trajectory
(observations, rewards, terminals) can be exchanged one by one, which shows the one that misleads.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from polygrad_jax.config import A2CConfig, EnvConfig, EnvSpec
from polygrad_jax.envs.simulator import replay_actions
from polygrad_jax.rl import a2c
from polygrad_jax.rl.gae import gae
from polygrad_jax.types import Array, Segment


def absorbing(terminals: np.ndarray) -> np.ndarray:
    """``[B, H]``: 1 from the first terminal on."""
    return np.maximum.accumulate(np.asarray(terminals, np.float32), axis=1)


def replayed(env: EnvConfig, simulator_states: np.ndarray, segment: Segment) -> Segment:
    """What MuJoCo does under the actions of ``segment [B, H]``, raw; behind a terminal the reward is 0.

    Args:
      simulator_states: ``[B, S]``, the simulator's at the first observations.
    """
    observations, rewards, terminals = replay_actions(env, simulator_states, np.asarray(segment.actions))
    ended = absorbing(terminals)
    before = np.concatenate([np.zeros_like(ended[:, :1]), ended[:, :-1]], axis=1)
    return Segment(
        observations=observations[:, :-1].astype(np.float32),
        actions=np.asarray(segment.actions, np.float32),
        rewards=(rewards * (1.0 - before)).astype(np.float32),
        terminals=ended,
    )


class Learning(NamedTuple):
    """What a batch teaches: advantages and weights of the transitions ``[B, H - 1]``, the network's gradient, flat."""

    advantages: np.ndarray
    weights: np.ndarray
    gradient: np.ndarray


def learning(learner: a2c.A2CState, segment: Segment, config: A2CConfig, spec: EnvSpec) -> Learning:
    """The first-order part of :func:`polygrad_jax.rl.a2c.update`, entropy bonus left out."""
    policy_apply, value_apply = a2c.make_policy_apply(spec, config), a2c.make_value_apply(config)

    @jax.jit
    def compute(learner: a2c.A2CState, segment: Segment) -> tuple[Array, Array, a2c.Params]:
        values = value_apply(learner.target_critic, segment.observations)
        advantages, _ = gae(segment.rewards, values, segment.terminals, config.gamma, config.gae_lambda)
        weights = a2c.reality_weights(segment.terminals[:, :-1], config.train_terminal_transitions)
        raw_obs, actions = segment.observations[:, :-1], segment.actions[:, :-1]
        scaled = a2c.standardise(advantages) if config.normalise_advantages else advantages

        def loss(params: a2c.Params) -> Array:
            return a2c.actor_loss(params, policy_apply, raw_obs, actions, scaled, weights, 0.0)[0]

        return advantages, weights, jax.grad(loss)(learner.actor)["network"]

    advantages, weights, gradient = jax.device_get(compute(learner, jax.tree.map(jnp.asarray, segment)))
    return Learning(advantages, weights, np.concatenate([np.ravel(x) for x in jax.tree.leaves(gradient)]))


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
