"""The first lines of a run: what will run, on what, how much of it, where it is written, and how to look at it."""

from __future__ import annotations

import shlex
import time
from collections.abc import Sequence
from pathlib import Path

from polygrad_jax import config as configs
from polygrad_jax.config import Config, EnvSpec
from polygrad_jax.envs import tasks
from polygrad_jax.runs.console import MEASURED_ITERATIONS
from polygrad_jax.runs.run_folder import RunFolder, describe_environment
from polygrad_jax.runs.seed_folders import seed_folder

SHOWN_PRESETS = ("paper", "cpu", "cpu_long", "cpu_a2c", "cpu_a2c_passes", "smoke")


def describe(config: Config, spec: EnvSpec, folder: Path, why: str, seeds: Sequence[int] = ()) -> str:
    """Six lines (task, preset and why, device, work, folder, how to look), then the fields that differ from the preset.

    Args:
      why: why this preset.
      seeds: those that learn together, which have a line of their own; none for one run.
    """
    one = seed_folder(folder, seeds[0]) if seeds else folder
    quoted = shlex.quote(str(folder))
    lines = {
        "task": f"{tasks.gymnasium_id(config.env)}: {spec.observation_size} observations, {spec.action_size} actions; "
        f"world model {config.world_model}, agent {config.agent}",
        "preset": f"{config.preset} ({why}); PRESET={'|'.join(SHOWN_PRESETS)} asks for another",
        "device": _device(config),
        "work": _work(config, RunFolder(one).newest_step()),
        "folder": str(folder),
        "look": f"polygrad tensorboard {quoted}   or   polygrad plot {shlex.quote(str(one))}",
    }
    if seeds:
        lines["seeds"] = f"{', '.join(map(str, seeds))}, as one program; each does this work, in {one.name} and so on"
    text = "\n".join(f"{name:<8}{line}" for name, line in lines.items())
    different = configs.non_default(config)
    if different:
        fields = "\n".join(f"  {name} = {value}" for name, value in different.items())
        text += f"\nfields that differ from the preset:\n{fields}"
    return text


def whole_configuration(config: Config) -> str:
    """Every field with its value, one line each."""
    return "configuration:\n" + "\n".join(f"  {name} = {value}" for name, value in configs.flatten(config))


def matrix_gflops() -> float:
    """Measure how fast XLA multiplies matrices here, GFLOP/s in float32: a tenth of a second, the best of three."""
    import jax

    size, products = 1024, 8
    factor = jax.numpy.full((size, size), 1.0 / size)
    chain = jax.jit(lambda x: jax.lax.fori_loop(0, products, lambda _, y: y @ factor, x))
    seconds = []
    for _ in range(4):  # the first one compiles
        began = time.perf_counter()
        jax.block_until_ready(chain(factor))
        seconds.append(time.perf_counter() - began)
    return 2e-9 * products * size**3 / min(seconds[1:])


def _device(config: Config) -> str:
    import jax

    facts, device = describe_environment(), jax.local_devices()[0]
    count = jax.local_device_count()
    name = facts["processor"] if device.platform == "cpu" and facts["processor"] else device.device_kind
    text = f"{device.platform} ({name}), {count} device{'s' if count > 1 else ''}, "
    text += f"{facts['cores']} core{'s' if facts['cores'] != 1 else ''}; "
    text += ", ".join(f"{package} {facts['packages'][package]}" for package in ("jax", "mujoco"))
    if device.platform != "cpu":
        taken = "most of the device's memory at once" if config.preallocate_gpu_memory else "memory as needed"
        text += f"; takes {taken} (--preallocate-gpu-memory)"
    return text


def _work(config: Config, resumed_at: int) -> str:
    """How much is done in which order; how long it takes is measured on the first iterations."""
    loop, training = config.loop, config.model_training
    if resumed_at >= loop.total_env_steps:
        return f"none: environment step {resumed_at:,} of {loop.total_env_steps:,} is reached (--loop.total-env-steps)"
    if resumed_at:
        text = f"resumes at environment step {resumed_at:,} of {loop.total_env_steps:,}"
        return f"{text}; the time left is shown after the first iterations"
    left = loop.total_env_steps - loop.prefill_env_steps
    warmup = min(training.warmup_env_steps, left)
    parts = [f"{loop.prefill_env_steps:,} random steps"]
    if warmup:
        parts.append(f"{warmup:,} steps that train the world model alone")
    per_update = loop.env_steps_per_policy_update
    steps = f"of {per_update} environment step{'s' if per_update > 1 else ''}"
    iterations = (left - warmup) // per_update
    text = ", then ".join([*parts, f"{iterations:,} iteration{'s' if iterations != 1 else ''} {steps}"])
    if iterations <= MEASURED_ITERATIONS:
        return text
    return f"{text}; the time they take is shown after the first {MEASURED_ITERATIONS}"
