"""Dreamer-v3's actor (arXiv 2301.04104v1): features of a latent state in, raw actions out. The critic is a SiluHead."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from polygrad_jax.networks.silu_mlp import SiluMLP, linear
from polygrad_jax.types import Array


class LatentActor(nn.Module):
    """A Gaussian over raw actions: mean = tanh, std = sigmoid scaled to its bounds (published code, ``normal``)."""

    action_size: int
    layers: int = 2
    units: int = 512
    min_std: float = 0.1
    max_std: float = 1.0
    precision: str = "float32"

    @nn.compact
    def __call__(self, read: Array) -> tuple[Array, Array]:
        """Map ``features [..., F] -> (mean [..., A], std [..., A])``."""
        x = SiluMLP(self.layers, self.units, self.precision, name="hidden")(read)
        mean = jnp.tanh(linear(self.action_size, self.precision, name="mean")(x))
        share = jax.nn.sigmoid(linear(self.action_size, self.precision, name="std")(x) + 2.0)
        return mean, self.min_std + (self.max_std - self.min_std) * share
