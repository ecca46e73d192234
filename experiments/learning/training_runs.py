"""Does training work, how well, and how much does it depend on the seed and the setting?

Trains every combination of setting and seed with the command a user would type, one run folder each, as a grid of
``sweep.py``: resumable (unfinished runs go on where they were), a run that diverged is a row like any other, one that
ended otherwise (a wrong field, a run folder of another config) is said aloud, leaves no row, and makes the exit code 1.
A setting is a guidance rule, or a name with fields of the config.

    python experiments/seeds.py --env hopper --preset cpu --seeds 0 1 2 --rules score random_actions \
        --jobs 2 --threads 1 --out results/hopper_cpu
    python experiments/seeds.py --env hopper --rules score --setting "K = 128: --diffusion.num-steps 128 \
        --diffusion.sampling-steps 128" --out results/more_steps
    python experiments/seeds.py --out results/hopper_cpu --figure-only

``runs.csv`` has a row per run, ``evaluations.csv`` one per evaluation, ``curves.png`` is made of the two. Where every
setting's name ends with the value of a field ("score 0.03: --a2c.target-change 0.03"), ``along.png`` has it as axis.
"""

from __future__ import annotations

import argparse
import itertools
import json
import re
import shlex
import sys
from functools import partial
from pathlib import Path

import numpy as np
from experiments.harness import grid as sweep

LAST_EVALUATIONS = 3
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#7F7F7F")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--env", default="hopper")
    parser.add_argument("--preset", default="cpu")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--rules", nargs="*", default=None, help="guidance rules (score, where no --setting is given)")
    parser.add_argument("--setting", action="append", default=[], metavar='"NAME: FIELDS"', help="fields by a name")
    parser.add_argument("--fields", default="", help='fields of every run, as in "--a2c.gae-lambda 0.95"')
    parser.add_argument("--runs", type=Path, default=None, help="run folders (runs/grid-<env>-<preset>)")
    sweep.add_arguments(parser)
    options = parser.parse_args()
    options.runs = options.runs or Path("runs") / f"grid-{options.env.replace('/', '_')}-{options.preset}"
    return options


def settings_of(options: argparse.Namespace) -> dict[str, list[str]]:
    """The fields of every setting by its name, rules first.

    Raises:
      SystemExit: a setting without a name, or a name twice; one line, exit code 2.
    """
    rules = options.rules if options.rules is not None else ([] if options.setting else ["score"])
    found = [(rule, ["--guidance.rule", rule]) for rule in rules]
    for text in options.setting:
        name, colon, fields = text.partition(":")
        if not (colon and name.strip()):
            refuse(f'--setting is {text}; allowed: "NAME: FIELDS"')
        found.append((name.strip(), shlex.split(fields)))
    folders = [slug(name) for name, _ in found]
    for folder in folders:
        if folders.count(folder) > 1:
            refuse(f"two settings are named {folder}; allowed: names that differ in letters or digits")
    return dict(found)


def refuse(line: str) -> None:
    print(f"seeds: {line}", file=sys.stderr)
    raise SystemExit(2)


def slug(name: str) -> str:
    """A name as part of a file's name."""
    return re.sub(r"[^A-Za-z0-9_.]+", "-", name).strip("-")


def cell_of(options: argparse.Namespace, setting: str, fields: list[str], seed: int) -> sweep.Cell:
    """One run by the command line that a user would type."""
    folder = folder_of(options, setting, seed)
    words = ["train", "--env", options.env, "--preset", options.preset, "--seed", str(seed), "--run"]
    fields = [*fields, *shlex.split(options.fields)]
    # A result names no folder of the machine it was made on.
    said = shlex.join(["polygrad", *words, folder.name, *fields])
    return sweep.Cell(
        name=folder.name,
        command=(sys.executable, "-m", "polygrad_jax.cli", *words, str(folder.resolve()), *fields),
        labels=(("env", options.env), ("preset", options.preset), ("setting", setting), ("seed", seed)),
        collect=partial(summary, folder, said),
    )


def evaluations(folder: Path) -> list[dict[str, str]]:
    """The rows of a run's ``eval.csv``; none if it has none yet."""
    path = folder / "eval.csv"
    return sweep.read_csv(path) if path.exists() else []


def summary(folder: Path, command: str, code: int) -> list[sweep.Row]:
    """One row per run: the mean of its last evaluations, and everything needed to run it again."""
    rows = evaluations(folder)[-LAST_EVALUATIONS:]
    environment = json.loads((folder / "environment.json").read_text())
    clock = last_metrics(folder)
    mean = {
        name: float(np.mean([float(r[name]) for r in rows])) if rows and rows[0].get(name) else float("nan")
        for name in ("return_mean", "distance_mean", "length_mean")
    }
    row = {
        "env_version": json.loads((folder / "config.json").read_text())["env"]["version"],
        "env_steps": rows[-1]["env_steps"] if rows else 0,
        "final_return_mean": rows[-1]["return_mean"] if rows else "nan",
        **{f"last{LAST_EVALUATIONS}_{name}": value for name, value in mean.items()},
        **{f"seconds_{name}": clock.get(f"seconds/{name}") for name in ("training", "collecting", "evaluating")},
        "device": environment["device"],
        "processor": environment["processor"],
        "cores": environment["cores"],
        "packages": " ".join(f"{k}={v}" for k, v in environment["packages"].items()),
        "git_revision": environment["git_revision"],
        "command": command,
    }
    return [row]


def last_metrics(folder: Path) -> dict:
    """The last row of a run's metrics."""
    lines = (folder / "metrics.jsonl").read_text().splitlines() if (folder / "metrics.jsonl").exists() else []
    return json.loads(lines[-1]) if lines else {}


def run_grid(options: argparse.Namespace) -> int:
    """All runs; the exit code. The curves are written for every run that has ended, also where the grid was stopped."""
    settings = settings_of(options)
    options.runs.mkdir(parents=True, exist_ok=True)
    cells = [cell_of(options, name, fields, seed) for seed in options.seeds for name, fields in settings.items()]
    code = sweep.run(cells, options.out / "runs.csv", options)
    ended = sweep.read_csv(options.out / "runs.csv") if (options.out / "runs.csv").exists() else []
    kept = sweep.read_csv(options.out / "evaluations.csv") if (options.out / "evaluations.csv").exists() else []
    curves = [row for run in ended for row in curve_of(options, run, kept)]
    if curves:  # a run may diverge before its first evaluation
        sweep.write_csv(options.out / "evaluations.csv", curves)
    return code


def curve_of(options: argparse.Namespace, run: sweep.Row, kept: list[sweep.Row]) -> list[sweep.Row]:
    """A run's evaluations, from its folder; where that is gone or another run's, as ``kept`` has them."""
    found = evaluations(folder_of(options, run["setting"], int(run["seed"])))
    named = {"setting": run["setting"], "seed": run["seed"]}
    if found and found[-1]["return_mean"] == run["final_return_mean"]:
        return [named | row for row in found]
    return [row for row in kept if named.items() <= row.items()]


def folder_of(options: argparse.Namespace, setting: str, seed: int) -> Path:
    return options.runs / f"{slug(setting)}-seed{seed}"


def draw(out: Path) -> None:
    """``curves.png`` from the CSV files alone: return and distance against environment steps, every seed a line."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    rows, first = sweep.read_csv(out / "evaluations.csv"), sweep.read_csv(out / "runs.csv")[0]
    names_of = dict.fromkeys(r["setting"] for r in rows)
    colours = dict(zip(names_of, itertools.cycle(COLOURS), strict=False))
    measures = [m for m in ("return_mean", "distance_mean") if rows[0].get(m)]
    names = {"return_mean": "evaluation return", "distance_mean": "distance travelled [m]"}
    figure, axes = plt.subplots(1, len(measures), figsize=(4.6 * len(measures), 3.4), squeeze=False)
    for axis, measure in zip(axes[0], measures, strict=True):
        for setting, colour in colours.items():
            seeds = sorted({r["seed"] for r in rows if r["setting"] == setting})
            curves = [
                [(int(r["env_steps"]), float(r[measure])) for r in rows if (r["setting"], r["seed"]) == (setting, s)]
                for s in seeds
            ]
            for curve in curves:
                axis.plot(*zip(*curve, strict=True), color=colour, alpha=0.35, linewidth=1)
            length = min(len(c) for c in curves)
            mean = np.mean([[v for _, v in c[:length]] for c in curves], axis=0)
            steps = [s for s, _ in curves[0][:length]]
            axis.plot(steps, mean, color=colour, linewidth=2.2)
            sweep.label_end(axis, steps[-1], mean[-1], f"{setting.replace('_', ' ')} ({len(seeds)})", colour)
        axis.set_xlabel("environment steps, prefill included")
        axis.set_ylabel(names[measure])
        axis.spines[["top", "right"]].set_visible(False)
        axis.margins(x=0.02)
        ended = max(int(r["env_steps"]) for r in rows)
        axis.set_xticks([t for t in plt.MaxNLocator(5).tick_values(0, ended) if t <= 1.01 * ended])
        axis.set_xlim(axis.get_lines()[0].get_xdata()[0] * 0.9, 1.26 * ended)
    figure.suptitle(
        f"{first['env']}, preset {first['preset']}: seeds (thin; their number),\nmean (thick), 20 episodes each",
        fontsize=9,
    )
    figure.tight_layout()
    sweep.save_figure(figure, out / "curves.png")


def number_of(setting: str) -> tuple[str, float | None]:
    """A setting's name without the number that it ends with, and that number; None if there is none."""
    name, _, last = setting.rpartition(" ")
    try:
        return name, float(last)
    except ValueError:
        return setting, None


def field_along(rows: list[sweep.Row]) -> str | None:
    """The field of the config that every setting's name ends with the value of; None if none is, or all are equal."""
    shared = None
    if len({number_of(row["setting"])[1] for row in rows}) < 2:
        return None
    for row in rows:
        (_, number), words = number_of(row["setting"]), shlex.split(row["command"])
        if number is None:
            return None
        valued = [(a, number_of(f"{a} {b}")[1]) for a, b in itertools.pairwise(words) if re.match(r"--.*\.", a)]
        fields = {name for name, value in valued if value == number}
        shared = fields if shared is None else shared & fields
    return min(shared).removeprefix("--") if shared else None


def along(rows: list[sweep.Row]) -> dict[str, dict[float, list[tuple[float, bool]]]]:
    """By name and number: every run's mean of its last evaluations (0 if it diverged) and whether it finished."""
    found: dict[str, dict[float, list[tuple[float, bool]]]] = {}
    for row in rows:
        name, number = number_of(row["setting"])
        finished = row["outcome"] == "finished"
        value = float(row[f"last{LAST_EVALUATIONS}_return_mean"]) if finished else 0.0
        found.setdefault(name, {}).setdefault(number, []).append((value, finished))
    return found


def draw_along(out: Path) -> None:
    """``along.png`` from ``runs.csv`` alone: a dot per run (a cross if it diverged), a line through the means."""
    rows = sweep.read_csv(out / "runs.csv")
    field = field_along(rows)
    if field is None:
        return
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    found = along(rows)
    figure, axis = plt.subplots(figsize=(5.4, 3.4))
    for place, ((name, runs), colour) in enumerate(zip(found.items(), itertools.cycle(COLOURS), strict=False)):
        aside = 1.03 ** (place - (len(found) - 1) / 2)  # so that one name's dots do not hide another's
        numbers = sorted(runs)
        for number, (value, finished) in ((n, run) for n in numbers for run in runs[n]):
            axis.plot(number * aside, value, "o" if finished else "x", color=colour, markersize=4)
        means = [np.mean([value for value, _ in runs[n]]) for n in numbers]
        axis.plot(numbers, means, color=colour, linewidth=1.6)
        sweep.label_end(axis, numbers[-1] * aside, means[-1], name.replace("_", " "), colour)
    ticks = sorted({number for runs in found.values() for number in runs})
    axis.set_xscale("log")
    axis.minorticks_off()
    axis.set_xticks(ticks, [f"{t:g}" for t in ticks])
    axis.set_xlabel(field)
    axis.set_ylabel(f"evaluation return,\nmean of the last {LAST_EVALUATIONS} evaluations")
    axis.spines[["top", "right"]].set_visible(False)
    axis.set_xlim(right=axis.get_xlim()[1] * 1.8)
    steps, seeds = min(int(r["env_steps"]) for r in rows), len({r["seed"] for r in rows})
    about = f"{rows[0]['env']}, preset {rows[0]['preset']}, {steps} environment steps"
    figure.suptitle(f"{about}:\n{seeds} seed(s) (dots; crosses diverged) and their mean", fontsize=9)
    figure.tight_layout()
    sweep.save_figure(figure, out / "along.png")


def main() -> int:
    options = parse()
    code = 0 if options.figure_only else run_grid(options)
    if (options.out / "evaluations.csv").exists():
        draw(options.out)
    if (options.out / "runs.csv").exists():
        draw_along(options.out)
    return code


if __name__ == "__main__":
    sys.exit(main())
