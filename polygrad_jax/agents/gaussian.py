"""Densities of the diagonal Gaussian of a policy."""

from __future__ import annotations

import math

import jax.numpy as jnp

from polygrad_jax.types import Array

_LOG_2_PI = math.log(2.0 * math.pi)


def log_prob(mean: Array, std: Array, x: Array) -> Array:
    """Return the joint log-density of ``x [..., A]`` under ``mean, std [..., A]`` -> ``[...]``."""
    z = (x - mean) / std
    return -jnp.sum(0.5 * (z * z + _LOG_2_PI) + jnp.log(std), axis=-1)


def entropy(std: Array) -> Array:
    """Return the differential entropy, in nats: ``[..., A] -> [...]``."""
    return jnp.sum(jnp.log(std) + 0.5 * (1.0 + _LOG_2_PI), axis=-1)
