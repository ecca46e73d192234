"""Make a Gymnasium environment with actions in [-1, 1] from an `EnvConfig`, and turn raw actions into such.

Host only: nothing in this folder imports jax.
"""

from __future__ import annotations

import difflib
import functools
import logging
import os
import sys
import warnings
from importlib.machinery import PathFinder
from inspect import getattr_static

import gymnasium as gym
import numpy as np

from polygrad_jax.config import ConfigError, EnvConfig, EnvSpec, Execution
from polygrad_jax.envs.camera import follow_body
from polygrad_jax.envs.checked_task import FAILURES, CheckedTask, layers_of
from polygrad_jax.envs.mujoco_import import blamed, import_mujoco

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
    ids = "an installed Gymnasium id (module:id imports the module that registers it)"
    raise ConfigError(f"env.name is {config.name!r}; allowed is one of {named} or {ids}{hint}")


def make(config: EnvConfig, render_mode: str | None = None) -> CheckedTask:
    """Make an environment whose actions ``[A]`` span [-1, 1] in every dimension and whose observations are flat.

    Args:
        config: which task.
        render_mode: Gymnasium's, ``rgb_array`` for videos.

    Raises:
        ConfigError: unknown task, one that does not start, an observation that is not one flat vector of numbers, an
            action that is not one bounded vector of floats, or a wrapper with running statistics.
    """
    name = gymnasium_id(config)
    _keep_mujoco_from_writing_files()
    _find_modules_here(name)
    with warnings.catch_warnings():
        # The configuration names an older version, and nobody can change the bounds of its spaces.
        warnings.filterwarnings("ignore", message=".*is out of date.*")
        warnings.filterwarnings("ignore", message=".*precision lowered by casting.*")
        try:
            env = _started(name, render_mode)
        except FAILURES as error:  # a task's constructor, or the module that registers it, raises anything
            why = blamed(error) or _why(name, error)
            raise ConfigError(f"env.name is {name!r}, which does not start: {why}") from error
        check_spaces(f"env.name {name}", env)
        _check_no_running_statistics(env, name)
        if render_mode is not None:
            follow_body(env)
        return CheckedTask(without_velocities(env, config) if config.hide_velocities else env)


def _started(name: str, render_mode: str | None) -> gym.Env:
    start = functools.partial(gym.make, name, disable_env_checker=True)
    try:
        return start(render_mode=render_mode)
    except TypeError as error:
        if render_mode is not None or "render_mode" not in str(error):
            raise
    return start()  # its constructor has no such argument


def _find_modules_here(name: str) -> None:
    """Let ``module:id`` name a module in the working directory, as ``python -m`` would."""
    module, colon, _ = name.partition(":")
    package, here = module.partition(".")[0], os.getcwd()
    if not colon or package in sys.modules or PathFinder.find_spec(package) is not None:
        return
    if here not in sys.path and PathFinder.find_spec(package, [here]) is not None:
        sys.path.append(here)  # last, so that nothing that is installed is hidden


def _why(name: str, error: BaseException) -> str:
    """Say in one line why a task did not start."""
    missing, module = getattr(error.__cause__, "name", None), name.partition(":")[0]
    if isinstance(error, ModuleNotFoundError) and missing and f"{module}.".startswith(f"{missing}."):
        error = error.__cause__
        return f"{error}; allowed: a module of the Python path (PYTHONPATH) or of the folder {os.getcwd()}"
    kind = "" if isinstance(error, (gym.error.Error, ImportError)) else f"{type(error).__name__}: "
    return kind + _one_line(error)


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


# --- what is refused -------------------------------------------------------------------------------------------------


def check_spaces(what: str, env: gym.Env) -> None:
    """Refuse spaces that are not one flat vector each.

    Raises:
        ConfigError: names ``what``, the space, and what is allowed.
    """
    observations, actions = _space_of(env, "observation_space"), _space_of(env, "action_space")
    if not isinstance(observations, gym.spaces.Box) or len(observations.shape) != 1 or 0 in observations.shape:
        allowed = "a Box of numbers of shape (O,), O above 0, e.g. by gymnasium.wrappers.FlattenObservation"
        raise ConfigError(f"{what}: observation space is {_one_line(observations)}; allowed is {allowed}")
    if not isinstance(actions, gym.spaces.Box) or len(actions.shape) != 1 or 0 in actions.shape:
        allowed = "a Box of floats of shape (A,), A above 0"
        raise ConfigError(f"{what}: action space is {_one_line(actions)}; allowed is {allowed}")
    if actions.dtype not in (np.float16, np.float32, np.float64):
        allowed = "a Box of floats: an action is any number between its bounds (a wrapper may round it)"
        raise ConfigError(f"{what}: action space is {_one_line(actions)}; allowed is {allowed}")
    if not (np.all(np.isfinite(actions.low)) and np.all(np.isfinite(actions.high))):
        raise ConfigError(f"{what}: action space is {_one_line(actions)}; allowed are finite bounds only")
    if np.any(actions.low > actions.high):
        raise ConfigError(f"{what}: action space is {_one_line(actions)}; allowed are lower bounds up to the upper")


def _space_of(env: gym.Env, name: str) -> object:
    try:
        return getattr(env, name, None)
    except Exception as error:  # a property that the task cannot answer yet
        return f"not known ({type(error).__name__}: {error})"


def _check_no_running_statistics(env: gym.Env, name: str) -> None:
    """Refuse wrappers under which what the policy sees depends on the episodes before.

    Evaluation would begin with statistics of its own, the replay would hold the same state as different numbers, and no
    resumed run could come back to where it was.
    """
    for layer in layers_of(env):
        found = [attribute for attribute, value in vars(layer).items() if _is_running_statistic(value)]
        if found and getattr(layer, "update_running_mean", True):
            raise ConfigError(
                f"env.name {name}: {type(layer).__name__} keeps running statistics ({found[0]}), which evaluation and "
                "a resumed run would lack; allowed: the task without it (world models normalise what they learn from; "
                "for the policy: --a2c.normalise-observations), or with statistics that stay (update_running_mean = "
                "False)"
            )


def _is_running_statistic(value: object) -> bool:
    mean, var, count, update = (getattr_static(value, name, None) for name in ("mean", "var", "count", "update"))
    return callable(update) and not any(number is None or callable(number) for number in (mean, var, count))


def _one_line(thing: object) -> str:
    return " ".join(str(thing).split())


def _keep_mujoco_from_writing_files() -> None:
    """Send MuJoCo's warnings to `logging`; by default MuJoCo writes MUJOCO_LOG.TXT into the working directory."""
    mujoco = import_mujoco()  # an environment without MuJoCo does not need it
    if mujoco is not None and mujoco.get_mju_user_warning() is None:
        mujoco.set_mju_user_warning(_log_mujoco_warning)


def _log_mujoco_warning(message: str) -> None:
    # Gymnasium's model of HalfCheetah uses a deprecated attribute, which a reader of the log cannot change.
    if "settotalmass" not in message:
        _logger.warning("MuJoCo: %s", _one_line(message))
