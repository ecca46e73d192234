"""The Makefile: what is given to it reaches the program as it was given."""

import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

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
