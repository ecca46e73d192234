from dataclasses import replace

import jax
import jax.numpy as jnp

from polygrad_jax import Segment, WorldModel, preset, train
from polygrad_jax.world_models.model_table import WORLD_MODELS


def nothing_moves(config, spec):  # predicts the last state for ever, and learns the mean reward
    def update(reward, segment, normaliser, key):
        return reward + 0.01 * (segment.rewards.mean() - reward), {}

    def imagine(reward, policy, context, normaliser, key):
        obs = jnp.repeat(context.observations[:, -1:], config.horizon, axis=1)
        mean, std = policy(obs)
        actions = mean + std * jax.random.normal(key, mean.shape)
        return Segment(obs, actions, jnp.full(obs.shape[:2], reward), jnp.zeros(obs.shape[:2])), {}

    return WorldModel(lambda key: jnp.zeros(()), update, imagine)


WORLD_MODELS["nothing_moves"] = nothing_moves
train(replace(preset("smoke", "hopper"), world_model="nothing_moves"), "runs/nothing-moves")
