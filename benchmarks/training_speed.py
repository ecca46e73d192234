"""Environment steps per second and seconds per update of a preset's whole iteration on this machine.

    python benchmarks/training_speed.py --preset cpu --env hopper
    python benchmarks/training_speed.py --preset cpu --env hopper halfcheetah --a2c.hidden-size 256

Any field of the configuration may follow, as for training. What the columns mean is in ``benchmarks/README.md``.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from experiments.harness import in_venv  # noqa: F401  first of all: it continues in the clone's .venv

# isort: split
import argparse
import time
from collections.abc import Callable, Sequence
from typing import Any

import flops
import jax
import measure
import numpy as np

from polygrad_jax import config as configs
from polygrad_jax.agents import a2c
from polygrad_jax.cli import override
from polygrad_jax.config import Config, EnvSpec
from polygrad_jax.data import normaliser as normalisers
from polygrad_jax.data import replay as replays
from polygrad_jax.envs.collector import Collector, uniform_action
from polygrad_jax.training.evaluating import make_act
from polygrad_jax.training.loop import empty_chunk
from polygrad_jax.training.programs import compile_learning
from polygrad_jax.training.step import Iterations, TrainState, make_iterations
from polygrad_jax.types import Params, Transitions
from polygrad_jax.world_models.model_table import make_world_model

PREFILL_ENV_STEPS = 2_000
COLLECTED_ENV_STEPS = 500


def random_steps(collector: Collector, config: Config, spec: EnvSpec) -> Transitions:
    """Enough transitions of uniform random actions to learn from."""
    chunk = empty_chunk(max(PREFILL_ENV_STEPS, 20 * config.horizon), spec)
    for row in range(len(chunk.valid)):
        step = collector.step(uniform_action(config.seed, row, spec.action_size))
        chunk.observations[row], chunk.actions[row], chunk.rewards[row] = step.observation, step.action, step.reward
        chunk.terminals[row], chunk.truncations[row] = step.terminal, step.truncated and not step.terminal
        chunk.valid[row] = True
    return chunk


def seconds_per_collected_step(collector: Collector, config: Config, spec: EnvSpec, actor_params: Params) -> float:
    """Acting with the policy in the environment, the policy's call on the host included."""
    act = make_act(config, spec)
    act(actor_params, collector.observation)  # compiled
    noise = np.random.default_rng(0).standard_normal((COLLECTED_ENV_STEPS, spec.action_size), np.float32)
    began = time.perf_counter()
    for draw in noise:
        mean, std = act(actor_params, collector.observation)
        collector.step(mean + std * draw)
    return (time.perf_counter() - began) / COLLECTED_ENV_STEPS


def time_repeatedly(step: Callable[[], Any], at_least: int, budget_seconds: float) -> list[float]:
    """Seconds of each call: at least so many, and on until the budget is spent."""
    times: list[float] = []
    while len(times) < at_least or sum(times) < budget_seconds:
        times.append(measure.seconds(step))
    return times


def time_iterations(
    iterations: Iterations, config: Config, state: TrainState, chunk: Transitions, budget_seconds: float
) -> tuple[TrainState, list[float], float, float | None, dict[str, Any]]:
    """``learn`` again and again: ``(state, seconds of each, compile seconds, program MiB, last metrics)``."""
    began = time.perf_counter()
    learning = compile_learning(iterations, config, state, chunk)
    compile_seconds = time.perf_counter() - began
    held: dict[str, Any] = {"state": state}

    def once() -> Any:
        held["state"], held["output"] = learning.learn(held["state"], chunk)
        return held

    once()
    times = time_repeatedly(once, 3, budget_seconds)
    sizes = [measure.program_mebibytes(program) for program in learning.programs]
    program = None if None in sizes else max(sizes)
    return held["state"], times, compile_seconds, program, held["output"].metrics


def seconds_of_parts(config: Config, spec: EnvSpec, state: TrainState, budget_seconds: float) -> dict[str, float]:
    """Median seconds of one imagination, one policy update and one denoiser update, each compiled alone."""
    world_model = make_world_model(config, spec)
    policy_apply = a2c.make_policy_apply(spec, config.a2c, config.precision)
    normaliser = jax.jit(normalisers.to_normaliser)(state.replay.moments)
    key = jax.random.key(0)
    contexts = jax.jit(replays.sample_contexts, static_argnums=2)(state.replay, key, config.a2c.trajectories)
    sample = jax.jit(replays.sample, static_argnums=(2, 3))
    batch = sample(state.replay, key, config.denoiser.batch_size, config.horizon)
    imagine = jax.jit(
        lambda model, actor: world_model.imagine(
            model, policy_apply, actor, contexts, normaliser, key, config.horizon
        )[1]
    )
    segment = imagine(state.world_model, state.learner.actor)
    improve_policy = jax.jit(lambda learner, segment: a2c.update(learner, segment, config.a2c, spec))
    improve_model = jax.jit(lambda model, batch: world_model.update(model, batch, normaliser, key))
    parts = {
        "imagine_seconds": lambda: imagine(state.world_model, state.learner.actor),
        "policy_update_seconds": lambda: improve_policy(state.learner, segment),
        "denoiser_update_seconds": lambda: improve_model(state.world_model, batch),
    }
    for part in parts.values():
        jax.block_until_ready(part())
    return {name: measure.median(time_repeatedly(part, 3, budget_seconds)) for name, part in parts.items()}


def time_preset(config: Config, seconds: float) -> measure.Row:
    """One row of the table."""
    collector = Collector(config.env, config.seed)
    spec = collector.spec
    peak = measure.Peak(config.precision)
    memory = measure.PeakMemory()
    iterations = make_iterations(config, spec)
    state = jax.jit(iterations.init, static_argnums=0)(config.seed)
    prefill = random_steps(collector, config, spec)
    state = jax.jit(iterations.insert, donate_argnums=0)(state, prefill)
    env_steps = config.loop.env_steps_per_iteration
    chunk = jax.tree.map(lambda x: x[:env_steps], prefill)
    peaks = [peak.flops()]
    state, times, compile_seconds, program, metrics = time_iterations(iterations, config, state, chunk, seconds)
    peaks.append(peak.flops())
    parts = seconds_of_parts(config, spec, state, seconds / 10)
    collecting = seconds_per_collected_step(collector, config, spec, state.learner.actor)

    per_iteration = measure.median(times)
    updates = env_steps // config.loop.env_steps_per_policy_update
    count = flops.flops_per_env_step(config, spec) * env_steps
    return {
        "env": config.env.name,
        "preset": config.preset,
        "precision": config.precision,
        "learning_env_steps/s": env_steps / per_iteration,
        "collecting_env_steps/s": 1.0 / collecting,
        "env_steps/s": env_steps / (per_iteration + collecting * env_steps),
        "seconds_per_update": per_iteration / updates,
        **parts,
        "denoiser_updates": configs.denoiser_updates_per_policy_update(config),
        "search_steps": float(metrics["policy/search_steps"]),
        "GFLOP_per_update": count / updates / 1e9,
        "GFLOP/s": count / per_iteration / 1e9,
        "peak_GFLOP/s": max(peaks) / 1e9,
        "share_of_peak": count / per_iteration / max(peaks),
        "iterations": len(times),
        "compile_seconds": compile_seconds,
        "program_MiB": program,
        "peak_MiB": memory.mebibytes(),
    }


def parse(arguments: Sequence[str] | None = None) -> tuple[argparse.ArgumentParser, argparse.Namespace, list[str]]:
    """The command line: our options, and fields of the configuration."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--preset", default="cpu", help="a preset of the configuration")
    parser.add_argument("--env", nargs="+", default=["hopper"], help="tasks")
    parser.add_argument("--seconds", type=float, default=20.0, help="of timed iterations per task; at least three")
    parser.add_argument("--out", type=Path, default=None, help="a .csv (facts go to a .json beside it) or a .json")
    return parser, *parser.parse_known_args(arguments)


def main() -> int:
    """The exit code: 2 for a bad argument, otherwise 0."""
    parser, args, fields = parse()
    try:
        chosen = [configs.validate(override(configs.preset(args.preset, env), fields)) for env in args.env]
        facts = {"command": measure.command(parser, ("--out",)), **measure.hardware()}
        measure.say(measure.one_line(facts))
        rows = []
        for config in chosen:
            measure.say(f"{config.env.name}, preset {config.preset} ...")
            rows.append(time_preset(config, args.seconds))
    except configs.ConfigError as error:
        print(error, file=sys.stderr)
        return 2
    print(measure.listing(rows))
    if args.out:
        measure.write(args.out, rows, facts)
    return 0


if __name__ == "__main__":
    sys.exit(main())
