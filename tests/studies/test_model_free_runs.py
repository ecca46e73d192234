"""The grid of model-free baselines: judged and recorded as every run, and drawn beside them. Needs no PyTorch."""

import csv
import json
import sys
from types import SimpleNamespace

import gymnasium
import numpy as np
import pytest

from experiments.harness import grid
from experiments.learning import curves_beside, model_free_runs, stable_baselines, training_runs
from polygrad_jax.config import ConfigError, EnvConfig
from polygrad_jax.envs.episodes import run_episodes
from polygrad_jax.runs.metrics_log import MetricsLog
from polygrad_jax.training.evaluating import evaluation_row, evaluation_seed

PENDULUM = EnvConfig(name="inverted_pendulum")
SCHEMA = ["exp_name", "env_name", "seed", "metric", "env_step", "value", "mujoco"]


def table(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def options(tmp_path, **more):
    fields = {"experiment": "e", "env": "inverted_pendulum", "algorithms": ["ppo", "sac"], "seeds": [0, 1]}
    fields |= {"steps": 5_000, "eval_every": 5_000, "jobs": 1, "threads": 0, "ray": False, "only": None, "again": False}
    fields |= {"mixed_physics": False}
    return SimpleNamespace(**fields | {"runs": tmp_path / "runs", "out": tmp_path / "out"} | more)


class Model:
    """What ``learn`` needs of an algorithm: it counts steps and acts by a fixed rule."""

    num_timesteps = 0

    def predict(self, raw_obs, deterministic):
        assert deterministic and raw_obs.dtype == np.float32
        return np.clip(raw_obs[:, 1:2], -1, 1), None

    def learn(self, total_timesteps, callback):
        more = True
        while more:
            self.num_timesteps += 1
            more = callback({}, {})


def trained(seed=3, steps=25):
    return stable_baselines.Training("ppo", PENDULUM, seed, steps, eval_every_env_steps=10, eval_episodes=2)


def test_evaluations_are_those_of_every_other_run(tmp_path):
    """Kills: a training seed, the same episodes at every evaluation, sampled actions, a step too many or too few."""
    training, model = trained(), Model()
    stable_baselines.learn(model, training, MetricsLog(tmp_path))
    assert model.num_timesteps == 25
    rows = table(tmp_path / "eval.csv")
    assert [row["env_steps"] for row in rows] == ["10", "20"]
    for row in rows:
        seed = evaluation_seed(3, int(row["env_steps"]))
        expected = evaluation_row(run_episodes(PENDULUM, lambda obs: np.clip(obs[:, 1:2], -1, 1), 2, seed))
        assert {name: float(row[name]) if row[name] else None for name in expected} == expected
    seconds = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [row["env_steps"] for row in seconds] == [10, 20]
    assert all(0 < row["seconds/evaluating"] and 0 < row["seconds/training"] for row in seconds)


@pytest.fixture
def faked(monkeypatch):
    """Trainings by a model without PyTorch."""
    monkeypatch.setattr(stable_baselines, "require_packages", lambda: None)
    monkeypatch.setattr(stable_baselines, "make_model", lambda _: Model())
    monkeypatch.setattr(stable_baselines, "hyperparameters", lambda *_: {"gamma": 0.99})
    monkeypatch.setattr(stable_baselines.metadata, "version", lambda package: f"{package} 1")


def test_a_killed_run_begins_again_and_another_runs_folder_is_refused(faked, tmp_path):
    stable_baselines.train(trained(), tmp_path)
    whole = (tmp_path / "eval.csv").read_text()
    (tmp_path / "eval.csv").write_text("".join(whole.splitlines(keepends=True)[:2]))
    stable_baselines.train(trained(), tmp_path)
    assert (tmp_path / "eval.csv").read_text() == whole
    assert json.loads((tmp_path / "environment.json").read_text())["packages"]["torch"] == "torch 1"
    with pytest.raises(ConfigError, match="has another config; allowed: the same, or another folder"):
        stable_baselines.train(trained(seed=4), tmp_path)


def test_the_command_is_what_a_user_would_type(tmp_path):
    cell = model_free_runs.cell_of(options(tmp_path), "ppo", 7)
    assert cell.command[1].endswith("experiments/learning/stable_baselines.py")
    words = ("--algorithm", "ppo", "--env", "inverted_pendulum", "--seed", "7", "--steps", "5000", "--run")
    assert cell.command[2:] == (*words, str(tmp_path / "runs" / "PPO-seed7"))
    seldom = model_free_runs.cell_of(options(tmp_path, steps=20_000, eval_every=10_000), "ppo", 7)
    assert seldom.command[8:13] == ("--steps", "20000", "--eval-every", "10000", "--run")


@pytest.fixture
def recorded(faked, tmp_path, monkeypatch):
    """A grid of two algorithms and two seeds whose runs were trained before; its cells only end."""
    opts = options(tmp_path)
    for name in ("PPO", "SAC"):
        for seed in opts.seeds:
            stable_baselines.train(trained(seed), opts.runs / training_runs.run_name(name, seed))
    made = model_free_runs.cell_of

    def cell_of(*arguments):
        cell = made(*arguments)
        return grid.Cell(cell.name, (sys.executable, "-c", ""), cell.labels, cell.collect)

    monkeypatch.setattr(model_free_runs, "cell_of", cell_of)
    assert model_free_runs.run_grid(opts) == 0
    return opts


def test_runs_are_recorded_in_the_schema(recorded, tmp_path):
    curves, runs = table(recorded.out / "e.csv"), table(recorded.out / "runs.csv")
    assert list(curves[0]) == SCHEMA
    assert {(row["exp_name"], row["env_name"], row["seed"]) for row in curves} == {
        (name, "InvertedPendulum-v5", seed) for name in ("PPO", "SAC") for seed in ("0", "1")
    }
    evaluations = table(recorded.runs / "SAC-seed1" / "eval.csv")
    last = next(row for row in reversed(curves) if row["metric"] == "return_mean")
    assert (last["exp_name"], last["env_step"], last["value"]) == ("SAC", "20", evaluations[-1]["return_mean"])
    assert {row["preset"] for row in runs} == {"SB3 defaults"} and len(runs) == 4
    assert runs[0]["command"].startswith("python experiments/learning/stable_baselines.py --algorithm ppo")
    assert str(tmp_path) not in (recorded.out / "runs.csv").read_text()
    with pytest.raises(ConfigError, match="--steps is 6000; allowed for PPO in the experiment e: 5000"):
        model_free_runs.run_grid(options(tmp_path, steps=6_000))
    with pytest.raises(ConfigError, match="--eval-every is 2500; allowed for PPO in the experiment e: 5000"):
        model_free_runs.run_grid(options(tmp_path, eval_every=2_500))


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--steps", "100"], "--steps is 100; allowed: 5000 (the first evaluation) or more"),
        (["--eval-every", "0"], "--eval-every is 0; allowed: 1 or more"),
        (["--steps", "9000", "--eval-every", "10000"], "--steps is 9000; allowed: 10000 (the first evaluation)"),
        (["--env", "hoper"], "env.name is 'hoper'; allowed is one of hopper, "),
        (["--experiment", "runs"], "--experiment is runs; allowed: any other name"),
    ],
)
def test_bad_input_is_one_line(words, line, faked, monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["model_free_runs.py", "--out", str(tmp_path / "out"), *words])
    assert model_free_runs.main() == 2
    said = capsys.readouterr().err
    assert said.startswith(f"model_free_runs: {line}") and said.count("\n") == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("script", [model_free_runs, stable_baselines])
def test_a_missing_extra_is_one_line(script, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(stable_baselines.importlib.util, "find_spec", lambda _: None)
    told = {"model_free_runs": ["--out", str(tmp_path)], "stable_baselines": ["--algorithm", "sac", "--run", "r"]}
    name = script.__name__.rpartition(".")[2]
    monkeypatch.setattr(sys, "argv", [f"{name}.py", *told[name]])
    assert script.main() == 2
    expected = f"{name}: this Python has no stable_baselines3; type: pip install -e .[baselines]\n"
    assert capsys.readouterr().err == expected


def test_only_a2c_differs_from_the_librarys_defaults():
    """Appendix C.2 of the paper: learning rate and entropy coefficient of A2C."""
    changed = {name: algorithm.changed for name, algorithm in stable_baselines.ALGORITHMS.items() if algorithm.changed}
    assert changed == {"a2c": {"learning_rate": 3e-4, "ent_coef": 1e-5}}

    class Defaults:
        def __init__(self, policy, learning_rate=7e-4, ent_coef=0.0, gamma=0.99, verbose=0, device="auto"):
            pass

    expected = {"learning_rate": 3e-4, "ent_coef": 1e-5, "gamma": 0.99}
    assert stable_baselines.hyperparameters(Defaults("p"), changed["a2c"]) == expected


@pytest.mark.skipif(stable_baselines.importlib.util.find_spec("stable_baselines3") is None, reason="extra baselines")
def test_a_baseline_learns_the_same_on_gymnasiums_own_task(monkeypatch):
    """To the bit, updates and the end of an episode included: the task of this package does not hold it back."""

    def replay_after(steps):
        training = stable_baselines.Training("sac", EnvConfig("halfcheetah"), 0, steps)
        replay = stable_baselines.make_model(training).learn(steps).replay_buffer
        kept = (replay.observations, replay.actions, replay.rewards, replay.dones, replay.timeouts)
        return [array[:steps].copy() for array in kept]

    ours = replay_after(1_100)
    monkeypatch.setattr(stable_baselines.tasks, "make", lambda env: gymnasium.make("HalfCheetah-v5"))
    for one, other in zip(ours, replay_after(1_100), strict=True):
        np.testing.assert_array_equal(one, other)
    assert ours[-1].sum() == 1


@pytest.mark.skipif(stable_baselines.importlib.util.find_spec("stable_baselines3") is None, reason="extra baselines")
@pytest.mark.parametrize("name", stable_baselines.ALGORITHMS)
def test_every_algorithm_is_made_with_its_hyperparameters(name):
    model = stable_baselines.make_model(stable_baselines.Training(name, PENDULUM, 0, 5_000))
    said = stable_baselines.hyperparameters(model, stable_baselines.ALGORITHMS[name].changed)
    assert all(getattr(model, key) == said[key] for key in ("learning_rate", "gamma"))


@pytest.mark.skipif(stable_baselines.importlib.util.find_spec("stable_baselines3") is None, reason="extra baselines")
def test_a_real_run_is_determined_by_its_seed(tmp_path):
    """One core, so that the second training has the same bits; 100 random steps precede SAC's first update."""
    evaluations = []
    for folder in (tmp_path / "a", tmp_path / "b"):
        training = stable_baselines.Training("sac", PENDULUM, 0, 120, eval_every_env_steps=60, eval_episodes=2)
        stable_baselines.train(training, folder)
        evaluations.append((folder / "eval.csv").read_text())
    assert evaluations[0] == evaluations[1] and evaluations[0].count("\n") == 3
    assert json.loads((tmp_path / "a" / "config.json").read_text())["hyperparameters"]["learning_starts"] == 100


# --- beside one another ----------------------------------------------------------------------------------------------


def test_a_mean_goes_as_far_as_all_seeds_do():
    curves = [[(10, 1.0), (20, 2.0), (30, 9.0)], [(12, 3.0), (20, 6.0)]]
    steps, values = curves_beside.mean_curve(curves)
    assert steps.tolist() == [11.0, 20.0]  # (10 + 12) / 2 and (20 + 20) / 2
    assert values.tolist() == [2.0, 4.0]  # (1 + 3) / 2 and (2 + 6) / 2


def test_published_curves_name_source_version_and_task():
    rows = curves_beside.published_of("Walker2d")
    assert {row["env_name"] for row in rows} == {"Walker2d-v4"} and list(rows[0])[:6] == SCHEMA[:6]
    assert all(row["exp_name"].endswith(" v4") and "/" in row["source"] for row in rows)
    final = [float(row["value"]) for row in rows if (row["exp_name"], row["env_step"]) == ("CrossQ v4", "100000")]
    assert len(final) == 10 and round(np.mean(final)) == 3914
    assert "on v4 environments (DAVIAN-Robotics/SimbaV2, " in curves_beside.caption(rows, rows)
    assert curves_beside.published_of("InvertedPendulum") == []


def test_the_figure_is_drawn_from_csv_files_of_one_task(recorded, monkeypatch, capsys):
    rows = table(recorded.out / "e.csv")
    repeated = [row | {"exp_name": "PPO again"} for row in rows if row["exp_name"] == "PPO"]
    grid.write_csv(recorded.out / "ours.csv", rows + repeated)
    grid.write_csv(recorded.out / "other.csv", [row | {"env_name": "Hopper-v5"} for row in rows])
    assert curves_beside.rows_of(recorded.out, "ours", "--experiment") == rows  # a repetition is in no mean

    grid.write_csv(recorded.out / "old.csv", [row | {"mujoco": "3.4.0"} for row in rows])
    grid.write_csv(recorded.out / "unknown.csv", [row | {"mujoco": ""} for row in rows])

    def drawn(beside, *more):
        words = ["--experiment", "ours", "--beside", beside, "--out", str(recorded.out), *more]
        monkeypatch.setattr(sys, "argv", ["curves_beside.py", *words])
        return curves_beside.main(), capsys.readouterr().err

    assert drawn("e") == (0, "")
    assert (recorded.out / "ours_beside.png").stat().st_size > 5_000
    task = "whose task is Hopper-v5; allowed: an experiment on InvertedPendulum-v5"
    assert drawn("other") == (2, f"curves_beside: --beside is other, {task}\n")
    for name, words in (("old", "MuJoCo 3.4.0"), ("unknown", "MuJoCo version not recorded")):
        code, line = drawn(name)
        assert code == 2 and line.count("\n") == 1 and f"{words} ({name}.csv); allowed: one version, or" in line
        assert drawn(name, "--mixed-physics") == (0, "")
    code, line = drawn("gone")
    assert code == 2 and line.endswith("has no CSV; allowed: e, old, other, ours, unknown\n")
