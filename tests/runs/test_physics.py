"""One task id is another task under another MuJoCo: results say their version, and two are not mixed unless asked."""

import json

import gymnasium as gym
import pytest
import tasks_of_users as users

from polygrad_jax import cli
from polygrad_jax import config as configs
from polygrad_jax.config import ConfigError, EnvConfig
from polygrad_jax.envs import mujoco_state, tasks
from polygrad_jax.runs import physics
from polygrad_jax.runs.metrics_log import MetricsLog
from polygrad_jax.runs.physics import Used
from polygrad_jax.runs.run_folder import RunFolder
from polygrad_jax.runs.saved_run import read_evaluations

TODAY = physics.installed_mujoco()


@pytest.mark.parametrize(
    ("used", "mixed"),
    [
        ([], False),
        ([Used("Hopper-v5", "4.0.0", "a"), Used("Hopper-v5", "4.0.0", "b")], False),
        ([Used("Hopper-v5", "4.0.0", "a"), Used("Hopper-v4", "3.4.0", "b")], False),
        ([Used("Pendulum-v1", "none", "a"), Used("Pendulum-v1", "4.0.0", "b")], False),
        ([Used("Hopper-v5", "", "a"), Used("Hopper-v5", "", "a")], False),  # joined before
        ([Used("Hopper-v5", "4.0.0", "a"), Used("Hopper-v5", "4.0.1", "b")], True),
        ([Used("Hopper-v5", "4.0.0", "a"), Used("Hopper-v5", "3.4.0", "a")], True),
        ([Used("Hopper-v5", "", "a"), Used("Hopper-v5", "", "b")], True),
        ([Used("Hopper-v5", "", "a"), Used("Hopper-v5", "4.0.0", "b")], True),
        ([Used("Ant-v5", "3.4.0 4.0.0", "a"), Used("Ant-v5", "4.0.0", "b")], True),
        ([Used("Ant-v5", "4.0.0", "a"), Used("Hopper-v5", "1", "a"), Used("Ant-v5", "4", "b")], True),
    ],
)
def test_one_task_has_one_physics(used, mixed):
    physics.refuse_mixed(used, asked=True)
    if not mixed:
        physics.refuse_mixed(used, asked=False)
        return
    with pytest.raises(ConfigError, match=rf"{used[-1].task} is another task .*; allowed: one version, or --mixed-ph"):
        physics.refuse_mixed(used, asked=False)


def test_versions_of_runs_and_rows():
    old, new = {"packages": {"mujoco": "3.4.0"}}, {"mujoco": "4.0.0", "packages": {"mujoco": "4.0.0"}}
    assert physics.versions_of_run({}) == [""]
    assert physics.version_of_run(new | {"earlier": [old, new]}) == "3.4.0 4.0.0"
    assert physics.versions_of_run(old | {"earlier": [new, old, new]}) == ["4.0.0", "3.4.0"]  # the newest is last
    assert physics.version_of_run({"mujoco": "none", "packages": {"mujoco": "4.0.0"}}) == "none"
    rows = [{"mujoco": "4.0.0"}, {"mujoco": "", "packages": "jax=0.10.2 mujoco=3.4.0"}, {"packages": "jax=1"}, {}]
    assert [physics.version_of_row(row) for row in rows] == ["4.0.0", "3.4.0", "", ""]
    assert physics.in_words(physics.versions_of_rows(rows)) == "MuJoCo 4.0.0 and 3.4.0"
    assert [physics.in_words(version) for version in ("none", "")] == ["", "MuJoCo version not recorded"]


class ThroughAnother(gym.Env):
    """A bridge: keeps a simulation of MuJoCo, and is none of Gymnasium's tasks."""

    observation_space, action_space = users.ANYWHERE, users.Trading.action_space

    def __init__(self, render_mode=None):
        self.simulation = gym.make("InvertedPendulum-v5").unwrapped.data


@pytest.mark.parametrize(
    ("name", "version"),
    [
        ("hopper", TODAY),
        ("Reacher-v5", TODAY),
        ("Pendulum-v1", "none"),
        ("Trading", "none"),
        ("ThroughAnother", TODAY),
        ("recorded", "none"),
    ],
)
def test_which_tasks_mujoco_simulates(name, version):
    ours = {"Trading": users.Trading, "ThroughAnother": ThroughAnother}
    name = users.register(ours[name], f"Physics{name}") if name in ours else name
    assert physics.todays_mujoco(EnvConfig(name)) == version
    if version == TODAY and name.startswith("Users"):
        assert not mujoco_state.is_mujoco(tasks.make(EnvConfig(name)))


def a_run(folder, env, environment, step=100):
    """A folder with a run whose newest checkpoint is at ``step``."""
    config = configs.smoke(env)
    RunFolder(folder).record(config, environment)
    if step:
        (folder / "checkpoints" / str(step)).mkdir(parents=True)
    return config


@pytest.mark.parametrize(
    ("env", "recorded", "step", "refused"),
    [
        ("hopper", {"packages": {"mujoco": "3.4.0"}}, 100, "MuJoCo 3.4.0"),
        ("hopper", {"packages": {}}, 100, "MuJoCo version not recorded"),
        ("hopper", {"mujoco": "3.4.0", "earlier": [{"mujoco": TODAY}]}, 100, "MuJoCo 3.4.0"),
        ("hopper", {"packages": {"mujoco": "3.4.0"}}, 0, None),  # nothing was learnt yet
        ("hopper", {"packages": {"mujoco": TODAY}}, 100, None),
        ("Pendulum-v1", {"packages": {"mujoco": "3.4.0"}}, 100, None),
    ],
)
def test_a_run_is_not_resumed_under_another_physics(env, recorded, step, refused, tmp_path):
    folder = tmp_path / "run"
    config, now = a_run(folder, env, recorded, step), {"mujoco": physics.todays_mujoco(EnvConfig(env))}
    RunFolder(folder).check(config, now, mixed_physics=True)
    if refused is None:
        RunFolder(folder).check(config, now)
        return
    with pytest.raises(ConfigError) as error:
        RunFolder(folder).check(config, now)
    line = f"Hopper-v5 is another task under another MuJoCo: {refused} (run folder {folder}) and MuJoCo {TODAY} (inst"
    assert str(error.value).startswith(line)


def test_the_command_refuses_in_one_line_and_writes_nothing(tmp_path, capsys):
    folder = tmp_path / "run"
    a_run(folder, "hopper", {"packages": {"mujoco": "3.4.0"}})
    before = sorted(folder.rglob("*"))
    for words in (["train"], ["train", "--env", "hopper", "--preset", "smoke"]):
        assert cli.main([*words, "--run", str(folder)]) == cli.BAD_INPUT
        captured = capsys.readouterr()
        assert captured.out == "" and captured.err.count("\n") == 1 and "or --mixed-physics" in captured.err
    assert sorted(folder.rglob("*")) == before
    assert cli._train_parser().parse_args(["--mixed-physics"]).mixed_physics


def test_evaluations_say_their_version(tmp_path):
    """A file that was begun without the column gets it, with empty cells; readers of numbers pass over it."""
    for folder, first in ((tmp_path / "new", {"mujoco": "4.0.0"}), (tmp_path / "old", None)):
        log = MetricsLog(folder)
        log.write_evaluation(10, {"return_mean": 1.5}, first)
        log.write_evaluation(20, {"return_mean": float("nan")}, {"mujoco": "4.0.1"})
        log.close()
        assert [row.tolist() for row in read_evaluations(folder).values()][0] == [10, 20]
        assert list(read_evaluations(folder)) == ["env_steps", "return_mean"]
        known = "" if first is None else "4.0.0"
        assert (folder / "eval.csv").read_text() == f"env_steps,return_mean,mujoco\n10,1.5,{known}\n20,,4.0.1\n"


def test_the_environment_of_a_run_says_what_simulates_its_task(tmp_path):
    from recorded import config_of

    from polygrad_jax.training import loop

    for env, version in (("inverted_pendulum", TODAY), ("Pendulum-v1", "none")):
        run = loop.begin(config_of(env, 300), tmp_path / env)
        run.checkpoints.close()
        run.close()
        assert json.loads((tmp_path / env / "environment.json").read_text())["mujoco"] == version
