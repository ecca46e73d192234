"""Keep the transitions of a run on disk in append-only shards, from which a resumed run rebuilds its replay.

A shard ``transitions_<first row>_<row behind the last>.npz`` is written under another name and then renamed, so that a
killed run leaves complete shards only.
"""

from __future__ import annotations

import os
import re
import shutil
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from pathlib import Path

import numpy as np

from polygrad_jax.data.plain_arrays import NoPlainArrays, read_npz

_PREFIX, _SUFFIX, _UNFINISHED = "transitions_", ".npz", ".tmp"
_NAME = re.compile(rf"{_PREFIX}([0-9]{{1,18}})_([0-9]{{1,18}}){re.escape(_SUFFIX)}")


class TransitionLogError(RuntimeError):
    """Stored transitions cannot be read; the message names the file and the remedy."""


@dataclass(frozen=True)
class TransitionRecord:
    """T consecutive transitions on the host."""

    observations: np.ndarray  # [T, O] float32 raw
    actions: np.ndarray  # [T, A] float32 raw, as sampled
    rewards: np.ndarray  # [T] float32 raw
    terminals: np.ndarray  # [T] bool
    truncations: np.ndarray  # [T] bool
    simulator_states: np.ndarray  # [T, S] float64; S = 0 without MuJoCo

    def __len__(self) -> int:
        return len(self.rewards)

    def __getitem__(self, rows: slice) -> TransitionRecord:
        return TransitionRecord(**{field.name: getattr(self, field.name)[rows] for field in fields(self)})


_STORED = {
    "observations": (np.dtype(np.float32), 2),
    "actions": (np.dtype(np.float32), 2),
    "rewards": (np.dtype(np.float32), 1),
    "terminals": (np.dtype(bool), 1),
    "truncations": (np.dtype(bool), 1),
    "simulator_states": (np.dtype(np.float64), 2),
}
"""Types and numbers of axes in a shard."""


LEARNT_FROM = ("observations", "actions", "rewards", "terminals", "truncations")


def checksum_of(record: TransitionRecord, before: list[int] | None = None) -> list[int]:
    """Return a CRC-32 for each array that is learnt from, going on from those of the rows ``before``."""
    begun = zip(LEARNT_FROM, before or [0] * len(LEARNT_FROM), strict=True)
    flat = {name: np.ascontiguousarray(getattr(record, name)).reshape(-1).view(np.uint8) for name in LEARNT_FROM}
    return [zlib.crc32(flat[name], crc) for name, crc in begun]


class TransitionLog:
    """Keeps the transitions that the replay received and appends them to a folder on request."""

    def __init__(self, folder: str | os.PathLike[str], read_only: bool = False):
        """Open the folder, creating it if needed, and remove unfinished shards of a killed run.

        With ``read_only`` nothing on disk changes, so that the log of a running process can be read: its unfinished
        shard stays.

        Raises:
            TransitionLogError: a shard is missing between others.
        """
        self._folder = Path(folder)
        if not read_only:
            self._folder.mkdir(parents=True, exist_ok=True)
            for leftover in self._folder.glob(f"*{_UNFINISHED}"):
                shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()
        shards = self._shards()
        self.flushed_rows = shards[-1][1] if shards else 0
        """Number of rows on disk."""
        self.checksum = None if shards else [0] * len(LEARNT_FROM)
        """Of the rows on disk, see :func:`checksum_of`; None where they were not read yet."""
        self._waiting: list[TransitionRecord] = []

    @property
    def total_rows(self) -> int:
        """Number of rows on disk and waiting."""
        return self.flushed_rows + sum(len(record) for record in self._waiting)

    def append(
        self,
        observations: np.ndarray,
        actions: np.ndarray,
        rewards: np.ndarray,
        terminals: np.ndarray,
        truncations: np.ndarray,
        simulator_states: np.ndarray | None = None,
    ) -> None:
        """Add the next T transitions, raw, to those waiting; see `TransitionRecord` for shapes. Writes nothing.

        Raises:
            ValueError: the arrays differ in T, or an array has the wrong number of axes.
        """
        count = len(rewards)
        if simulator_states is None:
            simulator_states = np.empty((count, 0))
        # np.array copies: the caller may fill the same buffers again.
        record = TransitionRecord(
            observations=np.array(observations, np.float32),
            actions=np.array(actions, np.float32),
            rewards=np.array(rewards, np.float32),
            terminals=np.array(terminals, bool),
            truncations=np.array(truncations, bool),
            simulator_states=np.array(simulator_states, np.float64),
        )
        for name, axes in (("observations", 2), ("actions", 2), ("rewards", 1), ("terminals", 1), ("truncations", 1)):
            _check_shape(name, getattr(record, name), count, axes)
        _check_shape("simulator_states", record.simulator_states, count, 2)
        self._waiting.append(record)

    def flush(self, upto_row: int | None = None) -> None:
        """Write the waiting rows before ``upto_row`` (all if None) as one shard; the others go on waiting.

        Raises:
            ValueError: the log has fewer rows.
        """
        upto_row = self.total_rows if upto_row is None else upto_row
        if upto_row > self.total_rows:
            raise ValueError(f"flush up to row {upto_row}; there are {self.total_rows}")
        if upto_row <= self.flushed_rows:
            return
        waiting, count = _join(self._waiting), upto_row - self.flushed_rows
        self._write(self.flushed_rows, waiting[:count])
        if self.checksum is not None:
            self.checksum = checksum_of(waiting[:count], self.checksum)
        self.flushed_rows = upto_row
        self._waiting = [waiting[count:]] if len(waiting) > count else []

    def load(self, upto_row: int) -> TransitionRecord:
        """Read the rows 0 to ``upto_row`` (exclusive) from disk.

        Raises:
            TransitionLogError: a shard is damaged, or the disk has fewer rows.
        """
        if self.flushed_rows == 0:
            raise TransitionLogError(f"{self._folder} holds no transitions")
        if upto_row < 1 or upto_row > self.flushed_rows:
            raise TransitionLogError(f"{self._folder} holds rows 0 to {self.flushed_rows}; {upto_row} were asked for")
        return _join([record for _, record in self._read_until(upto_row)])

    def truncate(self, row: int) -> None:
        """Drop ``row`` and all later rows, on disk and waiting, for a run that resumes from that row.

        Shards of later rows alone are removed unread, so that damage in them does not matter.

        Raises:
            TransitionLogError: the shard that holds ``row`` is damaged, or the disk has fewer rows.
        """
        if row > self.flushed_rows:
            raise TransitionLogError(f"{self._folder} holds rows 0 to {self.flushed_rows}; cannot keep {row}")
        self._waiting = []
        if row != self.flushed_rows:
            self.checksum = None if row else [0] * len(LEARNT_FROM)
        # Newest first, so that a kill in between leaves no gap.
        for first, end, path in reversed(self._shards()):
            if first >= row:
                path.unlink()
            elif end > row:
                self._write(first, _read(path, end - first)[: row - first])
                path.unlink()
        self.flushed_rows = row

    def _read_until(self, upto_row: int) -> Iterator[tuple[int, TransitionRecord]]:
        for first, end, path in self._shards():
            if first < upto_row:
                yield first, _read(path, end - first)[: upto_row - first]

    def _shards(self) -> list[tuple[int, int, Path]]:
        """Return first row, row behind the last, and path of every shard, in order and without a gap."""
        shards = []
        for path in self._folder.glob(f"{_PREFIX}*{_SUFFIX}"):
            name = _NAME.fullmatch(path.name)
            if name is None or int(name[1]) >= int(name[2]):
                raise TransitionLogError(f"{path} is no shard (transitions_FIRST_END.npz); remove it")
            shards.append((int(name[1]), int(name[2]), path))
        # A killed truncation leaves a short and a long shard of the same first row: the long one counts.
        longest = {first: (first, end, path) for first, end, path in sorted(shards)}
        expected, ordered = 0, []
        for first in sorted(longest):
            if first < expected:
                continue
            if first > expected:
                raise TransitionLogError(f"{self._folder} lacks rows {expected} to {first}; restore the missing shard")
            ordered.append(longest[first])
            expected = longest[first][1]
        return ordered

    def _write(self, first: int, record: TransitionRecord) -> None:
        path = self._folder / f"{_PREFIX}{first:012d}_{first + len(record):012d}{_SUFFIX}"
        unfinished = path.with_name(path.name + _UNFINISHED)
        try:
            with open(unfinished, "wb") as file:
                np.savez(file, **{field.name: getattr(record, field.name) for field in fields(record)})
                file.flush()
                os.fsync(file.fileno())
            os.replace(unfinished, path)
        except BaseException:  # frees the room on a full disk
            unfinished.unlink(missing_ok=True)
            raise


def _check_shape(name: str, array: np.ndarray, count: int, axes: int) -> None:
    if array.ndim != axes or len(array) != count:
        raise ValueError(f"{name} has shape {array.shape}; allowed are {axes} axes, the first of length {count}")


def _join(records: list[TransitionRecord]) -> TransitionRecord:
    """Put records behind one another, without simulator states unless all have states of one size.

    A run may have been resumed where its task has others, or none.
    """
    sizes = {(record.observations.shape[1], record.actions.shape[1]) for record in records}
    if len(sizes) > 1:
        raise TransitionLogError(f"stored transitions have several sizes (O, A): {sorted(sizes)}; restore the shards")
    if len({record.simulator_states.shape[1] for record in records}) > 1:
        records = [replace(record, simulator_states=np.empty((len(record), 0))) for record in records]
    names = [field.name for field in fields(TransitionRecord)]
    return TransitionRecord(**{name: np.concatenate([getattr(record, name) for record in records]) for name in names})


def _read(path: Path, rows: int) -> TransitionRecord:
    try:
        arrays = read_npz(path, list(_STORED))
        for name, (dtype, axes) in _STORED.items():
            if arrays[name].dtype != dtype or arrays[name].ndim != axes:
                has = f"{arrays[name].dtype} with {arrays[name].ndim} axes"
                raise NoPlainArrays(f"{name} are {has} in place of {dtype} with {axes}")
            if len(arrays[name]) != rows:
                raise NoPlainArrays(f"it has {len(arrays[name])} rows of {name}; its name says {rows}")
    except NoPlainArrays as error:
        remedy = "resume from an earlier checkpoint, or restore the file"
        raise TransitionLogError(f"{path} is damaged ({error}); {remedy}") from error
    return TransitionRecord(**arrays)
