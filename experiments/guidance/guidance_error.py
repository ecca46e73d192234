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

    python experiments/guidance_error.py RUN [RUN ...] --out results/guidance_error --jobs 2 --threads 1
    python experiments/guidance_error.py --out results/guidance_error --figure-only

Columns of ``guidance_error.csv``: ``sampling_tau`` and ``sampling_floor`` say which of the 128 steps are sampled (0:
evenly spread). ``closed_h*`` and ``open_h*`` are squared errors of the observations in units of each one's variance in
the replay, averaged over dimensions and trajectories (``_median``: over trajectories the median, ``_raw``: in raw
units); ``z_*`` as in ``polygrad_jax/training/measures.py``, with the largest correlation between two times and the
share of z's variance that a quadratic in the state explains (``z_explained``; 0 is right); ``last_change`` is what the
last diffusion step did to the actions, root mean square over sigma; ``seconds`` is what 1,000 trajectories take,
compiled. A rule whose delta ran against its bound has ``at_bound`` 1.
``against_best.csv`` and ``summary.csv`` compare every rule and K with the best rule at K = 128. How sure a
comparison is shows in its spread over seeds; one seed has none.
``convergence.csv``: radius and norms of the powers of actions -> states -> policy's means at several ``level``s of
noise (none named: the least noisy, all that was measured then), means over trajectories.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import shlex
import sys
import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from experiments.harness import grid as sweep
from experiments.archive.denoiser_settings import drawn_rows, episodes_of

from polygrad_jax import config as configs
from polygrad_jax.cli import override
from polygrad_jax.config import Config
from polygrad_jax.data.normaliser import normalise, unnormalise
from polygrad_jax.diffusion.denoising_loss import set_initial_state
from polygrad_jax.diffusion.guidance import RULES, Gaussian, delta_bounds, sigma_of, standardise, update_log_delta
from polygrad_jax.diffusion.sampler import Given, predict_clean, sample, sample_given_actions
from polygrad_jax.diffusion.schedule import Coefficients, add_noise, sampling_coefficients
from polygrad_jax.envs.mujoco_state import close_loop, replay_actions
from polygrad_jax.analysis.opened_run import FinishedRun, open_finished
from polygrad_jax.analysis.action_spread import spread_of, squared_errors, standardised_actions
from polygrad_jax.runs.run_folder import write_text_atomically
from polygrad_jax.types import Array, Normaliser, Params, PolicyApply
from polygrad_jax.data import recordings as fitting
from polygrad_jax.world_models.polygrad import PolyGRADState, make_sampler, unpack, with_terminal_std
from polygrad_jax.world_models.model_table import make_world_model

TRAJECTORIES = 1000
SETTLING_ACTIONS, ROUNDS = 2560, 80
"""Imagined actions in each of the rounds in which delta settles before anything is measured."""
DELTA_LR = 0.3
NUM_STEPS = 128
SIGMAS = {"1.0": (1.0,), "0.1": (0.1,), "0.02": (0.02,), "mixed": (0.1, 0.11, 0.93)}

EVERY = (4, 8, 16, 32, 128)
GENTLE = "-gentle"
EVEN, SPACED = {"sampling_tau": 0.0, "sampling_floor": 0.0}, {"sampling_tau": 0.1, "sampling_floor": 0.08}


class Tried(NamedTuple):
    """One way of guiding: fields of the config, and for which K and sigmas."""

    guidance: dict[str, Any]
    sampling_steps: tuple[int, ...]
    sampling: dict[str, float] = EVEN
    sigmas: tuple[str, ...] = tuple(SIGMAS)
    z_of: str = ""  # a rule above whose standardised actions are kept, in place of normal draws
    cell: str = ""  # the end of the cell's name: what was thought of later has cells of its own


def relaxed(share: float) -> dict[str, Any]:
    """The rule that goes this share of the way to the policy's action in every step but the last."""
    return {"rule": "correlated", "rho": 1.0, "relaxation": share}


RELAXED = relaxed(0.5)
TRIED = {
    "score": Tried({"rule": "score"}, EVERY),
    "score, spaced": Tried({"rule": "score"}, (8, 16, 32), SPACED),
    # with one std for all actions it is score with another delta, which the controller finds too
    "preconditioned": Tried({"rule": "preconditioned"}, (16, 128), sigmas=("mixed",)),
    "correlated 1": Tried({"rule": "correlated", "rho": 1.0}, EVERY),
    "correlated 1, relaxed": Tried(RELAXED, EVERY),
    "correlated 1, relaxed, spaced": Tried(RELAXED, (8, 16, 32), SPACED),
    "correlated 1, relaxed, z of score": Tried(RELAXED, (16, 128), z_of="score"),
    "policy_sampling": Tried({"rule": "policy_sampling"}, (16,)),
    "correlated 1, relaxed 0.3": Tried(relaxed(0.3), (16, 32), cell=GENTLE),
    "correlated 1, relaxed 0.2": Tried(relaxed(0.2), (32, 128), cell=GENTLE),
    "correlated 1, relaxed 0.1": Tried(relaxed(0.1), (128,), cell=GENTLE),
}
HORIZONS = (1, 5, 9, 24, 49)
"""Steps ahead, as far as the model's horizon goes."""
OF_SCORE = ", z of score"


def with_std(policy_apply: PolicyApply) -> PolicyApply:
    """The policy with its std replaced: parameters are ``(actor, std)``, a scalar or ``[A]``."""

    def apply(params: tuple[Params, Array], raw_obs: Array) -> tuple[Array, Array]:
        mean, _ = policy_apply(params[0], raw_obs)
        return mean, jnp.broadcast_to(params[1], mean.shape)

    return apply


@dataclasses.dataclass
class Fitted:
    """A denoiser of N steps, fitted to a run's transitions or not at all."""

    run: FinishedRun
    config: Config
    state: PolyGRADState
    normaliser: Normaliser
    rows: np.ndarray  # at which trajectories begin

    def given(self, rows: np.ndarray, std: float | np.ndarray, log_delta: Array) -> Given:
        initial = normalise(jnp.asarray(self.run.transitions.observations[rows]), self.normaliser.observations)
        policy = (self.run.actor, jnp.asarray(std, jnp.float32))
        return Given(self.state.ema_params, policy, self.normaliser, initial, jnp.exp(log_delta))


def fit(run: FinishedRun, config: Config, rows: int, updates: int) -> Fitted:
    """``updates`` gradient steps on the run's first ``rows`` transitions; with 0 the network is as it was drawn."""
    model, episodes = make_world_model(config, run.spec), episodes_of(run, rows)
    state, normaliser = fitting.fit(model, episodes, config, jax.random.key(0), max(updates, 1))
    if updates == 0:
        state = model.init(jax.random.key(0))
    normaliser = with_terminal_std(normaliser, config.diffusion.terminal_std)
    return Fitted(run, config, state, normaliser, drawn_rows(episodes, config.horizon)[:TRAJECTORIES])


def make_run(config: Config, run: FinishedRun):
    """What the setting's sampler does, compiled.

    ``once(Given, key, keep, residual) -> (traj, actions, actions before the last step)`` of Algorithm 2, normalised;
    ``settle(Given, key) -> log delta``; ``told(Given, normed actions, key) -> traj``, without guidance.
    """
    policy_apply = with_std(run.policy_apply)
    sampler, schedule = make_sampler(config, policy_apply), sampling_coefficients(config.diffusion)

    @partial(jax.jit, static_argnums=2)
    def once(given: Given, key: Array, keep: bool, residual: Array | None = None):
        traj, actions, steps = sample(
            sampler, given, schedule, key, config.horizon, run.spec.action_size, keep_steps=keep, residual=residual
        )
        # only what the last step did is asked for: with K = 1 it moved the actions from nowhere we know
        before = steps[1][-2] if keep and schedule.step.shape[0] > 1 else actions
        return traj, actions, before

    @jax.jit
    def settle(given: Given, key: Array) -> Array:
        """Log delta after some rounds of Eq. 10."""

        def round(log_delta: Array, key: Array) -> tuple[Array, None]:
            traj, actions, _ = once(given._replace(delta=jnp.exp(log_delta)), key, False)
            segment = unpack(traj, actions, given.normaliser)
            policy = Gaussian(*policy_apply(given.policy_params, segment.observations[:, :-1]))
            sigma = sigma_of(standardise(segment.actions[:, :-1], policy))
            return update_log_delta(log_delta, sigma, policy, config.guidance), None

        return jax.lax.scan(round, jnp.log(given.delta), jax.random.split(key, ROUNDS))[0]

    @jax.jit
    def told(given: Given, normed_actions: Array, key: Array) -> Array:
        shape = (schedule.step.shape[0] + 1, *normed_actions.shape[:2], run.spec.observation_size + 2)
        return sample_given_actions(sampler, given, schedule, normed_actions, jax.random.normal(key, shape))

    return once, settle, told


def settled(fitted: Fitted, config: Config, settle, std: float | np.ndarray) -> tuple[Array, float]:
    """``(log delta, 1 if it sits at its bound)``; rules that do not tune delta keep the initial one."""
    rule = RULES[config.guidance.rule]
    variance = 1.0 if rule.relative_delta else np.square(std).min()
    log_delta = jnp.log(jnp.float32(0.05 * variance))
    if not rule.tunes_delta:
        return log_delta, 0.0
    rows = fitted.rows[: SETTLING_ACTIONS // config.horizon]
    log_delta = settle(fitted.given(rows, std, log_delta), jax.random.key(1))
    policy = Gaussian(jnp.zeros(()), jnp.asarray(std, jnp.float32).reshape(1, 1, -1))
    _, largest = delta_bounds(policy, config.guidance)
    return log_delta, float(log_delta > jnp.log(0.97 * largest))


def explained(z: np.ndarray, states: np.ndarray) -> float:
    """Share of the variance of ``z [B, T, A]`` that a quadratic in the states ``[B, T, O]`` explains, mean over T, A.

    What as many columns of noise would explain is taken off; the first state is given and not counted.
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
    """Largest correlation of z between two times (the same action dimension)."""
    largest = [np.abs(np.corrcoef(z[:, :, a].T) - np.eye(z.shape[1])).max() for a in range(z.shape[2])]
    return float(max(largest))


def errors(name: str, predicted: np.ndarray, real: np.ndarray, std: np.ndarray) -> dict[str, float]:
    """Mean and median squared errors at the horizons, in variances and raw."""
    scaled, raw = squared_errors(predicted / std, real / std), squared_errors(predicted, real)
    row = {}
    for h in (h for h in HORIZONS if h <= scaled.shape[1]):
        row |= {f"{name}_h{h}": scaled[:, h - 1].mean(), f"{name}_median_h{h}": np.median(scaled[:, h - 1])}
        row |= {f"{name}_raw_h{h}": raw[:, h - 1].mean()}
    return row


def foreseen(fitted: Fitted, told, given: Given, actions: Array) -> np.ndarray:
    """Raw observations that the denoiser imagines when it is told all the actions ``[B, H, A]``, normalised."""
    return jax.device_get(unpack(told(given, actions, jax.random.key(5)), actions, fitted.normaliser)).observations


def measure(
    fitted: Fitted, config: Config, once, told, std: np.ndarray, log_delta: Array, residual: np.ndarray | None = None
) -> tuple[dict[str, float], np.ndarray]:
    """The columns of one setting, from TRAJECTORIES imagined ones, and their z ``[B, H, A]``."""
    run, rows = fitted.run, fitted.rows
    residual = None if residual is None else jnp.asarray(residual, jnp.float32)
    given, key = fitted.given(rows, std, log_delta), jax.random.key(2)
    traj, actions, before = jax.block_until_ready(once(given, key, True, residual))
    jax.block_until_ready(once(given, key, False, residual))
    began = time.perf_counter()
    jax.block_until_ready(once(given, key, False, residual))
    seconds = time.perf_counter() - began

    segment = jax.device_get(unpack(traj, actions, fitted.normaliser))
    change = np.asarray((actions - before) * fitted.normaliser.actions.std)[:, :-1] / std
    policy = jax.jit(run.policy_apply)

    def mean_at(raw_obs: np.ndarray) -> np.ndarray:
        return np.asarray(policy(run.actor, jnp.asarray(raw_obs, jnp.float32))[0])

    means = mean_at(segment.observations)
    z = standardised_actions(segment.actions, means, np.broadcast_to(std, means.shape))
    simulator_states, steps = run.transitions.simulator_states[rows], config.horizon - 1
    closed, acted, *_ = close_loop(
        run.config.env, simulator_states, lambda k, raw_obs: mean_at(raw_obs) + std * z[:, k], steps
    )
    opened, _, _ = replay_actions(run.config.env, simulator_states, segment.actions[:, :-1])
    unit, spread = np.asarray(run.normaliser.observations.std), spread_of(z)
    acted = normalise(jnp.asarray(acted[:, [*range(steps), steps - 1]]), fitted.normaliser.actions)
    foretold = foreseen(fitted, told, given, acted)
    strange = foreseen(fitted, told, given, acted.at[:, 1:].set(jnp.roll(acted[:, 1:], len(rows) // 2, axis=0)))
    columns = {
        **errors("closed", segment.observations, closed, unit),
        **errors("given", foretold, closed, unit),
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


def settings(
    fitted: Fitted, eta: float, cell: str = "", rules: Sequence[str] = (), only_steps: Sequence[int] = ()
) -> Iterator[tuple[dict[str, Any], Config, Tried]]:
    """Rules and steps (all, if none is named) of a cell.

    The sigmas are left to the caller: the policy's std needs no new compilation.
    """
    for rule, tried in ((name, t) for name, t in TRIED.items() if t.cell == cell and (not rules or name in rules)):
        guidance = dataclasses.replace(fitted.config.guidance, delta_lr=DELTA_LR, **tried.guidance)
        for steps in (k for k in tried.sampling_steps if not only_steps or k in only_steps):
            diffusion = dataclasses.replace(fitted.config.diffusion, sampling_steps=steps, eta=eta, **tried.sampling)
            which = {"sampling_tau": diffusion.sampling_tau, "sampling_floor": diffusion.sampling_floor}
            config = dataclasses.replace(fitted.config, guidance=guidance, diffusion=diffusion)
            yield {"rule": rule, "sampling_steps": steps, "eta": eta} | which, configs.validate(config), tried


def fields_of(options: argparse.Namespace) -> list[str]:
    return [*shlex.split(options.fields), "--diffusion.num-steps", str(NUM_STEPS)]


def run_cell(options: argparse.Namespace) -> list[dict]:
    """All settings of one cell of one run; in the first of its cells also the untrained network under two of them."""
    run = open_finished(options.cell)
    config = configs.validate(override(run.config, fields_of(options)))
    common = {"env": config.env.name, "seed": config.seed, "run_steps": run.env_steps, "rows": options.data_rows}
    common |= {"fields": options.fields}
    about = sweep.machine()
    rows = []
    first = not options.group
    for denoiser, updates in (("fitted", options.updates), ("untrained", 0))[: 2 if first else 1]:
        fitted = fit(run, config, options.data_rows, updates)
        imagined: dict[tuple, np.ndarray] = {}
        for labels, there, tried in settings(fitted, options.eta, options.group, options.rules, options.steps):
            if updates == 0 and (labels["sampling_steps"] != 16 or labels["rule"] not in ("score", "correlated 1")):
                continue
            once, settle, told = make_run(there, run)
            for sigma in tried.sigmas:
                std = np.resize(SIGMAS[sigma], run.spec.action_size).astype(np.float32)
                log_delta, at_bound = settled(fitted, there, settle, std)
                row = common | {"denoiser": denoiser, "updates": updates} | labels | {"sigma": sigma}
                row |= {"delta": float(jnp.exp(log_delta)), "at_bound": at_bound}
                z = imagined[tried.z_of, labels["sampling_steps"], sigma] if tried.z_of else None
                found, z = measure(fitted, there, once, told, std, log_delta, z)
                imagined[labels["rule"], labels["sampling_steps"], sigma] = z
                row |= found
                rows.append({k: float(f"{v:.5g}") if isinstance(v, float) else v for k, v in row.items()} | about)
                print(json.dumps(rows[-1], default=float), flush=True)
        if updates and first:
            found = [common | row for row in turns(fitted)]
            write_text_atomically(options.rows.with_suffix(".convergence"), json.dumps(found))
    return rows


LEVELS = (1, 4, 16, 32, 64, 96, 128)
"""Diffusion steps at which the map from actions to the policy's means is measured; 1 is the least noisy."""


def turns(fitted: Fitted, count: int = 64) -> list[dict[str, float]]:
    """The map actions -> states -> means (raw units) at every level of noise: radius, norms of powers, what is acausal.

    Around ``count`` trajectories that ``correlated`` returned at std 0.1, with the level's noise put on their states;
    means over them, of the radius also the median and the largest.
    """
    guidance = dataclasses.replace(fitted.config.guidance, rule="correlated", rho=1.0)
    config, run = dataclasses.replace(fitted.config, guidance=guidance), fitted.run
    once, *_ = make_run(config, run)
    given = fitted.given(fitted.rows[:count], 0.1, jnp.float32(0.0))
    clean, actions, _ = once(given, jax.random.key(3), False)
    raw, noise = unnormalise(actions, given.normaliser.actions), jax.random.normal(jax.random.key(4), clean.shape)
    sampler = make_sampler(config, run.policy_apply)
    schedule = sampling_coefficients(dataclasses.replace(config.diffusion, sampling_steps=NUM_STEPS))

    def means(raw_actions: Array, traj: Array, initial: Array, level: Coefficients) -> Array:
        """``[H, A] -> [H, A]`` for one trajectory."""
        acted = normalise(raw_actions, given.normaliser.actions)
        predicted = predict_clean(sampler, given._replace(initial=initial[None]), traj[None], acted[None], level)
        observations = unnormalise(predicted[0, :, : initial.shape[0]], given.normaliser.observations)
        return run.policy_apply(run.actor, observations)[0]

    jacobians = jax.jit(jax.vmap(jax.jacrev(means), in_axes=(0, 0, 0, None)))
    rows = []
    for step in LEVELS:
        level = jax.tree.map(lambda x, at=step - 1: x[at], schedule)
        noisy = set_initial_state(add_noise(clean, noise, level), given.initial)
        rows.append({"level": step} | turn_measures(np.asarray(jacobians(raw, noisy, given.initial, level))))
    return rows


def turn_measures(jacobians: np.ndarray) -> dict[str, float]:
    """Of maps ``[B, H, A, H, A]``: spectral radius, norms of powers, share of what acts backwards in time."""
    count, horizon, actions = jacobians.shape[:3]
    square = jacobians.reshape(count, horizon * actions, horizon * actions)
    times = np.repeat(np.arange(horizon), actions)
    acausal = square * (times[:, None] <= times[None, :])  # what an action does to means that it cannot have moved
    norms = {p: np.linalg.norm(np.linalg.matrix_power(square, p), 2, axis=(1, 2)) for p in (1, 2, 4, 8, 16, 32)}
    of_all, of_acausal = (np.linalg.norm(x, axis=(1, 2)).sum() for x in (square, acausal))
    radii = np.abs(np.linalg.eigvals(square)).max(1)
    return {
        "spectral_radius": float(radii.mean()),
        "spectral_radius_median": float(np.median(radii)),
        "spectral_radius_largest": float(radii.max()),
        "acausal_share": float(of_acausal / of_all),
        **{f"norm_of_power_{p}": float(norm.mean()) for p, norm in norms.items()},
        **{f"norm_of_power_{p}_median": float(np.median(norm)) for p, norm in norms.items()},
    }


def keep_convergence(out: Path) -> None:
    """``convergence.csv`` from what the cells left; of runs without (as in a clone) it keeps the rows that it has."""
    left = sorted((out / "guidance_error.cells").glob(".*.convergence"))
    found = [row for f in left for row in json.loads(f.read_text())]
    measured, path = {(row["env"], str(row["seed"])) for row in found}, out / "convergence.csv"
    before = sweep.read_csv(path) if path.exists() else []
    if found:
        sweep.write_csv(path, [row for row in before if (row["env"], row["seed"]) not in measured] + found)


# --- the table and the figure ----------------------------------------------------------------------------------------


def steps_ahead(rows: list[dict[str, str]]) -> list[int]:
    """Those of HORIZONS that were measured."""
    return [h for h in HORIZONS if f"closed_h{h}" in rows[0]]


def against_best(rows: list[dict[str, str]]) -> list[dict[str, Any]]:
    """Every rule and K against the best rule at K = 128, per task, sigma and steps ahead; means over seeds.

    Rules that keep another's z are left out: their actions are not the policy's. ``ratio_exact`` is against the best of
    the rules whose actions are the policy's by construction, those of ``correlated``.

    ``ratio`` is the closed-loop error over that of the best; ``spread`` is the std over seeds over the mean (0 of one).
    """
    errors: dict[tuple, list[float]] = {}
    for r in (r for r in rows if r.get("denoiser") == "fitted" and not r["rule"].endswith(OF_SCORE)):
        for h in steps_ahead(rows):
            there = (r["env"], r["sigma"], h, r["rule"], int(r["sampling_steps"]))
            errors.setdefault(there, []).append(float(r[f"closed_h{h}"]))
    means = {there: float(np.mean(x)) for there, x in errors.items()}
    table = []
    for (env, sigma, h, rule, steps), mean in means.items():
        at_full = {t[3]: x for t, x in means.items() if t[:3] == (env, sigma, h) and t[4] == NUM_STEPS}
        if not at_full:  # --steps left them out
            continue
        best = min(at_full, key=at_full.get)
        row = {"env": env, "sigma": sigma, "step": h, "rule": rule, "sampling_steps": steps, "error": mean}
        row |= {"spread": float(np.std(errors[env, sigma, h, rule, steps])) / mean, "best_rule": best}
        exact = min((x for name, x in at_full.items() if name.startswith("correlated")), default=float("nan"))
        table.append(row | {"ratio": mean / at_full[best], "ratio_exact": mean / exact})
    return table


def matched(rows: list[dict[str, str]]) -> list[dict[str, Any]]:
    """The error of a rule that keeps the z of ``score`` over that of ``score``: mean, least and largest over seeds."""
    errors, ratios = {}, {}
    for r in (r for r in rows if r.get("denoiser") == "fitted"):
        for h in steps_ahead(rows):
            errors[r["env"], r["sigma"], h, r["rule"], int(r["sampling_steps"]), r["seed"]] = float(r[f"closed_h{h}"])
    for (env, sigma, h, rule, steps, seed), error in errors.items():
        if rule.endswith(OF_SCORE):
            there = (env, sigma, h, rule.removesuffix(OF_SCORE), steps)
            ratios.setdefault(there, []).append(error / errors[env, sigma, h, "score", steps, seed])
    names = ("env", "sigma", "step", "rule", "sampling_steps")
    return [
        dict(zip(names, there, strict=True)) | {"ratio": float(np.mean(x)), "least": min(x), "largest": max(x)}
        for there, x in ratios.items()
    ]


def summarised(table: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Per rule and K: the worst and the median ratio over tasks, sigmas and steps, and how many are within a tenth.

    Those measured in the most settings come first, each group with the least worst ratio in front.
    """
    found = []
    for rule, steps in dict.fromkeys((r["rule"], r["sampling_steps"]) for r in table):
        ratios = [r["ratio"] for r in table if (r["rule"], r["sampling_steps"]) == (rule, steps)]
        exact = [r["ratio_exact"] for r in table if (r["rule"], r["sampling_steps"]) == (rule, steps)]
        found.append(
            {
                "rule": rule,
                "sampling_steps": steps,
                "worst_ratio": max(ratios),
                "median_ratio": float(np.median(ratios)),
                "within_a_tenth": sum(x <= 1.1 for x in ratios),
                "worst_exact": max(exact),
                "within_a_tenth_exact": sum(x <= 1.1 for x in exact),
                "settings": len(ratios),
            }
        )
    return sorted(found, key=lambda row: (-row["settings"], row["worst_ratio"]))


def tabulate(out: Path) -> None:
    """``against_best.csv``, ``summary.csv`` and ``matched.csv``, from the CSV alone and as far as it goes."""
    found = sweep.read_csv(out / "guidance_error.csv")
    table = against_best(found)
    summary = summarised(table)
    for name, rows in (("against_best", table), ("summary", summary), ("matched", matched(found))):
        short = [{k: float(f"{v:.4g}") if isinstance(v, float) else v for k, v in row.items()} for row in rows]
        if short:  # --rules and --steps may have left out what is compared
            sweep.write_csv(out / f"{name}.csv", short)
    for row in summary[:3]:
        print(
            f"{row['rule']}, K = {row['sampling_steps']}: at most {row['worst_ratio']:.2f} times the best rule's error "
            f"at K = {NUM_STEPS}; within a tenth of it in {row['within_a_tenth']} of {row['settings']} settings"
        )


TOLD = "correlated 1, relaxed"
"""The rule whose z the denoiser is told about in the figure: normal draws, like the policy's."""
COLOURS = {
    "score": ("#0072B2", "o-"),
    "score, spaced": ("#0072B2", "s--"),
    "preconditioned": ("#56B4E9", "o-"),
    "correlated 1": ("#D55E00", "o-"),
    "correlated 1, relaxed": ("#009E73", "o-"),
    "correlated 1, relaxed, spaced": ("#009E73", "s--"),
    "correlated 1, relaxed 0.3": ("#E69F00", "^:"),
    "correlated 1, relaxed 0.2": ("#E69F00", "v:"),
    "correlated 1, relaxed 0.1": ("#E69F00", "x:"),
    "policy_sampling": ("#CC79A7", "o-"),
}


def per_steps(rows: list[dict[str, str]], rule: str, column: str) -> tuple[list[int], np.ndarray]:
    """``(K [n], [3, n])``: mean, least and largest over seeds of a fitted denoiser's column."""
    found: dict[int, list[float]] = {}
    for r in rows:
        if (r["rule"], r["denoiser"]) == (rule, "fitted"):
            found.setdefault(int(r["sampling_steps"]), []).append(float(r[column]))
    steps = sorted(found)
    return steps, np.array([[f(found[k]) for k in steps] for f in (np.mean, min, max)])


def draw_panel(axis: Any, rows: list[dict[str, str]], ahead: int) -> None:
    """Errors this many steps ahead of every rule on one task at one sigma, and what they are to be compared with."""
    for rule, (colour, style) in COLOURS.items():
        steps, (mean, low, high) = per_steps(rows, rule, f"closed_h{ahead}")
        if steps:
            axis.plot(steps, mean, style, color=colour, markersize=3, label=rule.replace("_", " "))
            axis.fill_between(steps, low, high, color=colour, alpha=0.15, linewidth=0)
    steps, (told, *_) = per_steps(rows, TOLD, f"given_h{ahead}")
    if steps:
        axis.plot(steps, told, ":", color="0.2", label="denoiser told MuJoCo's actions")
    null = [float(r[f"closed_h{ahead}"]) for r in rows if r["denoiser"] == "untrained"]
    if null:
        axis.axhline(np.mean(null), color="0.5", linewidth=1, linestyle="--", label="untrained")
    axis.set_xscale("log", base=2)
    axis.set_yscale("log")
    axis.set_xticks(EVERY, [str(k) for k in EVERY])
    axis.tick_params(which="both", labelsize=7)
    axis.spines[["top", "right"]].set_visible(False)


def draw(out: Path) -> None:
    """``guidance_error.png``: errors as far ahead as was measured, against K; a row per task, a column per sigma."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    rows = sweep.read_csv(out / "guidance_error.csv")
    ahead = steps_ahead(rows)[-1]
    tasks, sigmas = (list(dict.fromkeys(r[name] for r in rows)) for name in ("env", "sigma"))
    figure, axes = plt.subplots(
        len(tasks), len(sigmas), figsize=(2.9 * len(sigmas), 2.7 * len(tasks) + 1.0), squeeze=False, sharey="row"
    )
    for (i, task), (j, sigma) in itertools.product(enumerate(tasks), enumerate(sigmas)):
        draw_panel(axes[i, j], [r for r in rows if (r["env"], r["sigma"]) == (task, sigma)], ahead)
        axes[i, j].set_title(f"{task}, sigma {sigma}", fontsize=9)
    for axis in axes[-1]:
        axis.set_xlabel("K, diffusion steps sampled of 128", fontsize=8)
    for axis in axes[:, 0]:
        axis.set_ylabel(f"closed-loop error, {ahead} steps ahead\n[variances of the observation]", fontsize=8)
    drawn = {line.get_label(): line for axis in axes.flat for line in axis.lines}
    figure.legend(list(drawn.values()), list(drawn), loc="lower center", ncols=4, frameon=False, fontsize=8)
    counts = ", ".join(f"{t}: {len({r['seed'] for r in rows if r['env'] == t})} seed(s)" for t in tasks)
    figure.suptitle(
        f"denoisers fitted with {rows[0]['updates']} updates to {rows[0]['rows']} transitions of small training runs "
        f"({counts}; shaded: all seeds)",
        fontsize=8,
    )
    figure.tight_layout(rect=(0, 0.9 / figure.get_figheight(), 1, 1))
    sweep.save_figure(figure, out / "guidance_error.png")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="*", metavar="RUN", help="folders of runs")
    sweep.add_arguments(parser)
    parser.add_argument("--data-rows", type=int, default=50_000, help="transitions that the denoisers are fitted to")
    parser.add_argument("--updates", type=int, default=12_000, help="gradient steps of each")
    parser.add_argument("--rules", nargs="+", default=[], choices=TRIED, help="only these (all)")
    parser.add_argument("--steps", type=int, nargs="+", default=[], choices=EVERY, help="only these K (all)")
    parser.add_argument("--eta", type=float, default=1.0, help="share of the states' noise, of stochastic sampling")
    parser.add_argument("--fields", default="", help='fields of the config, as in "--denoiser.width 512"')
    parser.add_argument("--cell", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--group", default="", help=argparse.SUPPRESS)
    parser.add_argument("--rows", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.cell:
        write_text_atomically(options.rows, json.dumps(run_cell(options), default=float))
        return 0
    code, path = 0, options.out / "guidance_error.csv"
    for name in options.rules:
        if TRIED[name].z_of not in ("", *options.rules):
            print(f"guidance_error: --rules is {name}; allowed: with {TRIED[name].z_of} too", file=sys.stderr)
            return 2
    if not options.figure_only:
        keep = ("--data-rows", options.data_rows, "--updates", options.updates, "--eta", options.eta)
        keep = (f"--fields={options.fields}", *keep, *(["--rules", *options.rules] if options.rules else []))
        keep += ("--steps", *options.steps) if options.steps else ()
        cells = []
        wanted = [t for name, t in TRIED.items() if not options.rules or name in options.rules]
        for group, run in itertools.product(dict.fromkeys(t.cell for t in wanted), options.runs):
            run = run.resolve()
            # Runs of two tasks may have one name.
            name = sweep.with_fields(f"{run.parent.name}-{run.name}{group}", options.fields)
            cells.append(sweep.own_cell(__file__, options.out, name, *keep, "--cell", run, f"--group={group}"))
        code = sweep.run(cells, path, options)
        keep_convergence(options.out)
    if path.exists():
        tabulate(options.out)
        draw(options.out)
    return code


if __name__ == "__main__":
    sys.exit(main())
