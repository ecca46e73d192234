"""Train one policy with a model-free algorithm of Stable-Baselines3, judged by the evaluations of every other run.

PPO, TRPO (of sb3-contrib) and SAC keep the library's default hyperparameters, A2C has the two that the paper changes
(Appendix C.2); all have its ``MlpPolicy`` and one core. Task and evaluations are this package's: actions in [-1, 1],
whole episodes with the mean action, seeds that training never sees. Needs the extra ``baselines``;
``model_free_runs.py`` runs a grid of these trainings.

    python experiments/learning/stable_baselines.py --algorithm ppo --env hopper --seed 0 --steps 100000 --run runs/ppo

The run folder has ``config.json``, ``environment.json``, ``eval.csv``, ``metrics.jsonl`` and TensorBoard events like
any other, but no checkpoints: a run that was killed begins again. The algorithms collect and learn in turns of their
own, so ``seconds/training`` counts all time but evaluating.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from experiments.harness import in_venv  # first of all: it continues in the clone's .venv

# isort: split
import argparse
import dataclasses
import importlib
import importlib.util
import inspect
import json
import time
from collections.abc import Mapping
from importlib import metadata

from polygrad_jax.config import ConfigError, EnvConfig
from polygrad_jax.envs import tasks
from polygrad_jax.envs.episodes import run_episodes
from polygrad_jax.runs import physics
from polygrad_jax.runs.metrics_log import MetricsLog
from polygrad_jax.runs.run_folder import (
    CONFIG_FILE,
    ENVIRONMENT_FILE,
    RunFolder,
    describe_environment,
    write_text_atomically,
)
from polygrad_jax.training.evaluating import evaluation_row, evaluation_seed

EVAL_EVERY_ENV_STEPS = 5_000
"""As in the ``cpu`` preset."""


class Algorithm(NamedTuple):
    """Where an algorithm is found, and what is not the library's default in it."""

    module: str
    name: str
    changed: dict[str, float] = {}


ALGORITHMS = {
    "ppo": Algorithm("stable_baselines3", "PPO"),
    "trpo": Algorithm("sb3_contrib", "TRPO"),
    "a2c": Algorithm("stable_baselines3", "A2C", {"learning_rate": 3e-4, "ent_coef": 1e-5}),
    "sac": Algorithm("stable_baselines3", "SAC"),
}
PACKAGES = ("stable_baselines3", "sb3_contrib", "torch")
NOT_LEARNT_WITH = ("device", "verbose", "stats_window_size", "_init_setup_model")
"""Arguments of an algorithm that are no hyperparameters."""


@dataclasses.dataclass(frozen=True)
class Training:
    """What one run is told; ``config.json`` holds it beside the hyperparameters."""

    algorithm: str
    env: EnvConfig
    seed: int
    total_env_steps: int
    eval_every_env_steps: int = EVAL_EVERY_ENV_STEPS
    eval_episodes: int = 20


def require_packages() -> None:
    """Raise ConfigError where the extra ``baselines`` is not installed."""
    for package in PACKAGES:
        if importlib.util.find_spec(package) is None:
            raise ConfigError(f"this Python has no {package}; type: pip install -e .[baselines]")


def check_steps(steps: int, eval_every: int) -> None:
    """Raise ConfigError for a run that would end before its first evaluation, or have none."""
    if eval_every < 1:
        raise ConfigError(f"--eval-every is {eval_every}; allowed: 1 or more")
    if steps < eval_every:
        raise ConfigError(f"--steps is {steps}; allowed: {eval_every} (the first evaluation) or more")


def add_lengths(parser: argparse.ArgumentParser) -> None:
    """Add the options that say how long a run is."""
    parser.add_argument("--steps", type=int, default=100_000, help="environment steps of a run")
    parser.add_argument("--eval-every", type=int, default=EVAL_EVERY_ENV_STEPS, help="steps between evaluations")


def make_model(training: Training) -> Any:
    """Make the algorithm, on one core."""
    import torch

    torch.set_num_threads(1)  # networks this small lose time on more
    algorithm = ALGORITHMS[training.algorithm]
    kind = getattr(importlib.import_module(algorithm.module), algorithm.name)
    return kind("MlpPolicy", tasks.make(training.env), seed=training.seed, device="cpu", **algorithm.changed)


def hyperparameters(model: Any, changed: Mapping[str, float]) -> dict[str, Any]:
    """Return what the algorithm was made with: its defaults that are numbers or words, and what was changed."""
    defaults = {p.name: p.default for p in inspect.signature(type(model).__init__).parameters.values()}
    words = {name: value for name, value in defaults.items() if isinstance(value, bool | int | float | str)}
    return {name: value for name, value in words.items() if name not in NOT_LEARNT_WITH} | dict(changed)


def train(training: Training, folder: Path) -> None:
    """Train from the start; leave evaluations and times in the run folder.

    Raises:
      ConfigError: an unknown task, or a folder that holds another run.
    """
    require_packages()
    model = make_model(training)
    learnt_with = hyperparameters(model, ALGORITHMS[training.algorithm].changed)
    config = json.loads(json.dumps(dataclasses.asdict(training) | {"hyperparameters": learnt_with}))
    run = RunFolder(folder)
    if run.holds_a_run() and run.saved_config() != config:
        raise ConfigError(f"run folder {folder} has another config; allowed: the same, or another folder")
    with run.lock():
        record_beginning(folder, config)
        metrics = MetricsLog(folder, hyperparameters=flat(config))
        metrics.truncate(-1)  # what a killed run left
        learn(model, training, metrics)
        metrics.close()


def flat(nested: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested fields by dotted name."""
    parts = [flat(x, f"{prefix}{n}.") if isinstance(x, dict) else {f"{prefix}{n}": x} for n, x in nested.items()]
    return {name: value for part in parts for name, value in part.items()}


def record_beginning(folder: Path, config: dict[str, Any]) -> None:
    """Write what the run was told and where it runs."""
    environment = describe_environment()
    environment["device"] = "cpu: cpu"  # PyTorch's; JAX, which only describes the machine, may see another
    environment["packages"] |= {package: metadata.version(package) for package in PACKAGES}
    for name, content in ((CONFIG_FILE, config), (ENVIRONMENT_FILE, environment)):
        write_text_atomically(folder / name, json.dumps(content, indent=2) + "\n")


def learn(model: Any, training: Training, metrics: MetricsLog) -> None:
    """Learn to the last environment step, evaluating on the way."""
    began, evaluating = time.perf_counter(), 0.0

    def on_step(*_: Any) -> bool:
        nonlocal evaluating
        env_steps = model.num_timesteps
        if env_steps % training.eval_every_env_steps == 0:
            evaluation_began = time.perf_counter()
            row = evaluate(model, training, env_steps)
            metrics.write_evaluation(env_steps, row, {physics.COLUMN: physics.todays_mujoco(training.env)})
            evaluating += time.perf_counter() - evaluation_began
            seconds = {"training": time.perf_counter() - began - evaluating, "evaluating": evaluating}
            metrics.write(env_steps, {f"seconds/{name}": value for name, value in seconds.items()})
            print(f"{env_steps} environment steps: return {row['return_mean']:.1f}", flush=True)
        return env_steps < training.total_env_steps

    model.learn(training.total_env_steps, callback=on_step)


def evaluate(model: Any, training: Training, env_steps: int) -> dict[str, Any]:
    """Return the columns of ``eval.csv``, by the episodes and the statistics of every other run."""
    episodes = run_episodes(
        training.env,
        lambda raw_obs: model.predict(raw_obs, deterministic=True)[0],
        training.eval_episodes,
        evaluation_seed(training.seed, env_steps),
    )
    return evaluation_row(episodes)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--algorithm", choices=tuple(ALGORITHMS), required=True)
    parser.add_argument("--env", default="hopper")
    parser.add_argument("--seed", type=int, default=0)
    add_lengths(parser)
    parser.add_argument("--run", type=Path, required=True, help="run folder")
    return parser.parse_args()


def main() -> int:
    options = parse()
    try:
        check_steps(options.steps, options.eval_every)
        env = EnvConfig(name=options.env)
        train(Training(options.algorithm, env, options.seed, options.steps, options.eval_every), options.run)
    except ConfigError as error:
        print(f"stable_baselines: {error}", file=sys.stderr)
        return in_venv.BAD_INPUT
    return 0


if __name__ == "__main__":
    sys.exit(main())
