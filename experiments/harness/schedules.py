"""Sampling schedules that only the experiments on guidance try: other subsets of the N diffusion steps."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from polygrad_jax.config import DiffusionConfig
from polygrad_jax.diffusion.schedule import Coefficients, coefficients, cosine_betas, strided_steps


def noise_std(num_steps: int, tau: float) -> np.ndarray:
    """Return ``sqrt(1 - alpha_bar) [N]``, ascending: the std of the noise in a trajectory whose clean std is 1."""
    return np.sqrt(1.0 - np.cumprod(1.0 - cosine_betas(num_steps, tau)))


def spaced_steps(num_steps: int, sampling_steps: int, tau: float, sampling_tau: float, floor: float) -> np.ndarray:
    """Return K of the N steps whose noise has a std of at least ``floor``, ascending, always with the first (N - 1).

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


class Spacing(NamedTuple):
    """Which of the N steps are sampled: evenly spread where ``tau`` is 0, else :func:`spaced_steps`."""

    tau: float
    floor: float

    def labels(self) -> dict[str, float]:
        """Return the columns that say so."""
        return {"sampling_tau": self.tau, "sampling_floor": self.floor}


def schedule_of(diffusion: DiffusionConfig, spacing: Spacing, eta: float = 1.0) -> Coefficients:
    """Return the coefficients of the K steps that are sampled; ``eta``: share of the states' noise (DDIM)."""
    if spacing.tau:
        steps = spaced_steps(diffusion.num_steps, diffusion.sampling_steps, diffusion.tau, *spacing)
    else:
        steps = strided_steps(diffusion.num_steps, diffusion.sampling_steps)
    return coefficients(diffusion.num_steps, steps, diffusion.tau, eta)
