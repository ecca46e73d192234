"""What every benchmark here shares: the machine's peak, its memory, and how rows of numbers are shown and kept."""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from experiments.harness import grid
from polygrad_jax.config import ConfigError
from polygrad_jax.runs.run_folder import describe_environment, one_line_on_disk_trouble, write_text_atomically

PRECISIONS = ("float32", "bfloat16")
"""That benchmarks compare, the reference first."""
CHAINED_PRODUCTS = 50
PRODUCT_SIZE = 1024

Row = dict[str, Any]


def seconds(function: Callable[[], Any]) -> float:
    """How long a call takes until its results are there."""
    began = time.perf_counter()
    jax.block_until_ready(function())
    return time.perf_counter() - began


def check_seconds(value: float) -> None:
    """Raise ConfigError where ``--seconds`` is no time."""
    if not 0 <= value < math.inf:
        raise ConfigError(f"--seconds is {value}; allowed: 0 or greater")


def check_out(path: Path | None) -> None:
    """Raise ConfigError where ``--out`` cannot be written, before anything is measured."""
    if path is None:
        return
    with one_line_on_disk_trouble(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=path.parent).close()
    if path.is_dir():
        raise ConfigError(f"--out is {path}, a folder; allowed: a file")


class Peak:
    """FLOP/s of matrix products as XLA does them here: 50 chained products 1024 x 1024 x 1024 in one program.

    A product's result, accumulated in float32, is an operand of the next one in the precision measured.
    """

    def __init__(self, precision: str, runs: int = 3):
        dtype = jnp.dtype(precision)

        @jax.jit
        def chain(x, factor):
            for _ in range(CHAINED_PRODUCTS):
                highest = lax.Precision.HIGHEST if precision == "float32" else None
                x = lax.dot(x, factor, precision=highest, preferred_element_type=jnp.float32).astype(dtype)
            return x

        # Divided by the root of the size, products stay of size one.
        normal = jax.random.normal(jax.random.key(0), (2, PRODUCT_SIZE, PRODUCT_SIZE)) / PRODUCT_SIZE**0.5
        x, factor = normal.astype(dtype)
        self._run = lambda: chain(x, factor)
        self._runs = runs
        jax.block_until_ready(self._run())

    def flops(self) -> float:
        """FLOP/s, the best of a few runs now."""
        best = min(seconds(self._run) for _ in range(self._runs))
        return CHAINED_PRODUCTS * 2 * PRODUCT_SIZE**3 / best


class PeakMemory:
    """Most memory in use since the object was made, in MiB.

    On an accelerator the device's own count, which cannot be set back: the most since the program began. On a CPU
    the process's resident memory; where the system cannot set it back (Linux can), the most since it began, too.
    """

    def __init__(self):
        if Path("/proc/self/clear_refs").exists():
            Path("/proc/self/clear_refs").write_text("5")

    def mebibytes(self) -> float | None:
        """The peak so far, None where nothing tells."""
        statistics_of_device = jax.local_devices()[0].memory_stats()
        if statistics_of_device:
            return statistics_of_device["peak_bytes_in_use"] / 2**20
        try:
            lines = Path("/proc/self/status").read_text().splitlines()
            return next(int(line.split()[1]) / 2**10 for line in lines if line.startswith("VmHWM"))
        except (OSError, StopIteration):
            return None


def program_mebibytes(compiled: Any) -> float | None:
    """Arguments, results and temporaries of a compiled program, MiB, as the compiler planned them."""
    plan = compiled.memory_analysis()
    if plan is None:
        return None
    size = plan.argument_size_in_bytes + plan.output_size_in_bytes - plan.alias_size_in_bytes + plan.temp_size_in_bytes
    return size / 2**20


def median(values: Sequence[float]) -> float:
    """The median; of an even number, the mean of the middle two."""
    return statistics.median(values)


def hardware() -> dict[str, Any]:
    """Versions, device, cores, flags and revision, the processor's name, and how busy the machine was at the start."""
    facts = describe_environment()
    facts.pop("command", None)  # it may name folders; see command()
    facts["load_average_at_start"] = round(os.getloadavg()[0], 2)
    return facts


def one_line(facts: dict[str, Any]) -> str:
    """The hardware in a line; a load above zero says that others were computing."""
    cores = f"{facts['cores']} core{'s' if facts['cores'] != 1 else ''}"
    return f"{facts['device']}, {facts['processor']}, {cores}, load {facts['load_average_at_start']}"


def command(parser: argparse.ArgumentParser, folders: Sequence[str]) -> str:
    """The command line, with PATH for the values of the options in ``folders``."""
    words = sys.argv[1:]
    for i, word in enumerate(words):
        option, equals, _ = word.partition("=")
        if option in folders and equals:
            words[i] = f"{option}=PATH"
        elif word in folders and i + 1 < len(words):
            words[i + 1] = "PATH"
    return " ".join([f"python benchmarks/{Path(parser.prog).name}", *words])


def say(line: str) -> None:
    """Progress, to the standard error, so that the table stays clean."""
    print(line, file=sys.stderr, flush=True)


def table(rows: Sequence[Row]) -> str:
    """Rows of equal keys as an aligned table; numbers with four significant digits, '-' for None."""
    header = list(rows[0])
    cells = [header, *([_cell(row[name]) for name in header] for row in rows)]
    widths = [max(len(line[i]) for line in cells) for i in range(len(header))]
    text = [isinstance(rows[0][name], str) for name in header]
    lines = (
        "  ".join(c.ljust(w) if is_text else c.rjust(w) for c, w, is_text in zip(line, widths, text, strict=True))
        for line in cells
    )
    return "\n".join(line.rstrip() for line in lines)


def listing(rows: Sequence[Row]) -> str:
    """The same turned: a line for every key, a column for every row; for many keys and few rows."""
    cells = [[name, *(_cell(row[name]) for row in rows)] for name in rows[0]]
    widths = [max(len(line[i]) for line in cells) for i in range(len(cells[0]))]
    return "\n".join(
        "  ".join([line[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(line[1:], widths[1:], strict=True))])
        for line in cells
    )


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.3g}" if abs(value) < 100 else f"{value:.0f}"
    return str(value)


def write(path: Path, rows: Sequence[Row], facts: dict[str, Any]) -> None:
    """``path`` ending in .csv: the rows, and the facts beside it in a .json; otherwise one .json with both.

    Each file is complete, or what it was before.
    """
    if path.suffix == ".csv":
        if "env" in rows[0]:  # what steps a task depends on who simulates it
            rows = [row | {"mujoco": facts["packages"]["mujoco"]} for row in rows]
        grid.write_csv(path, rows)
        write_text_atomically(path.with_suffix(".json"), json.dumps(facts, indent=2) + "\n")
    else:
        write_text_atomically(path, json.dumps({**facts, "rows": list(rows)}, indent=2) + "\n")
