"""Search along a line for the actor's learning rate (paper, Appendix A)."""

from __future__ import annotations

from collections.abc import Callable

import flax.struct
import jax.numpy as jnp
from jax import lax

from polygrad_jax.config import A2CConfig
from polygrad_jax.types import Array

SEARCH_TOLERANCE = 0.2
"""Relative tolerance on the target change (paper, Appendix A)."""
SEARCH_RATIO = 0.8
"""Factor between two tries (paper, Appendix A)."""
SEARCH_MAX_RETRIES = 50
"""Retries after which a search keeps its last try (official code)."""


@flax.struct.dataclass
class Search:
    """The result of a search; all scalars."""

    learning_rate: Array  # of the last try, which is kept
    change: Array  # of the policy at that learning rate
    first_change: Array  # of the policy at the first try
    retries: Array  # int32, tries after the first


def search(
    change_at: Callable[[Array], Array],
    first_rate: Array,
    config: A2CConfig,
    target_change: Array | float | None = None,
) -> Search:
    """Multiply or divide the learning rate by SEARCH_RATIO until the policy changes by ``target_change``.

    ``change_at(rate)``, the mean absolute change of the log-probability, has to come within SEARCH_TOLERANCE of the
    target. The search keeps its last try after SEARCH_MAX_RETRIES retries, or where the next rate would exceed
    ``max_actor_lr`` although the change is below the target. A change that is not a number ends the search.
    ``target_change`` replaces the config's, where the target varies during training.
    """
    target = config.target_change if target_change is None else target_change

    def outside(change: Array) -> Array:
        low = target * (1.0 - SEARCH_TOLERANCE)
        high = target * (1.0 + SEARCH_TOLERANCE)
        return (change < low) | (change > high)

    def next_rate(at: Search) -> Array:
        too_far = at.change > target
        return jnp.where(too_far, at.learning_rate * SEARCH_RATIO, at.learning_rate / SEARCH_RATIO)

    def go_on(at: Search) -> Array:
        may = (next_rate(at) <= config.max_actor_lr) & (at.retries < SEARCH_MAX_RETRIES)
        return outside(at.change) & may

    def retry(at: Search) -> Search:
        rate = next_rate(at)
        return at.replace(learning_rate=rate, change=change_at(rate), retries=at.retries + 1)

    first_change = change_at(first_rate)
    start = Search(first_rate, first_change, first_change, jnp.int32(0))
    return lax.while_loop(go_on, retry, start) if config.search else start
