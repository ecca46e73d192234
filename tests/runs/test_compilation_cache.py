"""The persistent compilation cache: where it is, who decides, and that a full or locked home is no disaster."""

import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from polygrad_jax import config as configs
from polygrad_jax.runs import compilation_cache
from polygrad_jax.runs.compilation_cache import cache_folder, use_compilation_cache

ROOT = Path(compilation_cache.__file__).parents[2]
CONFIG = configs.smoke("hopper")


@pytest.fixture
def settings(monkeypatch, tmp_path):
    """What would be set, in a home of its own."""
    changed = {}
    monkeypatch.setattr(jax.config, "update", changed.__setitem__)
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return changed


def test_it_is_in_the_users_cache_folder(settings, tmp_path, monkeypatch):
    folder = tmp_path / "cache" / "polygrad_jax" / "xla"
    assert use_compilation_cache(CONFIG) == folder and folder.is_dir()
    assert settings["jax_compilation_cache_dir"] == str(folder)
    assert list(folder.iterdir()) == []
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache" / "polygrad_jax" / "xla"


def test_a_field_turns_it_off(settings, tmp_path):
    assert use_compilation_cache(configs.override(CONFIG, {"compilation_cache": False})) is None
    assert settings == {"jax_enable_compilation_cache": False} and not (tmp_path / "cache").exists()


def test_several_hosts_on_cpus_have_none(settings, tmp_path, monkeypatch):
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "mine"))
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    assert use_compilation_cache(CONFIG) is None
    assert settings == {"jax_enable_compilation_cache": False} and not (tmp_path / "cache").exists()


def test_the_users_own_folder_for_jax_is_respected(settings, tmp_path, monkeypatch):
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "mine"))
    assert use_compilation_cache(CONFIG) == tmp_path / "mine"
    assert settings == {} and not (tmp_path / "cache").exists()


def test_a_folder_that_cannot_be_written_costs_one_line(settings, tmp_path, capsys):
    (tmp_path / "cache").write_text("a file in its place")
    assert use_compilation_cache(CONFIG) is None and settings == {}
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("warning: no compilation cache (")


_COMPILES = """
import sys, jax, jax.numpy as jnp
from polygrad_jax import config as configs
from polygrad_jax.runs import compilation_cache
compilation_cache.LEAST_COMPILE_SECONDS = 0.0
folder = compilation_cache.use_compilation_cache(configs.smoke("hopper"))
before = len(list(folder.glob("*-cache")))
program = jax.jit(lambda x: jnp.sin(x) @ x, donate_argnums=0).lower(jnp.ones((4, 4)))
print(program.compile(compiler_options={"xla_cpu_multi_thread_eigen": False})(jnp.ones((4, 4))).sum())
print(before, len(list(folder.glob("*-cache"))))
"""


def test_programs_with_donated_arrays_and_compiler_options_are_read_back(tmp_path):
    """Two processes: the second compiles nothing new, says nothing, and computes the same."""
    environment = {k: v for k, v in os.environ.items() if k != "JAX_COMPILATION_CACHE_DIR"}
    environment |= {"XDG_CACHE_HOME": str(tmp_path), "PYTHONPATH": str(ROOT)}

    def run():
        done = subprocess.run([sys.executable, "-c", _COMPILES], env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        value, counts = done.stdout.splitlines()
        return value, tuple(map(int, counts.split())), done.stderr

    first, again = run(), run()
    assert first[1][0] == 0 and first[1][1] > 0
    assert again == (first[0], (first[1][1], first[1][1]), "")
