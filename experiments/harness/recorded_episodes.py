"""Recorded transitions as whole episodes: what is held out, and how few of the rest are learnt from."""

from __future__ import annotations

import dataclasses

import numpy as np

from polygrad_jax.config import ConfigError
from polygrad_jax.data.transition_log import TransitionRecord

ALL = 10**9
"""Transitions: as many as there are."""
UNIFORM = ("--model-training.recent-share", "0")
"""Fields of every model that is trained on recorded data: they have no newest windows, whatever a preset draws more
often while it collects."""
HELD_OUT = 0.1
"""Share of the transitions, in whole episodes, from whose states models are measured."""


def episodes_of(record: TransitionRecord) -> list[TransitionRecord]:
    """Return the episodes of a record, in order; what is open at its end counts too."""
    ends = [*(np.flatnonzero(record.terminals | record.truncations) + 1), len(record)]
    return [record[a:b] for a, b in zip([0, *ends[:-1]], ends, strict=True) if b > a]


def joined(parts: list[TransitionRecord]) -> TransitionRecord:
    """Return one record of these episodes; none runs on into the next."""
    closed = []
    for part in parts:
        truncations = part.truncations.copy()
        truncations[-1] = not part.terminals[-1]
        closed.append(dataclasses.replace(part, truncations=truncations))
    columns = [f.name for f in dataclasses.fields(TransitionRecord)]
    return TransitionRecord(**{name: np.concatenate([getattr(p, name) for p in closed]) for name in columns})


def held_out(record: TransitionRecord, share: float = HELD_OUT) -> tuple[TransitionRecord, TransitionRecord]:
    """Return ``(to learn from, to measure from)``: the second as many random episodes as come to the share.

    The episodes are the same in every call.

    Raises:
      ConfigError: nothing would be left to learn from.
    """
    parts = episodes_of(record)
    order = np.random.default_rng(0).permutation(len(parts))
    lengths = np.cumsum([len(parts[i]) for i in order])
    taken = int(np.searchsorted(lengths, share * len(record))) + 1
    if taken >= len(parts):
        raise ConfigError(f"the dataset has {len(parts)} episode(s); allowed: enough to hold {share:.0%} back")
    return joined([parts[i] for i in sorted(order[taken:])]), joined([parts[i] for i in sorted(order[:taken])])


def drawn(record: TransitionRecord, count: int, seed: int) -> TransitionRecord:
    """Return ``count`` transitions: whole episodes in random order, the last one cut; :data:`ALL` for all of them.

    Raises:
      ConfigError: there are fewer, or none is asked for.
    """
    if count == ALL:
        return record
    if not 1 <= count <= len(record):
        raise ConfigError(
            f"--transitions is {count}; allowed: from 1 to {len(record)}, which is what the dataset has besides the "
            "episodes that are held back"
        )
    parts = episodes_of(record)
    chosen, left = [], count
    for i in np.random.default_rng(seed).permutation(len(parts)):
        chosen.append(parts[i][:left])
        left -= len(chosen[-1])
        if left == 0:
            break
    return joined(chosen)
