"""Step a task as collecting does, and compare what it gave with what copies of it give. Host only.

Errors of imagined trajectories, the simulator as a world model and datasets take copies that are put into a simulator
state for the task itself. They are the task only if that state determines it: a wrapper with a memory, a goal in an
attribute or masses drawn anew for each episode are not part of the state.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

import gymnasium as gym
import numpy as np

EPISODES = 8
STEPS = 300
"""Least numbers of episodes and steps: what is drawn for each episode differs among so many."""
LONGEST, CUT = 1_000, 40
"""Most steps of the first episode, which goes to its end where it is no longer, and of the others."""
PAST_ENDS = 40
"""Steps that a restored copy takes from the last step of an episode on: it must not refuse them."""
EXACT = 1e-9
"""Largest difference, as a share of a column's largest number, that counts as rounding in float64."""
STORED = 1e-5
"""The same of numbers that were stored as float32, perhaps on another machine."""


class Walk(NamedTuple):
    """T steps of a task, raw."""

    states: np.ndarray  # [T, S] float64, before the steps
    observations: np.ndarray  # [T, O] float64, before the steps
    actions: np.ndarray  # [T, A] float32, as executed
    rewards: np.ndarray  # [T] float64
    terminals: np.ndarray  # [T] bool
    next_observations: np.ndarray  # [T, O] float64
    next_states: np.ndarray  # [T, S] float64


def walk(env: gym.Env, read_state: Callable[[gym.Env], np.ndarray]) -> Walk:
    """Step an environment of ``tasks.make`` under random actions of full amplitude, a third of them at a bound."""
    rows: list[tuple] = []
    episodes = 0
    while episodes < EPISODES or len(rows) < STEPS:
        rows += _episode(env, read_state, episodes, LONGEST if episodes == 0 else CUT)
        episodes += 1
    return Walk(*(np.stack(column) for column in zip(*rows, strict=True)))


def _episode(
    env: gym.Env, read_state: Callable[[gym.Env], np.ndarray], number: int, longest: int
) -> Iterator[tuple[np.ndarray, ...]]:
    random = np.random.default_rng(number)
    observation, _ = env.reset(seed=1 + number)  # copies were reset with seed 0
    for _ in range(longest):
        drawn = random.uniform(-1.5, 1.5, env.action_space.shape)
        action = np.clip(drawn, -1.0, 1.0).astype(np.float32)
        state, before = read_state(env), np.array(observation, np.float64)
        observation, reward, terminal, truncated, _ = env.step(action.copy())
        after = np.array(observation, np.float64)
        yield state, before, action, np.float64(reward), np.bool_(terminal), after, read_state(env)
        if terminal or truncated:
            return


def first_difference(
    expected: Mapping[str, np.ndarray], found: Mapping[str, np.ndarray], tolerance: float
) -> str | None:
    """Say which of the arrays ``[T]`` or ``[T, n]`` by name is the first to differ, and by how much; None if none does.

    A difference counts beyond ``tolerance`` times the largest number of its column; one that is not finite counts.
    """
    for name, values in expected.items():
        if found[name].shape != values.shape:
            sizes = [int(np.prod(array.shape[1:])) for array in (found[name], values)]
            return f"the {name} of a restored copy has {sizes[0]} numbers, the task's {sizes[1]}"
        values, others = (np.asarray(array, np.float64) for array in (values, found[name]))
        with np.errstate(invalid="ignore"):  # infinity minus infinity
            difference = np.where(values == others, 0.0, np.abs(values - others))
            bound = tolerance * np.abs(values).max(axis=0, initial=0.0)
        if not ((difference == 0) | (difference <= bound)).all():
            return f"the {name} of a restored copy differs by up to {difference.max():.2g}"
    return None
