"""What is said where the official code cannot run beside ours; the code itself needs torch and a clone."""

import argparse
import importlib.util
import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from polygrad_jax import config as configs

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))
import official
import rollout_speed
import training_speed

PAPER = configs.paper("hopper")


@pytest.mark.parametrize("start", [rollout_speed.official_sampler, training_speed.official_loop])
def test_a_python_without_torch_is_named(tmp_path, start):
    if importlib.util.find_spec("torch"):
        pytest.skip("torch is installed")
    with pytest.raises(official.Unusable, match=r"--against-official needs torch.* torch is not installed for python"):
        start(tmp_path, sys.executable, PAPER)


def test_an_interpreter_that_is_not_there_is_named(tmp_path):
    with pytest.raises(official.Unusable, match="--official-python is /nowhere/python; it does not start"):
        training_speed.official_loop(tmp_path, "/nowhere/python", PAPER)


def test_a_folder_that_is_no_clone_is_refused(tmp_path):
    with pytest.raises(official.Unusable, match="allowed: a clone of marc-rigter/polygrad-world-models"):
        official.check_clone(tmp_path)
    (tmp_path / "polygrad" / "models").mkdir(parents=True)
    (tmp_path / "polygrad" / "models" / "diffusion.py").touch()
    official.check_clone(tmp_path)


def test_what_was_timed_is_kept(tmp_path):
    git = ["git", "-C", str(tmp_path), "-c", "user.name=n", "-c", "user.email=e"]
    subprocess.run([*git, "init", "--quiet"], check=True)
    subprocess.run([*git, "commit", "--quiet", "--allow-empty", "-m", "m"], check=True)
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\necho 2.13.0+cpu\n")
    python.chmod(0o755)
    found = official.facts(argparse.Namespace(against_official=tmp_path, official_python=str(python)))
    assert re.fullmatch("[0-9a-f]{40}", found["official_revision"]) and found["official_torch"] == "2.13.0+cpu"
    elsewhere = argparse.Namespace(against_official=tmp_path / "no clone", official_python="/nowhere/python")
    assert official.facts(elsewhere) == {"official_revision": None, "official_torch": None}
    assert official.facts(argparse.Namespace(against_official=None, official_python=sys.executable)) == {}


@pytest.mark.parametrize(
    ("other", "said"),
    [
        (configs.cpu("hopper"), "agent is value_gradient; allowed: a2c"),
        (configs.paper_transformer("hopper"), "denoiser.kind is transformer; allowed: mlp"),
        (configs.override(PAPER, {"guidance.rule": "correlated"}), "guidance.rule is correlated; allowed: score"),
        (replace(PAPER, world_model="ensemble"), "world_model is ensemble; allowed: polygrad"),
        (configs.override(PAPER, {"a2c.critic_updates": 4}), "a2c.critic_updates is 4; allowed: 1"),
    ],
)
def test_only_what_the_official_loop_computes_is_compared(tmp_path, other, said):
    with pytest.raises(official.Unusable, match=said):
        training_speed.official_loop(tmp_path, sys.executable, other)


def test_it_is_compared_on_a_cpu_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(official.jax, "default_backend", lambda: "gpu")
    with pytest.raises(official.Unusable, match="--against-official on gpu; allowed: cpu"):
        official.Child("official_loop.py", "torch", tmp_path, sys.executable, {})


def worker(folder, lines):
    """A stand-in worker that answers each line with the next of ``lines``."""
    path = folder / "worker.py"
    path.write_text(f"import sys\nfor line, answer in zip(sys.stdin, {lines!r}):\n    print(answer, flush=True)\n")
    return str(path)


def test_a_child_is_asked_run_by_run(tmp_path):
    child = official.Child(worker(tmp_path, ["ready", "0.25", "0.5"]), "torch", tmp_path, sys.executable, {"a": 1})
    assert (child.seconds(), child.seconds()) == (0.25, 0.5)
    with pytest.raises(official.Unusable, match="the official code failed"):
        child.seconds()
    child.close()


def test_a_child_that_fails_is_quoted_by_its_last_line(tmp_path):
    path = tmp_path / "worker.py"
    path.write_text("import sys\nsys.stdin.readline()\nraise SystemExit('the last line')\n")
    with pytest.raises(official.Unusable, match="the official code failed: the last line"):
        official.Child(str(path), "torch", tmp_path, sys.executable, {})


def test_sizes_are_those_of_the_paper(monkeypatch, tmp_path):
    told = {}
    monkeypatch.setattr(official, "Child", lambda *given: told.update(worker=given[0], size=given[-1]))
    training_speed.official_loop(tmp_path, sys.executable, PAPER)
    size = json.loads(json.dumps(told["size"]))  # it travels as JSON
    assert told["worker"] == "official_loop.py"
    assert (size["trajectories"], size["horizon"], size["num_steps"], size["width"]) == (1024, 10, 128, 1024)
    assert (size["batch_size"], size["updates"], size["env_steps"]) == (256, 4, 4)
    assert size["env"] == "Hopper-v5"
