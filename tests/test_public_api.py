"""The package's public names: all there, and none of them imported before it is used."""

import subprocess
import sys
from pathlib import Path

import pytest

import polygrad_jax

ROOT = Path(polygrad_jax.__file__).parents[1]


def test_importing_the_package_imports_neither_jax_nor_any_other_library():
    program = (
        "import sys; before = set(sys.modules)\n"
        "import polygrad_jax; dir(polygrad_jax)\n"
        "print(sorted({m.split('.')[0] for m in set(sys.modules) - before} - set(sys.stdlib_module_names)))\n"
        "polygrad_jax.preset('cpu', 'hopper')\n"
        "print('jax' in sys.modules)"
    )
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True)
    assert (done.stdout.splitlines(), done.stderr) == (["['polygrad_jax']", "False"], "")


@pytest.mark.parametrize("name", polygrad_jax.__all__)
def test_every_public_name_is_where_it_is_said_to_be(name):
    assert name in dir(polygrad_jax)
    value = getattr(polygrad_jax, name)
    assert value.__name__ == name and value.__doc__


def test_another_name_is_refused_as_by_any_module():
    with pytest.raises(AttributeError, match="'polygrad_jax' has no attribute 'trian'"):
        polygrad_jax.trian  # noqa: B018
