"""How long does each world model take to imagine 1,000 rollouts? (the paper's Figure 4)

Every model has the paper's size (``polygrad_jax/config.py``: presets ``paper`` and ``paper_transformer``; the residual
MLP is 2,048 wide for more than 10 states) and random weights, for Walker2d as in the paper. Compile time is apart.

    python experiments/computation_time.py --out results/computation_time
    python experiments/computation_time.py --out results/computation_time --figure-only

Rollouts are imagined in batches of ``--batch``. Where all of them would take longer than ``--most-seconds``, one batch
is timed and its time multiplied (``batches_timed`` below ``batches``; the seconds of a scan are those of its steps, so
that this errs by what the machine's speed varies). Columns: ``seconds`` for all rollouts, ``compile_seconds``,
``peak_MiB`` of the process, ``parameters``. The table is of one machine in one run: only its ratios travel.
"""

from __future__ import annotations

import argparse
import itertools
import json
import resource
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from experiments.harness import grid as sweep

from polygrad_jax import config as configs
from polygrad_jax.config import Config, EnvSpec
from polygrad_jax.envs import tasks as registry
from polygrad_jax.agents import a2c
from polygrad_jax.runs.run_folder import write_text_atomically
from polygrad_jax.training.simulator_host import host_for
from polygrad_jax.types import Array, MeanStd, Normaliser, Segment
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
    "transformer": {"world_model": "transformer"},
    "ensemble": {"world_model": "ensemble"},
    "Dreamer-v3": {"world_model": "dreamer"},
    "simulator": {"world_model": "simulator"},
}


def sized(label: str, horizon: int) -> Config:
    """The config of a model by its label, at the paper's size."""
    wanted = MODELS[label]
    base = configs.preset(wanted.get("preset", "paper"), TASK)
    width = 1024 if horizon <= 10 else 2048
    diffusion = replace(base.diffusion, sampling_steps=wanted.get("steps", base.diffusion.num_steps))
    denoiser = replace(base.denoiser, width=width) if wanted["world_model"] == "polygrad" else base.denoiser
    config = replace(
        base, world_model=wanted["world_model"], horizon=horizon, diffusion=diffusion, denoiser=denoiser
    )
    return configs.validate(config)


def contexts(spec: EnvSpec, batch: int, length: int, key: Array) -> Segment:
    """Contexts ``[B, C]`` of standard normal numbers, all observed."""
    observations, actions = (
        jax.random.normal(jax.random.fold_in(key, i), (batch, length, size))
        for i, size in enumerate((spec.observation_size, spec.action_size))
    )
    zeros = jnp.zeros((batch, length))
    rows = jnp.zeros((batch, length), jnp.int32)
    return Segment(observations, jnp.clip(actions, -1, 1), zeros, zeros, rows, jnp.ones((batch, length), bool))


def timed(label: str, horizon: int, rollouts: int, batch: int, most_seconds: float) -> dict[str, Any]:
    """One row, without what describes the machine."""
    config = sized(label, horizon)
    env = registry.make(config.env)
    spec = registry.spec_of(env)
    env.close()
    model = make_world_model(config, spec, host_for(config))
    policy_apply = a2c.make_policy_apply(spec, config.a2c, config.precision)
    model_key, policy_key, key = jax.random.split(jax.random.key(0), 3)
    state = jax.jit(model.init)(model_key)
    actor = jax.jit(lambda key: a2c.init(key, spec, config.a2c).actor)(policy_key)
    sizes = (spec.observation_size, spec.action_size, 1, 1)
    normaliser = Normaliser(*(MeanStd(jnp.zeros(n), jnp.ones(n)) for n in sizes))
    context = contexts(spec, batch, model.context_length, key)

    def imagine(state, actor, context, normaliser, key):
        return model.imagine(state, policy_apply, actor, context, normaliser, key, horizon)[1]

    began = time.perf_counter()
    program = jax.jit(imagine).lower(state, actor, context, normaliser, key).compile()
    compile_seconds = time.perf_counter() - began

    def one() -> float:
        began = time.perf_counter()
        jax.block_until_ready(program(state, actor, context, normaliser, key))
        return time.perf_counter() - began

    batches = rollouts // batch
    times = [one()]
    if times[0] * batches <= most_seconds:
        times = [one() for _ in range(batches)]  # the first also touched fresh memory
    params = getattr(state, "params", ())
    return {
        "model": label,
        "horizon": horizon,
        "rollouts": rollouts,
        "seconds": float(np.mean(times)) * batches,
        "batch": batch,
        "batches": batches,
        "batches_timed": len(times),
        "compile_seconds": compile_seconds,
        "peak_MiB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10,
        "parameters": sum(x.size for x in jax.tree.leaves(params)),
        "precision": config.precision,
    }


# --- the figure ------------------------------------------------------------------------------------------------------

COLOURS = {10: "#56B4E9", 50: "#0072B2", 200: "#000000"}


def draw(out: Path) -> None:
    """``computation_time.png``: seconds for 1,000 rollouts of every model and horizon, logarithmic."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    rows = [r for r in sweep.read_csv(out / "computation_time.csv") if r.get("seconds")]
    labels = [label for label in MODELS if any(r["model"] == label for r in rows)][::-1]
    horizons = sorted({int(r["horizon"]) for r in rows})
    figure, axis = plt.subplots(figsize=(7.5, 0.5 * len(labels) + 1.4))
    for r in rows:
        y = labels.index(r["model"])
        offset = 0.22 * (horizons.index(int(r["horizon"])) - (len(horizons) - 1) / 2)
        seconds = float(r["seconds"])
        axis.plot(seconds, y - offset, "o", color=COLOURS.get(int(r["horizon"]), "#D55E00"), markersize=5)
        said = f"{seconds:,.0f}" if seconds >= 100 else f"{seconds:.3g}"
        axis.annotate(
            f"H {r['horizon']}: {said}", (seconds, y - offset), xytext=(5, 0), textcoords="offset points",
            va="center", fontsize=6,
        )
    axis.set_yticks(range(len(labels)), labels, fontsize=8)
    axis.set_xscale("log")
    axis.margins(x=0.15)
    axis.set_xlabel(f"seconds for {int(rows[0]['rollouts']):,} rollouts, compile time apart")
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(axis="y", linewidth=0.3)
    machine = f"{rows[0]['precision']}, {rows[0]['processor']}, {rows[0]['cores']} core(s)"
    axis.set_title(f"{TASK}, the paper's sizes, {machine}", fontsize=8)
    figure.tight_layout()
    sweep.save_figure(figure, out / "computation_time.png")
    plt.close(figure)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    sweep.add_arguments(parser)
    parser.add_argument("--models", nargs="+", choices=list(MODELS), default=list(MODELS))
    parser.add_argument("--horizons", type=int, nargs="+", default=[10, 50, 200])
    parser.add_argument("--rollouts", type=int, default=1000)
    parser.add_argument("--batch", type=int, default=125, help="rollouts at once")
    parser.add_argument("--most-seconds", type=float, default=120.0, help="timed in full up to here")
    parser.add_argument("--cell", help=argparse.SUPPRESS)
    parser.add_argument("--horizon", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--rows", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.rollouts % options.batch:
        parser.error(f"--rollouts is {options.rollouts}; allowed: a multiple of --batch ({options.batch})")
    if options.cell:
        row = timed(options.cell, options.horizon, options.rollouts, options.batch, options.most_seconds)
        write_text_atomically(options.rows, json.dumps([row | sweep.machine()]))
        return 0
    code, path = 0, options.out / "computation_time.csv"
    if not options.figure_only:
        keep = ("--rollouts", options.rollouts, "--batch", options.batch, "--most-seconds", options.most_seconds)
        cells = []
        for label, horizon in itertools.product(options.models, options.horizons):
            name = "".join(c if c.isalnum() else "-" for c in label) + f"-h{horizon}"
            cells.append(sweep.own_cell(__file__, options.out, name, *keep, "--cell", label, "--horizon", horizon))
        code = sweep.run(cells, path, options)
    if path.exists():
        draw(options.out)
    return code


if __name__ == "__main__":
    sys.exit(main())
