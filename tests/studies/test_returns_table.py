"""The table of what runs return: its numbers by hand, and what it refuses."""

import csv
import sys

import pytest

from experiments.learning import returns_table

COLUMNS = ["exp_name", "env_name", "seed", "metric", "env_step", "value", "mujoco"]
EVALUATIONS = {"A": {0: [0, 10, 20, 30], 1: [0, 40, 50, 60]}, "B": {0: [9, 1, 2, 3], 1: [9, 3, 4, 5], 2: [9, 8, 9, 10]}}


def write(folder, experiment, settings=EVALUATIONS, task="Hopper-v5", mujoco="4.0.0"):
    with open(folder / f"{experiment}.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        for name, seeds in settings.items():
            for seed, values in seeds.items():
                for k, value in enumerate(values):
                    step = 5_000 * (k + 1)
                    writer.writerow([name, task, seed, "return_mean", step, value, mujoco])
                    for metric, scale in (("distance_mean", 0.1), ("error/x", 0.001)):
                        scaled = value if value == "" else value * scale
                        writer.writerow([name, task, seed, metric, step, scaled, mujoco])


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    def call(*options):
        monkeypatch.setattr(sys, "argv", ["returns_table.py", "--out", str(tmp_path), *options])
        code = returns_table.main()
        return code, *capsys.readouterr()

    return call


def cells(said):
    """The rows of a table of Markdown by their first cell."""
    lines = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in said.splitlines()]
    return {first: rest for first, *rest in lines[2:]}


def test_the_numbers_are_those_by_hand(tmp_path, run):
    write(tmp_path, "x", EVALUATIONS | {"A again": {0: [1e6] * 4}})
    code, said, _ = run("--experiments", "x", "--against", "B")
    assert code == 0
    rows = cells(said)
    assert set(rows) == {"A", "B"}
    # A: 20 and 50, mean 35, std 21.213, / sqrt(2) * t(0.975; 1 degree) = 12.706 -> 190.6
    assert rows["A"][:5] == ["20,000", "20, 50", "35 ± 21 (-156 to 226)", "20", "2.0, 5.0"]
    assert rows["B"][:5] == ["20,000", "2, 4, 9", "5 ± 4 (-4 to 14)", "2", "0.2, 0.4, 0.9"]
    # 35 - 5; variances 450 / 2 and 13 / 3; Welch's degrees of freedom 1.039, t = 11.64 -> 176.3
    assert rows["A"][5:] == ["30 (-146 to 206)", "1.00"]


def test_another_metric_is_tabled_in_the_same_way(tmp_path, run):
    write(tmp_path, "x")
    said = run("--experiments", "x", "--metric", "error/x", "--against", "B")[1]
    assert "| least | metres | less B (95 %) | more than B |" in said
    rows = cells(said)
    assert rows["A"][:4] == ["20,000", "0.02, 0.05", "0.035 ± 0.021 (-0.16 to 0.23)", "0.02"]
    assert rows["A"][5:] == ["0.03 (-0.15 to 0.21)", "1.00"]


def test_the_interquartile_mean_is_that_of_four_runs_or_more(tmp_path, run):
    write(tmp_path, "x", {"four": {k: [last] * 3 for k, last in enumerate([1, 10, 20, 3000])}})
    # The middle two; of fewer than four runs none would be left out: no number, and no column where nothing has one.
    assert cells(run("--experiments", "x")[1])["four"][3] == "15"
    write(tmp_path, "y", EVALUATIONS)
    assert "interquartile mean" not in run("--experiments", "y")[1]
    said = run("--experiments", "x", "y")[1]
    assert "interquartile mean" in said and cells(said)["A"][3] == ""


def test_runs_of_another_length_are_not_compared(tmp_path, run):
    write(tmp_path, "x", EVALUATIONS | {"C": {0: [1, 2, 3]}})
    rows = cells(run("--experiments", "x", "--against", "B")[1])
    assert rows["C"][5:] == ["", ""] and rows["A"][5:] == ["30 (-146 to 206)", "1.00"]


def test_only_evaluations_up_to_a_step_count(tmp_path, run):
    write(tmp_path, "x")
    rows = cells(run("--experiments", "x", "--until", "10000")[1])
    assert rows["A"][:2] == ["10,000", "5, 20"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--experiments", "x", "nope"], "--experiments is nope"),
        (["--experiments", "x", "walks"], "--experiments are of Hopper-v5, Walker2d-v5"),
        (["--experiments", "x", "older"], "mujoco"),
        (["--experiments", "x", "copy"], "have A, seed 0 on Hopper-v5 more than once"),
        (["--experiments", "x", "--metric", "y"], "--metric is y; allowed: distance_mean, error/x, return_mean"),
        (["--experiments", "x", "--against", "C"], "--against is C; allowed: A, B"),
        (["--experiments", "x", "--until", "4999"], "--until is 4999; allowed: from 5,000 on"),
    ],
)
def test_what_cannot_be_meant_is_one_line(tmp_path, run, options, words):
    write(tmp_path, "x")
    write(tmp_path, "copy")
    write(tmp_path, "walks", task="Walker2d-v5")
    write(tmp_path, "older", {"C": EVALUATIONS["A"]}, mujoco="3.4.0")
    code, said, complaint = run(*options)
    assert code == 2 and said == ""
    assert len(complaint.splitlines()) == 1 and words.lower() in complaint.lower()
