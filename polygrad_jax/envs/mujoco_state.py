"""Read and set the state of the MuJoCo simulator, and replay actions from a state exactly.

Errors of imagined trajectories are measured against these replays. A replay goes through all wrappers of the task, and
is refused for a task that a simulator state does not determine (`why_no_simulator_states`). Host only.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np

from polygrad_jax.config import ConfigError, EnvConfig
from polygrad_jax.envs import simulator_check, tasks

NOT_MUJOCO = "it is no task of Gymnasium's MuJoCo"
STEPS_PER_THREAD = 16
"""Least copies per thread: waking a thread for fewer takes longer than stepping them."""

_STEPPING = threading.Lock()
"""Held by the one caller that steps the shared copies."""

_READ_BY_TASK: dict[str, tuple[str, ...]] = {
    "hopper": (),
    "walker2d": (),
    "half_cheetah": (),
    "inverted_pendulum": (),
    "ant": ("xpos", "cfrc_ext"),
    "reacher": ("xpos",),
    "pusher": ("xpos",),
}
"""What Gymnasium's tasks read of MuJoCo's results beside qpos and qvel, before they step or for their observation.

MuJoCo leaves these arrays as they were a substep before qpos, so they follow from no state and are stored with it. The
Humanoids read five such arrays, 367 numbers: too many to store for each transition."""


# --- one simulator ---------------------------------------------------------------------------------------------------


def is_mujoco(env: gym.Env) -> bool:
    """Return whether the environment is a MuJoCo task of Gymnasium's kind, whose simulator can be read and set.

    This says nothing about what else the task depends on: see `why_no_simulator_states`.
    """
    mujoco, base = sys.modules.get("mujoco"), env.unwrapped
    if mujoco is None or _attribute(base, "_get_obs") is None:
        return False
    return isinstance(_attribute(base, "model"), mujoco.MjModel) and isinstance(_attribute(base, "data"), mujoco.MjData)


def _attribute(task: gym.Env, name: str) -> Any:
    """Return an attribute, or None: a task's own ``__getattr__`` or property may raise anything."""
    try:
        return getattr(task, name, None)
    except Exception:
        return None


def uses_mujoco(env: gym.Env) -> bool:
    """Return whether MuJoCo simulates the task in any way, e.g. through dm_control."""
    modules = (type(value).__module__.split(".")[0] for value in vars(env.unwrapped).values())
    return is_mujoco(env) or not {"mujoco", "dm_control"}.isdisjoint(modules)


def state_size(env: gym.Env) -> int:
    """Return S, the length of the vectors of `read_state`; 0 where there is no simulator state."""
    if not is_mujoco(env):
        return 0
    simulator = _simulator(env)
    return simulator.size + sum(array.size for array in simulator.beside)


def read_state(env: gym.Env) -> np.ndarray:
    """Read the simulator's state ``[S]`` float64: time, qpos, qvel, actuator activations and qacc_warmstart.

    The solver starts its iterations from qacc_warmstart, so without it a restart is right only to rounding. The arrays
    that the task reads beside the state follow.

    Raises:
        ConfigError: the environment has no MuJoCo state.
    """
    _require_mujoco(env)
    state = np.empty(state_size(env), np.float64)
    _get(_simulator(env), state)
    return state


def set_state(env: gym.Env, state: np.ndarray) -> np.ndarray:
    """Set the simulator to a state ``[S]`` from `read_state`; return its observation ``[O]``, raw, float64.

    The environment must have been reset once. Exact for environments whose observation and reward depend on nothing
    but the state before and after the step, as in the four named tasks.

    Raises:
        ConfigError: the environment has no MuJoCo state.
        ValueError: the state has another length.
    """
    _require_mujoco(env)
    if state.shape != (state_size(env),):
        raise ValueError(f"simulator state has shape {state.shape}; {env} needs ({state_size(env)},)")
    _put_and_derive(_simulator(env), np.ascontiguousarray(state, np.float64))
    return observation_of(env)


def observation_of(env: gym.Env) -> np.ndarray:
    """Return what the task shows ``[O]`` of the simulator as it is, through the wrappers that change observations."""
    wrappers = []
    while isinstance(env, gym.Wrapper):
        wrappers.append(env)
        env = env.env
    shown = env._get_obs()
    for wrapper in reversed(wrappers):
        if isinstance(wrapper, gym.ObservationWrapper):
            shown = wrapper.observation(shown)
    return np.array(shown, np.float64)


class _Simulator(NamedTuple):
    """Where the numbers of a state are."""

    model: Any
    data: Any
    size: int
    """How many of them MuJoCo itself calls the state."""
    beside: tuple[np.ndarray, ...]
    """MuJoCo's arrays that the task reads beside it."""


def _simulator(env: gym.Env) -> _Simulator:
    import mujoco

    base = env.unwrapped
    names = _READ_BY_MODULE.get(base.__module__, ())
    beside = tuple(getattr(base.data, name) for name in names)
    return _Simulator(base.model, base.data, mujoco.mj_stateSize(base.model, _parts()), beside)


def _get(simulator: _Simulator, state: np.ndarray) -> None:
    """Write the simulator's state to ``state [S]``."""
    import mujoco

    end = simulator.size
    mujoco.mj_getState(simulator.model, simulator.data, state[:end], _parts())
    for array in simulator.beside:
        begin, end = end, end + array.size
        state[begin:end] = array.reshape(-1)


def _put(simulator: _Simulator, state: np.ndarray) -> None:
    """Write a state ``[S]`` to the simulator; nothing is derived from it."""
    import mujoco

    end = simulator.size
    mujoco.mj_setState(simulator.model, simulator.data, state[:end], _parts())
    for array in simulator.beside:
        begin, end = end, end + array.size
        array[:] = state[begin:end].reshape(array.shape)


def _put_and_derive(simulator: _Simulator, state: np.ndarray) -> None:
    """Write a state ``[S]`` to the simulator, and what follows from it."""
    import mujoco

    _put(simulator, state)
    mujoco.mj_forward(simulator.model, simulator.data)
    # mj_forward solves for the acceleration and so overwrites the warm start.
    _put(simulator, state)


@functools.cache
def _parts() -> int:
    """Return the contents of a state vector as MuJoCo's bit mask."""
    import mujoco

    return int(mujoco.mjtState.mjSTATE_FULLPHYSICS | mujoco.mjtState.mjSTATE_WARMSTART)


_READ_BY_MODULE = {
    f"gymnasium.envs.mujoco.{task}_v{version}": arrays
    for task, arrays in _READ_BY_TASK.items()
    for version in tasks.VERSIONS
}


def _require_mujoco(env: gym.Env) -> None:
    """Raise ConfigError where the environment's simulator cannot be read and set."""
    if not is_mujoco(env):
        name = env.spec.id if env.spec else env
        raise ConfigError(f"env.name {name}: has no MuJoCo state to read or set; allowed are MuJoCo environments")


# --- is a restored copy the task? ------------------------------------------------------------------------------------


def why_no_simulator_states(env_config: EnvConfig, env: gym.Env | None = None) -> str | None:
    """Say why simulator states do not determine a task; None where a restored copy is the task.

    The task is stepped as collecting does, through all its wrappers, beside a copy that is restored to each state it
    was in. Observation, reward, terminal and state must agree, over several episodes and an end of one. The first call
    for a configuration steps some 1,000 times; its answer is kept.

    A difference that comes later than this, or in rare episodes, is not seen here: `stored_difference` of
    ``prediction_error.py`` looks for those.

    Args:
        env_config: which task.
        env: the task made already, which saves making a task without MuJoCo again.
    """
    if env is not None and not is_mujoco(env):
        return NOT_MUJOCO
    return _why_unequal(dataclasses.replace(env_config, actions="clipped"))  # how they are executed is no part of it


def require_simulator_states(env_config: EnvConfig, needed_by: str = "") -> None:
    """Raise ConfigError for a task that simulator states do not determine; ``needed_by`` begins the message."""
    if (reason := why_no_simulator_states(env_config)) is not None:
        line = no_simulator_states(env_config, reason)
        raise ConfigError(f"{needed_by}{line}; allowed: a task that its MuJoCo state determines")


def no_simulator_states(env_config: EnvConfig, reason: str) -> str:
    """Return the line that names the task and says why it has no simulator states."""
    return f"{tasks.gymnasium_id(env_config)}: no simulator states: {reason}"


@functools.cache
def _why_unequal(env_config: EnvConfig) -> str | None:
    try:
        with contextlib.closing(tasks.make(env_config)) as env:
            if not is_mujoco(env):
                return NOT_MUJOCO
            with contextlib.closing(_make_copy(env_config)) as copy:
                walked = simulator_check.walk(env, read_state)
                observations, after = _restored(copy, walked)
                _go_past_ends(copy, walked)
    except Exception as error:  # a task may allow one instance, or break where it is stepped as no task expects it
        words = " ".join(f"{type(error).__name__}: {error}".split())
        return f"no copy of it can be restored and stepped ({words})"
    expected = {
        "reward": walked.rewards,
        "terminal": walked.terminals,
        "next observation": walked.next_observations,
        "observation": walked.observations,
        "next state": walked.next_states,
    }
    found = dict(zip(expected, (*after[2:], after.observations, observations, after.states), strict=True))
    return simulator_check.first_difference(expected, found, simulator_check.EXACT)


def _restored(copy: gym.Env, walked: simulator_check.Walk) -> tuple[np.ndarray, After]:
    """Put a copy into every state of a walk and step it; return its observations there, and the results.

    In mixed order: nothing of a step can come from the one before.
    """
    order = np.random.default_rng(0).permutation(len(walked.states))
    after = _room_for(walked.states, walked.observations.shape[1])
    _step_share(copy, walked.states, walked.actions, order, after)
    observations = [set_state(copy, walked.states[t]) for t in order]
    return np.stack(observations)[np.argsort(order)], after


def _go_past_ends(copy: gym.Env, walked: simulator_check.Walk) -> None:
    """Step a copy on behind ends of a walk, as replays of imagined actions do; what the task raises there comes out."""
    for t in np.flatnonzero(walked.terminals)[: simulator_check.EPISODES]:
        set_state(copy, walked.states[t])
        for action in np.roll(walked.actions, -t, axis=0)[: simulator_check.PAST_ENDS]:
            copy.step(action)


# --- copies ----------------------------------------------------------------------------------------------------------


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
        ConfigError: simulator states do not determine the task.
        ValueError: the shapes do not fit.
    """
    require_simulator_states(env_config)
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
        ConfigError: simulator states do not determine the task.
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
        ConfigError: simulator states do not determine the task.
        ValueError: the states do not fit.
    """
    require_simulator_states(env_config)
    env = _replay_env(env_config)
    _require_shape(env, states)
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
        ConfigError: simulator states do not determine the task.
        ValueError: the shapes do not fit.
    """
    require_simulator_states(env_config)
    env = _replay_env(env_config)
    spec = tasks.spec_of(env)
    _require_shape(env, states)
    batch = len(states)
    if actions.shape != (batch, spec.action_size):
        raise ValueError(f"actions {actions.shape} do not fit; allowed are [{batch}, {spec.action_size}]")
    executed = tasks.executed(actions, env_config.actions)
    after = _room_for(states, spec.observation_size)
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


def _room_for(states: np.ndarray, observation_size: int) -> After:
    """Make room for the results of steps from ``states [B, S]``, none of them finite yet."""
    return After(
        states=np.full(states.shape, np.nan),
        observations=np.full((len(states), observation_size), np.nan),
        rewards=np.full(len(states), np.nan),
        terminals=np.zeros(len(states), bool),
    )


def _step_share(env: gym.Env, states: np.ndarray, executed: np.ndarray, share: np.ndarray, after: After) -> None:
    """Step the copies ``share`` one after another in ``env`` and write the results to ``after``."""
    simulator, states = _simulator(env), np.ascontiguousarray(states, np.float64)
    # A step of a known task reads nothing before its forward dynamics but what is stored.
    put = _put if env.unwrapped.__module__ in _READ_BY_MODULE else _put_and_derive
    for b in share:
        if not np.isfinite(executed[b]).all():
            continue
        put(simulator, states[b])
        after.observations[b], after.rewards[b], after.terminals[b], _, _ = env.step(executed[b])
        _get(simulator, after.states[b])


def stored_state_size(env_config: EnvConfig) -> int:
    """Return S for a task, the length of its simulator states.

    Raises:
        ConfigError: simulator states do not determine the task.
    """
    require_simulator_states(env_config)
    return state_size(_replay_env(env_config))


@functools.cache
def _threads() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(_cores(), thread_name_prefix="simulator")


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@functools.cache
def _replay_env(env_config: EnvConfig, number: int = 0) -> gym.Env:
    """Return copy ``number`` of the task, which is kept."""
    return _make_copy(env_config)


def _make_copy(env_config: EnvConfig) -> gym.Env:
    """Make a copy of the task that can be put into any state. A time limit in it changes nothing but truncation."""
    env = tasks.make(env_config)
    env.reset(seed=0)
    return env


def _require_shape(env: gym.Env, states: np.ndarray) -> None:
    if states.ndim != 2 or states.shape[1] != state_size(env):
        raise ValueError(f"states {states.shape} do not fit; allowed are [B, {state_size(env)}]")
