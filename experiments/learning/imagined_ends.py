"""Do imagined episodes end where real ones do? Precision and recall of ends, in the closed loop, of finished runs.

    python experiments/learning/imagined_ends.py --runs runs/hopper-cpu-seed0 runs/walker2d-cpu-seed0 \\
        --out results/world_models/imagined_ends

From 2,000 states of a run's replay its world model imagines under the run's last policy, and MuJoCo replays the same
actions from the same simulator states. An imagined end counts as right where MuJoCo ends the episode within a step of
it. ``recent`` takes the first states of the newest 5,000 windows, ``all`` those of any. Beside the world model
stands what the agent's paths go through, where that is another (``companion``: its probabilities are drawn), and the
null case: a world model of the same kind before any update.

``imagined_ends.csv`` has a row per run, model and choice of states: ``ends_imagined`` and ``ends_real``, the shares of
trajectories that end; ``terminal_precision``, ``terminal_recall``.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from experiments.harness import in_venv  # noqa: F401  first of all: it continues in the clone's .venv

# isort: split
import argparse
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.harness import experiment, grid
from experiments.harness.error_by_step import ends_found
from polygrad_jax.analysis.opened_run import OpenedRun, open_run
from polygrad_jax.config import ConfigError
from polygrad_jax.data import replay as replays
from polygrad_jax.envs.mujoco_state import replay_actions
from polygrad_jax.types import Array, Prediction, Segment
from polygrad_jax.world_models.companion import CompanionState
from polygrad_jax.world_models.rollout import begin, roll_out, under

TRAJECTORIES = 2_000
NEWEST = 5_000
COLUMNS = ("ends_imagined", "ends_real", "terminal_precision", "terminal_recall")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--runs", type=Path, nargs="+", default=[], help="run folders")


def cells(options: argparse.Namespace) -> dict[str, Path]:
    """One cell per run folder, by its name."""
    names = [folder.name for folder in options.runs]
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(f"two folders of --runs are named {name}; allowed: different names")
    return dict(zip(names, options.runs, strict=True))


def contexts_of(run: OpenedRun, states: str) -> Segment:
    """Draw the first states ``[B, 1]`` of the newest windows, or of any."""
    recent = TRAJECTORIES if states == "recent" else 0
    horizon = run.world_model.states_of_episode(run.config.horizon)
    draw_windows = jax.jit(replays.sample, static_argnums=(2, 3, 4, 5))
    windows = draw_windows(run.replay, jax.random.key(0), TRAJECTORIES, horizon, recent, NEWEST)
    first = jax.tree.map(lambda x: x[:, :1], windows)
    if run.world_model.context_length > 1:
        raise ConfigError(f"{run.folder} has contexts of several states; allowed: a world model that begins from one")
    return first


def walked(run: OpenedRun, model_state: Any, contexts: Segment, key: Array) -> Segment:
    """Roll the differentiable step out under the run's policy, ends drawn by their probability."""

    def predict(_: None, raw_obs: Array, actions: Array, key: Array) -> tuple[None, Prediction, dict]:
        step_key, end_key = jax.random.split(key)
        said = run.world_model.step(model_state, raw_obs, actions, run.normaliser, step_key)
        drawn = jax.random.bernoulli(end_key, said.terminals).astype(jnp.float32)
        return None, said._replace(terminals=drawn), {}

    keys = jax.random.split(key, run.config.horizon)
    return roll_out(predict, begin(contexts, None), under(run.policy), keys)[1]


def measure(options: argparse.Namespace, folder: Path) -> Iterator[grid.Row]:
    """Compare every model of a run with MuJoCo, from both choices of states."""
    del options
    run = open_run(folder)
    untrained = run.untrained_state(jax.random.key(1))
    imaginers = {
        "world model": lambda contexts, key: run.imagine(contexts, key),
        "untrained": lambda contexts, key: run.imagine(contexts, key, untrained),
    }
    if isinstance(run.model_state, CompanionState):
        imaginers["companion"] = lambda contexts, key: walked(run, run.model_state, contexts, key)
    for states in ("recent", "all"):
        contexts = contexts_of(run, states)
        for name, imagine in imaginers.items():
            segment = imagine(contexts, jax.random.key(2))
            actions = np.asarray(segment.actions)[:, :-1]
            _, _, real = replay_actions(run.config.env, run.simulator_states(contexts), actions)
            found = ends_found(np.asarray(segment.terminals)[:, :-1] > 0.5, real)
            labels = {"run": folder.name, "env": run.config.env.name, "preset": run.config.preset}
            labels |= {"world_model": run.config.world_model, "seed": run.config.seed, "env_steps": run.env_steps}
            yield labels | {"states": states, "model": name, "trajectories": TRAJECTORIES, **found}


def draw(out: Path) -> None:
    """Print the table."""
    for row in grid.read_csv(out / "imagined_ends.csv"):
        numbers = "  ".join(f"{name} {float(row[name] or 'nan'):.2f}" for name in COLUMNS)
        print(f"{row['run']} at {row['env_steps']}, {row['states']}, {row['model']}: {numbers}")


if __name__ == "__main__":
    sys.exit(
        experiment.run(
            experiment.Experiment(Path(__file__), __doc__, draw, cells, measure, add_arguments, csv="imagined_ends")
        )
    )
