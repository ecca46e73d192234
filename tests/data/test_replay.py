"""The replay against a plain Python oracle that lists every window, and the draw against chi-square."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from polygrad_jax.config import EnvSpec
from polygrad_jax.data import normaliser, replay
from polygrad_jax.types import Transitions

SPEC = EnvSpec(observation_size=3, action_size=2)
CHUNK = 4


class Oracle:
    """Every transition ever added, and the rules of the windows written out."""

    def __init__(self, capacity: int, horizon: int):
        self.capacity, self.horizon = capacity, horizon
        self.rows, self.episodes, self.open_start = [], [], 0

    def add(self, row: dict) -> None:
        self.rows.append(row)
        if row["terminal"] or row["truncated"]:
            self.episodes.append((self.open_start, len(self.rows), bool(row["terminal"])))
            self.open_start = len(self.rows)

    def starts(self) -> list[int]:
        oldest = len(self.rows) - self.capacity
        found = []
        for begin, end, terminated in self.episodes:
            last = max(end - 2, begin) if terminated else end - self.horizon
            found += [start for start in range(begin, last + 1) if start >= oldest]
        return found

    def uncovered(self) -> tuple[int, int]:
        oldest = len(self.rows) - self.capacity
        stored = {row for begin, end, _ in self.episodes for row in range(begin, end) if row >= oldest}
        covered = {row for start in self.starts() for row in self.window(start)["rows"]}
        return len(stored - covered), len(stored)

    def window(self, start: int) -> dict:
        end = next(end for begin, end, _ in self.episodes if begin <= start < end)
        rows = [min(start + k, end - 1) for k in range(self.horizon)]
        padded = [start + k > end - 1 for k in range(self.horizon)]
        return {
            "rows": rows,
            "observations": [self.rows[r]["observation"] for r in rows],
            "actions": [self.rows[r]["action"] for r in rows],
            "rewards": [0.0 if pad else self.rows[r]["reward"] for r, pad in zip(rows, padded, strict=True)],
            "terminals": [float(self.rows[r]["terminal"]) for r in rows],
        }


def random_rows(rng: np.random.Generator, count: int, longest: int) -> list[dict]:
    rows = []
    while len(rows) < count:
        length, kind = int(rng.integers(1, longest + 1)), rng.integers(3)  # terminal, truncated, both at once
        for k in range(length):
            last = k == length - 1
            rows.append(
                {
                    "observation": rng.normal(size=3).astype(np.float32),
                    "action": rng.normal(size=2).astype(np.float32),
                    "reward": np.float32(rng.normal()),
                    "terminal": last and kind != 1,
                    "truncated": last and kind != 0,
                }
            )
    return rows[:count]


def chunk_of(rows: list[dict], length: int) -> Transitions:
    """Padded with garbage to ``length`` rows."""
    garbage = {"observation": np.full(3, 7e7), "action": np.full(2, 7e7), "reward": 7e7, "terminal": 1, "truncated": 1}
    padded = rows + [garbage] * (length - len(rows))
    return Transitions(
        observations=np.stack([r["observation"] for r in padded]).astype(np.float32),
        actions=np.stack([r["action"] for r in padded]).astype(np.float32),
        rewards=np.asarray([r["reward"] for r in padded], np.float32),
        terminals=np.asarray([r["terminal"] for r in padded], np.float32),
        truncations=np.asarray([r["truncated"] for r in padded], np.float32),
        valid=np.arange(length) < len(rows),
    )


@functools.partial(jax.jit, static_argnums=2, donate_argnums=0)
def add(state, chunk, horizon):
    return replay.add(state, chunk, horizon)


@functools.partial(jax.jit, static_argnums=(2, 3))
def sample(state, key, batch, horizon):
    return replay.sample(state, key, batch, horizon)


uncovered = jax.jit(replay.uncovered, static_argnums=1)
read_windows = jax.jit(replay._read_windows, static_argnums=2)
sample_contexts = jax.jit(replay.sample_contexts, static_argnums=(2, 3))


def live_starts(state: replay.ReplayState) -> np.ndarray:
    positions = np.arange(int(state.head), int(state.tail))
    return np.asarray(state.starts)[positions % state.starts.shape[0]]


def filled(rows: list[dict], capacity: int, horizon: int, chunk: int = CHUNK) -> replay.ReplayState:
    state = replay.init(SPEC, capacity, horizon)
    for first in range(0, len(rows), chunk):
        state = add(state, chunk_of(rows[first : first + chunk], chunk), horizon)
    return state


@pytest.mark.parametrize(
    ("capacity", "horizon", "longest", "chunk"),
    [
        (40, 5, 12, 4),  # the ring wraps every few episodes
        (40, 5, 3, 8),  # episodes shorter than a window; several end in one chunk
        (24, 10, 60, 4),  # episodes longer than the ring
        (16, 5, 40, 16),  # a chunk as long as the ring
        (5, 5, 9, 5),  # the smallest ring
        (37, 2, 9, 3),
        (2000, 7, 30, 6),  # never full
    ],
)
def test_windows_equal_the_oracle(capacity, horizon, longest, chunk):
    rng = np.random.default_rng(capacity + horizon + longest)
    oracle, state = Oracle(capacity, horizon), replay.init(SPEC, capacity, horizon)
    rows = random_rows(rng, 500, longest)
    done = 0
    while done < len(rows):
        taken = rows[done : done + int(rng.integers(0, chunk + 1))]
        done += len(taken)
        for row in taken:
            oracle.add(row)
        state = add(state, chunk_of(taken, chunk), horizon)
        expected = oracle.starts()
        np.testing.assert_array_equal(live_starts(state), expected)
        assert int(replay.num_windows(state)) == len(expected)
        assert int(state.total) == done
        assert tuple(map(int, uncovered(state, horizon))) == oracle.uncovered()
        if expected:
            start = int(rng.choice(expected))
            got, want = read_windows(state, jnp.asarray([start], jnp.int32), horizon), oracle.window(start)
            for name, value in want.items():
                np.testing.assert_array_equal(np.asarray(getattr(got, name))[0], np.asarray(value, np.float32))


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([(8, "truncated")] * 3, (24, 24)),  # a limit below the horizon of 10: no window at all
        ([(8, "truncated"), (3, "terminal"), (1, "terminal"), (1, "truncated")], (9, 13)),
        ([(12, "truncated"), (9, "truncated")], (9, 21)),
        ([(12, "truncated"), (9, "none")], (0, 12)),  # the unfinished episode does not count
        ([(9, "none")], (0, 0)),
    ],
)
def test_what_no_window_covers_by_hand(rows, expected):
    state = filled([row for length, end in rows for row in episode(length, end)], 40, 10)
    assert tuple(map(int, uncovered(state, 10))) == expected


def test_sampled_windows_are_whole():
    capacity, horizon = 300, 10
    rows = random_rows(np.random.default_rng(3), 1000, 40)
    oracle = Oracle(capacity, horizon)
    for row in rows:
        oracle.add(row)
    got = jax.device_get(sample(filled(rows, capacity, horizon), jax.random.key(0), 256, horizon))
    assert got.observations.shape == (256, horizon, 3) and got.actions.shape == (256, horizon, 2)
    for b in range(256):
        for name, value in oracle.window(int(got.rows[b, 0])).items():
            np.testing.assert_array_equal(np.asarray(getattr(got, name))[b], np.asarray(value, np.float32))


def episode(length: int, end: str, offset: float = 0.0) -> list[dict]:
    return [
        {
            "observation": np.full(3, offset + k, np.float32),
            "action": np.full(2, -offset - k, np.float32),
            "reward": np.float32(1.0),
            "terminal": end == "terminal" and k == length - 1,
            "truncated": end == "truncated" and k == length - 1,
        }
        for k in range(length)
    ]


def test_padding_by_hand():
    # A terminated episode of 4 with H = 6: starts 0, 1, 2. From 2 the rows are 2, 3, then 3 repeated.
    state = filled(episode(4, "terminal"), 20, 6)
    assert live_starts(state).tolist() == [0, 1, 2]
    got = read_windows(state, jnp.asarray([2], jnp.int32), 6)
    assert got.rows[0].tolist() == [2, 3, 3, 3, 3, 3]
    assert got.observations[0, :, 0].tolist() == [2, 3, 3, 3, 3, 3]
    assert got.actions[0, :, 0].tolist() == [-2, -3, -3, -3, -3, -3]
    assert got.rewards[0].tolist() == [1, 1, 0, 0, 0, 0]
    assert got.terminals[0].tolist() == [0, 1, 1, 1, 1, 1]


@pytest.mark.parametrize("chunk", [1, 3, CHUNK])
@pytest.mark.parametrize("horizon", [2, 6])
def test_an_episode_that_ends_at_its_first_step_is_a_window(horizon, chunk):
    """Starts of episodes of 1, 3 and 1 that end, one of 1 that a limit cuts, and one of 1: rows 0, 1, 2, 4 and 6.

    The window of row 0 is that row repeated, with its reward once.
    """
    rows = episode(1, "terminal") + episode(3, "terminal", 10.0) + episode(1, "terminal", 20.0)
    rows += episode(1, "truncated", 30.0) + episode(1, "terminal", 40.0)
    state = filled(rows, 20, horizon, chunk)
    assert live_starts(state).tolist() == [0, 1, 2, 4, 6]
    for start in (0, 4, 6):
        got = read_windows(state, jnp.asarray([start], jnp.int32), horizon)
        assert got.rows[0].tolist() == [start] * horizon
        assert got.rewards[0].tolist() == [1.0] + [0.0] * (horizon - 1)
        assert got.terminals[0].tolist() == [1.0] * horizon


@pytest.mark.parametrize("history", [1, 4])
def test_what_pads_the_front_has_not_ended(history):
    """Before an episode of one step stands nothing that happened: no terminal, no reward, no action, not observed.

    Of an episode of two steps the same; there the first step has not ended either way.
    """
    sample_windows = jax.jit(lambda state, key: replay.sample(state, key, 3, 6, history=history))
    for rows in (episode(1, "terminal", 5.0), episode(2, "terminal", 5.0)):
        state = filled(rows, 20, 6)
        with_history = sample_windows(state, jax.random.key(0))
        contexts = sample_contexts(state, jax.random.key(0), 3, history + 1)
        for got, last in ((with_history, -6), (contexts, -1)):
            before = jax.tree.map(lambda x, last=last: np.asarray(x)[:, :last], got)
            assert not before.observed.any() and not before.terminals.any() and not before.rewards.any()
            assert (before.observations == 5.0).all()
        drawn = jax.jit(replay.draw_padded_actions)(state, jax.random.key(1), with_history)
        real = slice(0, history + 1)  # the history, and the step that was taken
        np.testing.assert_array_equal(drawn.actions[:, real], with_history.actions[:, real])


def test_truncation_is_never_terminal_nor_padded():
    # A truncated episode of 8 with H = 6: starts 0, 1, 2 only, and no terminal anywhere.
    state = filled(episode(8, "truncated"), 20, 6)
    assert live_starts(state).tolist() == [0, 1, 2]
    got = sample(state, jax.random.key(1), 64, 6)
    assert float(got.terminals.max()) == 0.0
    np.testing.assert_array_equal(np.diff(got.rows, axis=1), np.ones((64, 5)))


def test_the_unfinished_episode_is_not_drawn_and_not_counted():
    state = filled(episode(8, "truncated") + episode(30, "none", 100.0), 100, 6)
    assert live_starts(state).tolist() == [0, 1, 2]
    assert int(state.moments.observations.count) == 8
    assert int(state.open_moments.observations.count) == 30
    state = filled(episode(8, "truncated") + episode(30, "terminal", 100.0), 100, 6)
    assert int(state.moments.observations.count) == 38
    assert int(state.open_moments.observations.count) == 0


def test_draws_are_uniform_over_window_starts():
    rows = random_rows(np.random.default_rng(5), 200, 25)
    state = filled(rows, 90, 6)
    starts = live_starts(state)
    draws = np.asarray(sample(state, jax.random.key(2), 60_000, 6).rows[:, 0])
    counts = np.asarray([(draws == start).sum() for start in starts])
    assert counts.sum() == 60_000
    assert stats.chisquare(counts).pvalue > 1e-3


@pytest.mark.parametrize(("recent", "newest"), [(20_000, 12), (60_000, 1), (20_000, 10_000)])
def test_recent_draws_are_uniform_over_the_newest_window_starts(recent, newest):
    """The first ``recent`` from the newest starts alone (all, where there are fewer), the others from all."""
    state = filled(random_rows(np.random.default_rng(5), 200, 25), 90, 6)
    starts = live_starts(state)
    drawn = jax.jit(replay.sample, static_argnums=(2, 3, 4, 5))(state, jax.random.key(2), 60_000, 6, recent, newest)
    rows = np.asarray(drawn.rows[:, 0])
    for part, allowed in ((rows[:recent], starts[-newest:]), (rows[recent:], starts)):
        counts = np.asarray([(part == start).sum() for start in allowed])
        assert counts.sum() == len(part)
        assert len(allowed) == 1 or not len(part) or stats.chisquare(counts).pvalue > 1e-3


sample_stream = jax.jit(replay.sample_stream, static_argnums=(2, 3, 4, 5))


@pytest.mark.parametrize(("count", "capacity"), [(200, 90), (60, 90), (6, 90)])
def test_streams_are_stored_rows_one_behind_the_other(count, capacity):
    """Over all ends, into the open episode; where one begins is marked, and where the stream does."""
    rows = random_rows(np.random.default_rng(5), count, 9)
    got = jax.tree.map(np.asarray, sample_stream(filled(rows, capacity, 2), jax.random.key(0), 5_000, 6, 0, 1))
    first = np.arange(max(count - capacity, 0), count - 5)
    assert set(got.rows[:, 0]) == set(first)
    assert len(first) == 1 or stats.chisquare([(got.rows[:, 0] == row).sum() for row in first]).pvalue > 1e-3
    np.testing.assert_array_equal(got.rows, got.rows[:, :1] + np.arange(6))
    begins = [True, *(row["terminal"] or row["truncated"] for row in rows[:-1])]
    for name in ("observation", "action", "reward", "terminal"):
        expected = np.asarray([row[name] for row in rows], np.float32)[got.rows]
        np.testing.assert_array_equal(getattr(got, f"{name}s"), expected, err_msg=name)
    np.testing.assert_array_equal(got.begins[:, 1:], np.asarray(begins)[got.rows[:, 1:]])
    assert got.begins[:, 0].all() and got.begins.any() and not got.begins.all()


@pytest.mark.parametrize("newest", [1, 12, 10_000])
def test_recent_streams_begin_in_the_newest_rows(newest):
    state = filled(random_rows(np.random.default_rng(5), 200, 25), 90, 6)
    drawn = np.asarray(sample_stream(state, jax.random.key(2), 4_000, 6, 3_000, newest).rows[:, 0])
    assert set(drawn[:3_000]) == set(range(max(195 - newest, 110), 195))
    assert set(drawn[3_000:]) == set(range(110, 195))


def test_drawn_actions_stand_only_behind_terminals_and_are_runs_of_stored_ones():
    """Each stored action is its row number; the ring of 90 holds the last 90 of 200 rows."""
    rows = random_rows(np.random.default_rng(8), 200, 9)
    for number, row in enumerate(rows):
        row["action"] = np.full(2, number, np.float32)
    state = filled(rows, 90, 6)
    windows = sample(state, jax.random.key(4), 4096, 6)
    drawn = jax.jit(replay.draw_padded_actions)(state, jax.random.key(5), windows)
    padded = np.asarray(windows.rows[:, 1:] == windows.rows[:, :-1])
    padded = np.concatenate([np.zeros((4096, 1), bool), padded], axis=1)
    assert 0.1 < padded.mean() < 0.9
    np.testing.assert_array_equal(drawn.actions[~padded], windows.actions[~padded])
    for name in ("observations", "rewards", "terminals"):
        np.testing.assert_array_equal(getattr(drawn, name), getattr(windows, name))
    taken = np.asarray(drawn.actions)[padded][:, 0]
    assert set(taken) == set(range(110, 200))
    both = padded[:, 1:] & padded[:, :-1]
    steps = np.diff(np.asarray(drawn.actions)[..., 0], axis=1)[both]
    assert set(steps) <= {1.0, -89.0} and (steps == 1.0).mean() > 0.95


def test_contexts_are_first_states_of_windows():
    state = filled(random_rows(np.random.default_rng(6), 120, 25), 90, 6)
    key = jax.random.key(3)
    windows, contexts = sample(state, key, 32, 6), sample_contexts(state, key, 32)
    assert contexts.observations.shape == (32, 1, 3)
    np.testing.assert_array_equal(contexts.observations, windows.observations[:, :1])
    np.testing.assert_array_equal(contexts.rows, windows.rows[:, :1])


@pytest.mark.parametrize(("capacity", "horizon", "longest"), [(90, 6, 25), (40, 5, 3), (24, 10, 60)])
def test_longer_contexts_end_where_imagining_begins(capacity, horizon, longest):
    """Every context against the list of all transitions: the steps before, down to the first that is still known."""
    rows, length = random_rows(np.random.default_rng(8), 300, longest), 7
    state, oracle = filled(rows, capacity, horizon), Oracle(capacity, horizon)
    for row in rows:
        oracle.add(row)
    key = jax.random.key(4)
    got = jax.device_get(sample_contexts(state, key, 64, length))
    np.testing.assert_array_equal(got.rows[:, -1:], sample_contexts(state, key, 64).rows)
    assert not got.observed.all() and got.observed[:, :-1].any()
    for b, last in enumerate(got.rows[:, -1]):
        begin = max(next(first for first, end, _ in oracle.episodes if first <= last < end), len(rows) - capacity)
        for k in range(length):
            row = last - length + 1 + k
            np.testing.assert_array_equal(got.observed[b, k], row >= begin)
            there = rows[max(row, begin)]
            assert got.rows[b, k] == max(row, begin)
            np.testing.assert_array_equal(got.observations[b, k], there["observation"])
            np.testing.assert_array_equal(got.actions[b, k], there["action"] if row >= begin else np.zeros(2))
            assert got.rewards[b, k] == (there["reward"] if row >= begin else 0.0)


@pytest.mark.parametrize(("capacity", "horizon", "longest"), [(90, 6, 25), (24, 10, 60)])
def test_windows_with_a_history_are_windows_behind_contexts(capacity, horizon, longest):
    state, key = filled(random_rows(np.random.default_rng(9), 300, longest), capacity, horizon), jax.random.key(5)
    got = jax.device_get(jax.jit(replay.sample, static_argnums=(2, 3, 4, 5, 6))(state, key, 64, horizon, 0, 1, 4))
    windows, contexts = jax.device_get((sample(state, key, 64, horizon), sample_contexts(state, key, 64, 5)))
    for name in ("observations", "actions", "rewards", "terminals", "rows"):
        np.testing.assert_array_equal(getattr(got, name)[:, 4:], getattr(windows, name))
        np.testing.assert_array_equal(getattr(got, name)[:, :4], getattr(contexts, name)[:, :4])
    np.testing.assert_array_equal(got.observed[:, :4], contexts.observed[:, :4])
    assert got.observed[:, 4:].all() and not got.observed.all()


def test_moments_are_those_of_finished_episodes():
    rows = random_rows(np.random.default_rng(7), 400, 30)
    rows = rows[: max(k for k, row in enumerate(rows) if row["terminal"] or row["truncated"]) + 1]
    state = filled(rows + episode(5, "none"), 50, 6)  # overwritten rows stay counted, padding never is
    got = normaliser.to_normaliser(state.moments)
    for name, key, size in (("observations", "observation", 3), ("actions", "action", 2), ("rewards", "reward", 1)):
        exact = np.stack([row[key] for row in rows]).astype(np.float64).reshape(len(rows), size)
        np.testing.assert_allclose(getattr(got, name).mean, exact.mean(0), rtol=1e-5, atol=1e-7)
        np.testing.assert_allclose(getattr(got, name).std, exact.std(0), rtol=1e-6)
    share = np.mean([row["terminal"] for row in rows])
    np.testing.assert_allclose(got.terminals.mean, [share], rtol=1e-6)


def test_sizes_that_cannot_work_are_refused():
    with pytest.raises(ValueError, match=r"capacity is 9; allowed is from horizon \(10\)"):
        replay.init(SPEC, 9, 10)
    with pytest.raises(ValueError, match="horizon is 1"):
        replay.init(SPEC, 9, 1)
    with pytest.raises(ValueError, match="a chunk of 8 transitions does not fit a replay of 6"):
        replay.add(replay.init(SPEC, 6, 3), chunk_of(episode(8, "none"), 8), 3)


def test_adding_copies_no_ring():
    """A donated ring is updated in place: the compiled program holds no copy of an array of C rows."""
    capacity = 123_457
    state = replay.init(SPEC, capacity, 10)
    program = add.lower(state, chunk_of(episode(4, "none"), 4), 10).compile().as_text()
    copies = [line for line in program.splitlines() if " copy(" in line and str(capacity) in line]
    assert not copies
