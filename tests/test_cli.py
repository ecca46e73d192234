"""The command line: a mistake is one line, exit code 2, and nothing is written."""

import ast
import dataclasses
import os
from pathlib import Path

import pytest

from polygrad_jax import cli
from polygrad_jax import config as configs
from polygrad_jax.config import ConfigError


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


@pytest.mark.parametrize("env", ["hopper", "walker2d", "halfcheetah", "inverted_pendulum"])
@pytest.mark.parametrize("name", list(configs.PRESETS))
def test_every_preset_is_valid_and_survives_json(name, env):
    config = configs.validate(configs.preset(name, env))
    assert config.preset == name
    assert config.env.name == env
    assert configs.from_dict(configs.to_dict(config)) == config
    assert configs.PRESETS[name].__doc__


def test_the_paper_preset_is_tables_1_to_4():
    c = configs.paper("hopper")
    assert (c.a2c.trajectories, c.horizon) == (1024, 10)
    assert (c.a2c.gae_lambda, c.a2c.critic_lr, c.a2c.gamma) == (0.9, 3e-4, 0.99)
    assert (c.a2c.target_change, c.a2c.entropy_weight, c.a2c.min_std) == (0.01, 1e-5, 0.1)
    assert (c.denoiser.width, c.denoiser.num_blocks) == (1024, 6)
    assert (c.denoiser.batch_size, c.denoiser.learning_rate) == (256, 3e-4)
    assert (c.diffusion.num_steps, c.diffusion.sampling_steps, c.diffusion.tau) == (128, 128, 0.1)
    assert configs.paper("walker2d").diffusion.tau == 1.0
    assert c.loop.env_steps_per_policy_update == 4
    assert configs.denoiser_updates_per_policy_update(c) == 4
    t = configs.paper_transformer("hopper")
    assert (t.denoiser.token_dim, t.denoiser.num_heads, t.denoiser.num_blocks) == (312, 4, 6)
    assert (t.denoiser.learning_rate, t.diffusion.tau) == (1e-4, 1.0)


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


def test_a_saved_config_of_another_version_is_refused():
    saved = configs.to_dict(configs.cpu("hopper"))
    saved["a2c"]["momentum"] = 0.9
    with pytest.raises(ConfigError, match="unknown fields .*momentum"):
        configs.from_dict(saved)


def test_a_value_that_is_none_of_the_few_allowed_is_refused():
    """The command line knows them; a saved or a hand-made config may hold anything."""
    config = configs.cpu("hopper")
    wrong = dataclasses.replace(config, denoiser=dataclasses.replace(config.denoiser, shown_actions="clipped"))
    with pytest.raises(ConfigError, match=r"^denoiser.shown_actions is clipped; allowed: sampled, executed$"):
        configs.validate(wrong)
    with pytest.raises(ConfigError, match=r"^precision is float64; allowed: float32, bfloat16$"):
        configs.validate(dataclasses.replace(config, precision="float64"))
    own = dataclasses.replace(config, world_model="nothing_moves")  # the README's, which the registry may know
    assert configs.validate(own) == own


def test_a_saved_config_of_an_older_version_has_the_defaults_of_newer_fields():
    config = configs.cpu("hopper")
    saved = configs.to_dict(config)
    for part, name in [
        ("diffusion", "eta"),
        ("diffusion", "terminal_std"),
        ("guidance", "rho"),
        ("denoiser", "recent_share"),
    ]:
        del saved[part][name]
    old = configs.from_dict(saved)
    assert (old.diffusion.eta, old.diffusion.terminal_std) == (1.0, 0.0)  # what that version did
    assert (old.guidance.rho, old.denoiser.recent_share) == (1.0, 0.0)
    assert old.a2c == config.a2c and old.loop == config.loop


@pytest.mark.parametrize("task", ["hopper Hopper-v4", "inverted_pendulum InvertedPendulum-v5"])
@pytest.mark.parametrize("name", ["paper", "cpu"])
def test_a_full_gymnasium_id_has_the_settings_of_its_task(task, name):
    known, gymnasium = task.split()
    ours, theirs = configs.preset(name, known), configs.preset(name, gymnasium)
    assert theirs.env.name == gymnasium
    assert dataclasses.replace(theirs, env=ours.env) == ours


def test_another_task_has_settings_of_its_own():
    assert configs.cpu("inverted_pendulum").a2c != configs.cpu("hopper").a2c
    assert configs.task_of("my/Own-v1") == "my/own"


def test_the_help_shows_every_field_with_its_docstring(capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(["train", "--help"])
    assert stop.value.code == 0
    shown = " ".join(capsys.readouterr().out.translate({ord(c): " " for c in "│─╭╮╰╯"}).split())
    for name, _ in configs.flatten(configs.paper("hopper")):
        assert "--" + name.replace("_", "-") in shown, name
    parts = [type(part).__name__ for part in vars(configs.paper("hopper")).values()]  # and not a library learner's
    fields = [
        (kind.name, field, text)
        for kind in ast.parse(Path(configs.__file__).with_name("schema.py").read_text()).body
        if isinstance(kind, ast.ClassDef) and kind.name in ("Config", *parts)
        for field, text in zip(kind.body, [*kind.body[1:], None], strict=True)
        if isinstance(field, ast.AnnAssign) and not ast.unparse(field.annotation).endswith("Config")
    ]
    assert len(fields) > 50
    for kind, field, text in fields:
        assert isinstance(text, ast.Expr), f"{kind}.{field.target.id} has no docstring"
        assert " ".join(text.value.value.split()[:3]) in shown, f"{kind}.{field.target.id}"


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
