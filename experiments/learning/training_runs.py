"""Does training work, how well, and how much does it depend on the seed and the settings?

Train every combination of setting and seed with the command a user would type, one run folder each, as a grid of
``harness/grid.py``: unfinished runs resume, a run that diverged is a row, a run that failed for another reason (a wrong
field, a run folder of another config) is reported, leaves no row and makes the exit code 1. A setting is a guidance
rule, or a name with fields of the config.

    python experiments/learning/training_runs.py --experiment hopper --env hopper --preset cpu_a2c --seeds 0 1 2 \\
        --rules score random_actions --jobs 2 --threads 1 --out results/learning_curves
    python experiments/learning/training_runs.py --experiment hopper_steps --env hopper --preset cpu_a2c \\
        --rules score --setting "K = 128: --diffusion.num-steps 128 --diffusion.sampling-steps 128" \\
        --out results/learning_curves
    python experiments/learning/training_runs.py --out results/learning_curves --figure-only

``EXPERIMENT.csv`` has a row per run, metric and evaluation, in the columns that several JAX projects use for learning
curves: ``exp_name`` (the setting), ``env_name`` (Gymnasium's), ``seed``, ``metric``, ``env_step`` (random prefill
included), ``value``; behind them ``mujoco``, the version that simulated it. ``runs.csv`` has a row per run of every
experiment in the folder: command, last evaluations, seconds, machine, versions. ``EXPERIMENT.png`` is drawn from these
two files alone. Where every setting's name ends with the value of a field ("score 0.03: --a2c.target-change 0.03"),
``EXPERIMENT_along.png`` has that field as its axis. A setting named like another with " again" behind it repeats that
one: dashed, and in no mean.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from experiments.harness import in_venv  # first of all: it continues in the clone's .venv

# isort: split
import argparse
import itertools
import json
import math
import re
import shlex
from collections.abc import Callable
from functools import partial

import numpy as np

from experiments.harness import figures, grid
from polygrad_jax.config import ConfigError, EnvConfig
from polygrad_jax.envs.tasks import gymnasium_id
from polygrad_jax.runs import physics
from polygrad_jax.runs.metrics_log import read_rows

RUNS = "runs"
"""The stem of the table of all runs, which no experiment may have."""
LAST_EVALUATIONS = 3
SHOWN_METRICS = {"return_mean": "evaluation return", "distance_mean": "distance travelled [m]"}
ERRORS = tuple(f"error/observation_mse_{steps:03d}" for steps in (1, 5, 9, 19))
"""Squared errors of imagined observations so many steps ahead, raw units, mean over dimensions."""
AGAIN = " again"


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--experiment", default=None, help="name of the CSV and the figure (ENV_PRESET)")
    parser.add_argument("--env", default="hopper")
    parser.add_argument("--preset", default="cpu")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--rules", nargs="*", default=None, help="guidance rules (score, where no --setting is given)")
    parser.add_argument("--setting", action="append", default=[], metavar='"NAME: FIELDS"', help="fields by a name")
    parser.add_argument("--fields", default="", help='fields of every run, as in "--a2c.gae-lambda 0.95"')
    parser.add_argument("--runs", type=Path, default=None, help="run folders (runs/EXPERIMENT)")
    grid.add_arguments(parser)
    options = parser.parse_args()
    options.experiment = slug(options.experiment or f"{options.env}_{options.preset}")
    options.runs = options.runs or Path("runs") / options.experiment
    return options


# --- the runs --------------------------------------------------------------------------------------------------------


def settings_of(options: argparse.Namespace) -> dict[str, list[str]]:
    """Return the fields of every setting by its name, rules first.

    Raises:
      ConfigError: a setting without a name, or a name twice.
    """
    rules = options.rules if options.rules is not None else ([] if options.setting else ["score"])
    settings = [(rule, ["--guidance.rule", rule]) for rule in rules]
    for text in options.setting:
        name, colon, fields = text.partition(":")
        if not (colon and name.strip()):
            raise ConfigError(f'--setting is {text}; allowed: "NAME: FIELDS"')
        settings.append((name.strip(), shlex.split(fields)))
    folders = [slug(name) for name, _ in settings]
    for folder in folders:
        if folders.count(folder) > 1:
            raise ConfigError(f"two settings are named {folder}; allowed: names that differ in letters or digits")
    return dict(settings)


def slug(name: str) -> str:
    """Return a name as part of a file's name."""
    return re.sub(r"[^A-Za-z0-9_.]+", "-", name).strip("-")


def run_name(setting: str, seed: int | str) -> str:
    """Return the name of a run's folder, which is its cell's name too."""
    return f"{slug(setting)}-seed{seed}"


def words_of(options: argparse.Namespace, fields: list[str], seed: int | str, folder: str) -> list[str]:
    """Return the words behind ``polygrad`` that train one run in a folder."""
    words = ["train", "--env", options.env, "--preset", options.preset, "--seed", str(seed), "--run", folder]
    return [*words, *fields, *shlex.split(options.fields)]


def recorded_command(options: argparse.Namespace, setting: str, fields: list[str], seed: int | str) -> str:
    """Return a run's command as ``runs.csv`` has it, which names no folder of the machine that ran it."""
    return shlex.join(["polygrad", *words_of(options, fields, seed, run_name(setting, seed))])


def cell_of(options: argparse.Namespace, setting: str, fields: list[str], seed: int) -> grid.Cell:
    """Return one run by the command line that a user would type."""
    folder = options.runs / run_name(setting, seed)
    asked = [physics.ASKED_BY] if options.mixed_physics else []
    words = words_of(options, fields, seed, str(folder.resolve()))
    return grid.Cell(
        name=folder.name,
        command=(sys.executable, "-m", "polygrad_jax.cli", *words, *asked),
        labels=(("experiment", options.experiment), ("exp_name", setting), ("seed", seed), ("preset", options.preset)),
        collect=partial(summary, folder, recorded_command(options, setting, fields, seed)),
    )


def evaluations(folder: Path) -> list[dict[str, str]]:
    """Return the rows of a run's ``eval.csv``; none where there is no such file."""
    return grid.read_if_there(folder / "eval.csv")


def summary(folder: Path, command: str, code: int) -> list[grid.Row]:
    """Return a run's row: the mean of its last evaluations, and everything needed to repeat it."""
    rows = evaluations(folder)[-LAST_EVALUATIONS:]
    environment = json.loads((folder / "environment.json").read_text())
    env = json.loads((folder / "config.json").read_text())["env"]
    seconds = last_metrics(folder)
    names = ("return_mean", "distance_mean", "length_mean")
    # A cell is empty where the number was not finite or is not known: the mean is not either.
    cells = {name: [float(r.get(name) or "nan") for r in rows] for name in names}
    means = {name: float(np.mean(values)) if values else float("nan") for name, values in cells.items()}
    row = {
        "env_name": gymnasium_id(EnvConfig(name=env["name"], version=env["version"])),
        "env_steps": rows[-1]["env_steps"] if rows else 0,
        "final_return_mean": rows[-1]["return_mean"] if rows else "nan",
        **{f"last{LAST_EVALUATIONS}_{name}": value for name, value in means.items()},
        **{f"seconds_{name}": seconds.get(f"seconds/{name}") for name in ("training", "collecting", "evaluating")},
        "device": environment["device"],
        "processor": environment["processor"],
        "cores": environment["cores"],
        "packages": " ".join(f"{k}={v}" for k, v in environment["packages"].items()),
        physics.COLUMN: physics.version_of_run(environment),
        "git_revision": environment["git_revision"],
        "command": command,
    }
    return [row]


def last_metrics(folder: Path) -> dict:
    """Return the last row of a run's metrics."""
    lines = (folder / "metrics.jsonl").read_text().splitlines() if (folder / "metrics.jsonl").exists() else []
    return json.loads(lines[-1]) if lines else {}


def run_grid(options: argparse.Namespace) -> int:
    """Train all runs that have no row; return the exit code."""
    settings = settings_of(options)
    warn_of_other_commands(options, settings)
    return run_cells(
        options,
        [cell_of(options, name, fields, seed) for seed in options.seeds for name, fields in settings.items()],
    )


def run_cells(options: argparse.Namespace, cells: list[grid.Cell]) -> int:
    """Run all cells of an experiment that have no row, and record them; return the exit code.

    The grid keeps its own table beside the run folders. What it holds at the end, finished or stopped, replaces the
    rows of the same runs in ``runs.csv``; rows there that the table lacks count as done, so that a clone goes on.
    """
    if options.experiment == RUNS:
        raise ConfigError(f"--experiment is {RUNS}; allowed: any other name, {RUNS}.csv is the table of all runs")
    recorded = grid.read_if_there(options.out / f"{RUNS}.csv")
    ours = [row for row in recorded if row["experiment"] == options.experiment]
    refuse_another_task(options, ours)
    table = options.runs / f"{RUNS}.csv"
    with grid.locked(options.runs):
        rows = grid.read_if_there(table)
        missing = [named_as_cell(row) for row in not_among(ours, rows)]
        if missing:
            grid.write_csv(table, rows + missing)
    code = grid.run(cells, table, options, one_task=True)
    if grid.read_if_there(table):
        record(options, table)
    return code


def warn_of_other_commands(options: argparse.Namespace, settings: dict[str, list[str]]) -> None:
    """Say which recorded runs of these settings had other words: one name stands for one setting in every table."""
    for row in grid.read_if_there(options.out / f"{RUNS}.csv"):
        name, seed = row["exp_name"], row["seed"]
        if row["experiment"] != options.experiment or name not in settings or int(seed) not in options.seeds:
            continue
        if row["command"] != recorded_command(options, name, settings[name], seed):
            print(
                f"warning: seed {seed} of {name} is there by another command ({row['command']}); where that is "
                "another setting, give this one another name",
                file=sys.stderr,
            )


def refuse_another_task(options: argparse.Namespace, rows: list[grid.Row]) -> None:
    """Raise ConfigError where the experiment's recorded runs are of another task: one CSV has one task."""
    for words in (shlex.split(row["command"]) for row in rows):
        recorded = words[words.index("--env") + 1]
        if recorded != options.env:
            raise ConfigError(f"--env is {options.env}; allowed for the experiment {options.experiment}: {recorded}")


def key_of(row: grid.Row) -> tuple[str, str]:
    """Return what tells an experiment's runs apart."""
    return row["exp_name"], row["seed"]


def not_among(rows: list[grid.Row], others: list[grid.Row]) -> list[grid.Row]:
    """Return the rows of the runs that the others have none of."""
    known = {key_of(row) for row in others}
    return [row for row in rows if key_of(row) not in known]


def named_as_cell(row: grid.Row) -> grid.Row:
    """Return a recorded row as the grid keeps it, under its cell's name."""
    return {"cell": run_name(row["exp_name"], row["seed"]), **row}


def in_order(rows: list[grid.Row]) -> list[grid.Row]:
    """Sort rows by setting, in the order in which the settings first appear, then by seed."""
    settings = list(dict.fromkeys(row["exp_name"] for row in rows))
    return sorted(rows, key=lambda row: (settings.index(row["exp_name"]), int(row["seed"])))


def record(options: argparse.Namespace, table: Path) -> None:
    """Write the experiment's learning curves, and the runs of its table in their place in ``runs.csv``.

    Both files are read now, under a lock: hours may have passed, in which other experiments recorded theirs.
    """
    path, of_all = options.out / f"{options.experiment}.csv", options.out / f"{RUNS}.csv"
    with grid.locked(options.out):
        of_experiment: dict[str, list[grid.Row]] = {}
        for row in grid.read_if_there(of_all):
            of_experiment.setdefault(row["experiment"], []).append(row)
        ended = grid.read_if_there(table)
        ended = in_order(ended + not_among(of_experiment.get(options.experiment, []), ended))
        kept = grid.read_if_there(path)
        curves = [row for run in ended for row in curve_of(options.runs, run, kept)]
        if curves:  # a run may diverge before its first evaluation
            grid.write_csv(path, curves)
        of_experiment[options.experiment] = [as_recorded(run) for run in ended]
        grid.write_csv(of_all, [row for rows in of_experiment.values() for row in rows])


def as_recorded(run: grid.Row) -> grid.Row:
    """Return a run's row of the grid as ``runs.csv`` has it."""
    first = ("experiment", "exp_name", "env_name", "seed", "preset", "outcome")
    return {name: run[name] for name in first} | {name: value for name, value in run.items() if name != "cell"}


def curve_of(runs: Path, run: grid.Row, kept: list[grid.Row]) -> list[grid.Row]:
    """Return a run's evaluations from its folder; those kept in the CSV where that is gone or another run's."""
    rows, version = evaluations(runs / run_name(run["exp_name"], run["seed"])), physics.version_of_row(run)
    if not (rows and rows[-1]["return_mean"] == run["final_return_mean"]):
        own = [row for row in kept if key_of(row) == key_of(run)]
        return [row | {physics.COLUMN: row.get(physics.COLUMN) or version} for row in own]
    named = {name: run[name] for name in ("exp_name", "env_name", "seed")}
    values = [
        (metric, row["env_steps"], row[metric], row.get(physics.COLUMN) or version)
        for metric in rows[0]
        if metric not in ("env_steps", physics.COLUMN)
        for row in rows
        if row[metric] != ""
    ]
    values += [(*error, version) for error in errors_of(runs / run_name(run["exp_name"], run["seed"]))]
    names = ("metric", "env_step", "value", physics.COLUMN)
    return [named | dict(zip(names, of_one, strict=True)) for of_one in values]


def errors_of(folder: Path) -> list[tuple[str, str, str]]:
    """Return metric, environment step and value of a run's errors of imagination, of some of the steps ahead."""
    rows = read_rows(folder) if (folder / "metrics.jsonl").exists() else []
    return [
        (metric, str(row["env_steps"]), repr(row[metric]))
        for metric in ERRORS
        for row in rows
        if row.get(metric) is not None
    ]


# --- the figures, from the CSV files alone ---------------------------------------------------------------------------


def draw_all(out: Path) -> None:
    """Draw the figures of every experiment in the folder."""
    for path in sorted(out.glob("*.csv")):
        if path.stem != RUNS:
            print(path)
            draw_experiment(out, path.stem)


def draw_experiment(out: Path, experiment: str) -> None:
    """Draw ``EXPERIMENT.png`` and, where the settings are values of one field, ``EXPERIMENT_along.png``."""
    runs = [row for row in grid.read_csv(out / f"{RUNS}.csv") if row["experiment"] == experiment]
    rows = grid.read_if_there(out / f"{experiment}.csv")
    if rows:
        draw_curves(rows, runs, out / f"{experiment}.png")
    if runs:
        draw_along(runs, out / f"{experiment}_along.png")


def curves_of(rows: list[grid.Row], metric: str) -> dict[str, list[list[tuple[int, float]]]]:
    """Return every setting's curves of a metric, one per seed: ``(env_step, value)`` in order."""
    curves: dict[str, dict[str, list[tuple[int, float]]]] = {}
    for row in rows:
        if row["metric"] == metric:
            point = (int(row["env_step"]), float(row["value"]))
            curves.setdefault(row["exp_name"], {}).setdefault(row["seed"], []).append(point)
    return {setting: [sorted(curve) for curve in seeds.values()] for setting, seeds in curves.items()}


def draw_curves(rows: list[grid.Row], runs: list[grid.Row], path: Path) -> None:
    """Draw return, and distance where there is one, against environment steps: a line per seed, thick the mean."""
    metrics = [metric for metric in SHOWN_METRICS if any(row["metric"] == metric for row in rows)]
    colours, others = colours_of(rows)
    with figures.figure(path, columns=len(metrics), size=(0.8 + 4.4 * len(metrics), 3.4)) as (figure, axes):
        for axis, metric in zip(axes[0], metrics, strict=True):
            for setting, curves in curves_of(rows, metric).items():
                colour = colours[setting.removesuffix(AGAIN)]
                draw_setting(axis, setting, curves, colour, named=not others or colour != figures.GREY)
            axis.set_ylabel(SHOWN_METRICS[metric])
            draw_step_axis(axis, last_step=max(int(row["env_step"]) for row in rows))
        lines = "thin: a seed, thick: the mean (number of seeds)"
        if others:
            lines += f", grey: {others} others"
        if any(row["exp_name"].endswith(AGAIN) for row in rows):
            lines += ", dashed: a run repeated"
        figure.suptitle(f"{task_in_words(rows)}, {presets_in_words(runs)}\n{lines}", fontsize=9)


def task_in_words(rows: list[grid.Row]) -> str:
    """Return the task of an experiment's rows and its physics, for a caption."""
    versions = grid.physics_of(rows)
    return f"{rows[0]['env_name']}{f', {versions}' if versions else ''}"


def presets_in_words(runs: list[grid.Row]) -> str:
    """Return the presets of an experiment's runs, for a caption."""
    names = list(dict.fromkeys(run["preset"] for run in runs))
    return f"preset{'s' if len(names) > 1 else ''} {', '.join(names)}"


def colours_of(rows: list[grid.Row]) -> tuple[dict[str, str], int]:
    """Return every setting's colour, and how many are grey: of many, those with the best evaluations are told apart."""
    best: dict[str, float] = {}
    for row in rows:
        setting = row["exp_name"].removesuffix(AGAIN)
        value = float(row["value"]) if row["metric"] == "return_mean" else -math.inf
        best[setting] = max(best.get(setting, -math.inf), value)
    bright = [colour for colour in figures.PALETTE if colour != figures.GREY]
    shown = set(sorted(best, key=best.get, reverse=True)[: len(bright)]) if len(best) > len(figures.PALETTE) else None
    if shown is None:
        return dict(zip(best, figures.PALETTE, strict=False)), 0
    colour = iter(bright)
    return {s: next(colour) if s in shown else figures.GREY for s in best}, len(best) - len(shown)


def draw_setting(
    axis: Any, setting: str, curves: list[list[tuple[int, float]]], colour: str, named: bool = True
) -> None:
    """Draw a setting's curves and, as far as all of them go, their named mean; a repetition is dashed and has none."""
    if setting.endswith(AGAIN):
        for curve in curves:
            axis.plot(*zip(*curve, strict=True), color=colour, linestyle="--", linewidth=1)
        return
    for curve in curves:
        axis.plot(*zip(*curve, strict=True), color=colour, alpha=0.35, linewidth=1)
    if not named:
        return
    length = min(len(curve) for curve in curves)
    steps = [step for step, _ in curves[0][:length]]
    mean = np.mean([[value for _, value in curve[:length]] for curve in curves], axis=0)
    axis.plot(steps, mean, color=colour, linewidth=2.2)
    figures.label_end(axis, steps[-1], mean[-1], f"{setting.replace('_', ' ')} ({len(curves)})", colour)


def draw_step_axis(axis: Any, last_step: int) -> None:
    """Name the axis of environment steps and leave room for the names at the lines' ends."""
    from matplotlib.ticker import MaxNLocator

    ticks = [t for t in MaxNLocator(5).tick_values(0, last_step) if t <= 1.01 * last_step]
    axis.set_xlabel("environment steps, prefill included")
    axis.margins(x=0.02, y=0.1)
    axis.set_xticks(ticks, [f"{t:,.0f}" for t in ticks])
    axis.set_xlim(axis.get_lines()[0].get_xdata()[0] * 0.9, 1.26 * last_step)


def number_of(setting: str) -> tuple[str, float | None]:
    """Return a setting's name without the number that it ends with, and that number; None where there is none."""
    name, _, last = setting.rpartition(" ")
    try:
        return name, float(last)
    except ValueError:
        return setting, None


def field_along(runs: list[grid.Row]) -> str | None:
    """Return the field whose value every setting's name ends with; None where there is none, or one value only."""
    shared = None
    if len({number_of(row["exp_name"])[1] for row in runs}) < 2:
        return None
    for row in runs:
        (_, number), words = number_of(row["exp_name"]), shlex.split(row["command"])
        if number is None:
            return None
        valued = [(a, number_of(f"{a} {b}")[1]) for a, b in itertools.pairwise(words) if re.match(r"--.*\.", a)]
        fields = {name for name, value in valued if value == number}
        shared = fields if shared is None else shared & fields
    return min(shared).removeprefix("--") if shared else None


def along(runs: list[grid.Row]) -> dict[str, dict[float, list[tuple[float, bool]]]]:
    """Return, by name and number, every run's mean of its last evaluations (0 if it diverged) and if it finished."""
    by_name: dict[str, dict[float, list[tuple[float, bool]]]] = {}
    for row in runs:
        name, number = number_of(row["exp_name"])
        finished = row["outcome"] == "finished"
        value = float(row[f"last{LAST_EVALUATIONS}_return_mean"]) if finished else 0.0
        by_name.setdefault(name, {}).setdefault(number, []).append((value, finished))
    return by_name


def draw_along(runs: list[grid.Row], path: Path) -> None:
    """Draw a dot per run (a cross if it diverged) over the field's value, and a line through the means."""
    field = field_along(runs)
    if field is None:
        return
    by_name = along(runs)
    with figures.figure(path, size=(5.4, 3.4)) as (figure, axes):
        axis = axes[0, 0]
        for place, ((name, of_number), colour) in enumerate(
            zip(by_name.items(), itertools.cycle(figures.PALETTE), strict=False)
        ):
            aside = 1.03 ** (place - (len(by_name) - 1) / 2)  # so that one name's dots do not hide another's
            numbers = sorted(of_number)
            for number, (value, finished) in ((n, run) for n in numbers for run in of_number[n]):
                axis.plot(number * aside, value, "o" if finished else "x", color=colour, markersize=4)
            means = [np.mean([value for value, _ in of_number[n]]) for n in numbers]
            axis.plot(numbers, means, color=colour, linewidth=1.6)
            figures.label_end(axis, numbers[-1] * aside, means[-1], name.replace("_", " "), colour)
        ticks = sorted({number for of_number in by_name.values() for number in of_number})
        axis.set_xscale("log")
        axis.minorticks_off()
        axis.set_xticks(ticks, [f"{t:g}" for t in ticks])
        axis.set_xlabel(field)
        axis.set_ylabel(f"evaluation return,\nmean of the last {LAST_EVALUATIONS} evaluations")
        figures.room_for_names(axis, 1.8)
        steps, seeds = min(int(r["env_steps"]) for r in runs), len({r["seed"] for r in runs})
        about = f"{task_in_words(runs)}, {presets_in_words(runs)}, {steps} environment steps"
        figure.suptitle(f"{about}:\n{seeds} seed(s) (dots; crosses diverged) and their mean", fontsize=9)


def run_and_draw(
    script: str,
    options: argparse.Namespace,
    run: Callable[[argparse.Namespace], int],
    draw_again: Callable[[argparse.Namespace], None],
) -> int:
    """Run an experiment's grid and draw its figures; return the exit code, 2 after one line for bad input."""
    try:
        if options.figure_only:
            require_runs(options.out)
            draw_again(options)
            return 0
        code = run(options)
    except ConfigError as error:
        print(f"{script}: {error}", file=sys.stderr)
        return in_venv.BAD_INPUT
    if (options.out / f"{RUNS}.csv").exists():
        draw_experiment(options.out, options.experiment)
    return code


def require_runs(out: Path) -> None:
    """Raise ConfigError where there is nothing to draw from."""
    if not (out / f"{RUNS}.csv").is_file():
        raise ConfigError(f"--out is {out}; allowed with --figure-only: a folder with a {RUNS}.csv")


def main() -> int:
    return run_and_draw("training_runs", parse(), run_grid, lambda options: draw_all(options.out))


if __name__ == "__main__":
    sys.exit(main())
