"""How do a world model's learning curves stand beside those of model-free algorithms and of others' publications?

Draw an experiment of ``training_runs.py`` (a thin line per seed, thick their mean) with the means of an experiment of
``model_free_runs.py`` (dashed) and the published means of the same task (dotted; evaluation return only, v4
environments, as ``results/published_curves`` says). Runs nothing: ``EXPERIMENT_beside.png`` is drawn from CSV files.

    python experiments/learning/curves_beside.py --experiment hopper --beside hopper_model_free \\
        --out results/learning_curves
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from experiments.harness import in_venv

# isort: split
import argparse
import csv
import itertools
import math
import textwrap

import numpy as np

from experiments.harness import figures, grid
from experiments.learning.training_runs import (
    AGAIN,
    RUNS,
    SHOWN_METRICS,
    curves_of,
    draw_setting,
    draw_step_axis,
    task_in_words,
)
from polygrad_jax.config import ConfigError
from polygrad_jax.runs import physics

CURVE_COLUMNS = ("exp_name", "env_name", "seed", "metric", "env_step", "value")
PUBLISHED = in_venv.CLONE / "results" / "published_curves" / "v4.csv"


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--experiment", required=True, help="whose CSV has the curves in front")
    parser.add_argument("--beside", required=True, metavar="EXPERIMENT", help="whose CSV has the baselines")
    parser.add_argument("--out", type=Path, required=True, help="folder of the CSV files and the figure")
    parser.add_argument(physics.ASKED_BY, action="store_true", help="whatever versions of MuJoCo made the curves")
    return parser.parse_args()


def rows_of(out: Path, experiment: str, option: str) -> list[grid.Row]:
    """Return an experiment's learning curves, without repeated runs.

    Raises:
      ConfigError: it has no CSV, or one that has no learning curves.
    """
    paths = {path.stem: path for path in sorted(out.glob("*.csv")) if path.stem != RUNS}
    if experiment not in paths:
        allowed = ", ".join(paths) or "a folder that has some (none is there)"
        raise ConfigError(f"{option} is {experiment}, of which {out} has no CSV; allowed: {allowed}")
    try:
        rows = grid.read_csv(paths[experiment])
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ConfigError(f"{paths[experiment]} cannot be read ({error}); allowed: a CSV file") from None
    check_curves(paths[experiment], rows)
    kept = [row for row in rows if not row["exp_name"].endswith(AGAIN)]
    if not kept:
        raise ConfigError(f"{option}: {experiment}.csv has no evaluation; allowed: experiments that have some")
    return kept


def check_curves(path: Path, rows: list[grid.Row]) -> None:
    """Raise ConfigError where these are not learning curves, a value is no finite number, or one is there twice."""
    if rows and (missing := [name for name in CURVE_COLUMNS if name not in rows[0]]):
        raise ConfigError(f"{path} has no column {missing[0]}; allowed: learning curves of training_runs.py")
    seen: dict[tuple[str, ...], int] = {}
    for line, row in enumerate(rows, start=2):
        key = tuple(row[name] for name in CURVE_COLUMNS if name != "value")
        if (first := seen.setdefault(key, line)) != line:
            raise ConfigError(f"{path}, line {line}: the same as line {first} ({', '.join(key)}); allowed: each once")
        try:
            finite = math.isfinite(float(row["value"])) and int(row["env_step"]) >= 0
        except (TypeError, ValueError):
            finite = False
        if not finite:
            raise ConfigError(
                f"{path}, line {line}: env_step is {row['env_step']} and value {row['value']}; allowed: whole steps "
                "and finite values"
            )


def refuse_mixed(options: argparse.Namespace, rows: list[grid.Row], baselines: list[grid.Row]) -> None:
    """Raise ConfigError where curves of one task are of several physics; others' are of other versions of the task."""
    of_both = [(options.experiment, rows), (options.beside, baselines)]
    used = [used for name, own in of_both for used in grid.used(own, Path(f"{name}.csv"))]
    published = [row for row in grid.read_if_there(PUBLISHED) if row["env_name"] == rows[0]["env_name"]]
    physics.refuse_mixed([*used, *grid.used(published, PUBLISHED)], options.mixed_physics)


def published_of(task: str) -> list[grid.Row]:
    """Return the published curves of a task, their names marked with the environment's version."""
    rows = [row for row in grid.read_if_there(PUBLISHED) if task_and_version(row)[0] == task]
    return [row | {"exp_name": f"{row['exp_name']} {task_and_version(row)[1]}"} for row in rows]


def task_and_version(row: grid.Row) -> tuple[str, str]:
    """Return Gymnasium's name of a row's task, and the version."""
    task, _, version = row["env_name"].rpartition("-")
    return task, version


# --- the figure ------------------------------------------------------------------------------------------------------


def draw(rows: list[grid.Row], baselines: list[grid.Row], published: list[grid.Row], path: Path) -> None:
    """Draw return, and distance where both have it, against environment steps."""
    metrics = [m for m in SHOWN_METRICS if all(any(row["metric"] == m for row in some) for some in (rows, baselines))]
    last_step = max(int(row["env_step"]) for row in rows + baselines + published)
    with figures.figure(path, columns=len(metrics), size=(0.8 + 5.4 * len(metrics), 5.0)) as (figure, axes):
        for axis, metric in zip(axes[0], metrics, strict=True):
            colours = itertools.cycle(figures.PALETTE)
            for setting, curves in curves_of(rows, metric).items():
                draw_setting(axis, setting, curves, next(colours))
            for name, curves in curves_of(baselines, metric).items():
                draw_mean(axis, name, curves, next(colours), linestyle="--", linewidth=1.8)
            for name, curves in curves_of(published, metric).items():
                draw_mean(axis, name, curves, figures.GREY, linestyle=":", linewidth=1)
            axis.set_ylabel(SHOWN_METRICS[metric])
            draw_step_axis(axis, last_step)
        lines = textwrap.wrap(caption(rows, published), 65 * len(metrics), break_on_hyphens=False)
        figure.suptitle("\n".join(lines), fontsize=8)


def draw_mean(axis: Any, name: str, curves: list[list[tuple[int, float]]], colour: str, **style: Any) -> None:
    """Draw the mean of a name's curves; write the name and the number of seeds at its end."""
    steps, values = mean_curve(curves)
    axis.plot(steps, values, color=colour, **style)
    figures.label_end(axis, steps[-1], values[-1], f"{name} ({len(curves)})", colour, size=7)


def mean_curve(curves: list[list[tuple[int, float]]]) -> tuple[np.ndarray, np.ndarray]:
    """Return ``(steps, values)``, each a mean over seeds at every evaluation that all of them have."""
    length = min(len(curve) for curve in curves)
    steps, values = np.mean([curve[:length] for curve in curves], axis=0).T
    return steps, values


def caption(rows: list[grid.Row], published: list[grid.Row]) -> str:
    """Say what the lines are, and from whom the published ones."""
    text = (
        f"{task_in_words(rows)}. Thin: a seed, thick: the mean (number of seeds). Dashed: Stable-Baselines3, "
        "default hyperparameters (A2C: the paper's), run by us."
    )
    if not published:
        return text
    versions = ", ".join(dict.fromkeys(task_and_version(row)[1] for row in published))
    sources = ", ".join(dict.fromkeys(row["source"].split()[0] for row in published))
    return f"{text} Dotted: published by others, on {versions} environments ({sources})."


def main() -> int:
    options = parse()
    try:
        rows = rows_of(options.out, options.experiment, "--experiment")
        baselines = rows_of(options.out, options.beside, "--beside")
        if baselines[0]["env_name"] != rows[0]["env_name"]:
            raise ConfigError(
                f"--beside is {options.beside}, whose task is {baselines[0]['env_name']}; "
                f"allowed: an experiment on {rows[0]['env_name']}"
            )
        refuse_mixed(options, rows, baselines)
        published = published_of(task_and_version(rows[0])[0])
        draw(rows, baselines, published, options.out / f"{options.experiment}_beside.png")
    except ConfigError as error:
        print(f"curves_beside: {error}", file=sys.stderr)
        return in_venv.BAD_INPUT
    return 0


if __name__ == "__main__":
    sys.exit(main())
