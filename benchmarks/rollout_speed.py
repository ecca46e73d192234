"""Seconds per batch of imagined rollouts at the paper's sizes, and the share of this machine's peak that they reach.

    python benchmarks/rollout_speed.py                                 every size: an hour on two cores
    python benchmarks/rollout_speed.py --horizons 10 --kinds mlp --batch 1024
    python benchmarks/rollout_speed.py --horizons 10 --kinds mlp --batch 1024 --against-official CLONE
    python benchmarks/rollout_speed.py --horizons 10 --kinds mlp --batch 1024 --sampling-steps 16

What the columns mean is in ``benchmarks/README.md``.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from experiments.harness import in_venv  # noqa: F401  first of all: it continues in the clone's .venv

# isort: split
import argparse
import os
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import flops
import jax
import jax.numpy as jnp
import measure
import official
from flops import HOPPER
from measure import PRECISIONS

from polygrad_jax import config as configs
from polygrad_jax.agents import a2c
from polygrad_jax.config import Config
from polygrad_jax.networks.actor_critic import Actor
from polygrad_jax.networks.denoisers import EMBED_DIM
from polygrad_jax.types import Array, MeanStd, Normaliser, Policy, Segment
from polygrad_jax.world_models.model_table import make_world_model

NEEDED = "torch and einops"
"""By the official sampler."""
ALL_STEPS = 128
"""N of the paper's schedule, and K of its sampler."""
RERUN_BELOW_SECONDS = 60.0
"""A batch that takes longer than this is timed once, whatever --repeats says."""


def paper_size(kind: str, horizon: int, precision: str, batch: int, steps: int, width: int | None) -> Config:
    """The paper's sizes on Hopper: residual MLP of width 1,024, or 2,048 for more than 10 states; the transformer."""
    base = configs.paper("hopper") if kind == "mlp" else configs.paper_transformer("hopper")
    width = width or (1024 if horizon <= 10 else 2048)
    return configs.validate(
        replace(
            base,
            horizon=horizon,
            precision=precision,
            denoiser=replace(base.denoiser, width=width),
            diffusion=replace(base.diffusion, sampling_steps=steps),
            a2c=replace(base.a2c, trajectories=batch),
        )
    )


def devices_for(batch: int) -> int:
    """How many of the devices share the work evenly."""
    return max(n for n in range(1, jax.local_device_count() + 1) if batch % n == 0)


def over_devices(imagine: Callable[..., Any], count: int) -> Callable[..., Any]:
    """``imagine`` with its contexts cut into ``count`` shares, one for each device; each has draws of its own."""
    devices = jax.local_devices()[:count]
    mesh = jax.make_mesh((count,), ("share",), axis_types=(jax.sharding.AxisType.Auto,), devices=devices)

    def share(state, policy, context, normaliser, key):
        own_key = jax.random.fold_in(key, jax.lax.axis_index("share"))
        segment, metrics = imagine(state, policy, context, normaliser, own_key)
        return segment, jax.tree.map(lambda x: x[None], metrics)

    whole, cut = jax.sharding.PartitionSpec(), jax.sharding.PartitionSpec("share")
    in_specs = (whole, whole, cut, whole, whole)
    return jax.shard_map(share, mesh=mesh, in_specs=in_specs, out_specs=cut, check_vma=False)


def give_every_core_a_device() -> None:
    """Tell JAX, before its first device, to make as many CPU devices as there are cores; accelerators stay as they are.

    XLA runs loops that are no matrix products on one core of a device; with one device for all cores the others wait.
    """
    given = os.environ.get("XLA_FLAGS", "")
    if "xla_force_host_platform_device_count" not in given:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        os.environ["XLA_FLAGS"] = f"{given} --xla_force_host_platform_device_count={cores}".strip()


class Ours:
    """The compiled ``imagine`` of one size, unpacking included, on random weights; shared by all devices."""

    def __init__(self, config: Config):
        batch = config.a2c.trajectories
        world_model = make_world_model(config, HOPPER)
        state_key, policy_key, context_key, key = jax.random.split(jax.random.key(0), 4)
        actor = Actor(HOPPER.action_size, config.a2c.hidden_size, config.a2c.initial_std, config.a2c.min_std)
        first = jax.random.normal(context_key, (batch, 1, HOPPER.observation_size))
        zeros = jnp.zeros((batch, 1))
        context = Segment(first, jnp.zeros((batch, 1, HOPPER.action_size)), zeros, zeros)
        sizes = (HOPPER.observation_size, HOPPER.action_size, 1, 1)
        identity = Normaliser(*(MeanStd(jnp.zeros(n), jnp.ones(n)) for n in sizes))
        state = jax.jit(world_model.init)(state_key)
        apply = a2c.make_policy_apply(HOPPER, config.a2c, config.precision)
        policy = Policy(actor.init(policy_key, first)["params"], apply)
        self._arguments = (state, policy, context, identity, key)
        self.devices = devices_for(batch)
        imagine = world_model.imagine if self.devices == 1 else over_devices(world_model.imagine, self.devices)
        lowered = jax.jit(imagine).lower(*self._arguments)
        compile_began = time.perf_counter()
        self.program = lowered.compile()
        self.compile_seconds = time.perf_counter() - compile_began
        self.result: Segment | None = None

    def __call__(self) -> Segment:
        self.result, _ = self.program(*self._arguments)
        return self.result


def official_sampler(clone: Path, python: str, config: Config) -> official.Child:
    """Start the official sampler of the same size."""
    size = {
        "kind": config.denoiser.kind,
        "observations": HOPPER.observation_size,
        "actions": HOPPER.action_size,
        "batch": config.a2c.trajectories,
        "horizon": config.horizon,
        "width": config.denoiser.width,
        "embed_dim": EMBED_DIM,
        "token_dim": config.denoiser.token_dim,
        "num_blocks": config.denoiser.num_blocks,
        "sampling_steps": config.diffusion.sampling_steps,
        "tau": config.diffusion.tau,
        "hidden_size": config.a2c.hidden_size,
        "min_std": config.a2c.min_std,
        "initial_std": config.a2c.initial_std,
        "delta": config.guidance.initial_delta,
        "clip_std": config.guidance.clip_std,
        "state_clip": config.guidance.state_change_clip,
        "cores": measure.hardware()["cores"],
    }
    return official.Child("official_sampler.py", NEEDED, clone, python, size)


def relative_error(ours: Segment, reference: Segment) -> float:
    """Root of the mean square difference over that of the reference: observations, actions and rewards together."""

    def flat(segment: Segment) -> Array:
        rewards = segment.rewards[..., None]
        return jnp.concatenate([segment.observations, segment.actions, rewards], -1)

    difference = jnp.square(flat(ours) - flat(reference)).mean()
    return float(jnp.sqrt(difference / jnp.square(flat(reference)).mean()))


def time_size(
    args: argparse.Namespace, kind: str, horizon: int, precision: str, peak: measure.Peak, reference: Segment | None
) -> tuple[measure.Row, Segment]:
    """One row of the table, and what was imagined."""
    config = paper_size(kind, horizon, precision, args.batch, args.sampling_steps, args.width)
    memory = measure.PeakMemory()
    ours = Ours(config)
    theirs = None
    if args.against_official and precision == "float32":
        theirs = official_sampler(args.against_official, args.official_python, config)
    full = None
    if args.sampling_steps != ALL_STEPS:
        full = Ours(paper_size(kind, horizon, precision, args.batch, ALL_STEPS, args.width))
    peaks, ours_seconds, official_seconds, full_seconds = [peak.flops()], [], [], []
    while len(ours_seconds) < args.repeats:
        ours_seconds.append(measure.seconds(ours))
        if theirs:
            official_seconds.append(theirs.seconds())
        if full:
            full_seconds.append(measure.seconds(full))
        if ours_seconds[0] > RERUN_BELOW_SECONDS:
            break
    peaks.append(peak.flops())
    if theirs:
        theirs.close()

    count = flops.imagination_flops(config, HOPPER)
    best = min(ours_seconds)
    row: measure.Row = {
        "denoiser": kind,
        "H": horizon,
        "width": config.denoiser.width if kind == "mlp" else config.denoiser.token_dim,
        "precision": precision,
        "batch": args.batch,
        "steps": args.sampling_steps,
        "devices": ours.devices,
        "seconds": best,
        "median_seconds": measure.median(ours_seconds),
        "runs": len(ours_seconds),
        "GFLOP": count / 1e9,
        "GFLOP/s": count / best / 1e9,
        "peak_GFLOP/s": max(peaks) / 1e9,
        "share_of_peak": count / best / max(peaks),
        "compile_seconds": ours.compile_seconds,
        "program_MiB": measure.program_mebibytes(ours.program),
        "peak_MiB": memory.mebibytes(),
        "error_to_float32": relative_error(ours.result, reference) if reference is not None else None,
    }
    if args.against_official:
        row["official_seconds"] = min(official_seconds, default=None)
        row["times_as_fast"] = row["official_seconds"] / best if theirs else None
    if full:
        row["full_seconds"] = min(full_seconds)
        row["times_as_fast_as_full"] = row["full_seconds"] / best
    return row, ours.result


def parse() -> tuple[argparse.ArgumentParser, argparse.Namespace]:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--batch", type=int, default=1000, help="rollouts per batch; the paper's is 1024")
    parser.add_argument("--horizons", type=int, nargs="+", default=[10, 50, 200], help="states per rollout")
    parser.add_argument("--kinds", nargs="+", choices=["mlp", "transformer"], default=["mlp", "transformer"])
    parser.add_argument("--precisions", nargs="+", choices=PRECISIONS, default=list(PRECISIONS))
    parser.add_argument(
        "--sampling-steps",
        type=int,
        default=ALL_STEPS,
        help="K of the N = 128 diffusion steps; fewer are timed beside all of them",
    )
    parser.add_argument("--width", type=int, default=None, help="of the MLP, instead of the paper's 1024 or 2048")
    parser.add_argument("--repeats", type=int, default=3, help="timed runs; batches over a minute are run once")
    parser.add_argument("--out", type=Path, default=None, help="a .csv (facts go to a .json beside it) or a .json")
    official.add_arguments(parser, NEEDED)
    args = parser.parse_args()
    for name in ("batch", "sampling_steps", "repeats"):
        if getattr(args, name) < 1:
            parser.error(f"--{name.replace('_', '-')} is {getattr(args, name)}; allowed: 1 or greater")
    return parser, args


def run(parser: argparse.ArgumentParser, args: argparse.Namespace) -> list[measure.Row]:
    """Times every size, shows and keeps the rows."""
    if args.against_official:
        official.check_clone(args.against_official)
    measure.check_out(args.out)
    facts: dict[str, Any] = {
        "command": measure.command(parser, (*official.FOLDERS, "--out")),
        **measure.hardware(),
        **official.facts(args),
    }
    measure.say(measure.one_line(facts))
    if args.sampling_steps != ALL_STEPS:
        measure.say(f"K = {args.sampling_steps} of N = 128 diffusion steps: not the seconds of the paper's full run")
    peaks = {precision: measure.Peak(precision) for precision in args.precisions}
    rows: list[measure.Row] = []
    for kind in args.kinds:
        for horizon in args.horizons:
            reference = None
            for precision in sorted(args.precisions, key=PRECISIONS.index):  # float32 first: the reference
                measure.say(f"{kind}, H = {horizon}, {precision} ...")
                row, segment = time_size(args, kind, horizon, precision, peaks[precision], reference)
                reference = segment if precision == "float32" else reference
                rows.append(row)
                measure.say(f"  {row['seconds']:.2f} s, {row['share_of_peak']:.0%} of peak")
    print(measure.table(rows))
    if args.out:
        measure.write(args.out, rows, facts)
    return rows


def main() -> int:
    """The exit code: 2 for a bad argument, otherwise 0."""
    give_every_core_a_device()
    parser, args = parse()
    try:
        run(parser, args)
    except (official.Unusable, configs.ConfigError) as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
