"""How well do model-free algorithms learn the same tasks on the same machine and versions?

Train PPO, TRPO, A2C and SAC of Stable-Baselines3 and sb3-contrib with the paper's settings (Appendix C.2): the
libraries' default hyperparameters, which are tuned to no task here, but for two of A2C's. Every run is judged by the
evaluations of ``training_runs.py`` and recorded in the same CSV files, so that its curves stand beside those of a world
model. ``stable_baselines.py`` is one run; this is the grid of them, resumable as every grid: finished runs are kept, a
run that was killed begins again. Needs the extra ``baselines``.

    python experiments/learning/model_free_runs.py --experiment hopper_model_free --env hopper --algorithms ppo sac \\
        --seeds 0 1 2 3 4 --steps 100000 --jobs 1 --out results/learning_curves
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from experiments.harness import in_venv  # noqa: F401  first of all: it continues in the clone's .venv

# isort: split
import argparse
import shlex
from functools import partial

from experiments.harness import grid
from experiments.learning import stable_baselines, training_runs
from polygrad_jax.config import ConfigError, EnvConfig
from polygrad_jax.envs.tasks import gymnasium_id

DEFAULTS, CHANGED = "SB3 defaults", "SB3, as in the paper"
"""What ``runs.csv`` has in place of a preset's name."""


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--experiment", default=None, help="name of the CSV and the figure (ENV_model_free)")
    parser.add_argument("--env", default="hopper")
    parser.add_argument("--algorithms", nargs="+", choices=tuple(stable_baselines.ALGORITHMS), default=["ppo"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    stable_baselines.add_lengths(parser)
    parser.add_argument("--runs", type=Path, default=None, help="run folders (runs/EXPERIMENT)")
    grid.add_arguments(parser)
    options = parser.parse_args()
    options.experiment = training_runs.slug(options.experiment or f"{options.env}_model_free")
    options.runs = options.runs or Path("runs") / options.experiment
    return options


def cell_of(options: argparse.Namespace, algorithm: str, seed: int) -> grid.Cell:
    """Return one run by the command line that a user would type."""
    name = algorithm.upper()
    preset = CHANGED if stable_baselines.ALGORITHMS[algorithm].changed else DEFAULTS
    folder = options.runs / training_runs.run_name(name, seed)
    words = ["--algorithm", algorithm, "--env", options.env, "--seed", str(seed)]
    words += ["--steps", str(options.steps)]
    if options.eval_every != stable_baselines.EVAL_EVERY_ENV_STEPS:
        words += ["--eval-every", str(options.eval_every)]
    words += ["--run"]
    script = Path(stable_baselines.__file__).resolve()
    # A result names no folder of the machine it was made on.
    recorded_command = shlex.join(["python", f"experiments/learning/{script.name}", *words, folder.name])
    return grid.Cell(
        name=folder.name,
        command=(sys.executable, str(script), *words, str(folder.resolve())),
        labels=(("experiment", options.experiment), ("exp_name", name), ("seed", seed), ("preset", preset)),
        collect=partial(training_runs.summary, folder, recorded_command),
    )


def run_grid(options: argparse.Namespace) -> int:
    """Train all runs that have no row; return the exit code."""
    stable_baselines.require_packages()
    gymnasium_id(EnvConfig(name=options.env))  # raises for an unknown task, before any process starts
    stable_baselines.check_steps(options.steps, options.eval_every)
    refuse_other_steps(options)
    cells = [cell_of(options, algorithm, seed) for algorithm in options.algorithms for seed in options.seeds]
    return training_runs.run_cells(options, cells)


def refuse_other_steps(options: argparse.Namespace) -> None:
    """Raise ConfigError where recorded runs of an algorithm have another length or other evaluations."""
    names = [algorithm.upper() for algorithm in options.algorithms]
    for row in grid.read_if_there(options.out / f"{training_runs.RUNS}.csv"):
        if row["experiment"] == options.experiment and row["exp_name"] in names:
            words = shlex.split(row["command"])
            usual = str(stable_baselines.EVAL_EVERY_ENV_STEPS)
            for option, asked in (("--steps", options.steps), ("--eval-every", options.eval_every)):
                recorded = words[words.index(option) + 1] if option in words else usual
                if recorded != str(asked):
                    raise ConfigError(
                        f"{option} is {asked}; allowed for {row['exp_name']} in the experiment "
                        f"{options.experiment}: {recorded}"
                    )


def draw(options: argparse.Namespace) -> None:
    """Draw the experiment from its CSV files."""
    training_runs.draw_experiment(options.out, options.experiment)


def main() -> int:
    return training_runs.run_and_draw("model_free_runs", parse(), run_grid, draw)


if __name__ == "__main__":
    sys.exit(main())
