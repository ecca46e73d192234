"""A world model on arrays of one's own: no environment, no run folder.

``fit`` trains any world model on episodes; what it learnt imagines under any policy, given as a function from raw
observations to the mean and std of a Gaussian.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from polygrad_jax.config import Config, ConfigError, EnvSpec
from polygrad_jax.data import normaliser as normalisers
from polygrad_jax.data import replay as replays
from polygrad_jax.types import Array, Metrics, Normaliser, Params, PolicyApply, Segment, Transitions, WorldModel

CHUNK = 1024
"""Transitions sent to the replay at a time."""
REPORT_EVERY_UPDATES = 100


class Episode(NamedTuple):
    """T consecutive transitions, raw; ``observations[k]`` is what ``actions[k]`` was chosen for."""

    observations: np.ndarray  # [T, O]
    actions: np.ndarray  # [T, A]
    rewards: np.ndarray  # [T]
    terminated: bool = False  # the system itself ended it; False where the recording just stops


def fit(
    world_model: WorldModel,
    episodes: Sequence[Episode],
    config: Config,
    key: Array,
    updates: int,
    report: Callable[[int, dict[str, float]], None] | None = None,
) -> tuple[Any, Normaliser]:
    """``(state, normaliser)`` of a world model after ``updates`` gradient steps on windows of the episodes.

    The model's ``window`` and ``batch_size``, or the config's, say what a batch is.
    ``report(updates so far, metrics)`` is called every hundred updates.

    Raises:
      ConfigError: episodes that do not fit together, hold numbers that are not finite, or are all too short.
    """
    if updates < 1:
        raise ConfigError(f"updates is {updates}; allowed: 1 or greater")
    window = world_model.window or config.horizon
    replay = replay_of(transitions_of(episodes), window)
    require_windows(replay, window)
    normaliser = normalisers.to_normaliser(replay.moments)
    init_key, update_key = jax.random.split(key)
    state = jax.jit(world_model.init)(init_key)
    several = jax.jit(make_several_updates(world_model, config), donate_argnums=0)
    for first in range(0, updates, REPORT_EVERY_UPDATES):
        end = min(first + REPORT_EVERY_UPDATES, updates)
        state, metrics = several(state, replay, normaliser, update_key, jnp.int32(first), jnp.int32(end))
        if report is not None:
            report(end, {name: float(x) for name, x in jax.device_get(metrics).items() if np.ndim(x) == 0})
    return state, normaliser


def make_several_updates(world_model: WorldModel, config: Config) -> Callable[..., tuple[Any, Metrics]]:
    """``(state, replay, normaliser, key, first, end) -> (state, metrics of the last)``: updates number ``first`` to
    ``end`` (int32, exclusive), to be jitted. An update's draws follow from its number alone."""
    window, size = world_model.window or config.horizon, world_model.batch_size or config.denoiser.batch_size

    def one(counter: Array, state: Any, replay: replays.ReplayState, normaliser: Normaliser, key: Array):
        batch_key, update_key = jax.random.split(jax.random.fold_in(key, counter))
        batch = replays.sample(replay, batch_key, size, window, history=world_model.history)
        if config.denoiser.padded_actions == "drawn":
            batch = replays.draw_padded_actions(replay, jax.random.fold_in(batch_key, 1), batch)
        return world_model.update(state, batch, normaliser, update_key)

    def several(state, replay, normaliser, key, first, end):
        shapes = jax.eval_shape(one, first, state, replay, normaliser, key)[1]
        nothing = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
        return jax.lax.fori_loop(
            first, end, lambda counter, carry: one(counter, carry[0], replay, normaliser, key), (state, nothing)
        )

    return several


def settle(
    world_model: WorldModel,
    state: Any,
    policy_apply: PolicyApply,
    policy_params: Params,
    context: Segment,
    normaliser: Normaliser,
    key: Array,
    horizon: int,
    rounds: int = 300,
) -> Any:
    """The state after ``rounds`` imaginations that are thrown away.

    What a model adapts to a policy inside ``imagine`` has then done so: PolyGRAD's delta, until the imagined actions
    spread around the policy's mean as the policy says. Models that adapt nothing come back as they were.
    """

    def once(state: Any, key: Array) -> tuple[Any, None]:
        return world_model.imagine(state, policy_apply, policy_params, context, normaliser, key, horizon)[0], None

    return jax.jit(lambda state, keys: jax.lax.scan(once, state, keys)[0])(state, jax.random.split(key, rounds))


def contexts_at(observations: np.ndarray, spec: EnvSpec) -> Segment:
    """The context ``[B, 1]`` of imagining from raw observations ``[B, O]`` of which nothing else is known.

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
    """The episodes one behind the other, ``[T, ...]`` float32 on the host; each ends terminated or truncated.

    Raises:
      ConfigError: see :func:`fit`.
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


def _checked(number: int, episode: Episode, first: Episode) -> Episode:
    """The episode as float32, if it fits the first one."""
    arrays = {name: np.asarray(getattr(episode, name), np.float32) for name in ("observations", "actions", "rewards")}
    length = len(arrays["rewards"]) if arrays["rewards"].ndim else 0
    wanted = {
        "observations": (length, *np.shape(first.observations)[1:2]),
        "actions": (length, *np.shape(first.actions)[1:2]),
        "rewards": (length,),
    }
    for name, array in arrays.items():
        if array.shape != wanted[name] or array.ndim != (1 if name == "rewards" else 2) or length == 0:
            shapes = "[T, O], [T, A] and [T] with T of 1 or more, O and A as in the first episode"
            raise ConfigError(f"episode {number}: {name} have shape {array.shape}; allowed: {shapes}")
        if not np.isfinite(array).all():
            raise ConfigError(f"episode {number}: {name} are not all finite; allowed: finite numbers")
    return Episode(**arrays, terminated=bool(episode.terminated))


def replay_of(transitions: Transitions, horizon: int, capacity: int | None = None) -> replays.ReplayState:
    """A replay that was given ``transitions [T, ...]`` (all of them valid); row t of it is transition t.

    The last ``capacity`` are kept; all if None.
    """
    total = len(transitions.rewards)
    spec = EnvSpec(transitions.observations.shape[1], transitions.actions.shape[1])
    capacity = max(min(total, capacity or total), horizon, CHUNK)
    state = replays.init(spec, capacity, horizon)
    add = jax.jit(replays.add, static_argnums=2, donate_argnums=0)
    for start in range(0, total, CHUNK):
        state = add(state, jax.tree.map(lambda x, start=start: _padded(x[start : start + CHUNK]), transitions), horizon)
    return state


def _padded(rows: np.ndarray) -> np.ndarray:
    """``[T, ...]`` to ``[CHUNK, ...]`` with zeros behind, which mark rows that do not count."""
    padded = np.zeros((CHUNK, *rows.shape[1:]), rows.dtype)
    padded[: len(rows)] = rows
    return padded


def require_windows(replay: replays.ReplayState, horizon: int) -> None:
    """Raises ConfigError where the replay holds nothing to learn from."""
    if int(replays.num_windows(replay)) == 0:
        raise ConfigError(
            f"no episode is long enough for a window of horizon {horizon}; allowed: an episode of at least {horizon} "
            "transitions, or a terminated one of at least 2"
        )
