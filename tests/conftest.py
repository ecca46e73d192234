"""Strictness for every test: no silent broadcasting, no silent promotion, no warning that goes unread."""

import os
from importlib import metadata
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Most of the suite's time is spent compiling programs that run once; optimising them less halves it. Programs that
# tests start inherit it. XLA_FLAGS="" runs the tests on what users run.
os.environ.setdefault(
    "XLA_FLAGS",
    "--xla_backend_optimization_level=0 --xla_cpu_parallel_codegen_split_count=1"
    # XLA ends a program that names a flag which it does not have (any more).
    + (" --xla_cpu_use_fusion_emitters=false" if metadata.version("jaxlib").startswith("0.10.") else ""),
)
# Programs that several tests, or the next call, need are compiled once. The key of an entry is the program itself.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path(__file__).resolve().parents[1] / ".pytest_cache" / "jax"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.1")

import jax
import pytest

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")


LONG_FILES = (
    "test_library_examples.py",
    "training/test_seeds.py",
    "training/test_resume.py",
    "training/test_devices.py",
    "training/test_hosts.py",
    "analysis/test_reports.py",
    "contract/test_agents.py",
    "world_models/test_dreamer.py",
    "fuzz/test_hostile_files.py",
    "world_models/test_history.py",
    "training/test_loop.py",
    "world_models/test_distilled.py",
    "agents/test_value_gradient.py",
    "world_models/test_transformer_model.py",
    "parity/test_a2c_parity.py",
    "contract/test_world_models.py",
    "mutants/test_mutants.py",
    "world_models/test_simulator_model.py",
    "training/test_fitting.py",
    "world_models/test_ensemble.py",
    "world_models/test_autoregressive.py",
)
"""The longest: they come first, so that no worker is left alone with one of them at the end."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the long files first; ``make test`` hands files out in this order."""
    place = {Path(__file__).parent / name: k for k, name in enumerate(LONG_FILES)}
    items.sort(key=lambda item: place.get(item.path, len(place)))


def keep_to_own_cores() -> None:
    """Give each worker of pytest-xdist its share of the cores.

    XLA starts a thread for every core that it may use, and threads of two workers on one core wait for each other.
    """
    worker, workers = os.environ.get("PYTEST_XDIST_WORKER"), int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    number = worker.removeprefix("gw") if worker else ""
    if number.isdigit() and hasattr(os, "sched_setaffinity"):
        cores = sorted(os.sched_getaffinity(0))
        if len(cores) >= workers:
            os.sched_setaffinity(0, cores[int(number) :: workers])


def pytest_configure(config: pytest.Config) -> None:
    """Warnings are errors; the exceptions are third parties' and say why."""
    keep_to_own_cores()
    for line in (
        "error",
        # A donated buffer that an output cannot reuse (a smaller dtype, a metric) is freed, which is what we want.
        "ignore:Some donated buffers were not usable:UserWarning",
        # Gymnasium reports the float64 bounds of its own action spaces.
        "ignore:.*precision lowered by casting to float32.*:UserWarning:gymnasium",
    ):
        config.addinivalue_line("filterwarnings", line)


@pytest.fixture(scope="session")
def readme_run(tmp_path_factory: pytest.TempPathFactory):
    """What the README's example left; the workers of a session train it once."""
    from readme_run import readme_run

    base = tmp_path_factory.getbasetemp()
    return readme_run((base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "readme_run")
