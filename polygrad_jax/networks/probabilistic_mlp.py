"""One member of the probabilistic ensemble: a Gaussian over the change of one step (PETS, Chua et al. 2018; MBPO,
Janner et al. 2019)."""

from __future__ import annotations

from typing import NamedTuple

import flax.linen as nn
import jax.numpy as jnp

from polygrad_jax.networks.dense import Dense, Initializer
from polygrad_jax.types import Array

INITIAL_MAX_LOG_VAR = 0.5
INITIAL_MIN_LOG_VAR = -10.0


class GaussianPrediction(NamedTuple):
    """Prediction of one step: a diagonal Gaussian over D channels, and whether the episode ends."""

    mean: Array  # [..., D]
    log_var: Array  # [..., D]
    terminal_logit: Array  # [...] log-odds


def bounded(log_var: Array, low: Array, high: Array) -> Array:
    """Bound ``log_var [..., D]`` to ``[low, high]`` (``[D]`` each) by two softplus (PETS, Appendix A.1).

    The upper bound is exact where ``high - low`` is large against 1: the second softplus adds a little everywhere.
    """
    low, high = (jnp.expand_dims(x, tuple(range(log_var.ndim - 1))) for x in (low, high))
    log_var = high - nn.softplus(high - log_var)
    return low + nn.softplus(log_var - low)


def truncated_normal_by_fan_in(fan_in: int) -> Initializer:
    """Make MBPO's initialiser: std 1 / (2 sqrt(fan_in)), truncated at two stds."""
    return nn.initializers.truncated_normal(0.5 * fan_in**-0.5)


class ProbabilisticMLP(nn.Module):
    """Maps ``x [..., in]`` to a :class:`GaussianPrediction` of D = ``features`` channels.

    Consists of ``hidden_layers`` Linear and swish, one Linear for mean and log-variance, one for the terminal. The
    bounds of the log-variance are parameters: ``max_log_var [D]``, ``min_log_var [D]``.
    """

    features: int
    hidden_size: int = 200
    hidden_layers: int = 4
    precision: str = "float32"

    @nn.compact
    def __call__(self, x: Array) -> GaussianPrediction:
        for i in range(self.hidden_layers):
            x = nn.swish(self._dense(self.hidden_size, x, f"hidden_{i}"))
        mean, log_var = jnp.split(self._dense(2 * self.features, x, "output"), 2, axis=-1)
        high = self.param("max_log_var", nn.initializers.constant(INITIAL_MAX_LOG_VAR), (self.features,))
        low = self.param("min_log_var", nn.initializers.constant(INITIAL_MIN_LOG_VAR), (self.features,))
        return GaussianPrediction(mean, bounded(log_var, low, high), self._dense(1, x, "terminal")[..., 0])

    def _dense(self, features: int, x: Array, name: str) -> Array:
        kernel_init = truncated_normal_by_fan_in(x.shape[-1])
        return Dense(features, self.precision, kernel_init, nn.initializers.zeros, name=name)(x)
