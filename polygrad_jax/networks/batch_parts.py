"""Networks on a CPU, asked about a large batch part by part.

Between two matrix products a network reads and writes its whole activations several times. The policy's at the
paper's size (10,240 states, width 256) take 10 MB: far outside a core's cache, so that this traffic costs more than
the products. Part by part they stay inside. An accelerator wants the opposite and gets the batch whole.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
from jax import lax

from polygrad_jax.types import Array

MIN_ROWS = 768
"""Least rows of a part; with half as many, the products themselves become slower (measured with jax 0.10.2)."""


def number_of_parts(batch: int, rows_each: int) -> int:
    """The most equal parts of at least ``MIN_ROWS`` rows, where every element of the batch is ``rows_each`` rows."""
    return max((n for n in range(1, batch + 1) if batch % n == 0 and batch * rows_each >= n * MIN_ROWS), default=1)


def in_parts(function: Callable[..., Any], rows_each: int, *batches: Array) -> Any:
    """``function(*batches)``, whose arguments and results all have the batch as their leading axis.

    ``function`` treats every element of the batch alone, as all networks here do. The results are the same to
    rounding, whichever way they are computed.
    """
    parts = number_of_parts(batches[0].shape[0], rows_each)
    if parts == 1:
        return function(*batches)

    def one_after_another(*batches: Array) -> Any:
        cut = [x.reshape(parts, x.shape[0] // parts, *x.shape[1:]) for x in batches]
        results = lax.map(lambda part: function(*part), cut)
        return jax.tree.map(lambda y: y.reshape(-1, *y.shape[2:]), results)

    return lax.platform_dependent(*batches, cpu=one_after_another, default=function)
