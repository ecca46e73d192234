"""The columns of the oracle study against trajectories that are drawn and rolled out one by one."""

import dataclasses

import numpy as np
import pytest

from experiments.guidance import oracle_study as study
from experiments.guidance.rules_tried import SPACED
from experiments.harness import linear_gaussian as world
from experiments.harness.schedules import schedule_of
from polygrad_jax.config import DiffusionConfig

DRAWS = 20_000


def rolled_out(problem: world.Problem, z: np.ndarray | None, actions: np.ndarray | None) -> np.ndarray:
    """Raw states ``[B, H, O]`` without process noise: in the closed loop under ``z``, or under given actions."""
    system, policy = problem.system, problem.policy
    batch = len(actions if z is None else z)
    s, states = np.tile(problem.initial, (batch, 1)), []
    for k in range(problem.horizon):
        states.append(s)
        a = s @ policy.K.T + policy.b + policy.std * z[:, k] if actions is None else actions[:, k]
        s = s @ system.F.T + a @ system.G.T
    return np.stack(states, axis=1)


@pytest.mark.parametrize("rule", ["score", "correlated 0.9", "correlated 1, relaxed"])
def test_columns_are_those_of_rollouts(rule):
    cell = study.World("two actions", 0.05, "random", 10)
    fields = (study.RULES | study.LATER)[rule]
    problem = dataclasses.replace(cell.problem(0.3), sampling_steps=8, delta=0.0003, **fields)
    out = world.returned(problem)
    row = study.measure(problem, out)

    stats, (observations, actions) = problem.stats, problem.system.sizes
    values, vectors = np.linalg.eigh(out.cov)
    root = vectors * np.sqrt(np.maximum(values, 0.0))
    flat = out.mean + np.random.default_rng(0).standard_normal((DRAWS, len(values))) @ root.T
    size = problem.horizon * (observations + 2)
    traj = flat[:, :size].reshape(DRAWS, problem.horizon, -1) * stats.std + stats.mean
    acted = flat[:, size:].reshape(DRAWS, problem.horizon, -1) * stats.action_std + stats.action_mean
    states = traj[..., :observations]
    z = (acted - states @ problem.policy.K.T - problem.policy.b) / problem.policy.std

    truth = np.random.default_rng(1).standard_normal((DRAWS, observations + problem.horizon * (actions + observations)))
    true = np.stack([world.rollout(problem.system, problem.policy, 10, u, problem.initial) for u in truth[:4000]])
    true = true[:, :size].reshape(4000, 10, -1)[..., :observations] / stats.std[:observations]
    scaled = states / stats.std[:observations]
    true_std = np.sqrt(true.var(0).sum(-1))
    for name, there in (("closed", rolled_out(problem, z, None)), ("open", rolled_out(problem, None, acted))):
        error = np.sqrt(np.square(scaled - there / stats.std[:observations]).mean(0).sum(-1))
        for label, k in study.horizons(10).items():
            np.testing.assert_allclose(row[f"{name}_{label}"], error[k] / true_std[k], rtol=0.06)
    for label, k in study.horizons(10).items():
        np.testing.assert_allclose(row[f"variance_{label}"], scaled.var(0).sum(-1)[k] / true_std[k] ** 2, rtol=0.06)
    np.testing.assert_allclose(row["z_rms"], np.sqrt(np.square(z).mean()), rtol=0.02)
    over_time = np.corrcoef(z.reshape(DRAWS, -1).T)
    np.testing.assert_allclose(row["z_over_time"], np.abs(over_time - np.eye(20)).max(), atol=0.03)
    with_state = max(np.abs(np.corrcoef(np.hstack([z[:, t], states[:, t]]).T)[:2, 2:]).max() for t in range(1, 10))
    np.testing.assert_allclose(row["z_with_state"], with_state, atol=0.03)


def test_a_perfect_model_has_the_truths_columns():
    """The true on-policy trajectories themselves: variance 1, z standard normal, and only process noise of distance."""
    cell = study.World("scalar", 0.05, "random", 10)
    problem = cell.problem(0.1)
    truth = problem.on_policy()
    row = study.measure(problem, world.Returned(truth.offset, truth.cov, np.zeros(10)))
    for label in study.horizons(10):
        np.testing.assert_allclose(row[f"variance_{label}"], 1.0, rtol=1e-6)
        np.testing.assert_allclose(row[f"closed_{label}"], row[f"closed_truth_{label}"], rtol=1e-6)
    np.testing.assert_allclose([row["z_rms"], row["z_over_time"], row["z_with_state"]], [1.0, 0.0, 0.0], atol=1e-6)


def test_the_last_change_is_that_of_the_last_two_steps():
    """One step more or less: with K = 1 the only step moves the actions from their first draw."""
    cell = study.World("scalar", 0.0, "random", 10)
    problem = dataclasses.replace(cell.problem(1.0), sampling_steps=1, **study.RULES["correlated 0"])
    out = world.returned(problem)
    # rho counts as 1 in the last step: a = mu + sigma r where r is the first draw itself, and mu what the states say
    pi, size = world.policy_map(problem), problem.horizon * 3
    mean_part = pi.gain @ out.mean[:size] + pi.offset
    np.testing.assert_allclose(out.mean[size:] * pi.action_std + pi.action_mean, mean_part, atol=1e-9)
    assert np.all(out.last_change >= 0) and out.last_change[0] < out.last_change[-1]


def test_one_cell_names_its_settings_and_leaves_out_what_no_delta_reaches(monkeypatch):
    monkeypatch.setattr(study, "SAMPLING_STEPS", (4,))
    monkeypatch.setattr(study, "SIGMAS", (1.0, 0.1))
    cell = study.World("scalar", 0.0, "random", 10)
    rows = list(study.rows_of_world(cell))
    assert [(r["rule"], r["sigma"]) for r in rows] == [
        (rule, sigma) for rule in study.RULES if rule != "preconditioned" for sigma in (1.0, 0.1)
    ]
    found = {(r["rule"], r["sigma"]): r for r in rows}
    assert "variance_last" not in found["score", 0.1]  # the controller would sit at its bound
    assert found["correlated 1", 0.1]["variance_last"] > 100  # K < H


def test_only_effects_on_an_earlier_time_are_acausal():
    """Two times of two actions: on its own time an action does 5, on the later one 7, on the earlier one 0.3."""
    turn = np.block([[np.full((2, 2), 5.0), np.full((2, 2), -0.3)], [np.full((2, 2), 7.0), np.full((2, 2), 5.0)]])
    assert study.backwards(turn, 2) == 0.3
    rows = study.convergence(study.World("two actions", 0.05, "closed 1", 10))
    assert {row["acausal"] == 0 for row in rows if row["causal"]} == {True}
    assert min(row["acausal"] for row in rows if not row["causal"]) > 0


def test_spaced_steps_are_those_of_the_sampler(monkeypatch):
    """The cell's schedule at K = 16 has the coefficients with which ``guidance_error.py`` samples."""
    seen = []
    monkeypatch.setattr(study, "SPACED_STEPS", (16,))
    monkeypatch.setattr(study, "SIGMAS", (1.0,))
    monkeypatch.setattr(study, "measure", lambda problem, out, truth: seen.append(problem) or {})
    list(study.rows_of_world(study.World("scalar", 0.0, "random", 10), "_relaxed"))
    mine = next(p.schedule for p in seen if p.steps)
    diffusion = DiffusionConfig(num_steps=study.NUM_STEPS, sampling_steps=16, tau=study.TAU)
    theirs = schedule_of(diffusion, SPACED)
    np.testing.assert_array_equal(mine.step, theirs.step)
    for own, name in ((mine.clean, "posterior_clean"), (mine.noisy, "posterior_noisy"), (mine.std, "posterior_std")):
        np.testing.assert_allclose(own, getattr(theirs, name), atol=1e-6)
