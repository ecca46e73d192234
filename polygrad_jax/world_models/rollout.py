"""The one autoregressive roll-out: what every model that predicts single steps does with its predictions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp

from polygrad_jax.types import Array, Metrics, Normaliser, Policy, Prediction, Segment

Predict = Callable[[Any, Array, Array, Array], tuple[Any, Prediction, Metrics]]
"""``(memory, raw_obs [B, O], raw actions [B, A] as sampled, key) -> (memory, Prediction, metrics [B])``."""

Choose = Callable[[Any, Array], tuple[Array, Array]]
"""``(memory, raw_obs [B, O]) -> (mean, std) [B, A]`` of a Gaussian over raw actions."""

Step = Callable[[Any, Array, Array, Normaliser, Array], Prediction]
Imagine = Callable[[Any, Policy, Segment, Normaliser, Array], tuple[Segment, Metrics]]
"""The fields of :class:`WorldModel` of these names."""


class Standing(NamedTuple):
    """Where a roll-out stands."""

    observations: Array  # [B, O] raw
    terminals: Array  # [B] 1 where an earlier step ended the episode
    memory: Any  # the model's own


def begin(context: Segment, memory: Any) -> Standing:
    """Stand at the last observation of a context ``[B, C]``."""
    raw_obs = context.observations[:, -1]
    return Standing(raw_obs, jnp.zeros(raw_obs.shape[0]), memory)


def under(policy: Policy) -> Choose:
    """Choose by a policy of raw observations, whatever the model remembers."""
    return lambda memory, raw_obs: policy(raw_obs)


def roll_out(predict: Predict, start: Standing, choose: Choose, keys: Array) -> tuple[Standing, Segment, Metrics]:
    """Roll out ``keys [H]`` steps, the action drawn at every predicted state: ``(end, Segment [B, H], metrics)``.

    Behind an imagined end terminals stay 1 and rewards are 0. The states there are still predicted: a comparison with
    the simulator goes on past termination (paper, Appendix C.1), and what learns from a segment weighs them with 0.
    The metrics of ``predict`` are averaged over the steps up to each trajectory's end.
    """
    chex.assert_rank(start.observations, 2, custom_message="start.observations")
    batch = start.observations.shape[:1]

    def step(now: Standing, key: Array) -> tuple[Standing, tuple[Segment, Metrics, Array]]:
        action_key, predict_key = jax.random.split(key)
        mean, std = choose(now.memory, now.observations)
        chex.assert_shape([mean, std], (*batch, None), custom_message="mean, std of the policy")
        actions = mean + std * jax.random.normal(action_key, mean.shape)
        memory, following, metrics = predict(now.memory, now.observations, actions, predict_key)
        chex.assert_shape(following.observations, now.observations.shape, custom_message="predicted observations")
        outcome = [following.rewards, following.terminals, *metrics.values()]
        chex.assert_shape(outcome, batch, custom_message="predicted rewards, terminals, metrics")
        # Not times (1 - terminal): 0 times a reward that is not finite is not 0.
        rewards = jnp.where(now.terminals > 0, jnp.zeros_like(following.rewards), following.rewards)
        terminals = jnp.maximum(now.terminals, following.terminals)
        taken = Segment(now.observations, actions, rewards, terminals)
        return Standing(following.observations, terminals, memory), (taken, metrics, 1.0 - now.terminals)

    end, (steps, metrics, alive) = jax.lax.scan(step, start, keys)
    segment = jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1), steps)
    return end, segment, {name: (alive * x).sum() / alive.sum() for name, x in metrics.items()}


def imagine_by(step: Step, horizon: int) -> Imagine:
    """Make the ``imagine`` of a :class:`WorldModel` of its ``step``: a roll-out that remembers nothing.

    An episode ends where that is more likely than not.
    """

    def imagine(
        state: Any, policy: Policy, context: Segment, normaliser: Normaliser, key: Array
    ) -> tuple[Segment, Metrics]:
        def predict(_: None, raw_obs: Array, raw_actions: Array, key: Array) -> tuple[None, Prediction, Metrics]:
            prediction = step(state, raw_obs, raw_actions, normaliser, key)
            return None, prediction._replace(terminals=(prediction.terminals > 0.5).astype(jnp.float32)), {}

        _, segment, metrics = roll_out(predict, begin(context, None), under(policy), jax.random.split(key, horizon))
        return segment, metrics

    return imagine
