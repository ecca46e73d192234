"""What would an imagined batch teach the policy? Its gradient beside MuJoCo's own, per guidance rule and K.

For every run, a denoiser of N = 128 is fitted to the run's first transitions (with a classifier
of terminals where the run has one) and imagines under the policy that was learning, with its own std. The gradient of
that batch, with the run's critic, is compared with the gradient of the same policy acting in MuJoCo from the same
states: nothing else of an imagined batch reaches the actor. ``own`` is the run's model as it learnt, with its own N.
The null cases are an untrained network and a batch under actions of nobody (``random_actions``), which a good rule must
leave behind.

    python experiments/guidance/gradient_study.py RUN [RUN ...] --jobs 2 --threads 1 \\
        --out results/guidance/gradient_study
    python experiments/guidance/gradient_study.py --out results/guidance/gradient_study --figure-only

Columns of ``gradient_study.csv``: ``closed_cosine`` between the imagined batch's gradient and that of two batches of
MuJoCo together, ``closed_ceiling`` between those two (what a perfect model has, about), ``norm_ratio`` of the lengths;
``open_cosine`` with MuJoCo replaying the imagined actions, and ``advantage_correlation`` there; ``z_std`` of
(a - mu(s)) / sigma; ``ends`` and ``rewards`` (mean per step, 0 behind an end), imagined and in the closed loop.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from experiments.harness import in_venv  # noqa: F401  first of all: it continues in the clone's .venv

# isort: split
import argparse
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.guidance.rules_tried import COLOURS, RANDOM_ACTIONS, TRIED, Setting, setting_of
from experiments.harness import experiment, figures, gradient_error, grid, opened_runs, statistics
from experiments.harness.gradient_error import Learning, before_end, cosine
from experiments.harness.grid import Row
from experiments.harness.guided_sampler import ROUNDS, SETTLING_ACTIONS
from experiments.harness.opened_runs import OfRun, begun_rows, fit
from polygrad_jax.analysis.opened_run import OpenedRun, open_run
from polygrad_jax.config import Config, ConfigError
from polygrad_jax.data.recordings import contexts_at
from polygrad_jax.diffusion.guidance import RULES
from polygrad_jax.training.fitting import settle
from polygrad_jax.types import Normaliser, Segment
from polygrad_jax.world_models.polygrad import make_polygrad

STEPS = (8, 16, 32, 128)
WITH_NOBODY = {name: tried for name, tried in TRIED.items() if not tried.z_of} | {"random_actions": RANDOM_ACTIONS}
OF_OWN = ("score", "correlated 1", "correlated 1, relaxed", "correlated 1, relaxed 0.3", "random_actions")
NULL = {(16, "score"), (16, "correlated 1")}
"""K and rule under which the untrained network is measured."""


class Truth(NamedTuple):
    """What the policy does in MuJoCo from the states at ``rows``, twice."""

    rows: np.ndarray
    segments: tuple[Segment, Segment]
    learnt: tuple[Learning, Learning]


def truth_of(run: OpenedRun, config: Config, rows: np.ndarray) -> Truth:
    states, policy = run.simulator_states_at(rows), run.agent.policy(run.agent_state)
    segments = tuple(gradient_error.played(config.env, states, policy, config.horizon, seed) for seed in (1, 2))
    learnt = tuple(gradient_error.learning(run.agent_state, s, run.config.a2c, run.spec) for s in segments)
    return Truth(rows, segments, learnt)


def earned(segment: Segment) -> float:
    """Return the mean reward of a step but the last, 0 behind an end."""
    return float((np.asarray(segment.rewards) * before_end(segment.terminals))[:, :-1].mean())


def imagined(run: OpenedRun, setting: Setting, state: Any, normaliser: Normaliser, rows: np.ndarray) -> Segment:
    """Imagine ``[B, H]`` raw from the observations at ``rows``, delta settled before where the rule tunes one."""
    config = setting.config
    model = make_polygrad(config, run.spec, schedule=setting.schedule)
    policy = run.agent.policy(run.agent_state)
    contexts = contexts_at(run.transitions.observations[rows], run.spec)
    if RULES[config.guidance.rule].tunes_delta:
        few = jax.tree.map(lambda x: x[: SETTLING_ACTIONS // config.horizon], contexts)
        state = settle(model, state, policy, few, normaliser, jax.random.key(1), ROUNDS)
    segment, _ = jax.jit(model.imagine)(state, policy, contexts, normaliser, jax.random.key(2))
    return jax.device_get(segment)


def measure(run: OpenedRun, setting: Setting, state: Any, normaliser: Normaliser, truth: Truth) -> dict[str, float]:
    """Return the columns of one setting."""
    segment = imagined(run, setting, state, normaliser, truth.rows)
    replayed = gradient_error.replayed(run.config.env, run.simulator_states_at(truth.rows), segment)
    ours, opened = (gradient_error.learning(run.agent_state, s, run.config.a2c, run.spec) for s in (segment, replayed))
    first, second = truth.learnt
    mean, std = jax.device_get(run.agent.policy(run.agent_state)(jnp.asarray(segment.observations)))
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


def settings(config: Config, own: bool) -> Iterator[Setting]:
    """Yield rules and K: of the fitted denoiser all of them, of the run's own model with all its N steps."""
    for rule in OF_OWN if own else tuple(WITH_NOBODY):
        tried = WITH_NOBODY[rule]
        for steps in (config.diffusion.num_steps,) if own else sorted({*tried.sampling_steps} & {*STEPS}):
            setting = setting_of(config, rule, tried, steps)
            labels = {"rule": rule, "num_steps": config.diffusion.num_steps, "sampling_steps": steps}
            yield setting._replace(labels=labels | tried.spacing.labels())


def models_of(run: OpenedRun, options: argparse.Namespace) -> Iterator[tuple[str, Config, Any, Normaliser]]:
    """Yield ``(name, config, state, normaliser)``: fitted, not trained at all, and as it learnt."""
    config = opened_runs.config_of(run, options)
    for name, updates in (("fitted", options.updates), ("untrained", 0)):
        fitted = fit(run, config, options.data_rows, updates)
        yield name, config, fitted.state, fitted.normaliser
    yield "own", run.config, run.model_state, run.normaliser


def rows_of(options: argparse.Namespace, varied: OfRun) -> Iterator[Row]:
    """Measure all settings for one run; the untrained network under two of them.

    Raises:
      ConfigError: the run's agent is another than A2C, whose gradient is compared.
    """
    run = open_run(varied.run)
    if run.config.agent != "a2c":
        raise ConfigError(f"{varied.run} is a run of agent {run.config.agent}; allowed: a2c, whose gradient is meant")
    truth = truth_of(run, run.config, begun_rows(run, options.data_rows))
    common = {"env": run.config.env.name, "seed": run.config.seed, "run_steps": run.env_steps}
    common |= {"rows": options.data_rows, "updates": options.updates}
    stds = run.agent.policy(run.agent_state)(jnp.asarray(truth.segments[0].observations))[1]
    common |= {"std": float(f"{stds.mean():.3g}")}
    for model, config, state, normaliser in models_of(run, options):
        for setting in settings(config, own=model == "own"):
            if model == "untrained" and (setting.labels["sampling_steps"], setting.labels["rule"]) not in NULL:
                continue
            yield common | {"model": model} | setting.labels | measure(run, setting, state, normaliser, truth)


# --- the figure ------------------------------------------------------------------------------------------------------


def draw_task(axis: Any, rows: list[dict[str, str]]) -> None:
    """Draw the cosines of one task: a line per rule over K, its seeds shaded; what bounds them, dashed."""
    fitted = [r for r in rows if r["model"] == "fitted"]
    for rule, (colour, style) in (COLOURS | {"random_actions": (figures.GREY, "d")}).items():
        own = statistics.along((r for r in fitted if r["rule"] == rule), "sampling_steps", "closed_cosine")
        if own[0]:
            figures.mean_and_range(axis, *own, style, rule.replace("_", " "), colour, alpha=0.12)
    for measured, style, label in (
        ([r["closed_ceiling"] for r in rows], "--", "two batches of MuJoCo"),
        ([r["closed_cosine"] for r in rows if r["model"] == "untrained"], ":", "untrained"),
    ):
        axis.axhline(np.mean([float(x) for x in measured]), color="0.4", linewidth=1, linestyle=style, label=label)
    figures.diffusion_steps_axis(axis, STEPS)
    axis.set_xlabel("K, diffusion steps sampled of 128", fontsize=8)


def draw(out: Path) -> None:
    """Draw ``gradient_study.png``: cosine of the imagined gradient with MuJoCo's against K, a panel per task."""
    rows = grid.read_measured(out / "gradient_study.csv", lambda r: r.get("model"))  # a diverged cell has none
    if not rows:
        return
    tasks = statistics.groups(rows, ("env",))
    size = (3.6 * len(tasks) + 2.6, 3.6)
    layout = {"size": size, "rect": (0, 0, 1 - 2.4 / size[0], 1), "sharey": True}
    with figures.figure(out / "gradient_study.png", 1, len(tasks), **layout) as (figure, axes):
        for axis, ((task,), own) in zip(axes[0], tasks.items(), strict=True):
            draw_task(axis, own)
            stds = sorted({r["std"] for r in own}, key=float)
            seeds = statistics.count_seeds(own)
            axis.set_title(f"{task}, {seeds} seed(s), policy std {stds[0]} to {stds[-1]}", fontsize=8)
        axes[0, 0].set_ylabel("cosine with the gradient in MuJoCo", fontsize=8)
        figures.legend_of_all(figure, loc="center right", fontsize=7)
        updates, transitions = rows[0]["updates"], rows[0]["rows"]
        figure.suptitle(
            f"denoisers fitted with {updates} updates to {transitions} transitions of small training runs; "
            f"{grid.physics_of(rows)}",
            fontsize=8,
        )


GRADIENTS = experiment.Experiment(
    Path(__file__), __doc__, draw, opened_runs.cells, rows_of, opened_runs.add_arguments
)

if __name__ == "__main__":
    sys.exit(experiment.run(GRADIENTS))
