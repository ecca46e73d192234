"""The arrays that travel between the rooms of this package, with the legend of their axes.

Letters used in every docstring: ``B`` batch, ``H`` states per trajectory (so ``H - 1`` transitions),
``O`` observation size, ``A`` action size, ``N`` steps of the noise schedule, ``K`` steps sampled,
``C`` states of context. *Raw* means simulator units, *normalised* means standardised by the
statistics of the replay; a normalised array is called so (``normed_obs``).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.struct
import jax

Array = jax.Array
Params = Any
"""A pytree of network parameters."""

Metrics = dict[str, Array]
"""Scalars by the name under which they are logged (and PolyGRAD's histogram, which the loop knows)."""

PolicyApply = Callable[[Params, Array], tuple[Array, Array]]
"""``(params, raw_obs [..., O]) -> (mean [..., A], std [..., A])`` of a Gaussian over raw actions."""


@flax.struct.dataclass
class Segment:
    """Trajectories in raw units: what the replay hands out and what every world model imagines.

    ``actions[:, k]`` is taken in ``observations[:, k]``; ``rewards[:, k]`` and ``terminals[:, k]`` belong
    to that transition. ``terminals`` is 1 where the environment ended the episode (never a time limit)
    and on the padding behind such an end.
    """

    observations: Array  # [B, H, O] raw
    actions: Array  # [B, H, A] raw
    rewards: Array  # [B, H] raw
    terminals: Array  # [B, H] 0 or 1
    rows: Array | None = None  # [B, H] int32: the transition's number since the start of the run
    observed: Array | None = None  # [B, C] bool, of contexts: False for what pads one before its episode's start


@flax.struct.dataclass
class Transitions:
    """A chunk of consecutive transitions on its way from the host to the replay.

    ``valid`` marks the rows that count (a chunk has a fixed length so that nothing is traced twice);
    the valid rows come first.
    """

    observations: Array  # [T, O] raw, before the step
    actions: Array  # [T, A] raw, as sampled (not clipped to the action space)
    rewards: Array  # [T] raw
    terminals: Array  # [T] 0 or 1: the environment ended the episode
    truncations: Array  # [T] 0 or 1: the time limit ended the episode
    valid: Array  # [T] bool


@flax.struct.dataclass
class MeanStd:
    """Mean and standard deviation of one channel group, ``[D]`` each (``D = 1`` for scalars)."""

    mean: Array
    std: Array


@flax.struct.dataclass
class Normaliser:
    """What is needed to move between raw and normalised units; made from the replay's moments."""

    observations: MeanStd  # [O]
    actions: MeanStd  # [A]
    rewards: MeanStd  # [1]
    terminals: MeanStd  # [1]


def _the_updated(updated: Any, imagined: Any) -> Any:
    del imagined
    return updated


class WorldModel(NamedTuple):
    """The three pure functions that everything which imagines has (see ``world_models/``), and what they are fed.

    ``init(key) -> state``
    ``update(state, segment, normaliser, key) -> (state, metrics)``: one gradient step.
    ``imagine(state, policy_apply, policy_params, context, normaliser, key, horizon)
    -> (state, Segment [B, horizon], metrics)``, where ``context`` is a ``Segment [B, C]`` of the last C
    observed steps and the first imagined observation is its last. The action and what follows from it are those that
    were really taken in all but the last; steps before the episode's start repeat its first state, with
    ``observed`` False (None: all are observed).

    Attributes:
      window: states per training segment; None for ``config.horizon``.
      batch_size: training segments per gradient step; None for ``config.denoiser.batch_size``.
      context_length: C, the observed states that ``imagine`` wants.
      history: observed steps before a training segment's first that ``update`` wants in front of it.
      merge: ``merge(updated, imagined) -> state``, of an update and an imagination that began from one state. By
        default the former: imagining changes nothing.
    """

    init: Callable[..., Any]
    update: Callable[..., tuple[Any, Metrics]]
    imagine: Callable[..., tuple[Any, Segment, Metrics]]
    window: int | None = None
    batch_size: int | None = None
    context_length: int = 1
    history: int = 0
    merge: Callable[[Any, Any], Any] = _the_updated
