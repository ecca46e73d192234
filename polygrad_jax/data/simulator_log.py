"""The simulator's states of the transitions in the replay, kept on the host where they are used."""

from __future__ import annotations

import numpy as np

FIRST_ALLOCATION = 4096


class SimulatorLog:
    """Append-only states by row, of which the last ``capacity`` are kept. Memory grows by doubling up to those."""

    def __init__(self, capacity: int, state_size: int):
        """For ``capacity`` (C, as the replay's) states of ``state_size`` (S) float64 numbers."""
        if capacity < 1:
            raise ValueError(f"capacity is {capacity}; allowed is 1 or more")
        self._capacity = capacity
        self._states = np.empty((min(FIRST_ALLOCATION, capacity), state_size), np.float64)
        self.total = 0
        """States ever added; the next one has this row number."""

    def append(self, states: np.ndarray) -> None:
        """Adds the states ``[T, S]`` of the next T rows.

        Raises:
            ValueError: S is another than at the start.
        """
        if states.ndim != 2 or states.shape[1] != self._states.shape[1]:
            raise ValueError(f"states have shape {states.shape}; allowed is [T, {self._states.shape[1]}]")
        self._grow_for(self.total + len(states))
        kept = states[-self._capacity :]
        rows = np.arange(self.total + len(states) - len(kept), self.total + len(states))
        self._states[rows % self._capacity] = kept
        self.total += len(states)

    def get(self, rows: np.ndarray) -> np.ndarray:
        """The states ``[..., S]`` of rows ``[...]``, as a `Segment` names them.

        Raises:
            IndexError: a row was never added or is no longer kept.
        """
        rows = np.asarray(rows)
        oldest = max(self.total - self._capacity, 0)
        if rows.size and (rows.min() < oldest or rows.max() >= self.total):
            raise IndexError(f"rows {rows.min()} to {rows.max()} asked for; kept are {oldest} to {self.total - 1}")
        return self._states[rows % self._capacity]

    def _grow_for(self, total: int) -> None:
        # Until the first row is overwritten, row numbers are slots, so growing is copying.
        needed, size = min(total, self._capacity), len(self._states)
        if needed <= size:
            return
        while size < needed:
            size *= 2
        grown = np.empty((min(size, self._capacity), self._states.shape[1]), np.float64)
        grown[: len(self._states)] = self._states
        self._states = grown
