"""How noisy each diffusion step is, and which steps are sampled.

Nothing here imports jax, so that a configuration is checked before it starts.
"""

from __future__ import annotations

import numpy as np

MAX_BETA = 0.999


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
    nearest = least + np.abs(place[least:, None] - wanted[:-1]).argmin(axis=0)
    nearest = np.append(nearest, num_steps - 1)
    ranks = np.arange(sampling_steps)
    apart = np.maximum.accumulate(nearest - ranks) + ranks  # no step twice, ...
    return np.minimum(apart, num_steps - sampling_steps + ranks)  # ... and room for those that follow
