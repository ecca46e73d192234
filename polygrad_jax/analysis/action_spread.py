"""What is measured on imagined trajectories: their error against the simulator, and how their actions are spread."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy.special import ndtr


def squared_errors(predicted: np.ndarray, replayed: np.ndarray) -> np.ndarray:
    """Squared error of observations ``[B, H, O]``, averaged over their dimensions: ``[B, H - 1]``, horizons 1 to H - 1.

    The first state is given to the model and not counted. float64, in squared raw units.
    """
    difference = np.asarray(predicted, np.float64) - np.asarray(replayed, np.float64)
    return np.square(difference).mean(axis=2)[:, 1:]


def before_ends(terminals: np.ndarray) -> np.ndarray:
    """``[B, H - 1]``, horizons 1 to H - 1: whether no step up to there was the last of its episode.

    ``terminals [B, H - 1]`` are MuJoCo's. What follows on such a step is in no data, so that no model can know it.
    """
    return ~np.logical_or.accumulate(np.asarray(terminals) > 0, axis=1)


def mean_where(values: np.ndarray, counted: np.ndarray) -> np.ndarray:
    """Mean over trajectories of ``values [B, K]`` where ``counted [B, K]``: ``[K]``; NaN where none is."""
    total, count = np.where(counted, values, 0.0).sum(axis=0), counted.sum(axis=0)
    return np.divide(total, count, out=np.full(total.shape, np.nan), where=count > 0)


def staying_still(replayed: np.ndarray) -> np.ndarray:
    """The prediction ``[B, H, O]`` that nothing moves: the first state, H times. What a model must at least beat."""
    return np.broadcast_to(replayed[:, :1], replayed.shape)


class ByHorizon(NamedTuple):
    """Error at every horizon 1 to H - 1, over trajectories; ``[H - 1]`` each."""

    mean: np.ndarray
    lower_quartile: np.ndarray
    upper_quartile: np.ndarray


def by_horizon(errors: np.ndarray) -> ByHorizon:
    """Mean and quartiles over trajectories of errors ``[B, H - 1]``."""
    lower, upper = np.quantile(errors, [0.25, 0.75], axis=0)
    return ByHorizon(errors.mean(axis=0), lower, upper)


class Spread(NamedTuple):
    """How standardised actions are distributed; for N(0, 1): 0, 1, 0, 0."""

    mean: float
    std: float
    excess_kurtosis: float
    ks_distance: float


def standardised_actions(actions: np.ndarray, mean: np.ndarray, std: np.ndarray) -> np.ndarray:
    """``(a - mu(s)) / sigma(s)`` (Eq. 9) of ``[B, H, A]`` without the last state's action: ``[B, H - 1, A]`` float64.

    The last state of an imagined trajectory only bootstraps; its action counts nowhere.
    """
    actions, mean, std = (np.asarray(x, np.float64)[:, :-1] for x in (actions, mean, std))
    return (actions - mean) / std


def ks_distance(values: np.ndarray) -> float:
    """Kolmogorov-Smirnov distance of all values from N(0, 1): the largest gap between the distribution functions."""
    ordered = np.sort(values, axis=None)
    below, count = ndtr(ordered), ordered.size
    rank = np.arange(count)
    return float(max((below - rank / count).max(), ((rank + 1) / count - below).max()))


def spread_of(values: np.ndarray) -> Spread:
    """Statistics of all values of an array together; the standard deviation is unbiased."""
    values = np.asarray(values, np.float64).ravel()
    centred = values - values.mean()
    variance = np.square(centred).mean()
    kurtosis = np.power(centred, 4).mean() / variance**2 - 3.0 if variance > 0 else 0.0
    return Spread(float(values.mean()), float(values.std(ddof=1)), float(kurtosis), ks_distance(values))
