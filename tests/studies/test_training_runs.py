"""The grid of training runs: what a run leaves becomes rows; a run that diverges is a row, one that fails is not."""

import csv
import json
import sys
from types import SimpleNamespace

import pytest

from experiments.harness import grid
from experiments.learning import model_free_runs, training_runs
from polygrad_jax.config import ConfigError
from polygrad_jax.runs import physics

MUJOCO = physics.installed_mujoco()
ENVIRONMENT = {"device": "cpu: cpu", "processor": "x", "cores": 1, "git_revision": "abc"}
ENVIRONMENT |= {"packages": {"jax": "0.10.2", "mujoco": MUJOCO}}
SCHEMA = ["exp_name", "env_name", "seed", "metric", "env_step", "value", "mujoco"]


def options(tmp_path, **more):
    fields = {"env": "hopper", "preset": "cpu", "fields": "", "jobs": 2, "threads": 0, "seeds": [0], "experiment": "e"}
    fields |= {"rules": None, "setting": [], "ray": False, "only": None, "again": False, "mixed_physics": False}
    return SimpleNamespace(**fields | {"runs": tmp_path / "runs", "out": tmp_path / "out"} | more)


@pytest.fixture
def trained(monkeypatch):
    """Runs that leave a run folder at once and end as they are told: ``ends[seed] = (exit code, returns)``."""
    ends = {}

    def command(cell):
        folder, seed = cell.command[cell.command.index("--run") + 1], dict(cell.labels)["seed"]
        code, returns = ends[seed]
        rows = [f"{5_000 * (i + 1)},{r},{r / 2},{r / 100}" for i, r in enumerate(returns)]
        evaluations = "\n".join(["env_steps,return_mean,length_mean,distance_mean", *rows]) + "\n"
        program = (
            "import pathlib, sys; f = pathlib.Path(sys.argv[1]); f.mkdir(parents=True)\n"
            f"(f / 'environment.json').write_text({json.dumps(ENVIRONMENT)!r})\n"
            """(f / 'config.json').write_text('{"env": {"name": "hopper", "version": 5}}')\n"""
            f"if {bool(returns)}: (f / 'eval.csv').write_text({evaluations!r})\n"
            f"print('polygrad: a2c.gamma is 2'); sys.exit({code})"
        )
        return (sys.executable, "-c", program, folder)

    made = training_runs.cell_of

    def cell_of(*arguments):
        cell = made(*arguments)
        return grid.Cell(cell.name, command(cell), cell.labels, cell.collect)

    monkeypatch.setattr(training_runs, "cell_of", cell_of)
    return ends


def table(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def returns_of(opts, seed):
    rows = table(opts.out / "e.csv")
    return [float(r["value"]) for r in rows if (r["seed"], r["metric"]) == (seed, "return_mean")]


def test_results_failures_and_divergences(trained, tmp_path, capsys):
    opts = options(tmp_path, seeds=[0, 1, 2])
    trained |= {0: (3, ()), 1: (2, ()), 2: (0, (100.0, 200.0, 300.0, 400.0))}
    assert training_runs.run_grid(opts) == 1
    assert "score-seed1: exit code 2: polygrad: a2c.gamma is 2" in capsys.readouterr().err
    runs = table(opts.out / "runs.csv")
    assert [(r["experiment"], r["exp_name"], r["env_name"], r["seed"], r["outcome"]) for r in runs] == [
        ("e", "score", "Hopper-v5", "0", "diverged"),
        ("e", "score", "Hopper-v5", "2", "finished"),
    ]
    assert float(runs[1]["last3_return_mean"]) == 300.0  # the mean of 200, 300 and 400
    assert float(runs[1]["last3_distance_mean"]) == 3.0
    assert runs[0]["last3_return_mean"] == "nan"
    curves = table(opts.out / "e.csv")
    assert list(curves[0]) == SCHEMA and {row["mujoco"] for row in curves} == {MUJOCO} == {runs[1]["mujoco"]}
    expected = [("2", "return_mean", str(5_000 * k), str(100.0 * k)) for k in (1, 2, 3, 4)]
    assert [(r["seed"], r["metric"], r["env_step"], r["value"]) for r in curves[:4]] == expected
    assert [r["metric"] for r in curves[4:]] == ["length_mean"] * 4 + ["distance_mean"] * 4


def test_errors_of_imagination_are_kept_beside_the_evaluations(tmp_path):
    name = "error/observation_mse_00"
    rows = [{"env_steps": 5, "a": 1.0}, {"env_steps": 9, f"{name}1": 0.1, f"{name}2": 0.2, f"{name}9": None}]
    rows += [{"env_steps": 12, f"{name}1": 0.3, f"{name}9": 0.9}]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert training_runs.errors_of(tmp_path) == [
        (f"{name}1", "9", "0.1"), (f"{name}1", "12", "0.3"), (f"{name}9", "12", "0.9")
    ]  # fmt: skip
    assert training_runs.errors_of(tmp_path / "gone") == []


def test_the_command_is_what_a_user_would_type(tmp_path):
    opts = options(tmp_path, fields="--a2c.gamma 0.9", setting=["K = 128: --diffusion.sampling-steps 128"])
    (name, fields), = training_runs.settings_of(opts).items()
    cell = training_runs.cell_of(opts, name, fields, 7)
    words = ["train", "--env", "hopper", "--preset", "cpu", "--seed", "7", "--run"]
    fields = ["--diffusion.sampling-steps", "128", "--a2c.gamma", "0.9"]
    folder = str(tmp_path / "runs" / "K-128-seed7")
    assert cell.command[1:] == ("-m", "polygrad_jax.cli", *words, folder, *fields)
    opts.mixed_physics = True  # a run that is resumed must be asked, too
    cell = training_runs.cell_of(opts, name, fields[:2], 7)
    assert cell.command[1:] == ("-m", "polygrad_jax.cli", *words, folder, *fields, "--mixed-physics")


@pytest.mark.parametrize(
    ("setting", "line"),
    [
        (["--a2c.gamma 1"], '--setting is --a2c.gamma 1; allowed: "NAME: FIELDS"'),
        (["a b: ", "a/b: "], "two settings are named a-b; allowed: names that differ in letters"),
    ],
)
def test_settings_that_cannot_be_told_apart(setting, line, tmp_path):
    with pytest.raises(ConfigError) as refused:
        training_runs.settings_of(options(tmp_path, setting=setting))
    assert str(refused.value).startswith(line)


def test_an_experiment_has_one_task(trained, tmp_path):
    trained |= {0: (0, (100.0,))}
    opts = options(tmp_path)
    # The row's command is what says the task, so that a clone without run folders is refused as well.
    assert training_runs.run_grid(opts) == 0
    opts.env = "walker2d"
    with pytest.raises(ConfigError, match="--env is walker2d; allowed for the experiment e: hopper"):
        training_runs.run_grid(opts)


def test_csv_files_alone_are_enough_to_draw_and_to_resume(trained, tmp_path):
    opts = options(tmp_path, seeds=[0, 1], rules=["score"], setting=["score again: --seed 3"])
    trained |= {0: (0, (100.0, 200.0, 300.0)), 1: (0, (50.0, 60.0))}
    assert training_runs.run_grid(opts) == 0
    opts.runs.rename(tmp_path / "gone")
    training_runs.draw_all(opts.out)
    assert (opts.out / "e.png").stat().st_size > 5_000
    before, runs_before = table(opts.out / "e.csv"), table(opts.out / "runs.csv")
    opts.seeds = [0, 1, 2]  # resumes in a clone: the CSV files are all there is of the first two seeds
    trained |= {2: (0, (70.0, 80.0))}
    assert training_runs.run_grid(opts) == 0
    after = table(opts.out / "e.csv")
    assert [row for row in after if row["seed"] != "2"] == before and len(after) > len(before)
    assert [row for row in table(opts.out / "runs.csv") if row["seed"] != "2"] == runs_before
    (opts.runs / "score-seed2").rename(opts.runs / "score-seed0")  # another run in the place of one that is gone
    assert training_runs.run_grid(opts) == 0
    assert [row for row in table(opts.out / "e.csv") if row["seed"] == "0"] == [r for r in before if r["seed"] == "0"]


def test_experiments_share_the_table_of_runs(trained, tmp_path):
    trained |= {0: (0, (100.0, 200.0)), 1: (3, ())}
    for name in ("e", "other"):
        opts = options(tmp_path, seeds=[0, 1], experiment=name, runs=tmp_path / name)
        assert training_runs.run_grid(opts) == 0
    runs = table(tmp_path / "out" / "runs.csv")
    others = [("other", "0"), ("other", "1")]
    assert [(r["experiment"], r["seed"]) for r in runs] == [("e", "0"), ("e", "1"), *others]
    trained |= {2: (0, (300.0,))}
    assert training_runs.run_grid(options(tmp_path, seeds=[2], runs=tmp_path / "e")) == 0
    after = table(tmp_path / "out" / "runs.csv")
    assert [(r["experiment"], r["seed"]) for r in after] == [("e", "0"), ("e", "1"), ("e", "2"), *others]
    assert [r for r in after if (r["experiment"], r["seed"]) != ("e", "2")] == runs
    assert returns_of(opts, "2") == [300.0] and returns_of(opts, "0") == [100.0, 200.0]


@pytest.mark.parametrize(("experiment", "seed"), [("other", 0), ("e", 1)])
def test_runs_recorded_while_the_grid_ran_stay(experiment, seed, trained, tmp_path, monkeypatch):
    """Another experiment, or the same one from another folder, begins and ends between our reading and our writing."""
    trained |= {0: (0, (100.0, 200.0)), 1: (0, (300.0, 400.0))}
    ours = options(tmp_path)
    theirs = options(tmp_path, experiment=experiment, seeds=[seed], runs=tmp_path / "theirs")
    run = grid.run

    def with_another(*given, **named):
        monkeypatch.setattr(grid, "run", run)
        assert training_runs.run_grid(theirs) == 0
        return run(*given, **named)

    monkeypatch.setattr(grid, "run", with_another)
    assert training_runs.run_grid(ours) == 0
    assert {(r["experiment"], r["seed"]) for r in table(ours.out / "runs.csv")} == {("e", "0"), (experiment, str(seed))}
    assert {r["seed"] for r in table(ours.out / f"{experiment}.csv")} >= {str(seed)}
    assert returns_of(ours, "0") == [100.0, 200.0]
    assert not [path for path in ours.out.iterdir() if path.suffix != ".csv"]


def test_one_name_for_two_settings_is_said(trained, tmp_path, capsys):
    """Finished seeds are not run again: tables would average runs of the two."""
    trained |= {0: (0, (1.0,)), 1: (0, (2.0,))}
    assert training_runs.run_grid(options(tmp_path, setting=["wide: --a2c.min-std 0.3"])) == 0
    assert training_runs.run_grid(options(tmp_path, setting=["wide: --a2c.min-std 0.3"], seeds=[0, 1])) == 0
    assert "warning" not in capsys.readouterr().err
    again = options(tmp_path, setting=["wide: --a2c.min-std 0.4", "other: --a2c.min-std 0.5"], seeds=[0, 1])
    assert training_runs.run_grid(again) == 0
    said = capsys.readouterr().err.splitlines()
    assert [line[:31] for line in said] == [f"warning: seed {seed} of wide is ther" for seed in (0, 1)]
    assert all("--run wide-seed" in line and "--a2c.min-std 0.3" in line for line in said)


def test_a_seed_twice_is_refused(trained, tmp_path):
    trained |= {0: (0, (100.0,))}
    with pytest.raises(ConfigError, match="cells are asked for twice: score-seed0; allowed: each once"):
        training_runs.run_grid(options(tmp_path, seeds=[0, 0]))


@pytest.mark.parametrize("script", [training_runs, model_free_runs])
def test_figures_of_a_folder_without_runs_are_one_line(script, tmp_path, monkeypatch, capsys):
    grid.write_csv(tmp_path / "e.csv", [dict.fromkeys(SCHEMA, "")])
    name = script.__name__.rpartition(".")[2]
    monkeypatch.setattr(sys, "argv", [f"{name}.py", "--out", str(tmp_path), "--figure-only"])
    assert script.main() == 2
    expected = f"{name}: --out is {tmp_path}; allowed with --figure-only: a folder with a runs.csv\n"
    assert capsys.readouterr().err == expected


@pytest.mark.parametrize("recorded", ["3.4.0", ""])
def test_runs_of_another_physics_are_joined_only_if_asked(recorded, trained, tmp_path, capsys):
    """Recorded under another MuJoCo, or one that nothing tells; in the run folders, and in a clone without them."""
    trained |= {0: (0, (100.0, 200.0)), 1: (0, (300.0, 400.0))}
    opts = options(tmp_path)
    assert training_runs.run_grid(opts) == 0
    for path in (opts.out / "runs.csv", opts.runs / "runs.csv", opts.out / "e.csv"):
        rows = table(path)
        old = [row | {"mujoco": recorded} | ({"packages": "jax=0.10.2"} if "packages" in row else {}) for row in rows]
        grid.write_csv(path, old)
    for path in (opts.runs / "runs.cells").glob("*.json"):
        path.unlink()
    before = (opts.out / "runs.csv").read_text()
    opts.seeds = [0, 1]
    for clone in (False, True):
        if clone:
            opts.runs.rename(tmp_path / "gone")
        with pytest.raises(ConfigError) as refused:
            training_runs.run_grid(opts)
        assert "Hopper-v5 is another task under another MuJoCo: " in str(refused.value)
        assert f"MuJoCo {MUJOCO} (installed); allowed: one version, or --mixed-physics" in str(refused.value)
        assert (opts.out / "runs.csv").read_text() == before
    opts.mixed_physics = True
    assert training_runs.run_grid(opts) == 0
    assert [(r["seed"], r["mujoco"]) for r in table(opts.out / "runs.csv")] == [("0", recorded), ("1", MUJOCO)]
    versions = {(row["seed"], row["mujoco"]) for row in table(opts.out / "e.csv")}
    assert versions == {("0", recorded), ("1", MUJOCO)}
    training_runs.draw_all(opts.out)
    with pytest.raises(ConfigError, match="another task under another MuJoCo"):
        training_runs.run_grid(options(tmp_path, seeds=[0, 1]))  # they are joined already, which is said again


def test_settings_along_the_value_of_a_field(trained, tmp_path):
    """A run that diverged counts as 0 and is told apart. A number that is no field's value in every run is no axis."""
    settings = [f"{name} {x}: --a2c.gamma {x} --a2c.target-change 0.3" for name in ("a b", "c") for x in (0.03, 0.3)]
    opts = options(tmp_path, seeds=[0, 1], setting=settings)
    trained |= {0: (0, (100.0, 200.0, 300.0)), 1: (3, (50.0, 60.0))}
    assert training_runs.run_grid(opts) == 0
    rows = table(opts.out / "runs.csv")
    assert training_runs.field_along(rows) == "a2c.gamma"
    runs = [(200.0, True), (0.0, False)]
    assert training_runs.along(rows) == {"a b": {0.03: runs, 0.3: runs}, "c": {0.03: runs, 0.3: runs}}
    training_runs.draw_experiment(opts.out, "e")
    assert (opts.out / "e_along.png").stat().st_size > 5_000
    assert training_runs.field_along([rows[0] | {"exp_name": "score"}, *rows[1:]]) is None
    assert training_runs.field_along([rows[0] | {"exp_name": "a b 0.5"}, *rows[1:]]) is None
    assert training_runs.field_along([row for row in rows if row["exp_name"] == "c 0.3"]) is None


@pytest.mark.parametrize(
    ("presets", "words"), [(["cpu"], "preset cpu"), (["cpu_a2c", "cpu", "cpu_a2c"], "presets cpu_a2c, cpu")]
)
def test_a_caption_names_every_preset_of_its_runs(presets, words):
    assert training_runs.presets_in_words([{"preset": name} for name in presets]) == words
