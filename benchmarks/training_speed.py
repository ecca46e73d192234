"""Environment steps per second and seconds per update of a preset's whole iteration on this machine.

    python benchmarks/training_speed.py --preset cpu --env hopper
    python benchmarks/training_speed.py --preset cpu --env hopper halfcheetah --a2c.hidden-size 256
    python benchmarks/training_speed.py --preset cpu_a2c --env hopper --seeds 1 5
    XLA_FLAGS=--xla_force_host_platform_device_count=8 python benchmarks/training_speed.py --devices 8
    python benchmarks/training_speed.py --preset paper --against-official CLONE

Any field of the configuration may follow, as for training. What the columns mean is in ``benchmarks/README.md``.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from experiments.harness import in_venv  # noqa: F401  first of all: it continues in the clone's .venv

# isort: split
import argparse
import contextlib
import math
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import flops
import jax
import jax.numpy as jnp
import measure
import numpy as np
import official
from jax.sharding import Mesh

from polygrad_jax import config as configs
from polygrad_jax.agents.agent_table import make_agent
from polygrad_jax.agents.line_search import SEARCH_TOLERANCE
from polygrad_jax.cli import override
from polygrad_jax.config import Config, EnvSpec
from polygrad_jax.data import normaliser as normalisers
from polygrad_jax.data import replay as replays
from polygrad_jax.envs.collector import Collector, uniform_action
from polygrad_jax.envs.tasks import gymnasium_id
from polygrad_jax.networks.denoisers import EMBED_DIM
from polygrad_jax.training.collecting import empty_chunk, make_decide, on_the_host
from polygrad_jax.training.devices import make_mesh, place_state
from polygrad_jax.training.seeds import of_seed, over_seeds, stacked
from polygrad_jax.training.step import compile_learn, make_draw, make_steps
from polygrad_jax.training.train_state import TrainState
from polygrad_jax.types import Agent, Experience, Transitions, WorldModel
from polygrad_jax.world_models.model_table import make_world_model_for_agent

PREFILL_ENV_STEPS = 2_000
COLLECTED_ENV_STEPS = 500
OFFICIAL_PREFILL = 20_000
"""Random steps in the official replay: its loader begins anew whenever every window was drawn once."""
NEEDED = "torch, einops, scipy and gymnasium[mujoco]"
"""By the official loop."""
OFFICIAL = {
    "world_model": "polygrad",
    "agent": "a2c",
    "denoiser.kind": "mlp",
    "denoiser.context_length": 1,
    "diffusion.terminals": "diffused",
    "guidance.rule": "score",
    "a2c.search": True,
    "a2c.critic_updates": 1,
    "a2c.epochs": 1,
    "a2c.minibatches": 1,
    "env.actions": "clipped",
}
"""Fields that change what is computed, and what the official loop computes."""
PARTS = ("imagine_seconds", "policy_update_seconds", "model_update_seconds")


def random_steps(collector: Collector, config: Config, spec: EnvSpec) -> Transitions:
    """Enough transitions of uniform random actions to learn from."""
    chunk = empty_chunk(max(PREFILL_ENV_STEPS, 20 * config.horizon), spec)
    for row in range(len(chunk.valid)):
        step = collector.step(uniform_action(config.seed, row, spec.action_size))
        chunk.observations[row], chunk.actions[row], chunk.rewards[row] = step.observation, step.action, step.reward
        chunk.terminals[row], chunk.truncations[row] = step.terminal, step.truncated and not step.terminal
        chunk.valid[row] = True
    return chunk


def seconds_per_collected_step(collector: Collector, agent: Agent, state: TrainState) -> float:
    """Time acting with the policy in the environment, the policy's call on the host included."""
    decide, acting = make_decide(agent), on_the_host(agent.acting(state.agent, state.world_model))
    decide(acting, None, collector.observation[None], (0, 0))  # compiled
    noise = np.random.default_rng(0).standard_normal((COLLECTED_ENV_STEPS, collector.spec.action_size), np.float32)
    memory, began = None, time.perf_counter()
    for number, draw in enumerate(noise):
        mean, std, memory = decide(acting, memory, collector.observation[None], (0, number))
        action = mean + std * draw
        ended = collector.step(action[0]).episode is not None
        memory = None if ended else agent.remember(memory, action)
    return (time.perf_counter() - began) / COLLECTED_ENV_STEPS


def time_repeatedly(
    step: Callable[[], Any], at_least: int, budget_seconds: float, between: Callable[[], Any] = lambda: None
) -> list[float]:
    """Seconds of each call: at least so many, and on until the budget is spent; what is called ``between`` counts."""
    times: list[float] = []
    began = time.perf_counter()
    while len(times) < at_least or time.perf_counter() - began < budget_seconds:
        times.append(measure.seconds(step))
        between()
    return times


class Timed(NamedTuple):
    """What timing the whole step found."""

    state: TrainState  # after the last of them; of several seeds, of the first
    seconds: list[float]
    compile_seconds: float
    program_mebibytes: float | None
    metrics: dict[str, float]  # of the last of them
    official_seconds: list[float]  # of the official loop's iterations, one after each of ours


def official_loop(clone: Path, python: str, config: Config) -> official.Child:
    """Start the official training loop at the sizes of ``config``, with all of its diffusion steps.

    Raises:
      official.Unusable: it computes something else, or does not start.
    """
    found = dict(configs.flatten(config))
    for name, value in OFFICIAL.items():
        if found[name] != value:
            raise official.Unusable(f"{official.OPTION}: {name} is {found[name]}; allowed: {value}")
    guidance, a2c = config.guidance, config.a2c
    size = {
        "env": gymnasium_id(config.env),
        "prefill": OFFICIAL_PREFILL,
        "horizon": config.horizon,
        "embed_dim": EMBED_DIM,
        "width": config.denoiser.width,
        "num_blocks": config.denoiser.num_blocks,
        "num_steps": config.diffusion.num_steps,
        "tau": config.diffusion.tau,
        "ema_decay": config.denoiser.ema_decay,
        "learning_rate": config.denoiser.learning_rate,
        "batch_size": config.model_training.batch_size,
        "updates": configs.model_updates_per_policy_update(config),
        "env_steps": config.loop.env_steps_per_policy_update,
        "trajectories": a2c.trajectories,
        "agent": {
            "hidden_dim": a2c.hidden_size,
            "min_std": a2c.min_std,
            "init_std": a2c.initial_std,
            "gamma": a2c.gamma,
            "lambda_gae": a2c.gae_lambda,
            "entropy_weight": a2c.entropy_weight,
            "lr_actor": a2c.max_actor_lr,
            "lr_critic": a2c.critic_lr,
            "grad_clip": a2c.grad_clip,
            "target_update": a2c.target_change,
            "linesearch_tolerance": SEARCH_TOLERANCE,
        },
        "guidance": {
            "guidance_scale": guidance.initial_delta,
            "guidance_lr": guidance.delta_lr,
            "clip_std": guidance.clip_std,
            "clip_state_change": guidance.state_change_clip or math.inf,  # ours is off at 0
        },
        "cores": measure.hardware()["cores"],
    }
    return official.Child("official_loop.py", NEEDED, clone, python, size)


def time_steps(
    config: Config,
    states: Sequence[TrainState],
    chunk: Transitions,
    made: tuple[EnvSpec, WorldModel, Agent],
    budget: float,
    mesh: Mesh | None,
    theirs: official.Child | None,
) -> Timed:
    """Time the step of training (Algorithm 3) again and again, of all ``states``, a seed each, as one program."""
    began, seeds = time.perf_counter(), len(states)
    state, chunk = stacked(states), stacked([chunk] * seeds)
    if mesh is not None:
        state = place_state(state, mesh, seeds)
    steps = over_seeds(make_steps(config, *made, mesh), seeds, mesh)
    compiled = compile_learn(steps, state, chunk, config.loop.side_by_side and mesh is None)
    compile_seconds = time.perf_counter() - began
    held: dict[str, Any] = {"state": state}

    def once() -> Any:
        held["state"], held["output"] = compiled.step(held["state"], chunk)
        return held

    once()
    their_times: list[float] = []
    times = time_repeatedly(once, 3, budget, lambda: their_times.append(theirs.seconds()) if theirs else None)
    sizes = [measure.program_mebibytes(program) for program in compiled.programs]
    program = None if None in sizes else max(sizes)
    first, output = (of_seed(held[name], 0, seeds) for name in ("state", "output"))
    return Timed(first, times, compile_seconds, program, output.metrics.by_name(), their_times)


class Part(NamedTuple):
    """A part of an iteration, compiled alone, and what it is called with."""

    program: jax.stages.Compiled
    given: tuple

    def __call__(self) -> Any:
        return self.program(*self.given)


def parts_of(config: Config, world_model: WorldModel, agent: Agent, state: TrainState) -> tuple[Part, Part, Part]:
    """Return one imagination, one policy update and one model update."""
    normaliser = jax.jit(normalisers.to_normaliser)(state.replay.moments)
    key = jax.random.key(0)
    draw = jax.jit(replays.sample_contexts, static_argnums=(2, 3))
    trajectories = agent.trajectories or config.a2c.trajectories
    contexts = draw(state.replay, key, trajectories, world_model.context_length)
    batch = jax.jit(make_draw(world_model, config))(state.replay, key)

    def part(function: Callable[..., Any], *given: Any) -> Part:
        return Part(jax.jit(function).lower(*given).compile(), given)

    imagine = part(world_model.imagine, state.world_model, agent.policy(state.agent), contexts, normaliser, key)
    experience = Experience(imagine()[0], None, normaliser, jnp.float32(0.0))
    improve_policy = part(agent.update, state.agent, state.world_model, experience, key)
    return imagine, improve_policy, part(world_model.update, state.world_model, batch, normaliser, key)


def seconds_of_parts(parts: Sequence[Part], budget: float) -> dict[str, float]:
    """Return median seconds of each part."""
    for part in parts:
        jax.block_until_ready(part())
    timed = [measure.median(time_repeatedly(part, 3, budget)) for part in parts]
    return dict(zip(PARTS, timed, strict=True))


def begin(
    config: Config, seeds: int, stored: int
) -> tuple[Collector, WorldModel, Agent, Transitions, list[TrainState]]:
    """Make what learns, a state for every seed, and fill their replays with so many random transitions."""
    collector = Collector(config.env, config.seed)
    world_model = make_world_model_for_agent(config, collector.spec)
    agent = make_agent(config, collector.spec, world_model)
    steps = make_steps(config, collector.spec, world_model, agent)
    prefill = random_steps(collector, config, collector.spec)
    init, insert = jax.jit(steps.init), jax.jit(steps.insert, donate_argnums=0)
    states = [init(np.uint32(seed)) for seed in range(seeds)]
    for _ in range(0, stored, len(prefill.valid)):
        states = [insert(state, prefill) for state in states]
    return collector, world_model, agent, prefill, states


def time_preset(
    config: Config,
    seconds: float,
    seeds: int = 1,
    mesh: Mesh | None = None,
    stored: int = PREFILL_ENV_STEPS,
    theirs: official.Child | None = None,
) -> measure.Row:
    """Return one row of the table; its rates and its work are those of all seeds.

    Args:
      mesh: the devices among which trajectories and batches are shared out; None for one.
      stored: transitions in the replay; beyond PREFILL_ENV_STEPS the same ones again.
      theirs: the official loop, timed in turn with ours.
    """
    peak = measure.Peak(config.precision)
    memory = measure.PeakMemory()
    collector, world_model, agent, prefill, states = begin(config, seeds, stored)
    spec = collector.spec
    per_update_env_steps = config.loop.env_steps_per_policy_update
    env_steps = seeds * per_update_env_steps
    chunk = jax.tree.map(lambda x: x[:per_update_env_steps], prefill)
    peaks = [peak.flops()]
    timed = time_steps(config, states, chunk, (spec, world_model, agent), seconds, mesh, theirs)
    peaks.append(peak.flops())
    parts = dict.fromkeys(PARTS)  # every row of a table has the same columns
    # An agent that reads latents imagines within its update.
    if seeds == 1 and mesh is None and agent.policy(timed.state.agent) is not None:
        parts = seconds_of_parts(parts_of(config, world_model, agent, timed.state), seconds / 10)
    collecting = seconds_per_collected_step(collector, agent, timed.state)

    per_update = measure.median(timed.seconds)
    official_seconds = measure.median(timed.official_seconds) if theirs else None
    whole = per_update + collecting * env_steps
    # What other agents take to learn is not counted, and no small part.
    count = flops.flops_per_env_step(config, spec) * env_steps if config.agent == "a2c" else None
    return {
        "env": config.env.name,
        "preset": config.preset,
        "precision": config.precision,
        "seeds": seeds,
        "devices": 1 if mesh is None else mesh.size,
        "learning_env_steps/s": env_steps / per_update,
        "collecting_env_steps/s": 1.0 / collecting,
        "env_steps/s": env_steps / whole,
        "seconds_per_update": per_update,
        **parts,
        "model_updates": configs.model_updates_per_policy_update(config),
        "search_steps": timed.metrics.get("agent/search_steps"),
        "GFLOP_per_update": count and count / 1e9,
        "GFLOP/s": count and count / per_update / 1e9,
        "peak_GFLOP/s": max(peaks) / 1e9,
        "share_of_peak": count and count / per_update / max(peaks),
        "iterations": len(timed.seconds),
        "compile_seconds": timed.compile_seconds,
        "program_MiB": timed.program_mebibytes,
        "peak_MiB": memory.mebibytes(),
        "official_seconds": official_seconds,
        "times_as_fast": official_seconds / whole if theirs else None,
    }


@contextlib.contextmanager
def beside_official(args: argparse.Namespace, config: Config, seeds: int) -> Iterator[official.Child | None]:
    """Give the official loop, and end it; None where it was not asked for, or where several seeds learn."""
    theirs = None
    if args.against_official and seeds == 1:
        theirs = official_loop(args.against_official, args.official_python, config)
    try:
        yield theirs
    finally:
        if theirs:
            theirs.close()


def beside_one_seed(rows: list[measure.Row]) -> list[measure.Row]:
    """Add to each row its seconds in those of as many runs of one seed, one after another, where that was measured."""
    one = [row["seconds_per_update"] for row in rows if row["seeds"] == 1]
    if len(rows) > 1 and one:
        for row in rows:
            row["of_runs_in_turn"] = row["seconds_per_update"] / (row["seeds"] * one[0])
    return rows


def parse(arguments: Sequence[str] | None = None) -> tuple[argparse.ArgumentParser, argparse.Namespace, list[str]]:
    """The command line: our options, and fields of the configuration."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--preset", default="cpu", help="a preset of the configuration")
    parser.add_argument("--env", nargs="+", default=["hopper"], help="tasks")
    parser.add_argument("--seeds", nargs="+", type=int, default=[1], help="how many learn as one program, a row each")
    parser.add_argument("--devices", type=int, default=1, help="among which trajectories and batches are shared out")
    stored = f"transitions in the replay; beyond {PREFILL_ENV_STEPS:,} the same ones again"
    parser.add_argument("--stored", type=int, default=PREFILL_ENV_STEPS, help=stored)
    parser.add_argument("--seconds", type=float, default=20.0, help="of timed iterations per task; at least three")
    parser.add_argument("--out", type=Path, default=None, help="a .csv (facts go to a .json beside it) or a .json")
    official.add_arguments(parser, NEEDED)
    return parser, *parser.parse_known_args(arguments)


def check(args: argparse.Namespace) -> None:
    """Raise ConfigError where a number is out of its range; that of the devices is the mesh's to say."""
    for option, value in (("seeds", min(args.seeds)), ("stored", args.stored)):
        if value < 1:
            raise configs.ConfigError(f"--{option} is {value}; allowed: 1 or greater")
    measure.check_seconds(args.seconds)
    measure.check_out(args.out)


def main() -> int:
    """The exit code: 2 for a bad argument, otherwise 0."""
    parser, args, fields = parse()
    try:
        check(args)
        if args.against_official:
            official.check_clone(args.against_official)
        chosen = [configs.validate(override(configs.preset(args.preset, env), fields)) for env in args.env]
        command = measure.command(parser, (*official.FOLDERS, "--out"))
        facts = {"command": command, **measure.hardware(), **official.facts(args)}
        measure.say(measure.one_line(facts))
        rows = []
        for config in chosen:
            of_task = []
            for seeds in args.seeds:
                measure.say(f"{config.env.name}, preset {config.preset}, {seeds} seed{'s' if seeds > 1 else ''} ...")
                mesh = make_mesh(args.devices, seeds)
                with beside_official(args, config, seeds) as theirs:
                    of_task.append(time_preset(config, args.seconds, seeds, mesh, args.stored, theirs))
            rows += beside_one_seed(of_task)
    except (official.Unusable, configs.ConfigError) as error:
        print(error, file=sys.stderr)
        return 2
    print(measure.listing(rows))
    if args.out:
        measure.write(args.out, rows, facts)
    return 0


if __name__ == "__main__":
    sys.exit(main())
