"""Measure the error of imagined trajectories against MuJoCo under the same actions (paper, Appendix C.1).

MuJoCo from a stored state is the truth only if it does what the task did: `stored_difference` takes stored steps again.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from polygrad_jax.config import EnvConfig
from polygrad_jax.envs import simulator_check
from polygrad_jax.envs.mujoco_state import replay_actions, step_copies, stored_state_size, why_no_simulator_states

NEWEST_CHECKED, OTHERS_CHECKED = 64, 64
"""Stored steps that are taken again: the newest, and others drawn from all."""


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


# --- are stored states the task's? -----------------------------------------------------------------------------------


class StoredSteps(NamedTuple):
    """B stored transitions, raw float32, and what was stored behind them."""

    actions: Any  # [B, A] as sampled
    rewards: Any  # [B]
    terminals: Any  # [B] bool, or 0 and 1
    next_observations: Any  # [B, O]
    followed: Any  # [B] bool: whether the next observation is of the same episode


def stored_difference(config: EnvConfig, simulator_states: np.ndarray, stored: StoredSteps) -> str | None:
    """Take stored steps again from their simulator states ``[B, S]``; say what differs from what was stored, or None.

    What a task changes late, or in rare episodes, shows here and not in `why_no_simulator_states`, as does another
    version of MuJoCo or of the task.

    Raises:
      ConfigError: simulator states do not determine the task.
    """
    after = step_copies(config, simulator_states, np.asarray(stored.actions))
    followed = np.asarray(stored.followed, bool)
    expected = {
        "reward": np.asarray(stored.rewards),
        "terminal": np.asarray(stored.terminals) > 0,
        "next observation": np.asarray(stored.next_observations)[followed],
    }
    found = {
        "reward": after.rewards.astype(np.float32),
        "terminal": after.terminals,
        "next observation": after.observations[followed].astype(np.float32),
    }
    difference = simulator_check.first_difference(expected, found, simulator_check.STORED)
    return None if difference is None else f"{difference} from what was stored"


def why_not_replayed(config: EnvConfig, recorded: Any) -> str | None:
    """Say why imagined actions cannot be replayed from the states of recorded transitions; None where they can.

    Args:
      recorded: T transitions with the fields of a ``TransitionRecord``.
    """
    stored_size = recorded.simulator_states.shape[1]
    if (reason := why_no_simulator_states(config)) is not None:
        return reason
    if stored_size == 0:
        return "none were stored"
    if stored_size != (size := stored_state_size(config)):
        return f"those stored have {stored_size} numbers, the task's {size}"
    rows = _checked_rows(len(recorded.rewards))
    return stored_difference(config, recorded.simulator_states[rows], stored_steps(recorded, rows))


def stored_steps(recorded: Any, rows: np.ndarray) -> StoredSteps:
    """Return some ``rows [B]`` of recorded transitions, and what follows them."""
    behind = np.minimum(rows + 1, len(recorded.rewards) - 1)
    ended = recorded.terminals[rows] | recorded.truncations[rows] | (behind == rows)
    return StoredSteps(
        actions=recorded.actions[rows],
        rewards=recorded.rewards[rows],
        terminals=recorded.terminals[rows],
        next_observations=recorded.observations[behind],
        followed=~ended,
    )


def _checked_rows(count: int) -> np.ndarray:
    """Return the newest of ``count`` rows, and some of all."""
    newest = np.arange(max(count - NEWEST_CHECKED, 0), count)
    return np.concatenate([newest, np.random.default_rng(0).integers(0, count, OTHERS_CHECKED)])
