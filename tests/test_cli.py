"""The command line: a mistake is one line, exit code 2, and nothing is written."""

import contextlib
import dataclasses
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from unittest.mock import Mock

import pytest

from polygrad_jax import cli
from polygrad_jax import config as configs
from polygrad_jax.config import EnvSpec
from polygrad_jax.training import hosts
from polygrad_jax.training.fitting import Schedule


def complaint(capsys, *arguments):
    """Runs the command in this process; its one line of complaint."""
    assert cli.main(list(arguments)) == cli.BAD_INPUT
    captured = capsys.readouterr()
    assert captured.out == ""
    lines = captured.err.strip().splitlines()
    assert len(lines) == 1, captured.err
    return lines[0]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], ("command is nothing", "train")),
        (["fly"], ("command is fly", "train")),
        (["train", "--env", "hoper"], ("hoper", "hopper")),
        (["train", "--env", "CartPole-v1"], ("CartPole-v1", "Discrete", "Box")),
        (["train", "--preset", "huge"], ("preset is huge", "paper, cpu, cpu_long, smoke")),
        (["train", "--seed", "-1"], ("seed is -1", "from 0")),
        (["train", "--seed", "one"], ("--seed", "one", "int")),
        (["train", "--seeds", "0"], ("--seeds", "'0'", "from 1 to 256")),
        (["train", "--seeds", "0,1"], ("--seeds", "'0,1'", "how many")),
        (["train", "--seed", "4294967294", "--seeds", "3"], ("seeds are 4294967294 to 4294967296", "to 4294967295")),
        (["train", "--devices", "0"], ("--devices", "'0'", "from 1 to 1,000,000")),
        (["train", "--preset", "smoke", "--devices", "9"], ("devices is 9", "as many as JAX finds")),
        (["train", "--a2c.gamna", "0.9"], ("--a2c.gamna", "--a2c.gamma")),
        (["train", "--a2c.gamma", "fast"], ("gamma", "fast", "float")),
        (["train", "--a2c.gamma", "1.5"], ("a2c.gamma is 1.5", "from 0 to 1")),
        (["train", "--a2c.gamma", "nan"], ("a2c.gamma is nan", "finite")),
        (["train", "--guidance.rule", "luck"], ("rule", "luck", "score")),
        (["train", "--env.version", "3"], ("env.version is 3", "4 or 5")),
        (["train", "--diffusion.sampling-steps", "999"], ("diffusion.sampling_steps is 999", "diffusion.num_steps")),
        (["train", "--diffusion.sampling-tau", "0.1"], ("diffusion.sampling_tau was removed", "evenly spaced")),
        (["train", "--loop.overlap"], ("loop.overlap was removed", "each iteration collects, then learns")),
        (["train", "--loop.no-overlap"], ("loop.overlap was removed",)),
        (["train", "--loop.env-steps-per-iteration", "4"], ("was removed", "loop.env_steps_per_policy_update")),
        (["train", "--denoiser.batch-size=64"], ("denoiser.batch_size was renamed", "model_training.batch_size")),
        (["train", "--learner", "latent"], ("learner was renamed; allowed: agent", "latent is now dreamer")),
        (["train", "--loop.total-env-steps", "10"], ("loop.total_env_steps is 10", "loop.prefill_env_steps")),
        (["train", "--loop.prefill-env-steps", "60", "--loop.replay-capacity", "200"], ("capacity is 200", "256")),
        (["train", "--env.name", "walker2d"], ("env.name", "--env NAME")),
        (["fit", "--dataset", "nowhere", "--env", "walker2d"], ("--env is no field", "the task of its dataset")),
        (["fit", "--dataset", "nowhere", "--env.name=hopper"], ("--env.name is no field", "the task of its dataset")),
        (["check", "hopper", "--env", "walker2d"], ("--env is no field", "ENV of check")),
        (["train", "--a2c.min-std", "2.0"], ("a2c.initial_std", "a2c.min_std (2.0)")),
        (["train", "--agent", "dreamer"], ("agent is dreamer with world_model polygrad", "world_model dreamer")),
        (["fit"], ("--dataset",)),
        (["fit", "--dataset", "nowhere"], ("dataset nowhere is not there", "folder of a run")),
        (["fit", "--dataset", "nowhere", "--updates", "0"], ("updates is 0", "greater than 0")),
        (["fit", "--dataset", "nowhere", "--denoiser.widht", "3"], ("--denoiser.widht", "--denoiser.width")),
        (["fit", "--dataset", "nowhere", "--loop.overlap"], ("loop.overlap was removed",)),
        (["train", "--env", "Hopper-v5", "--env.hide-velocities"], ("env.hide_velocities", "Hopper-v5", "halfcheetah")),
    ],
)
def test_a_mistake_is_one_line_naming_the_thing_and_what_is_allowed(capsys, tmp_path, monkeypatch, arguments, words):
    monkeypatch.chdir(tmp_path)
    line = complaint(capsys, *arguments)
    for word in words:
        assert word in line, line
    assert not list(tmp_path.iterdir()), "a refused command wrote something"


def test_a_foreign_folder_is_refused_and_left_alone(capsys, tmp_path):
    (tmp_path / "thesis.tex").write_text("mine")
    assert cli.main(["train", "--preset", "smoke", "--run", str(tmp_path)]) == cli.BAD_INPUT
    assert "thesis.tex" in capsys.readouterr().err
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]


def test_fields_on_the_command_line_win_over_the_preset():
    fields = ["--a2c.gae-lambda", "0.5", "--preallocate-gpu-memory", "--precision", "float32"]
    config = cli.override(configs.cpu("hopper"), fields)
    expected = {"a2c.gae_lambda": 0.5, "preallocate_gpu_memory": True, "precision": "float32"}
    assert config == configs.override(configs.cpu("hopper"), expected), "a field that was not named changed"
    assert cli.override(config, ["--no-preallocate-gpu-memory"]).preallocate_gpu_memory is False


def test_a_run_folder_alone_means_the_config_of_its_run(tmp_path):
    saved = dataclasses.replace(configs.smoke("walker2d"), seed=3, horizon=7)
    (tmp_path / "config.json").write_text(configs.to_json(saved))
    parse = cli._train_parser().parse_known_args
    config, spec, why = cli._config_to_train(*parse(["--run", str(tmp_path)]))
    assert (config, spec, why) == (saved, EnvSpec(17, 6), "the run folder's own")
    longer, *_ = cli._config_to_train(*parse(["--run", str(tmp_path), "--loop.total-env-steps", "9000"]))
    assert longer == dataclasses.replace(saved, loop=dataclasses.replace(saved.loop, total_env_steps=9000))
    # whoever names an environment, a preset or a seed says what the whole config is
    named, *_ = cli._config_to_train(*parse(["--run", str(tmp_path), "--env", "walker2d", "--preset", "smoke"]))
    assert (named.seed, named.horizon) == (0, 10)


def test_a_folder_of_seeds_alone_means_all_of_them(tmp_path):
    parse = cli._train_parser().parse_known_args
    saved = dataclasses.replace(configs.smoke("walker2d"), seed=3)
    for seed in (4, 3, 10):
        (tmp_path / f"seed{seed}").mkdir()
        config = dataclasses.replace(saved, seed=seed)
        (tmp_path / f"seed{seed}" / "config.json").write_text(configs.to_json(config))
    config, _, why, seeds = cli._asked_for(*parse(["--run", str(tmp_path)]))
    assert (config, why, seeds) == (saved, "the run folder's own", [3, 4, 10])
    cli._check_folders(tmp_path, config, seeds, mixed_physics=False)
    named, _, _, seeds = cli._asked_for(*parse(["--preset", "smoke", "--seed", "8", "--seeds", "2"]))
    assert (named.seed, seeds) == (8, [8, 9])
    assert cli.default_run_folder(named, seeds) == Path("runs/hopper-smoke-seeds8to9")
    assert cli._asked_for(*parse(["--preset", "smoke"]))[3] == []


def test_several_seeds_in_the_folder_of_one_run_are_refused(capsys, tmp_path):
    (tmp_path / "config.json").write_text(configs.to_json(configs.smoke("hopper")))
    line = complaint(capsys, "train", "--preset", "smoke", "--seeds", "2", "--run", str(tmp_path))
    assert "holds one run, and 2 seeds are asked for; allowed: a folder that is new, empty or of several" in line


def test_a_folder_of_a_world_model_alone_says_that_it_is_one(capsys, tmp_path):
    """Whatever it learnt from: ``recorded`` is no task."""
    (tmp_path / "config.json").write_text(configs.to_json(configs.smoke("recorded")))
    (tmp_path / "data.json").write_text("{}")
    for more in ([], ["--env", "hopper", "--preset", "smoke"]):
        line = complaint(capsys, "train", "--run", str(tmp_path), *more)
        assert "is of a world model alone (data.json); allowed: a folder of polygrad train" in line


def test_a_verb_that_takes_one_run_names_those_of_a_folder_of_several(capsys, tmp_path):
    (tmp_path / "seed2").mkdir()
    (tmp_path / "seed2" / "config.json").write_text("{}")
    line = complaint(capsys, "plot", str(tmp_path))
    assert f"has no config.json; allowed: one of the runs in it, as {tmp_path / 'seed2'}" in line


def test_the_help_names_every_command(capsys):
    assert cli.main(["--help"]) == 0
    shown = capsys.readouterr().out
    assert list(cli.ABOUT) == list(cli.COMMANDS)
    assert [line.split()[0] for line in shown.splitlines() if line.startswith("  ")] == list(cli.COMMANDS)


@pytest.mark.parametrize("command", [name for name in cli.COMMANDS if name != "train"])
def test_the_help_of_a_command_says_every_default(command, capsys):
    """Of what takes a value; fit's budgets have theirs below. The fields of train: ``tests/config/test_schema.py``."""
    with contextlib.suppress(SystemExit):
        assert cli.main([command, "--help"]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith(f"usage: polygrad {command}") and "default" in shown
    options = shown.partition("options:\n")[2].partition("\n\n")[0]
    for entry in re.split(r"\n(?=  -)", options):
        takes_a_value = re.match(r" *(?:-\w \w+, )?--[\w-]+ [A-Z{]", entry)
        without = ("  --pretrained ", "  --dataset ", "  --updates ", "  --seconds ")
        assert not takes_a_value or "default" in entry or entry.startswith(without), entry


def test_the_help_of_check_puts_the_task_before_fields(capsys):
    """In ``--horizon 5 hopper`` the 5 is taken for the task, since argparse knows no field."""
    with pytest.raises(SystemExit):
        cli.main(["check", "--help"])
    assert capsys.readouterr().out.startswith("usage: polygrad check ENV [--preset PRESET] [--FIELD VALUE ...]")


@pytest.mark.parametrize("verb", [["train", "--show-config"], ["check", "hopper"], ["evaluate", "here"]])
def test_jax_without_the_cpu_is_refused_in_one_line(verb, capsys, monkeypatch):
    monkeypatch.setenv("JAX_PLATFORMS", "cuda")
    assert "JAX_PLATFORMS is cuda; allowed: cpu among them, as in cuda,cpu" in complaint(capsys, *verb)


def test_a_platform_that_jax_cannot_start_is_one_line(tmp_path):
    """JAX says which and why; in a program of its own, since JAX has started here."""
    command = [sys.executable, "-m", "polygrad_jax.cli", "train", "--run", str(tmp_path / "run")]
    environment = os.environ | {"JAX_PLATFORMS": "abacus,cpu"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    assert done.stderr.startswith("polygrad: Unable to initialize backend 'abacus'") and done.stderr.count("\n") == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("started", "again"),
    [("/bin/polygrad", ["/bin/polygrad"]), (cli.__file__, [sys.executable, "-m", "polygrad_jax.cli"])],
)
def test_what_is_to_be_typed_next_can_be_run(started, again, monkeypatch):
    monkeypatch.setattr(sys, "argv", [started])
    assert cli._this_program() == again


def test_the_configuration_is_shown_in_place_of_training(capsys, tmp_path):
    folder = tmp_path / "run"
    fields = ["--preset", "smoke", "--run", str(folder), "--a2c.gamma", "0.5"]
    assert cli.main(["train", *fields, "--show-config"]) == 0
    assert "  a2c.gamma = 0.5\n" in capsys.readouterr().out
    assert not folder.exists()
    assert "--show-config" in complaint(capsys, "dataset", *fields, "--show-config")


@pytest.mark.parametrize("host", ["0", "1"])
def test_a_configuration_that_is_shown_waits_for_no_other_host(host, capsys, monkeypatch):
    monkeypatch.setattr(hosts, "connect", lambda *_: pytest.fail("joined the other hosts"))
    where = ["--hosts", "2", "--host", host, "--coordinator", "10.0.0.1:8476"]
    assert cli.main(["train", "--preset", "smoke", *where, "--show-config"]) == 0
    assert "  a2c.gamma = " in capsys.readouterr().out
    assert "--coordinator is missing" in complaint(capsys, "train", *where[:4], "--show-config")


def test_the_help_shows_every_field(capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(["train", "--help"])
    assert stop.value.code == 0
    shown = capsys.readouterr().out
    for name, _ in configs.flatten(configs.paper("hopper")):
        assert "--" + name.replace("_", "-") in shown, name


def test_fields_need_only_suit_the_preset_that_is_taken():
    parse = cli._train_parser().parse_known_args
    assert cli._checked_early(*parse(["--diffusion.sampling-steps", "64"])).preset == "paper"  # cpu has N = 16
    options, fields = parse(["--diffusion.num-steps", "64"])  # paper has K = 128
    assert cli._checked_early(options, fields).preset == "cpu"


def interrupted(*_, **__):
    raise KeyboardInterrupt


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_ctrl_c_is_one_line_too(command, monkeypatch, capsys):
    """Only what trains has something to save."""
    monkeypatch.setitem(cli.COMMANDS, command, interrupted)
    assert cli.main([command]) == 130
    saves = command in ("train", "fit", "dataset")
    kept = " before it could save; a run folder keeps its last checkpoint" if saves else ""
    assert capsys.readouterr().err == f"polygrad: interrupted{kept}\n"


def test_tensorboard_is_ended_by_ctrl_c_without_a_word(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(cli.subprocess, "run", interrupted)
    assert cli.main(["tensorboard", str(tmp_path)]) == 0
    assert capsys.readouterr().err == ""


def test_memory_preallocation_is_set_before_choosing_a_preset_starts_jax(monkeypatch):
    seen = []

    def choose() -> tuple[str, str]:
        seen.append(os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"])
        return "smoke", ""

    monkeypatch.setattr(cli, "_choose_preset", choose)
    monkeypatch.delenv("XLA_PYTHON_CLIENT_PREALLOCATE", raising=False)
    for fields, expected in (([], "false"), (["--preallocate-gpu-memory"], "true")):
        cli._config_to_train(*cli._train_parser().parse_known_args(fields))
        assert seen[-1] == expected


def test_the_command_line_imports_no_jax_before_it_is_known_to_be_sound():
    program = (
        "import sys\nfrom polygrad_jax import cli\n"
        "assert cli.main(['train', '--a2c.gamma', '7']) == 2\n"
        "print(sorted({m.split('.')[0] for m in sys.modules} & {'jax', 'flax', 'gymnasium', 'matplotlib', 'orbax'}))"
    )
    root = Path(cli.__file__).parents[1]
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, env={"PYTHONPATH": str(root)}, capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr


@pytest.mark.parametrize("words", [["train", "--help"], ["evaluate", "--help"], ["--help"]], ids=" ".join)
def test_a_reader_that_closes_the_pipe_ends_the_command_without_a_word(words):
    """As in ``polygrad train --help | head``, more or less than the buffer holds (128 KiB since Python 3.14)."""
    read, write = os.pipe()
    os.close(read)
    root = Path(cli.__file__).parents[1]
    command = [sys.executable, "-m", "polygrad_jax.cli", *words]
    done = subprocess.run(command, env={"PYTHONPATH": str(root)}, stdout=write, stderr=subprocess.PIPE, text=True)
    os.close(write)
    assert (done.returncode, done.stderr) == (128 + signal.SIGPIPE, "")


def test_the_options_of_fit_are_those_of_its_schedule():
    options = cli._fit_parser().parse_args(["--dataset", "d"])
    assert Schedule(**{name: getattr(options, name) for name in Schedule.__dataclass_fields__}) == Schedule()


def test_fit_trains_with_the_presets_fields_and_a_faster_delta():
    options, fields = cli._fit_parser().parse_known_args(
        ["--dataset", "d", "--preset", "smoke", "--seed", "4", "--world-model", "ensemble"]
    )
    config = cli.fit_config(options, fields, None)
    changed = {"seed": 4, "world_model": "ensemble", "guidance.delta_lr": 0.03, "env.name": "recorded"}
    assert config == configs.override(configs.smoke("recorded"), changed)


def test_tensorboard_is_asked_for_every_point(monkeypatch, tmp_path):
    asked = []
    monkeypatch.setattr(cli.subprocess, "run", lambda command, **_: asked.append(command) or Mock(returncode=0))
    assert cli.main(["tensorboard", str(tmp_path)]) == 0
    assert asked[0][1:] == [
        "-m", "tensorboard.main", "--logdir", str(tmp_path), "--samples_per_plugin", "scalars=1000000,images=1000"
    ]  # fmt: skip
