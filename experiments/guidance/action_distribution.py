"""Are imagined actions distributed as the policy says, while its std shrinks? (the paper's Figures 3 and 9 to 13)

For every run, a denoiser of N = 128 is fitted to the run's first transitions. Then the policy's std falls from 1 to
0.02 along a straight line, as in the paper, one imagined batch and one step of delta's controller (Eq. 10) per update.
At the stds of the figures, z = (a - mu(s)) / sigma is counted over 1,000 imagined trajectories: with the delta that the
controller has there (``following``) and, for ``score``, with one that was given time to settle (``settled``). With one
std for all actions ``preconditioned`` is ``score`` with another delta and is not tried. DEVIATION from the paper: the
policy's mean is the finished run's throughout, so that the figures show the guidance and not the learning.

    python experiments/action_distribution.py RUN [RUN ...] --out results/action_distribution --jobs 2 --threads 1
    python experiments/action_distribution.py --out results/action_distribution --figure-only

Columns of ``action_distribution.csv``: moments of z, its largest distance from the normal distribution (``z_ks``), the
share of actions further than 3.5 std from the mean (``z_beyond``; 0.0005 is normal), ``delta`` and whether it sits at
its bound, ``finite`` (0: numbers that are not finite came, and everything after is missing), and ``counts``, the
histogram of z on BINS bins from -LIMIT to LIMIT (what lies outside is counted in the outermost).
A distribution of z that is right says nothing of the states: ``correlated`` and ``policy_sampling`` have a normal z at
the states that they were drawn for whatever the denoiser; see ``guidance_error.py``.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import shlex
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from experiments.harness import grid as sweep
from experiments.guidance.guidance_error import DELTA_LR, NUM_STEPS, Fitted, fit, make_run, settled, with_std

from polygrad_jax import config as configs
from polygrad_jax.cli import override
from polygrad_jax.config import Config
from polygrad_jax.data.normaliser import normalise
from polygrad_jax.diffusion.guidance import RULES, Gaussian, sigma_of, standardise, update_log_delta
from polygrad_jax.diffusion.sampler import Given, sample
from polygrad_jax.diffusion.schedule import sampling_coefficients
from polygrad_jax.analysis.opened_run import FinishedRun, open_finished
from polygrad_jax.analysis.action_spread import spread_of, standardised_actions
from polygrad_jax.runs.run_folder import write_text_atomically
from polygrad_jax.types import Array
from polygrad_jax.world_models.polygrad import make_sampler, unpack

SIGMAS = (1.0, 0.5, 0.2, 0.1, 0.05, 0.02)
SAMPLING_STEPS = (16, 128)
BATCH_ACTIONS = 1280
"""Imagined actions per update while the std falls: 128 trajectories of 10, as in the preset ``cpu``."""
FIRST_LOG_DELTA = np.log(0.05)
LIMIT, BINS = 5.0, 100
EDGES = np.linspace(-LIMIT, LIMIT, BINS + 1)
RULES_TRIED = {
    "score": {"rule": "score"},
    "no_clipping": {"rule": "no_clipping"},
    "correlated 1, relaxed": {"rule": "correlated", "rho": 1.0, "relaxation": 0.5},
    "policy_sampling": {"rule": "policy_sampling"},
}
SETTLES = ("score",)
"""Rules that are also looked at with a delta that was given time."""


def counts_of(z: np.ndarray) -> np.ndarray:
    """How many of the standardised actions lie in each of the BINS bins; the outermost take what lies beyond."""
    return np.histogram(np.clip(z.ravel(), EDGES[0], EDGES[-1]), EDGES)[0]


def make_follow(config: Config, run: FinishedRun, fitted: Fitted) -> Callable[[Array, Array, Array], Array]:
    """``(log delta, stds [U], key) -> log delta`` after one imagined batch and one controller step at each std."""
    policy_apply = with_std(run.policy_apply)
    sampler, schedule = make_sampler(config, policy_apply), sampling_coefficients(config.diffusion)
    observations = jnp.asarray(run.transitions.observations[fitted.rows])
    trajectories = BATCH_ACTIONS // config.horizon

    def one(log_delta: Array, std_and_key: tuple[Array, Array]) -> tuple[Array, None]:
        std, key = std_and_key
        rows = jax.random.randint(jax.random.fold_in(key, 0), (trajectories,), 0, observations.shape[0])
        initial = normalise(observations[rows], fitted.normaliser.observations)
        given = Given(fitted.state.ema_params, (run.actor, std), fitted.normaliser, initial, jnp.exp(log_delta))
        traj, actions, _ = sample(
            sampler, given, schedule, jax.random.fold_in(key, 1), config.horizon, run.spec.action_size
        )
        segment = unpack(traj, actions, fitted.normaliser)
        policy = Gaussian(*policy_apply(given.policy_params, segment.observations[:, :-1]))
        sigma = sigma_of(standardise(segment.actions[:, :-1], policy))
        return update_log_delta(log_delta, sigma, policy, config.guidance), None

    @jax.jit
    def follow(log_delta: Array, stds: Array, key: Array) -> Array:
        return jax.lax.scan(one, log_delta, (stds, jax.random.split(key, stds.shape[0])))[0]

    return follow


def falling(updates: int) -> dict[float, np.ndarray]:
    """The stds of the updates up to each of SIGMAS, on one straight line from the first to the last."""
    line = np.linspace(SIGMAS[0], SIGMAS[-1], updates)
    ends = [int(np.searchsorted(-line, 1e-9 - s, side="right")) for s in SIGMAS]
    return {s: line[a:b].astype(np.float32) for s, a, b in zip(SIGMAS, [0, *ends[:-1]], ends, strict=True)}


def looked_at(fitted: Fitted, once: Callable[..., Any], std: float, log_delta: Array) -> dict[str, Any]:
    """The columns of one histogram."""
    run, given = fitted.run, fitted.given(fitted.rows, std, log_delta)
    traj, actions, _ = once(given, jax.random.key(2), False)
    segment = jax.device_get(unpack(traj, actions, fitted.normaliser))
    finite = bool(np.isfinite(segment.actions).all() and np.isfinite(segment.observations).all())
    row: dict[str, Any] = {"delta": float(jnp.exp(log_delta)), "finite": int(finite)}
    if not finite:
        return row
    mean = np.asarray(run.policy_apply(run.actor, jnp.asarray(segment.observations))[0])
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


def rows_of(fitted: Fitted, config: Config, updates: int) -> Iterator[dict[str, Any]]:
    """One rule, one number of steps: the std falls; a row for each std and each delta."""
    run, rule = fitted.run, RULES[config.guidance.rule]
    once, settle, _ = make_run(dataclasses.replace(config, guidance=_quicker(config)), run)
    follow, log_delta = make_follow(config, run, fitted), jnp.float32(FIRST_LOG_DELTA)
    for number, (std, stds) in enumerate(falling(updates).items()):
        if rule.tunes_delta:
            if number == 0:  # the paper's policies stay at std 1 for long before
                log_delta, _ = settled(fitted, config, settle, std)
            log_delta = follow(log_delta, jnp.asarray(stds), jax.random.fold_in(jax.random.key(4), number))
        found = looked_at(fitted, once, std, log_delta)
        yield {"sigma": std, "protocol": "following"} | found
        if config.guidance.rule in SETTLES and found["finite"]:
            quiet, at_bound = settled(fitted, config, settle, std)
            yield {"sigma": std, "protocol": "settled", "at_bound": at_bound} | looked_at(fitted, once, std, quiet)


def _quicker(config: Config) -> configs.GuidanceConfig:
    """The controller in a hurry, for settling."""
    return dataclasses.replace(config.guidance, delta_lr=DELTA_LR)


def run_cell(options: argparse.Namespace) -> list[dict]:
    """All rules and numbers of steps for one run and one horizon."""
    run = open_finished(options.cell)
    fields = [*shlex.split(options.fields), "--diffusion.num-steps", str(NUM_STEPS), "--horizon", str(options.horizon)]
    config = configs.validate(override(run.config, fields))
    fitted = fit(run, config, options.data_rows, options.updates)
    about = sweep.machine()
    common = {"env": config.env.name, "seed": config.seed, "horizon": options.horizon, "rows": options.data_rows}
    common |= {"updates": options.updates, "falling_updates": options.falling}
    rows = []
    for (name, rule), steps in itertools.product(RULES_TRIED.items(), SAMPLING_STEPS):
        guidance = dataclasses.replace(config.guidance, **rule)
        diffusion = dataclasses.replace(config.diffusion, sampling_steps=steps)
        there = configs.validate(dataclasses.replace(config, guidance=guidance, diffusion=diffusion))
        for found in rows_of(fitted, there, options.falling):
            row = common | {"rule": name, "sampling_steps": steps} | found
            rows.append({k: float(f"{v:.5g}") if isinstance(v, float) else v for k, v in row.items()} | about)
            print(json.dumps({k: v for k, v in rows[-1].items() if k != "counts"}), flush=True)
    return rows


# --- the figures -----------------------------------------------------------------------------------------------------

COLOURS = {
    "score": "#0072B2",
    "no_clipping": "#E69F00",
    "correlated 1, relaxed": "#009E73",
    "policy_sampling": "#CC79A7",
}


def density(rows: list[dict[str, str]]) -> np.ndarray:
    """The density of z on the bins, over all the rows given; no actions give NaN."""
    counts = sum(np.array(r["counts"].split(), float) for r in rows if r["counts"])
    return counts / np.sum(counts) / np.diff(EDGES) if np.ndim(counts) else np.full(BINS, np.nan)


def draw(out: Path, task: str, horizon: str, steps: str, rows: list[dict[str, str]]) -> None:
    """One figure: a column per std, a row per rule; the normal density dashed."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    middle = (EDGES[1:] + EDGES[:-1]) / 2
    sigmas = sorted({float(r["sigma"]) for r in rows}, reverse=True)
    rules = [rule for rule in COLOURS if any(r["rule"] == rule for r in rows)]
    figure, axes = plt.subplots(
        len(rules), len(sigmas), figsize=(2.1 * len(sigmas), 1.5 * len(rules)), sharex=True, sharey=True, squeeze=False
    )
    for (i, rule), (j, sigma) in itertools.product(enumerate(rules), enumerate(sigmas)):
        axis = axes[i, j]
        there = [r for r in rows if (r["rule"], float(r["sigma"]), r["protocol"]) == (rule, sigma, "following")]
        axis.plot(middle, np.exp(-(middle**2) / 2) / np.sqrt(2 * np.pi), "k--", linewidth=0.8)
        axis.plot(middle, density(there), color=COLOURS[rule], linewidth=1.3)
        lost = sum(r["finite"] == "0" for r in there)
        distances = [float(r["z_ks"]) for r in there if r["z_ks"]]
        label = f"KS {np.mean(distances):.3f}" if distances else "not finite"
        axis.text(0.03, 0.93, label + (f", {lost} not finite" if lost and distances else ""), va="top", fontsize=6,
                  transform=axis.transAxes, bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 0.8})
        axis.set_ylim(0, 0.75)
        axis.tick_params(labelsize=6)
        axis.spines[["top", "right"]].set_visible(False)
        if i == 0:
            axis.set_title(f"sigma {sigma:g}", fontsize=8)
        if j == 0:
            axis.set_ylabel(rule.replace("_", " "), fontsize=8)
    figure.supxlabel("standardised action, (a - mean) / sigma", fontsize=8)
    seeds = len({r["seed"] for r in rows})
    figure.suptitle(
        f"{task}, H = {horizon}, K = {steps} of {NUM_STEPS}, std falling in {rows[0]['falling_updates']} updates; "
        f"denoiser of {rows[0]['updates']} updates on {rows[0]['rows']} transitions, {seeds} seed(s)",
        fontsize=8,
    )
    figure.tight_layout()
    sweep.save_figure(figure, out / f"{task}_h{horizon}_k{steps}.png")
    plt.close(figure)


def draw_all(out: Path) -> None:
    """A figure for every task, horizon and number of steps in the CSV."""
    rows = [r for r in sweep.read_csv(out / "action_distribution.csv") if r.get("rule")]
    for names in dict.fromkeys((r["env"], r["horizon"], r["sampling_steps"]) for r in rows):
        draw(out, *names, [r for r in rows if (r["env"], r["horizon"], r["sampling_steps"]) == names])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="*", metavar="RUN", help="folders of runs")
    sweep.add_arguments(parser)
    parser.add_argument("--horizons", type=int, nargs="+", default=[10, 50])
    parser.add_argument("--data-rows", type=int, default=50_000, help="transitions that the denoisers are fitted to")
    parser.add_argument("--updates", type=int, default=12_000, help="gradient steps of each")
    parser.add_argument("--falling", type=int, default=1_000, help="updates in which the std falls from 1 to 0.02")
    parser.add_argument("--fields", default="", help='fields of the config, as in "--denoiser.width 512"')
    parser.add_argument("--cell", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--horizon", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--rows", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.cell:
        write_text_atomically(options.rows, json.dumps(run_cell(options)))
        return 0
    code, path = 0, options.out / "action_distribution.csv"
    if not options.figure_only:
        keep = ("--data-rows", options.data_rows, "--updates", options.updates, "--falling", options.falling)
        keep = (f"--fields={options.fields}", *keep)
        cells = []
        for run, horizon in itertools.product((path.resolve() for path in options.runs), options.horizons):
            name = sweep.with_fields(f"{run.parent.name}-{run.name}-h{horizon}", options.fields)
            cells.append(sweep.own_cell(__file__, options.out, name, *keep, "--cell", run, "--horizon", horizon))
        code = sweep.run(cells, path, options)
    if path.exists():
        draw_all(options.out)
    return code


if __name__ == "__main__":
    sys.exit(main())
