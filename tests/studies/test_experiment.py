"""The command line that every experiment has: cells are the script itself, and the exit codes say what became of it."""

import runpy
import textwrap
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from experiments.harness import experiment, grid, opened_runs, study
from experiments.world_models import prediction_error
from polygrad_jax import config as configs
from polygrad_jax.config import ConfigError
from polygrad_jax.data.recordings import Episode
from polygrad_jax.training.step import NonFiniteError

CLONE = Path(experiment.__file__).parents[2]
SCRIPT = """
import sys
from pathlib import Path
sys.path.insert(0, {clone!r})
from experiments.harness import experiment
from polygrad_jax.training.step import NonFiniteError

def measure(options, number):
    yield {{"half": number / 3 * options.times, "of": number}}
    if number == 2:
        raise NonFiniteError("not finite: x")

one = experiment.Experiment(
    Path(__file__), "?", lambda out: (out / "drawn").write_text(""),
    cells=lambda options: {{f"n{{n}}": n for n in options.numbers}}, measure=measure,
    add_arguments=lambda p: (p.add_argument("--numbers", type=int, nargs="+"), p.add_argument("--times", type=float)),
    labels=lambda number: {{"number": number}},
    gather=lambda options: (options.out / "gathered").write_text(""),
)
if __name__ == "__main__":
    sys.exit(experiment.run(one))
"""


def test_a_cell_is_the_script_with_the_same_options(tmp_path):
    script = tmp_path / "thirds.py"
    script.write_text(textwrap.dedent(SCRIPT.format(clone=str(CLONE))))
    out = tmp_path / "out"
    # the grid in this process, its cells in processes of their own
    one = runpy.run_path(str(script))["one"]
    words = ["--out", str(out), "--numbers", "1", "2", "--times", "0.5", "--jobs", "2"]
    assert experiment.run(one, words) == 0
    rows = grid.read_csv(out / "thirds.csv")
    assert [(r["cell"], r["outcome"], r["number"], r["half"]) for r in rows] == [
        ("n1", "finished", "1", "0.16667"),
        ("n2", "diverged", "2", ""),  # and no row of what it had measured before
    ]
    assert rows[0]["device"] and (out / "drawn").exists() and (out / "gathered").exists()
    assert "thirds: not finite: x" in (out / "thirds.cells" / "n2.log").read_text()


def made(tmp_path, **more) -> experiment.Experiment:
    return experiment.Experiment(tmp_path / "asks.py", "?", lambda out: (out / "drawn").touch(), **more)


def test_bad_input_is_one_line_and_exit_code_2(tmp_path, capsys):
    def refuse(_):
        raise ConfigError("--x is 1; allowed: 2")

    assert experiment.run(made(tmp_path, cells=refuse), ["--out", str(tmp_path)]) == 2
    assert capsys.readouterr().err == "asks: --x is 1; allowed: 2\n"
    arguments = ["--out", str(tmp_path), "--only", "b"]
    assert experiment.run(made(tmp_path, cells=lambda _: {"a": 1}), arguments) == 2
    assert capsys.readouterr().err == "asks: --only is b; allowed: a\n"


def test_a_diverged_cell_is_exit_code_3(tmp_path, capsys):
    def diverge(*_):
        raise NonFiniteError("not finite: x")

    asks = made(tmp_path, cells=lambda _: {"a": 1}, measure=diverge)
    assert experiment.run(asks, ["--out", str(tmp_path), "--cell", "a", "--rows", str(tmp_path / "rows.json")]) == 3
    assert capsys.readouterr().err == "asks: not finite: x\n" and not (tmp_path / "rows.json").exists()


def test_figures_alone_run_nothing(tmp_path, capsys):
    asks = made(tmp_path, gather=lambda options: (options.out / "asks.csv").write_text("a\n1\n"))
    assert experiment.run(asks, ["--out", str(tmp_path), "--figure-only"]) == 2  # it was 0, without a word or a figure
    allowed = "allowed with --figure-only: a folder with a asks.csv"
    assert capsys.readouterr().err == f"asks: --out is {tmp_path}; {allowed}\n"
    assert not list(tmp_path.iterdir())  # no CSV, no figure
    assert experiment.run(asks, ["--out", str(tmp_path)]) == 0
    assert (tmp_path / "drawn").exists()
    (tmp_path / "drawn").unlink()
    assert experiment.run(asks, ["--out", str(tmp_path), "--figure-only"]) == 0
    assert (tmp_path / "drawn").exists()


@pytest.mark.parametrize(
    ("fields", "line"),
    [
        ({"world_model": "ensemble"}, "world_model is ensemble; allowed: polygrad"),
        ({"denoiser.context_length": 2}, "denoiser.context_length is 2; allowed: 1"),
    ],
)
def test_a_run_without_a_denoiser_of_one_state_is_refused(fields, line):
    """The denoiser was fitted first; then there was none, or it was shown fewer states than it had learnt from."""
    run = SimpleNamespace(config=configs.override(configs.cpu("hopper"), fields))
    options = SimpleNamespace(fields="")
    with pytest.raises(ConfigError, match=line):
        opened_runs.config_of(run, options)
    options.fields = "--world-model polygrad --denoiser.context-length 1"
    assert opened_runs.config_of(run, options).diffusion.num_steps == opened_runs.NUM_STEPS


def test_episodes_too_short_for_the_horizon_are_named():
    """It was numpy's ValueError, after the denoiser had been fitted."""
    episode = Episode(np.zeros((10, 2)), np.zeros((10, 1)), np.zeros(10), terminated=True)
    assert set(opened_runs.drawn_rows([episode], 9)) == {0}
    with pytest.raises(ConfigError, match="horizon is 10; allowed: below 10, the steps of the longest episode"):
        opened_runs.drawn_rows([episode], 10)


def test_cells_of_runs_and_of_studies_keep_their_names(tmp_path):
    """They are the names in the CSV files of results: with others a grid would not find its rows."""
    for folder in (tmp_path / "a" / "r0", tmp_path / "b" / "a" / "r0"):
        folder.mkdir(parents=True)
        (folder / "config.json").write_text("{}")
    parser = made(tmp_path, cells=lambda _: {}, add_arguments=opened_runs.add_arguments).parser()
    options = parser.parse_args(["--out", "x", str(tmp_path / "a" / "r0"), "--fields", "--denoiser.width 512"])
    assert list(opened_runs.cells(options, (("-h10", 10),))) == ["a-r0-h10-denoiser.width-512"]
    with pytest.raises(ConfigError, match="RUN is missing"):
        opened_runs.cells(parser.parse_args(["--out", "x"]))
    for words, line in (
        ([str(tmp_path / "b" / "a" / "r0")], "/a/r0 and .*/b/a/r0; allowed: runs whose last two names differ"),
        (["--data-rows", "0"], "--data-rows is 0; allowed: 1 or more"),
        (["--updates", "-1"], "--updates is -1; allowed: 0 or more"),
        ([str(tmp_path / "c")], "run folder .*/c has no config.json"),
        (["--fields", "'"], "--fields is '; allowed: words as in a shell"),
    ):
        with pytest.raises(ConfigError, match=line):  # the first of two runs was left out, -1 taken for 1
            opened_runs.cells(parser.parse_args(["--out", "x", str(tmp_path / "a" / "r0"), *words]))
    asked = study.Study(Path("prediction_error.py"), "?", prediction_error.MODELS, {}, print)
    parser = made(tmp_path, cells=lambda _: {}, add_arguments=lambda p: study.add_arguments(asked, p)).parser()
    words = ["--out", "y", "--dataset", str(tmp_path / "hopper-115k" / "score-seed0"), "--seconds", "1200"]
    options = parser.parse_args([*words, "--transitions", "100000", "--seeds", "0", "--models", "PolyGRAD MLP"])
    (name, varied), = study.cells_of(asked, options).items()
    assert name == "hopper-115k-score-seed0-PolyGRAD-MLP-cpu-1200s-h10-n100000-seed0"
    assert varied.folder == Path("runs/prediction_error-y") / name
    assert varied.labels() == {"model": "PolyGRAD MLP", "seed": 0, "horizon": 10, "transitions": 100000}
