"""The numbers of a run: ``metrics.jsonl``, ``eval.csv`` and TensorBoard events, all by environment step.

``docs/metrics.md`` has a line for every name. Everything is written at once, in order of environment steps, by the
caller's thread: rows written before a checkpoint are on the disk with it, a full disk is noticed where it happens, and
going back to a checkpoint cuts off the end of each file.

tensorboardX is imported by the first event, so that a run starts without waiting for it.
"""

from __future__ import annotations

import csv
import io
import json
import math
import os
import re
import struct
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from polygrad_jax.config import ConfigError
from polygrad_jax.runs.run_folder import one_line_on_disk_trouble, write_text_atomically
from polygrad_jax.runs.tensorboard_page import opening

if TYPE_CHECKING:
    from tensorboardX.proto.event_pb2 import Event

STEP = "env_steps"
_X_AXIS_TEXTS = {
    STEP: "The x-axis of every chart ('Step') is environment steps, counted from the start of the run and including "
    "the random prefill.",
    "updates": "The x-axis of every chart ('Step') is gradient steps of the world model.",
}
HISTOGRAM_BINS = 30
_EVENTS = re.compile(r"events\.out\.tfevents\.[0-9]{10}\.polygrad")
"""Names of the files that are written here; a folder may hold others."""


class Histogram(NamedTuple):
    """Counts ``[n]`` between edges ``[n + 1]``."""

    edges: np.ndarray
    counts: np.ndarray


def histogram_of(values: Any, bins: int = HISTOGRAM_BINS) -> Histogram:
    """The histogram of the finite ones among the values, in ``bins`` equal bins from the least to the greatest."""
    flat = np.asarray(values, np.float64).reshape(-1)
    counts, edges = np.histogram(flat[np.isfinite(flat)], bins=bins)
    return Histogram(edges, counts)


class MetricsLog:
    """Appends to the three records of a run folder. Steps never go back, except by :meth:`truncate`.

    ``step`` is what is counted: environment steps, or ``updates`` where a world model alone is trained.
    ``hyperparameters`` are shown in TensorBoard, by dotted name.
    """

    def __init__(
        self,
        folder: Path | str,
        say: Callable[[str], None] | None = None,
        step: str = STEP,
        hyperparameters: Mapping[str, Any] | None = None,
    ):
        self.folder = Path(folder)
        self.rows = self.folder / "metrics.jsonl"
        self.evaluations = self.folder / "eval.csv"
        self._say = say or (lambda line: print(line, file=sys.stderr))
        self._named_non_finite: set[str] = set()
        self._events: _EventFile | None = None
        self._latest = -1
        # No parentheses: TensorBoard's custom scalars take what is in them for the run, and draw nothing.
        self._step, self._axis = step, f"[x: {step.replace('_', ' ')}]"
        self._hyperparameters = hyperparameters or {}
        with one_line_on_disk_trouble(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)

    # --- writing -----------------------------------------------------------------------------------------------------

    def write(
        self, env_steps: int, scalars: Mapping[str, Any], histograms: Mapping[str, Histogram | Any] | None = None
    ) -> None:
        """One row of ``metrics.jsonl`` and the same numbers as events.

        Scalars may be Python numbers or arrays of one element. Numbers that are not finite become null in the row,
        and the first of each name is said. Histograms are given as such or as the values to be counted.
        """
        self._forward(env_steps)
        numbers = {name: float(np.asarray(value).item()) for name, value in scalars.items()}
        counted = {n: h if isinstance(h, Histogram) else histogram_of(h) for n, h in (histograms or {}).items()}
        row: dict[str, Any] = {self._step: int(env_steps)}
        row |= {name: self._finite_or_none(name, number, env_steps) for name, number in numbers.items()}
        row |= {name: _histogram_row(h) for name, h in counted.items()}
        _append(self.rows, (json.dumps(row, allow_nan=False) + "\n").encode())
        self._write_events(env_steps, numbers, counted)

    def write_evaluation(
        self, env_steps: int, results: Mapping[str, Any], labels: Mapping[str, str] | None = None
    ) -> None:
        """One line of ``eval.csv`` (the first one brings the header), and events under ``evaluation/``.

        ``labels`` are text in the columns behind the numbers. What is None is absent: an empty cell and no event.
        """
        self._forward(env_steps)
        numbers = {name: float(np.asarray(value).item()) for name, value in results.items() if value is not None}
        cells = {name: self._finite_or_none(f"evaluation/{name}", n, env_steps) for name, n in numbers.items()}
        row = {self._step: int(env_steps)} | dict.fromkeys(results) | cells | dict(labels or {})
        append_csv_row(self.evaluations, row)
        self._write_events(env_steps, {f"evaluation/{name}": n for name, n in numbers.items()}, {})

    def write_film(self, env_steps: int, name: str, gif: bytes, size: tuple[int, int]) -> None:
        """Write a film ``size`` (width, height) pixels large, which TensorBoard shows among its images."""
        from tensorboardX import summary as tb_summary

        self._forward(env_steps)
        image = tb_summary.Summary.Image(width=size[0], height=size[1], colorspace=3, encoded_image_string=gif)
        self._write_event(env_steps, [tb_summary.Summary.Value(tag=f"{name} {self._axis}", image=image)])

    def _forward(self, env_steps: int) -> None:
        if env_steps < self._latest:
            raise ValueError(f"metrics of step {env_steps} after those of step {self._latest}")
        self._latest = env_steps

    def _finite_or_none(self, name: str, number: float, env_steps: int) -> float | None:
        if math.isfinite(number):
            return number
        if name not in self._named_non_finite:
            self._named_non_finite.add(name)
            self._say(f"warning: {name} is {number} at {_one(self._step)} {env_steps}; written as null")
        return None

    def _write_events(self, env_steps: int, numbers: dict[str, float], histograms: dict[str, Histogram]) -> None:
        from tensorboardX import summary as tb_summary

        summaries = [tb_summary.Summary.Value(tag=f"{n} {self._axis}", simple_value=v) for n, v in numbers.items()]
        summaries += [_histogram_summary(f"{n} {self._axis}", h) for n, h in histograms.items() if h.counts.sum() > 0]
        self._write_event(env_steps, summaries)

    def _write_event(self, env_steps: int, summaries: list[Any]) -> None:
        from tensorboardX import summary as tb_summary

        if self._events is None:
            first = [tb_summary.text("x-axis", _X_AXIS_TEXTS[self._step]), *opening(self._hyperparameters, self._axis)]
            self._events = _EventFile(self.folder, from_step=env_steps, first=first)
        self._events.add(env_steps, tb_summary.Summary(value=summaries))

    def close(self) -> None:
        """Closes the event file; the other two are closed after every row."""
        if self._events is not None:
            self._events.close()
            self._events = None

    # --- going back --------------------------------------------------------------------------------------------------

    def truncate(self, env_steps: int) -> None:
        """Cuts all three records back to what had been written when the environment step was ``env_steps``.

        Rows of later steps, and a last row that a killed program left incomplete, are gone; rows of ``env_steps``
        itself stay. Each file is cut by one call to the system, so it is never half rewritten.

        Raises:
          ConfigError: a table cannot be read, or a whole row of it is no row; nothing is cut.
        """
        self.close()
        self._latest = env_steps
        kept = {path: _kept(ends(path), env_steps) for path, ends in self._files()}  # before anything is cut
        for path, end in kept.items():
            if end < path.stat().st_size:
                with one_line_on_disk_trouble(path):
                    os.truncate(path, end)

    def _files(self) -> Iterator[tuple[Path, Callable[[Path], Iterator[tuple[int, int]]]]]:
        """The records that there are, and what gives the byte behind each record in them, and its step, in order."""
        for path, ends in ((self.rows, _ends_of_rows), (self.evaluations, _ends_of_lines)):
            if path.exists() or path.is_symlink():
                yield path, ends
        for path in event_files(self.folder):
            yield path, _ends_of_events


# --- tables ----------------------------------------------------------------------------------------------------------


def csv_columns(path: Path) -> list[str]:
    """The names in a table's header; none where there is no such file."""
    return (csv_lines(path) or [[]])[0]


def csv_lines(path: Path) -> list[list[str]]:
    """Read the cells of a table, header first; none where there is no such file.

    Raises:
      ConfigError: it cannot be read as a table.
    """
    if not path.is_file():
        return []
    try:
        with open(path, newline="", encoding="utf-8") as file:
            return list(csv.reader(file))
    except (OSError, ValueError, csv.Error) as error:
        raise ConfigError(f"{path} cannot be read ({error}); allowed: a table as it was written") from error


def append_csv_row(path: Path, row: Mapping[str, Any]) -> None:
    """Append a line to a table, all of it or nothing; the first one brings the header, and None is an empty cell.

    A column that the table lacks is added to it, with empty cells in the lines before. A last line that an editor or a
    killed program left open is ended first.
    """
    before = csv_columns(path)
    columns = [*before, *(name for name in row if name not in before and (row[name] is not None or not before))]
    if before and columns != before:
        _add_columns(path, columns)
    line = _csv_line([row.get(name) for name in columns])
    if not before:
        line = _csv_line(columns) + line
    elif not _content(path).endswith(b"\n"):
        line = "\n" + line
    _append(path, line.encode())


def _add_columns(path: Path, columns: list[str]) -> None:
    _, *lines = csv_lines(path)
    padded = [line + [""] * (len(columns) - len(line)) for line in lines]
    write_text_atomically(path, "".join(_csv_line(line) for line in [columns, *padded]))


# --- the ends of files -----------------------------------------------------------------------------------------------


def _one(step: str) -> str:
    return "environment step" if step == STEP else step.removesuffix("s")


def _append(path: Path, content: bytes) -> None:
    """Appends all of it or nothing."""
    with one_line_on_disk_trouble(path):
        handle = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
        try:
            _write_all(handle, content)
        finally:
            os.close(handle)


def _write_all(handle: int, content: bytes) -> None:
    """Writes at the end of the file; where that fails (a full disk) the file is as before."""
    before, rest = os.fstat(handle).st_size, memoryview(content)
    try:
        while rest:
            rest = rest[os.write(handle, rest) :]
    except OSError:
        os.ftruncate(handle, before)
        raise


def _kept(ends: Iterator[tuple[int, int]], env_steps: int) -> int:
    """Return the byte behind the last record that belongs to ``env_steps`` or before."""
    kept = 0
    for end, step in ends:
        if step > env_steps:
            break
        kept = end
    return kept


def _content(path: Path) -> bytes:
    """Read a record of a run.

    Raises:
      ConfigError: it cannot be read.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{path} cannot be read ({error}); allowed: a file as it was written") from error


def _whole_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Return every line with the byte behind it, but a last one that a killed program left incomplete."""
    end = 0
    for line in _content(path).split(b"\n")[:-1]:
        end += len(line) + 1
        yield end, line


def _ends_of_rows(path: Path) -> Iterator[tuple[int, int]]:
    for end, row in _rows(path):
        yield end, next(iter(row.values()))  # the step comes first, whatever is counted


def _rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Return the rows of ``metrics.jsonl`` and the byte behind each.

    Raises:
      ConfigError: a whole line is no row.
    """
    for number, (end, line) in enumerate(_whole_lines(path), 1):
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            row = None
        if not _is_row(row):
            allowed = "a step, then numbers, null or histograms by name"
            raise ConfigError(f"{path}: line {number} is no row: {_beginning(line)}; allowed: {allowed}")
        yield end, row


def _is_row(row: Any) -> bool:
    if not isinstance(row, dict) or not row:
        return False
    (name, step), *others = row.items()
    known = all(x is None or _is_number(x) or _is_histogram(x) for _, x in others)
    return name in _X_AXIS_TEXTS and _is_step(step) and known


def _is_step(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 2**1023


def _is_histogram(value: Any) -> bool:
    if not isinstance(value, dict) or value.keys() != {"edges", "counts"}:
        return False
    edges, counts = value["edges"], value["counts"]
    lists = isinstance(edges, list) and isinstance(counts, list) and len(edges) == len(counts) + 1
    return lists and all(map(_is_number, [*edges, *counts]))


def _ends_of_lines(path: Path) -> Iterator[tuple[int, int]]:
    for number, (end, line) in enumerate(_whole_lines(path), 1):
        first = line.split(b",")[0]
        if first.isdigit() != (number > 1) or len(first) > 18:
            what = "row" if number > 1 else "header"
            raise ConfigError(f"{path}: line {number} is no {what}: {_beginning(line)}; allowed: a step first")
        yield end, int(first) if number > 1 else -1  # the header belongs to no step


def _beginning(line: bytes) -> str:
    text = line[:40].decode("utf-8", "backslashreplace")
    return f"{text!r}{' ...' if len(line) > 40 else ''}"


def _ends_of_events(path: Path) -> Iterator[tuple[int, int]]:
    for end, event in _records(_content(path)):
        yield end, event.step


def _csv_line(cells: list[Any]) -> str:
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerow(cells)
    return buffer.getvalue()


# --- TensorBoard events ----------------------------------------------------------------------------------------------


def event_files(folder: Path | str) -> list[Path]:
    """The event files of a run, oldest first."""
    return sorted(path for path in Path(folder).glob("events.out.tfevents.*") if _EVENTS.fullmatch(path.name))


class _EventFile:
    """One file of events, new for every start of the program.

    tensorboardX's own writer works in a thread that dies silently when the disk is full; its record format and
    messages are used here, its thread is not.
    """

    def __init__(self, folder: Path, from_step: int, first: Sequence[Any]):
        """Begin a file; the first of a run holds the summaries ``first``.

        Files from which going back cut everything, these summaries too, are none of the run.
        """
        from tensorboardX.proto.event_pb2 import Event, SessionLog

        files = event_files(folder)
        number = int(files[-1].name.split(".")[-2]) + 1 if files else 0
        # TensorBoard reads the files in the order of their names.
        self._path = folder / f"events.out.tfevents.{number:010d}.polygrad"
        with one_line_on_disk_trouble(self._path):
            self._handle = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_EXCL, 0o666)
        self._write(Event(wall_time=time.time(), file_version="brain.Event:2"))
        if files:
            # A TensorBoard that was watching drops what it read of this step and later before the run went back.
            self._write(
                Event(wall_time=time.time(), step=from_step, session_log=SessionLog(status=SessionLog.START))
            )
        if all(path.stat().st_size == 0 for path in files):
            for summary in first:
                self.add(0, summary)

    def add(self, env_steps: int, summary: Any) -> None:
        from tensorboardX.proto.event_pb2 import Event

        self._write(Event(wall_time=time.time(), step=int(env_steps), summary=summary))

    def _write(self, event: Event) -> None:
        with one_line_on_disk_trouble(self._path):
            _write_all(self._handle, _framed(event.SerializeToString()))

    def close(self) -> None:
        os.close(self._handle)


def _framed(data: bytes) -> bytes:
    """One record of an event file: length, its checksum, the data, their checksum."""
    from tensorboardX.record_writer import RecordWriter

    record = RecordWriter.__new__(RecordWriter)  # for its format, without the file that it would open
    record._writer = buffer = io.BytesIO()
    record.write(data)
    return buffer.getvalue()


def _records(content: bytes) -> Iterator[tuple[int, Event]]:
    """``(byte behind it, event)`` of every complete record of an event file."""
    from tensorboardX.proto.event_pb2 import Event

    start = 0
    while len(content) >= start + 12:
        (length,) = struct.unpack_from("<Q", content, start)
        end = start + 12 + length + 4
        if end > len(content):
            return
        data = content[start + 12 : end - 4]
        if _framed(data) != content[start:end]:
            return
        yield end, Event.FromString(data)
        start = end


def _histogram_summary(tag: str, histogram: Histogram) -> Any:
    """TensorBoard's message; its sums, which no chart shows, are those of the middles of the bins."""
    from tensorboardX import summary as tb_summary

    edges, counts = np.asarray(histogram.edges, np.float64), np.asarray(histogram.counts, np.float64)
    middles = (edges[:-1] + edges[1:]) / 2
    proto = tb_summary.HistogramProto(
        min=edges[0],
        max=edges[-1],
        num=counts.sum(),
        sum=(counts * middles).sum(),
        sum_squares=(counts * middles**2).sum(),
        # A bucket is known by its upper limit only, so an empty one says where the first begins.
        bucket_limit=edges.tolist(),
        bucket=[0.0, *counts.tolist()],
    )
    return tb_summary.Summary.Value(tag=tag, histo=proto)


def _histogram_row(histogram: Histogram) -> dict[str, list[float]]:
    """For ``metrics.jsonl``: six digits are more than a figure shows and keep a long run's file small."""
    return {
        "edges": [float(f"{e:.6g}") for e in np.asarray(histogram.edges)],
        "counts": [int(c) for c in np.asarray(histogram.counts)],
    }


# --- reading ---------------------------------------------------------------------------------------------------------


def read_rows(folder: Path | str) -> list[dict[str, Any]]:
    """The rows of ``metrics.jsonl``; one that a killed program left incomplete is passed over.

    Raises:
      ConfigError: there is no such file, or a whole line of it is no row.
    """
    path = Path(folder) / "metrics.jsonl"
    if not path.is_file():
        raise ConfigError(f"{path} does not exist; allowed: the folder of a run that has logged a row")
    return [row for _, row in _rows(path)]


_FORMER_ROOMS = {
    "denoiser": "world_model",
    "transformer": "world_model",
    "ensemble": "world_model",
    "policy": "agent",
    "critic": "agent",
    "latent_policy": "agent",
    "imagined": "imagination",
}
_FORMER_NAMES = {
    "loss/actor": "agent/actor_loss",
    "loss/critic": "agent/critic_loss",
    "loss/latent_actor": "agent/actor_loss",
    "loss/latent_critic": "agent/critic_loss",
    "loss/dreamer": "world_model/loss",
    "loss/terminal_classifier": "world_model/classifier_loss",
    **{
        f"loss/{part}": f"world_model/{part}_loss"
        for part in ("decoder", "reward", "continue", "dynamics", "representation")
    },
    "gradients/actor_norm": "agent/actor_gradient_norm",
    "gradients/critic_norm": "agent/critic_gradient_norm",
    "gradients/latent_actor_norm": "agent/actor_gradient_norm",
    "gradients/latent_critic_norm": "agent/critic_gradient_norm",
    "gradients/dreamer_norm": "world_model/gradient_norm",
    "ensemble/disagreement": "imagination/disagreement",
    "ensemble/predicted_std": "imagination/predicted_std",
    "updates_per_second": "fit/updates_per_second",
}


def todays_metric(name: str) -> str:
    """The name of a metric under which the revision before wrote it, as ``docs/metrics.md`` has it."""
    room, _, quantity = name.partition("/")
    return _FORMER_NAMES.get(name) or (f"{_FORMER_ROOMS[room]}/{quantity}" if room in _FORMER_ROOMS else name)
