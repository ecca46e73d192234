"""The one wrapper around every task: actions in [-1, 1], and every answer of the task checked. Host only."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np

from polygrad_jax.config import LARGEST_STORED
from polygrad_jax.envs.camera import free_drawing, use_own_context

RESET, STEP = ("observation", "info"), ("observation", "reward", "terminated", "truncated", "info")
"""What Gymnasium's reset and step return."""
FAILURES = (Exception, SystemExit)
"""What a task raises. ``sys.exit``, as games have it for a window that is closed, must not end a run as if done."""
UP_TO = f"finite numbers up to {LARGEST_STORED:.0e}"
RESETS_WITHOUT_POSITION = tuple(
    f"gymnasium.envs.mujoco.{task}_v4" for task in ("hopper", "walker2d", "half_cheetah", "swimmer")
)
"""Modules of tasks whose ``x_position`` is qpos[0], which the info of their step has and that of their reset lacks."""


class EnvStepError(RuntimeError):
    """The task failed or returned what cannot be used; the message names the task, the episode's seed and the step."""


class CheckedTask(gym.Wrapper, gym.utils.RecordConstructorArgs):
    """A task with actions ``[A]`` in [-1, 1] whose answers are as its spaces declare them, whatever the task returns.

    ``step`` returns an observation ``[O]`` (float32 or float64), a finite float, two bools and a dict. Whole numbers
    are observed as floats, arrays of one element pass for numbers, and None for an empty info. The rest is an
    ``EnvStepError``: another shape, text, numbers that are not finite or too large for statistics in float32, another
    number of values, and whatever the task raises.
    """

    def __init__(self, env: gym.Env):
        """Wrap ``env``, whose spaces are flat boxes (see ``tasks.make``)."""
        gym.utils.RecordConstructorArgs.__init__(self)
        gym.Wrapper.__init__(self, env)
        bounds, shown = env.action_space, env.observation_space
        self._rescaled = rescaling_to(bounds)
        self.action_space = gym.spaces.Box(-1.0, 1.0, bounds.shape, bounds.dtype)
        self._converts_observations = shown.dtype not in (np.float32, np.float64)
        if self._converts_observations:
            low, high = np.asarray(shown.low, np.float32), np.asarray(shown.high, np.float32)
            self.observation_space = gym.spaces.Box(low, high, dtype=np.float32)
        self._shape = self.observation_space.shape
        self._seed: int | None = None
        self._steps = 0
        self._start = self._position = np.nan

    # --- what a task says of itself ----------------------------------------------------------------------------------

    @property
    def name(self) -> str:
        """Return the task's Gymnasium id."""
        spec = self.unwrapped.spec  # that of wrappers is None where one of them cannot be copied
        return type(self.unwrapped).__name__ if spec is None else spec.id

    @property
    def time_limit(self) -> int | None:
        """Return the steps after which an episode is truncated (``max_episode_steps``); None where nothing says so."""
        limits = [layer for layer in layers_of(self) if isinstance(layer, gym.wrappers.TimeLimit)]
        return min((layer._max_episode_steps for layer in limits), default=None)

    @property
    def distance(self) -> float:
        """Return the metres between the first position that the episode's infos tell and that of its last step.

        A position is ``x_position``. NaN where the last step's info has none.
        """
        return self._position - self._start

    @property
    def spec(self) -> Any:
        """Return the spec by which Gymnasium makes the task again.

        It names this wrapper only where Gymnasium's own, or none, would execute an action otherwise.
        """
        bounds, whole = self.env.action_space, super().spec
        exact = _spans_unit(bounds) or _rescale_action_is_exact(bounds)
        if whole is None or not exact or self._converts_observations:
            return whole
        # Whoever has a dataset of ours makes its task without this package.
        plain = copy.deepcopy(self.env.spec)
        if not _spans_unit(bounds):
            plain.additional_wrappers += (gym.wrappers.RescaleAction.wrapper_spec(min_action=-1.0, max_action=1.0),)
        return plain

    # --- going through episodes --------------------------------------------------------------------------------------

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        """Begin an episode.

        Raises:
            EnvStepError: see the class.
        """
        self._seed, self._steps = seed, 0
        try:
            answer = self.env.reset(seed=seed, options=options)
        except FAILURES as error:
            raise self._failed("reset", RESET, error) from error
        self._check_count("reset", RESET, answer)
        observation, info = self._checked_observation("reset", answer[0]), self._checked_info("reset", answer[1])
        self._start = self._position = _position_in(info)
        if np.isnan(self._start) and type(self.unwrapped).__module__ in RESETS_WITHOUT_POSITION:
            self._start = self._position = float(self.unwrapped.data.qpos[0])
        return observation, info

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict]:
        """Take a step with an action ``[A]`` in [-1, 1].

        Raises:
            EnvStepError: see the class.
        """
        action = self._rescaled(action)
        try:
            answer = self.env.step(action)
        except FAILURES as error:
            raise self._failed("step", STEP, error) from error
        self._check_count("step", STEP, answer)
        observation, reward, terminal, truncated, info = answer
        observation = self._checked_observation("step", observation)
        reward = float(reward) if isinstance(reward, float) else self._number("reward", reward)
        if not -LARGEST_STORED <= reward <= LARGEST_STORED:
            raise self._refused("step", f"reward {reward}", UP_TO)
        terminal, truncated = self._flag("terminated", terminal), self._flag("truncated", truncated)
        info = self._checked_info("step", info)
        self._steps += 1
        self._position = _position_in(info)
        if self._start != self._start:  # NaN: no position is known so far
            self._start = self._position
        return observation, reward, terminal, truncated, info

    def render(self) -> Any:
        """Draw the task as its render mode says: ``rgb_array`` gives ``[height, width, 3]`` uint8.

        Raises:
            EnvStepError: the task raised.
        """
        try:
            use_own_context(self.env)
            return self.env.render()
        except FAILURES as error:
            raise EnvStepError(f"{self._where()}: render failed: {_said(error)}") from error

    def close(self) -> None:
        """Free the task.

        Raises:
            EnvStepError: the task raised.
        """
        with contextlib.suppress(Exception):  # a GL library that fails does so again when the task is closed
            free_drawing(self.env)
        try:
            self.env.close()
        except FAILURES as error:
            raise EnvStepError(f"{self.name}: close failed: {_said(error)}") from error

    # --- refusing ----------------------------------------------------------------------------------------------------

    def _failed(self, what: str, wanted: tuple[str, ...], error: BaseException) -> EnvStepError:
        # Gymnasium's wrappers and those of a user unpack the answer before it comes here.
        if isinstance(error, ValueError) and f"unpack (expected {len(wanted)}" in str(error):
            return self._refused(what, f"another number of values ({error})", ", ".join(wanted))
        return EnvStepError(f"{self._where()}: {what} failed: {_said(error)}")

    def _check_count(self, what: str, wanted: tuple[str, ...], answer: Any) -> None:
        if not isinstance(answer, tuple) or len(answer) != len(wanted):
            one = f"one value of type {type(answer).__name__}"
            gave = f"{len(answer)} values" if isinstance(answer, tuple) else one
            raise self._refused(what, gave, ", ".join(wanted))

    def _checked_observation(self, what: str, observation: Any) -> np.ndarray:
        try:
            array = np.asarray(observation)
        except Exception as error:  # what cannot be an array says so in many ways
            raise self._refused(what, f"an observation that is no array ({_said(error)})", self._numbers()) from error
        if array.dtype.kind not in "fiub":
            kind = type(observation).__name__ if array.dtype.kind == "O" else array.dtype
            raise self._refused(what, f"an observation of type {kind}", self._numbers())
        if array.shape != self._shape:
            raise self._refused(what, f"an observation of shape {array.shape}", f"{self._shape}, as its space declares")
        if array.dtype.char not in "fd":
            array = array.astype(np.float32)
        if not np.maximum.reduce(np.abs(array)) <= LARGEST_STORED:  # nor is NaN
            raise self._refused(what, f"observation {_one_line(array)}", UP_TO)
        return array

    def _numbers(self) -> str:
        return f"an array of numbers of shape {self._shape}"

    def _number(self, name: str, value: Any) -> float:
        number = _single(value)
        if number is None:
            raise self._refused("step", f"{name} {_one_line(value)} of type {type(value).__name__}", "one number")
        return number

    def _flag(self, name: str, value: Any) -> bool:
        if value is True or value is False:
            return value
        number = _single(value)
        if number not in (0.0, 1.0):
            raise self._refused("step", f"{name} {_one_line(value)} of type {type(value).__name__}", "True or False")
        return number == 1.0

    def _checked_info(self, what: str, info: Any) -> dict[str, Any]:
        if info is None:
            return {}
        if not isinstance(info, dict):
            raise self._refused(what, f"an info of type {type(info).__name__}", "a dict")
        return info

    def _where(self) -> str:
        return f"{self.name} (seed {self._seed}), step {self._steps}"

    def _refused(self, what: str, gave: str, allowed: str) -> EnvStepError:
        return EnvStepError(f"{self._where()}: {what} gave {gave}; allowed: {allowed}")


def layers_of(env: gym.Env) -> list[gym.Env]:
    """Return an environment and all that it wraps, from the outermost to the task itself."""
    layers = [env]
    while isinstance(inner := vars(layers[-1]).get("env"), gym.Env):
        layers.append(inner)
    return layers


# --- actions ---------------------------------------------------------------------------------------------------------


def rescaling_to(box: gym.spaces.Box) -> Callable[[np.ndarray], np.ndarray]:
    """Return the function from actions ``[A]`` in [-1, 1] to the bounds of ``box``, in the box's dtype.

    -1 becomes exactly the lower bound and 1 the upper one; nothing between leaves the bounds. A dimension whose bounds
    are equal always gets that value. Bounds of [-1, 1] leave an action as it is.
    """
    low, high, dtype = box.low, box.high, box.dtype
    gradient, intercept = _gymnasiums_line(box)
    if _rescale_action_is_exact(box):  # at the bounds, and so, as rounding keeps an order, inside them
        return lambda action: (np.asarray(action, dtype) - intercept) / gradient
    # Not for equal bounds, and not for a width that the dtype does not hold.
    usable = np.isfinite(gradient) & np.isfinite(intercept) & (gradient >= np.finfo(dtype).tiny)
    gradient, intercept = np.where(usable, gradient, 1).astype(dtype), np.where(usable, intercept, 0).astype(dtype)

    def rescaled(action: np.ndarray) -> np.ndarray:
        action = np.asarray(action, dtype)
        share = (action.astype(np.float64) + 1.0) / 2.0
        executed = np.where(usable, (action - intercept) / gradient, low * (1.0 - share) + high * share)
        inside = np.clip(executed, low, high).astype(dtype)
        return np.where(action >= 1.0, high, np.where(action <= -1.0, low, inside))

    return rescaled


def _spans_unit(box: gym.spaces.Box) -> bool:
    return bool(np.all(box.low == -1.0) and np.all(box.high == 1.0))


def _gymnasiums_line(box: gym.spaces.Box) -> tuple[np.ndarray, np.ndarray]:
    """Return gradient and intercept ``[A]`` of the map from the box to [-1, 1] as Gymnasium's RescaleAction has them.

    Its way of rounding is kept, so that runs from before go on bit for bit.
    """
    with np.errstate(all="ignore"):
        gradient = (2.0 / (box.high.astype(np.longdouble) - box.low)).astype(box.dtype)
        return gradient, gradient * -box.low - box.dtype.type(1.0)


def _rescale_action_is_exact(box: gym.spaces.Box) -> bool:
    """Return whether Gymnasium's RescaleAction reaches the bounds exactly."""
    gradient, intercept = _gymnasiums_line(box)
    with np.errstate(all="ignore"):
        low, high = ((box.dtype.type(end) - intercept) / gradient for end in (-1.0, 1.0))
    return bool(np.all(low == box.low) and np.all(high == box.high))


# --- what a task returned --------------------------------------------------------------------------------------------


def _position_in(info: dict[str, Any]) -> float:
    """Return the position of the body along the track in metres (``x_position``); NaN where the info has none."""
    value = info.get("x_position")
    number = value if isinstance(value, float) else _single(value)
    return np.nan if number is None else float(number)


def _single(value: Any) -> float | None:
    """Return a number, or the only element of an array; None for anything else."""
    try:
        array = np.asarray(value)
    except Exception:  # what cannot be an array says so in many ways
        return None
    return float(array.item()) if array.size == 1 and array.dtype.kind in "fiub" else None


def _said(error: BaseException) -> str:
    return f"{type(error).__name__}: {_one_line(error)}"


def _one_line(thing: object) -> str:
    return " ".join(str(thing).split())[:200]
