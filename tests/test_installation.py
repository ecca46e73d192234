"""What is installed: Pythons, pins within ranges, the interpreter that ``make`` takes, and what a wheel would have."""

import configparser
import ensurepip  # noqa: F401  what the Makefile's condition imports
import os
import re
import shutil
import subprocess
import sys
import venv  # noqa: F401
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
PYTHONS = ("3.11", "3.12", "3.13", "3.14")
SETUP = configparser.ConfigParser()
SETUP.read(ROOT / "setup.cfg")
MAKEFILE = (ROOT / "Makefile").read_text()


def lines(text):
    return [line.strip() for line in text.splitlines() if line.strip() and not line.strip().startswith("#")]


def pins(name):
    requirements = [Requirement(line) for line in lines((ROOT / name).read_text())]
    return {canonicalize_name(r.name): next(iter(r.specifier)).version for r in requirements}


@pytest.mark.parametrize("minor", range(9, 17))
def test_setup_cfg_classifiers_and_makefile_agree_on_the_pythons(monkeypatch, minor):
    version, supported = f"3.{minor}", f"3.{minor}" in PYTHONS
    assert (version in SpecifierSet(SETUP["options"]["python_requires"])) == supported
    assert (f"Programming Language :: Python :: {version}" in lines(SETUP["metadata"]["classifiers"])) == supported
    (suits,) = re.findall(r"^SUITS = (.*)$", MAKEFILE, flags=re.MULTILINE)
    monkeypatch.setattr(sys, "version_info", (3, minor, 1))
    with pytest.raises(SystemExit) as stop:
        exec(suits, {})
    assert (not stop.value.code) == supported
    (tried,) = re.findall(r"^PYTHONS = (.*)$", MAKEFILE, flags=re.MULTILINE)
    assert (f"python{version}" in tried.split()) == supported


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
@pytest.mark.parametrize("python", ["no-such-python", "old-python", "/bin/false"])
def test_make_refuses_an_unsuitable_interpreter_in_one_line(tmp_path, python):
    unsuitable = tmp_path / "old-python"
    unsuitable.write_text("#!/bin/sh\necho old >&2; exit 1\n")
    unsuitable.chmod(0o755)
    command = ["make", "--no-print-directory", "install", f"VENV={tmp_path}/venv", f"PYTHON={python}"]
    environment = os.environ | {"PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"}
    environment = {name: value for name, value in environment.items() if not name.startswith("MAKE")}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    said = [line for line in done.stderr.splitlines() if not line.startswith("make")]
    assert done.returncode == 2 and len(said) == 1, done.stderr
    assert python in said[0] and "allowed: 3.11 to 3.14" in said[0]
    assert not (tmp_path / "venv").exists()


@pytest.mark.parametrize("name", ["requirements.txt", "constraints-mujoco-3.17.txt"])
def test_every_requirement_is_pinned_within_its_range(name):
    pinned = pins(name)
    extras = SETUP["options.extras_require"]
    wanted = lines(SETUP["options"]["install_requires"])
    wanted += [line for extra in ("figures", "films", "tensorboard") for line in lines(extras[extra])]
    for requirement in map(Requirement, wanted):
        assert requirement.specifier.contains(pinned[canonicalize_name(requirement.name)]), requirement


def test_the_constraints_for_another_mujoco_differ_in_nothing_else():
    usual, constrained = pins("requirements.txt"), pins("constraints-mujoco-3.17.txt")
    mujoco = {"mujoco", "mujoco-core", "mujoco-studio"}
    assert constrained["mujoco"] == "3.17.0" and not mujoco & set(constrained) - {"mujoco"}
    assert {name: constrained.get(name) for name in usual.keys() - mujoco} == {
        name: version for name, version in usual.items() if name not in mujoco
    }


def test_a_wheel_has_every_file_of_the_package():
    """Setuptools takes Python files of folders with ``__init__.py``, and nothing else that is not named."""
    assert SETUP["options"]["packages"] == "find:" and "include = polygrad_jax*" in (ROOT / "setup.cfg").read_text()
    package, data = ROOT / "polygrad_jax", SETUP["options.package_data"]["polygrad_jax"].split(", ")
    for path in package.rglob("*"):
        if path.is_file() and "__pycache__" not in path.parts:
            if any(path.relative_to(package).match(pattern) for pattern in data):
                continue
            assert path.suffix == ".py", f"{path} would be missing: name it in package_data"
            assert (path.parent / "__init__.py").is_file(), f"{path.parent} would be missing: no __init__.py"
