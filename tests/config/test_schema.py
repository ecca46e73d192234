"""Every field is declared with its description and range, and the command line shows and sets it."""

import contextlib
import dataclasses
import io
import subprocess
import sys
from pathlib import Path
from typing import Literal, get_args, get_origin

import pytest
import tyro

import polygrad_jax.config
from polygrad_jax import config as configs
from polygrad_jax.config import Config

FIELDS = configs.declared_fields()
WITHOUT_RANGE = {"preset", "env.name"}
"""Any text goes: the presets are looked up, the environments are Gymnasium's."""


def test_the_number_of_fields_is_bounded():
    assert len(FIELDS) <= 123, "a field is an option that a preset, a result or a user needs"
    assert list(FIELDS) == [name for name, _ in configs.flatten(Config())]


@pytest.mark.parametrize("name", FIELDS)
def test_a_field_has_a_description_and_a_range(name):
    declared = FIELDS[name]
    assert declared.doc.endswith("."), declared.doc
    bounded = declared.kind is bool or get_origin(declared.kind) is Literal or name in WITHOUT_RANGE
    assert (declared.range is None) == bounded
    assert declared.range is None or declared.range.holds(declared.default)


def test_the_help_shows_every_field_with_its_description_and_its_range():
    shown = io.StringIO()
    with contextlib.redirect_stdout(shown), pytest.raises(SystemExit) as stop:
        tyro.cli(Config, args=["--help"])
    assert stop.value.code == 0
    text = squeezed(shown.getvalue())
    for name, declared in FIELDS.items():
        assert "--" + name.replace("_", "-") in text, name
        allowed = "" if declared.range is None else f" Allowed: {declared.range.words}."
        assert squeezed(declared.doc + allowed) in text, name


def squeezed(text: str) -> str:
    """Without the frame that tyro draws and without blanks, since tyro wraps lines, at hyphens too."""
    return "".join(text.translate({ord(c): " " for c in "│─╭╮╰╯"}).split())


def test_the_command_line_sets_every_field():
    arguments, values = [], {}
    for name, declared in FIELDS.items():
        option = "--" + name.replace("_", "-")
        if declared.kind is bool:
            values[name] = not declared.default
            group, dot, last = option.removeprefix("--").rpartition(".")
            arguments.append(f"--{group}{dot}no-{last}" if declared.default else option)
        else:
            values[name] = {str: "other", int: 4, float: 0.25}.get(declared.kind) or get_args(declared.kind)[-1]
            arguments += [option, str(values[name])]
    config = tyro.cli(Config, args=arguments)
    assert dict(configs.flatten(config)) == values
    assert config == configs.override(Config(), values)


def test_configs_are_frozen_and_hashable():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Config().seed = 1
    assert hash(configs.cpu("hopper")) == hash(configs.cpu("hopper"))


def test_importing_the_configuration_loads_neither_jax_nor_numpy_nor_tyro():
    heavy = ("jax", "flax", "numpy", "tyro", "gymnasium")
    program = f"import sys, polygrad_jax.config\nprint([m for m in {heavy!r} if m in sys.modules])"
    root = str(Path(polygrad_jax.config.__file__).parents[2])
    done = subprocess.run([sys.executable, "-c", program], cwd=root, capture_output=True, text=True)
    assert (done.stdout.strip(), done.stderr) == ("[]", "")


def test_an_iteration_is_counted_in_policy_updates():
    config = configs.override(configs.smoke("hopper"), {"model_training.updates_per_env_step": 0.5})
    assert configs.model_updates_per_policy_update(config) == 2
    assert configs.planned_policy_updates(config) == (2_400 - 1_000 - 200) // 4
    short = configs.override(config, {"loop.total_env_steps": 1_001})
    assert configs.planned_policy_updates(short) == 1
