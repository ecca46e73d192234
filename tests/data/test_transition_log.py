"""Transitions and simulator states on the host, and the replay rebuilt from them bit for bit."""

import functools

import jax
import numpy as np
import pytest

from polygrad_jax.config import EnvSpec
from polygrad_jax.data import replay
from polygrad_jax.data.simulator_log import SimulatorLog
from polygrad_jax.data.transition_log import TransitionLog, TransitionLogError, TransitionRecord, checksum_of
from polygrad_jax.types import Transitions

FIELDS = ("observations", "actions", "rewards", "terminals", "truncations", "simulator_states")


def make_rows(count: int, seed: int = 0) -> TransitionRecord:
    rng = np.random.default_rng(seed)
    ends = rng.uniform(size=count)
    return TransitionRecord(
        observations=rng.normal(5, 1, size=(count, 3)).astype(np.float32),
        actions=rng.normal(size=(count, 2)).astype(np.float32),
        rewards=rng.normal(size=count).astype(np.float32),
        terminals=ends < 0.03,
        truncations=ends > 0.97,
        simulator_states=rng.normal(size=(count, 4)),
    )


def append(log: TransitionLog, rows: TransitionRecord) -> None:
    log.append(*(getattr(rows, name) for name in FIELDS))


def assert_equal(a: TransitionRecord, b: TransitionRecord) -> None:
    for name in FIELDS:
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name))
        assert getattr(a, name).dtype == getattr(b, name).dtype


def test_what_is_flushed_is_loaded(tmp_path):
    rows, log = make_rows(100), TransitionLog(tmp_path / "replay")
    for first in range(0, 100, 4):
        append(log, rows[first : first + 4])
        if first in (20, 60):
            log.flush(first)  # leaves the newest four waiting
    assert (log.flushed_rows, log.total_rows) == (60, 100)
    assert_equal(TransitionLog(tmp_path / "replay").load(60), rows[:60])
    assert_equal(log.load(50), rows[:50])
    log.flush()
    log.flush()  # nothing left: nothing written
    assert [path.name for path in sorted((tmp_path / "replay").iterdir())] == [
        "transitions_000000000000_000000000020.npz",
        "transitions_000000000020_000000000060.npz",
        "transitions_000000000060_000000000100.npz",
    ]
    assert_equal(log.load(100), rows)


def test_truncation_goes_back_to_a_row(tmp_path):
    rows, log = make_rows(90), TransitionLog(tmp_path)
    for first in range(0, 90, 30):
        append(log, rows[first : first + 30])
        log.flush()
    append(log, rows[:5])  # waiting rows are dropped too
    log.truncate(45)
    assert (log.flushed_rows, log.total_rows) == (45, 45)
    again = make_rows(30, seed=1)
    append(log, again)
    log.flush()
    got = TransitionLog(tmp_path).load(75)
    assert_equal(got[:45], rows[:45])
    assert_equal(got[45:], again)


def test_a_killed_write_leaves_nothing(tmp_path):
    rows, log = make_rows(40), TransitionLog(tmp_path)
    append(log, rows)
    log.flush(30)
    (tmp_path / "transitions_000000000030_000000000040.npz.tmp").write_bytes(b"half a fi")
    reopened = TransitionLog(tmp_path)
    assert reopened.flushed_rows == 30
    assert not list(tmp_path.glob("*.tmp"))


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty", "renamed"])
def test_a_damaged_shard_is_named_and_needed_rows_decide(tmp_path, damage):
    rows, log = make_rows(400), TransitionLog(tmp_path)
    append(log, rows)
    log.flush(300)
    log.flush(400)
    last = tmp_path / "transitions_000000000300_000000000400.npz"
    data = bytearray(last.read_bytes())
    if damage == "cut":
        last.write_bytes(data[: len(data) // 2])
    elif damage == "flipped":
        data[len(data) // 2] ^= 0x40
        last.write_bytes(data)
    elif damage == "empty":
        last.write_bytes(b"")
    else:
        last.rename(tmp_path / "transitions_000000000300_000000000401.npz")
    log = TransitionLog(tmp_path)
    with pytest.raises(TransitionLogError, match="transitions_000000000300.*(damaged|its name says)"):
        log.load(400)
    assert_equal(log.load(300), rows[:300])
    log.truncate(300)  # an earlier checkpoint does not need it
    assert_equal(TransitionLog(tmp_path).load(300), rows[:300])


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("observations", lambda a: a.astype(np.float64)),
        ("observations", lambda a: a[..., None]),
        ("actions", lambda a: a[:-1]),
        ("rewards", lambda a: a[0]),
        ("terminals", lambda a: a.astype(np.float32)),
    ],
)
def test_arrays_of_another_form_are_refused(tmp_path, name, change):
    log = TransitionLog(tmp_path)
    append(log, make_rows(10))
    log.flush()
    (path,) = tmp_path.iterdir()
    with np.load(path) as stored:
        arrays = dict(stored)
    np.savez(path, **arrays | {name: change(arrays[name])})
    with pytest.raises(TransitionLogError, match=f"is damaged .*{name}"):
        TransitionLog(tmp_path).load(10)


@pytest.mark.parametrize("name", ["a_b", "000000000010", "000000000010_000000000010", "\u00b2_\u00b3"])
def test_what_is_named_like_no_shard_is_refused(tmp_path, name):
    (tmp_path / f"transitions_{name}.npz").write_bytes(b"")
    with pytest.raises(TransitionLogError, match="is no shard"):
        TransitionLog(tmp_path)


def test_shards_of_several_tasks_are_refused(tmp_path):
    rows, other = make_rows(10), make_rows(10)
    log = TransitionLog(tmp_path)
    append(log, rows)
    log.flush()
    log.append(other.observations[:, :2], *(getattr(other, name) for name in FIELDS[1:]))
    log.flush()
    with pytest.raises(TransitionLogError, match=r"several sizes \(O, A\): \[\(2, 2\), \(3, 2\)\]"):
        log.load(20)


def test_the_checksum_is_that_of_the_rows_however_they_are_shared_out(tmp_path):
    rows, sums = make_rows(60), []
    for number, shards in enumerate(((60,), (10, 35, 60), (1, 2, 60))):
        log = TransitionLog(tmp_path / str(number))
        append(log, rows)
        for end in shards:
            log.flush(end)
        sums.append(log.checksum)
    assert sums == [checksum_of(rows)] * 3 != [checksum_of(make_rows(60, seed=1))] * 3
    log.truncate(30)
    assert log.checksum is None and TransitionLog(tmp_path / "0").checksum is None
    log.truncate(0)
    append(log, rows)
    log.flush()
    assert log.checksum == checksum_of(rows)


def test_a_gap_and_too_few_rows_are_refused(tmp_path):
    log = TransitionLog(tmp_path)
    for seed in range(3):
        append(log, make_rows(10, seed))
        log.flush()
    with pytest.raises(TransitionLogError, match="holds rows 0 to 30; 31 were asked for"):
        log.load(31)
    with pytest.raises(TransitionLogError, match="cannot keep 31"):
        log.truncate(31)
    (tmp_path / "transitions_000000000010_000000000020.npz").unlink()
    with pytest.raises(TransitionLogError, match="lacks rows 10 to 20"):
        TransitionLog(tmp_path)


def test_a_killed_truncation_loses_nothing(tmp_path):
    rows, log = make_rows(30), TransitionLog(tmp_path)
    append(log, rows)
    log.flush()
    whole = (tmp_path / "transitions_000000000000_000000000030.npz").read_bytes()
    log.truncate(12)
    (tmp_path / "transitions_000000000000_000000000030.npz").write_bytes(whole)  # as if killed before the removal
    log = TransitionLog(tmp_path)
    assert log.flushed_rows == 30
    log.truncate(12)
    assert_equal(TransitionLog(tmp_path).load(12), rows[:12])


def test_arrays_that_do_not_fit_are_refused(tmp_path):
    log, rows = TransitionLog(tmp_path), make_rows(4)
    with pytest.raises(ValueError, match=r"actions has shape \(3, 2\)"):
        log.append(rows.observations, rows.actions[:3], rows.rewards, rows.terminals, rows.truncations)


@functools.partial(jax.jit, static_argnums=2, donate_argnums=0)
def add(state, chunk, horizon):
    return replay.add(state, chunk, horizon)


def feed(rows: TransitionRecord, chunk: int) -> replay.ReplayState:
    state = replay.init(EnvSpec(3, 2), 256, 5)
    for first in range(0, len(rows), chunk):
        part = rows[first : first + chunk]
        missing = chunk - len(part)

        def padded(array, missing=missing):
            return np.pad(array.astype(np.float32), [(0, missing)] + [(0, 0)] * (array.ndim - 1))

        transitions = Transitions(
            observations=padded(part.observations),
            actions=padded(part.actions),
            rewards=padded(part.rewards),
            terminals=padded(part.terminals),
            truncations=padded(part.truncations),
            valid=np.arange(chunk) < len(part),
        )
        state = add(state, transitions, 5)
    return state


@pytest.mark.parametrize("chunk", [4, 64])
def test_the_rebuilt_replay_is_the_same_bit_for_bit(tmp_path, chunk):
    """Also by larger chunks than it was collected in, since everything is accounted per transition."""
    rows, log = make_rows(1002), TransitionLog(tmp_path)
    append(log, rows)
    log.flush()
    live, rebuilt = feed(rows, 4), feed(TransitionLog(tmp_path).load(1002), chunk)
    stored = np.arange(int(live.head), int(live.tail)) % 256
    np.testing.assert_array_equal(np.asarray(live.starts)[stored], np.asarray(rebuilt.starts)[stored])
    for name in ("observations", "actions", "rewards", "terminals", "steps", "total", "head", "tail", "open_length"):
        np.testing.assert_array_equal(getattr(live, name), getattr(rebuilt, name))
    for a, b in zip(
        jax.tree.leaves((live.moments, live.open_moments)),
        jax.tree.leaves((rebuilt.moments, rebuilt.open_moments)),
        strict=True,
    ):
        np.testing.assert_array_equal(a, b)
    if chunk == 4:
        np.testing.assert_array_equal(live.starts, rebuilt.starts)


@pytest.mark.parametrize("capacity", [7, 5000, 20_000])
def test_simulator_states_by_row(capacity):
    log, all_states = SimulatorLog(capacity, 3), np.random.default_rng(0).normal(size=(12_000, 3))
    done = 0
    for count in [1, 4, 4095, 4, 300, 5000, 2000, 3]:
        log.append(all_states[done : done + count])
        done += count
        rows = np.arange(max(0, done - capacity), done)
        np.testing.assert_array_equal(log.get(rows), all_states[rows])
    assert log.total == done
    assert log.get(np.full((2, 3), done - 1)).shape == (2, 3, 3)
    with pytest.raises(IndexError, match=f"kept are {max(0, done - capacity)} to {done - 1}"):
        log.get(np.asarray([done]))
    if capacity < done:
        with pytest.raises(IndexError):
            log.get(np.asarray([done - capacity - 1]))
    with pytest.raises(ValueError, match=r"allowed is \[T, 3\]"):
        log.append(np.zeros((2, 4)))
