"""The training windows of stored transitions: how long they are, which transitions they hold, and what to say of that.

Nothing is learnt from a transition that no window holds.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import numpy as np

from polygrad_jax.config import Config, ConfigError
from polygrad_jax.data import replay as replays
from polygrad_jax.envs.episodes import MOST_STEPS
from polygrad_jax.runs.console import announce
from polygrad_jax.types import WorldModel


class Window(NamedTuple):
    """How many states a training window has, and the field that says so."""

    states: int
    field: str | None = "horizon"  # None where the world model alone says it
    beyond: int = 0  # states of a window beyond the field's value
    streamed: bool = False  # it runs on over the ends of episodes

    @property
    def of_episode(self) -> int:
        """States that an episode must have to be learnt from."""
        return 2 if self.streamed else self.states

    def __str__(self) -> str:
        said = "" if self.field is None else f" ({self.field} {self.states - self.beyond})"
        return f"a training window of {self.states} states{said}"

    def at_most(self, steps: int) -> str:
        """Say what makes a window fit ``steps`` steps of an episode."""
        if self.field is None:
            return f"a world model with windows of at most {steps} states"
        return f"{self.field} of at most {steps - self.beyond}"


WINDOW_FIELDS = {"transformer": ("transformer.context_length", 1), "dreamer": ("dreamer.window", 0)}
"""By world model, where the horizon does not say how long a window is: the field, and ``Window.beyond``."""


def window_of(config: Config, world_model: WorldModel) -> Window:
    """Return the training window of a world model."""
    if world_model.window is None:
        return Window(config.horizon, streamed=world_model.streamed)
    return Window(world_model.window, *WINDOW_FIELDS.get(config.world_model, (None, 0)), world_model.streamed)


def limit_warnings(name: str, limit: int | None, window: Window) -> list[str]:
    """Return what the time limit of the task ``name`` makes hard; None is no limit."""
    if limit is None:
        return [
            f"warning: {name} has no time limit (max_episode_steps): an episode is learnt from once the task itself "
            f"has ended it, and evaluation cuts one after {MOST_STEPS:,} steps"
        ]
    if limit >= window.of_episode:
        return []
    return [
        f"warning: the task's time limit is {limit} steps: an episode that it cuts off is shorter than {window} and "
        f"nothing is learnt from it; {_what_helps(limit, window)}"
    ]


def require_capacity(capacity: int, window: Window) -> None:
    """Refuse a replay that holds no whole window.

    Raises:
      ConfigError: it is shorter.
    """
    if window.states > capacity:
        raise ConfigError(f"loop.replay_capacity is {capacity}; allowed: at least {window.states}, {window}")


def say_uncovered(replay: replays.ReplayState, window: Window) -> None:
    """Say how many stored transitions are in no window, where there are any."""
    outside, stored = _counted(replay, window)
    if outside:
        announce(f"warning: {outside:,} of {stored:,} stored transitions are in no training window ({window})")


def uncovered_share(replay: replays.ReplayState, window: Window) -> dict[str, float]:
    """Return the share of the stored transitions that are in no window, under its name as a metric."""
    outside, stored = _counted(replay, window)
    return {"replay/uncovered_share": outside / max(stored, 1)}


def _counted(replay: replays.ReplayState, window: Window) -> tuple[int, int]:
    outside, stored = map(int, _uncovered(replay, window.of_episode))
    return (0 if window.streamed else outside), stored  # a stream may begin at any transition


_uncovered = jax.jit(replays.uncovered, static_argnums=1)


def require_windows(replay: replays.ReplayState, window: Window) -> None:
    """Refuse to learn where the replay holds nothing to learn from.

    Raises:
      ConfigError: no stored stretch of steps is a window.
    """
    stored = min(int(replay.total), replay.rewards.shape[0])
    if window.streamed and stored < window.states:
        raise ConfigError(f"{stored} stored transitions are less than {window}; allowed: {window.at_most(stored)}")
    if int(replays.num_windows(replay)) > 0:
        return
    capacity, total = replay.rewards.shape[0], int(replay.total)
    slots = np.arange(max(total - capacity, 0), total - int(replay.open_length)) % capacity
    lengths = np.asarray(replay.steps)[slots] + 1
    longest = int(lengths.max(initial=0))
    if longest == 0 or longest >= window.of_episode or np.asarray(replay.terminals)[slots].any():
        why = "the episode that has not ended has overwritten the others"
        remedy = f"allowed: loop.replay_capacity of more than {capacity}"
    else:
        why = f"the longest episode was cut off after {longest} step{'s' if longest > 1 else ''}"
        remedy = _what_helps(longest, window)
    raise ConfigError(f"none of the {min(total, capacity)} stored transitions is in {window}: {why}; {remedy}")


def _what_helps(steps: int, window: Window) -> str:
    """Say what makes windows of episodes of ``steps`` steps that were cut off."""
    if steps < 2:  # the state behind a step is not stored
        return "allowed: a task whose episodes go on for 2 steps or more, or end by themselves (terminated)"
    return f"allowed: {window.at_most(steps)}, or a longer time limit"
