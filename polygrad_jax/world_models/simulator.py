"""The simulator itself as a world model: what a learner can do with a perfect model, and so which of the two is weak.

The policy acts on the device, in a scan over time; every step of the copies of the task is a call back to the host,
which steps them from the states that the scan carries. Nothing is learnt.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import jax
import jax.numpy as jnp
import numpy as np

from polygrad_jax.config import Config, ConfigError, EnvConfig, EnvSpec
from polygrad_jax.envs import mujoco_state, tasks
from polygrad_jax.types import Array, Metrics, Normaliser, Policy, Prediction, Segment, WorldModel
from polygrad_jax.world_models.rollout import begin, roll_out, under


class SimulatorHost(Protocol):
    """What steps the copies, on the host. Called from within a jitted program: it must not use JAX (it would wait for
    the program that waits for it), and must give the same answer for the same arguments."""

    state_size: int
    """S, float64 numbers that are the whole state of a copy."""

    def states_at(self, rows: np.ndarray) -> np.ndarray:
        """The states ``[B, S]`` float64 before the transitions ``rows [B]``."""

    def step(self, states: np.ndarray, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """States ``[B, S]``, observations ``[B, O]``, rewards and terminals ``[B]`` after raw actions ``[B, A]``.

        Actions are executed as the task's ``env.actions`` says; copies go on past their termination.
        """


@dataclass(frozen=True)
class MuJoCoHost:
    """Steps copies of a task from states that someone keeps."""

    env: EnvConfig
    state_size: int
    states_at: Callable[[np.ndarray], np.ndarray]

    def step(self, states: np.ndarray, actions: np.ndarray) -> mujoco_state.After:
        """See :func:`polygrad_jax.envs.mujoco_state.step_copies`."""
        return mujoco_state.step_copies(self.env, states, actions)


def host_for(env_config: EnvConfig, states_at: Callable[[np.ndarray], np.ndarray] | None = None) -> MuJoCoHost:
    """Return what steps copies of a task.

    Args:
      states_at: rows ``[B]`` to the simulator's states ``[B, S]``; without it every row is a fresh episode's first,
        which is enough for looking at shapes and for timing.

    Raises:
      ConfigError: simulator states do not determine the task.
    """
    mujoco_state.require_simulator_states(env_config, "world_model is simulator; ")
    env = tasks.make(env_config)
    env.reset(seed=0)
    first = mujoco_state.read_state(env)
    env.close()
    return MuJoCoHost(env_config, len(first), states_at or (lambda rows: np.tile(first, (len(rows), 1))))


def as_words(states: np.ndarray) -> np.ndarray:
    """float64 ``[B, S]`` as uint32 ``[B, 2 S]``, bit for bit: what a program without 64-bit types can carry."""
    return np.ascontiguousarray(states, np.float64).view(np.uint32)


def from_words(words: np.ndarray) -> np.ndarray:
    """The inverse of :func:`as_words`."""
    return np.ascontiguousarray(words, np.uint32).view(np.float64)


def make_simulator(config: Config, spec: EnvSpec, host: SimulatorHost) -> WorldModel:
    """The simulator behind the protocol of :class:`WorldModel`. ``update`` learns nothing and measures nothing.

    ``imagine`` begins in the simulator's states at ``context.rows[:, -1]``; behind a terminal the states go on as the
    simulator's do. The transition out of the last state is stepped too.

    Raises:
      ConfigError: ``imagine`` is given contexts without rows, of which the simulator's states are not known.
    """

    def init(key: Array) -> tuple[()]:
        return ()

    def update(state: tuple[()], segment: Segment, normaliser: Normaliser, key: Array) -> tuple[tuple[()], Metrics]:
        return state, {}

    def imagine(
        state: tuple[()], policy: Policy, context: Segment, normaliser: Normaliser, key: Array
    ) -> tuple[Segment, Metrics]:
        if context.rows is None:
            raise ConfigError("world_model is simulator and the contexts have no rows; allowed: contexts of a replay")
        batch = context.observations.shape[0]
        words = jax.ShapeDtypeStruct((batch, 2 * host.state_size), jnp.uint32)
        scalar = jax.ShapeDtypeStruct((batch,), jnp.float32)
        after = (words, jax.ShapeDtypeStruct((batch, spec.observation_size), jnp.float32), scalar, scalar)

        def look_up(rows: Array) -> np.ndarray:
            return as_words(host.states_at(np.asarray(rows)))

        def step(words: Array, actions: Array) -> tuple[np.ndarray, ...]:
            states, *rest = host.step(from_words(np.asarray(words)), np.asarray(actions))
            return as_words(states), *(np.asarray(x, np.float32) for x in rest)

        def predict(words: Array, _: Array, actions: Array, key: Array) -> tuple[Array, Prediction, Metrics]:
            words, *outcome = jax.pure_callback(step, after, words, actions, vmap_method="sequential")
            return words, Prediction(*outcome), {}

        first = jax.pure_callback(look_up, words, context.rows[:, -1], vmap_method="sequential")
        keys = jax.random.split(key, config.horizon)
        _, segment, metrics = roll_out(predict, begin(context, first), under(policy), keys)
        return segment, metrics

    return WorldModel(init, update, imagine)
