"""How far is the denoiser from what this machine can do? Its matrix products under the machine's roofline.

    python benchmarks/limits.py --out results/limits
    python benchmarks/limits.py --presets cpu paper --precision bfloat16
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
from jax import lax

from experiments.harness import figures, grid
from polygrad_jax import config as configs
from polygrad_jax.config import Config, ConfigError, EnvSpec
from polygrad_jax.networks.denoisers import make_denoiser
from polygrad_jax.types import Array

TABLE = "limits.csv"
HOPPER = EnvSpec(11, 3)
PRECISIONS = ("float32", "bfloat16")
MEMORY_FLOATS = 2**26
"""Of the array that is read and written to measure the memory: 256 MiB, more than a cache holds."""
LEAST_SECONDS = 0.2
"""How long a product is repeated at least."""
WHOLE = "whole call"


# --- the machine's limits --------------------------------------------------------------------------------------------


def memory_bandwidth(runs: int = 5) -> float:
    """Bytes per second that a program reads and writes, both counted, the best of a few runs."""
    add = jax.jit(lambda x: x + 1.0)
    x = jnp.zeros(MEMORY_FLOATS, jnp.float32)
    jax.block_until_ready(add(x))
    return 2 * x.nbytes / min(measure.seconds(lambda: add(x)) for _ in range(runs))


def repeated(step: Callable[[Array], Array]) -> Callable[[Array, int], Array]:
    """Compile ``step`` within a program that makes it so often, so that the call from Python costs nothing.

    What goes in depends on what came out before, and the least of every result is summed up: XLA drops none.
    """

    @jax.jit
    def chain(x: Array, times: int) -> Array:
        def once(_: Array, carry: tuple[Array, Array]) -> tuple[Array, Array]:
            x, total = carry
            least = jnp.min(step(x).astype(jnp.float32))
            return (x * (1.0 + 1e-9 * least)).astype(x.dtype), total + least

        return lax.fori_loop(0, times, once, (x, jnp.float32(0.0)))[1]

    return chain


def seconds_each(step: Callable[[Array], Array], x: Array) -> float:
    """Seconds of one ``step(x)`` of many in a program."""
    chain, times = repeated(step), 1
    jax.block_until_ready(chain(x, times))
    while True:
        taken = min(measure.seconds(lambda: chain(x, times)) for _ in range(3))  # noqa: B023  called at once
        if taken > LEAST_SECONDS:
            return taken / times
        times *= 2 if taken > LEAST_SECONDS / 4 else 8


# --- the denoiser ----------------------------------------------------------------------------------------------------


def shapes(config: Config) -> dict[tuple[int, int, int, int], int]:
    """Return the products ``[count, rows, inner] @ [count, inner, columns]`` of one call, and how often each is made.

    Those of one weight are made one after another; attention's, of all heads and trajectories, as one product.
    """
    batch, blocks = config.a2c.trajectories, config.denoiser.num_blocks
    made: dict[tuple[int, int, int, int], int] = {}
    for product in flops.denoiser_products(config, HOPPER, batch, steps=1):
        together = product.count // blocks if product.count > blocks else 1
        shape = (together, product.rows, product.inner, product.columns)
        made[shape] = made.get(shape, 0) + product.count // together
    return made


def product_row(shape: tuple[int, int, int, int], precision: str, limits: tuple[float, float]) -> measure.Row:
    """Time one product alone."""
    count, rows, inner, columns = shape
    dtype = jnp.dtype(precision)
    keys = jax.random.split(jax.random.key(0))
    x = jax.random.normal(keys[0], (count, rows, inner)).astype(dtype)
    weights = jax.random.normal(keys[1], (count, inner, columns)).astype(dtype)
    highest = lax.Precision.HIGHEST if precision == "float32" else None

    def step(x: Array) -> Array:
        how = {"precision": highest, "preferred_element_type": jnp.float32}
        if count == 1:
            return lax.dot(x[0], weights[0], **how)
        return lax.dot_general(x, weights, (((2,), (1,)), ((0,), (0,))), **how)

    work = 2 * count * rows * inner * columns
    moved = count * (dtype.itemsize * (rows * inner + inner * columns) + 4 * rows * columns)
    return measured(seconds_each(step, x), work, work / moved, limits)


def measured(seconds: float, work: float, intensity: float, limits: tuple[float, float]) -> measure.Row:
    """Return the columns that follow from a time and from operations, in all and per byte moved."""
    peak, bandwidth = limits
    roof = min(peak, intensity * bandwidth)
    return {
        "microseconds": 1e6 * seconds,
        "GFLOP/s": work / seconds / 1e9,
        "FLOP/byte": intensity,
        "roofline_GFLOP/s": roof / 1e9,
        "share_of_roofline": work / seconds / roof,
    }


def whole_call(config: Config) -> float:
    """Seconds of the denoiser as the sampler calls it: all products, and what lies between them."""
    module = make_denoiser(config.denoiser, config.horizon, config.precision)
    batch, horizon = config.a2c.trajectories, config.horizon
    traj = jax.random.normal(jax.random.key(0), (batch, horizon, HOPPER.observation_size + 2))
    actions, step = jnp.zeros((batch, horizon, HOPPER.action_size)), jnp.ones(1, jnp.int32)
    params = module.init(jax.random.key(1), traj, actions, step)["params"]
    return seconds_each(lambda traj: module.apply({"params": params}, traj, actions, step), traj)


def rows_of(preset: str, precision: str, limits: tuple[float, float]) -> Iterator[measure.Row]:
    """Measure every product of the denoiser of a preset, and the whole call."""
    config = replace(configs.preset(preset, "hopper"), precision=precision)
    common = {"preset": preset, "denoiser": config.denoiser.kind, "precision": precision}
    work = in_products = least = 0.0
    for shape, times in shapes(config).items():
        count, rows, inner, columns = shape
        row = product_row(shape, precision, limits)
        product = 2 * count * rows * inner * columns
        work += times * product
        in_products += times * row["microseconds"]
        least += times * product / (1e9 * row["roofline_GFLOP/s"])
        yield common | {"part": f"{count} x [{rows}, {inner}] @ [{inner}, {columns}]", "times": times} | row
    seconds = whole_call(config)
    yield common | {
        "part": WHOLE,
        "times": 1,
        "microseconds": 1e6 * seconds,
        "GFLOP/s": work / seconds / 1e9,
        "FLOP/byte": None,
        "roofline_GFLOP/s": work / least / 1e9,
        "share_of_roofline": least / seconds,
        "share_in_products": in_products / (1e6 * seconds),
    }


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
    presets = ["cpu", "cpu_a2c", "paper", "paper_transformer"]
    parser.add_argument("--presets", nargs="+", choices=presets, default=presets[:3], help="whose denoiser is measured")
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
        began, peak = time.perf_counter(), measure.Peak(precision).flops()
        facts["limits"][precision] = {"peak_GFLOP/s": peak / 1e9, "memory_GB/s": bandwidth / 1e9}
        for preset in options.presets:
            rows += ({"share_in_products": None} | row for row in rows_of(preset, precision, (peak, bandwidth)))
        measure.say(f"{precision}: {time.perf_counter() - began:.0f} s")
    rows = [{name: row[name] for name in (*list(rows[0])[1:], "share_in_products")} for row in rows]
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
    if table is None or not table.is_file():
        raise ConfigError(f"--out is {out}; allowed with --figure-only: a folder with a {TABLE}")
    draw(grid.read_csv(table), json.loads(table.with_suffix(".json").read_text()), out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
