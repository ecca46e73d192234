"""The Makefile: what is given to it reaches the program as it was given."""

import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from polygrad_jax.config.presets import ABLATIONS

ROOT = Path(__file__).parents[1]
NAMES = ["plain", "two words", "it's"]
NAMES += ['a "quoted" name', "a;b", "a&b|c", "*.npy", "a`id`b", "a  b", "(x)", "~/a b", "-x"]


def told(target: str, *given: str) -> list[str]:
    """The words of the program that ``make target`` would start, without starting it."""
    make = shutil.which("make") or pytest.skip("needs make")
    command = [make, "--no-print-directory", "-n", target, *given]
    done = subprocess.run(command, cwd=ROOT, env={"PATH": "/usr/bin:/bin", "HOME": "/home/me"}, capture_output=True)
    lines = done.stdout.decode().replace("\\\n", " ").splitlines()
    [line] = [line for line in lines if re.match(r"(exec )?\S+/polygrad ", line)]
    return shlex.split(line.removeprefix("exec "))[1:]


@pytest.mark.parametrize("name", NAMES)
def test_a_name_is_one_word(name):
    same = name.replace("~", "/home/me")
    assert told("train", f"RUN={name}", f"ENV={name}") == ["train", "--env", same, "--run", same]
    assert told("fit", f"DATASET={name}", f"RUN={name}") == ["fit", "--dataset", same, "--out", same]


def test_the_ablations_are_one_grid_of_the_papers_rules(tmp_path):
    make = shutil.which("make") or pytest.skip("needs make")
    (tmp_path / "python").write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')  # in place of the installed one
    (tmp_path / "python").chmod(0o755)

    def asked(*given: str) -> subprocess.CompletedProcess:
        """What make starts: its words, a line each."""
        nothing_to_install = ["-o", "README.md", "INSTALLED=README.md", f"BIN={tmp_path}"]
        command = [make, "--no-print-directory", *nothing_to_install, "ablations", *given]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)

    words = asked("ENV=walker2d", "SEEDS=2", "RUN=runs/a b", "ARGS=--only x").stdout.split("\n")[:-1]
    assert words[0] == "experiments/learning/training_runs.py"
    assert words[words.index("--experiment") :][:4] == ["--experiment", "walker2d_ablations", "--env", "walker2d"]
    at = words.index("--rules")
    assert words[at + 1 : at + 7] == ["score", *(rule for rule in ABLATIONS if rule != "posterior_mean")]
    assert words[words.index("--seeds") + 1 :][:2] == ["0", "1"]
    assert words[words.index("--runs") + 1] == "runs/a b" and words[-2:] == ["--only", "x"]
    words = asked("ENV=space/own-v0").stdout.split("\n")
    assert words[words.index("--experiment") :][1:4] == ["space_own-v0_ablations", "--env", "space/own-v0"]
    assert words[words.index("--seeds") + 1 :][:3] == ["0", "1", "2"]
    for seeds in ("0", "two", "-1"):
        refused = asked(f"SEEDS={seeds}")
        assert refused.stdout == "" and refused.stderr.startswith(f"SEEDS is {seeds}; allowed: how many, 1 or more")


def test_every_variable_reaches_its_option_and_arguments_stay_words():
    given = ["ENV=hopper", "PRESET=cpu", "SEED=3", "RUN=runs/a b", "WORLD_MODEL=ensemble"]
    several = ["--seed", "3", "--seeds", "5", "--run", "runs/a b", "--world-model", "ensemble"]
    assert told("train", "SEEDS=5", *given[2:]) == ["train", *several]
    given.append("ARGS=--a2c.gamma 0.9 --x '1 2'")
    words = ["--env", "hopper", "--preset", "cpu", "--seed", "3", "--run", "runs/a b"]
    arguments = ["--a2c.gamma", "0.9", "--x", "1 2"]
    assert told("train", *given) == ["train", *words, "--world-model", "ensemble", *arguments]
    assert told("dataset", *given) == ["dataset", *words, *arguments]
    assert told("tensorboard", "RUN=runs/a b") == ["tensorboard", "runs/a b"]
    for target in ("train", "fit", "dataset", "tensorboard"):
        assert told(target) == [target]
