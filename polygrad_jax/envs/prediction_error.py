"""Measure the error of imagined trajectories against MuJoCo under the same actions (paper, Appendix C.1)."""

from __future__ import annotations

from typing import Any

import numpy as np

from polygrad_jax.config import EnvConfig
from polygrad_jax.envs.mujoco_state import replay_actions


def squared_errors(predicted: np.ndarray, replayed: np.ndarray) -> np.ndarray:
    """Average the squared error of observations ``[B, H, O]`` over dimensions: ``[B, H - 1]``, horizons 1 to H - 1.

    The first state, an input of the model, is not counted. float64, in squared raw units.
    """
    difference = np.asarray(predicted, np.float64) - np.asarray(replayed, np.float64)
    return np.square(difference).mean(axis=2)[:, 1:]


def before_ends(terminals: np.ndarray) -> np.ndarray:
    """Mark the horizons 1 to H - 1 up to which no step ended the episode: ``[B, H - 1]``.

    ``terminals [B, H - 1]`` are MuJoCo's. No data contain the states behind such a step: no model can know them.
    """
    return ~np.logical_or.accumulate(np.asarray(terminals) > 0, axis=1)


def mean_where(values: np.ndarray, counted: np.ndarray) -> np.ndarray:
    """Average ``values [B, K]`` over the trajectories where ``counted [B, K]``: ``[K]``; NaN where none is."""
    total, count = np.where(counted, values, 0.0).sum(axis=0), counted.sum(axis=0)
    return np.divide(total, count, out=np.full(total.shape, np.nan), where=count > 0)


def staying_still(replayed: np.ndarray) -> np.ndarray:
    """Repeat the first state: ``[B, H, O]``. Every model must beat this baseline."""
    return np.broadcast_to(replayed[:, :1], replayed.shape)


def simulator_errors(
    config: EnvConfig, segment: Any, simulator_states: np.ndarray, past_ends: bool = True
) -> dict[str, Any]:
    """Compare imagined trajectories with MuJoCo, which replays their actions from the same simulator states.

    Squared error in raw units, averaged over observation dimensions and trajectories, for every horizon 1 to H - 1;
    trajectories go on past termination; the reward error is that of the first step (paper, Appendix C.1). Without
    ``past_ends`` a trajectory counts until MuJoCo ends it; a horizon that no trajectory reaches is NaN.

    Args:
      segment: ``observations [B, H, O]``, ``actions [B, H, A]`` and ``rewards [B, H]`` (a ``Segment`` on the host).
      simulator_states: ``[B, S]``, the simulator's state at each first observation.
    """
    observations, rewards, terminals = replay_actions(config, simulator_states, np.asarray(segment.actions[:, :-1]))
    counted = np.ones(terminals.shape, bool) if past_ends else before_ends(terminals)
    by_horizon = mean_where(squared_errors(segment.observations, observations), counted)
    reward = np.square(np.asarray(segment.rewards[:, 0]) - rewards[:, 0]).mean()
    errors = {f"error/observation_mse_{h:03d}": float(error) for h, error in enumerate(by_horizon, start=1)}
    return errors | {"error/reward_mse": float(reward)}
