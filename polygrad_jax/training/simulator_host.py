"""MuJoCo as the simulator's world model asks for it (``world_models/simulator.py`` must not know ``envs``)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from polygrad_jax.config import Config, EnvConfig
from polygrad_jax.envs import mujoco_state as simulator, tasks as registry
from polygrad_jax.world_models.model_table import SIMULATOR


@dataclass(frozen=True)
class MuJoCoHost:
    """Steps copies of a task from states that someone keeps."""

    env: EnvConfig
    state_size: int
    states_at: Callable[[np.ndarray], np.ndarray]

    def step(self, states: np.ndarray, actions: np.ndarray) -> simulator.After:
        """See :func:`polygrad_jax.envs.mujoco_state.step_copies`."""
        return simulator.step_copies(self.env, states, actions)


def host_for(config: Config, states_at: Callable[[np.ndarray], np.ndarray] | None = None) -> MuJoCoHost | None:
    """The host of ``config``'s world model; None where it needs none.

    Args:
      states_at: rows ``[B]`` to the simulator's states ``[B, S]``; without it every row is a fresh episode's first,
        which is enough for looking at shapes and for timing.

    Raises:
      ConfigError: the task has no MuJoCo state.
    """
    if config.world_model != SIMULATOR:
        return None
    env = registry.make(config.env)
    simulator.require_state(env)
    env.reset(seed=0)
    first = simulator.read_state(env)
    env.close()
    return MuJoCoHost(config.env, len(first), states_at or (lambda rows: np.tile(first, (len(rows), 1))))
