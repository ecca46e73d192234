"""Layer normalisation over the last axis, with float32 statistics."""

from __future__ import annotations

import flax.linen as nn
import jax.numpy as jnp
from jax import lax

from polygrad_jax.types import Array


class LayerNorm(nn.Module):
    """``x [..., D] -> (x - mean) / sqrt(variance + eps) * scale + bias``; eps 1e-5 is PyTorch's default."""

    eps: float = 1e-5

    @nn.compact
    def __call__(self, x: Array) -> Array:
        leading = tuple(range(x.ndim - 1))
        scale = self.param("scale", nn.initializers.ones_init(), (x.shape[-1],))
        bias = self.param("bias", nn.initializers.zeros_init(), (x.shape[-1],))
        # Both moments in one pass over the data; their difference loses digits only where |mean| >> deviation.
        mean = jnp.mean(x, axis=-1, keepdims=True)
        variance = jnp.maximum(jnp.mean(x * x, axis=-1, keepdims=True) - mean * mean, 0.0)
        normed = (x - mean) * lax.rsqrt(variance + self.eps)
        return normed * jnp.expand_dims(scale, leading) + jnp.expand_dims(bias, leading)
