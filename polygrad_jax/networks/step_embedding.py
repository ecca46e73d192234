"""Embed the diffusion step for a denoiser. Always float32: the embedding is cheap, and a sine needs the digits."""

from __future__ import annotations

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from polygrad_jax.networks.dense import Dense, Initializer
from polygrad_jax.types import Array


class RandomFourierEmbedding(nn.Module):
    """``step [B] -> [B, features]`` of the residual MLP: ``[t, sin(2 pi w t), cos(2 pi w t)]``, Linear, SiLU, Linear.

    ``w`` are fixed normal draws. They are parameters, so that a checkpoint has them, but receive no gradient; an
    optimiser without weight decay therefore does not change them.
    """

    features: int
    num_frequencies: int = 8

    @nn.compact
    def __call__(self, step: Array) -> Array:
        w = lax.stop_gradient(self.param("frequencies", jax.random.normal, (self.num_frequencies,)))
        t = step.astype(jnp.float32)[:, None]
        angle = t * w[None, :] * 2.0 * math.pi
        x = jnp.concatenate([t, jnp.sin(angle), jnp.cos(angle)], axis=-1)
        return Dense(self.features, name="output")(nn.silu(Dense(self.features, name="hidden")(x)))


class SinusoidalEmbedding(nn.Module):
    """``step [B] -> [B, features]`` of the transformer: sines and cosines of t at geometrically spaced
    frequencies from 1 to 1/10000, Linear, SiLU, Linear."""

    features: int
    kernel_init: Initializer
    bias_init: Initializer

    @nn.compact
    def __call__(self, step: Array) -> Array:
        half = self.features // 2
        w = jnp.exp(jnp.arange(half, dtype=jnp.float32) * (-math.log(10_000.0) / (half - 1)))
        angle = step.astype(jnp.float32)[:, None] * w[None, :]
        x = jnp.concatenate([jnp.sin(angle), jnp.cos(angle)], axis=-1)
        inits = {"kernel_init": self.kernel_init, "bias_init": self.bias_init}
        return Dense(self.features, name="output", **inits)(
            nn.silu(Dense(self.features, name="hidden", **inits)(x))
        )
