"""The networks of value gradients: a Gaussian whose std depends on the state, and an ensemble of Q functions.

Both read normalised observations. Hidden layers are Linear and SiLU; from the second layer on, what a layer of Q reads
is standardised over its channels without a learnt scale (DHMBPO, Kubo et al. 2025), so that Q cannot grow without bound
far from the data (Ball et al. 2023).
"""

from __future__ import annotations

import flax.linen as nn
import jax.numpy as jnp
from jax import lax

from polygrad_jax.networks.dense import Dense
from polygrad_jax.types import Array


def standardised(x: Array) -> Array:
    """Shift and scale ``x [..., D]`` to mean 0 and std 1 over its channels."""
    centred = x - jnp.mean(x, axis=-1, keepdims=True)
    return centred * lax.rsqrt(jnp.mean(jnp.square(centred), axis=-1, keepdims=True) + 1e-5)


class StateGaussian(nn.Module):
    """``normed_obs [..., O] -> (location [..., A], std [..., A])``.

    The std is min_std + softplus(network), or goes from min_std to max_std by a sigmoid where there is a max_std.
    """

    action_size: int
    hidden_size: int = 256
    hidden_layers: int = 3
    min_std: float = 1e-5
    max_std: float | None = None
    precision: str = "float32"

    @nn.compact
    def __call__(self, normed_obs: Array) -> tuple[Array, Array]:
        x = normed_obs
        for i in range(self.hidden_layers):
            x = nn.silu(Dense(self.hidden_size, self.precision, name=f"hidden_{i}")(x))
        location, spread = jnp.split(Dense(2 * self.action_size, self.precision, name="output")(x), 2, axis=-1)
        if self.max_std is None:
            return location, nn.softplus(spread) + self.min_std
        return location, self.min_std + (self.max_std - self.min_std) * nn.sigmoid(spread)


class QFunction(nn.Module):
    """``(normed_obs [..., O], executed actions [..., A]) -> value [...]``: 0 everywhere before the first update."""

    hidden_size: int = 256
    hidden_layers: int = 3
    precision: str = "float32"

    @nn.compact
    def __call__(self, normed_obs: Array, actions: Array) -> Array:
        x = jnp.concatenate([normed_obs, actions], axis=-1)
        for i in range(self.hidden_layers):
            x = nn.silu(Dense(self.hidden_size, self.precision, name=f"hidden_{i}")(x if i == 0 else standardised(x)))
        zeros = nn.initializers.zeros
        return Dense(1, self.precision, zeros, zeros, name="output")(standardised(x))[..., 0]
