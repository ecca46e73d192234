"""The command line: a mistake is one line, exit code 2, and nothing is written."""

import dataclasses
import os

import pytest

from polygrad_jax import cli
from polygrad_jax import config as configs


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
        (["train", "--preset", "huge"], ("preset is huge", "paper, cpu, smoke")),
        (["train", "--seed", "-1"], ("seed is -1", "from 0")),
        (["train", "--seed", "one"], ("--seed", "one", "int")),
        (["train", "--a2c.gamna", "0.9"], ("--a2c.gamna", "--a2c.gamma")),
        (["train", "--a2c.gamma", "fast"], ("gamma", "fast", "float")),
        (["train", "--a2c.gamma", "1.5"], ("a2c.gamma is 1.5", "from 0 to 1")),
        (["train", "--a2c.gamma", "nan"], ("a2c.gamma is nan", "finite")),
        (["train", "--guidance.rule", "luck"], ("rule", "luck", "score")),
        (["train", "--env.version", "3"], ("env.version is 3", "4 or 5")),
        (["train", "--diffusion.sampling-steps", "999"], ("diffusion.sampling_steps is 999", "diffusion.num_steps")),
        (["train", "--diffusion.sampling-tau", "0.1"], ("diffusion.sampling_tau is 0.1", "fewer diffusion.sampling_")),
        (["train", "--diffusion.sampling-floor", "0.1"], ("diffusion.sampling_floor is 0.1", "allowed: 0")),
        (
            "train --diffusion.sampling-steps 4 --diffusion.sampling-tau 1 --diffusion.sampling-floor 0.99".split(),
            ("diffusion.sampling_floor is 0.99", "allowed: at most 0.9569"),
        ),
        (["train", "--loop.env-steps-per-iteration", "3"], ("loop.env_steps_per_iteration is 3", "multiple")),
        (["train", "--loop.total-env-steps", "10"], ("loop.total_env_steps is 10", "loop.prefill_env_steps")),
        (["train", "--loop.prefill-env-steps", "60", "--loop.replay-capacity", "200"], ("capacity is 200", "256")),
        (["train", "--env.name", "walker2d"], ("env.name", "--env NAME")),
        (["train", "--a2c.min-std", "2.0"], ("a2c.initial_std", "a2c.min_std (2.0)")),
        (["train", "--learner", "latent"], ("learner is latent with world_model polygrad", "world_model dreamer")),
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
    fields = ["--a2c.gae-lambda", "0.5", "--loop.overlap", "--precision", "float32"]
    config = cli.override(configs.cpu("hopper"), fields)
    assert (config.a2c.gae_lambda, config.loop.overlap, config.precision) == (0.5, True, "float32")
    expected = dataclasses.replace(
        configs.cpu("hopper"),
        precision="float32",
        a2c=dataclasses.replace(configs.cpu("hopper").a2c, gae_lambda=0.5),
        loop=dataclasses.replace(configs.cpu("hopper").loop, overlap=True),
    )
    assert config == expected, "a field that was not named changed"
    assert cli.override(config, ["--loop.no-overlap"]).loop.overlap is False


def test_a_run_folder_alone_means_the_config_of_its_run(tmp_path):
    saved = dataclasses.replace(configs.smoke("walker2d"), seed=3, horizon=7)
    (tmp_path / "config.json").write_text(configs.to_json(saved))
    parse = cli._train_parser().parse_known_args
    config, why = cli._config_to_train(*parse(["--run", str(tmp_path)]))
    assert (config, why) == (saved, "the run folder's own")
    longer, _ = cli._config_to_train(*parse(["--run", str(tmp_path), "--loop.total-env-steps", "9000"]))
    assert longer == dataclasses.replace(saved, loop=dataclasses.replace(saved.loop, total_env_steps=9000))
    # whoever names an environment, a preset or a seed says what the whole config is
    named, _ = cli._config_to_train(*parse(["--run", str(tmp_path), "--env", "walker2d", "--preset", "smoke"]))
    assert (named.seed, named.horizon) == (0, 10)


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
    assert "preset paper does not go with these fields: diffusion.sampling_steps is 128" in cli._cost_of_other(
        options, fields, "cpu"
    )


def test_ctrl_c_is_one_line_too(monkeypatch, capsys):
    def interrupted(arguments):
        raise KeyboardInterrupt

    monkeypatch.setitem(cli.COMMANDS, "train", interrupted)
    assert cli.main(["train"]) == 130
    assert len(capsys.readouterr().err.strip().splitlines()) == 1


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
