"""What a run learns and where it is: the device's state, the host's counters, and how both are saved and restored.

The order of restoring: arrays, host counters, transitions (from which the replay is rebuilt), environment, logs.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

from polygrad_jax.config import Config, EnvSpec
from polygrad_jax.data import replay as replays
from polygrad_jax.types import Agent, Array, WorldModel

STREAMS = {
    "world_model_init": 0,
    "policy_init": 1,
    "context": 2,
    "imagine": 3,
    "batch": 4,
    "denoise": 5,
    "errors": 6,
    "stored": 7,
    "windows": 8,
    "learn": 9,
}
"""Every use of randomness in a step of learning is ``fold_in(fold_in(root, stream), counter)``."""


@flax.struct.dataclass
class TrainState:
    """Everything that learning changes; donated to every step."""

    root_key: Array  # uint32 key data
    policy_updates: Array  # int32
    model_updates: Array  # int32
    replay: replays.ReplayState
    world_model: Any
    agent: Any


def key_for(root_key: Array, stream: str, counter: Array) -> Array:
    """Return the key of one use: the same in a resumed run as in the uninterrupted one."""
    root = jax.random.wrap_key_data(root_key)
    return jax.random.fold_in(jax.random.fold_in(root, STREAMS[stream]), counter)


def make_init(config: Config, spec: EnvSpec, world_model: WorldModel, agent: Agent) -> Callable[..., TrainState]:
    """Make the function that gives the state of a run before its first environment step, by default of its own seed."""

    def init(seed: int | Array = config.seed) -> TrainState:
        root_key = jax.random.key_data(jax.random.key(seed))
        return TrainState(
            root_key=root_key,
            policy_updates=jnp.int32(0),
            model_updates=jnp.int32(0),
            replay=replays.init(spec, config.loop.replay_capacity, world_model.states_of_episode(config.horizon)),
            world_model=world_model.init(key_for(root_key, "world_model_init", jnp.int32(0))),
            agent=agent.init(key_for(root_key, "policy_init", jnp.int32(0))),
        )

    return init


def without_rows(state: TrainState) -> TrainState:
    """Return the state without the replay's rows, which the transition log has; its statistics stay."""
    replay = state.replay
    return state.replace(
        replay=replay.replace(
            observations=replay.observations[:0],
            actions=replay.actions[:0],
            rewards=replay.rewards[:0],
            terminals=replay.terminals[:0],
            steps=None,
            starts=replay.starts[:0],
        )
    )


def with_rows(saved: TrainState, refilled: TrainState) -> TrainState:
    """Return a saved state with the rows of the replay that was filled again from the transition log."""
    names = ("observations", "actions", "rewards", "terminals", "steps", "starts", "head", "tail")
    rows = {name: getattr(refilled.replay, name) for name in names}
    return saved.replace(replay=saved.replay.replace(**rows))


def without_optimisers(tree: Any) -> Any:
    """Return a state with None for every optimiser: what acting and imagining need, and a third of the size."""
    if not dataclasses.is_dataclass(tree):
        return tree
    fields = {f.name: without_optimisers(getattr(tree, f.name)) for f in dataclasses.fields(tree)}
    dropped = {name: None for name in fields if name.endswith(("adam", "optimiser"))}
    return dataclasses.replace(tree, **fields | dropped)


# --- the host's part -------------------------------------------------------------------------------------------------


@dataclass
class Clock:
    """Seconds spent so far, over all sessions of the run."""

    collecting: float = 0.0
    training: float = 0.0
    evaluating: float = 0.0
    compiling: float = 0.0


@dataclass
class Counters:
    """Where the run is: what the host must remember beside the train state. Saved in every checkpoint."""

    env_steps: int = 0
    prefill_env_steps: int = 0
    longest_episode: int = 0
    """Environment steps of the longest episode that ended in training."""
    last_return: float | None = None
    best_return: float | None = None
    simulator_differs: str | None = None
    """What a restored copy did otherwise than the task, once that was found."""
    clock: Clock = field(default_factory=Clock)

    @classmethod
    def from_json(cls, saved: dict[str, Any]) -> Counters:
        """Return what ``dataclasses.asdict`` wrote."""
        return cls(**(saved | {"clock": Clock(**saved["clock"])}))
