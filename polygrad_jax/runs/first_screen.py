"""What a run says before it begins: what will run, on what, why, and what the other preset would cost."""

from __future__ import annotations

import time
from pathlib import Path

import jax
import numpy as np

from polygrad_jax import config as configs
from polygrad_jax.config import Config
from polygrad_jax.envs import tasks as registry
from polygrad_jax.training.step import make_iterations
from polygrad_jax.training.loop import empty_chunk
from polygrad_jax.training.programs import compile_learning
from polygrad_jax.runs.run_folder import describe_environment
from polygrad_jax.training.simulator_host import host_for

MINIMUM_ROWS = 200


def describe(config: Config, folder: Path, why: str) -> str:
    """The first lines: preset and why, resolved config, versions, device, memory preallocation."""
    facts = describe_environment()
    device = jax.local_devices()[0]
    fields = "\n".join(f"  {name} = {value}" for name, value in configs.flatten(config))
    versions = ", ".join(f"{name} {version}" for name, version in facts["packages"].items())
    lines = [
        f"preset {config.preset}: {why}; ask for another with PRESET=" + "|".join(configs.PRESETS),
        f"run folder {folder}",
        "configuration:",
        fields,
        f"versions: {versions}",
        f"device: {device.platform} {device.device_kind}, {jax.local_device_count()} device(s), {facts['cores']} cores",
    ]
    if device.platform != "cpu":
        taken = "takes most of the device's memory at once" if config.preallocate_gpu_memory else "grows as needed"
        lines.append(f"device memory: {taken} (--preallocate-gpu-memory)")
    return "\n".join(lines)


def seconds_per_env_step(config: Config) -> tuple[float, float]:
    """``(seconds per environment step of learning, compile seconds)``, from one timed iteration on random data."""
    spec = registry.spec_of(registry.make(config.env))
    iterations = make_iterations(config, spec, host_for(config))
    state = jax.jit(iterations.init, static_argnums=0)(0)
    insert = jax.jit(iterations.insert, donate_argnums=0)
    rows = empty_chunk(max(MINIMUM_ROWS, 4 * config.horizon), spec)
    noise = np.random.default_rng(0)
    rows.observations[:] = noise.standard_normal(rows.observations.shape)
    rows.actions[:] = noise.standard_normal(rows.actions.shape)
    rows.truncations[-1] = 1.0
    rows.valid[:] = True
    state = insert(state, rows)
    chunk = empty_chunk(config.loop.env_steps_per_iteration, spec)
    began = time.perf_counter()
    learn = compile_learning(iterations, config, state, chunk).learn
    compiled = time.perf_counter()
    jax.block_until_ready(learn(state, chunk))
    return (time.perf_counter() - compiled) / config.loop.env_steps_per_iteration, compiled - began


def cost_of_other(config: Config) -> str:
    """One line: what the other preset would cost on this machine, measured by timing one iteration."""
    per_step, compile_seconds = seconds_per_env_step(config)
    hours = per_step * config.loop.total_env_steps / 3600
    return (
        f"preset {config.preset} would learn for about {hours:.1f} hours here ({config.loop.total_env_steps:,} steps "
        f"at {per_step * 1e3:.1f} ms, timed on one iteration, {compile_seconds:.0f} s to compile); ask for it with "
        f"PRESET={config.preset}"
    )
