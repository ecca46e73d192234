"""Are imagined actions distributed as the policy says, while its std shrinks? (the paper's Figures 3 and 9 to 13)

For every run, a denoiser of N = 128 is fitted to the run's first transitions. Then the policy's std falls from 1 to
0.02 along a straight line, as in the paper, one imagined batch and one step of delta's controller (Eq. 10) per update.
At the stds of the figures, z = (a - mu(s)) / sigma is counted over 1,000 imagined trajectories: with the delta that the
controller has there (``following``) and, for ``score``, with one that was given time to settle (``settled``). With one
std for all actions ``preconditioned`` is ``score`` with another delta and is not tried. DEVIATION from the paper: the
policy's mean is the finished run's throughout, so that the figures show the guidance and not the learning.

    python experiments/guidance/action_distribution.py RUN [RUN ...] --jobs 2 --threads 1 \\
        --out results/guidance/action_distribution
    python experiments/guidance/action_distribution.py --out results/guidance/action_distribution --figure-only

Columns of ``action_distribution.csv``: moments of z, its largest distance from the normal distribution (``z_ks``), the
share of actions further than 3.5 std from the mean (``z_beyond``; 0.0005 is normal), ``delta`` and whether it sits at
its bound, ``finite`` (0: numbers that are not finite came, and everything after is missing), and ``counts``, the
histogram of z on BINS bins from -LIMIT to LIMIT (what lies outside is counted in the outermost).
A distribution of z that is right says nothing of the states: ``correlated`` and ``policy_sampling`` have a normal z at
the states that they were drawn for whatever the denoiser; see ``guidance_error.py``.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from experiments.harness import in_venv  # noqa: F401  first of all: it continues in the clone's .venv

# isort: split
import argparse
import dataclasses
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.guidance.rules_tried import EVEN, RELAXED, Setting, Tried, setting_of
from experiments.harness import experiment, figures, grid, opened_runs, statistics
from experiments.harness.grid import Row
from experiments.harness.guided_sampler import GuidedSampler
from experiments.harness.opened_runs import NUM_STEPS, Fitted, OfRun, drawn_rows, fit
from polygrad_jax.analysis.action_spread import spread_of, standardised_actions
from polygrad_jax.analysis.opened_run import open_run
from polygrad_jax.diffusion.guidance import RULES
from polygrad_jax.types import Array

SIGMAS = (1.0, 0.5, 0.2, 0.1, 0.05, 0.02)
SAMPLING_STEPS = (16, 128)
TRAJECTORIES = 1000
BATCH_ACTIONS = 1280
"""Imagined actions per update while the std falls: 128 trajectories of 10, as in the preset ``cpu``."""
FIRST_LOG_DELTA = np.log(0.05)
LIMIT, BINS = 5.0, 100
EDGES = np.linspace(-LIMIT, LIMIT, BINS + 1)
RULES_TRIED = {
    "score": {"rule": "score"},
    "no_clipping": {"rule": "no_clipping"},
    "correlated 1, relaxed": RELAXED,
    "policy_sampling": {"rule": "policy_sampling"},
}
COLOURS = {
    "score": "#0072B2",
    "no_clipping": "#E69F00",
    "correlated 1, relaxed": "#009E73",
    "policy_sampling": "#CC79A7",
}
SETTLES = ("score",)
"""Rules that are also looked at with a delta that was given time."""


def counts_of(z: np.ndarray) -> np.ndarray:
    """Count how many of the standardised actions lie in each of the BINS bins; the outermost take what lies beyond."""
    return np.histogram(np.clip(z.ravel(), EDGES[0], EDGES[-1]), EDGES)[0]


def make_follow(guided: GuidedSampler, begins: np.ndarray) -> Callable[[Array, Array, Array], Array]:
    """Return ``(log delta, stds [U], key) -> log delta`` after an imagined batch and a controller step at each std."""
    observations = jnp.asarray(guided.fitted.run.transitions.observations[begins])
    trajectories = BATCH_ACTIONS // guided.config.horizon

    def one(log_delta: Array, std_and_key: tuple[Array, Array]) -> tuple[Array, None]:
        std, key = std_and_key
        rows = jax.random.randint(jax.random.fold_in(key, 0), (trajectories,), 0, observations.shape[0])
        given = guided.given(observations[rows], std, log_delta)
        return guided.round(log_delta, given, jax.random.fold_in(key, 1)), None

    @jax.jit
    def follow(log_delta: Array, stds: Array, key: Array) -> Array:
        return jax.lax.scan(one, log_delta, (stds, jax.random.split(key, stds.shape[0])))[0]

    return follow


def falling(updates: int) -> dict[float, np.ndarray]:
    """Return the stds of the updates up to each of SIGMAS, on one straight line from the first to the last."""
    line = np.linspace(SIGMAS[0], SIGMAS[-1], updates)
    ends = [int(np.searchsorted(-line, 1e-9 - s, side="right")) for s in SIGMAS]
    return {s: line[a:b].astype(np.float32) for s, a, b in zip(SIGMAS, [0, *ends[:-1]], ends, strict=True)}


def looked_at(guided: GuidedSampler, begins: np.ndarray, std: float, log_delta: Array) -> Row:
    """Return the columns of one histogram."""
    given = guided.given(guided.fitted.run.transitions.observations[begins], std, log_delta)
    segment = guided.raw(guided.imagine(given, jax.random.key(2)))
    finite = bool(np.isfinite(segment.actions).all() and np.isfinite(segment.observations).all())
    row: Row = {"delta": float(jnp.exp(log_delta)), "finite": int(finite)}
    if not finite:
        return row
    mean = np.asarray(guided.fitted.policy(jnp.asarray(segment.observations))[0])
    z = standardised_actions(segment.actions, mean, np.full(mean.shape, std))
    spread = spread_of(z)
    return row | {
        "z_mean": spread.mean,
        "z_std": spread.std,
        "z_kurtosis": spread.excess_kurtosis,
        "z_ks": spread.ks_distance,
        "z_beyond": float((np.abs(z) > 3.5).mean()),
        "counts": " ".join(map(str, counts_of(z))),
    }


def rows_of_setting(fitted: Fitted, setting: Setting, updates: int) -> Iterator[Row]:
    """Let the std fall under one rule and K; yield a row for each std and each delta."""
    quick = GuidedSampler(fitted, setting.config, setting.schedule)
    # the controller of training, not the one in a hurry
    guidance = dataclasses.replace(setting.config.guidance, delta_lr=fitted.config.guidance.delta_lr)
    slow = GuidedSampler(fitted, dataclasses.replace(setting.config, guidance=guidance), setting.schedule)
    begins = drawn_rows(fitted.episodes, fitted.config.horizon)[:TRAJECTORIES]
    raw_obs, rule = fitted.run.transitions.observations[begins], guidance.rule
    follow, log_delta = make_follow(slow, begins), jnp.float32(FIRST_LOG_DELTA)
    for number, (std, stds) in enumerate(falling(updates).items()):
        if RULES[rule].tunes_delta:
            if number == 0:  # the paper's policies stay at std 1 for long before
                log_delta, _ = quick.settled(raw_obs, std)
            log_delta = follow(log_delta, jnp.asarray(stds), jax.random.fold_in(jax.random.key(4), number))
        found = looked_at(quick, begins, std, log_delta)
        yield {"sigma": std, "protocol": "following"} | found
        if rule in SETTLES and found["finite"]:
            quiet, at_bound = quick.settled(raw_obs, std)
            labels = {"sigma": std, "protocol": "settled", "at_bound": at_bound}
            yield labels | looked_at(quick, begins, std, quiet)


def rows_of(options: argparse.Namespace, varied: OfRun) -> Iterator[Row]:
    """Measure all rules and K for one run and one horizon."""
    run, horizon = open_run(varied.run), varied.more
    config = opened_runs.config_of(run, options, "--horizon", str(horizon))
    fitted = fit(run, config, options.data_rows, options.updates)
    common = {"env": config.env.name, "seed": config.seed, "horizon": horizon, "rows": options.data_rows}
    common |= {"updates": options.updates, "falling_updates": options.falling}
    for (rule, guidance), steps in itertools.product(RULES_TRIED.items(), SAMPLING_STEPS):
        setting = setting_of(config, rule, Tried(guidance, SAMPLING_STEPS, EVEN), steps)
        for row in rows_of_setting(fitted, setting, options.falling):
            yield common | setting.labels | row


# --- the figures -----------------------------------------------------------------------------------------------------


def density(rows: list[dict[str, str]]) -> np.ndarray:
    """Return the density of z on the bins, over all the rows given; no actions give NaN."""
    counts = sum(np.array(r["counts"].split(), float) for r in rows if r["counts"])
    return counts / np.sum(counts) / np.diff(EDGES) if np.ndim(counts) else np.full(BINS, np.nan)


def draw_panel(axis: Any, rows: list[dict[str, str]], colour: str) -> None:
    """Draw the density at one std under one rule, the normal one dashed, and say how far they are apart."""
    middle = (EDGES[1:] + EDGES[:-1]) / 2
    axis.plot(middle, np.exp(-(middle**2) / 2) / np.sqrt(2 * np.pi), "k--", linewidth=0.8)
    axis.plot(middle, density(rows), color=colour, linewidth=1.3)
    lost = sum(r["finite"] == "0" for r in rows)
    distances = [float(r["z_ks"]) for r in rows if r["z_ks"]]
    label = f"KS {np.mean(distances):.3f}" if distances else "not finite"
    label += f", {lost} not finite" if lost and distances else ""
    box = {"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 0.8}
    axis.text(0.03, 0.93, label, va="top", fontsize=6, transform=axis.transAxes, bbox=box)
    axis.set_ylim(0, 0.75)
    axis.tick_params(labelsize=6)


def draw(out: Path) -> None:
    """Draw a figure for every task, horizon and K in the CSV: a column per std, a row per rule."""
    rows = [r for r in grid.read_csv(out / "action_distribution.csv") if r.get("rule")]
    for (task, horizon, steps), of_figure in statistics.groups(rows, ("env", "horizon", "sampling_steps")).items():
        sigmas = sorted({float(r["sigma"]) for r in of_figure}, reverse=True)
        rules = [rule for rule in COLOURS if any(r["rule"] == rule for r in of_figure)]
        path, size = out / f"{task}_h{horizon}_k{steps}.png", (2.1 * len(sigmas), 1.5 * len(rules))
        with figures.figure(path, len(rules), len(sigmas), size, sharex=True, sharey=True) as (figure, axes):
            following = [r for r in of_figure if r["protocol"] == "following"]
            for (i, rule), (j, sigma) in itertools.product(enumerate(rules), enumerate(sigmas)):
                own = [r for r in following if (r["rule"], float(r["sigma"])) == (rule, sigma)]
                draw_panel(axes[i, j], own, COLOURS[rule])
            for axis, sigma in zip(axes[0], sigmas, strict=True):
                axis.set_title(f"sigma {sigma:g}", fontsize=8)
            for axis, rule in zip(axes[:, 0], rules, strict=True):
                axis.set_ylabel(rule.replace("_", " "), fontsize=8)
            figure.supxlabel("standardised action, (a - mean) / sigma", fontsize=8)
            first, seeds = of_figure[0], statistics.count_seeds(of_figure)
            figure.suptitle(
                f"{task}, H = {horizon}, K = {steps} of {NUM_STEPS}, std falling in {first['falling_updates']} "
                f"updates; denoiser of {first['updates']} updates on {first['rows']} transitions, {seeds} seed(s); "
                f"{grid.physics_of(of_figure)}",
                fontsize=8,
            )


def add_arguments(parser: argparse.ArgumentParser) -> None:
    opened_runs.add_arguments(parser)
    parser.add_argument("--horizons", type=int, nargs="+", default=[10, 50])
    parser.add_argument("--falling", type=int, default=1_000, help="updates in which the std falls from 1 to 0.02")


def cells(options: argparse.Namespace) -> dict[str, OfRun]:
    """Return the runs and horizons by the names of their cells."""
    return opened_runs.cells(options, ((f"-h{horizon}", horizon) for horizon in options.horizons))


ACTION_DISTRIBUTION = experiment.Experiment(Path(__file__), __doc__, draw, cells, rows_of, add_arguments)

if __name__ == "__main__":
    sys.exit(experiment.run(ACTION_DISTRIBUTION))
