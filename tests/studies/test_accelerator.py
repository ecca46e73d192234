"""``make accelerator``: every part within its time, whatever becomes of the others, and a page of what was measured."""

import importlib.util
import sys
import time
from pathlib import Path

import pytest

from experiments.harness import grid
from polygrad_jax import cli
from polygrad_jax import config as configs

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def accelerator():
    sys.path.insert(0, str(BENCHMARKS))
    spec = importlib.util.spec_from_file_location("accelerator", BENCHMARKS / "accelerator.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["accelerator"] = module
    spec.loader.exec_module(module)
    yield module
    sys.path.remove(str(BENCHMARKS))


def python(program):
    return [sys.executable, "-c", program]


def test_a_part_that_fails_or_hangs_is_said_and_the_time_is_kept(accelerator, tmp_path):
    deadline = time.monotonic() + 60
    made = {}
    for name, program, at_most in (
        ("good", "print('rows')", 30.0),
        ("bad", "raise SystemExit(3)", 30.0),
        ("long", "import time; time.sleep(100)", 0.5),
    ):
        made[name] = accelerator.Part(name, python(program), at_most)
        accelerator.run(made[name], deadline, tmp_path / name)
    assert [part.ended for part in made.values()] == ["ended", "failed with exit code 3", "did not end in its time"]
    assert (tmp_path / "good").read_text() == "rows\n"
    late = accelerator.Part("late", python(""), 30.0)
    accelerator.run(late, time.monotonic() - 1, tmp_path / "late")
    assert late.ended == "did not begin: no time was left" and not (tmp_path / "late").exists()


def test_a_training_is_asked_to_save(accelerator, tmp_path):
    program = (
        "import signal, sys, time; signal.signal(signal.SIGTERM, lambda *_: (print('saved'), sys.exit(143))); "
        "print('ready', flush=True); time.sleep(60)"
    )
    part = accelerator.Part("training", python(program), 3.0, trains=True)
    accelerator.run(part, time.monotonic() + 60, tmp_path / "log")
    assert part.ended == "stopped at its time" and part.seconds < 20
    assert (tmp_path / "log").read_text() == "ready\nsaved\n"


@pytest.mark.parametrize("sizes", ["PAPER", "REHEARSED"])
def test_the_commands_are_those_of_this_version(accelerator, tmp_path, sizes):
    """Their presets are there, their fields are known, and all times together are the whole."""
    import training_speed

    rollouts, iteration, of_few, training = accelerator.parts(tmp_path, getattr(accelerator, sizes), 480.0)
    assert rollouts.at_most + iteration.at_most + of_few.at_most < 0.6 * 480.0 and training.at_most == 480.0
    for part in (iteration, of_few):
        _, args, fields = training_speed.parse(part.command[2:])
        configs.validate(cli.override(configs.preset(args.preset, "hopper"), fields))
        assert args.seeds[0] == 1 and args.out == tmp_path / f"{part.name}.csv"
    options, fields = cli._train_parser().parse_known_args(training.command[4:])
    cli.build_config(options, fields, options.preset)
    assert options.run == tmp_path / "hopper_run"


def test_the_page_says_what_was_measured_and_what_was_not(accelerator, tmp_path):
    """2,000 steps a second of 4 seeds are 500 of each: a million take 2,000 s, 33 minutes."""
    row = {"seeds": 4, "env_steps/s": 2000.0, "share_of_peak": 0.374, "of_runs_in_turn": 0.5}
    alone = row | {"seeds": 1, "share_of_peak": 8.9e-05, "of_runs_in_turn": ""}
    grid.write_csv(tmp_path / "training_speed.csv", [alone, row])
    grid.write_csv(tmp_path / "hopper.csv", [{"env_step": 5000, "seconds": 90.0, "return_mean": 321.4}])
    part = accelerator.Part("training_speed", [], 1.0, ended="ended", seconds=12.3)
    text = accelerator.page(tmp_path, [part], "gpu: X", False, "python benchmarks/accelerator.py")
    assert "| training_speed | ended | 12 |" in text and "gpu: X." in text
    assert "| 128 | 1 | 2000 | 8 | 0.00 | - |" in text and "| 128 | 4 | 2000 | 33 | 0.37 | 0.50 |" in text
    assert "Return 321 at 5,000 environment steps, after 1.5 minutes without compiling." in text
    assert "A batch of imagined trajectories" not in text and "rehearsal" not in text
    assert "Not measured: matrix products counted from shapes" in text
    assert "| 128 | 4.9e+17 | 121.6 | 8.2 |" in text  # DESIGN's 4.9e17 over 67 and 989 TFLOP/s
    assert "says anything about speed" in accelerator.page(tmp_path, [part], "cpu: cpu", True, "x")


def test_evaluations_are_kept_beside_seconds(accelerator, tmp_path):
    folder = tmp_path / "hopper_run"
    folder.mkdir()
    (folder / "eval.csv").write_text("env_steps,return_mean\n100,5.5\n")
    clock = '"seconds/training": 2.0, "seconds/collecting": 0.25, "seconds/evaluating": 0.0, "seconds/compiling": 9.0'
    left_by_a_kill = '{"env_steps": 150, "seconds/tr'
    (folder / "metrics.jsonl").write_text(f'{{"env_steps": 100, {clock}, "agent/loss": 7.0}}\n{left_by_a_kill}')
    accelerator.keep_training(tmp_path)
    assert grid.read_csv(tmp_path / "hopper.csv") == [
        {"env_step": "100", "seconds": "2.2", "return_mean": "5.5"}
    ]
    assert not folder.exists()


def test_no_number_of_an_earlier_call_is_left(accelerator, tmp_path):
    for name in ("training_speed.csv", "training_speed.json", "hopper.png", "mine.txt"):
        (tmp_path / name).write_text("old")
    (tmp_path / "hopper_run").mkdir()
    accelerator.remove_earlier(tmp_path, accelerator.parts(tmp_path, accelerator.PAPER, 480.0))
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_without_an_accelerator_one_line_says_what_to_do(accelerator, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(accelerator, "find_device", lambda: ("cpu", "cpu"))
    monkeypatch.setattr(sys, "argv", ["accelerator.py", "--out", str(tmp_path / "out")])
    assert accelerator.main() == 2
    assert capsys.readouterr().err == "JAX found no accelerator; allowed: --rehearse --out FOLDER, at small sizes\n"
    assert not (tmp_path / "out").exists()
