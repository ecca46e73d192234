"""What only some verbs need: imported there only, one line where it lacks, and the same list in ``setup.cfg``."""

import ast
import configparser
import sys
from pathlib import Path

import pytest

from polygrad_jax import cli
from polygrad_jax.analysis import figures, films
from polygrad_jax.config import ConfigError, extras

ROOT = Path(extras.__file__).parents[2]
MODULES = {module for modules in extras.EXTRAS.values() for module in modules}


def without(monkeypatch, extra):
    """Makes what the extra brings fail to import."""
    for module in extras.EXTRAS[extra]:
        monkeypatch.setitem(sys.modules, module, None)


@pytest.mark.parametrize(
    ("extra", "arguments"),
    [
        ("figures", ["imagine", "no-run"]),
        ("figures", ["plot", "no-run"]),
        ("films", ["imagine", "no-run", "--video"]),
        ("films", ["evaluate", "no-run", "--video", "a.mp4"]),
        ("tensorboard", ["tensorboard"]),
        ("minari", ["dataset", "--env", "hopper"]),
    ],
)
def test_a_verb_without_its_extra_says_in_one_line_how_to_install_it(monkeypatch, tmp_path, capsys, extra, arguments):
    monkeypatch.chdir(tmp_path)
    without(monkeypatch, extra)
    assert cli.main(arguments) == cli.BAD_INPUT
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1 and f"pip install 'polygrad_jax[{extra}]'" in lines[0], lines
    assert extras.EXTRAS[extra][0] in lines[0] and not list(tmp_path.iterdir())


def test_figures_from_python_say_the_same_and_gifs_need_no_extra(monkeypatch):
    without(monkeypatch, "figures")
    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)
    with pytest.raises(ConfigError, match=r"polygrad_jax\[figures\]"):
        figures.training_curves([{"env_steps": 1}], {}, "a run")
    films.check_film_path(Path("a.gif"))


def test_the_package_imports_what_extras_bring_inside_functions_only():
    for path in (ROOT / "polygrad_jax").rglob("*.py"):
        for node in ast.parse(path.read_text()).body:
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) else []
            assert not {name.split(".")[0] for name in names} & MODULES, path


def test_setup_cfg_has_every_extra_and_none_of_it_in_the_base():
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    base, declared = setup["options"]["install_requires"], setup["options.extras_require"]
    for extra, modules in extras.EXTRAS.items():
        assert modules[0] in declared[extra]
        assert modules[0] not in base.replace("tensorboardX", "")
    assert declared["all"].strip() == "polygrad_jax[figures,films,tensorboard]"
