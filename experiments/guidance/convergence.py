"""Do diffusion steps under a policy converge? The map from actions over states to the policy's means, its powers.

Around trajectories that ``correlated`` returned, with the noise of a level put on their states: spectral radius, norms
of powers, and the share of what acts on its own time or backwards. ``guidance_error.py`` writes ``convergence.csv``.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from experiments.guidance.rules_tried import EVEN, relaxed
from experiments.harness import grid
from experiments.harness.guided_sampler import GuidedSampler
from experiments.harness.opened_runs import NUM_STEPS, Fitted
from experiments.harness.schedules import schedule_of
from polygrad_jax.data.normaliser import normalise, unnormalise
from polygrad_jax.diffusion.denoising_loss import set_initial_state
from polygrad_jax.diffusion.sampler import predict_clean
from polygrad_jax.diffusion.schedule import Coefficients, add_noise
from polygrad_jax.types import Array
from polygrad_jax.world_models.polygrad import make_sampler

LEVELS = (1, 4, 16, 32, 64, 96, 128)
"""Diffusion steps at which the map is measured; 1 is the least noisy."""
POWERS = (1, 2, 4, 8, 16, 32)


def turns(fitted: Fitted, raw_obs: np.ndarray) -> list[dict[str, float]]:
    """Measure the map (raw units) at every level of noise, around trajectories from raw observations ``[B, O]``.

    They are imagined at std 0.1. Means over them, of the radius also the median and the largest.
    """
    guidance = dataclasses.replace(fitted.config.guidance, **relaxed(1.0))
    config = dataclasses.replace(fitted.config, guidance=guidance)
    guided = GuidedSampler(fitted, config, schedule_of(config.diffusion, EVEN))
    given = guided.given(raw_obs, 0.1, jnp.float32(0.0))
    clean, actions, _ = guided.imagine(given, jax.random.key(3))
    raw, noise = unnormalise(actions, given.normaliser.actions), jax.random.normal(jax.random.key(4), clean.shape)
    sampler, policy = make_sampler(config), fitted.policy
    all_steps = schedule_of(dataclasses.replace(config.diffusion, sampling_steps=NUM_STEPS), EVEN)

    def means(raw_actions: Array, traj: Array, initial: Array, level: Coefficients) -> Array:
        """Return the policy's means ``[H, A]`` at the states predicted under ``raw_actions [H, A]``."""
        acted = normalise(raw_actions, given.normaliser.actions)
        predicted = predict_clean(sampler, given._replace(initial=initial[None]), traj[None], acted[None], level)
        observations = unnormalise(predicted[0, :, : initial.shape[0]], given.normaliser.observations)
        return policy(observations)[0]

    jacobians = jax.jit(jax.vmap(jax.jacrev(means), in_axes=(0, 0, 0, None)))
    rows = []
    for step in LEVELS:
        level = jax.tree.map(lambda x, at=step - 1: x[at], all_steps)
        noisy = set_initial_state(add_noise(clean, noise, level), given.initial)
        rows.append({"level": step} | turn_measures(np.asarray(jacobians(raw, noisy, given.initial, level))))
    return rows


def turn_measures(jacobians: np.ndarray) -> dict[str, float]:
    """Measure maps ``[B, H, A, H, A]``: radius, norms of powers, share of what acts on its own time or backwards."""
    count, horizon, actions = jacobians.shape[:3]
    square = jacobians.reshape(count, horizon * actions, horizon * actions)
    times = np.repeat(np.arange(horizon), actions)
    acausal = square * (times[:, None] <= times[None, :])  # what an action does to means that it cannot have moved
    norms = {p: np.linalg.norm(np.linalg.matrix_power(square, p), 2, axis=(1, 2)) for p in POWERS}
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
    """Write ``convergence.csv`` from what the cells left; rows of runs without (as in a clone) stay."""
    left = sorted((out / "guidance_error.cells").glob(".*.convergence"))
    found = [row for f in left for row in json.loads(f.read_text())]
    measured, path = {(row["env"], str(row["seed"])) for row in found}, out / "convergence.csv"
    if found:
        with grid.locked(out):
            before = grid.read_if_there(path)
            grid.write_csv(path, [row for row in before if (row["env"], row["seed"]) not in measured] + found)
