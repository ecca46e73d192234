"""Apply a network to a large batch in parts on a CPU.

Between two matrix products a network reads and writes all of its activations several times. Those of the policy at the
paper's size (10,240 states, width 256) take 10 MB, far more than a core's cache, so that this traffic costs more than
the products. The activations of a part stay in the cache. An accelerator needs large batches and gets the whole.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
from jax import lax

from polygrad_jax.types import Array

MIN_ROWS = 768
"""Least rows of a part; with half as many, the products become slower (measured with jax 0.10.2)."""


def number_of_parts(batch: int, rows_each: int) -> int:
    """Return the largest number of equal parts of at least ``MIN_ROWS`` rows; an element has ``rows_each`` rows."""
    return max((n for n in range(1, batch + 1) if batch % n == 0 and batch * rows_each >= n * MIN_ROWS), default=1)


def in_parts(function: Callable[..., Any], rows_each: int, *batches: Array) -> Any:
    """Compute ``function(*batches)``, whose arguments and results all have the batch as their leading axis.

    ``function`` must treat every element of the batch on its own, as all networks here do. In parts or whole, the
    results are the same but for rounding.
    """
    parts = number_of_parts(batches[0].shape[0], rows_each)
    if parts == 1:
        return function(*batches)

    def one_after_another(*batches: Array) -> Any:
        cut = [x.reshape(parts, x.shape[0] // parts, *x.shape[1:]) for x in batches]
        results = lax.map(lambda part: function(*part), cut)
        return jax.tree.map(lambda y: y.reshape(-1, *y.shape[2:]), results)

    def all_at_once(*batches: Array) -> Any:
        return function(*batches)  # a function of its own: jax hashes it, which a Policy with its parameters forbids

    return lax.platform_dependent(*batches, cpu=one_after_another, default=all_at_once)
