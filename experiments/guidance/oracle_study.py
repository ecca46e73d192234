"""How right is each guidance rule where everything is known? Exact covariances, no Monte Carlo.

The sampler runs with the optimal denoiser of a linear-Gaussian system (``linear_gaussian.py``), so that what is
imagined is Gaussian and known in closed form, and so is what a perfect model would imagine under the same policy. The
grid: two systems, process noise or none, data from random actions or from the closed loop at three stds, horizons 10
and 50; in each of them rules, K of the 128 steps, the policy's sigma, and eta.

    python experiments/guidance/oracle_study.py --out results/guidance/oracle --jobs 2 --threads 1
    python experiments/guidance/oracle_study.py --out results/guidance/oracle --figure-only

Columns of ``oracle.csv``; first, middle and last are the horizons 1, H // 2 and H - 1:

- ``variance_*``: variance of the states over the truth's, summed over dimensions (1 is right).
- ``z_*``: of z = (a - mu(s)) / sigma: root mean square, largest correlation between two times, largest correlation
  with the state of the same time (the truth: 1, 0, 0).
- ``closed_*``: root mean square distance to the states that the same z lead to in the closed loop without process
  noise, over the true std; ``closed_truth_*`` is what a perfect model has there (its process noise).
- ``open_*``: the same for the states that the returned actions lead to.
- ``last_change``: root mean square of what the last step did to the actions, over sigma.
- ``delta``: where the controller comes to rest (sigma = 1), in variances of the policy; empty where no delta up to the
  variance gets there, and then so is the rest of the row.

Beside it ``convergence.csv``, the map actions -> states -> policy's means at seven levels of noise, and
``run_gains.csv``, how much of its beginning and of its states' noise is left in what a run of ``correlated`` returns.
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
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from experiments.harness import experiment, figures, grid
from experiments.harness import linear_gaussian as world
from experiments.harness.grid import Row
from experiments.harness.linear_gaussian import LinearPolicy, Problem, System
from experiments.harness.schedules import spaced_steps

NUM_STEPS, TAU = 128, 1.0
SAMPLING_STEPS = (4, 8, 16, 32, 64, 128)
SIGMAS = (1.0, 0.3, 0.1, 0.03, 0.01)
DATA = {"random": None, "closed 1": 1.0, "closed 0.1": 0.1, "closed 0.02": 0.02}
"""Std of the policy that collected in the closed loop; None: actions of std 1 whatever the state."""
PROCESS_STDS = (0.0, 0.05)
RULES = {
    "score": {"rule": "no_clipping"},
    "preconditioned": {"rule": "preconditioned"},
    "correlated 1": {"rule": "correlated", "rho": 1.0},
    "correlated 0.9": {"rule": "correlated", "rho": 0.9},
    "correlated 0": {"rule": "correlated", "rho": 0.0},
    "score, causal": {"rule": "no_clipping", "causal": True},
    "correlated 1, causal": {"rule": "correlated", "rho": 1.0, "causal": True},
}
"""``score`` without its clip at 3 std, which would not be affine. ``causal``: the denoiser sees only the past."""
RELAXED = {"rule": "correlated", "rho": 1.0, "relaxation": 0.5}
LATER = {
    "correlated 1, relaxed": RELAXED,
    "correlated 1, relaxed, causal": RELAXED | {"causal": True},
    "correlated 1, relaxed, spaced": RELAXED,
}
"""Rules that were tried after the others, in cells of their own. ``spaced``: K steps from a floor of noise upwards,
closer where little of it is left (``harness/schedules.py``)."""
GROUPS = {"": RULES, "_relaxed": LATER}
SPACED_STEPS, SPACING = (8, 16, 32), (0.1, 0.08)


def two_actions_system(process_std: float) -> System:
    """The point on a line under two actions."""
    one = world.two_state_system(process_std)
    return dataclasses.replace(one, G=np.array([[0.1, 0.3], [0.7, 0.1]]), reward_action=np.array([0.2, -0.1]))


@dataclasses.dataclass(frozen=True)
class World:
    """One cell of the grid: what the denoiser was fitted to."""

    system: str
    process_std: float
    data: str
    horizon: int

    @property
    def name(self) -> str:
        return f"{self.system}_{self.process_std}_{self.data}_{self.horizon}".replace(" ", "-")

    def problem(self, sigma: float) -> Problem:
        """The problem of imagining at ``sigma``; of two actions the second has a tenth of it."""
        if self.system == "scalar":
            system = world.scalar_system(1.1, process_std=self.process_std)
            gain, scale, start = np.full((1, 1), -0.3), np.ones(1), np.zeros(1)
        else:
            system = two_actions_system(self.process_std)
            gain, scale, start = np.array([[-0.2, -0.3], [-0.3, 0.1]]), np.array([1.0, 0.1]), np.array([1.0, 0.25])
        nothing = np.zeros(len(scale))
        narrow = DATA[self.data]
        if narrow is None:
            behaviour = LinearPolicy(np.zeros_like(gain), nothing, np.ones(len(scale)))
        else:
            behaviour = LinearPolicy(gain, nothing, narrow * scale)
        policy = LinearPolicy(gain, nothing, sigma * scale)
        return Problem(system, behaviour, policy, self.horizon, NUM_STEPS, TAU, 0.0, start)


WORLDS = [World(*x) for x in itertools.product(("scalar",), PROCESS_STDS, DATA, (10, 50))] + [
    World(*x) for x in itertools.product(("two actions",), PROCESS_STDS, DATA, (10,))
]


def settings(cell: World, group: str = ""):
    """``(rule, K, sigma, eta)`` of a cell; fewer at H = 50, where one takes seconds.

    Without process noise eta changes nothing: the optimal denoiser takes out all noise of the states at the last step.
    """
    etas = (1.0, 0.0) if cell.process_std else (1.0,)
    for rule, steps, sigma, eta in itertools.product(GROUPS[group], SAMPLING_STEPS, SIGMAS, etas):
        if "spaced" in rule and steps not in SPACED_STEPS:
            continue
        if rule == "preconditioned" and cell.system == "scalar":
            continue  # with one action it is score
        tunes = GROUPS[group][rule]["rule"] != "correlated"
        if cell.horizon == 50 and (sigma in (0.3, 0.03) or (tunes and (eta == 0.0 or sigma != 0.1))):
            continue
        yield rule, steps, sigma, eta


def horizons(horizon: int) -> dict[str, int]:
    return {"first": 1, "middle": horizon // 2, "last": horizon - 1}


def states(problem: Problem) -> np.ndarray:
    """Indices ``[H, O]`` of the observations in a flat trajectory."""
    observations = problem.system.sizes[0]
    return np.arange(problem.horizon)[:, None] * (observations + 2) + np.arange(observations)


def driven(problem: Problem, policy: LinearPolicy) -> tuple[np.ndarray, np.ndarray]:
    """What the draws of ``policy`` do to normalised flat states without process noise: ``(offset, matrix [., HA])``."""
    observations, actions = problem.system.sizes
    raw = world.trajectories(problem.system, policy, problem.horizon, problem.initial)
    normed = world.normalised(raw, problem.stats, problem.horizon)
    columns = observations + np.arange(problem.horizon)[:, None] * (actions + observations) + np.arange(actions)
    return normed.offset, normed.matrix[:, columns.ravel()]


def distances(
    at: np.ndarray, mean: np.ndarray, cov: np.ndarray, offset: np.ndarray, of_out: np.ndarray, true_std: np.ndarray
) -> np.ndarray:
    """``[H]``: root mean square of ``state - (offset + of_out @ out)`` over the true std."""
    rows = np.eye(len(mean))[at.ravel()] - of_out[at.ravel()]
    mean_error = rows @ mean - offset[at.ravel()]
    square = np.square(mean_error) + np.einsum("ij,jk,ik->i", rows, cov, rows)
    return np.sqrt(np.maximum(square, 0.0).reshape(at.shape).sum(1)) / true_std


class Truth(NamedTuple):
    """What a perfect model imagines, and what draws and actions do in it; the same for all settings of one sigma."""

    on_policy: world.Affine
    by_z: tuple[np.ndarray, np.ndarray]
    by_actions: tuple[np.ndarray, np.ndarray]


def truth_of(problem: Problem) -> Truth:
    policy = problem.policy
    no_policy = LinearPolicy(0 * policy.K, 0 * policy.b, np.ones_like(policy.std))
    return Truth(problem.on_policy(), driven(problem, policy), driven(problem, no_policy))


def measure(problem: Problem, out: world.Returned, known: Truth | None = None) -> dict[str, float]:
    """The columns named in the module's docstring."""
    at, pi = states(problem), world.policy_map(problem)
    size, acted = problem.horizon * (problem.system.sizes[0] + 2), problem.horizon * problem.system.sizes[1]
    truth, (z_offset, by_z), (a_offset, by_a) = known or truth_of(problem)
    true_variance = np.diag(truth.cov)[at].sum(1)
    with np.errstate(divide="ignore", invalid="ignore"):
        true_std = np.sqrt(true_variance)
        ratio = np.diag(out.cov)[at].sum(1) / true_variance

        # z and actions as affine maps of the output
        of_z = np.hstack([-pi.gain, np.diag(pi.action_std)]) / pi.std[:, None]
        z0 = (pi.action_mean - pi.offset) / pi.std
        closed = distances(at, out.mean, out.cov, z_offset + by_z @ z0, by_z @ of_z, true_std)
        process = np.square(truth.matrix[at.ravel()]).sum(1) - np.square(by_z[at.ravel()]).sum(1)
        closed_truth = np.sqrt(np.maximum(process, 0.0).reshape(at.shape).sum(1)) / true_std
        of_a = np.hstack([np.zeros((acted, size)), np.diag(pi.action_std)])
        opened = distances(at, out.mean, out.cov, a_offset + by_a @ pi.action_mean, by_a @ of_a, true_std)

        z_mean, z_cov, z_traj = world.standardised(problem, out.mean, out.cov)
        z_std = np.sqrt(np.diag(z_cov))
        over_time = np.abs(z_cov / np.outer(z_std, z_std) - np.eye(acted)).max()
        with_state = np.abs(
            np.stack([z_traj.reshape(problem.horizon, -1, size)[t][:, at[t]] for t in range(1, problem.horizon)])
            / z_std.reshape(problem.horizon, -1)[1:, :, None]
            / np.sqrt(np.diag(out.cov))[at][1:, None]
        ).max()
    row = {}
    for label, k in horizons(problem.horizon).items():
        row |= {
            f"variance_{label}": ratio[k],
            f"closed_{label}": closed[k],
            f"closed_truth_{label}": closed_truth[k],
            f"open_{label}": opened[k],
        }
    change = out.last_change * pi.action_std / pi.std
    return row | {
        "z_rms": np.sqrt((np.square(z_mean) + np.square(z_std)).mean()),
        "z_over_time": over_time,
        "z_with_state": with_state,
        "last_change": np.sqrt(np.square(change).mean()),
    }


def rows_of_world(cell: World, group: str = "") -> Iterator[Row]:
    """Measure all settings of one cell; the denoisers of every step, and what one sigma makes true, are made once."""
    stats = cell.problem(1.0).stats
    denoisers = {causal: dataclasses.replace(cell.problem(1.0), causal=causal).denoiser() for causal in (False, True)}
    truths = {s: truth_of(dataclasses.replace(cell.problem(s), known_stats=stats)) for s in SIGMAS}
    for rule, steps, sigma, eta in settings(cell, group):
        base = dataclasses.replace(cell.problem(sigma), known_stats=stats, sampling_steps=steps, eta=eta)
        which = tuple(spaced_steps(NUM_STEPS, steps, TAU, *SPACING).tolist()) if "spaced" in rule else None
        problem = dataclasses.replace(base, **GROUPS[group][rule], steps=which)
        denoiser = tuple(of_all_steps[problem.schedule.step] for of_all_steps in denoisers[problem.causal])
        labels = {"rule": rule, "sampling_steps": steps, "sigma": sigma, "eta": eta}
        found: Problem | None = problem if problem.rule == "correlated" else world.tuned(problem, denoiser)
        row = {**dataclasses.asdict(cell), **labels}
        if found is not None:
            unit = 1.0 if found.rule == "preconditioned" else np.min(found.policy.std) ** 2
            row |= {"delta": found.delta / unit if found.rule != "correlated" else ""}
            row |= measure(found, world.returned(found, denoiser), truths[sigma])
        yield row


LEVELS = (1, 4, 16, 32, 64, 96, 128)
"""Diffusion steps at which the map is measured; 1 is the least noisy."""


def backwards(turn: np.ndarray, horizon: int) -> float:
    """Return the largest entry of a map ``[HA, HA]`` by which an action moves a mean of an earlier time."""
    times = np.repeat(np.arange(horizon), len(turn) // horizon)
    return float(np.abs(turn * (times[:, None] < times[None, :])).max())


def convergence(cell: World) -> list[dict]:
    """The map actions -> states -> policy's means at several levels of noise: radius, and norms of its powers.

    Raw, over the policy's stds, of the optimal denoiser and of the one that sees only the past. ``acausal`` is the
    largest effect of an action on a mean of a time before its own.
    """
    rows = []
    for causal in (False, True):
        problem = dataclasses.replace(cell.problem(1.0), causal=causal)
        scale, denoiser = np.tile(problem.policy.std, cell.horizon), problem.denoiser()
        for level in LEVELS:
            turn = world.action_to_action(problem, level - 1, denoiser) * scale[None] / scale[:, None]
            powers = [np.linalg.norm(np.linalg.matrix_power(turn, p), 2) for p in (1, 2, 4, 8, 16, 32)]
            radius = np.abs(np.linalg.eigvals(turn)).max()
            found = {"spectral_radius": radius, "acausal": backwards(turn, cell.horizon)}
            found |= {f"norm_of_power_{p}": n for p, n in zip((1, 2, 4, 8, 16, 32), powers, strict=True)}
            labels = dataclasses.asdict(cell) | {"causal": int(causal), "level": level}
            rows.append(labels | grid.rounded(found, digits=4))
    return rows


def run_gains(cell: World) -> list[dict]:
    """What is left at the end of a run of its beginning and of its noise (:func:`world.gains_of_a_run`); sigma 0.1."""
    stats, rows = cell.problem(1.0).stats, []
    for causal in (False, True):
        base = dataclasses.replace(cell.problem(0.1), known_stats=stats, causal=causal, rule="correlated")
        of_all = base.denoiser()
        for relaxation, steps in itertools.product((1.0, 0.5), SAMPLING_STEPS):
            problem = dataclasses.replace(base, relaxation=relaxation, sampling_steps=steps)
            denoiser = tuple(of_all_steps[problem.schedule.step] for of_all_steps in of_all)
            start, noise = world.gains_of_a_run(problem, denoiser)
            labels = dataclasses.asdict(cell) | {"causal": int(causal), "relaxation": relaxation}
            gains = grid.rounded({"of_start": start, "of_noise": noise}, digits=4)
            rows.append(labels | {"sampling_steps": steps} | gains)
    return rows


# --- the grid and the figure -----------------------------------------------------------------------------------------

DRAWN = {
    "score": ("#0072B2", "score, delta tuned"),
    "correlated 1": ("#D55E00", "correlated, rho 1"),
    "correlated 0.9": ("#009E73", "correlated, rho 0.9"),
    "correlated 0": ("#CC79A7", "correlated, rho 0"),
    "correlated 1, causal": ("#000000", "correlated, rho 1, causal denoiser"),
    "correlated 1, relaxed": ("#E69F00", "correlated, rho 1, relaxation 0.5"),
}


def draw_panel(axis: Any, rows: list[dict[str, str]]) -> None:
    """Draw the variance of the last state over the truth's against K, a line per rule and eta."""
    for (rule, (colour, label)), (eta, style) in itertools.product(DRAWN.items(), (("1.0", "-"), ("0.0", ":"))):
        own = [r for r in rows if (r["rule"], r["eta"]) == (rule, eta) and r["variance_last"]]
        if own:
            curve = [[int(r["sampling_steps"]) for r in own], [float(r["variance_last"]) for r in own]]
            axis.plot(*curve, style, color=colour, label=label if eta == "1.0" else None)
    axis.axhline(1.0, color="0.7", linewidth=0.8, zorder=0)
    axis.set_xscale("log", base=2)
    axis.set_yscale("log")
    axis.set_ylim(3e-2, 3e3)


def draw(out: Path) -> None:
    """Draw ``oracle.png``: variance of the last state over the truth's against K, for rules, sigma 0.1, and worlds."""
    rows = [r for r in grid.read_csv(out / "oracle.csv") if (r["system"], r["sigma"]) == ("scalar", "0.1")]
    panels = list(itertools.product(("0.0", "0.05"), ("10", "50"), ("random", "closed 1", "closed 0.1", "closed 0.02")))
    layout = {"size": (12, 10.5), "rect": (0, 0.02, 1, 1), "sharex": True, "sharey": True}
    with figures.figure(out / "oracle.png", 4, 4, **layout) as (figure, axes):
        for axis, panel in zip(axes.ravel(), panels, strict=True):
            draw_panel(axis, [r for r in rows if (r["process_std"], r["horizon"], r["data"]) == panel])
            axis.set_title("H = {1}, process std {0}, data {2}".format(*panel), fontsize=8)
        for axis in axes[-1]:
            axis.set_xlabel("K, diffusion steps sampled of 128")
        for axis in axes[:, 0]:
            axis.set_ylabel("variance of last state / truth")
        legend = {"loc": "lower center", "ncols": 6, "frameon": False, "fontsize": 8}
        figure.legend(*axes[0, 0].get_legend_handles_labels(), **legend)
        figure.suptitle(
            "s' = 1.1 s + a + noise under a = -0.3 s + 0.1 xi, optimal denoiser: exact. Solid: eta 1, dotted: eta 0.\n"
            "No blue: no delta brings the std of z to 1. No other colour: off the scale, or under black.",
            fontsize=10,
        )


def gather(options: argparse.Namespace) -> None:
    """Write ``convergence.csv`` and ``run_gains.csv``."""
    for name, of in (("convergence", convergence), ("run_gains", run_gains)):
        grid.write_csv(options.out / f"{name}.csv", [row for cell in WORLDS for row in of(cell)])


ORACLE = experiment.Experiment(
    Path(__file__),
    __doc__,
    draw,
    cells=lambda _: {cell.name + group: (cell, group) for group, cell in itertools.product(GROUPS, WORLDS)},
    measure=lambda _, varied: rows_of_world(*varied),
    gather=gather,
    csv="oracle",
)

if __name__ == "__main__":
    sys.exit(experiment.run(ORACLE))
