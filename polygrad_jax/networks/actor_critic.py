"""Actor and critic (paper, Table 1; Appendix A): raw observations in, raw actions and raw returns out.

Under options of A2C the observations come in standardised, and returns go out in units of their own.
"""

from __future__ import annotations

import math

import flax.linen as nn
import jax.numpy as jnp

from polygrad_jax.networks.dense import Dense
from polygrad_jax.networks.layer_norm import LayerNorm
from polygrad_jax.types import Array


def elu(x: Array) -> Array:
    """Compute ELU; ``exp - 1`` differs from ``expm1`` by at most 6e-8 and takes half the time on a CPU."""
    return jnp.where(x > 0, x, jnp.exp(jnp.minimum(x, 0.0)) - 1.0)


class MLP(nn.Module):
    """``[..., in] -> [..., features]``: hidden layers Linear, LayerNorm (eps 1e-3), ELU; then Linear."""

    features: int
    hidden_size: int = 256
    hidden_layers: int = 2
    precision: str = "float32"

    @nn.compact
    def __call__(self, x: Array) -> Array:
        for i in range(self.hidden_layers):
            x = Dense(self.hidden_size, self.precision, name=f"hidden_{i}")(x)
            x = elu(LayerNorm(eps=1e-3, name=f"norm_{i}")(x))
        return Dense(self.features, self.precision, name="output")(x)


class Actor(nn.Module):
    """A Gaussian over raw actions: mean = tanh(network), std = exp(log_std) + min_std in every state.

    Parameters: ``{"network": {...}, "log_std": [A]}``.
    """

    action_size: int
    hidden_size: int = 256
    initial_std: float = 1.0
    min_std: float = 0.1
    precision: str = "float32"

    @nn.compact
    def __call__(self, raw_obs: Array) -> tuple[Array, Array]:
        """``raw_obs [..., O] -> (mean [..., A], std [..., A])``."""
        initial = nn.initializers.constant(math.log(self.initial_std - self.min_std))
        log_std = self.param("log_std", initial, (self.action_size,))
        mean = jnp.tanh(MLP(self.action_size, self.hidden_size, precision=self.precision, name="network")(raw_obs))
        std = jnp.exp(log_std) + self.min_std
        leading = tuple(range(mean.ndim - 1))
        return mean, jnp.broadcast_to(jnp.expand_dims(std, leading), mean.shape)


class Critic(nn.Module):
    """The value of a raw observation. Parameters: ``{"network": {...}}``."""

    hidden_size: int = 256
    precision: str = "float32"

    @nn.compact
    def __call__(self, raw_obs: Array) -> Array:
        """``raw_obs [..., O] -> value [...]``, in units of raw reward."""
        return MLP(1, self.hidden_size, precision=self.precision, name="network")(raw_obs)[..., 0]
