"""Make a Gymnasium environment with actions in [-1, 1] from an `EnvConfig`, and turn raw actions into such.

Host only: nothing in this folder imports jax.
"""

from __future__ import annotations

import difflib
import logging
import warnings
from typing import Any

import gymnasium as gym
import numpy as np

from polygrad_jax.config import ConfigError, EnvConfig, EnvSpec, Execution

NAMED_TASKS = {
    "hopper": "Hopper",
    "walker2d": "Walker2d",
    "halfcheetah": "HalfCheetah",
    "inverted_pendulum": "InvertedPendulum",
}
"""Gymnasium's names of the tasks, by ours."""
VERSIONS = (4, 5)
"""Versions of the named tasks that today's MuJoCo runs."""

LARGEST_EXECUTED = 0.999
"""Executed actions beyond this count as this where the raw action is asked for that tanh squashes to them: 1 has none,
and those next to 1 have raw actions so large (float32: up to 8.7) that they would decide the actions' statistics."""

_logger = logging.getLogger(__name__)


def gymnasium_id(config: EnvConfig) -> str:
    """Return the Gymnasium id of a task, e.g. ``Hopper-v5``.

    Raises:
        ConfigError: no such task or version; the message names near matches.
    """
    if config.name in NAMED_TASKS:
        # DEVIATION from the paper, which used the v3 tasks: their MuJoCo binding is no longer maintained. v4 is the
        # same task on today's MuJoCo. v5 gives no healthy reward on the fatal step and changes Walker2d's right foot.
        if config.version not in VERSIONS:
            raise ConfigError(f"env.version is {config.version}; allowed for {config.name} is one of {VERSIONS}")
        return f"{NAMED_TASKS[config.name]}-v{config.version}"
    if config.name in gym.registry or ":" in config.name:  # "module:id" registers itself when it is made
        return config.name
    allowed = [*NAMED_TASKS, *gym.registry]
    near = difflib.get_close_matches(config.name, allowed, n=4, cutoff=0.5)
    hint = f"; near: {', '.join(near)}" if near else ""
    named = ", ".join(NAMED_TASKS)
    raise ConfigError(f"env.name is {config.name!r}; allowed is one of {named} or an installed Gymnasium id{hint}")


def make(config: EnvConfig, render_mode: str | None = None) -> gym.Env:
    """Make an environment whose actions ``[A]`` span [-1, 1] in every dimension and whose observations are flat.

    Args:
        config: which task.
        render_mode: Gymnasium's, ``rgb_array`` for videos.

    Raises:
        ConfigError: unknown task, an observation that is not one flat vector of numbers, or an action that is not
            one bounded vector.
    """
    name = gymnasium_id(config)
    _keep_mujoco_from_writing_files()
    with warnings.catch_warnings():
        # The configuration names an older version, and nobody can change the bounds of its spaces.
        warnings.filterwarnings("ignore", message=".*is out of date.*")
        warnings.filterwarnings("ignore", message=".*precision lowered by casting.*")
        try:
            env = gym.make(name, render_mode=render_mode, disable_env_checker=True)
        except (gym.error.Error, ImportError) as error:
            raise ConfigError(f"env.name is {name!r}, which does not start: {_one_line(error)}") from error
        _check_spaces(env, name)
        env = gym.wrappers.RescaleAction(env, np.float32(-1.0), np.float32(1.0))
        return without_velocities(env, config) if config.hide_velocities else env


def without_velocities(env: gym.Env, config: EnvConfig) -> gym.Env:
    """Remove the velocities from observations ``[O]``, where the named tasks have them last.

    Raises:
        ConfigError: the task is not a named one, so that its velocities are unknown.
    """
    if config.name not in NAMED_TASKS:
        named = ", ".join(NAMED_TASKS)
        raise ConfigError(f"env.hide_velocities is True with env.name {config.name}; allowed is one of {named}")
    return WithoutVelocities(env)


class WithoutVelocities(gym.ObservationWrapper, gym.utils.RecordConstructorArgs):
    """A MuJoCo environment whose last observations, one per degree of freedom, are not shown."""

    def __init__(self, env: gym.Env):
        """Wrap ``env``; observations become ``[O]`` without velocities."""
        gym.utils.RecordConstructorArgs.__init__(self)
        gym.ObservationWrapper.__init__(self, env)
        whole = env.observation_space
        self._shown = whole.shape[0] - env.unwrapped.model.nv
        self.observation_space = gym.spaces.Box(whole.low[: self._shown], whole.high[: self._shown], dtype=whole.dtype)

    def observation(self, observation: np.ndarray) -> np.ndarray:
        """Return the observation without velocities."""
        return observation[: self._shown]


def spec_of(env: gym.Env) -> EnvSpec:
    """Return the sizes O and A of an environment made by `make`."""
    return EnvSpec(observation_size=env.observation_space.shape[0], action_size=env.action_space.shape[0])


def executed(raw_actions: np.ndarray, how: Execution) -> np.ndarray:
    """Return actions ``[...]`` float32 as the environment executes them, in [-1, 1]."""
    raw_actions = np.asarray(raw_actions, np.float32)
    return np.tanh(raw_actions) if how == "squashed" else np.clip(raw_actions, -1.0, 1.0)


def raw_of(executed_actions: np.ndarray, how: Execution) -> np.ndarray:
    """Return raw actions ``[...]`` float32 that are executed as those given: `executed` undone."""
    executed_actions = np.asarray(executed_actions, np.float32)
    if how == "clipped":
        return executed_actions
    return np.arctanh(np.clip(executed_actions, -LARGEST_EXECUTED, LARGEST_EXECUTED))


def distance(info: dict[str, Any]) -> float:
    """Return the position of the body along the track in metres (``x_position``); NaN where the info has none."""
    return float(info.get("x_position", np.nan))


def start_of(info: dict[str, Any]) -> float:
    """Return the position in metres at which an episode starts, from the info of its reset.

    The v4 tasks start within 0.1 m of 0, which their info does not contain.
    """
    return float(info.get("x_position", 0.0))


def _check_spaces(env: gym.Env, name: str) -> None:
    observations, actions = env.observation_space, env.action_space
    numeric = isinstance(observations, gym.spaces.Box) and np.issubdtype(observations.dtype, np.floating)
    if not numeric or len(observations.shape) != 1:
        allowed = "allowed is a Box of floats of shape (O,), e.g. by gymnasium.wrappers.FlattenObservation"
        raise ConfigError(f"env.name {name}: observation space is {_one_line(observations)}; {allowed}")
    if not isinstance(actions, gym.spaces.Box) or len(actions.shape) != 1:
        raise ConfigError(f"env.name {name}: action space is {_one_line(actions)}; allowed is a Box of shape (A,)")
    if not (np.all(np.isfinite(actions.low)) and np.all(np.isfinite(actions.high))):
        raise ConfigError(f"env.name {name}: action space is {_one_line(actions)}; allowed are finite bounds only")


def _one_line(thing: object) -> str:
    return " ".join(str(thing).split())


def _keep_mujoco_from_writing_files() -> None:
    """Send MuJoCo's warnings to `logging`; by default MuJoCo writes MUJOCO_LOG.TXT into the working directory."""
    try:
        import mujoco
    except ImportError:  # an environment without MuJoCo does not need it
        return
    if mujoco.get_mju_user_warning() is None:
        mujoco.set_mju_user_warning(_log_mujoco_warning)


def _log_mujoco_warning(message: str) -> None:
    # Gymnasium's model of HalfCheetah uses a deprecated attribute, which a reader of the log cannot change.
    if "settotalmass" not in message:
        _logger.warning("MuJoCo: %s", _one_line(message))
