"""Rules of guidance that only experiments have, against the closed form of the oracle and against one another."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.guidance.rules_tried import correlated
from experiments.harness import linear_gaussian as oracle
from polygrad_jax.config import GuidanceConfig
from polygrad_jax.diffusion.denoising_loss import set_initial_state
from polygrad_jax.diffusion.guidance import RULES, Gaussian, Guided, Strength
from polygrad_jax.diffusion.sampler import Diffusing, Draws, Given, Sampler, diffusion_step
from polygrad_jax.diffusion.schedule import coefficients
from polygrad_jax.types import MeanStd, Normaliser, Policy

RTOL = 1e-6
FEW = {"sampling_steps": 5}
CHANGES = {
    "preconditioned": {"rule": "preconditioned", "delta": 0.2},
    "correlated, rho 0": {"rule": "correlated", "rho": 0.0},
    "correlated, rho 0.8": {"rule": "correlated", "rho": 0.8},
    "correlated, rho 0.8, relaxed": {"rule": "correlated", "rho": 0.8, "relaxation": 0.3},
    "correlated, rho 0.8, 1 step": {"sampling_steps": 1, "rule": "correlated", "rho": 0.8},
    "correlated, rho 0.8, 5 steps, eta 0.5": FEW | {"rule": "correlated", "rho": 0.8, "eta": 0.5},
}


def problem_of(change: dict) -> oracle.Problem:
    """A noisy point on a line, its policy in other units than its data."""
    behaviour = oracle.LinearPolicy(np.array([[0.1, -0.2]]), np.array([0.3]), np.array([0.9]))
    policy = oracle.LinearPolicy(np.array([[-0.4, 0.3]]), np.array([-0.2]), np.array([0.5]))
    initial = np.array([1.0, 0.25])
    problem = oracle.Problem(oracle.two_state_system(0.4), behaviour, policy, 4, 12, 0.1, 0.03, initial)
    return dataclasses.replace(problem, **change)


def denoise(params, traj, actions, step):
    """The optimal denoiser; one step for the whole batch."""
    gain, offset = params["gain"][step[0]], params["offset"][step[0]]
    flat = jnp.concatenate([traj.reshape(traj.shape[0], -1), actions.reshape(traj.shape[0], -1)], axis=-1)
    return (offset[None] + flat @ gain.T).reshape(traj.shape)


def linear_policy(params, raw_obs):
    mean = raw_obs @ params["K"].T + params["b"]
    return mean, jnp.broadcast_to(params["std"], mean.shape)


def sampled(problem: oracle.Problem, draws: Draws, rule: str) -> jax.Array:
    """Algorithm 2's flat output ``[H (O + 2) + H A]`` at given draws ``[K + 1, 1, H, ...]``, the start's last."""
    stats, (observations, _) = problem.stats, problem.system.sizes
    gain, offset = (np.zeros((problem.num_steps, *x.shape[1:])) for x in problem.denoiser())
    gain[problem.schedule.step], offset[problem.schedule.step] = problem.denoiser()
    normaliser = Normaliser(
        MeanStd(jnp.asarray(stats.mean[:observations]), jnp.asarray(stats.std[:observations])),
        MeanStd(jnp.asarray(stats.action_mean), jnp.asarray(stats.action_std)),
        MeanStd(jnp.asarray(stats.mean[-2:-1]), jnp.asarray(stats.std[-2:-1])),
        MeanStd(jnp.asarray(stats.mean[-1:]), jnp.asarray(stats.std[-1:])),
    )
    params = {name: jnp.asarray(getattr(problem.policy, name)) for name in ("K", "b", "std")}
    # of one action the smallest variance is its own: in its units, delta is the oracle's
    unit = float(problem.policy.std[0]) ** 2 if problem.rule == "preconditioned" else 1.0
    given = Given(
        {"gain": jnp.asarray(gain), "offset": jnp.asarray(offset)},
        Policy(params, linear_policy),
        normaliser,
        jnp.asarray(problem.normed_initial[None]),
        jnp.asarray(problem.delta * unit),
    )
    schedule = coefficients(problem.num_steps, problem.schedule.step, problem.tau, problem.eta)
    schedule = jax.tree.map(lambda x: x.astype(float) if jnp.issubdtype(x.dtype, jnp.floating) else x, schedule)
    guidance = GuidanceConfig(rule=rule, relaxation=problem.relaxation, state_change_clip=0, clip_std=1e9)
    sampler = Sampler(denoise, guidance, "clean")

    def body(carry, c_and_draws):
        return diffusion_step(sampler, given, carry, *c_and_draws), None

    begin = Diffusing(draws.traj[-1], draws.actions[-1], residual=draws.actions[-1])
    end, _ = jax.lax.scan(body, begin, (schedule, jax.tree.map(lambda x: x[:-1], draws)), reverse=True)
    return jnp.concatenate([set_initial_state(end.traj, given.initial).ravel(), end.actions.ravel()])


@pytest.mark.parametrize("name", CHANGES)
def test_the_output_is_the_oracles(name, monkeypatch):
    """Exactly, mean and covariance, by the Jacobian of the sampler with respect to every draw; float64."""
    problem = problem_of(CHANGES[name])
    rule = name if problem.rule == "correlated" else problem.rule
    if problem.rule == "correlated":
        monkeypatch.setitem(RULES, rule, correlated(problem.rho))
    else:
        # without its clip, which is not affine
        monkeypatch.setitem(RULES, rule, RULES[rule]._replace(clips=False))
    observations, actions = problem.system.sizes
    shape = (len(problem.schedule.step) + 1, 1, problem.horizon)

    def value_twice(draws):
        value = sampled(problem, draws, rule)
        return value, value

    with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        draws = Draws(jnp.zeros((*shape, observations + 2)), jnp.zeros((*shape, actions)))
        parts, mean = jax.jit(jax.jacrev(value_twice, has_aux=True))(draws)
    jacobian = np.concatenate([np.asarray(x).reshape(len(mean), -1) for x in parts], axis=1)
    wanted_mean, wanted = oracle.recursion(problem)
    np.testing.assert_allclose(mean, wanted_mean, rtol=1e-5, atol=1e-6)
    scale = np.sqrt(np.diag(wanted)) + 1e-6
    cov = jacobian @ jacobian.T
    np.testing.assert_allclose(cov / np.outer(scale, scale), wanted / np.outer(scale, scale), rtol=RTOL, atol=RTOL)


def test_preconditioned_is_the_score_with_delta_in_proportion_to_the_variance():
    """Stds 0.1 and 0.2: the same delta for the first action, four times the delta for the second."""
    std = jnp.array([0.1, 0.2])
    policy = Gaussian(jnp.zeros((3, 2, 2)), jnp.broadcast_to(std, (3, 2, 2)))
    before = Guided(jnp.ones((3, 2, 2)), jnp.zeros((3, 2, 2)))
    strength = Strength(jnp.float32(0.005), jnp.float32(1.0), jnp.bool_(False))
    moved = RULES["preconditioned"].move(before, policy, strength, before.residual).actions
    np.testing.assert_allclose(moved, np.full((3, 2, 2), 0.5), rtol=1e-6)  # 1 - 0.005 / 0.01 of both
    scored = RULES["score"].move(before, policy, strength, before.residual).actions
    np.testing.assert_allclose(scored[0, 0], [0.5, 1 - 0.005 / 0.04], rtol=1e-6)


def test_correlated_with_rho_1_is_the_packages():
    key = jax.random.key(0)
    draws, actions, residual, mean = jax.random.normal(key, (4, 5, 3, 2))
    policy, before = Gaussian(mean, jnp.full(mean.shape, 0.3)), Guided(actions, residual)
    strength = Strength(jnp.float32(0.0), jnp.float32(0.4), jnp.bool_(False))
    ours = correlated(1.0).move(before, policy, strength, draws)
    theirs = RULES["correlated"].move(before, policy, strength, draws)
    for mine, other in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(mine, other, rtol=1e-6)
    last = correlated(0.0).move(before, policy, strength._replace(is_last=jnp.bool_(True)), draws)
    np.testing.assert_array_equal(last.residual, residual)  # no fresh draw in the last step
    fresh = correlated(0.0).move(before, policy, strength, draws)
    np.testing.assert_array_equal(fresh.residual, draws)
