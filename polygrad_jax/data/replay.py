"""The replay on the device: a ring of transitions and the list of the windows that may be drawn from it.

Everything is pure and of static shape. A transition's *row* is its number since the start of the run;
it lies in slot ``row % C`` of a ring of C slots. The rows from which a window may start are kept in a
queue, in order, so that drawing one uniformly is one look-up.
"""

from __future__ import annotations

import chex
import flax.struct
import jax
import jax.numpy as jnp

from polygrad_jax.config import EnvSpec
from polygrad_jax.data import normaliser
from polygrad_jax.data.normaliser import RunningMoments
from polygrad_jax.data.segment_masks import happened
from polygrad_jax.types import Array, Segment, Transitions

MAX_ROWS = 2**31 - 1
"""Rows are counted in int32."""


@flax.struct.dataclass
class ReplayState:
    """The ring, the queue of window starts, and the statistics. All arrays; donate it.

    The queue holds row numbers at positions ``head <= i < tail``, position i in slot ``i % C``. Every row
    of the open (unfinished) episode is written to the position behind ``tail`` that it would have; when the
    episode ends, ``tail`` moves over those that are window starts. The queue cannot overrun itself: its
    starts are different rows that are still in the ring, and so are the rows of the open episode.
    """

    observations: Array  # [C, O] raw
    actions: Array  # [C, A] raw, as sampled
    rewards: Array  # [C] raw
    terminals: Array  # [C] 0 or 1
    steps: Array | None  # [C] int32, which step of its episode; None in checkpoints, as those of older versions
    total: Array  # [] int32, transitions ever added
    starts: Array  # [C] int32, rows from which a window may start
    head: Array  # [] int32, queue position of the oldest start
    tail: Array  # [] int32, queue position behind the newest start
    open_length: Array  # [] int32, transitions of the unfinished episode so far
    moments: RunningMoments  # of finished episodes, those already overwritten included
    open_moments: RunningMoments  # of the unfinished episode


def init(spec: EnvSpec, capacity: int, horizon: int) -> ReplayState:
    """Make an empty replay of ``capacity`` (C) transitions for windows of ``horizon`` (H) states.

    Of an episode longer than the capacity the last C transitions are kept.

    Raises:
        ValueError: the horizon is below 2, or a window does not fit the capacity (C >= H is needed and enough:
            a start that is still stored has all later rows of its window stored).
    """
    if horizon < 2:
        raise ValueError(f"horizon is {horizon}; a window needs at least 2 states")
    if not horizon <= capacity <= MAX_ROWS:
        raise ValueError(f"replay capacity is {capacity}; allowed is from horizon ({horizon}) to {MAX_ROWS}")
    return ReplayState(
        observations=jnp.zeros((capacity, spec.observation_size), jnp.float32),
        actions=jnp.zeros((capacity, spec.action_size), jnp.float32),
        rewards=jnp.zeros(capacity, jnp.float32),
        terminals=jnp.zeros(capacity, jnp.float32),
        steps=jnp.zeros(capacity, jnp.int32),
        total=jnp.zeros((), jnp.int32),
        starts=jnp.zeros(capacity, jnp.int32),
        head=jnp.zeros((), jnp.int32),
        tail=jnp.zeros((), jnp.int32),
        open_length=jnp.zeros((), jnp.int32),
        moments=normaliser.init(spec),
        open_moments=normaliser.init(spec),
    )


def add(state: ReplayState, chunk: Transitions, horizon: int) -> ReplayState:
    """Append the valid rows of a chunk ``[T, ...]``; the work is O(T), whatever the capacity.

    A row that is both terminal and truncated counts as terminal. ``horizon`` (H, static) must be the same in
    every call. Statistics are refreshed when an episode ends, as in the official code.

    Raises:
        ValueError: the chunk is longer than the capacity.
    """
    capacity, length = state.rewards.shape[0], chunk.rewards.shape[0]
    rows = (length,)
    chex.assert_shape(chunk.observations, (*rows, state.observations.shape[1]), custom_message="observations")
    chex.assert_shape(chunk.actions, (*rows, state.actions.shape[1]), custom_message="actions")
    scalars = [chunk.rewards, chunk.terminals, chunk.truncations, chunk.valid]
    chex.assert_shape(scalars, rows, custom_message="rewards, terminals, truncations, valid")
    if length > capacity:
        raise ValueError(f"a chunk of {length} transitions does not fit a replay of {capacity}")
    chunk = _as_float32(chunk)
    oldest = jnp.maximum(state.total + chunk.valid.sum(dtype=jnp.int32) - capacity, 0)  # the oldest row still stored

    def add_one(books: _Bookkeeping, row: Transitions) -> tuple[_Bookkeeping, tuple[Array, Array]]:
        return _account(books, row, oldest, horizon), (books.tail + books.open_length, books.open_length)

    # The scan carries no ring: XLA copies a ring that is read and written in one loop, which is O(C).
    books, (positions, steps) = jax.lax.scan(add_one, _books_of(state), chunk)
    written = _write_rows(state, chunk, positions, steps)
    return written.replace(
        total=books.total,
        head=state.head + _count_fallen(state, written.starts, oldest, length) + books.fallen,
        tail=books.tail,
        open_length=books.open_length,
        moments=books.moments,
        open_moments=books.open_moments,
    )


def num_windows(state: ReplayState) -> Array:
    """Return the number of windows to draw from, ``[] int32``. Sampling is meaningless while the number is 0."""
    return state.tail - state.head


def uncovered(state: ReplayState, horizon: int) -> tuple[Array, Array]:
    """Count the stored transitions of finished episodes that no window holds, and all of them: ``[] int32`` each.

    ``horizon`` is the one given to `add`. The work is O(C): for reports, not for every step.
    """
    capacity = state.rewards.shape[0]
    stored = jnp.minimum(state.total, capacity)
    positions = state.head + jnp.arange(capacity, dtype=jnp.int32)
    starts = state.starts[positions % capacity]
    ends_at = state.terminals[starts % capacity] > 0
    ends_behind = state.terminals[(starts + 1) % capacity] > 0
    # The windows of an episode start one behind the other: each adds its first transition, the last one also the rest.
    rest = jnp.where(ends_at, 1, jnp.where(ends_behind, 2, horizon)).astype(jnp.int32)
    another = (positions + 1 < state.tail) & (jnp.roll(starts, -1) == starts + 1)
    covered = jnp.where(positions < state.tail, jnp.where(another, 1, rest), 0).sum(dtype=jnp.int32)
    finished = jnp.maximum(stored - state.open_length, 0)
    return finished - covered, finished


def sample(
    state: ReplayState, key: Array, batch: int, horizon: int, recent: int = 0, recent_windows: int = 1, history: int = 0
) -> Segment:
    """Draw windows ``[B, H]`` in raw units, uniform over window starts, with replacement.

    The first ``recent`` windows come from the newest ``recent_windows`` starts only (from all, where there are fewer).

    A window that runs past the end of a terminated episode is padded by the last stored state and action,
    terminal 1, reward 0, and the last row number. ``horizon`` may be less than the one given to `add`, not
    more. With ``num_windows(state) == 0`` the result is meaningless (traced code cannot raise).

    With a ``history`` the same windows have ``history`` more steps in front, ``[B, history + H]``, as those of
    :func:`sample_contexts`, and ``observed``, which is False for steps that pad the front.
    """
    first = _draw_starts(state, key, batch, recent, recent_windows)
    windows = _read_windows(state, first, horizon)
    if history == 0:
        return windows
    before = jax.tree.map(lambda x: x[:, :-1], _read_contexts(state, first, history + 1))
    windows = windows.replace(observed=jnp.ones(windows.terminals.shape, bool))
    return jax.tree.map(lambda a, b: jnp.concatenate([a, b], axis=1), before, windows)


def sample_stream(
    state: ReplayState, key: Array, batch: int, length: int, recent: int = 0, recent_rows: int = 1
) -> Segment:
    """Draw ``length`` (H) stored transitions one behind the other, ``[B, H]`` raw, whatever episodes they are of.

    Uniform over first rows, with replacement, the open episode's included: every transition is as likely, and none is
    padding. ``begins`` marks the first steps of episodes, and of the stream. The first ``recent`` streams begin in the
    newest ``recent_rows`` first rows only. With fewer than ``length`` stored transitions the result is meaningless.
    """
    capacity = state.rewards.shape[0]
    stored = jnp.minimum(state.total, capacity)
    firsts = jnp.maximum(stored - length + 1, 1)
    least = jnp.where(jnp.arange(batch) < recent, jnp.maximum(firsts - recent_rows, 0), 0).astype(jnp.int32)
    first = state.total - stored + jax.random.randint(key, (batch,), least, firsts, jnp.int32)
    rows = first[:, None] + jnp.arange(length, dtype=jnp.int32)[None, :]
    slots = rows % capacity
    return Segment(
        observations=state.observations[slots],
        actions=state.actions[slots],
        rewards=state.rewards[slots],
        terminals=state.terminals[slots],
        rows=rows,
        begins=(state.steps[slots] == 0).at[:, 0].set(True),
    )


def _draw_starts(state: ReplayState, key: Array, batch: int, recent: int = 0, recent_windows: int = 1) -> Array:
    """Draw the rows ``[B]`` at which windows begin, as described in :func:`sample`."""
    windows = jnp.maximum(num_windows(state), 1)
    least = jnp.where(jnp.arange(batch) < recent, jnp.maximum(windows - recent_windows, 0), 0).astype(jnp.int32)
    position = state.head + jax.random.randint(key, (batch,), least, windows, jnp.int32)
    return state.starts[position % state.rewards.shape[0]]


def draw_padded_actions(state: ReplayState, key: Array, windows: Segment) -> Segment:
    """Replace the actions behind the terminals of windows ``[B, H]`` by consecutive stored ones from a random row.

    A repeated last action would tell a denoiser, which sees all actions of a window, when the episode ends; imagined
    actions never repeat.
    """
    batch, horizon = windows.terminals.shape
    capacity = state.rewards.shape[0]
    stored = jnp.minimum(state.total, capacity)
    steps = jnp.arange(horizon, dtype=jnp.int32)
    first = jax.random.randint(key, (batch, 1), 0, jnp.maximum(stored, 1), jnp.int32)
    rows = state.total - stored + (first + steps[None, :]) % jnp.maximum(stored, 1)
    padded = happened(windows.terminals) == 0  # the action of the terminal step was taken
    actions = jnp.where(padded[..., None], state.actions[rows % capacity], windows.actions)
    return windows.replace(actions=actions)


def sample_contexts(state: ReplayState, key: Array, batch: int, length: int = 1) -> Segment:
    """Draw first states of windows as `sample` does, each with the steps before: ``Segment [B, length]``.

    With length 1 these are the paper's initial states. Where fewer than ``length`` steps of the episode are stored, the
    first stored step is repeated in front with action, reward and terminal 0; ``observed`` is False for the repeated
    steps.
    """
    return _read_contexts(state, _draw_starts(state, key, batch), length)


def _read_contexts(state: ReplayState, last: Array, length: int) -> Segment:
    """Read the ``length`` steps up to rows ``last [B]``, as described in :func:`sample_contexts`."""
    capacity, last = state.rewards.shape[0], last[:, None]
    stored = last - jnp.maximum(state.total - capacity, 0)
    begin = last - jnp.minimum(state.steps[last % capacity], stored)
    rows = last - jnp.arange(length - 1, -1, -1, dtype=jnp.int32)[None, :]
    observed = rows >= begin
    rows = jnp.maximum(rows, begin)
    slots = rows % capacity
    return Segment(
        observations=state.observations[slots],
        actions=jnp.where(observed[..., None], state.actions[slots], jnp.float32(0.0)),
        rewards=jnp.where(observed, state.rewards[slots], jnp.float32(0.0)),
        terminals=jnp.where(observed, state.terminals[slots], jnp.float32(0.0)),
        rows=rows,
        observed=observed,
    )


@flax.struct.dataclass
class _Bookkeeping:
    """Counters and statistics that change with every transition; the rings are written once per chunk."""

    total: Array
    tail: Array
    fallen: Array  # [] int32, starts whose rows were overwritten before their episode had ended
    open_length: Array
    moments: RunningMoments
    open_moments: RunningMoments


def _books_of(state: ReplayState) -> _Bookkeeping:
    return _Bookkeeping(
        total=state.total,
        tail=state.tail,
        fallen=jnp.zeros((), jnp.int32),
        open_length=state.open_length,
        moments=state.moments,
        open_moments=state.open_moments,
    )


def _as_float32(chunk: Transitions) -> Transitions:
    return Transitions(
        observations=chunk.observations.astype(jnp.float32),
        actions=chunk.actions.astype(jnp.float32),
        rewards=chunk.rewards.astype(jnp.float32),
        terminals=chunk.terminals.astype(jnp.float32),
        truncations=chunk.truncations.astype(jnp.float32),
        valid=chunk.valid.astype(bool),
    )


def _account(books: _Bookkeeping, row: Transitions, oldest: Array, horizon: int) -> _Bookkeeping:
    """Count one transition (the leaves of ``row`` have no T axis), or change nothing where the row is invalid."""
    total = books.total + row.valid.astype(jnp.int32)
    length = books.open_length + row.valid.astype(jnp.int32)
    open_moments = _select(
        row.valid,
        normaliser.add_transition(books.open_moments, row.observations, row.actions, row.rewards, row.terminals),
        books.open_moments,
    )
    terminal = row.valid & (row.terminals > 0)
    ended = terminal | (row.valid & (row.truncations > 0))
    # A terminated episode of length L has starts 0 .. L - 2 and its windows are padded past the end; a truncated
    # one has starts 0 .. L - H: what came after its last state is not known.
    # DEVIATION from the official code, which has no window of an episode that ends at its first step: such an end is
    # then never learnt, and never imagined. Here that one step begins a window, which is padded like the others.
    of_ended = jnp.maximum(length - 1, 1)
    new_starts = jnp.maximum(jnp.where(terminal, of_ended, length - horizon + 1), 0)
    new_starts = jnp.where(ended, new_starts, 0)
    # Of an episode as long as the ring, the first starts are gone before they were ever counted.
    first_row = total - length
    return _Bookkeeping(
        total=total,
        tail=books.tail + new_starts,
        fallen=books.fallen + jnp.clip(oldest - first_row, 0, new_starts),
        open_length=jnp.where(ended, 0, length),
        moments=_select(ended, normaliser.merge(books.moments, open_moments), books.moments),
        open_moments=_select(ended, jax.tree.map(jnp.zeros_like, open_moments), open_moments),
    )


def _count_fallen(before: ReplayState, starts: Array, oldest: Array, length: int) -> Array:
    """Count the starts in the queue that a chunk of ``length`` (T) rows overwrites: at most T, from the front.

    ``starts`` is the queue after the chunk was written: reading the one before would make XLA copy it. A place
    that now holds one of the new rows was taken from a start that is gone, since others are never overwritten.
    """
    positions = before.head + jnp.arange(length, dtype=jnp.int32)
    rows = starts[positions % starts.shape[0]]
    gone = (rows < oldest) | (rows >= before.total)
    return ((positions < before.tail) & gone).sum(dtype=jnp.int32)


def _write_rows(state: ReplayState, chunk: Transitions, positions: Array, steps: Array) -> ReplayState:
    """Write the chunk to the ring and its rows to their ``positions [T]`` in the queue of starts.

    ``steps [T]`` are those of the episodes.
    """
    capacity, length = state.rewards.shape[0], chunk.rewards.shape[0]
    offsets = jnp.arange(length, dtype=jnp.int32)
    rows = state.total + offsets
    # Rows that do not count go to slots that do not exist, each to its own so that slots stay unique.
    nowhere = capacity + offsets
    slots = jnp.where(chunk.valid, rows % capacity, nowhere)
    # The last rows of an episode are no starts: later rows of the same chunk get their places in the queue.
    unused = jnp.full(length, MAX_ROWS, jnp.int32)
    later = jnp.where(chunk.valid, positions, unused)
    least_later = jnp.append(jax.lax.cummin(later, reverse=True)[1:], unused[:1])
    queue_slots = jnp.where(chunk.valid & (positions < least_later), positions % capacity, nowhere)

    def write(ring: Array, values: Array, where: Array) -> Array:
        return ring.at[where].set(values, mode="drop", unique_indices=True)

    return state.replace(
        observations=write(state.observations, chunk.observations, slots),
        actions=write(state.actions, chunk.actions, slots),
        rewards=write(state.rewards, chunk.rewards, slots),
        terminals=write(state.terminals, chunk.terminals, slots),
        steps=write(state.steps, steps, slots),
        starts=write(state.starts, rows, queue_slots),
    )


def _select(condition: Array, if_true: RunningMoments, if_false: RunningMoments) -> RunningMoments:
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), if_true, if_false)


def _read_windows(state: ReplayState, first: Array, horizon: int) -> Segment:
    """Read the windows ``[B, H]`` that begin at rows ``first [B]``."""
    capacity = state.rewards.shape[0]
    steps = jnp.arange(horizon, dtype=jnp.int32)
    rows = first[:, None] + steps[None, :]
    ends = state.terminals[rows % capacity] > 0  # [B, H]
    # The first terminal ends the window; the rows behind it belong to another episode.
    last_step = jnp.where(ends.any(axis=1), jnp.argmax(ends, axis=1).astype(jnp.int32), horizon - 1)
    padded = steps[None, :] > last_step[:, None]
    rows = jnp.minimum(rows, (first + last_step)[:, None])
    slots = rows % capacity
    rewards = state.rewards[slots]
    return Segment(
        observations=state.observations[slots],
        actions=state.actions[slots],
        rewards=jnp.where(padded, jnp.zeros_like(rewards), rewards),
        terminals=state.terminals[slots],
        rows=rows,
    )


def read_steps(state: ReplayState, rows: Array) -> tuple[Segment, Segment, Array]:
    """Read transitions ``[B]`` of stored rows, the transitions behind them, and whether these are of the same episode.

    The first two have the fields ``[B, ...]``; those behind the newest transition are meaningless.
    """
    capacity = state.rewards.shape[0]

    def read(rows: Array) -> Segment:
        slots = rows % capacity
        return Segment(
            state.observations[slots], state.actions[slots], state.rewards[slots], state.terminals[slots], rows=rows
        )

    goes_on = state.steps[(rows + 1) % capacity] == state.steps[rows % capacity] + 1
    return read(rows), read(rows + 1), goes_on & (rows + 1 < state.total)
