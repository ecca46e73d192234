"""Scripts typed with a Python that has no jax: they continue in the clone's ``.venv``, or say what to type."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from experiments.harness import in_venv

CLONE = Path(in_venv.__file__).parents[2]
OF_ANOTHER_PYTHON = ("official_sampler.py", "official_loop.py")  # child processes of the interpreter that has torch
SCRIPTS = sorted(
    path.relative_to(CLONE)
    for folder in ("experiments", "benchmarks")
    for path in (CLONE / folder).rglob("*.py")
    if 'if __name__ == "__main__":' in path.read_text() and path.name not in OF_ANOTHER_PYTHON
)


@pytest.fixture(scope="module")
def clone(tmp_path_factory):
    """A clone of the scripts alone."""
    folder = tmp_path_factory.mktemp("clone")
    for name in ("experiments", "benchmarks", "polygrad_jax"):
        shutil.copytree(CLONE / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", "runs"))
    return folder


@pytest.fixture(scope="module")
def bare_python(tmp_path_factory):
    """A Python without jax: an environment of this one, with nothing installed."""
    folder = tmp_path_factory.mktemp("bare")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    return folder / "bin" / "python"


def typed(python, script, clone, *words):
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return subprocess.run([python, script, *words], cwd=clone, env=environment, capture_output=True, text=True)


def test_there_are_scripts():
    some = {"rollout_speed.py", "training_speed.py", "training_runs.py", "guidance_error.py"}
    assert some <= {path.name for path in SCRIPTS}


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_without_a_venv_one_line_says_what_to_type(script, clone, bare_python):
    done = typed(bare_python, script, clone, "--help")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"{script.name}: this Python has no jax; type: make install\n"


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_with_a_venv_the_same_command_continues_there(script, clone, bare_python):
    """A stand-in for its Python writes what it was called with, in the folder of the caller."""
    python = clone / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    try:
        python.write_text('#!/bin/sh\nprintf "%s|" "$PWD" "$@"\nexit 7\n')
        python.chmod(0o755)
        done = typed(bare_python, script, clone, "--out", "a b")
    finally:
        shutil.rmtree(clone / ".venv")
    assert (done.returncode, done.stdout, done.stderr) == (7, f"{clone}|{script}|--out|a b|", "")


def test_the_venv_itself_without_jax_does_not_continue_in_itself(clone):
    """An installation that was interrupted: one line, and no loop."""
    try:
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(clone / ".venv")], check=True)
        done = typed(clone / ".venv" / "bin" / "python", SCRIPTS[0], clone, "--help")
    finally:
        shutil.rmtree(clone / ".venv")
    assert (done.returncode, done.stderr) == (2, f"{SCRIPTS[0].name}: this Python has no jax; type: make install\n")


def test_a_program_that_is_none_of_the_scripts_goes_on(monkeypatch):
    assert in_venv.is_our_script(CLONE / "benchmarks" / "rollout_speed.py")
    assert not in_venv.is_our_script(Path(__file__)) and not in_venv.is_our_script(None)
    monkeypatch.setattr(os, "execv", lambda *_: pytest.fail("this Python has everything"))
    in_venv.continue_in_venv("x.py", Path("/nowhere"))
