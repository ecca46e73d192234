"""Keep the simulator's states of the transitions in the replay, on the host."""

from __future__ import annotations

import numpy as np

FIRST_ALLOCATION = 4096


class SimulatorLog:
    """Append-only states by row; keeps the last ``capacity``, in memory that doubles up to that size."""

    def __init__(self, capacity: int, state_size: int):
        """Make a log of ``capacity`` (C, the replay's) states of ``state_size`` (S) float64 numbers."""
        if capacity < 1:
            raise ValueError(f"capacity is {capacity}; allowed is 1 or more")
        self._capacity = capacity
        self._states = np.empty((min(FIRST_ALLOCATION, capacity), state_size), np.float64)
        self.total = 0
        """Number of states ever added, which is the row number of the next."""

    def append(self, states: np.ndarray) -> None:
        """Add the states ``[T, S]`` of the next T rows.

        Raises:
            ValueError: the states have another S.
        """
        if states.ndim != 2 or states.shape[1] != self._states.shape[1]:
            raise ValueError(f"states have shape {states.shape}; allowed is [T, {self._states.shape[1]}]")
        self._grow_for(self.total + len(states))
        kept = states[-self._capacity :]
        rows = np.arange(self.total + len(states) - len(kept), self.total + len(states))
        self._states[rows % self._capacity] = kept
        self.total += len(states)

    def get(self, rows: np.ndarray) -> np.ndarray:
        """Return the states ``[..., S]`` of rows ``[...]``, numbered as in a `Segment`.

        Raises:
            IndexError: a row was never added or is no longer kept.
        """
        rows = np.asarray(rows)
        oldest = max(self.total - self._capacity, 0)
        if rows.size and (rows.min() < oldest or rows.max() >= self.total):
            raise IndexError(f"rows {rows.min()} to {rows.max()} asked for; kept are {oldest} to {self.total - 1}")
        return self._states[rows % self._capacity]

    def _grow_for(self, total: int) -> None:
        # Until the first row is overwritten row numbers are slots, so growing only copies.
        needed, size = min(total, self._capacity), len(self._states)
        if needed <= size:
            return
        while size < needed:
            size *= 2
        grown = np.empty((min(size, self._capacity), self._states.shape[1]), np.float64)
        grown[: len(self._states)] = self._states
        self._states = grown
