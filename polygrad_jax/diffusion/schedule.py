"""Compute the noise schedule, the forward process and its posterior (paper, Section 3).

Steps are counted from 0: ``t = 0`` is the last step of sampling, ``t = N - 1`` the first.
Coefficients are computed in float64 on the host and passed to the device in float32.
"""

from __future__ import annotations

import flax.struct
import jax.numpy as jnp
import numpy as np

from polygrad_jax.config import DiffusionConfig
from polygrad_jax.types import Array

MAX_BETA = 0.999


def cosine_betas(num_steps: int, tau: float) -> np.ndarray:
    """Return the betas ``[N]`` of the cosine schedule (Chen 2023, Algorithm 1, start 0, end 1), float64.

    ``tau`` below 1 keeps the trajectory nearly clean until the last forward steps.
    """
    grid = np.linspace(0.0, 1.0, num_steps + 1)
    alpha_bar = np.cos(grid * np.pi / 2) ** (2 * tau)
    end = np.cos(np.pi / 2) ** (2 * tau)
    alpha_bar = (alpha_bar - end) / (1.0 - end)
    return np.clip(1.0 - alpha_bar[1:] / alpha_bar[:-1], 0.0, MAX_BETA)


def strided_steps(num_steps: int, sampling_steps: int) -> np.ndarray:
    """Return ``K`` of the ``N`` steps, ascending, evenly spread, always with the first and (for K > 1) the last."""
    if sampling_steps == 1:
        return np.array([num_steps - 1])
    return np.round(np.linspace(0, num_steps - 1, sampling_steps)).astype(np.int64)


@flax.struct.dataclass
class Coefficients:
    """All coefficients of a diffusion step; ``[K]`` each (or scalars for one step)."""

    step: Array  # t, counted in the N steps the network was trained on
    sqrt_alpha_bar: Array  # scale of the clean trajectory in the noisy one
    sqrt_one_minus_alpha_bar: Array  # scale of the noise in the noisy trajectory
    posterior_clean: Array  # posterior mean's weight of the predicted clean trajectory
    posterior_noisy: Array  # posterior mean's weight of the noisy trajectory
    posterior_std: Array  # of the noise added to the states; 0 at the last step
    action_noise_std: Array  # of the noise added to guided actions, for every eta; 0 at the last step
    is_last: Array  # bool: whether this is the last step of the run


def coefficients(num_steps: int, steps: np.ndarray, tau: float, eta: float = 1.0) -> Coefficients:
    """Return the coefficients ``[K]`` of the steps to sample, ``steps [K]`` ascending, a subset of the N.

    The betas of the subset follow from its alpha_bar (beta = 1 - alpha_bar / alpha_bar_prev), so that every step has
    the noise level that the network was trained on. ``eta`` scales the noise of the states; the weight of the noisy
    trajectory makes up for the rest (DDIM, arXiv 2010.02502, Eq. 12 and 16), so that the marginal of every step stays
    that of the forward process. eta = 1 is the posterior (DDPM); eta = 0 adds no noise.
    """
    alpha_bar = np.cumprod(1.0 - cosine_betas(num_steps, tau))[steps]
    previous = np.concatenate([[1.0], alpha_bar[:-1]])
    beta = 1.0 - alpha_bar / previous
    full_noise = np.sqrt(beta * (1.0 - previous) / (1.0 - alpha_bar))
    noise = eta * full_noise
    # At a large tau almost all noise comes in one step: the difference is 0, and rounding can leave less.
    noisy = np.sqrt(np.maximum(1.0 - previous - noise**2, 0.0) / (1.0 - alpha_bar))

    def array(x: np.ndarray) -> Array:
        return jnp.asarray(x, jnp.float32)

    return Coefficients(
        step=jnp.asarray(steps, jnp.int32),
        sqrt_alpha_bar=array(np.sqrt(alpha_bar)),
        sqrt_one_minus_alpha_bar=array(np.sqrt(1.0 - alpha_bar)),
        posterior_clean=array(np.sqrt(previous) - np.sqrt(alpha_bar) * noisy),
        posterior_noisy=array(noisy),
        posterior_std=array(noise),
        action_noise_std=array(full_noise),
        is_last=jnp.asarray(np.arange(len(steps)) == 0),
    )


def training_coefficients(config: DiffusionConfig) -> Coefficients:
    """Return the coefficients of all N steps, from which training draws."""
    return coefficients(config.num_steps, np.arange(config.num_steps), config.tau)


def sampling_coefficients(config: DiffusionConfig) -> Coefficients:
    """Return the coefficients of the K steps that imagination samples."""
    return coefficients(config.num_steps, strided_steps(config.num_steps, config.sampling_steps), config.tau)


def add_noise(clean: Array, noise: Array, c: Coefficients) -> Array:
    """Return ``x_t = sqrt(alpha_bar_t) x_0 + sqrt(1 - alpha_bar_t) eps`` (Section 3); ``c`` broadcasts."""
    return c.sqrt_alpha_bar * clean + c.sqrt_one_minus_alpha_bar * noise


def clean_from_noise(noisy: Array, noise: Array, c: Coefficients) -> Array:
    """Return the clean trajectory that ``noise`` implies (Algorithm 2, line 9)."""
    return (noisy - c.sqrt_one_minus_alpha_bar * noise) / c.sqrt_alpha_bar


def posterior_mean(clean: Array, noisy: Array, c: Coefficients) -> Array:
    """Return the mean of ``q(x_{t-1} | x_t, x_0)``: Eq. 1 with the score of Eq. 3 (Algorithm 2, line 13)."""
    return c.posterior_clean * clean + c.posterior_noisy * noisy
