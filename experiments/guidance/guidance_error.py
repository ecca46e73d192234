"""How right is each guidance rule on a real task, at any entropy, in how few steps?

For every run, a denoiser of N = 128 is fitted to the run's first ROWS transitions and imagines under the run's policy
with its std replaced (by one for all actions, or by 0.1, 0.11 and 0.93 in turn: ``mixed``). From a returned trajectory,
z = (a - mu(s)) / sigma; MuJoCo is then run from the same simulator state (i) in the **closed loop** under the same z,
which is what the policy would have done, and (ii) in the open loop under the returned actions. A right distribution of
z proves nothing (it holds by construction for some rules, whatever the denoiser): the closed loop does, and the rows
named ``untrained`` must fail it.

That error is also small where a rule imagines actions whose consequences are easy to foresee: z that are not the
policy's. Two columns and a rule tell that apart. ``given_h*`` is the error of the same denoiser when it is told the
actions that MuJoCo's closed loop took under these z, which no guidance can be blamed for. And ``correlated`` can be
made to keep the very z that ``score`` imagined (", z of score"): same actions, other guidance (``matched.csv``).
``strange_h1`` is ``given_h1`` with all actions behind the first from another trajectory: they cannot have moved that
state, and where it is the larger of the two the denoiser takes later actions, guessed ones too, as evidence of it.

    python experiments/guidance/guidance_error.py RUN [RUN ...] --jobs 2 --threads 1 \\
        --out results/guidance/guidance_error
    python experiments/guidance/guidance_error.py --out results/guidance/guidance_error --figure-only

Columns of ``guidance_error.csv``: ``sampling_tau`` and ``sampling_floor`` say which of the 128 steps are sampled (0:
evenly spread). ``closed_h*`` and ``open_h*`` are squared errors of the observations in units of each one's variance in
the replay, averaged over dimensions and trajectories (``_median``: over trajectories the median, ``_raw``: in raw
units); ``z_*`` as in ``polygrad_jax/analysis/action_spread.py``, with the largest correlation between two times and the
share of z's variance that a quadratic in the state explains (``z_explained``; 0 is right); ``last_change`` is what the
last diffusion step did to the actions, root mean square over sigma; ``seconds`` is what 1,000 trajectories take,
compiled. A rule whose delta ran against its bound has ``at_bound`` 1.
``against_best.csv`` and ``summary.csv`` compare every rule and K with the best rule at K = 128. How sure a
comparison is shows in its spread over seeds; one seed has none.
``convergence.csv``: radius and norms of the powers of actions -> states -> policy's means at several ``level``s of
noise (none named: the least noisy, all that was measured then), means over trajectories.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from experiments.harness import in_venv  # noqa: F401  first of all: it continues in the clone's .venv

# isort: split
import argparse
import itertools
import json
import time
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.guidance.convergence import keep_convergence, turns
from experiments.guidance.rule_ranking import HORIZONS, steps_ahead, tabulate
from experiments.guidance.rules_tried import COLOURS, EVERY, SIGMAS, TRIED, settings
from experiments.harness import experiment, figures, grid, opened_runs, statistics
from experiments.harness.grid import Row
from experiments.harness.guided_sampler import GuidedSampler
from experiments.harness.opened_runs import Fitted, OfRun, drawn_rows, fit
from polygrad_jax.analysis.action_spread import spread_of, standardised_actions
from polygrad_jax.analysis.opened_run import open_run
from polygrad_jax.config import ConfigError
from polygrad_jax.data.normaliser import normalise
from polygrad_jax.envs.mujoco_state import close_loop, replay_actions
from polygrad_jax.envs.prediction_error import squared_errors
from polygrad_jax.runs import physics
from polygrad_jax.runs.run_folder import write_text_atomically
from polygrad_jax.types import Array, Policy

TRAJECTORIES = 1000
UNTRAINED = [(rule, 16) for rule in ("score", "correlated 1")]
"""Rules and K under which the untrained network is measured."""


def explained(z: np.ndarray, states: np.ndarray) -> float:
    """Return the share of the variance of ``z [B, T, A]`` that a quadratic in the states explains, mean over T, A.

    What as many columns of noise would explain is taken off. Of the states ``[B, T, O]`` the first is given and not
    counted.
    """
    shares = []
    for k in range(1, z.shape[1]):
        x = (states[:, k] - states[:, k].mean(0)) / (states[:, k].std(0) + 1e-12)
        columns = np.hstack([x, x**2, np.ones((len(x), 1))])
        left = z[:, k] - columns @ np.linalg.lstsq(columns, z[:, k], rcond=None)[0]
        freedom = (len(x) - 1) / (len(x) - columns.shape[1])
        shares.append(1.0 - freedom * left.var(0) / z[:, k].var(0))
    return float(np.mean(shares))


def over_time(z: np.ndarray) -> float:
    """Return the largest correlation of z between two times (the same action dimension)."""
    largest = [np.abs(np.corrcoef(z[:, :, a].T) - np.eye(z.shape[1])).max() for a in range(z.shape[2])]
    return float(max(largest))


def errors(name: str, predicted: np.ndarray, real: np.ndarray, std: np.ndarray) -> dict[str, float]:
    """Return mean and median squared errors at the horizons, in variances and raw."""
    scaled, raw = squared_errors(predicted / std, real / std), squared_errors(predicted, real)
    row = {}
    for h in (h for h in HORIZONS if h <= scaled.shape[1]):
        row |= {f"{name}_h{h}": scaled[:, h - 1].mean(), f"{name}_median_h{h}": np.median(scaled[:, h - 1])}
        row |= {f"{name}_raw_h{h}": raw[:, h - 1].mean()}
    return row


def measure(
    guided: GuidedSampler, rows: np.ndarray, std: np.ndarray, log_delta: Array, residual: np.ndarray | None = None
) -> tuple[dict[str, float], np.ndarray]:
    """Return the columns of one setting, of trajectories from these rows of the run, and their z ``[B, H, A]``."""
    fitted, run = guided.fitted, guided.fitted.run
    residual = None if residual is None else jnp.asarray(residual, jnp.float32)
    given, key = guided.given(run.transitions.observations[rows], std, log_delta), jax.random.key(2)
    imagined = jax.block_until_ready(guided.imagine(given, key, True, residual))
    jax.block_until_ready(guided.imagine(given, key, False, residual))
    began = time.perf_counter()
    jax.block_until_ready(guided.imagine(given, key, False, residual))
    seconds = time.perf_counter() - began

    segment = guided.raw(imagined)
    change = np.asarray((imagined.actions - imagined.before) * fitted.normaliser.actions.std)[:, :-1] / std
    choose = jax.jit(Policy.__call__)

    def mean_at(raw_obs: np.ndarray) -> np.ndarray:
        return np.asarray(choose(fitted.policy, jnp.asarray(raw_obs, jnp.float32))[0])

    means = mean_at(segment.observations)
    z = standardised_actions(segment.actions, means, np.broadcast_to(std, means.shape))
    simulator_states, steps = run.simulator_states_at(rows), segment.actions.shape[1] - 1
    closed, acted, *_ = close_loop(
        run.config.env, simulator_states, lambda k, raw_obs: mean_at(raw_obs) + std * z[:, k], steps
    )
    opened, _, _ = replay_actions(run.config.env, simulator_states, segment.actions[:, :-1])
    unit, spread = np.asarray(run.normaliser.observations.std), spread_of(z)
    acted = normalise(jnp.asarray(acted[:, [*range(steps), steps - 1]]), fitted.normaliser.actions)
    others = acted.at[:, 1:].set(jnp.roll(acted[:, 1:], len(rows) // 2, axis=0))
    told, strange = (
        guided.raw(imagined._replace(traj=guided.told(given, x, jax.random.key(5)), actions=x)).observations
        for x in (acted, others)
    )
    columns = {
        **errors("closed", segment.observations, closed, unit),
        **errors("given", told, closed, unit),
        **errors("open", segment.observations, opened, unit),
        "strange_h1": squared_errors(strange / unit, closed / unit)[:, 0].mean(),
        "z_mean": spread.mean,
        "z_std": spread.std,
        "z_kurtosis": spread.excess_kurtosis,
        "z_ks": spread.ks_distance,
        "z_over_time": over_time(z),
        "z_explained": explained(z, segment.observations[:, :-1]),
        "last_change": float(np.sqrt(np.square(change).mean())),
        "seconds": seconds * 1000 / len(rows),
    }
    return columns, (segment.actions - means) / std


def rows_of(options: argparse.Namespace, varied: OfRun) -> Iterator[Row]:
    """Measure all settings of one cell of one run; in the first of its cells also the untrained network under two."""
    run, group = open_run(varied.run), varied.more
    config = opened_runs.config_of(run, options)
    common = {"env": config.env.name, "seed": config.seed, "run_steps": run.env_steps, "rows": options.data_rows}
    common |= {"fields": options.fields}
    for denoiser, updates in (("fitted", options.updates), *([] if group else [("untrained", 0)])):
        fitted = fit(run, config, options.data_rows, updates)
        begins = drawn_rows(fitted.episodes, config.horizon)[:TRAJECTORIES]
        for row in rows_of_settings(options, fitted, begins, group):
            yield common | {"denoiser": denoiser, "updates": updates} | row
        if updates and not group:
            common |= {physics.COLUMN: physics.installed_mujoco()}
            found = [common | row for row in turns(fitted, run.transitions.observations[begins[:64]])]
            write_text_atomically(options.rows.with_suffix(".convergence"), json.dumps(found))


def rows_of_settings(options: argparse.Namespace, fitted: Fitted, begins: np.ndarray, group: str) -> Iterator[Row]:
    """Measure one denoiser under every rule, K and sigma of a cell."""
    imagined: dict[tuple, np.ndarray] = {}
    run, trained = fitted.run, bool(fitted.state.updates)
    for labels, config, schedule, tried in settings(fitted.config, options.eta, group, options.rules, options.steps):
        rule, steps = labels["rule"], labels["sampling_steps"]
        if not trained and (rule, steps) not in UNTRAINED:
            continue
        guided = GuidedSampler(fitted, config, schedule)
        for sigma in tried.sigmas:
            std = np.resize(SIGMAS[sigma], run.spec.action_size).astype(np.float32)
            log_delta, at_bound = guided.settled(run.transitions.observations[begins], std)
            kept = imagined[tried.z_of, steps, sigma] if tried.z_of else None
            columns, imagined[rule, steps, sigma] = measure(guided, begins, std, log_delta, kept)
            yield labels | {"sigma": sigma, "delta": float(jnp.exp(log_delta)), "at_bound": at_bound} | columns


# --- the grid and the figure -----------------------------------------------------------------------------------------

TOLD = "correlated 1, relaxed"
"""The rule whose z the denoiser is told about in the figure: normal draws, like the policy's."""


def draw_panel(axis: Any, rows: list[dict[str, str]], ahead: int) -> None:
    """Draw errors this many steps ahead of every rule on one task at one sigma, and what to compare them with."""
    fitted = [r for r in rows if r["denoiser"] == "fitted"]
    for rule, (colour, style) in COLOURS.items():
        own = statistics.along((r for r in fitted if r["rule"] == rule), "sampling_steps", f"closed_h{ahead}")
        if own[0]:
            figures.mean_and_range(axis, *own, style, rule.replace("_", " "), colour, alpha=0.15)
    steps, told = statistics.along((r for r in fitted if r["rule"] == TOLD), "sampling_steps", f"given_h{ahead}")
    if steps:
        axis.plot(steps, [np.mean(x) for x in told], ":", color="0.2", label="denoiser told MuJoCo's actions")
    null = [float(r[f"closed_h{ahead}"]) for r in rows if r["denoiser"] == "untrained"]
    if null:
        axis.axhline(np.mean(null), color="0.5", linewidth=1, linestyle="--", label="untrained")
    axis.set_yscale("log")
    figures.diffusion_steps_axis(axis, EVERY)


def draw(out: Path) -> None:
    """Draw ``guidance_error.png``: errors as far ahead as measured, against K; a row per task, a column per sigma."""
    tabulate(out)
    rows = grid.read_csv(out / "guidance_error.csv")
    ahead = steps_ahead(rows)[-1]
    tasks, sigmas = (list(dict.fromkeys(r[name] for r in rows)) for name in ("env", "sigma"))
    width, height = 2.9 * len(sigmas), 2.7 * len(tasks) + 1.0
    layout = {"size": (width, height), "rect": (0, 0.9 / height, 1, 1), "sharey": "row"}
    with figures.figure(out / "guidance_error.png", len(tasks), len(sigmas), **layout) as (figure, axes):
        for (i, task), (j, sigma) in itertools.product(enumerate(tasks), enumerate(sigmas)):
            draw_panel(axes[i, j], [r for r in rows if (r["env"], r["sigma"]) == (task, sigma)], ahead)
            axes[i, j].set_title(f"{task}, sigma {sigma}", fontsize=9)
        for axis in axes[-1]:
            axis.set_xlabel("K, diffusion steps sampled of 128", fontsize=8)
        for axis in axes[:, 0]:
            axis.set_ylabel(f"closed-loop error, {ahead} steps ahead\n[variances of the observation]", fontsize=8)
        figures.legend_of_all(figure, loc="lower center", ncols=4, fontsize=8)
        seeds = {task: statistics.count_seeds(r for r in rows if r["env"] == task) for task in tasks}
        counts = ", ".join(f"{task}: {count} seed(s)" for task, count in seeds.items())
        figure.suptitle(
            f"denoisers fitted with {rows[0]['updates']} updates to {rows[0]['rows']} transitions of small training "
            f"runs ({counts}; shaded: all seeds); {grid.physics_of(rows)}",
            fontsize=8,
        )


def add_arguments(parser: argparse.ArgumentParser) -> None:
    opened_runs.add_arguments(parser)
    parser.add_argument("--rules", nargs="+", default=[], choices=TRIED, help="only these (all)")
    parser.add_argument("--steps", type=int, nargs="+", default=[], choices=EVERY, help="only these K (all)")
    parser.add_argument("--eta", type=float, default=1.0, help="share of the states' noise, of stochastic sampling")


def cells(options: argparse.Namespace) -> dict[str, OfRun]:
    """Return the groups of rules and the runs by the names of their cells.

    Raises:
      ConfigError: a rule that keeps another's z without that other one; no run.
    """
    for name in options.rules:
        if TRIED[name].z_of not in ("", *options.rules):
            raise ConfigError(f"--rules is {name}; allowed: with {TRIED[name].z_of} too")
    wanted = [tried for name, tried in TRIED.items() if not options.rules or name in options.rules]
    groups = dict.fromkeys(tried.cell for tried in wanted)
    return opened_runs.cells(options, ((group, group) for group in groups))


GUIDANCE_ERROR = experiment.Experiment(
    Path(__file__), __doc__, draw, cells, rows_of, add_arguments, gather=lambda options: keep_convergence(options.out)
)

if __name__ == "__main__":
    sys.exit(experiment.run(GUIDANCE_ERROR))
