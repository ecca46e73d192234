"""The house rules that a program can check: imports point downwards, and there is no room for odds and ends."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import polygrad_jax.config

PACKAGE = Path(polygrad_jax.config.__file__).parents[1]
FLOORS = {
    "cli": 8,
    "analysis": 7,
    "training": 6,
    "runs": 5,
    "agents": 4,
    "world_models": 4,
    "diffusion": 3,
    "networks": 2,
    "data": 2,
    "optimising": 2,
    "envs": 2,
    "config": 1,
    "types": 1,
}
MUST_NOT_KNOW = {
    "training": ("analysis",),
    "runs": ("agents", "world_models"),
    "agents": ("diffusion", "envs"),
    "world_models": ("agents", "envs"),
    "diffusion": ("agents", "envs"),
}
EXCEPTIONS = {"world_models/simulator.py": ("envs",)}  # MuJoCo in a world model's place
NO_ARGPARSE_BELOW = 8
FORBIDDEN_WORDS = ("utils", "util", "helpers", "helper", "common", "misc")
HOST_ONLY = {"envs", "config"}
FILES = sorted(PACKAGE.rglob("*.py"))


def room(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(path: Path) -> list[str]:
    """Every module that a file imports, also inside functions, as absolute dotted names."""
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            if node.level:
                here = ("polygrad_jax", *path.relative_to(PACKAGE).parts[:-1])
                base = ".".join(here[: len(here) - node.level + 1])
                found += [f"{base}.{node.module or ''}.{alias.name}".replace("..", ".") for alias in node.names]
            else:
                found += [f"{node.module}.{alias.name}" for alias in node.names]
    return found


def own_rooms(path: Path) -> set[str]:
    return {name.split(".")[1] for name in imports(path) if name.startswith("polygrad_jax.")}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_downwards(path):
    here = room(path)
    if here.startswith("__"):
        return  # the package's own door
    assert here in FLOORS, f"{here} stands on no floor of the house"
    for other in own_rooms(path) - {here}:
        assert other in FLOORS, f"{path} imports {other}, which stands on no floor"
        assert FLOORS[other] < FLOORS[here], f"{path}: {here} must not know {other}"
        if other not in EXCEPTIONS.get(str(path.relative_to(PACKAGE)), ()):
            assert other not in MUST_NOT_KNOW.get(here, ()), f"{path}: {here} must not know {other}"


def test_only_the_command_line_parses_arguments():
    for path in FILES:
        if FLOORS.get(room(path), 0) < NO_ARGPARSE_BELOW:
            assert not {name.split(".")[0] for name in imports(path)} & {"argparse", "tyro"}, path


def test_no_two_rooms_hold_files_of_one_name():
    rooms = {}
    for path in FILES:
        if path.stem != "__init__":
            rooms.setdefault(path.name, []).append(str(path.relative_to(PACKAGE)))
    assert {name: places for name, places in rooms.items() if len(places) > 1} == {}


def test_training_has_eleven_files():
    assert sorted(p.stem for p in (PACKAGE / "training").glob("[a-z]*.py")) == [
        "collecting", "devices", "evaluating", "fitting", "hosts", "loop", "seeds", "step", "train_state", "units",
        "windows",
    ]  # fmt: skip


@pytest.mark.parametrize("path", [p for p in FILES if room(p) in HOST_ONLY], ids=lambda path: path.name)
def test_host_only_rooms_name_no_jax(path):
    outside = {name.split(".")[0] for name in imports(path)}
    assert not outside & {"jax", "jaxlib", "flax", "optax", "chex", "orbax"}
    assert "types" not in own_rooms(path)  # it imports jax


def test_envs_loads_no_jax():
    modules = [f"polygrad_jax.envs.{path.stem}" for path in sorted((PACKAGE / "envs").glob("[a-z]*.py"))]
    program = f"import sys, {', '.join(modules)}\nprint([m for m in sys.modules if m.split('.')[0] in ('jax', 'flax')])"
    done = subprocess.run(
        [sys.executable, "-c", program], env={"PYTHONPATH": str(PACKAGE.parent)}, capture_output=True, text=True
    )
    assert (done.stdout.strip(), done.stderr) == ("[]", "")


def test_there_is_no_room_for_odds_and_ends():
    for path in FILES:
        words = {path.stem, *path.relative_to(PACKAGE).parts}
        assert not words & set(FORBIDDEN_WORDS), path
