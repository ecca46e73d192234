"""Statistics of imagined trajectories: error by horizon, and the distribution of standardised actions."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class ByHorizon(NamedTuple):
    """Error at every horizon 1 to H - 1, over trajectories; ``[H - 1]`` each."""

    mean: np.ndarray
    lower_quartile: np.ndarray
    upper_quartile: np.ndarray


def by_horizon(errors: np.ndarray) -> ByHorizon:
    """Take mean and quartiles over trajectories of errors ``[B, H - 1]``."""
    lower, upper = np.quantile(errors, [0.25, 0.75], axis=0)
    return ByHorizon(errors.mean(axis=0), lower, upper)


class Spread(NamedTuple):
    """Distribution of standardised actions; for N(0, 1): 0, 1, 0, 0."""

    mean: float
    std: float
    excess_kurtosis: float
    ks_distance: float


def standardised_actions(actions: np.ndarray, mean: np.ndarray, std: np.ndarray) -> np.ndarray:
    """Compute ``(a - mu(s)) / sigma(s)`` (Eq. 9) of ``[B, H, A]``: ``[B, H - 1, A]`` float64.

    The last state of an imagined trajectory only bootstraps, so its action is left out.
    """
    actions, mean, std = (np.asarray(x, np.float64)[:, :-1] for x in (actions, mean, std))
    return (actions - mean) / std


def ks_distance(values: np.ndarray) -> float:
    """Measure the Kolmogorov-Smirnov distance from N(0, 1): the largest gap between the distribution functions."""
    from scipy.special import ndtr

    ordered = np.sort(values, axis=None)
    below, count = ndtr(ordered), ordered.size
    rank = np.arange(count)
    return float(max((below - rank / count).max(), ((rank + 1) / count - below).max()))


def spread_of(values: np.ndarray) -> Spread:
    """Summarise all values of an array together; the standard deviation is unbiased, and NaN of a single value."""
    values = np.asarray(values, np.float64).ravel()
    centred = values - values.mean()
    variance = np.square(centred).mean()
    kurtosis = np.power(centred, 4).mean() / variance**2 - 3.0 if variance > 0 else 0.0
    std = values.std(ddof=1) if values.size > 1 else np.nan
    return Spread(float(values.mean()), float(std), float(kurtosis), ks_distance(values))
