"""Keep statistics of all stored transitions, and convert between raw and normalised units.

Statistics are merged by Chan's formula (Chan, Golub and LeVeque 1979, "Updating formulae and a pairwise algorithm for
computing sample variances"); Welford's update is the case of one row. Mean and sum of squares are unevaluated pairs of
float32, so that a million rows lose no digits.
"""

from __future__ import annotations

from typing import NamedTuple

import flax.struct
import jax
import jax.numpy as jnp

from polygrad_jax.config import EnvSpec, Execution
from polygrad_jax.types import Array, MeanStd, Normaliser


class StdFloor(NamedTuple):
    """Least standard deviation of a channel: so much, raw units, and so much of its root mean square."""

    absolute: float
    relative: float


IN_ANY_UNIT = StdFloor(absolute=1e-12, relative=2.0**-20)
"""Of observations and rewards: eight times the resolution of float32, so that what rounding leaves of a constant stays
small, and an offset or a scale changes nothing. The absolute part only keeps the division of zeros by zero defined."""
IN_KNOWN_UNITS = StdFloor(absolute=1e-6, relative=1e-2)
"""Of actions, which span [-1, 1], and terminals, which are 0 or 1. Actions that were always the same, as recorded ones
may be, do not make another action enormous."""

MOST_STDS = 100.0
"""Normalised observations of a policy and its critics are clipped to this (see :func:`normalise_for_policy`)."""


@flax.struct.dataclass
class Moments:
    """Count, mean and sum of squared deviations of a channel group of D channels, raw units.

    The true mean is ``mean + mean_low`` and the true sum ``m2 + m2_low``: the low parts hold the digits that one
    float32 cannot. The count is an integer, because a float32 stops counting at 2**24.
    """

    count: Array  # [] int32, rows seen (up to 2**31 - 1)
    mean: Array  # [D] float32
    m2: Array  # [D] float32
    mean_low: Array  # [D] float32
    m2_low: Array  # [D] float32


@flax.struct.dataclass
class RunningMoments:
    """The moments of every channel group of the replay."""

    observations: Moments  # D = O
    actions: Moments  # D = A
    rewards: Moments  # D = 1
    terminals: Moments  # D = 1


def init(spec: EnvSpec) -> RunningMoments:
    """Make the moments of no rows, for observations ``[O]``, actions ``[A]``, rewards and terminals ``[1]``."""
    return RunningMoments(
        observations=_empty(spec.observation_size),
        actions=_empty(spec.action_size),
        rewards=_empty(1),
        terminals=_empty(1),
    )


def merge(a: RunningMoments, b: RunningMoments) -> RunningMoments:
    """Return the moments of the rows of ``a`` and ``b`` together (Chan et al. 1979); either may be empty."""
    return RunningMoments(
        observations=merge_moments(a.observations, b.observations),
        actions=merge_moments(a.actions, b.actions),
        rewards=merge_moments(a.rewards, b.rewards),
        terminals=merge_moments(a.terminals, b.terminals),
    )


def add_transition(
    moments: RunningMoments, observation: Array, action: Array, reward: Array, terminal: Array
) -> RunningMoments:
    """Add one transition (Welford 1962): observation ``[O]``, action ``[A]``, reward ``[]``, terminal ``[]``, raw."""
    return RunningMoments(
        observations=add_row(moments.observations, observation),
        actions=add_row(moments.actions, action),
        rewards=add_row(moments.rewards, reward[None]),
        terminals=add_row(moments.terminals, terminal[None]),
    )


def merge_moments(a: Moments, b: Moments) -> Moments:
    """Merge one channel group ``[D]`` by Chan's formula."""
    count = a.count + b.count
    weight_b = _as_float(b.count) / _as_float(jnp.maximum(count, 1))
    delta = (b.mean - a.mean) + (b.mean_low - a.mean_low)
    mean, mean_low = _add_to_pair(a.mean, a.mean_low, delta * weight_b)
    m2, m2_low = _add_to_pair(a.m2, a.m2_low, jnp.square(delta) * (_as_float(a.count) * weight_b))
    m2, m2_low = _add_to_pair(m2, m2_low, b.m2)
    m2, m2_low = _add_to_pair(m2, m2_low, b.m2_low)
    return Moments(count=count, mean=mean, m2=m2, mean_low=mean_low, m2_low=m2_low)


def add_row(moments: Moments, row: Array) -> Moments:
    """Add one row ``[D]``, raw units."""
    row = row.astype(jnp.float32)
    zero = jnp.zeros_like(row)
    one_row = Moments(count=jnp.ones((), jnp.int32), mean=row, m2=zero, mean_low=zero, m2_low=zero)
    return merge_moments(moments, one_row)


def to_normaliser(moments: RunningMoments) -> Normaliser:
    """Return mean and population std of every channel group; the identity where there are no rows yet."""
    return Normaliser(
        observations=_mean_std(moments.observations, IN_ANY_UNIT),
        actions=_mean_std(moments.actions, IN_KNOWN_UNITS),
        rewards=_mean_std(moments.rewards, IN_ANY_UNIT),
        terminals=_mean_std(moments.terminals, IN_KNOWN_UNITS),
    )


def floored_in_version_2(moments: RunningMoments) -> list[str]:
    """Name the channels of observations and rewards that vary, and were divided by more than their std.

    Before format version 3 of checkpoints everything had the floor IN_KNOWN_UNITS.
    """
    found = []
    for name in ("observations", "rewards"):
        channels = getattr(moments, name)
        std, before = _mean_std(channels, IN_ANY_UNIT).std, _mean_std(channels, IN_KNOWN_UNITS).std
        constant = std > jnp.sqrt(channels.m2 / _as_float(jnp.maximum(channels.count, 1)))
        found += [f"{name}[{k}]" for k in jnp.flatnonzero((before > std) & ~constant).tolist()]
    return found


def normalise(x: Array, statistics: MeanStd) -> Array:
    """Normalise raw ``[..., D]``. Scalars per step need a channel axis: ``rewards[..., None]``.

    Raises:
        ValueError: the last axis of ``x`` is not D.
    """
    mean, std = _broadcastable(x, statistics)
    return (x - mean) / std


def normalise_for_policy(raw_obs: Array, statistics: MeanStd) -> Array:
    """Normalise ``[..., O]`` within MOST_STDS: a channel that has never moved may move where the policy acts."""
    return jnp.clip(normalise(raw_obs, statistics), -MOST_STDS, MOST_STDS)


def unnormalise(x: Array, statistics: MeanStd) -> Array:
    """Convert normalised ``[..., D]`` to raw ``[..., D]``: the inverse of `normalise`.

    Raises:
        ValueError: the last axis of ``x`` is not D.
    """
    mean, std = _broadcastable(x, statistics)
    return x * std + mean


def executed(raw_actions: Array, how: Execution) -> Array:
    """Return actions as the environment executes them, in [-1, 1] (``envs/tasks.py`` does the same on the host)."""
    return jnp.tanh(raw_actions) if how == "squashed" else jnp.clip(raw_actions, -1.0, 1.0)


def _empty(size: int) -> Moments:
    # Four arrays, not one array four times: a donated state may not hold a buffer twice.
    mean, m2, mean_low, m2_low = (jnp.zeros(size, jnp.float32) for _ in range(4))
    return Moments(count=jnp.zeros((), jnp.int32), mean=mean, m2=m2, mean_low=mean_low, m2_low=m2_low)


def _as_float(count: Array) -> Array:
    return count.astype(jnp.float32)


def _add_to_pair(high: Array, low: Array, increment: Array) -> tuple[Array, Array]:
    """Add ``increment`` to the pair ``(high, low)``; the rounding error is Knuth's two-sum, in any order of size."""
    addend = increment + low
    total = high + addend
    addend_seen = total - high
    error = (high - (total - addend_seen)) + (addend - addend_seen)
    return total, error


def _mean_std(moments: Moments, floor: StdFloor) -> MeanStd:
    variance = moments.m2 / _as_float(jnp.maximum(moments.count, 1))
    root_mean_square = jnp.sqrt(variance + jnp.square(moments.mean))
    # DEVIATION from the official code, which divides by std + 1e-6: a channel in units so small that 1e-6 is much would
    # vanish, and what rounding leaves of a large constant would become as loud as a signal.
    std = jnp.maximum(jnp.sqrt(variance), floor.absolute + floor.relative * root_mean_square)
    return MeanStd(mean=moments.mean, std=jnp.where(moments.count > 0, std, jnp.ones_like(std)))


def _broadcastable(x: Array, statistics: MeanStd) -> tuple[Array, Array]:
    size = statistics.mean.shape[-1]
    if x.ndim == 0 or x.shape[-1] != size:
        raise ValueError(f"statistics of {size} channels on an array of shape {x.shape}: the last axis must be {size}")
    shape = (1,) * (x.ndim - 1) + (size,)
    return jax.lax.reshape(statistics.mean, shape), jax.lax.reshape(statistics.std, shape)
