"""Split the transitions of an update into shuffled minibatches, several times over."""

from __future__ import annotations

import jax

from polygrad_jax.types import Array


def shuffled_minibatches(key: Array, transitions: int, epochs: int, minibatches: int) -> Array:
    """Draw rows ``[epochs * minibatches, transitions / minibatches]``; every epoch has every transition once."""
    shuffle = jax.vmap(lambda epoch_key: jax.random.permutation(epoch_key, transitions))
    return shuffle(jax.random.split(key, epochs)).reshape(epochs * minibatches, transitions // minibatches)
