"""The three records of a run: valid, in step, and cut back to a checkpoint without a trace."""

import csv
import errno
import itertools
import json
import os
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from events import read_events

from polygrad_jax.config import ConfigError
from polygrad_jax.runs.metrics_log import Histogram, MetricsLog, append_csv_row, event_files, histogram_of, read_rows
from polygrad_jax.runs.saved_run import read_evaluations

X = "[x: env steps]"


def steps_and_values(folder: Path, tag: str) -> list[tuple[int, float]]:
    return [(e.step, e.value) for e in read_events(folder).Scalars(f"{tag} {X}")]


def snapshot(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.iterdir()}


def test_a_row_has_the_numbers_of_its_step(tmp_path):
    log = MetricsLog(tmp_path)
    # 0.1 in float32 is 0.100000001490116...: the row keeps every bit of it.
    log.write(4, {"loss": np.float32(0.1), "count": 3, "on/device": jnp.ones((1,))})
    (row,) = read_rows(tmp_path)
    assert row == {"env_steps": 4, "loss": 0.10000000149011612, "count": 3.0, "on/device": 1.0}
    assert steps_and_values(tmp_path, "loss") == [(4, 0.10000000149011612)]


def test_every_chart_says_what_its_x_axis_is(tmp_path):
    log = MetricsLog(tmp_path)
    log.write(1, {"a": 1.0}, {"h": np.arange(3.0)})
    log.write_evaluation(1, {"return": 2.0})
    tags = read_events(tmp_path).Tags()
    assert sorted(tags["scalars"]) == [f"a {X}", f"evaluation/return {X}"]
    assert tags["histograms"] == [f"h {X}"]
    assert sorted(tags["tensors"]) == ["custom_scalars__config__", "x-axis/text_summary"]


def test_histogram_by_hand(tmp_path):
    # Two bins from 0 to 4: [0, 2) holds 0, 1, 1; [2, 4] holds 4. The infinite one is left out.
    counted = histogram_of(np.array([0.0, 1.0, 1.0, 4.0, np.inf]), bins=2)
    np.testing.assert_array_equal(counted.edges, [0.0, 2.0, 4.0])
    np.testing.assert_array_equal(counted.counts, [3, 1])

    log = MetricsLog(tmp_path)
    log.write(5, {}, {"h": Histogram(np.array([0.0, 2.0, 4.0]), np.array([3, 1]))})
    assert read_rows(tmp_path) == [{"env_steps": 5, "h": {"edges": [0.0, 2.0, 4.0], "counts": [3, 1]}}]
    (event,) = read_events(tmp_path).Histograms(f"h {X}")
    # Limits are upper ones: nothing up to 0, three up to 2, one up to 4. Sum of the middles: 3 * 1 + 1 * 3 = 6.
    assert list(event.histogram_value.bucket_limit) == [0.0, 2.0, 4.0]
    assert list(event.histogram_value.bucket) == [0.0, 3.0, 1.0]
    assert (event.histogram_value.num, event.histogram_value.sum) == (4.0, 6.0)


def test_empty_histogram_has_no_chart(tmp_path):
    log = MetricsLog(tmp_path)
    log.write(1, {"a": 1.0}, {"h": np.array([np.nan])})
    assert read_rows(tmp_path)[0]["h"]["counts"] == [0] * 30
    assert read_events(tmp_path).Tags()["histograms"] == []


def test_not_finite_is_null_and_said_once_per_name(tmp_path):
    said = []
    log = MetricsLog(tmp_path, say=said.append)
    log.write(1, {"a": np.nan, "b": 1.0})
    log.write(2, {"a": np.inf, "b": -np.inf})
    text = (tmp_path / "metrics.jsonl").read_text()
    rows = [json.loads(line, parse_constant=pytest.fail) for line in text.splitlines()]
    assert rows == [{"env_steps": 1, "a": None, "b": 1.0}, {"env_steps": 2, "a": None, "b": None}]
    assert said == [
        "warning: a is nan at environment step 1; written as null",
        "warning: b is -inf at environment step 2; written as null",
    ]


def test_eval_csv_has_one_header_over_restarts(tmp_path):
    for step in (10, 20):
        log = MetricsLog(tmp_path)
        log.write_evaluation(step, {"return": step / 3, "distance": -1.0})
        log.close()
    with open(tmp_path / "eval.csv", newline="") as file:
        rows = list(csv.reader(file))
    assert rows == [
        ["env_steps", "return", "distance"],
        ["10", repr(10 / 3), "-1.0"],
        ["20", repr(20 / 3), "-1.0"],
    ]


@pytest.mark.parametrize("distances", [*itertools.product([None, 1.5], repeat=3)], ids=str)
def test_what_is_absent_is_an_empty_cell_whatever_came_before(tmp_path, distances):
    """Each row by a program of its own. The header never changes, and only what is there becomes an event."""
    said = []
    for step, distance in enumerate(distances):
        log = MetricsLog(tmp_path, say=said.append)
        log.truncate(step)
        log.write_evaluation(step, {"return": 2.0, "distance": distance})
        log.close()
    with open(tmp_path / "eval.csv", newline="") as file:
        rows = list(csv.reader(file))
    assert rows[0] == ["env_steps", "return", "distance"]
    assert [row[2] for row in rows[1:]] == ["" if d is None else "1.5" for d in distances]
    assert [row[0] for row in rows[1:]] == ["0", "1", "2"] and said == []
    columns = read_evaluations(tmp_path)
    np.testing.assert_array_equal(columns["distance"], [np.nan if d is None else d for d in distances])
    events = read_events(tmp_path)
    known = [step for step, d in enumerate(distances) if d is not None]
    assert [e.step for e in events.Scalars(f"evaluation/return {X}")] == [0, 1, 2]
    if known:
        assert [e.step for e in events.Scalars(f"evaluation/distance {X}")] == known
    else:
        assert f"evaluation/distance {X}" not in events.Tags()["scalars"]


def test_a_table_whose_last_line_is_open_goes_on_in_a_line_of_its_own(tmp_path):
    """An editor had left out the last line break: two rows became the one row 1,23,4."""
    path = tmp_path / "evaluations.csv"
    path.write_text("a,b\n1,2")
    append_csv_row(path, {"a": 3, "b": 4})
    append_csv_row(path, {"a": 5, "b": 6})
    assert path.read_text() == "a,b\n1,2\n3,4\n5,6\n"


def test_a_table_without_a_column_goes_on(tmp_path):
    """Tables of before have no column for what no episode had; they get it when there is something to write."""
    (tmp_path / "eval.csv").write_text("env_steps,return\n1,2.0\n")
    log = MetricsLog(tmp_path)
    log.write_evaluation(2, {"return": 3.0, "distance": None})
    assert (tmp_path / "eval.csv").read_text() == "env_steps,return\n1,2.0\n2,3.0\n"
    log.write_evaluation(3, {"return": 4.0, "distance": 0.5})
    log.write_evaluation(4, {"return": 5.0})
    text = "env_steps,return,distance\n1,2.0,\n2,3.0,\n3,4.0,0.5\n4,5.0,\n"
    assert (tmp_path / "eval.csv").read_text() == text
    log.truncate(3)
    assert (tmp_path / "eval.csv").read_text() == text[: text.index("4,5.0")]
    log.close()


def test_steps_never_go_back(tmp_path):
    log = MetricsLog(tmp_path)
    log.write(5, {"a": 1.0})
    with pytest.raises(ValueError, match="step 4 after those of step 5"):
        log.write(4, {"a": 1.0})


def a_log_of(tmp_path: Path, steps: range) -> None:
    log = MetricsLog(tmp_path)
    for step in steps:
        log.write(step, {"loss": 100.0 + step}, {"h": np.arange(4.0)})
        if step % 20 == 0:
            log.write_evaluation(step, {"return": float(step)})
    log.close()


def test_truncate_leaves_no_later_step_anywhere(tmp_path):
    a_log_of(tmp_path, range(10, 101, 10))
    MetricsLog(tmp_path).truncate(40)
    assert [r["env_steps"] for r in read_rows(tmp_path)] == [10, 20, 30, 40]
    assert (tmp_path / "eval.csv").read_text() == "env_steps,return\n20,20.0\n40,40.0\n"
    assert steps_and_values(tmp_path, "loss") == [(10, 110.0), (20, 120.0), (30, 130.0), (40, 140.0)]
    events = read_events(tmp_path)
    assert [e.step for e in events.Histograms(f"h {X}")] == [10, 20, 30, 40]
    assert [e.step for e in events.Scalars(f"evaluation/return {X}")] == [20, 40]


def test_truncated_files_equal_those_of_the_run_that_stopped_there(tmp_path):
    a_log_of(tmp_path / "long", range(10, 101, 10))
    MetricsLog(tmp_path / "long").truncate(60)
    a_log_of(tmp_path / "short", range(10, 61, 10))
    for name in ("metrics.jsonl", "eval.csv"):
        assert (tmp_path / "long" / name).read_bytes() == (tmp_path / "short" / name).read_bytes()
    assert steps_and_values(tmp_path / "long", "loss") == steps_and_values(tmp_path / "short", "loss")


def test_going_on_twice(tmp_path):
    """Two restarts, the second behind the first: every file of events is cut, each step is there once."""
    for start, back in ((10, None), (50, 40), (30, 20)):
        log = MetricsLog(tmp_path)
        if back is not None:
            log.truncate(back)
        for step in range(start, 81, 10):
            log.write(step, {"loss": float(start + step)})
        log.close()
    expected = [(10, 20.0), (20, 30.0)] + [(s, 30.0 + s) for s in range(30, 81, 10)]
    assert steps_and_values(tmp_path, "loss") == expected
    assert [(r["env_steps"], r["loss"]) for r in read_rows(tmp_path)] == expected
    assert len(event_files(tmp_path)) == 3


@pytest.mark.parametrize("missing", [1, 5, 11])
def test_what_a_killed_write_left_is_cut(tmp_path, missing):
    a_log_of(tmp_path, range(20, 61, 20))
    whole = snapshot(tmp_path)
    log = MetricsLog(tmp_path)
    log.write(80, {"loss": 1.0})
    log.write_evaluation(80, {"return": 1234567.0})
    log.close()
    for path in (tmp_path / "metrics.jsonl", tmp_path / "eval.csv", *event_files(tmp_path)[1:]):
        os.truncate(path, path.stat().st_size - missing)
    assert [r["env_steps"] for r in read_rows(tmp_path)] == [20, 40, 60]
    MetricsLog(tmp_path).truncate(80)  # even to a step that the broken rows belong to
    after = snapshot(tmp_path)
    assert {name: after[name] for name in ("metrics.jsonl", "eval.csv")} == {
        name: whole[name] for name in ("metrics.jsonl", "eval.csv")
    }
    assert steps_and_values(tmp_path, "loss")[:3] == [(20, 120.0), (40, 140.0), (60, 160.0)]


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("metrics.jsonl", "[40, 1.0]"),
        ("metrics.jsonl", '{"env_steps": 40, "loss": "x"}'),
        ("metrics.jsonl", '{"loss": 1.0}'),
        ("metrics.jsonl", "[" * 100_000),
        ("eval.csv", "forty,1.0"),
        ("eval.csv", "9" * 5000),
    ],
)
def test_a_whole_line_that_is_no_row_is_refused_and_nothing_is_cut(tmp_path, name, line):
    a_log_of(tmp_path, range(20, 61, 20))
    lines = (tmp_path / name).read_text().splitlines()
    (tmp_path / name).write_text("\n".join([*lines[:2], line, *lines[2:]]) + "\n")
    before = snapshot(tmp_path)
    with pytest.raises(ConfigError, match=f"{name}: line 3 is no row"):
        MetricsLog(tmp_path).truncate(60)
    assert snapshot(tmp_path) == before


def test_event_files_of_others_are_left_alone(tmp_path):
    (tmp_path / "events.out.tfevents.1700000000.host.1.0").write_bytes(b"theirs")
    a_log_of(tmp_path, [20])
    MetricsLog(tmp_path).truncate(0)
    assert [path.name for path in event_files(tmp_path)] == ["events.out.tfevents.0000000000.polygrad"]
    assert (tmp_path / "events.out.tfevents.1700000000.host.1.0").read_bytes() == b"theirs"


def test_truncate_to_before_the_first_row_and_of_nothing(tmp_path):
    MetricsLog(tmp_path / "empty").truncate(10)
    a_log_of(tmp_path / "run", range(20, 61, 20))
    MetricsLog(tmp_path / "run").truncate(0)
    assert read_rows(tmp_path / "run") == []
    assert (tmp_path / "run" / "eval.csv").read_text() == "env_steps,return\n"
    assert read_events(tmp_path / "run").Tags()["scalars"] == []


def test_what_is_shown_beside_curves_is_written_again_where_all_was_cut(tmp_path):
    """As a training that was killed before its first checkpoint; one that was killed later has it already."""
    for kept, step in ((None, 20), (-1, 20), (-1, 20), (20, 40)):
        log = MetricsLog(tmp_path, hyperparameters={"seed": 3})
        if kept is not None:
            log.truncate(kept)
        log.write(step, {"loss": float(step)})
        log.close()
        events = read_events(tmp_path)
        assert [len(events.Tensors(tag)) for tag in ("x-axis/text_summary", "custom_scalars__config__")] == [1, 1]
        assert events.SummaryMetadata("_hparams_/session_start_info").plugin_data.plugin_name == "hparams"
    assert steps_and_values(tmp_path, "loss") == [(20, 20.0), (40, 40.0)]


def test_full_disk_appends_nothing(tmp_path, monkeypatch):
    log = MetricsLog(tmp_path)
    log.write(1, {"a": 1.0})
    before, write = snapshot(tmp_path), os.write

    def half(handle, content):
        """The disk takes the first five bytes."""
        if len(content) == 5:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(handle, bytes(content[: len(content) - 5]))

    monkeypatch.setattr(os, "write", half)
    with pytest.raises(ConfigError, match="metrics.jsonl cannot be written: the disk is full"):
        log.write(2, {"a": 2.0})
    assert snapshot(tmp_path) == before


def test_a_long_run_stays_small(tmp_path):
    """A million steps at the paper's interval make 1,000 rows; 60 numbers and a histogram each: below 50 MB."""
    log = MetricsLog(tmp_path)
    rng = np.random.default_rng(0)
    log.write(1, {f"group/some_long_name_{i}": rng.standard_normal() for i in range(60)}, {"h": rng.random(1000)})
    assert 1_000 * (tmp_path / "metrics.jsonl").stat().st_size < 10e6


def test_no_rows_is_one_line(tmp_path):
    with pytest.raises(ConfigError, match="metrics.jsonl does not exist"):
        read_rows(tmp_path)
