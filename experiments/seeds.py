"""Does training work, how well, and how much does it depend on the seed?

Trains every combination of guidance rule and seed with the command a user would type, one run folder each, and
keeps what the figure needs in CSV files. A grid that was stopped goes on where it was: finished runs are not
repeated, unfinished ones resume. A run that diverges is a row like any other; one that ends otherwise (a wrong field,
a run folder of another config) is said aloud, leaves no row, and makes the exit code 1.

    python experiments/seeds.py --env hopper --preset cpu --seeds 0 1 2 --rules score random_actions \
        --out results/hopper_cpu
    python experiments/seeds.py --out results/hopper_cpu --figure-only
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import queue
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import sweep

LAST_EVALUATIONS = 3
OUTCOMES = {0: "finished", 3: "diverged"}
"""Exit codes of ``polygrad train`` that are results."""


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--env", default="hopper")
    parser.add_argument("--preset", default="cpu")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--rules", nargs="+", default=["score"])
    parser.add_argument("--fields", default="", help='fields of the config, as in "--a2c.gae-lambda 0.95"')
    parser.add_argument("--runs", type=Path, default=None, help="run folders (runs/grid-<env>-<preset>)")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--jobs", type=int, default=1, help="runs at once")
    parser.add_argument("--pin", action="store_true", help="one core for each of the runs at once (Linux)")
    parser.add_argument("--figure-only", action="store_true")
    options = parser.parse_args()
    options.runs = options.runs or Path("runs") / f"grid-{options.env.replace('/', '_')}-{options.preset}"
    return options


def train(options: argparse.Namespace, rule: str, seed: int, core: int | None) -> tuple[Path, list[str], float, int]:
    """One run by the command line; returns its folder, command, seconds and exit code."""
    folder = folder_of(options, rule, seed)
    command = [sys.executable, "-m", "polygrad_jax.cli", "train", "--env", options.env, "--preset", options.preset]
    command += ["--seed", str(seed), "--run", str(folder), "--guidance.rule", rule, *options.fields.split()]
    folder.parent.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    with open(f"{folder}.log", "a") as log:
        pinned = sweep.pinned(command, None if core is None else {core})
        code = subprocess.run(pinned, stdout=log, stderr=subprocess.STDOUT).returncode
    # A result names no folder of the machine it was made on.
    said = [folder.name if word == str(folder) else word for word in command[3:]]
    return folder, ["polygrad", *said], time.monotonic() - began, code


def evaluations(folder: Path) -> list[dict[str, str]]:
    """The rows of a run's ``eval.csv``; none if it has none yet."""
    path = folder / "eval.csv"
    if not path.exists():
        return []
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def summary(options: argparse.Namespace, rule: str, seed: int, ran: tuple[Path, list[str], float, int]) -> dict:
    """One row per run: the mean of its last evaluations, and everything needed to run it again."""
    folder, command, _, code = ran
    rows = evaluations(folder)[-LAST_EVALUATIONS:]
    environment = json.loads((folder / "environment.json").read_text())
    clock = last_metrics(folder)
    mean = {
        name: float(np.mean([float(r[name]) for r in rows])) if rows and rows[0].get(name) else float("nan")
        for name in ("return_mean", "distance_mean", "length_mean")
    }
    return {
        "env": options.env,
        "env_version": json.loads((folder / "config.json").read_text())["env"]["version"],
        "preset": options.preset,
        "rule": rule,
        "seed": seed,
        "outcome": OUTCOMES[code],
        "env_steps": rows[-1]["env_steps"] if rows else 0,
        "final_return_mean": rows[-1]["return_mean"] if rows else "nan",
        **{f"last{LAST_EVALUATIONS}_{name}": value for name, value in mean.items()},
        **{f"seconds_{name}": clock.get(f"seconds/{name}") for name in ("training", "collecting", "evaluating")},
        "device": environment["device"],
        "cores": environment["cores"],
        "packages": " ".join(f"{k}={v}" for k, v in environment["packages"].items()),
        "git_revision": environment["git_revision"],
        "command": " ".join(command),
    }


def last_metrics(folder: Path) -> dict:
    """The last row of a run's metrics."""
    lines = (folder / "metrics.jsonl").read_text().splitlines() if (folder / "metrics.jsonl").exists() else []
    return json.loads(lines[-1]) if lines else {}


def run_grid(options: argparse.Namespace) -> list[str]:
    """All runs, ``--jobs`` at once; the CSV files grow with every finished run. Returns what went wrong."""
    cells = [(rule, seed) for seed in options.seeds for rule in options.rules]
    done: dict[tuple[str, int], dict] = {}
    wrong: list[str] = []
    cores: queue.SimpleQueue[int | None] = queue.SimpleQueue()
    allowed = sorted(os.sched_getaffinity(0)) if options.pin else []
    for job in range(options.jobs):
        cores.put(allowed[job % len(allowed)] if options.pin else None)

    def one(cell: tuple[str, int]) -> None:
        rule, seed = cell
        core = cores.get()
        ran = train(options, rule, seed, core)
        cores.put(core)
        folder, _, _, code = ran
        if code not in OUTCOMES:
            log = Path(f"{folder}.log").read_text().strip().splitlines()
            wrong.append(f"{rule} seed {seed}: exit code {code}: {log[-1] if log else ''}")
            print(wrong[-1], file=sys.stderr, flush=True)
            return
        done[cell] = summary(options, rule, seed, ran)
        print(f"{rule} seed {seed}: {done[cell]['outcome']}, return {done[cell]['last3_return_mean']:.0f}", flush=True)
        finished = [cell for cell in cells if cell in done]
        sweep.write_csv(options.out / "runs.csv", [done[cell] for cell in finished])
        curves = [{"rule": r, "seed": s, **row} for r, s in finished for row in evaluations(folder_of(options, r, s))]
        if curves:  # a run may diverge before its first evaluation
            sweep.write_csv(options.out / "evaluations.csv", curves)

    with ThreadPoolExecutor(options.jobs) as pool:
        list(pool.map(one, cells))
    return wrong


def folder_of(options: argparse.Namespace, rule: str, seed: int) -> Path:
    return options.runs / f"{rule}-seed{seed}"


def draw(out: Path) -> None:
    """``curves.png`` from the CSV files alone: return and distance against environment steps, every seed a line."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    with open(out / "evaluations.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    with open(out / "runs.csv", newline="") as file:
        first = next(csv.DictReader(file))
    colours = dict(
        zip(dict.fromkeys(r["rule"] for r in rows), ["#0072B2", "#D55E00", "#009E73", "#CC79A7"], strict=False)
    )
    measures = [m for m in ("return_mean", "distance_mean") if rows[0].get(m)]
    names = {"return_mean": "evaluation return", "distance_mean": "distance travelled [m]"}
    figure, axes = plt.subplots(1, len(measures), figsize=(4.6 * len(measures), 3.4), squeeze=False)
    for axis, measure in zip(axes[0], measures, strict=True):
        for rule, colour in colours.items():
            seeds = sorted({r["seed"] for r in rows if r["rule"] == rule})
            curves = [
                [(int(r["env_steps"]), float(r[measure])) for r in rows if r["rule"] == rule and r["seed"] == s]
                for s in seeds
            ]
            for curve in curves:
                axis.plot(*zip(*curve, strict=True), color=colour, alpha=0.35, linewidth=1)
            length = min(len(c) for c in curves)
            mean = np.mean([[v for _, v in c[:length]] for c in curves], axis=0)
            steps = [s for s, _ in curves[0][:length]]
            axis.plot(steps, mean, color=colour, linewidth=2.2)
            axis.annotate(
                rule.replace("_", " "),
                (steps[-1], mean[-1]),
                color=colour,
                xytext=(3, 0),
                textcoords="offset points",
                va="center",
                fontsize=9,
            )
        axis.set_xlabel("environment steps, prefill included")
        axis.set_ylabel(names[measure])
        axis.spines[["top", "right"]].set_visible(False)
        axis.margins(x=0.02)
        axis.set_xlim(right=axis.get_xlim()[1] * 1.22)
        axis.xaxis.set_major_locator(plt.MaxNLocator(5))
    seeds = len({r["seed"] for r in rows})
    figure.suptitle(
        f"{first['env']}, preset {first['preset']}: {seeds} seeds (thin),\nmean (thick), 20 episodes each", fontsize=9
    )
    figure.tight_layout()
    temporary = out / ".curves.tmp.png"
    figure.savefig(temporary, dpi=150)
    os.replace(temporary, out / "curves.png")


def main() -> int:
    """The exit code: 1 if a run ended without a result."""
    options = parse()
    wrong = [] if options.figure_only else run_grid(options)
    if (options.out / "evaluations.csv").exists():
        draw(options.out)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
