"""The grid of seeds: a run that diverges is a row, one that fails is not, and runs at once have a core each."""

import csv
import importlib.util
import json
import os
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

FILE = Path(__file__).parents[1] / "experiments" / "seeds.py"
ENVIRONMENT = {"device": "cpu: cpu", "cores": 1, "packages": {"jax": "0.10.2"}, "git_revision": "abc"}


@pytest.fixture
def seeds():
    spec = importlib.util.spec_from_file_location("seeds", FILE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def options(tmp_path, **more):
    fields = {"env": "hopper", "preset": "cpu", "fields": "", "jobs": 1, "pin": False, "seeds": [0], "rules": ["score"]}
    return SimpleNamespace(**fields | {"runs": tmp_path / "runs", "out": tmp_path / "out", "figure_only": False} | more)


def leave(seeds, opts, rule, seed, code, returns=()):
    """What a run leaves behind."""
    folder = seeds.folder_of(opts, rule, seed)
    folder.mkdir(parents=True)
    (folder / "environment.json").write_text(json.dumps(ENVIRONMENT))
    (folder / "config.json").write_text(json.dumps({"env": {"version": 5}}))
    Path(f"{folder}.log").write_text("polygrad: a2c.gamma is 2\n")
    if returns:
        rows = [f"{5_000 * (i + 1)},{r},{r / 2},{r / 100}" for i, r in enumerate(returns)]
        (folder / "eval.csv").write_text("\n".join(["env_steps,return_mean,length_mean,distance_mean", *rows]) + "\n")
    return folder, ["polygrad", "train"], 1.0, code


def table(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_results_failures_and_divergences(seeds, tmp_path, monkeypatch, capsys):
    opts = options(tmp_path, seeds=[0, 1, 2])
    outcomes = {0: (3, ()), 1: (2, ()), 2: (0, (100.0, 200.0, 300.0, 400.0))}
    monkeypatch.setattr(seeds, "train", lambda o, rule, seed, core: leave(seeds, o, rule, seed, *outcomes[seed]))
    wrong = seeds.run_grid(opts)
    assert wrong == ["score seed 1: exit code 2: polygrad: a2c.gamma is 2"]
    assert "a2c.gamma is 2" in capsys.readouterr().err
    runs = table(opts.out / "runs.csv")
    assert [(r["seed"], r["outcome"]) for r in runs] == [("0", "diverged"), ("2", "finished")]
    assert {r["env_version"] for r in runs} == {"5"}
    assert float(runs[1]["last3_return_mean"]) == 300.0  # the mean of 200, 300 and 400
    assert float(runs[1]["last3_distance_mean"]) == 3.0
    assert runs[0]["last3_return_mean"] == "nan"
    assert [r["return_mean"] for r in table(opts.out / "evaluations.csv")] == ["100.0", "200.0", "300.0", "400.0"]


def test_runs_at_once_never_share_a_core(seeds, tmp_path, monkeypatch):
    opts = options(tmp_path, seeds=[0, 1, 2], rules=["score", "random_actions"], jobs=2, pin=True)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {4, 7})
    busy, shared, used, guard = set(), [], set(), threading.Lock()

    def train(o, rule, seed, core):
        with guard:
            shared.append(core in busy)
            busy.add(core)
            used.add(core)
        time.sleep(0.05 if rule == "score" else 0.01)  # the second of each pair is done long before the first
        with guard:
            busy.remove(core)
        return leave(seeds, o, rule, seed, 0, (1.0,))

    monkeypatch.setattr(seeds, "train", train)
    assert seeds.run_grid(opts) == []
    assert used == {4, 7} and not any(shared)
    assert len(table(opts.out / "runs.csv")) == 6


def test_the_figure_is_made_from_the_csv_files_alone(seeds, tmp_path, monkeypatch):
    opts = options(tmp_path, seeds=[0, 1])
    returns = {0: (100.0, 200.0, 300.0), 1: (50.0, 60.0)}
    monkeypatch.setattr(seeds, "train", lambda o, rule, seed, core: leave(seeds, o, rule, seed, 0, returns[seed]))
    seeds.run_grid(opts)
    for folder in opts.runs.iterdir():
        folder.rename(tmp_path / f"gone-{folder.name}")
    seeds.draw(opts.out)
    assert (opts.out / "curves.png").stat().st_size > 5_000
