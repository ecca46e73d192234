"""Turn episodes given as plain arrays into a replay; needs no environment and no run folder."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from polygrad_jax.config import LARGEST_STORED, ConfigError, EnvSpec
from polygrad_jax.data import replay as replays
from polygrad_jax.data.transition_log import TransitionRecord
from polygrad_jax.types import Segment, Transitions

CHUNK = 1024
"""Transitions sent to the replay at a time; fewer where it keeps fewer."""


class Episode(NamedTuple):
    """T consecutive transitions, raw; ``actions[k]`` was chosen at ``observations[k]``."""

    observations: np.ndarray  # [T, O]
    actions: np.ndarray  # [T, A] as executed
    rewards: np.ndarray  # [T]
    terminated: bool = False  # by the system itself; False where the recording just stops


def contexts_at(observations: np.ndarray, spec: EnvSpec) -> Segment:
    """Make the contexts ``[B, 1]`` for imagining from raw observations ``[B, O]`` without a history.

    Raises:
      ConfigError: the observations have another shape.
    """
    raw_obs = jnp.asarray(observations, jnp.float32)
    if raw_obs.ndim != 2 or raw_obs.shape[1] != spec.observation_size:
        raise ConfigError(f"observations have shape {raw_obs.shape}; allowed: [B, {spec.observation_size}]")
    batch = raw_obs.shape[0]
    return Segment(
        observations=raw_obs[:, None, :],
        actions=jnp.zeros((batch, 1, spec.action_size)),
        rewards=jnp.zeros((batch, 1)),
        terminals=jnp.zeros((batch, 1)),
    )


# --- arrays to a replay ----------------------------------------------------------------------------------------------


def transitions_of(episodes: Sequence[Episode]) -> Transitions:
    """Concatenate episodes to ``[T, ...]`` float32 on the host; each ends terminated or truncated.

    Raises:
      ConfigError: episodes have different sizes, or hold numbers that are not finite.
    """
    if not episodes:
        raise ConfigError("episodes is empty; allowed: at least one")
    checked = [_checked(number, episode, episodes[0]) for number, episode in enumerate(episodes)]
    ends = np.cumsum([len(episode.rewards) for episode in checked]) - 1
    total = int(ends[-1]) + 1
    terminals, truncations = np.zeros(total, np.float32), np.zeros(total, np.float32)
    terminals[ends] = [episode.terminated for episode in checked]
    truncations[ends] = [not episode.terminated for episode in checked]
    return Transitions(
        observations=np.concatenate([episode.observations for episode in checked]),
        actions=np.concatenate([episode.actions for episode in checked]),
        rewards=np.concatenate([episode.rewards for episode in checked]),
        terminals=terminals,
        truncations=truncations,
        valid=np.ones(total, bool),
    )


def transitions_of_record(record: TransitionRecord) -> Transitions:
    """Return the transitions of a record, ``[T, ...]`` float32 on the host; one that is terminal is not truncated."""
    return Transitions(
        observations=record.observations,
        actions=record.actions,
        rewards=record.rewards,
        terminals=record.terminals.astype(np.float32),
        truncations=(record.truncations & ~record.terminals).astype(np.float32),
        valid=np.ones(len(record), bool),
    )


def _checked(number: int, episode: Episode, first: Episode) -> Episode:
    """Return the episode as float32; check that its sizes are those of the first."""
    with np.errstate(over="ignore"):  # float64 beyond float32 becomes infinite, which is refused below
        names = ("observations", "actions", "rewards")
        arrays = {name: np.asarray(getattr(episode, name), np.float32) for name in names}
    length = len(arrays["rewards"]) if arrays["rewards"].ndim else 0
    wanted = {
        "observations": (length, *np.shape(first.observations)[1:2]),
        "actions": (length, *np.shape(first.actions)[1:2]),
        "rewards": (length,),
    }
    for name, array in arrays.items():
        if array.shape != wanted[name] or array.ndim != (1 if name == "rewards" else 2) or 0 in array.shape:
            shapes = "[T, O], [T, A] and [T], T, O and A of 1 or more, O and A as in the first episode"
            raise ConfigError(f"episode {number}: {name} have shape {array.shape}; allowed: {shapes}")
        if not (np.abs(array) <= LARGEST_STORED).all():  # nor is NaN
            allowed = f"finite numbers up to {LARGEST_STORED:.0e}"
            raise ConfigError(f"episode {number}: {name} are not all finite, or too large; allowed: {allowed}")
    return Episode(**arrays, terminated=bool(episode.terminated))


def replay_of(transitions: Transitions, horizon: int, capacity: int | None = None) -> replays.ReplayState:
    """Make a replay of ``transitions [T, ...]``, all of them valid; row t is transition t.

    Keeps the last ``capacity``, or all if None.
    """
    total = len(transitions.rewards)
    spec = EnvSpec(transitions.observations.shape[1], transitions.actions.shape[1])
    chunk = min(CHUNK, capacity or CHUNK)
    capacity = max(min(total, capacity or total), horizon, chunk)
    state = jax.jit(replays.init, static_argnums=(0, 1, 2))(spec, capacity, horizon)  # one program, not one per array
    add = jax.jit(replays.add, static_argnums=2, donate_argnums=0)
    for start in range(0, total, chunk):
        rows = jax.tree.map(lambda x, start=start: _padded(x[start : start + chunk], chunk), transitions)
        state = add(state, rows, horizon)
    return state


def _padded(rows: np.ndarray, length: int) -> np.ndarray:
    """Pad ``[T, ...]`` by zeros to ``[length, ...]``; the zeros of ``valid`` mark padding."""
    padded = np.zeros((length, *rows.shape[1:]), rows.dtype)
    padded[: len(rows)] = rows
    return padded
