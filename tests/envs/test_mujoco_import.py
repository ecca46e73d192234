"""A MuJoCo that does not import, and a task whose module or bridge fails, are one line that says what to do."""

import importlib
import os
import subprocess
import sys
from pathlib import Path

import gymnasium as gym
import pytest

from polygrad_jax import cli
from polygrad_jax.config import ConfigError, EnvConfig
from polygrad_jax.envs import mujoco_import, tasks


def fake(monkeypatch, tmp_path, module, text):
    """A package of this name, found before the installed one."""
    folder = tmp_path / module
    folder.mkdir()
    (folder / "__init__.py").write_text(text)
    for name in [module, *(name for name in sys.modules if name.startswith(f"{module}."))]:
        monkeypatch.setitem(sys.modules, name, None)  # so that it is as before afterwards
        del sys.modules[name]
    monkeypatch.syspath_prepend(tmp_path)
    importlib.invalidate_caches()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("raise ImportError('no bindings.\\nRepair your environment with:\\n  pip')", "ImportError: no bindings)"),
        ("raise OSError('libmujoco.so.4: cannot open')", "OSError: libmujoco.so.4: cannot open"),
        ("import mujoco.structs", "ModuleNotFoundError: No module named 'mujoco.structs'"),
        ("from . import MjModel", "cannot import name 'MjModel'"),
        ("def broken(:", "SyntaxError"),
        ("", "it has no MjModel"),
    ],
)
@pytest.mark.parametrize("version", ["3.17.0", "4.0.0"])
def test_a_mujoco_that_does_not_import_is_named_with_what_to_type(monkeypatch, tmp_path, text, words, version):
    fake(monkeypatch, tmp_path, "mujoco", text)
    monkeypatch.setattr(mujoco_import, "_version", lambda: version)
    assert mujoco_import.import_mujoco() is None
    line = mujoco_import.blamed(RuntimeError("MuJoCo is not installed"))
    assert words in line and "\n" not in line
    packages = "mujoco==3.17.0" if version == "3.17.0" else "mujoco==4.0.0 mujoco-core==4.0.0 mujoco-studio==4.0.0"
    assert line.endswith(f"allowed: pip install --force-reinstall --no-deps {packages}")


def test_a_mujoco_that_works_or_is_not_there_is_not_blamed(monkeypatch):
    assert mujoco_import.blamed(RuntimeError("the task's own")) is None
    monkeypatch.setitem(sys.modules, "mujoco", None)
    assert mujoco_import.blamed(RuntimeError("MuJoCo is not installed")) is None


@pytest.mark.parametrize(("env", "code", "words"), [("hopper", 2, "--force-reinstall"), ("Pendulum-v1", 0, "")])
def test_the_command_with_a_broken_mujoco(tmp_path, env, code, words):
    """Gymnasium alone would say that MuJoCo is not installed. A task without MuJoCo does not need it."""
    (tmp_path / "mujoco").mkdir()
    (tmp_path / "mujoco" / "__init__.py").write_text("raise ImportError('core bindings are missing')")
    root = Path(cli.__file__).parents[1]
    program = (
        "import sys\nfrom polygrad_jax import cli\ncli.train_command = lambda words: bool(cli._config_to_train("
        "*cli._train_parser().parse_known_args(words))) - 1\ncli.COMMANDS['train'] = cli.train_command\n"
        f"sys.exit(cli.main(['train', '--env', '{env}', '--preset', 'smoke']))"
    )
    path = os.pathsep.join([str(tmp_path), str(root)])
    done = subprocess.run([sys.executable, "-c", program], env={"PYTHONPATH": path}, capture_output=True, text=True)
    assert (done.returncode, done.stderr.count("\n")) == (code, int(code == 2)), done.stderr
    assert words in done.stderr


@pytest.mark.parametrize("bridge", mujoco_import.BRIDGES)
def test_a_bridge_that_fails_under_this_mujoco_is_named_with_the_one_it_needs(monkeypatch, tmp_path, bridge):
    fake(monkeypatch, tmp_path, bridge, "def load():\n    raise AttributeError('no attribute flex_vertedge')\n")
    gym.register(f"{bridge}-v0", entry_point=lambda render_mode=None: importlib.import_module(bridge).load())
    _, first, below, release = mujoco_import.BRIDGES[bridge]
    monkeypatch.setattr(mujoco_import, "_version", lambda: "{}.{}.1".format(*below))
    with pytest.raises(ConfigError) as refused:
        tasks.make(EnvConfig(name=f"{bridge}-v0"))
    line = str(refused.value)
    assert "flex_vertedge" in line and f"mujoco {below[0]}.{below[1]}.1" in line and f"mujoco=={release}" in line
    # under the MuJoCo that it needs, the failure is the task's own
    monkeypatch.setattr(mujoco_import, "_version", lambda: release)
    with pytest.raises(ConfigError, match="AttributeError: no attribute flex_vertedge") as refused:
        tasks.make(EnvConfig(name=f"{bridge}-v0"))
    assert "mujoco" not in str(refused.value)
    assert first <= tuple(int(part) for part in release.split(".")[:2]) < below


@pytest.mark.parametrize(
    ("module", "needs"),
    [
        ("shimmy", "dm_control 1.0.50 and mujoco==3.17.0"),
        ("dm_control", "dm_control 1.0.50 and mujoco==3.17.0"),
        ("gymnasium_robotics", "gymnasium-robotics 1.4.2 and mujoco==3.11.0"),
    ],
)
@pytest.mark.parametrize("named_by", ["its task", "module:id"])
def test_a_bridge_that_is_not_installed_is_named_with_what_it_needs(monkeypatch, module, needs, named_by):
    monkeypatch.setitem(sys.modules, module, None)  # importing it fails as if it were not there
    name = f"{module}:Task-v0"
    if named_by == "its task":
        gym.register(name := f"Missing{module}-v0", lambda render_mode=None: importlib.import_module(module))
    with pytest.raises(ConfigError) as refused:
        tasks.make(EnvConfig(name=name))
    wanted = f"no module named '{module}'; allowed: an environment with {needs}, which docs/installation.md describes"
    assert str(refused.value) == f"env.name is '{name}', which does not start: {wanted}"


def test_another_module_that_is_missing_is_no_bridge():
    assert mujoco_import.blamed(ModuleNotFoundError("no", name="no_such_package")) is None
    assert mujoco_import.blamed(ImportError("its own words", name="dm_control")) is None


@pytest.mark.parametrize("text", ["import no_such_package", "raise RuntimeError('licence')", "1 / 0", "def f(:"])
def test_a_task_module_that_does_not_import_is_one_line(monkeypatch, tmp_path, capsys, text):
    fake(monkeypatch, tmp_path, "failing_tasks", text)
    monkeypatch.chdir(tmp_path)
    assert cli.main(["train", "--env", "failing_tasks:Task-v0", "--preset", "smoke"]) == cli.BAD_INPUT
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1 and "failing_tasks:Task-v0" in lines[0] and "does not start" in lines[0], lines
