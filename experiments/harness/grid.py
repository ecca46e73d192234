"""Run a grid of commands as local processes, or on a Ray cluster, and keep one CSV.

A cell is a command that writes its rows to a file. ``experiment.py`` makes the cells of an experiment that measures in
a process of its own; ``learning/training_runs.py`` makes cells that are whole trainings. For every grid:

- Resuming: a cell that has left its rows is not run again, whatever became of the others. Rows are kept per cell in
  ``OUT.cells/``, each file written whole or not at all, and the CSV is made of them after every cell. The CSV alone is
  enough to resume from, as in a clone; rows of cells that this grid does not have stay in it.
- Divergence: exit code 3 is a result, a row with ``outcome`` "diverged". Any other exit code but 0 is a failure: the
  grid prints the last line that the cell wrote, keeps no row, and ends with exit code 1.
- Stopping: Ctrl-C and SIGTERM are passed on to the cells, which save and end; the same command resumes.
- Physics: rows of one task that different versions of MuJoCo made are not joined, unless ``--mixed-physics`` asks.
- Cores: ``--jobs`` cells run at once, with ``--threads`` cores for each. XLA, BLAS and OpenMP see no more of them (by
  affinity where the system has it). They are the first of those that the grid itself may use, so a second grid at the
  same time needs a ``taskset`` of its own. With ``--ray`` the same cells are tasks of the cluster at ``RAY_ADDRESS``,
  or of one on this machine where that is not set (extra ``ray``).
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import fcntl
import io
import json
import os
import queue
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from polygrad_jax.config import ConfigError
from polygrad_jax.runs import physics
from polygrad_jax.runs.run_folder import describe_environment, one_line_on_disk_trouble, write_text_atomically

Row = dict[str, Any]
OUTCOMES = {0: "finished", 3: "diverged"}
"""Exit codes that are results (3 is ``polygrad train``'s for numbers that are not finite)."""
INTERRUPTED = 130
"""The exit code of a grid that was stopped."""
LONGEST_NAME = 255 - len("..fresh.json." + "12345678.tmp")
"""Bytes of a cell's name: what a file system allows, less what the temporary file of its rows adds."""


@dataclass(frozen=True)
class Cell:
    """One run of a grid.

    Attributes:
      name: of files; unique in the grid.
      command: what to run. ``{rows}`` in it is replaced by the path that the rows go to, as a JSON list of objects.
      labels: columns that a diverged cell has too.
      collect: for a command that knows nothing of ``{rows}``: the rows, made after it ended with this exit code.
    """

    name: str
    command: tuple[str, ...]
    labels: tuple[tuple[str, Any], ...] = ()
    collect: Callable[[int], list[Row]] | None = None


def with_fields(name: str, fields: str) -> str:
    """Name a cell whose config has these fields, so that a finished cell is not taken for one with other fields."""
    return name + re.sub(r"[^A-Za-z0-9.]+", "-", fields).rstrip("-")


def rounded(row: Row, digits: int = 5) -> Row:
    """Round the floats of a row to so many significant digits."""
    return {name: float(f"{x:.{digits}g}") if isinstance(x, float) else x for name, x in row.items()}


def machine() -> Row:
    """Return the columns that say where a row was measured."""
    facts = describe_environment()
    where = {name: facts[name] for name in ("device", "processor", "cores", "git_revision")}
    return where | {physics.COLUMN: physics.installed_mujoco()}


def add_output_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of everything that keeps a CSV and draws from it."""
    parser.add_argument("--out", type=Path, required=True, help="folder of the CSV and the figures")
    parser.add_argument("--figure-only", action="store_true", help="draw from the CSV, run nothing")
    how = "join results of one task whatever version of MuJoCo made them"
    parser.add_argument(physics.ASKED_BY, action="store_true", help=how)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options that every grid has."""
    add_output_arguments(parser)
    parser.add_argument("--jobs", type=int, default=1, help="cells at once")
    parser.add_argument("--threads", type=int, default=0, help="cores for each cell (0: all of them)")
    parser.add_argument("--ray", action="store_true", help="run the cells on the Ray cluster at RAY_ADDRESS")
    parser.add_argument("--only", nargs="+", default=None, metavar="CELL", help="cells by name; all if left out")
    parser.add_argument("--again", action="store_true", help="run cells again that have rows")


def chosen(cells: Sequence[Cell], only: Iterable[str] | None) -> list[Cell]:
    """Return the cells of these names, in the order of the grid.

    Raises:
      ConfigError: no cell has the name.
    """
    wanted = list(only) if only is not None else [cell.name for cell in cells]
    unknown = sorted(set(wanted) - {cell.name for cell in cells})
    if unknown:
        raise ConfigError(f"--only is {' '.join(unknown)}; allowed: {', '.join(cell.name for cell in cells)}")
    return [cell for cell in cells if cell.name in wanted]


def write_csv(path: Path, rows: Sequence[Row]) -> None:
    """Write rows with the columns of all of them, whole or not at all."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(dict.fromkeys(name for row in rows for name in row)), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text_atomically(path, text.getvalue())


def read_csv(path: Path) -> list[dict[str, str]]:
    """Return the rows of a CSV file."""
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def read_if_there(path: Path) -> list[dict[str, str]]:
    """Return the rows of a CSV file; none where there is no such file."""
    return read_csv(path) if path.is_file() else []


def read_measured(path: Path, measured: Callable[[dict[str, str]], Any]) -> list[dict[str, str]]:
    """Return the rows that a figure is drawn from; where there are none, say that there is no figure."""
    rows = [row for row in read_csv(path) if measured(row)]
    if not rows:
        print(f"{path.stem}: nothing that was measured is in {path.name}: no figure")
    return rows


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep other processes that ask from a folder's tables, so that none writes between a reading and its writing."""
    folder.mkdir(parents=True, exist_ok=True)
    handle = os.open(folder, os.O_RDONLY)  # the folder itself, which leaves no file among the results
    try:
        with contextlib.suppress(OSError):  # a network's file system may not lock folders
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


class Grid:
    """Hold the state of one grid, on disk and in flight."""

    def __init__(self, cells: Sequence[Cell], csv_path: Path, jobs: int, threads: int, mixed_physics: bool):
        self.cells, self.csv_path, self.threads = list(cells), csv_path, threads
        self.mixed_physics = mixed_physics
        self.folder = csv_path.with_suffix(".cells")
        self.wrong: list[str] = []
        self._children: set[subprocess.Popen] = set()
        self._lock = threading.Lock()
        self.stopped = False
        self._adopt()
        self._cores: queue.SimpleQueue[set[int] | None] = queue.SimpleQueue()
        for share in core_shares(jobs, threads):
            self._cores.put(share)

    def rows_path(self, cell: Cell) -> Path:
        """Return where a cell's rows are once it has ended."""
        return self.folder / f"{cell.name}.json"

    def _recorded(self) -> list[Row]:
        """Return what the CSV says now; a cell of it that is empty is no column of its row."""
        return [{k: value for k, value in row.items() if value != ""} for row in read_if_there(self.csv_path)]

    def _adopt(self) -> None:
        """Take over the rows of a CSV whose cells' own files are gone."""
        rows = self._recorded()
        for cell in self.cells:
            there = [row for row in rows if row.get("cell") == cell.name]
            if there and not self.rows_path(cell).exists():
                write_text_atomically(self.rows_path(cell), json.dumps(there))

    def others(self) -> list[Row]:
        """Return the rows of the CSV that are of cells of other grids, which may be running now."""
        ours = {cell.name for cell in self.cells}
        return [row for row in self._recorded() if row.get("cell") not in ours]

    def run_one(self, cell: Cell) -> None:
        """Run a cell as a process of its own and keep what it measured."""
        cores = self._cores.get()
        try:
            if not self.stopped:
                self.keep(cell, self._execute(cell, cores))
        finally:
            self._cores.put(cores)

    def prepared(self, cell: Cell) -> tuple[list[str], str, dict[str, str]]:
        """Return the command to execute, the file for its output, and environment variables."""
        self.folder.mkdir(parents=True, exist_ok=True)
        command = [word.replace("{rows}", str(self._fresh(cell).resolve())) for word in cell.command]
        return command, str(self._log(cell).resolve()), thread_variables(self.threads)

    def _execute(self, cell: Cell, cores: set[int] | None) -> int:
        command, log_path, variables = self.prepared(cell)
        with open(log_path, "ab") as log:
            with self._lock:
                # A group of its own, so that Ctrl-C reaches a cell once, by us.
                child = subprocess.Popen(
                    pinned(command, cores),
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    env=os.environ | variables,
                    start_new_session=True,
                )
                self._children.add(child)
                if self.stopped:  # since we looked: stop() may not have seen the child
                    child.send_signal(signal.SIGTERM)
            code = child.wait()
            with self._lock:
                self._children.discard(child)
        return code

    def _fresh(self, cell: Cell) -> Path:
        return self.folder / f".{cell.name}.fresh.json"

    def _log(self, cell: Cell) -> Path:
        return self.folder / f"{cell.name}.log"

    def keep(self, cell: Cell, code: int) -> None:
        """Keep the rows of a cell that ended with this exit code; nothing where the grid was stopped."""
        if self.stopped:
            return
        labels = dict(cell.labels)
        if code not in OUTCOMES:
            lines = self._log(cell).read_text(errors="replace").strip().splitlines()
            self._complain(f"{cell.name}: exit code {code}: {lines[-1] if lines else 'it said nothing'}")
            return
        if cell.collect is not None:
            rows = cell.collect(code)
        else:
            nothing = [{physics.COLUMN: physics.installed_mujoco()}]
            rows = json.loads(self._fresh(cell).read_text()) if code == 0 else nothing
        rows = [{"cell": cell.name, "outcome": OUTCOMES[code], **labels, **row} for row in rows]
        write_text_atomically(self.rows_path(cell), json.dumps(rows))
        self._fresh(cell).unlink(missing_ok=True)
        with self._lock:
            mixed = self.join()
            print(f"{len(self.done())}/{len(self.cells)} {cell.name}: {OUTCOMES[code]}", flush=True)
        if mixed is not None:
            self._complain(f"{cell.name} is kept, but not in {self.csv_path.name}: {mixed}")

    def done(self) -> list[Cell]:
        """Return the cells that have left rows."""
        return [cell for cell in self.cells if self.rows_path(cell).exists()]

    def rows_of(self, cells: Iterable[Cell]) -> list[Row]:
        """Return the rows that cells have left."""
        return [row for cell in cells for row in json.loads(self.rows_path(cell).read_text())]

    def join(self) -> str | None:
        """Write the CSV, of all rows; or say why they may not be mixed."""
        with locked(self.csv_path.parent):
            rows = self.rows_of(self.done()) + self.others()
            try:
                self.refuse_mixed(rows)
            except ConfigError as error:
                return str(error)
            write_csv(self.csv_path, rows)
        return None

    def join_kept(self) -> None:
        """Write the CSV where cells are kept that it lacks, since their physics were refused when they ended."""
        joined = {row.get("cell") for row in read_if_there(self.csv_path)}
        if any(cell.name not in joined for cell in self.done()):
            self.join()

    def refuse_mixed(self, rows: Sequence[Row], to_run: Iterable[str] = ()) -> None:
        """Raise ConfigError where one task's rows, or they and those that will be run, are of several physics.

        Args:
          to_run: tasks of the cells that will be run.
        """
        physics.refuse_mixed([*used(rows, self.csv_path), *todays(to_run)], self.mixed_physics)

    def _complain(self, line: str) -> None:
        with self._lock:
            self.wrong.append(line)
        print(line, file=sys.stderr, flush=True)

    def stop(self, number: int) -> None:
        """Pass a signal on to the cells; those that have not begun never do."""
        self.stopped = True
        for child in list(self._children):
            child.send_signal(number)


def task_of(row: Row) -> str | None:
    """Return the task of a row by the id, or by our name and its version; None of a row without."""
    if row.get("env_name"):
        return row["env_name"]
    return f"{row['env']} {row.get('env_version') or ''}".strip() if row.get("env") else None


def physics_of(rows: Iterable[Row]) -> str:
    """Return the versions of MuJoCo that rows were made with, as a caption says them."""
    return physics.in_words(physics.versions_of_rows(rows))


def used(rows: Iterable[Row], path: Path) -> list[physics.Used]:
    """Return the physics of the rows of a table that are of a task."""
    of_task = ((task_of(row), row) for row in rows)
    return [physics.Used(task, physics.version_of_row(row), path.name) for task, row in of_task if task is not None]


def todays(tasks: Iterable[str]) -> list[physics.Used]:
    """Return the physics that runs of these tasks would have now."""
    return [physics.Used(task, physics.installed_mujoco(), "installed") for task in tasks]


def core_shares(jobs: int, threads: int) -> list[set[int] | None]:
    """Return the cores of each job: shares of ``threads`` of those allowed; None where nothing is pinned."""
    if threads == 0 or not hasattr(os, "sched_setaffinity"):
        return [None] * jobs
    allowed = sorted(os.sched_getaffinity(0))
    return [{allowed[(job * threads + k) % len(allowed)] for k in range(threads)} for job in range(jobs)]


def pinned(command: Sequence[str], cores: set[int] | None) -> list[str]:
    """Return the command on these cores only: a Python that sets its own affinity and becomes the command.

    Setting it between fork and exec would run Python in a fork of a process in which JAX has threads.
    """
    if cores is None:
        return list(command)
    become = f"import os, sys; os.sched_setaffinity(0, {sorted(cores)}); os.execvp(sys.argv[1], sys.argv[1:])"
    return [sys.executable, "-c", become, *command]


def thread_variables(threads: int) -> dict[str, str]:
    """Return what tells numerical libraries how many threads to start; nothing for 0."""
    names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
    return dict.fromkeys(names, str(threads)) if threads else {}


def check(cells: Sequence[Cell], options: argparse.Namespace) -> None:
    """Raise ConfigError where cells would write one file or one of too long a name, or have nothing to run on."""
    for name, least in (("jobs", 1), ("threads", 0)):
        if getattr(options, name) < least:
            raise ConfigError(f"--{name} is {getattr(options, name)}; allowed: {least} or more")
    names = [cell.name for cell in cells]
    twice = [name for name in dict.fromkeys(names) if names.count(name) > 1]
    if twice:
        raise ConfigError(f"cells are asked for twice: {' '.join(twice)}; allowed: each once")
    longest = max(names, key=len, default="")
    if len(longest.encode()) > LONGEST_NAME:
        allowed = f"{LONGEST_NAME}, by shorter names of folders or shorter --fields"
        raise ConfigError(f"the name of a cell has {len(longest.encode())} bytes: {longest}; allowed: {allowed}")


def run(cells: Sequence[Cell], csv_path: Path, options: argparse.Namespace, one_task: bool = False) -> int:
    """Run all cells that have no rows yet; return the exit code (130 where interrupted, 1 where a cell failed).

    Args:
      one_task: all rows of the CSV are of the task that is run.

    Raises:
      ConfigError: two cells have one name, there are no jobs, the folder cannot be written to, or what is recorded
        and what would be run are of different physics, and ``--mixed-physics`` was not asked for.
    """
    check(cells, options)
    grid = Grid(cells, csv_path, options.jobs, options.threads, options.mixed_physics)
    remaining = [c for c in chosen(cells, options.only) if options.again or not grid.rows_path(c).exists()]
    kept = grid.rows_of(cell for cell in grid.done() if cell not in remaining)
    others = grid.others()
    of_the_task = kept + (others if one_task else [])
    grid.refuse_mixed(kept + others, {task_of(row) for row in of_the_task} - {None} if remaining else ())
    if remaining:
        with one_line_on_disk_trouble(grid.folder):  # in the threads of the cells it would be a traceback
            grid.folder.mkdir(parents=True, exist_ok=True)
    print(f"{len(remaining)} of {len(cells)} cells to run, {options.jobs} at once", flush=True)
    began = time.monotonic()
    stopped_by: list[int] = []

    def on_signal(number: int, _: Any) -> None:
        stopped_by.append(number)
        grid.stop(number)

    before = {number: signal.signal(number, on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        if options.ray:
            run_on_ray(grid, remaining, options.threads)
        else:
            with ThreadPoolExecutor(options.jobs) as pool:
                list(pool.map(grid.run_one, remaining))
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if stopped_by:
        print("stopped; what is finished is kept. The same command resumes.", file=sys.stderr)
        return INTERRUPTED
    if not remaining:
        grid.join_kept()
    rows = f"rows in {csv_path.name}" if csv_path.exists() else "no rows"
    print(f"{len(remaining)} cells in {time.monotonic() - began:.0f} s; {rows}", flush=True)
    return 1 if grid.wrong else 0


def run_on_ray(grid: Grid, remaining: Sequence[Cell], threads: int) -> None:
    """Run the same cells as tasks of a Ray cluster whose nodes share this file system and this Python."""
    try:
        import ray
    except ImportError:
        raise ConfigError("this Python has no ray; type: pip install -e .[ray]") from None
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    ray.init(address=os.environ.get("RAY_ADDRESS"))
    for number, handler in handlers.items():  # Ray puts its own in their place
        signal.signal(number, handler)

    folder = os.getcwd()  # a task's own may be another; the options of a cell may name relative paths

    # Inside, so that Ray sends its code: a node need not find this file by name.
    def execute(command: list[str], log_path: str, variables: dict[str, str]) -> int:
        with open(log_path, "ab") as log:
            how = {"stdout": log, "stderr": subprocess.STDOUT, "env": os.environ | variables, "cwd": folder}
            child = subprocess.Popen(command, **how)
            try:
                while child.poll() is None:  # Ray cancels by a KeyboardInterrupt, which a wait would not notice
                    time.sleep(0.2)
            except KeyboardInterrupt:
                child.terminate()
            return child.wait()

    task = ray.remote(num_cpus=threads or 1, max_retries=0)(execute)
    waiting = {task.remote(*grid.prepared(cell)): cell for cell in remaining}
    while waiting:
        ready, _ = ray.wait(list(waiting), num_returns=1, timeout=0.5)
        for reference in ready:
            grid.keep(waiting.pop(reference), ray.get(reference))
        if grid.stopped:
            for reference in waiting:
                ray.cancel(reference)
            ray.wait(list(waiting), num_returns=len(waiting), timeout=60)  # they save and end
            break
    ray.shutdown()
