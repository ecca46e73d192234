"""Read and set the state of the MuJoCo simulator, and replay actions from a state exactly.

Errors of imagined trajectories are measured against these replays. Host only.
"""

from __future__ import annotations

import functools
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import gymnasium as gym
import numpy as np

from polygrad_jax.config import ConfigError, EnvConfig
from polygrad_jax.envs import tasks
from polygrad_jax.envs.checked_task import CheckedTask

STEPS_PER_THREAD = 16
"""Least copies per thread: waking a thread for fewer takes longer than stepping them."""

_STEPPING = threading.Lock()
"""Held by the one caller that steps the shared copies."""


def has_simulator_state(env: gym.Env) -> bool:
    """Return whether the environment's simulator can be read and set (Gymnasium's MuJoCo environments)."""
    base = env.unwrapped
    return hasattr(base, "model") and hasattr(base, "data") and hasattr(base, "_get_obs")


def state_size(env: gym.Env) -> int:
    """Return S, the length of the vectors of `read_state`; 0 where there is no simulator state."""
    if not has_simulator_state(env):
        return 0
    import mujoco

    return mujoco.mj_stateSize(env.unwrapped.model, _parts())


def read_state(env: gym.Env) -> np.ndarray:
    """Read the simulator's state ``[S]`` float64: time, qpos, qvel, actuator activations and qacc_warmstart.

    The solver starts its iterations from qacc_warmstart, so without it a restart is right only to rounding.

    Raises:
        ConfigError: the environment has no MuJoCo state.
    """
    import mujoco

    require_state(env)
    base = env.unwrapped
    state = np.empty(state_size(env), np.float64)
    mujoco.mj_getState(base.model, base.data, state, _parts())
    return state


def set_state(env: gym.Env, state: np.ndarray) -> np.ndarray:
    """Set the simulator to a state ``[S]`` from `read_state`; return its observation ``[O]``, raw, float64.

    The environment must have been reset once. Exact for environments whose observation and reward depend on
    qpos and qvel before and after the step, as in the four named tasks.

    Raises:
        ConfigError: the environment has no MuJoCo state.
        ValueError: the state has another length.
    """
    import mujoco

    require_state(env)
    base = env.unwrapped
    if state.shape != (state_size(env),):
        raise ValueError(f"simulator state has shape {state.shape}; {env} needs ({state_size(env)},)")
    state = np.ascontiguousarray(state, np.float64)
    mujoco.mj_setState(base.model, base.data, state, _parts())
    mujoco.mj_forward(base.model, base.data)
    # mj_forward solves for the acceleration and so overwrites the warm start.
    mujoco.mj_setState(base.model, base.data, state, _parts())
    # The hidden observations come last, see ``tasks.without_velocities``.
    return np.array(base._get_obs(), np.float64)[: env.observation_space.shape[0]]


def replay_actions(
    env_config: EnvConfig, states: np.ndarray, actions: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Run the real environment from ``states`` under ``actions``.

    Actions are executed as ``env.actions`` says. Episodes go on past termination and time limit, as in the paper's
    measure of the prediction error.

    Args:
        env_config: which task.
        states: ``[B, S]`` simulator states.
        actions: ``[B, H - 1, A]`` raw.

    Returns:
        observations ``[B, H, O]`` raw, rewards ``[B, H - 1]`` raw, terminals ``[B, H - 1]`` bool: whether the
        environment called that very step terminal. The first two are float64, as the simulator's.

    Raises:
        ConfigError: the environment has no MuJoCo state.
        ValueError: the shapes do not fit.
    """
    env = _replay_env(env_config)
    spec = tasks.spec_of(env)
    batch, steps = actions.shape[:2]
    if actions.shape[2:] != (spec.action_size,) or states.shape != (batch, state_size(env)):
        raise ValueError(
            f"states {states.shape} and actions {actions.shape} do not fit; "
            f"allowed are [B, {state_size(env)}] and [B, H - 1, {spec.action_size}]"
        )
    observations = np.empty((batch, steps + 1, spec.observation_size), np.float64)
    rewards = np.empty((batch, steps), np.float64)
    terminals = np.empty((batch, steps), bool)
    executed = tasks.executed(actions, env_config.actions)
    with _STEPPING:
        for b in range(batch):
            observations[b, 0] = set_state(env, states[b])
            for k in range(steps):
                observations[b, k + 1], rewards[b, k], terminals[b, k], _, _ = env.step(executed[b, k])
    return observations, rewards, terminals


def close_loop(
    env_config: EnvConfig, states: np.ndarray, act: Callable[[int, np.ndarray], np.ndarray], steps: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Run the real environment from ``states`` in the closed loop with ``act``.

    Like :func:`replay_actions`, but ``act(k, observations [B, O])`` chooses the raw actions ``[B, A]`` of step k at the
    observations of that step.

    Returns:
        observations ``[B, steps + 1, O]``, actions ``[B, steps, A]``, rewards and terminals ``[B, steps]``, all raw.

    Raises:
        ConfigError: the environment has no MuJoCo state.
        ValueError: the states do not fit.
    """
    observations = [observations_of(env_config, states)]
    actions, rewards, terminals = [], [], []
    for k in range(steps):
        chosen = np.asarray(act(k, observations[-1]), np.float32)
        after = step_copies(env_config, states, chosen)
        states = after.states
        observations.append(after.observations)
        actions.append(chosen)
        rewards.append(after.rewards)
        terminals.append(after.terminals)
    parts = (observations, actions, rewards, terminals)
    return tuple(np.stack(part, axis=1) for part in parts)


def observations_of(env_config: EnvConfig, states: np.ndarray) -> np.ndarray:
    """Return the observations ``[B, O]`` float64 raw of simulator states ``[B, S]``.

    Raises:
        ConfigError: the environment has no MuJoCo state.
        ValueError: the states do not fit.
    """
    env = _replay_env(env_config)
    _require_states(env, states)
    with _STEPPING:
        return np.stack([set_state(env, state) for state in states])


class After(NamedTuple):
    """The result of one step of B copies of a task, raw."""

    states: np.ndarray  # [B, S] float64
    observations: np.ndarray  # [B, O] float64
    rewards: np.ndarray  # [B] float64
    terminals: np.ndarray  # [B] bool: whether the environment called this very step terminal


def step_copies(env_config: EnvConfig, states: np.ndarray, actions: np.ndarray) -> After:
    """Step B copies of the task, each from a state of its own; a pure function of states and actions.

    The step is that of the Gymnasium task. Several copies are stepped at once, a thread per core (MuJoCo releases the
    interpreter lock); the results do not depend on the thread, bit for bit. Actions are executed as ``env.actions``
    says. Episodes go on past termination. A copy whose action is not finite is not stepped, and its result is not
    finite: MuJoCo would treat the action as zero and go on.

    Args:
        env_config: which task.
        states: ``[B, S]`` simulator states.
        actions: ``[B, A]`` raw.

    Raises:
        ConfigError: the environment has no MuJoCo state.
        ValueError: the shapes do not fit.
    """
    env = _replay_env(env_config)
    spec = tasks.spec_of(env)
    _require_states(env, states)
    batch = len(states)
    if actions.shape != (batch, spec.action_size):
        raise ValueError(f"actions {actions.shape} do not fit; allowed are [{batch}, {spec.action_size}]")
    executed = tasks.executed(actions, env_config.actions)
    after = After(
        states=np.full(states.shape, np.nan),
        observations=np.full((batch, spec.observation_size), np.nan),
        rewards=np.full(batch, np.nan),
        terminals=np.zeros(batch, bool),
    )
    shares = np.array_split(np.arange(batch), max(min(_cores(), batch // STEPS_PER_THREAD), 1))
    copies = [_replay_env(env_config, number) for number in range(len(shares))]
    with _STEPPING:
        if len(shares) == 1:
            _step_share(env, states, executed, shares[0], after)
        else:
            work = zip(copies, shares, strict=True)
            for done in [_threads().submit(_step_share, c, states, executed, share, after) for c, share in work]:
                done.result()
    return after


def _step_share(env: gym.Env, states: np.ndarray, executed: np.ndarray, share: np.ndarray, after: After) -> None:
    """Step the copies ``share`` one after another in ``env`` and write the results to ``after``."""
    import mujoco

    base, parts, state = env.unwrapped, _parts(), np.empty(states.shape[1])
    # A step of these tasks starts with the forward dynamics and before that reads nothing that is derived from qpos.
    set_fully = not base.__module__.startswith(_NOTHING_DERIVED)
    for b in share:
        if not np.isfinite(executed[b]).all():
            continue
        state[:] = states[b]
        if set_fully:
            set_state(env, state)
        else:
            mujoco.mj_setState(base.model, base.data, state, parts)
        after.observations[b], after.rewards[b], after.terminals[b], _, _ = env.step(executed[b])
        mujoco.mj_getState(base.model, base.data, state, parts)
        after.states[b] = state


_NOTHING_DERIVED = tuple(
    f"gymnasium.envs.mujoco.{task}_v{version}"
    for task in ("hopper", "walker2d", "half_cheetah", "inverted_pendulum")
    for version in tasks.VERSIONS
)
"""Modules of tasks whose step reads qpos and qvel only, so that it needs no forward dynamics after a state was set."""


@functools.cache
def _threads() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(_cores(), thread_name_prefix="simulator")


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@functools.cache
def _replay_env(env_config: EnvConfig, number: int = 0) -> gym.Env:
    """Make an environment for replaying, without the time limit and the check that an episode was reset."""
    env = tasks.make(env_config)
    require_state(env)
    env.reset(seed=0)
    base = env.unwrapped
    return CheckedTask(tasks.without_velocities(base, env_config) if env_config.hide_velocities else base)


def _parts() -> int:
    """Return the contents of a state vector as MuJoCo's bit mask."""
    import mujoco

    return int(mujoco.mjtState.mjSTATE_FULLPHYSICS | mujoco.mjtState.mjSTATE_WARMSTART)


def _require_states(env: gym.Env, states: np.ndarray) -> None:
    if states.ndim != 2 or states.shape[1] != state_size(env):
        raise ValueError(f"states {states.shape} do not fit; allowed are [B, {state_size(env)}]")


def require_state(env: gym.Env) -> None:
    """Raise ConfigError where the environment's simulator cannot be read and set."""
    if not has_simulator_state(env):
        name = env.spec.id if env.spec else env
        raise ConfigError(f"env.name {name}: has no MuJoCo state to read or set; allowed are MuJoCo environments")
