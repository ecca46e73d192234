"""How exact was each world model after how many seconds? The five-step errors of trainings on recorded data.

    python experiments/world_models/training_curves.py runs/prediction_error-prediction_error/* \\
        --out results/world_models/prediction_error
    python experiments/world_models/training_curves.py --out results/world_models/prediction_error --figure-only

Read: what ``polygrad fit`` and the studies leave in a training's folder (``eval.csv``, ``config.json``, ``data.json``,
``environment.json``). ``training_curves.csv`` has a row per judgement: ``five_step_error`` (mean squared error five
steps ahead, raw, by which the training keeps its best parameters; judged on states of the data it learns from),
``reward_mse``, ``updates`` and ``training_seconds`` of gradient steps. Rows of trainings that are not named stay in the
file. Drawn: the least error so far against seconds, a line per training. Printed: the least error until a tenth of the
seconds (on a line between the judgements before and after, both axes logarithmic, as in the figure) and within all of
them, and their ratio, each a geometric mean over trainings.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from experiments.harness import in_venv  # noqa: F401  first of all: it continues in the clone's .venv

# isort: split
import argparse
import json

import numpy as np

from experiments.harness import experiment, figures, grid, statistics
from experiments.harness.grid import Row
from experiments.world_models.compared_models import colour_of
from polygrad_jax.config import ConfigError
from polygrad_jax.runs import physics

NAMES = {
    ("polygrad", "mlp"): "PolyGRAD MLP",
    ("polygrad", "transformer"): "PolyGRAD transformer",
    ("autoregressive", "mlp"): "autoregressive diffusion",
    ("transformer", "mlp"): "transformer",
    ("ensemble", "mlp"): "ensemble",
    ("dreamer", "mlp"): "Dreamer-v3",
}
"""By world model and kind of denoiser."""


def rows_of(folder: Path) -> list[Row]:
    """Return one row per judgement of a training.

    Raises:
      FileNotFoundError: the folder is none of a training on recorded data.
    """
    config, data, machine = (
        json.loads((folder / f"{name}.json").read_text()) for name in ("config", "data", "environment")
    )
    about = {
        "training": folder.name,
        "env": config["env"]["name"],
        "dataset": data["dataset"],
        "model": NAMES[config["world_model"], config["denoiser"]["kind"]],
        "seed": config["seed"],
        "horizon": config["horizon"],
        "transitions": data["transitions"],
    }
    where = {name: machine[name] for name in ("device", "processor", "cores", "git_revision")}
    rows = grid.read_csv(folder / "eval.csv")
    version = physics.version_of_run(machine)  # of rows from before the column
    versions = [{physics.COLUMN: row.pop(physics.COLUMN, None) or version} for row in rows]
    return [about | own | row | where for own, row in zip(versions, rows, strict=True)]


def gather(options: argparse.Namespace) -> None:
    """Write the rows of the trainings that are named into the CSV.

    Raises:
      ConfigError: one of them is none, or of another physics than the others of its task.
    """
    path = options.out / "training_curves.csv"
    missing = [str(f) for f in options.trainings if not (f / "eval.csv").exists() or not (f / "data.json").exists()]
    if missing or not options.trainings:
        said = ", ".join(missing) or "empty"
        raise ConfigError(f"trainings is {said}; allowed: folders of trainings on recorded data")
    named = {folder.name for folder in options.trainings}
    found = [row for folder in options.trainings for row in rows_of(folder)]
    with grid.locked(options.out):
        rows = [row for row in grid.read_if_there(path) if row["training"] not in named] + found
        physics.refuse_mixed(grid.used(rows, path), options.mixed_physics)
        grid.write_csv(path, rows)


def least_so_far(rows: list[dict[str, str]]) -> tuple[list[float], np.ndarray]:
    """Return ``(seconds, errors)`` of one training, each error the least until then of those that are numbers."""
    rows = sorted(rows, key=lambda r: float(r["training_seconds"]))
    errors = np.array([float(r["five_step_error"] or "nan") for r in rows])
    return [float(r["training_seconds"]) for r in rows], np.fmin.accumulate(errors)


def gains(rows: list[dict[str, str]]) -> dict[str, tuple[float, float]]:
    """Return by model ``(least error until a tenth of the seconds, within all)``, geometric means over trainings."""
    found: dict[str, list[np.ndarray]] = {}
    for own in statistics.groups(rows, ("training",)).values():
        seconds, errors = least_so_far(own)
        tenth = seconds[-1] / 10
        if seconds[0] <= tenth:
            early = np.interp(np.log(tenth), np.log(seconds), np.log(errors))
            found.setdefault(own[0]["model"], []).append(np.array([early, np.log(errors[-1])]))
    return {model: tuple(np.exp(np.mean(logs, axis=0))) for model, logs in found.items()}


def draw(out: Path) -> None:
    """Draw ``training_curves.png``: a panel per task, horizon and size of data; a model's name at its worst line."""
    rows = grid.read_csv(out / "training_curves.csv")
    panels = statistics.groups(rows, ("env", "horizon", "transitions"))
    with figures.figure(out / "training_curves.png", 1, len(panels), (5.4 * len(panels), 4.0)) as (_, axes):
        for axis, (panel, there) in zip(axes[0], panels.items(), strict=True):
            for model in NAMES.values():
                own = statistics.groups((r for r in there if r["model"] == model), ("training",))
                curves = [least_so_far(training) for training in own.values()]
                for seconds, errors in curves:
                    axis.plot(seconds, errors, color=colour_of(model), linewidth=1.2, alpha=0.8)
                if curves:
                    seconds, errors = max(curves, key=lambda curve: curve[1][-1])
                    figures.label_end(axis, seconds[-1], errors[-1], model, colour_of(model), size=7)
            axis.set(xscale="log", yscale="log", xlabel="seconds of gradient steps")
            axis.set_ylabel("least five-step error so far [mean squared, raw]")
            figures.room_for_names(axis, 4)
            seeds = statistics.count_seeds(there)
            about = f"{panel[0]}, H = {panel[1]}, {panel[2]} transitions, {seeds} seed(s)"
            axis.set_title(f"{about}\n{grid.physics_of(there)}", fontsize=8)
            for model, (early, late) in gains(there).items():
                print(f"{', '.join(panel)}, {model}: {early:.3g} -> {late:.3g}, {early / late:.2f} times less")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("trainings", nargs="*", type=Path, help="folders of trainings on recorded data")


CURVES = experiment.Experiment(Path(__file__), __doc__, draw, add_arguments=add_arguments, gather=gather)

if __name__ == "__main__":
    sys.exit(experiment.run(CURVES))
