"""What would an imagined batch teach the policy? Its gradient beside MuJoCo's own, per guidance rule and K.

For every run, a denoiser of N = 128 is fitted to the run's first transitions (``guidance_error.py``; with a classifier
of terminals where the run has one) and imagines under the policy that was learning, with its own std. The gradient of
that batch, with the run's critic, is compared with the gradient of the same policy acting in MuJoCo from the same
states: nothing else of an imagined batch reaches the actor. ``own`` is the run's model as it learnt, with its own N.
The null cases are an untrained network and a batch under actions of nobody (``random_actions``), which a good rule must
leave behind.

    python experiments/gradient_study.py RUN [RUN ...] --out results/gradient_study --jobs 2 --threads 1
    python experiments/gradient_study.py --out results/gradient_study --figure-only

Columns of ``gradient_study.csv``: ``closed_cosine`` between the imagined batch's gradient and that of two batches of
MuJoCo together, ``closed_ceiling`` between those two (what a perfect model has, about), ``norm_ratio`` of the lengths;
``open_cosine`` with MuJoCo replaying the imagined actions, and ``advantage_correlation`` there; ``z_std`` of
(a - mu(s)) / sigma; ``ends`` and ``rewards`` (mean per step, 0 behind an end), imagined and in the closed loop.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from experiments.harness import grid as sweep
from experiments.archive.denoiser_settings import begun_rows
from experiments.guidance.guidance_error import COLOURS, DELTA_LR, NUM_STEPS, ROUNDS, SETTLING_ACTIONS, TRIED, Tried, fit

from polygrad_jax import config as configs
from polygrad_jax.cli import override
from polygrad_jax.config import Config
from polygrad_jax.diffusion.guidance import RULES
from experiments.harness import gradient_error
from polygrad_jax.analysis.opened_run import FinishedRun, open_finished, require_raw_policy
from experiments.harness.gradient_error import Learning, absorbing, cosine
from polygrad_jax.runs.run_folder import write_text_atomically
from polygrad_jax.types import Normaliser, Segment
from polygrad_jax.data import recordings as fitting
from polygrad_jax.world_models.model_table import make_world_model

STEPS = (8, 16, 32, 128)
WITH_NOBODY = {name: tried for name, tried in TRIED.items() if not tried.z_of} | {
    "random_actions": Tried({"rule": "random_actions"}, (16,))
}
OF_OWN = ("score", "correlated 1", "correlated 1, relaxed", "correlated 1, relaxed 0.3", "random_actions")
NULL = {(16, "score"), (16, "correlated 1")}
"""K and rule under which the untrained network is measured."""


class Truth(NamedTuple):
    """What the policy does in MuJoCo from the states at ``rows``, twice."""

    rows: np.ndarray
    segments: tuple[Segment, Segment]
    learnt: tuple[Learning, Learning]


def truth_of(run: FinishedRun, config: Config, rows: np.ndarray) -> Truth:
    states, policy = run.transitions.simulator_states[rows], (run.policy_apply, run.learner.actor)
    segments = tuple(gradient_error.played(config.env, states, *policy, config.horizon, seed) for seed in (1, 2))
    learnt = tuple(gradient_error.learning(run.learner, s, run.config.a2c, run.spec) for s in segments)
    return Truth(rows, segments, learnt)


def earned(segment: Segment) -> float:
    """Mean reward of a step but the last, 0 behind an end."""
    ended = absorbing(segment.terminals)
    before = np.concatenate([np.zeros_like(ended[:, :1]), ended[:, :-1]], axis=1)
    return float((np.asarray(segment.rewards) * (1.0 - before))[:, :-1].mean())


def imagined(run: FinishedRun, config: Config, state: Any, normaliser: Normaliser, rows: np.ndarray) -> Segment:
    """``[B, H]`` raw from the observations at ``rows``, delta settled before where the rule tunes one."""
    model, actor = make_world_model(config, run.spec), run.learner.actor
    contexts = fitting.contexts_at(run.transitions.observations[rows], run.spec)
    if RULES[config.guidance.rule].tunes_delta:
        few = jax.tree.map(lambda x: x[: SETTLING_ACTIONS // config.horizon], contexts)
        settled = (run.policy_apply, actor, few, normaliser, jax.random.key(1), config.horizon, ROUNDS)
        state = fitting.settle(model, state, *settled)
    imagine = jax.jit(model.imagine, static_argnums=(1, 6))
    _, segment, _ = imagine(state, run.policy_apply, actor, contexts, normaliser, jax.random.key(2), config.horizon)
    segment = jax.device_get(segment)
    return segment.replace(terminals=absorbing(segment.terminals), rows=None)


def measure(run: FinishedRun, config: Config, state: Any, normaliser: Normaliser, truth: Truth) -> dict[str, float]:
    """The columns of one setting."""
    segment = imagined(run, config, state, normaliser, truth.rows)
    replayed = gradient_error.replayed(config.env, run.transitions.simulator_states[truth.rows], segment)
    ours, opened = (gradient_error.learning(run.learner, s, run.config.a2c, run.spec) for s in (segment, replayed))
    first, second = truth.learnt
    mean, std = jax.device_get(run.policy_apply(run.learner.actor, jnp.asarray(segment.observations)))
    compared = gradient_error.compare(ours, opened)
    return {
        "closed_cosine": cosine(ours.gradient, first.gradient + second.gradient),
        "closed_ceiling": cosine(first.gradient, second.gradient),
        "norm_ratio": float(np.linalg.norm(ours.gradient) / np.linalg.norm(first.gradient)),
        "open_cosine": compared["gradient_cosine"],
        "advantage_correlation": compared["advantage_correlation"],
        "z_std": float(((segment.actions - mean) / std)[:, :-1].std()),
        "ends_imagined": float(segment.terminals[:, -2].mean()),
        "ends_closed": float(np.mean([s.terminals[:, -2].mean() for s in truth.segments])),
        "rewards_imagined": earned(segment),
        "rewards_closed": float(np.mean([earned(s) for s in truth.segments])),
    }


def settings(config: Config, own: bool) -> Iterator[tuple[dict[str, Any], Config]]:
    """Rules and steps: of the fitted denoiser all of them, of the run's own model with all its N steps."""
    for rule in OF_OWN if own else tuple(WITH_NOBODY):
        tried = WITH_NOBODY[rule]
        for steps in (config.diffusion.num_steps,) if own else sorted({*tried.sampling_steps} & {*STEPS}):
            guidance = dataclasses.replace(config.guidance, delta_lr=DELTA_LR, **tried.guidance)
            diffusion = dataclasses.replace(config.diffusion, sampling_steps=steps, **tried.sampling)
            there = configs.validate(dataclasses.replace(config, guidance=guidance, diffusion=diffusion))
            labels = {"rule": rule, "num_steps": diffusion.num_steps, "sampling_steps": steps}
            yield labels | tried.sampling, there


def models_of(run: FinishedRun, options: argparse.Namespace) -> Iterator[tuple[str, Config, Any, Normaliser]]:
    """``(name, config, state, normaliser)``: fitted, as it learnt, and not trained at all."""
    fields = [*shlex.split(options.fields), "--diffusion.num-steps", str(NUM_STEPS)]
    config = configs.validate(override(run.config, fields))
    for name, updates in (("fitted", options.updates), ("untrained", 0)):
        fitted = fit(run, config, options.data_rows, updates)
        yield name, config, fitted.state, fitted.normaliser
    yield "own", run.config, run.model_state, run.normaliser


def run_cell(options: argparse.Namespace) -> list[dict]:
    """All settings for one run; the untrained network under two of them.

    Raises:
      ConfigError: the run's policy does not read raw observations.
    """
    run = open_finished(options.cell)
    require_raw_policy(run)
    truth = truth_of(run, run.config, begun_rows(run, options.data_rows))
    about = sweep.machine()
    common = {"env": run.config.env.name, "seed": run.config.seed, "run_steps": run.env_steps}
    common |= {"rows": options.data_rows, "updates": options.updates}
    stds = run.policy_apply(run.learner.actor, jnp.asarray(truth.segments[0].observations))[1]
    common |= {"std": float(f"{stds.mean():.3g}")}
    rows = []
    for model, config, state, normaliser in models_of(run, options):
        for labels, there in settings(config, own=model == "own"):
            if model == "untrained" and (labels["sampling_steps"], labels["rule"]) not in NULL:
                continue
            row = common | {"model": model} | labels | measure(run, there, state, normaliser, truth)
            rows.append({k: float(f"{v:.5g}") if isinstance(v, float) else v for k, v in row.items()} | about)
            print(json.dumps(rows[-1]), flush=True)
    return rows


# --- the figure ------------------------------------------------------------------------------------------------------


def draw_task(axis: Any, rows: list[dict[str, str]]) -> None:
    """Cosines of one task: a line per rule over K, its seeds shaded; what bounds them, dashed."""
    for rule, (colour, style) in (COLOURS | {"random_actions": ("#7F7F7F", "d")}).items():
        there = [r for r in rows if (r["model"], r["rule"]) == ("fitted", rule)]
        steps = sorted({int(r["sampling_steps"]) for r in there})
        if not steps:
            continue
        found = [[float(r["closed_cosine"]) for r in there if int(r["sampling_steps"]) == k] for k in steps]
        axis.plot(steps, [np.mean(x) for x in found], style, color=colour, markersize=3, label=rule.replace("_", " "))
        low, high = ([f(x) for x in found] for f in (min, max))
        axis.fill_between(steps, low, high, color=colour, alpha=0.12, linewidth=0)
    for measured, style, label in (
        ([r["closed_ceiling"] for r in rows], "--", "two batches of MuJoCo"),
        ([r["closed_cosine"] for r in rows if r["model"] == "untrained"], ":", "untrained"),
    ):
        axis.axhline(np.mean([float(x) for x in measured]), color="0.4", linewidth=1, linestyle=style, label=label)
    axis.set_xscale("log", base=2)
    axis.set_xticks(STEPS, [str(k) for k in STEPS])
    axis.tick_params(which="both", labelsize=7)
    axis.set_xlabel("K, diffusion steps sampled of 128", fontsize=8)
    axis.spines[["top", "right"]].set_visible(False)


def draw(out: Path) -> None:
    """``gradient_study.png``: cosine of the imagined gradient with MuJoCo's against K, a panel per task."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    rows = sweep.read_csv(out / "gradient_study.csv")
    tasks = list(dict.fromkeys(r["env"] for r in rows))
    figure, axes = plt.subplots(1, len(tasks), figsize=(3.6 * len(tasks) + 2.6, 3.6), squeeze=False, sharey=True)
    for axis, task in zip(axes[0], tasks, strict=True):
        there = [r for r in rows if r["env"] == task]
        draw_task(axis, there)
        seeds, stds = ({r[name] for r in there} for name in ("seed", "std"))
        axis.set_title(f"{task}, {len(seeds)} seed(s), policy std {min(stds, key=float)} to {max(stds, key=float)}",
                       fontsize=8)
    axes[0, 0].set_ylabel("cosine with the gradient in MuJoCo", fontsize=8)
    drawn = {line.get_label(): line for axis in axes.flat for line in axis.lines}
    figure.legend(list(drawn.values()), list(drawn), loc="center right", frameon=False, fontsize=7)
    figure.suptitle(
        f"denoisers fitted with {rows[0]['updates']} updates to {rows[0]['rows']} transitions of small training runs",
        fontsize=8,
    )
    figure.tight_layout(rect=(0, 0, 1 - 2.4 / figure.get_figwidth(), 1))
    sweep.save_figure(figure, out / "gradient_study.png")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="*", metavar="RUN", help="folders of runs")
    sweep.add_arguments(parser)
    parser.add_argument("--data-rows", type=int, default=50_000, help="transitions that the denoisers are fitted to")
    parser.add_argument("--updates", type=int, default=12_000, help="gradient steps of each")
    parser.add_argument("--fields", default="", help='fields of the config, as in "--denoiser.width 512"')
    parser.add_argument("--cell", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--rows", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.cell:
        write_text_atomically(options.rows, json.dumps(run_cell(options)))
        return 0
    code, path = 0, options.out / "gradient_study.csv"
    if not options.figure_only:
        keep = (f"--fields={options.fields}", "--data-rows", options.data_rows, "--updates", options.updates)
        cells = []
        for run in (path.resolve() for path in options.runs):
            name = sweep.with_fields(f"{run.parent.name}-{run.name}", options.fields)
            cells.append(sweep.own_cell(__file__, options.out, name, *keep, "--cell", run))
        code = sweep.run(cells, path, options)
    if path.exists():
        draw(options.out)
    return code


if __name__ == "__main__":
    sys.exit(main())
