"""How long does each world model take to imagine 1,000 rollouts? (the paper's Figure 4)

Varied: the model and the horizon. Every model has the paper's size (presets ``paper`` and ``paper_transformer``; the
residual MLP is 2,048 wide for more than 10 states) and random weights, for Walker2d as in the paper. Compile time is
apart.

    python experiments/world_models/computation_time.py --out results/world_models/computation_time
    python experiments/world_models/computation_time.py --out results/world_models/computation_time --figure-only

Rollouts are imagined in batches of ``--batch``. Where all of them would take longer than ``--most-seconds``, one batch
is timed and its time multiplied (``batches_timed`` below ``batches``; the seconds of a scan are those of its steps, so
that this errs by what the machine's speed varies). Columns: ``seconds`` for all rollouts, ``compile_seconds``,
``peak_MiB`` of the process, ``parameters``. The table is of one machine in one run: only its ratios travel.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from experiments.harness import in_venv  # noqa: F401  first of all: it continues in the clone's .venv

# isort: split
import argparse
import itertools
import re
import resource
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.harness import experiment, figures, grid
from experiments.harness.grid import Row
from polygrad_jax import config as configs
from polygrad_jax.agents import a2c
from polygrad_jax.config import Config, EnvSpec
from polygrad_jax.envs import tasks
from polygrad_jax.types import Array, MeanStd, Normaliser, Policy, Segment
from polygrad_jax.world_models.model_table import make_world_model

TASK = "walker2d"
FEWER_STEPS = 16
MODELS: dict[str, dict[str, Any]] = {
    "PolyGRAD MLP": {"world_model": "polygrad"},
    "PolyGRAD MLP, K = 16": {"world_model": "polygrad", "steps": FEWER_STEPS},
    "PolyGRAD transformer": {"world_model": "polygrad", "preset": "paper_transformer"},
    "PolyGRAD transformer, K = 16": {"world_model": "polygrad", "preset": "paper_transformer", "steps": FEWER_STEPS},
    "autoregressive diffusion": {"world_model": "autoregressive"},
    "autoregressive diffusion, K = 16": {"world_model": "autoregressive", "steps": FEWER_STEPS},
    "distilled, 1 call": {"world_model": "distilled"},
    "distilled, 2 calls": {"world_model": "distilled", "calls": 2},
    "transformer": {"world_model": "transformer"},
    "ensemble": {"world_model": "ensemble"},
    "Dreamer-v3": {"world_model": "dreamer"},
    "simulator": {"world_model": "simulator"},
}
COLOURS = {10: "#56B4E9", 50: "#0072B2", 200: "#000000"}
"""By horizon."""


def sized(label: str, horizon: int) -> Config:
    """Return the config of a model by its label, at the paper's size."""
    wanted = MODELS[label]
    base = configs.preset(wanted.get("preset", "paper"), TASK)
    width = 1024 if horizon <= 10 else 2048
    diffusion = replace(base.diffusion, sampling_steps=wanted.get("steps", base.diffusion.num_steps))
    denoiser = replace(base.denoiser, width=width) if wanted["world_model"] == "polygrad" else base.denoiser
    config = replace(
        base, world_model=wanted["world_model"], horizon=horizon, diffusion=diffusion, denoiser=denoiser
    )
    if "calls" in wanted:
        config = replace(config, distilled=replace(config.distilled, calls=wanted["calls"]))
    return configs.validate(config)


def contexts(spec: EnvSpec, batch: int, length: int, key: Array) -> Segment:
    """Draw contexts ``[B, C]`` of standard normal numbers, all observed."""
    observations, actions = (
        jax.random.normal(jax.random.fold_in(key, i), (batch, length, size))
        for i, size in enumerate((spec.observation_size, spec.action_size))
    )
    zeros = jnp.zeros((batch, length))
    rows = jnp.zeros((batch, length), jnp.int32)
    return Segment(observations, jnp.clip(actions, -1, 1), zeros, zeros, rows, jnp.ones((batch, length), bool))


def timed(options: argparse.Namespace, varied: tuple[str, int]) -> Iterator[Row]:
    """Time one model at one horizon."""
    (label, horizon), batch = varied, options.batch
    config = sized(label, horizon)
    env = tasks.make(config.env)
    spec = tasks.spec_of(env)
    env.close()
    model = make_world_model(config, spec)
    model_key, policy_key, key = jax.random.split(jax.random.key(0), 3)
    state = jax.jit(model.init)(model_key)
    actor = jax.jit(lambda key: a2c.init(key, spec, config.a2c).actor)(policy_key)
    policy = Policy(actor, a2c.make_policy_apply(spec, config.a2c, config.precision))
    sizes = (spec.observation_size, spec.action_size, 1, 1)
    normaliser = Normaliser(*(MeanStd(jnp.zeros(n), jnp.ones(n)) for n in sizes))
    context = contexts(spec, batch, model.context_length, key)

    given = (state, policy, context, normaliser, key)
    began = time.perf_counter()
    program = jax.jit(lambda *given: model.imagine(*given)[0]).lower(*given).compile()
    compile_seconds = time.perf_counter() - began

    def one() -> float:
        began = time.perf_counter()
        jax.block_until_ready(program(*given))
        return time.perf_counter() - began

    batches = options.rollouts // batch
    times = [one()]
    if times[0] * batches <= options.most_seconds:
        times = [one() for _ in range(batches)]  # the first also touched fresh memory
    params = getattr(state, "params", ())
    yield {
        "model": label,
        "horizon": horizon,
        "rollouts": options.rollouts,
        "seconds": float(np.mean(times)) * batches,
        "batch": batch,
        "batches": batches,
        "batches_timed": len(times),
        "compile_seconds": compile_seconds,
        "peak_MiB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10,
        "parameters": sum(x.size for x in jax.tree.leaves(params)),
        "precision": config.precision,
    }


def draw(out: Path) -> None:
    """Draw ``computation_time.png``: seconds for 1,000 rollouts of every model and horizon, logarithmic."""
    rows = grid.read_measured(out / "computation_time.csv", lambda r: r.get("seconds"))
    if not rows:
        return
    labels = [label for label in MODELS if any(r["model"] == label for r in rows)][::-1]
    horizons = sorted({int(r["horizon"]) for r in rows})
    size = (7.5, 0.5 * len(labels) + 1.4)
    with figures.figure(out / "computation_time.png", size=size) as (_, axes):
        axis = axes[0, 0]
        for r in rows:
            seconds, horizon = float(r["seconds"]), int(r["horizon"])
            y = labels.index(r["model"]) - 0.22 * (horizons.index(horizon) - (len(horizons) - 1) / 2)
            axis.plot(seconds, y, "o", color=COLOURS.get(horizon, "#D55E00"), markersize=5)
            said = f"H {horizon}: " + (f"{seconds:,.0f}" if seconds >= 100 else f"{seconds:.3g}")
            place = {"xytext": (5, 0), "textcoords": "offset points", "va": "center"}
            axis.annotate(said, (seconds, y), fontsize=6, **place)
        axis.set_yticks(range(len(labels)), labels, fontsize=8)
        axis.set_xscale("log")
        axis.margins(x=0.15)
        axis.set_xlabel(f"seconds for {int(rows[0]['rollouts']):,} rollouts, compile time apart")
        axis.grid(axis="y", linewidth=0.3)
        machine = f"{rows[0]['precision']}, {rows[0]['processor']}, {rows[0]['cores']} core(s)"
        axis.set_title(f"{TASK}, the paper's sizes, {machine}\n{grid.physics_of(rows)}", fontsize=8)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--models", nargs="+", choices=list(MODELS), default=list(MODELS))
    parser.add_argument("--horizons", type=int, nargs="+", default=[10, 50, 200])
    parser.add_argument("--rollouts", type=int, default=1000)
    parser.add_argument("--batch", type=int, default=125, help="rollouts at once")
    parser.add_argument("--most-seconds", type=float, default=120.0, help="timed in full up to here")


def cells(options: argparse.Namespace) -> dict[str, tuple[str, int]]:
    """Return the models and horizons by the names of their cells.

    Raises:
      ConfigError: the rollouts are not whole batches.
    """
    if options.rollouts % options.batch:
        raise configs.ConfigError(
            f"--rollouts is {options.rollouts}; allowed: a multiple of --batch ({options.batch})"
        )
    varied = itertools.product(options.models, options.horizons)
    return {re.sub("[^A-Za-z0-9]", "-", label) + f"-h{horizon}": (label, horizon) for label, horizon in varied}


TIMES = experiment.Experiment(Path(__file__), __doc__, draw, cells, timed, add_arguments)

if __name__ == "__main__":
    sys.exit(experiment.run(TIMES))
