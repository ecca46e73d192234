"""How far is the denoiser from what this machine can do? Its matrix products under the machine's roofline.

    python benchmarks/limits.py --out results/limits
    python benchmarks/limits.py --presets cpu paper --precisions bfloat16
    python benchmarks/limits.py --out results/limits --figure-only

A product of few operations per byte waits for the memory, one of many for the units that multiply; the roofline is the
lower of the two limits (Williams et al. 2009), both measured here. ``benchmarks/README.md`` says what the columns mean.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from experiments.harness import in_venv  # noqa: F401  first of all: it continues in the clone's .venv

# isort: split
import argparse
import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import flops
import jax
import jax.numpy as jnp
import measure
from flops import HOPPER
from jax import lax
from measure import PRECISIONS

from experiments.harness import figures, grid
from polygrad_jax import config as configs
from polygrad_jax.config import Config, ConfigError
from polygrad_jax.networks.denoisers import make_denoiser
from polygrad_jax.networks.dense import THIN, matrix_product
from polygrad_jax.types import Array

TABLE = "limits.csv"
MEMORY_FLOATS = 2**26
"""Of the array that is read and written to measure the memory: 256 MiB, more than a cache holds."""
LEAST_SECONDS = 0.2
"""A product is repeated for at least this long."""
WHOLE = "whole call"


# --- the machine's limits --------------------------------------------------------------------------------------------


def memory_bandwidth(runs: int = 5) -> float:
    """Bytes per second that a program reads and writes, both counted, the best of a few runs."""
    add = jax.jit(lambda x: x + 1.0, donate_argnums=0)  # in place: new memory would be mapped page by page
    x, times = jax.block_until_ready(add(jnp.zeros(MEMORY_FLOATS, jnp.float32))), []
    for _ in range(runs):
        began = time.perf_counter()
        x = jax.block_until_ready(add(x))
        times.append(time.perf_counter() - began)
    return 2 * x.nbytes / min(times)


Step = Callable[[Any, Array], Array]
"""``(constants, x) -> y``; both arrays have a first entry."""


def repeated(step: Step) -> Callable[[Any, Array, int], tuple[Array, Array]]:
    """Compile ``step`` within a program that repeats it as often as asked; it gives the last ``x`` and ``y``.

    The call from Python costs nothing then. One entry of what goes in depends on what came out, so that XLA leaves no
    repetition out.
    """

    @jax.jit
    def chain(constants: Any, x: Array, times: int) -> tuple[Array, Array]:
        def once(_: Array, carry: tuple[Array, Array]) -> tuple[Array, Array]:
            x, y = carry
            first = x.ravel()[0] + (1e-3 * y.ravel()[0]).astype(x.dtype)
            x = x.at[(0,) * x.ndim].set(first)
            return x, step(constants, x)

        return lax.fori_loop(0, times, once, (x, jnp.zeros_like(step(constants, x))))

    return chain


def seconds_each(step: Step, constants: Any, x: Array) -> float:
    """Seconds of one ``step(constants, x)`` of many in a program."""
    chain, times = repeated(step), 1
    jax.block_until_ready(chain(constants, x, times))
    while True:
        taken = min(measure.seconds(lambda: chain(constants, x, times)) for _ in range(3))  # noqa: B023  called at once
        if taken > LEAST_SECONDS:
            return taken / times
        times *= 2 if taken > LEAST_SECONDS / 4 else 8


# --- the denoiser ----------------------------------------------------------------------------------------------------


Shape = tuple[int, int, int]
"""``[rows, inner] @ [inner, columns]``."""


def shapes(config: Config) -> dict[Shape, int]:
    """Return the products of one call of the denoiser, and how often each is made."""
    made: dict[Shape, int] = {}
    for product in flops.denoiser_products(config, HOPPER, config.a2c.trajectories, steps=1):
        shape = (product.rows, product.inner, product.columns)
        made[shape] = made.get(shape, 0) + product.count
    return made


def time_product(shape: Shape, precision: str) -> float:
    """Seconds of one product alone, as the network makes it: thin ones, and those of the step, in float32."""
    rows, inner, columns = shape
    precision = "float32" if rows == 1 or min(inner, columns) <= THIN else precision
    keys = jax.random.split(jax.random.key(0))
    x, kernel = jax.random.normal(keys[0], (rows, inner)), jax.random.normal(keys[1], (inner, columns)) / inner
    return seconds_each(lambda kernel, x: matrix_product(x, kernel, precision), kernel, x)


def intensity(shape: Shape) -> float:
    """Operations per byte, each operand and the result moved once in float32, as they lie in memory."""
    rows, inner, columns = shape
    return 2 * rows * inner * columns / (4 * (rows * inner + inner * columns + rows * columns))


def row_of(seconds: float, work: float, roof: float) -> measure.Row:
    """Return the columns that follow from a time, from operations, and from the FLOP/s that the roofline allows."""
    return {
        "microseconds": 1e6 * seconds,
        "GFLOP/s": work / seconds / 1e9,
        "roofline_GFLOP/s": roof / 1e9,
        "share_of_roofline": work / seconds / roof,
    }


def time_whole_call(config: Config) -> float:
    """Seconds of the denoiser as the sampler calls it: all products, and what lies between them."""
    module = make_denoiser(config.denoiser, config.horizon, config.precision)
    batch, horizon = config.a2c.trajectories, config.horizon
    traj = jax.random.normal(jax.random.key(0), (batch, horizon, HOPPER.observation_size + 2))
    actions, step = jnp.zeros((batch, horizon, HOPPER.action_size)), jnp.ones(1, jnp.int32)
    params = module.init(jax.random.key(1), traj, actions, step)["params"]

    def call(given: Any, traj: Array) -> Array:
        params, actions, step = given
        return module.apply({"params": params}, traj, actions, step + (traj[0, 0, :1] > 1e6))

    return seconds_each(call, (params, actions, step), traj)


def rows_of(preset: str, precision: str, limits: tuple[float, float]) -> Iterator[measure.Row]:
    """Measure every product of the denoiser of a preset, and the whole call."""
    config = replace(configs.preset(preset, "hopper"), precision=precision)
    peak, bandwidth = limits
    work = in_products = least = 0.0
    common = {"preset": preset, "precision": precision}
    for shape, times in shapes(config).items():
        rows, inner, columns = shape
        product, moves = 2 * rows * inner * columns, intensity(shape)
        roof, seconds = min(peak, moves * bandwidth), time_product(shape, precision)
        work, in_products, least = work + times * product, in_products + times * seconds, least + times * product / roof
        part = {"part": f"[{rows}, {inner}] @ [{inner}, {columns}]", "times": times, "FLOP/byte": moves}
        yield common | part | row_of(seconds, product, roof) | {"share_in_products": None}
    seconds = time_whole_call(config)
    part = {"part": WHOLE, "times": 1, "FLOP/byte": None}
    yield common | part | row_of(seconds, work, work / least) | {"share_in_products": in_products / seconds}


# --- the table and the figure ----------------------------------------------------------------------------------------


def draw(rows: Sequence[dict[str, str]], facts: dict[str, Any], out: Path) -> None:
    """Draw products under the machine's roofline, a panel per precision."""
    found = [p for p in PRECISIONS if p in facts["limits"]]
    size, rect = (5.2 * len(found), 4.4), (0, 0.04, 1, 1)
    with figures.figure(out / "limits.png", 1, len(found), size, rect) as (drawn, axes):
        for place, precision in zip(axes.flat, found, strict=True):
            peak, bandwidth = (facts["limits"][precision][name] for name in ("peak_GFLOP/s", "memory_GB/s"))
            of = [row for row in rows if row["precision"] == precision and row["part"] != WHOLE]
            ends = [0.5 * min(float(row["FLOP/byte"]) for row in of), 2 * max(float(row["FLOP/byte"]) for row in of)]
            knee = sorted({*ends, min(max(peak / bandwidth, ends[0]), ends[1])})
            place.plot(knee, [min(peak, x * bandwidth) for x in knee], "-", color=figures.GREY, label="roofline")
            for colour, preset in zip(figures.PALETTE, dict.fromkeys(row["preset"] for row in of), strict=False):
                mine = [row for row in of if row["preset"] == preset]
                xs, ys = ([float(row[name]) for row in mine] for name in ("FLOP/byte", "GFLOP/s"))
                place.plot(xs, ys, "o", color=colour, markersize=4, label=preset)
            place.set_xscale("log")
            place.set_yscale("log")
            place.set_xlabel("operations per byte moved")
            place.set_ylabel("GFLOP/s")
            title = f"{precision}: {peak:.0f} GFLOP/s, {bandwidth:.0f} GB/s"
            place.set_title(title, fontsize=9, loc="left")
        figures.legend_of_all(drawn, loc="lower center", ncol=5, fontsize=8)


def parse(arguments: Sequence[str] | None = None) -> tuple[argparse.ArgumentParser, argparse.Namespace]:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    presets = ["cpu", "cpu_a2c", "paper"]
    parser.add_argument("--presets", nargs="+", choices=presets, default=presets, help="whose denoiser is measured")
    parser.add_argument("--precisions", nargs="+", choices=PRECISIONS, default=list(PRECISIONS))
    parser.add_argument("--out", type=Path, default=None, help=f"folder of {TABLE}, its facts and its figure")
    parser.add_argument("--figure-only", action="store_true", help="draw from the table, measure nothing")
    return parser, parser.parse_args(arguments)


def main() -> int:
    """The exit code: 2 for a bad argument, otherwise 0."""
    parser, options = parse()
    try:
        if options.figure_only:
            return draw_only(options.out)
        facts = {"command": measure.command(parser, ("--out",)), **measure.hardware(), "limits": {}}
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 2
    measure.say(measure.one_line(facts))
    rows: list[measure.Row] = []
    bandwidth = memory_bandwidth()
    for precision in sorted(options.precisions, key=PRECISIONS.index):
        began, machine = time.perf_counter(), measure.Peak(precision)
        peak = max(machine.flops() for _ in range(3))
        facts["limits"][precision] = {"peak_GFLOP/s": peak / 1e9, "memory_GB/s": bandwidth / 1e9}
        for preset in options.presets:
            rows += rows_of(preset, precision, (peak, bandwidth))
        measure.say(f"{precision}: {time.perf_counter() - began:.0f} s")
    print(measure.table(rows))
    if options.out:
        measure.write(options.out / TABLE, [grid.rounded(row) for row in rows], facts)
        draw(grid.read_csv(options.out / TABLE), facts, options.out)
    return 0


def draw_only(out: Path | None) -> int:
    """Draw from the table that is there; the exit code.

    Raises:
      ConfigError: there is none.
    """
    table = None if out is None else out / TABLE
    if table is None or not (table.is_file() and table.with_suffix(".json").is_file()):
        raise ConfigError(f"--out is {out}; allowed with --figure-only: a folder with a {TABLE} and its .json")
    draw(grid.read_csv(table), json.loads(table.with_suffix(".json").read_text()), out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
