"""The noise schedule, the forward process and its posterior (paper, Section 3).

Steps are counted from 0: ``t = 0`` is the last step of sampling, ``t = N - 1`` the first.
Coefficients are computed in float64 on the host and handed to the device in float32.
"""

from __future__ import annotations

import flax.struct
import jax.numpy as jnp
import numpy as np

from polygrad_jax.config import DiffusionConfig
from polygrad_jax.types import Array

MAX_BETA = 0.999


@flax.struct.dataclass
class Coefficients:
    """Everything one diffusion step multiplies with; ``[K]`` each (or scalars for one step)."""

    step: Array  # t, counted in the N steps the network was trained on
    sqrt_alpha_bar: Array  # scale of the clean trajectory in the noisy one
    sqrt_one_minus_alpha_bar: Array  # scale of the noise in the noisy trajectory
    posterior_clean: Array  # posterior mean's weight of the predicted clean trajectory
    posterior_noisy: Array  # posterior mean's weight of the noisy trajectory
    posterior_std: Array  # of the noise added to the states; 0 at the last step
    action_noise_std: Array  # of the noise added to guided actions, whatever eta; 0 at the last step
    is_last: Array  # bool: the step that ends the run


def cosine_betas(num_steps: int, tau: float) -> np.ndarray:
    """Betas ``[N]`` of the cosine schedule (Chen 2023, Algorithm 1, start 0, end 1), float64.

    ``tau`` below 1 keeps the trajectory nearly clean until the last forward steps.
    """
    grid = np.linspace(0.0, 1.0, num_steps + 1)
    alpha_bar = np.cos(grid * np.pi / 2) ** (2 * tau)
    end = np.cos(np.pi / 2) ** (2 * tau)
    alpha_bar = (alpha_bar - end) / (1.0 - end)
    return np.clip(1.0 - alpha_bar[1:] / alpha_bar[:-1], 0.0, MAX_BETA)


def strided_steps(num_steps: int, sampling_steps: int) -> np.ndarray:
    """``K`` of the ``N`` steps, ascending, evenly spread, always with the first and (for K > 1) the last."""
    if sampling_steps == 1:
        return np.array([num_steps - 1])
    return np.round(np.linspace(0, num_steps - 1, sampling_steps)).astype(np.int64)


def noise_std(num_steps: int, tau: float) -> np.ndarray:
    """``sqrt(1 - alpha_bar) [N]``, ascending: the std of the noise in a trajectory whose clean std is 1."""
    return np.sqrt(1.0 - np.cumprod(1.0 - cosine_betas(num_steps, tau)))


def spaced_steps(num_steps: int, sampling_steps: int, tau: float, sampling_tau: float, floor: float) -> np.ndarray:
    """``K`` of the ``N`` steps whose noise has a std of at least ``floor``, ascending, always with the first (N - 1).

    They are spread evenly over the steps of a cosine schedule with the exponent ``sampling_tau``: below ``tau``, more
    of them where little noise is left. Ours; Karras et al. (arXiv 2206.00364, Eq. 5) choose the noise levels of
    sampling apart from training's in the same spirit, with a least one.

    Raises:
      ValueError: fewer than K steps have that much noise.
    """
    std = noise_std(num_steps, tau)
    least = int(np.searchsorted(std, floor))
    if num_steps - least < sampling_steps:
        raise ValueError(f"floor is {floor}; allowed: at most {std[-sampling_steps]:.4g}, for {sampling_steps} steps")
    if sampling_steps == 1:
        return np.array([num_steps - 1])
    # where each step would lie in the other schedule, whose alpha_bar is cos(pi / 2 * place) ** (2 sampling_tau)
    place = np.arccos(np.power(1.0 - std**2, 0.5 / sampling_tau))
    wanted = np.linspace(place[least], place[-1], sampling_steps)
    nearest = np.append(np.abs(place[:, None] - wanted[:-1]).argmin(axis=0), num_steps - 1)
    ranks = np.arange(sampling_steps)
    apart = np.maximum.accumulate(nearest - ranks) + ranks  # no step twice, ...
    return np.minimum(apart, num_steps - sampling_steps + ranks)  # ... and room for those that follow


def coefficients(
    num_steps: int, sampling_steps: int, tau: float, eta: float = 1.0, sampling_tau: float = 0.0, floor: float = 0.0
) -> Coefficients:
    """Coefficients ``[K]`` of the schedule that is sampled, ascending in t: strided, or spaced with ``sampling_tau``.

    The betas of the subset follow from the alpha_bar that are kept (beta = 1 - alpha_bar / alpha_bar_prev), so
    that every kept step has the noise level the network was trained on. ``eta`` scales the noise of the states and
    gives the direction to the noisy trajectory what it takes away (DDIM, arXiv 2010.02502, Eq. 12 and 16): every
    step's marginal stays the forward process's. eta = 1 is the posterior (DDPM), eta = 0 adds no noise.
    """
    if sampling_tau:
        steps = spaced_steps(num_steps, sampling_steps, tau, sampling_tau, floor)
    else:
        steps = strided_steps(num_steps, sampling_steps)
    alpha_bar = np.cumprod(1.0 - cosine_betas(num_steps, tau))[steps]
    previous = np.concatenate([[1.0], alpha_bar[:-1]])
    beta = 1.0 - alpha_bar / previous
    full_noise = np.sqrt(beta * (1.0 - previous) / (1.0 - alpha_bar))
    noise = eta * full_noise
    noisy = np.sqrt((1.0 - previous - noise**2) / (1.0 - alpha_bar))

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
        is_last=jnp.arange(len(steps)) == 0,
    )


def sampling_coefficients(config: DiffusionConfig) -> Coefficients:
    """The K steps that imagination samples."""
    spacing = (config.sampling_tau, config.sampling_floor)
    return coefficients(config.num_steps, config.sampling_steps, config.tau, config.eta, *spacing)


def add_noise(clean: Array, noise: Array, c: Coefficients) -> Array:
    """``x_t = sqrt(alpha_bar_t) x_0 + sqrt(1 - alpha_bar_t) eps`` (Section 3); ``c`` broadcasts over ``clean``."""
    return c.sqrt_alpha_bar * clean + c.sqrt_one_minus_alpha_bar * noise


def clean_from_noise(noisy: Array, noise: Array, c: Coefficients) -> Array:
    """The clean trajectory that ``noise`` implies (Algorithm 2, line 9)."""
    return (noisy - c.sqrt_one_minus_alpha_bar * noise) / c.sqrt_alpha_bar


def posterior_mean(clean: Array, noisy: Array, c: Coefficients) -> Array:
    """Mean of ``q(x_{t-1} | x_t, x_0)``; equal to Eq. 1 with the score of Eq. 3 put in (Algorithm 2, line 13)."""
    return c.posterior_clean * clean + c.posterior_noisy * noisy
