"""Which steps of a segment were taken, and which only pad it behind its end."""

from __future__ import annotations

import jax.numpy as jnp

from polygrad_jax.types import Array


def happened(terminals: Array) -> Array:
    """Weigh the steps of ``terminals [B, H]``: 1 up to and including the first end, 0 behind it.

    A terminal that is a probability leaves the steps behind it the probability of getting there.
    """
    alive = jnp.cumprod(1.0 - terminals, axis=1)
    return jnp.concatenate([jnp.ones_like(alive[:, :1]), alive[:, :-1]], axis=1)
