"""Symlog, and scalars as two-hot vectors over symlog-spaced bins (Hafner et al. 2023, arXiv 2301.04104v1).

What Dreamer-v3 does about units: no statistics of the data are kept, large numbers are squashed instead.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from polygrad_jax.types import Array

BINS = 255
"""Bins of every two-hot scalar (published)."""
LARGEST = 20.0
"""Bins span symlog values from minus this to this, raw values up to 4.9e8."""


def symlog(x: Array) -> Array:
    """``sign(x) log(|x| + 1)``: the identity around 0, a logarithm far from it."""
    return jnp.sign(x) * jnp.log1p(jnp.abs(x))


def symexp(x: Array) -> Array:
    """``sign(x) (exp(|x|) - 1)``, the inverse of :func:`symlog`."""
    return jnp.sign(x) * jnp.expm1(jnp.abs(x))


def bin_centres(bins: int) -> Array:
    """``[bins]`` symlog values at equal distances; their number is odd, so that 0 is one of them."""
    return jnp.linspace(-LARGEST, LARGEST, bins, dtype=jnp.float32)


def two_hot(values: Array, bins: int) -> Array:
    """Raw ``values [...] -> [..., bins]``: all weight on the two bins around symlog(value), the nearer one has more.

    The weighted mean of the two is symlog(value); values beyond the outermost bins count as those.
    """
    place = (jnp.clip(symlog(values), -LARGEST, LARGEST) + LARGEST) * ((bins - 1) / (2.0 * LARGEST))
    indices = jnp.expand_dims(jnp.arange(bins, dtype=jnp.float32), tuple(range(values.ndim)))
    return jnp.maximum(1.0 - jnp.abs(place[..., None] - indices), 0.0)


def two_hot_mean(logits: Array) -> Array:
    """``[..., bins] -> [...]`` raw: symexp of the bins' mean under the softmax of the logits."""
    centres = jnp.expand_dims(bin_centres(logits.shape[-1]), tuple(range(logits.ndim - 1)))
    return symexp(jnp.sum(jax.nn.softmax(logits) * centres, axis=-1))
