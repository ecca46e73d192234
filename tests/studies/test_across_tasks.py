"""Algorithms over several tasks: the numbers by hand, and what is refused."""

import sys

import pytest
from test_returns_table import cells, write

from experiments.harness import statistics
from experiments.learning import across_tasks


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(statistics, "REPETITIONS", 50)

    def call(*options):
        monkeypatch.setattr(sys, "argv", ["across_tasks.py", "--out", str(tmp_path), "--against", "ours", *options])
        return across_tasks.main(), *capsys.readouterr()

    return call


def runs(*returns, evaluations=4):
    """A run per return, which all of its evaluations have."""
    return {seed: [value] * evaluations for seed, value in enumerate(returns)}


def test_the_numbers_are_those_by_hand(tmp_path, run):
    write(tmp_path, "hop", {"ours": runs(90, 110), "theirs": runs(50, 100)})  # seeds 0 and 1
    write(tmp_path, "walk", {"ours": runs(900, 1000, 1100), "theirs": runs(-100, 2000), "one task": runs(1)}, "Walker")
    code, said, _ = run("--experiments", "hop", "walk")
    assert code == 0
    assert said.startswith("| algorithm | Hopper-v5 | Walker | interquartile mean (95 %), ours's mean being 1 | ")
    rows = cells(said)
    assert set(rows) == {"ours", "theirs"}, "a setting of one task has no place among all"
    assert rows["theirs"][:2] == ["75 ± 35 (-243 to 393)", "950 ± 1,485 (-12,392 to 14,292)"]
    # Of seeds 0 and 1, over the means 100 and 1,000, theirs have 0.5, 1, -0.1, 2: the middle two; ours 0.9, 1.1, 0.9,
    # 1.
    assert rows["theirs"][2].startswith("0.75 (") and rows["ours"][2].startswith("0.95 (")
    # Of four pairs on the one task ours is better in three, on the other in two.
    assert rows["theirs"][3].startswith("0.62 (") and rows["ours"][3].strip() == ""
    assert (tmp_path / "across_tasks.png").stat().st_size > 10_000


@pytest.mark.parametrize(
    ("second", "task", "words"),
    [
        ({"theirs": runs(1)}, "Walker", "--against is ours; allowed: theirs"),
        ({"ours": runs(-1), "theirs": runs(1)}, "Walker", "--against returns -1 on Walker; allowed: a setting with"),
        (
            {"ours": runs(1), "theirs": runs(1, evaluations=6)},
            "Walker",
            "on Walker a run of ours has 20,000 steps and one of theirs 30,000; allowed: equally many (--until STEP)",
        ),
        (
            {"ours": runs(1, 1) | {2: [1] * 6}, "theirs": runs(1)},
            "Walker",
            "on Walker a run of ours has 20,000 steps and one of ours 30,000; allowed: equally many (--until STEP)",
        ),
        ({"ours": {5: [1] * 4}, "theirs": {5: [1] * 4}}, "Walker", "have no seed in common; allowed: one or more"),
        ({}, "Walker", "--experiments: two.csv has no evaluation; allowed: experiments that have some"),
        ({"ours": runs(1), "theirs": runs(float("nan"))}, "Walker", "value nan; allowed: whole steps and finite"),
        ({"theirs again": runs(1)}, "Walker", "--experiments: two.csv has no evaluation; allowed: experiments that"),
        ({"ours": runs(1), "theirs": runs("")}, "Walker", "; allowed: whole steps and finite"),
        ({"ours": runs(1)}, "Hopper-v5", "have ours, seed 0 on Hopper-v5 more than once; allowed: different runs"),
    ],
)
def test_what_cannot_be_compared_is_one_line(tmp_path, run, second, task, words):
    write(tmp_path, "one", {"ours": runs(1), "theirs": runs(1)})
    write(tmp_path, "two", second, task)
    code, _, errors = run("--experiments", "one", "two")
    assert code == 2 and errors.startswith("across_tasks: ") and words in errors and errors.count("\n") == 1
    assert not (tmp_path / "across_tasks.png").exists()


@pytest.mark.parametrize("until", ["10", "-5"])
def test_a_step_before_all_evaluations_is_said(tmp_path, run, until):
    write(tmp_path, "one", {"ours": runs(1)})
    words = f"across_tasks: --until is {until}; allowed: from 5,000 on, where the first evaluation is\n"
    assert run("--experiments", "one", "--until", until) == (2, "", words)


def test_a_csv_of_something_else_is_named(tmp_path, run):
    (tmp_path / "one.csv").write_text("a,b\n1,2\n")
    code, _, errors = run("--experiments", "one")
    assert code == 2 and "one.csv has no column exp_name; allowed: learning curves of" in errors


def test_a_csv_that_cannot_be_read_is_named(tmp_path, run):
    (tmp_path / "one.csv").write_bytes(b"exp_name\n\xff\xfe\n")
    code, _, errors = run("--experiments", "one")
    assert code == 2 and "one.csv cannot be read (" in errors and errors.count("\n") == 1


def test_evaluations_up_to_a_step_make_lengths_equal(tmp_path, run):
    write(tmp_path, "one", {"ours": runs(2), "theirs": {0: [1, 1, 1, 1, 9, 9, 9]}})
    assert cells(run("--experiments", "one", "--until", "20000")[1])["theirs"][0] == "1"


def test_an_evaluation_that_is_there_twice_is_named(tmp_path, run):
    write(tmp_path, "one", {"ours": runs(1)})
    path = tmp_path / "one.csv"
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines, lines[1]]) + "\n")
    code, _, errors = run("--experiments", "one")
    assert code == 2 and f"one.csv, line {len(lines) + 1}: the same as line 2 (ours, " in errors


def test_a_figure_that_cannot_be_written_is_one_line(tmp_path, run):
    write(tmp_path, "one", {"ours": runs(1), "theirs": runs(1)})
    (tmp_path / "across_tasks.png").mkdir()
    code, _, errors = run("--experiments", "one")
    assert code == 2 and "across_tasks.png cannot be written: " in errors and errors.count("\n") == 1
