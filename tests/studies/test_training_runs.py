"""The grid of seeds: what a run leaves becomes rows; one that diverges is a row, one that fails is not."""

import csv
import json
import sys
from types import SimpleNamespace

import pytest
from experiments.learning import seeds
from experiments.harness import grid as sweep

ENVIRONMENT = {"device": "cpu: cpu", "processor": "x", "cores": 1, "packages": {"jax": "0.10.2"}, "git_revision": "abc"}


def options(tmp_path, **more):
    fields = {"env": "hopper", "preset": "cpu", "fields": "", "jobs": 2, "threads": 0, "seeds": [0]}
    fields |= {"rules": None, "setting": [], "ray": False, "only": None, "again": False}
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
            """(f / 'config.json').write_text('{"env": {"version": 5}}')\n"""
            f"if {bool(returns)}: (f / 'eval.csv').write_text({evaluations!r})\n"
            f"print('polygrad: a2c.gamma is 2'); sys.exit({code})"
        )
        return (sys.executable, "-c", program, folder)

    made = seeds.cell_of

    def cell_of(*arguments):
        cell = made(*arguments)
        return sweep.Cell(cell.name, command(cell), cell.labels, cell.collect)

    monkeypatch.setattr(seeds, "cell_of", cell_of)
    return ends


def table(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_results_failures_and_divergences(trained, tmp_path, capsys):
    opts = options(tmp_path, seeds=[0, 1, 2])
    trained |= {0: (3, ()), 1: (2, ()), 2: (0, (100.0, 200.0, 300.0, 400.0))}
    assert seeds.run_grid(opts) == 1
    assert "score-seed1: exit code 2: polygrad: a2c.gamma is 2" in capsys.readouterr().err
    runs = table(opts.out / "runs.csv")
    assert [(r["setting"], r["seed"], r["outcome"]) for r in runs] == [
        ("score", "0", "diverged"),
        ("score", "2", "finished"),
    ]
    assert {r["env_version"] for r in runs} == {"5"}
    assert float(runs[1]["last3_return_mean"]) == 300.0  # the mean of 200, 300 and 400
    assert float(runs[1]["last3_distance_mean"]) == 3.0
    assert runs[0]["last3_return_mean"] == "nan"
    assert [r["return_mean"] for r in table(opts.out / "evaluations.csv")] == ["100.0", "200.0", "300.0", "400.0"]


def test_the_command_is_what_a_user_would_type(tmp_path):
    opts = options(tmp_path, fields="--a2c.gamma 0.9", setting=["K = 128: --diffusion.sampling-steps 128"])
    (name, fields), = seeds.settings_of(opts).items()
    cell = seeds.cell_of(opts, name, fields, 7)
    words = ["train", "--env", "hopper", "--preset", "cpu", "--seed", "7", "--run"]
    fields = ["--diffusion.sampling-steps", "128", "--a2c.gamma", "0.9"]
    assert cell.command[1:] == ("-m", "polygrad_jax.cli", *words, str(tmp_path / "runs" / "K-128-seed7"), *fields)


@pytest.mark.parametrize(
    ("given", "line"),
    [
        ({"setting": ["--a2c.gamma 1"]}, 'seeds: --setting is --a2c.gamma 1; allowed: "NAME: FIELDS"'),
        ({"setting": ["a b: ", "a/b: "]}, "seeds: two settings are named a-b; allowed: names that differ in letters"),
    ],
)
def test_settings_that_cannot_be_told_apart(given, line, tmp_path, capsys):
    with pytest.raises(SystemExit) as end:
        seeds.settings_of(options(tmp_path, **given))
    assert end.value.code == 2
    assert capsys.readouterr().err.startswith(line)


def test_the_figure_is_made_from_the_csv_files_alone(trained, tmp_path):
    opts = options(tmp_path, seeds=[0, 1], rules=["score"], setting=["other: --seed 3"])
    trained |= {0: (0, (100.0, 200.0, 300.0)), 1: (0, (50.0, 60.0))}
    assert seeds.run_grid(opts) == 0
    for folder in opts.runs.iterdir():
        folder.rename(tmp_path / f"gone-{folder.name}")
    seeds.draw(opts.out)
    assert (opts.out / "curves.png").stat().st_size > 5_000
    before = table(opts.out / "evaluations.csv")
    opts.seeds = [0, 1, 2]  # goes on in a clone: the CSV files are all there is of the first two seeds
    trained |= {2: (0, (70.0, 80.0))}
    assert seeds.run_grid(opts) == 0
    after = table(opts.out / "evaluations.csv")
    assert [row for row in after if row["seed"] != "2"] == before and len(after) > len(before)
    other = next(folder for folder in opts.runs.iterdir() if folder.name == "score-seed2")
    other.rename(opts.runs / "score-seed0")  # another run in the place of one that is gone
    assert seeds.run_grid(opts) == 0
    assert [row for row in table(opts.out / "evaluations.csv") if row["seed"] == "0"] == [
        row for row in before if row["seed"] == "0"
    ]


def test_settings_along_the_value_of_a_field(trained, tmp_path):
    """A run that diverged counts as 0 and is told apart. A number that is no field's value in every run is no axis."""
    settings = [f"{name} {x}: --a2c.gamma {x} --a2c.target-change 0.3" for name in ("a b", "c") for x in (0.03, 0.3)]
    opts = options(tmp_path, seeds=[0, 1], setting=settings)
    trained |= {0: (0, (100.0, 200.0, 300.0)), 1: (3, (50.0, 60.0))}
    assert seeds.run_grid(opts) == 0
    rows = table(opts.out / "runs.csv")
    assert seeds.field_along(rows) == "a2c.gamma"
    runs = [(200.0, True), (0.0, False)]
    assert seeds.along(rows) == {"a b": {0.03: runs, 0.3: runs}, "c": {0.03: runs, 0.3: runs}}
    seeds.draw_along(opts.out)
    assert (opts.out / "along.png").stat().st_size > 5_000
    assert seeds.field_along([rows[0] | {"setting": "score"}, *rows[1:]]) is None
    assert seeds.field_along([rows[0] | {"setting": "a b 0.5"}, *rows[1:]]) is None
    assert seeds.field_along([row for row in rows if row["setting"] == "c 0.3"]) is None
