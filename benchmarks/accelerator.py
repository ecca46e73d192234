"""What one accelerator does with PolyGRAD, in eight minutes: speed at the paper's sizes, and a training of Hopper.

    python benchmarks/accelerator.py                         (make accelerator)
    python benchmarks/accelerator.py --rehearse --out FOLDER small sizes, for a machine without one

Each part is a command of its own, one after another, within the time that is left; a part that fails or does not end is
said, and the others run. ``--out`` gets a table for each, what was said, and ``README.md`` with what they come to. What
the columns mean is in ``benchmarks/README.md``.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from experiments.harness import in_venv  # noqa: F401  first of all: it continues in the clone's .venv

# isort: split
import argparse
import os
import shlex
import shutil
import signal
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass

from flops import HOPPER, flops_per_env_step

from experiments.harness import grid
from polygrad_jax import config as configs
from polygrad_jax.runs import metrics_log
from polygrad_jax.runs.run_folder import write_text_atomically

HERE = Path(__file__).resolve().parent
IMPORTING = os.environ | {"PYTHONPATH": str(HERE.parent)}
MILLION = 1_000_000
LAST_SECONDS = 20.0
"""Kept for saving the training, its curve, and the page."""
FEW_STEPS = 16
"""K that is timed beside all of the paper's N = 128."""
ROLLOUTS, ITERATION, OF_FEW, TRAINING = "rollout_speed", "training_speed", "training_speed_few_steps", "hopper"
H200_PEAKS = {"float32": 67e12, "bfloat16": 989e12}
"""FLOP/s that the vendor's data sheet gives (without sparsity), for the projection."""


@dataclass
class Part:
    """One command, and how it ended."""

    name: str
    command: list[str]
    at_most: float
    """Seconds; one that trains is asked to stop then, and saves."""
    trains: bool = False
    ended: str = "did not begin"
    seconds: float = 0.0


# --- what is run -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Sizes:
    """Words of the commands: what they are asked to time, and to train."""

    rollouts: list[str]
    iteration: list[str]
    all_steps: str
    few_steps: str
    seeds: list[str]
    trained: list[str]


PAPER = Sizes(
    rollouts=["--batch", "1024"],
    iteration=["--preset", "paper", "--seconds", "8"],
    all_steps="128",
    few_steps=str(FEW_STEPS),
    seeds=["1", "5", "16"],
    trained=["--preset", "cpu"],
)
_SMALL = ["--diffusion.num-steps", "8", "--denoiser.width", "32", "--denoiser.num-blocks", "1"]
REHEARSED = Sizes(
    rollouts=["--batch", "8", "--kinds", "mlp", "--width", "32", "--repeats", "1"],
    iteration=["--preset", "smoke", "--seconds", "1", *_SMALL, "--diffusion.sampling-steps", "8"],
    all_steps="8",
    few_steps="4",
    seeds=["1", "2"],
    trained=["--preset", "smoke", *_SMALL, "--diffusion.sampling-steps", "8"],
)


def parts(out: Path, sizes: Sizes, seconds: float) -> list[Part]:
    """Return the commands, each with its share of the time; the training has what is left."""

    def script(name: str, table_of: str, *words: str) -> list[str]:
        return [sys.executable, str(HERE / f"{name}.py"), *words, "--out", str(out / f"{table_of}.csv")]

    few = ["--sampling-steps", sizes.few_steps]
    rollouts = script(ROLLOUTS, ROLLOUTS, "--horizons", "10", *few, *sizes.rollouts)
    iteration = [*sizes.iteration, "--env", "hopper", "--seeds", *sizes.seeds]
    of_few = script(ITERATION, OF_FEW, *iteration, "--diffusion.sampling-steps", sizes.few_steps)
    trained = ["train", "--env", "hopper", *sizes.trained, "--run", str(out / f"{TRAINING}_run")]
    return [
        Part(ROLLOUTS, rollouts, 0.2 * seconds),
        Part(ITERATION, script(ITERATION, ITERATION, *iteration), 0.2 * seconds),
        Part(OF_FEW, of_few, 0.19 * seconds),
        Part(TRAINING, [sys.executable, "-m", "polygrad_jax.cli", *trained], seconds, trains=True),
    ]


def run(part: Part, deadline: float, log: Path) -> None:
    """Run one part within its time and what is left; a training is told to stop and save."""
    at_most = min(part.at_most, deadline - time.monotonic())
    if at_most <= 0:
        part.ended = "did not begin: no time was left"
        return
    print(f"{part.name}: at most {at_most:.0f} s ...", flush=True)
    began = time.monotonic()
    with log.open("w") as file:
        child = subprocess.Popen(part.command, stdout=file, stderr=subprocess.STDOUT, env=IMPORTING)
        part.ended = _wait(child, at_most, part.trains)
    part.seconds = time.monotonic() - began
    print(f"{part.name}: {part.ended} after {part.seconds:.0f} s", flush=True)


def _wait(child: subprocess.Popen, at_most: float, trains: bool) -> str:
    """Say how a child ended; one that has not by then is stopped, a training so that it can save."""
    try:
        code = child.wait(at_most)
        return "ended" if code == 0 else f"failed with exit code {code}"
    except subprocess.TimeoutExpired:
        child.send_signal(signal.SIGTERM if trains else signal.SIGKILL)
    try:
        child.wait(LAST_SECONDS)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()
    return "stopped at its time" if trains else "did not end in its time"


# --- what it comes to ------------------------------------------------------------------------------------------------


def keep_training(out: Path) -> None:
    """Keep evaluations against environment steps and seconds, and the curve, of the run; the run itself goes."""
    folder = out / f"{TRAINING}_run"
    seconds = {
        row["env_steps"]: sum(row[f"seconds/{name}"] for name in ("collecting", "training", "evaluating"))
        for row in metrics_log.read_rows(folder)
    }
    rows = [
        {"env_step": step, "seconds": round(seconds[step], 1), "return_mean": row["return_mean"]}
        for row in grid.read_if_there(folder / "eval.csv")
        if (step := int(row["env_steps"])) in seconds
    ]
    if rows:
        grid.write_csv(out / f"{TRAINING}.csv", rows)
        words = [sys.executable, "-m", "polygrad_jax.cli", "plot", str(folder), "--out", str(out / f"{TRAINING}.png")]
        subprocess.run(words, check=False, env=IMPORTING, stdout=subprocess.DEVNULL)
    shutil.rmtree(folder, ignore_errors=True)


def remove_earlier(out: Path, done: Sequence[Part]) -> None:
    """Remove what an earlier call left, so that no number of it stands for a part that fails today."""
    for part in done:
        for suffix in (".csv", ".json", ".log", ".png"):
            (out / f"{part.name}{suffix}").unlink(missing_ok=True)
    shutil.rmtree(out / f"{TRAINING}_run", ignore_errors=True)


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Return the lines of a table of Markdown."""
    return [f"| {' | '.join(row)} |" for row in (header, ["---"] * len(header), *rows)]


def of_rollouts(rows: Sequence[dict[str, str]]) -> list[str]:
    """Return the table of imagined batches."""
    header = ("denoiser", "precision", "K", "seconds per batch", "share of the peak", "seconds at K = 128", "compiling")
    lines = [
        [
            row["denoiser"],
            row["precision"],
            row["steps"],
            f"{float(row['seconds']):.3g}",
            f"{float(row['share_of_peak']):.2f}",
            f"{float(row['full_seconds']):.3g}",
            f"{float(row['compile_seconds']):.0f} s",
        ]
        for row in rows
    ]
    return table(header, lines)


def of_iterations(steps: str, rows: Sequence[dict[str, str]]) -> list[list[str]]:
    """Return lines of the table of training: speed, and the minutes that a million environment steps would take."""
    lines = []
    for row in rows:
        rate, seeds = float(row["env_steps/s"]), int(row["seeds"])
        minutes = MILLION * seeds / rate / 60
        share = f"{float(row['share_of_peak']):.2f}"
        beside = f"{float(row['of_runs_in_turn']):.2f}" if row.get("of_runs_in_turn") else "-"
        lines.append([steps, str(seeds), f"{rate:.0f}", f"{minutes:.0f}", share, beside])
    return lines


def projection() -> list[str]:
    """Return the least minutes of a million steps of Hopper on an H200: counted operations over its peak."""
    lines = []
    for steps in (128, FEW_STEPS):
        config = configs.override(configs.paper("hopper"), {"diffusion.sampling_steps": steps})
        count = MILLION * flops_per_env_step(config, HOPPER)
        least = [f"{count / peak / 60:.1f}" for peak in H200_PEAKS.values()]
        lines.append([str(steps), f"{count:.2g}", *least])
    return table(("K", "FLOP per million steps", *(f"{name}, at the peak" for name in H200_PEAKS)), lines)


def page(out: Path, done: Sequence[Part], device: str, rehearse: bool, command: str) -> str:
    """Return ``README.md``."""
    small = " **A rehearsal at small sizes: no number here says anything about speed.**" if rehearse else ""
    lines = ["# One accelerator", "", f"{device}.{small}", "", f"    {command}", ""]
    lines += table(("part", "how it ended", "seconds"), [[p.name, p.ended, f"{p.seconds:.0f}"] for p in done])
    if rows := grid.read_if_there(out / f"{ROLLOUTS}.csv"):
        lines += ["", "## A batch of imagined trajectories (Hopper, H = 10)", "", *of_rollouts(rows)]
    sampled = REHEARSED if rehearse else PAPER
    every = of_iterations(sampled.all_steps, grid.read_if_there(out / f"{ITERATION}.csv"))
    every += of_iterations(sampled.few_steps, grid.read_if_there(out / f"{OF_FEW}.csv"))
    if every:
        header = ("K", "seeds", "environment steps per second, all seeds", "minutes per million steps of each",
                  "share of the peak", "in runs of one seed, in turn")  # fmt: skip
        sizes = "small sizes" if rehearse else "the paper's sizes"
        lines += ["", f"## Training at {sizes} (Hopper)", "", *table(header, every)]
    if rows := grid.read_if_there(out / f"{TRAINING}.csv"):
        last = rows[-1]
        lines += ["", f"## A training of Hopper (preset `{'smoke' if rehearse else 'cpu'}`)", ""]
        lines += [f"Return {float(last['return_mean']):.0f} at {int(last['env_step']):,} environment steps, after "
                  f"{float(last['seconds']) / 60:.1f} minutes without compiling.", "",
                  f"![Curves]({TRAINING}.png)"]  # fmt: skip
    lines += ["", "## Projection for an H200", "", "Not measured: matrix products counted from shapes "
              "(`benchmarks/flops.py`) over the peak of the vendor's data sheet. No program reaches the peak, so these "
              "minutes are the least possible.", "", *projection()]  # fmt: skip
    return "\n".join(lines) + "\n"


def find_device() -> tuple[str, str]:
    """Return JAX's platform and the device's name; another process asks, so that none holds its memory here."""
    program = "import jax; d = jax.local_devices()[0]; print(d.platform); print(d.device_kind)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    platform, kind = done.stdout.strip().splitlines()[-2:]
    return platform, kind


def main() -> int:
    """The exit code: 2 without an accelerator, 1 where a part failed, otherwise 0."""
    began = time.monotonic()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=HERE.parent / "results" / "gpu", help="folder (results/gpu)")
    parser.add_argument("--minutes", type=float, default=8.0, help="all parts together (8)")
    parser.add_argument("--rehearse", action="store_true", help="small sizes, for a machine without an accelerator")
    args = parser.parse_args()
    if not 0.5 <= args.minutes <= 600:
        parser.error(f"--minutes is {args.minutes}; allowed: from 0.5 to 600")
    platform, kind = find_device()
    if platform == "cpu" and not args.rehearse:
        print("JAX found no accelerator; allowed: --rehearse --out FOLDER, at small sizes", file=sys.stderr)
        return 2
    args.out.mkdir(parents=True, exist_ok=True)
    deadline = began + 60 * args.minutes - LAST_SECONDS
    done = parts(args.out, REHEARSED if args.rehearse else PAPER, 60 * args.minutes)
    remove_earlier(args.out, done)
    for part in done:
        run(part, deadline, args.out / f"{part.name}.log")
    keep_training(args.out)
    command = shlex.join(["python", "benchmarks/accelerator.py", *sys.argv[1:]])
    text = page(args.out, done, f"{platform}: {kind}", args.rehearse, command)
    write_text_atomically(args.out / "README.md", text)
    print(text)
    return 0 if all(part.ended in ("ended", "stopped at its time") for part in done) else 1


if __name__ == "__main__":
    sys.exit(main())
