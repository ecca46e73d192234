"""Where does the time of an iteration go: to matrix products, at which rate, or to what lies between them?

    taskset -c 0 python benchmarks/profile_iteration.py --preset cpu --out results/training_speed/profile_cpu.csv
    python benchmarks/profile_iteration.py --preset cpu_a2c --env walker2d --a2c.hidden-size 256

Imagining, one policy update and one model update are compiled alone and traced; the times of their operations are
summed by kind. On one core (``taskset -c 0``) no two operations overlap, so that kinds add up to the whole. Any field
of the configuration may follow. What the columns mean is in ``benchmarks/README.md``.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from experiments.harness import in_venv  # noqa: F401  first of all: it continues in the clone's .venv

# isort: split
import argparse
import math
import re
import statistics
import tempfile
from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

import jax
import measure
import training_speed
from training_speed import PREFILL_ENV_STEPS, Part

from polygrad_jax import config as configs
from polygrad_jax.cli import override
from polygrad_jax.config import Config, ConfigError

PRODUCTS, FUSED, COPIES, OTHERS, BETWEEN = KINDS = ("products", "fused", "copies", "others", "between operations")
CONTAINERS = ("while", "call", "conditional")
"""Their bodies' operations are in the trace themselves."""
COPYING = ("copy", "slice", "dynamic-slice", "dynamic-update-slice", "concatenate", "transpose", "pad", "reshape")
INSTRUCTION = re.compile(r"^\s*(?:ROOT )?%(?P<name>[\w.\-]+) = (?P<shape>\(.*?\)|\S+) (?P<kind>[\w\-]+)\((?P<rest>.*)$")
COMPUTATION = re.compile(r"^(?:ENTRY )?%(?P<name>[\w.\-]+) \(.*\{$")


class Operation(NamedTuple):
    """What a compiled program says of one of its instructions."""

    kind: str
    flops: int  # of the products within


def size_of(shape: str) -> list[int]:
    """Return the dimensions of ``f32[5,52,200]{2,1,0}``; none of a scalar or a tuple."""
    found = re.match(r"\w+\[([\d,]*)\]", shape)
    return [int(n) for n in found[1].split(",")] if found and found[1] else []


def flops_of(match: re.Match[str], shapes: dict[str, str]) -> int:
    """Return the operations of a product, two for each term of its sums."""
    left = size_of(shapes[re.findall(r"%([\w.\-]+)", match["rest"])[0]])
    summed = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", match["rest"])[1]
    return 2 * math.prod(size_of(match["shape"])) * math.prod(left[int(axis)] for axis in summed.split(",") if axis)


def operations_of(text: str) -> dict[str, Operation]:
    """Return the instructions of a program by name, as its text after optimisation has them."""
    found: dict[str, Operation] = {}
    shapes: dict[str, str] = {}
    within: defaultdict[str, int] = defaultdict(int)
    computation = ""
    for line in text.splitlines():
        if begins := COMPUTATION.match(line):
            computation, shapes = begins["name"], {}
        elif match := INSTRUCTION.match(line):
            shapes[match["name"]] = match["shape"]
            called = re.search(r"calls=%([\w.\-]+)", match["rest"])
            flops = flops_of(match, shapes) if match["kind"] == "dot" else 0
            if match["kind"] == "fusion" and called:
                flops = within[called[1]]  # a computation is printed before its caller
            within[computation] += flops
            found[match["name"]] = Operation(_kind(match["kind"], flops), flops)
    return found


def _kind(kind: str, flops: int) -> str:
    if kind in CONTAINERS:
        return ""
    if flops:
        return PRODUCTS
    return FUSED if kind == "fusion" else COPIES if kind in COPYING else OTHERS


def traced(part: Part, runs: int) -> list[tuple[str, float]]:
    """Return what was executed in so many calls: names of instructions, and seconds."""
    jax.block_until_ready(part())
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            for _ in range(runs):
                jax.block_until_ready(part())
        (path,) = Path(folder).rglob("*.xplane.pb")
        lines = [line for plane in jax.profiler.ProfileData.from_file(str(path)).planes for line in plane.lines]
        return [(event.name, event.duration_ns / 1e9) for line in lines for event in line.events]


def rows_of(name: str, times: int, part: Part, runs: int, peak: float) -> list[measure.Row]:
    """Return a row for every kind of operation of a part."""
    operations = operations_of(part.program.as_text())
    seconds: defaultdict[str, float] = defaultdict(float)
    calls: defaultdict[str, int] = defaultdict(int)
    flops: defaultdict[str, int] = defaultdict(int)
    for instruction, taken in traced(part, runs):
        operation = operations.get(instruction)
        if operation and operation.kind:
            seconds[operation.kind] += taken / runs
            calls[operation.kind] += 1
            flops[operation.kind] += operation.flops
    whole = statistics.fmean(measure.seconds(part) for _ in range(runs))
    seconds[BETWEEN] = max(0.0, whole - sum(seconds.values()))  # tracing may take longer than the pauses
    return [
        {
            "part": name,
            "times": times,
            "kind": kind,
            "calls": calls[kind] / runs,
            "milliseconds": 1e3 * seconds[kind],
            "whole_milliseconds": 1e3 * whole,
            "share": seconds[kind] / sum(seconds.values()),
            "GFLOP": flops[kind] / runs / 1e9,
            "GFLOP/s": flops[kind] / runs / 1e9 / seconds[kind] if flops[kind] else None,
            "peak_GFLOP/s": peak / 1e9,
        }
        for kind in KINDS
    ]


def profile(config: Config, runs: int) -> list[measure.Row]:
    """Profile the three parts of an iteration.

    Raises:
      ConfigError: the agent imagines within its update, or the device's trace names no instructions.
    """
    if (platform := jax.local_devices()[0].platform) != "cpu":
        raise ConfigError(f"the device is {platform}; allowed: cpu (JAX_PLATFORMS=cpu)")
    _, world_model, agent, _, (state,) = training_speed.begin(config, 1, PREFILL_ENV_STEPS)
    if agent.policy(state.agent) is None or not agent.trajectories:
        raise ConfigError(f"agent is {config.agent}; allowed: one whose trajectories are imagined before its update")
    peak = measure.Peak(config.precision).flops()
    names = ("imagining", "policy update", "model update")
    times = (1, 1, configs.model_updates_per_policy_update(config))
    parts = training_speed.parts_of(config, world_model, agent, state)
    common = {"env": config.env.name, "preset": config.preset}
    return [
        common | row
        for name, count, part in zip(names, times, parts, strict=True)
        for row in rows_of(name, count, part, runs, peak)
    ]


def parse(arguments: Sequence[str] | None = None) -> tuple[argparse.ArgumentParser, argparse.Namespace, list[str]]:
    """The command line: our options, and fields of the configuration."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--preset", default="cpu", help="a preset of the configuration (cpu)")
    parser.add_argument("--env", default="hopper", help="the task (hopper)")
    parser.add_argument("--runs", type=int, default=20, help="traced calls of each part (20)")
    parser.add_argument("--out", type=Path, default=None, help="a .csv (facts go to a .json beside it) or a .json")
    return parser, *parser.parse_known_args(arguments)


def main() -> int:
    """The exit code: 2 for a bad argument, otherwise 0."""
    parser, args, fields = parse()
    try:
        if args.runs < 1:
            raise ConfigError(f"--runs is {args.runs}; allowed: 1 or greater")
        config = configs.validate(override(configs.preset(args.preset, args.env), fields))
        facts = {"command": measure.command(parser, ("--out",)), **measure.hardware()}
        measure.check_out(args.out)
        measure.say(measure.one_line(facts))
        if facts["cores"] != 1:
            measure.say("on more than one core operations may overlap, and kinds need not add up: taskset -c 0")
        rows = profile(config, args.runs)
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 2
    print(measure.table(rows))
    if args.out:
        measure.write(args.out, rows, facts)
    return 0


if __name__ == "__main__":
    sys.exit(main())
