"""Imagining one step after the other: what every model that predicts single steps does with its predictions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from polygrad_jax.data.normaliser import executed
from polygrad_jax.types import Array, Params, PolicyApply, Segment


class Prediction(NamedTuple):
    """What follows from actions in states."""

    observations: Array  # [B, O] raw, of the next states
    rewards: Array  # [B] raw
    ends: Array  # [B] bool: the environment would end the episode here


Predict = Callable[[Any, Array, Array, Array], tuple[Any, Prediction]]
"""``(memory, raw_obs [B, O], executed raw actions [B, A], key) -> (memory, Prediction)``."""


class Standing(NamedTuple):
    """Where a roll-out has come to."""

    observations: Array  # [B, O] raw
    ended: Array  # [B] bool: an earlier step ended the episode
    memory: Any  # the model's own


def begin(context: Segment, memory: Any) -> Standing:
    """At the last observation of a context ``[B, C]``."""
    raw_obs = context.observations[:, -1]
    return Standing(raw_obs, jnp.zeros(raw_obs.shape[0], bool), memory)


def roll_out(
    predict: Predict, start: Standing, policy_apply: PolicyApply, policy_params: Params, keys: Array
) -> tuple[Standing, Segment]:
    """``keys [H]`` steps under the policy, whose action is drawn at every state that was predicted: ``Segment [B, H]``.

    Behind an imagined end terminals stay 1 and rewards are 0. The states there are still predicted: a comparison with
    the simulator goes on past termination (paper, Appendix C.1), and what learns from a segment weighs them with 0.
    """

    def step(now: Standing, key: Array) -> tuple[Standing, Segment]:
        action_key, predict_key = jax.random.split(key)
        mean, std = policy_apply(policy_params, now.observations)
        actions = mean + std * jax.random.normal(action_key, mean.shape)
        memory, following = predict(now.memory, now.observations, executed(actions), predict_key)
        ended = now.ended | following.ends
        rewards = jnp.where(now.ended, jnp.float32(0.0), following.rewards)
        taken = Segment(now.observations, actions, rewards, ended.astype(jnp.float32))
        return Standing(following.observations, ended, memory), taken

    end, steps = jax.lax.scan(step, start, keys)
    return end, jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1), steps)
