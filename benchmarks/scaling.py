"""How the cost of an iteration grows with horizon, batch, width, seeds, devices and replay.

    python benchmarks/scaling.py --out results/scaling
    python benchmarks/scaling.py --out results/scaling --only replay_100000 replay_10000000
    python benchmarks/scaling.py --out results/scaling --figure-only

One of them at a time differs from the preset (Hopper). Every point is a run of ``training_speed.py`` in a process of
its own, so that its memory and its compiling are its own; the table resumes as grids do. ``benchmarks/README.md`` says
what the columns mean.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from experiments.harness import in_venv  # noqa: F401  first of all: it continues in the clone's .venv

# isort: split
import argparse
import json
import math
from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import measure

from experiments.harness import figures, grid
from experiments.harness.grid import Row
from polygrad_jax.config import ConfigError
from polygrad_jax.runs import physics

TABLE = "scaling.csv"
PRESET, TASK = "cpu_a2c", "hopper"
SIMULATED = 8
"""CPU devices that the points of the axis ``devices`` are given, whatever number of them takes part."""
KEPT = (
    "env", "preset", "seconds_per_update", "imagine_seconds", "model_update_seconds", "GFLOP_per_update",
    "share_of_peak", "peak_GFLOP/s", "iterations", "compile_seconds", "program_MiB", "peak_MiB",
)  # fmt: skip
"""Columns of ``training_speed.py`` that are kept."""
SHOWN = ("seconds_per_update", "imagine_seconds", "share_of_peak", "compile_seconds", "program_MiB", "peak_MiB")
"""Those of them that are printed."""


class Axis(NamedTuple):
    """What one series of points varies."""

    options: tuple[str, ...]  # of training_speed.py; each gets the value
    values: tuple[int, ...]
    label: str


AXES = {
    "horizon": Axis(("--horizon",), (10, 20, 50, 100, 200), "horizon"),
    "rollouts": Axis(("--a2c.trajectories",), (128, 512, 2_048, 8_192, 16_384), "imagined trajectories"),
    "width": Axis(("--denoiser.width",), (128, 256, 512, 1_024, 2_048), "width of the denoiser"),
    "seeds": Axis(("--seeds",), (1, 2, 4, 8, 16), "seeds as one program"),
    "devices": Axis(("--devices",), (1, 2, 4, 8), "simulated devices"),
    "replay": Axis(
        ("--loop.replay-capacity", "--stored"), (100_000, 1_000_000, 3_000_000, 10_000_000), "transitions in the replay"
    ),
}


# --- the points ------------------------------------------------------------------------------------------------------


def cell(axis: str, value: int, seconds: float, folder: Path) -> grid.Cell:
    """Return the point at which ``axis`` has this value; its table goes to ``folder``, of which its row is made."""
    script, table = Path(__file__).with_name("training_speed.py"), folder / f"{axis}_{value}.speed.json"
    words = ["--preset", PRESET, "--env", TASK, "--seconds", f"{seconds:g}"]
    words += [word for option in AXES[axis].options for word in (option, str(value))]
    if axis == "devices":  # several learn as one program
        words.append("--loop.no-side-by-side")
    command = [sys.executable, str(script), *words, "--out", str(table.resolve())]
    if axis == "devices":
        flags = f"--xla_force_host_platform_device_count={SIMULATED}"
        command = ["env", f"XLA_FLAGS={flags}", *command]
    labels = (("axis", axis), ("value", value))
    return grid.Cell(f"{axis}_{value}", tuple(command), labels, partial(measured, table))


def measured(table: Path, code: int) -> list[Row]:
    """Return what a point left, with the machine that it ran on, and remove its table."""
    del code
    found = json.loads(table.read_text())
    table.unlink()
    where = {name: found[name] for name in ("device", "processor", "cores", "git_revision")}
    where |= {physics.COLUMN: physics.version_of_run(found)}
    return [grid.rounded({name: row[name] for name in KEPT}) | where for row in found["rows"]]


# --- what they come to -----------------------------------------------------------------------------------------------


def along(rows: Sequence[Row], axis: str) -> list[Row]:
    """Return the points of one axis in order, with numbers for what is drawn and said."""
    points = [row for row in rows if row["axis"] == axis]
    numbers = ({"value": int(row["value"])} | {name: number(row.get(name)) for name in SHOWN} for row in points)
    return sorted(numbers, key=lambda row: row["value"])


def number(cell: str | float | None) -> float | None:
    """Return a cell of the table as a number; None where it is empty."""
    return None if cell in (None, "") else float(cell)


def with_exponents(points: Sequence[Row]) -> list[Row]:
    """Add the exponent of growth from the point before: with 0 more costs nothing, with 1 twice as much costs twice."""

    def between(a: Row, b: Row) -> float:
        return math.log(b["seconds_per_update"] / a["seconds_per_update"]) / math.log(b["value"] / a["value"])

    pairs = zip(points, points[1:], strict=False)
    return [points[0] | {"exponent": None}, *(b | {"exponent": between(a, b)} for a, b in pairs)] if points else []


def say(rows: Sequence[Row]) -> None:
    """Print every axis as a table."""
    for axis in AXES:
        if points := with_exponents(along(rows, axis)):
            renamed = [{axis if name == "value" else name: x for name, x in row.items()} for row in points]
            print(f"\n{measure.table(renamed)}")


def draw(rows: Sequence[Row], out: Path) -> None:
    """Draw seconds of an iteration and of compiling against every axis, with its last exponent of growth."""
    processor = sorted({f"{row['processor']}, {row['cores']} cores" for row in rows})
    with figures.figure(out / "scaling.png", 2, 3, (10.5, 6.4), rect=(0, 0.05, 1, 1)) as (drawn, axes):
        for place, (axis, varied) in zip(axes.flat, AXES.items(), strict=True):
            points = with_exponents(along(rows, axis))
            if not points:
                place.set_axis_off()
                continue
            values = [row["value"] for row in points]
            for colour, name, label in (
                (figures.PALETTE[0], "seconds_per_update", "iteration"),
                (figures.PALETTE[1], "compile_seconds", "compiling"),
            ):
                place.plot(values, [row[name] for row in points], "o-", color=colour, markersize=3, label=label)
            place.set_xscale("log")
            place.set_yscale("log")
            place.set_xticks(values, [f"{x:,}" for x in values])
            place.set_xticks([], minor=True)
            last = points[-1]["exponent"]
            place.set_title("" if last is None else f"last exponent {last:.2f}", fontsize=8, loc="left")
            place.set_xlabel(varied.label, fontsize=8)
            place.set_ylabel("seconds", fontsize=8)
            place.tick_params(labelsize=7)
        figures.legend_of_all(drawn, loc="lower center", ncol=2, fontsize=8)
        drawn.text(0.01, 0.01, f"Hopper, preset {PRESET}; {'; '.join(processor)}", fontsize=7)


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--axes", nargs="+", choices=list(AXES), default=list(AXES), help="what is varied (all)")
    parser.add_argument("--seconds", type=float, default=5.0, help="of timed iterations per point; at least three")
    grid.add_arguments(parser)
    return parser.parse_args(arguments)


def main() -> int:
    """The exit code: 2 for a bad argument, 1 where a point failed, 130 where interrupted, otherwise 0."""
    options = parse()
    table = options.out / TABLE
    code = 0
    try:
        measure.check_seconds(options.seconds)
        if not options.figure_only:
            folder = table.with_suffix(".cells")
            points = [(axis, value) for axis in options.axes for value in AXES[axis].values]
            code = grid.run([cell(*point, options.seconds, folder) for point in points], table, options)
        elif not table.is_file():
            raise ConfigError(f"--out is {options.out}; allowed with --figure-only: a folder with a {TABLE}")
        if table.is_file():
            rows = grid.read_csv(table)
            say(rows)
            draw(rows, options.out)
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 2
    return code


if __name__ == "__main__":
    sys.exit(main())
