"""The state of the MuJoCo simulator: reading it, setting it, and replaying actions from it exactly.

This is what the error experiments measure imagination against. Host only.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import gymnasium as gym
import numpy as np

from polygrad_jax.config import ConfigError, EnvConfig
from polygrad_jax.envs import registry


def has_simulator_state(env: gym.Env) -> bool:
    """Whether the environment's simulator can be read and set (Gymnasium's MuJoCo environments)."""
    base = env.unwrapped
    return hasattr(base, "model") and hasattr(base, "data") and hasattr(base, "_get_obs")


def state_size(env: gym.Env) -> int:
    """S, the length of the vectors of `read_state`; 0 where there is no simulator state."""
    if not has_simulator_state(env):
        return 0
    import mujoco

    return mujoco.mj_stateSize(env.unwrapped.model, _parts())


def read_state(env: gym.Env) -> np.ndarray:
    """The simulator's state ``[S]`` float64: time, qpos, qvel, actuator activations and qacc_warmstart.

    The solver starts its iterations from qacc_warmstart, so without it a restart is right only to rounding.

    Raises:
        ConfigError: the environment has no MuJoCo state.
    """
    import mujoco

    _require_state(env)
    base = env.unwrapped
    state = np.empty(state_size(env), np.float64)
    mujoco.mj_getState(base.model, base.data, state, _parts())
    return state


def set_state(env: gym.Env, state: np.ndarray) -> np.ndarray:
    """Puts the simulator into a state ``[S]`` from `read_state`; returns the observation ``[O]`` there, raw, float64.

    The environment must have been reset once. Exact for environments whose observation and reward depend on
    qpos and qvel before and after the step, as those of our four tasks do.

    Raises:
        ConfigError: the environment has no MuJoCo state.
        ValueError: the state has another length.
    """
    import mujoco

    _require_state(env)
    base = env.unwrapped
    if state.shape != (state_size(env),):
        raise ValueError(f"simulator state has shape {state.shape}; {env} needs ({state_size(env)},)")
    state = np.ascontiguousarray(state, np.float64)
    mujoco.mj_setState(base.model, base.data, state, _parts())
    mujoco.mj_forward(base.model, base.data)
    # mj_forward solves for the acceleration and so overwrites the warm start.
    mujoco.mj_setState(base.model, base.data, state, _parts())
    return np.array(base._get_obs(), np.float64)


def replay_actions(
    env_config: EnvConfig, states: np.ndarray, actions: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What the real environment does from given states under given actions.

    Actions are clipped to [-1, 1] when executed, and the episode goes on past its termination and its time limit,
    as the paper's measure of the prediction error does.

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
    spec = registry.spec_of(env)
    batch, steps = actions.shape[:2]
    if actions.shape[2:] != (spec.action_size,) or states.shape != (batch, state_size(env)):
        raise ValueError(
            f"states {states.shape} and actions {actions.shape} do not fit; "
            f"allowed are [B, {state_size(env)}] and [B, H - 1, {spec.action_size}]"
        )
    observations = np.empty((batch, steps + 1, spec.observation_size), np.float64)
    rewards = np.empty((batch, steps), np.float64)
    terminals = np.empty((batch, steps), bool)
    clipped = np.clip(np.asarray(actions, np.float32), -1.0, 1.0)
    for b in range(batch):
        observations[b, 0] = set_state(env, states[b])
        for k in range(steps):
            observations[b, k + 1], rewards[b, k], terminals[b, k], _, _ = env.step(clipped[b, k])
    return observations, rewards, terminals


def close_loop(
    env_config: EnvConfig, states: np.ndarray, act: Callable[[int, np.ndarray], np.ndarray], steps: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """What the real environment does from given states when someone acts on what it shows.

    Like :func:`replay_actions`, but each action is chosen when its observation is known:
    ``act(k, observations [B, O])`` gives the raw actions ``[B, A]`` of step k.

    Returns:
        observations ``[B, steps + 1, O]``, actions ``[B, steps, A]``, rewards and terminals ``[B, steps]``, all raw.

    Raises:
        ConfigError: the environment has no MuJoCo state.
        ValueError: the states do not fit.
    """
    env = _replay_env(env_config)
    if states.ndim != 2 or states.shape[1] != state_size(env):
        raise ValueError(f"states {states.shape} do not fit; allowed are [B, {state_size(env)}]")
    states = np.array(states, np.float64)
    observations = [np.stack([set_state(env, state) for state in states])]
    actions, rewards, terminals = [], [], []
    for k in range(steps):
        chosen = np.asarray(act(k, observations[-1]), np.float32)
        clipped = np.clip(chosen, -1.0, 1.0)
        after = []
        for b in range(len(states)):
            set_state(env, states[b])
            after.append(env.step(clipped[b])[:3])
            states[b] = read_state(env)
        following, earned, ended = zip(*after, strict=True)
        observations.append(np.stack(following).astype(np.float64))
        actions.append(chosen)
        rewards.append(np.array(earned, np.float64))
        terminals.append(np.array(ended, bool))
    parts = (observations, actions, rewards, terminals)
    return tuple(np.stack(part, axis=1) for part in parts)


@functools.cache
def _replay_env(env_config: EnvConfig) -> gym.Env:
    """One environment per task for replaying, without the time limit and the check that an episode was reset."""
    env = registry.make(env_config)
    _require_state(env)
    env.reset(seed=0)
    return gym.wrappers.RescaleAction(env.unwrapped, np.float32(-1.0), np.float32(1.0))


def _parts() -> int:
    """What a state vector holds, as MuJoCo's bit mask."""
    import mujoco

    return int(mujoco.mjtState.mjSTATE_FULLPHYSICS | mujoco.mjtState.mjSTATE_WARMSTART)


def _require_state(env: gym.Env) -> None:
    if not has_simulator_state(env):
        name = env.spec.id if env.spec else env
        raise ConfigError(f"env.name {name}: has no MuJoCo state to read or set; allowed are MuJoCo environments")
