"""Symlog, and scalars as two-hot vectors over symlog-spaced bins (Hafner et al. 2023, arXiv 2301.04104v1).

Dreamer-v3 squashes large numbers in place of normalising by statistics of the data.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from polygrad_jax.types import Array

BINS = 255
"""Bins of every two-hot scalar (published)."""
LARGEST = 20.0
"""Largest symlog value of a bin, raw 4.9e8; the least is minus this."""


def symlog(x: Array) -> Array:
    """Compute ``sign(x) log(|x| + 1)``: the identity around 0, a logarithm far from it."""
    return jnp.sign(x) * jnp.log1p(jnp.abs(x))


def symexp(x: Array) -> Array:
    """Compute ``sign(x) (exp(|x|) - 1)``, the inverse of :func:`symlog`."""
    return jnp.sign(x) * jnp.expm1(jnp.abs(x))


def bin_centres(bins: int) -> Array:
    """Return ``[bins]`` symlog values at equal distances; an odd number of bins has one at 0."""
    return jnp.linspace(-LARGEST, LARGEST, bins, dtype=jnp.float32)


def two_hot(values: Array, bins: int) -> Array:
    """Encode raw ``values [...] -> [..., bins]``: all weight lies on the two bins around symlog(value).

    The weighted mean of the two is symlog(value). Values beyond the outermost bins are clipped to those.
    """
    place = (jnp.clip(symlog(values), -LARGEST, LARGEST) + LARGEST) * ((bins - 1) / (2.0 * LARGEST))
    indices = jnp.expand_dims(jnp.arange(bins, dtype=jnp.float32), tuple(range(values.ndim)))
    return jnp.maximum(1.0 - jnp.abs(place[..., None] - indices), 0.0)


def two_hot_mean(logits: Array) -> Array:
    """Decode ``[..., bins] -> [...]`` raw: symexp of the bins' mean under the softmax of the logits."""
    centres = jnp.expand_dims(bin_centres(logits.shape[-1]), tuple(range(logits.ndim - 1)))
    return symexp(jnp.sum(jax.nn.softmax(logits) * centres, axis=-1))
