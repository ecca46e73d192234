"""What does a run lose when it is killed?

Train once without interruption and once under kills (SIGKILL), resuming after each, and compare what the two leave: the
arrays of the newest checkpoint, the host's state beside them, the replay, ``metrics.jsonl`` and ``eval.csv`` without
wall-clock times, and ``best.npz``. A session, which is the command of a user with a stopwatch around the loop's parts,
writes its phase and its environment step into a mapped file; they are read after the kill. A kill waits for a random
step and for one phase after the other, and then for a random moment of that phase.

    python experiments/learning/killed_runs.py --kills 20 --out results/killed_runs
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from experiments.harness import in_venv  # noqa: F401  first of all: it continues in the clone's .venv

# isort: split
import argparse
import collections
import functools
import json
import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from experiments.harness import grid
from polygrad_jax import cli
from polygrad_jax.config import ConfigError
from polygrad_jax.data.transition_log import TransitionLog
from polygrad_jax.runs.checkpoints import Checkpoints, flatten_named, load_npz
from polygrad_jax.runs.metrics_log import event_files

PHASES = ("starting", "collecting", "learning", "evaluating", "logging", "saving", "between")
AIMED_AT = ("collecting", "learning", "evaluating", "saving")
PHASE, ENV_STEP, FIRST_STEP, SECONDS = 0, 1, 2, 3
"""Places in the mapped file: of the phase's number, the environment step, the step that the session began at (-1 before
it is known), and, behind them, how many seconds each phase took last."""
CHECKPOINT_EVERY, STEPS_PER_ITERATION = 60, 4
FIELDS = (
    f"--loop.checkpoint-every-env-steps {CHECKPOINT_EVERY} --loop.eval-every-env-steps {2 * CHECKPOINT_EVERY} "
    f"--loop.log-every-env-steps 20 --loop.env-steps-per-policy-update {STEPS_PER_ITERATION} "
    "--loop.prefill-env-steps 300 --model-training.warmup-env-steps 40"
).split()
STEPS_PER_KILL, LATEST_STEP = 100, 150
"""Steps of the run for each kill; steps of a session after which, at the latest, its kill is due."""
MACHINE_S = ("seconds/", "env_steps/per_second", "memory/")
"""Beginnings of the names in ``metrics.jsonl`` that depend on the machine's speed."""
PATIENCE_S = 1_800.0
SESSION = "--session"
"""First word of the command of a session; the mapped file and the words of ``polygrad`` follow."""


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--env", default="inverted_pendulum")
    parser.add_argument("--preset", default="smoke")
    parser.add_argument("--seed", type=int, default=0, help="of the run and of the moments")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--runs", type=Path, default=Path("runs/killed_runs"), help="folder of the two run folders")
    parser.add_argument("--out", type=Path, default=Path("results/killed_runs"))
    return parser.parse_args()


# --- a session -------------------------------------------------------------------------------------------------------


def new_marks(path: Path) -> np.ndarray:
    """Make the mapped file ``[3 + phases]`` of a session that has not begun."""
    marks = np.memmap(path, np.float64, "w+", shape=(SECONDS + len(PHASES),))
    marks[FIRST_STEP] = -1
    return marks


def session(path: Path, words: list[str]) -> int:
    """Run ``polygrad`` with ``words`` and mark in the mapped file where it is; return the exit code."""
    from polygrad_jax.training import collecting, loop

    marks = np.memmap(path, np.float64, "r+", shape=(SECONDS + len(PHASES),))

    def enter(phase: str) -> None:
        marks[PHASE] = PHASES.index(phase)

    def marked(function: Callable[..., Any], phase: str, after: str) -> Callable[..., Any]:
        @functools.wraps(function)
        def marking(*given: Any, **named: Any) -> Any:
            enter(phase)
            began = time.perf_counter()
            result = function(*given, **named)
            marks[SECONDS + PHASES.index(phase)] = time.perf_counter() - began
            enter(after)
            return result

        return marking

    take_step, learn = collecting.Collecting.take_step, loop.learn

    def counted_step(self: Any, *given: Any) -> bool:
        ended = take_step(self, *given)
        marks[ENV_STEP] = self.at.env_steps
        return ended

    def begun(runs: Sequence[Any], *given: Any) -> Any:
        marks[ENV_STEP] = marks[FIRST_STEP] = runs[0].at.env_steps
        return learn(runs, *given)

    collecting.Collecting.take_step = counted_step
    collecting.Collecting.collect = marked(collecting.Collecting.collect, "collecting", "learning")
    loop.evaluate = marked(loop.evaluate, "evaluating", "logging")
    loop.log_row = marked(loop.log_row, "logging", "between")
    loop.save = marked(loop.save, "saving", "between")
    loop.learn = begun
    return cli.main(words)


# --- killing ---------------------------------------------------------------------------------------------------------


def command_of(options: argparse.Namespace, folder: Path) -> list[str]:
    """Return the words of ``polygrad train`` for both runs."""
    words = ["train", "--env", options.env, "--preset", options.preset, "--seed", str(options.seed)]
    return [*words, "--run", str(folder.resolve()), *FIELDS, "--loop.total-env-steps", str(total_steps(options))]


def total_steps(options: argparse.Namespace) -> int:
    """Return the environment steps of both runs."""
    return 300 + STEPS_PER_KILL * options.kills


def environment_of(options: argparse.Namespace) -> dict[str, str]:
    """Share compiled programs between the sessions, and with nothing else: a kill may leave half a program."""
    return os.environ | {"JAX_COMPILATION_CACHE_DIR": str((options.runs / "compiled").resolve())}


def finish(options: argparse.Namespace, folder: Path) -> None:
    """Train to the end, without marks.

    Raises:
      ConfigError: the command failed.
    """
    words = [sys.executable, "-m", "polygrad_jax.cli", *command_of(options, folder)]
    done = subprocess.run(words, env=environment_of(options), capture_output=True, text=True)
    if done.returncode != 0:
        raise ConfigError(f"training in {folder} ended with {done.returncode}: {done.stderr.strip()[-300:]}")


def is_uninterrupted(options: argparse.Namespace, folder: Path) -> bool:
    """Return whether a run came to its end in one session, which leaves one file of events, and is kept."""
    return max(checkpoint_steps(folder), default=0) >= total_steps(options) and len(event_files(folder)) == 1


def kill_once(options: argparse.Namespace, folder: Path, aim: str, chance: random.Random) -> grid.Row | None:
    """Start a session, kill it at a random moment of the phase ``aim``; None where it had come to its end before.

    Raises:
      ConfigError: the session failed, or was not in that phase for half an hour.
    """
    path, said = options.runs / "marks", options.runs / "stderr"
    marks = new_marks(path)
    words = [sys.executable, __file__, SESSION, str(path), *command_of(options, folder)]
    began = time.monotonic()
    with said.open("wb") as errors:
        process = subprocess.Popen(words, env=environment_of(options), stdout=subprocess.DEVNULL, stderr=errors)
    later, share = chance.randint(0, LATEST_STEP), chance.random()

    def due() -> bool:
        return 0 <= marks[FIRST_STEP] <= marks[ENV_STEP] - later and PHASES[int(marks[PHASE])] == aim

    while process.poll() is None and not due():
        if time.monotonic() - began > PATIENCE_S:
            process.kill()
            raise ConfigError(f"a session was not {aim} within {PATIENCE_S:.0f} s; allowed: a faster machine")
        time.sleep(0.002)
    time.sleep(share * marks[SECONDS + PHASES.index(aim)])
    process.send_signal(signal.SIGKILL)
    code = process.wait()
    if code not in (0, -signal.SIGKILL):
        last = (said.read_text(errors="replace").strip().splitlines() or ["nothing"])[-1]
        raise ConfigError(f"a session ended with exit code {code}: {last[:300]}")
    if code == 0:
        return None
    if not folder.is_dir():
        raise ConfigError(f"the session did not train in {folder}")
    return {
        "aimed_at": aim,
        "phase": PHASES[int(marks[PHASE])],
        "session_began_at": int(marks[FIRST_STEP]),
        "env_step": int(marks[ENV_STEP]),
        "newest_checkpoint": max(checkpoint_steps(folder), default=0),
        "unfinished_files": len(list(folder.rglob("*tmp*"))),
        "seconds": round(time.monotonic() - began, 1),
    }


def checkpoint_steps(folder: Path) -> list[int]:
    """Return the steps of the checkpoints that stand under their final names."""
    return [int(path.name) for path in (folder / "checkpoints").glob("*") if path.name.isdigit()]


def kill_often(options: argparse.Namespace, folder: Path) -> list[grid.Row]:
    """Kill and resume; return a row for each kill, with what it lost.

    Raises:
      ConfigError: the run came to its end first.
    """
    chance, rows = random.Random(options.seed), []
    for number in range(options.kills):
        row = kill_once(options, folder, AIMED_AT[number % len(AIMED_AT)], chance)
        if row is None:
            raise ConfigError(f"the run ended before kill {number + 1}; allowed: fewer --kills")
        rows.append({"kill": number + 1, **row})
        print(" ".join(f"{name}={value}" for name, value in rows[-1].items()), flush=True)
    return rows


def losses(rows: list[grid.Row], last_session_began_at: int) -> list[grid.Row]:
    """Add to each kill the step from which the next session went on, and the environment steps that were lost."""
    resumed = [*(row["session_began_at"] for row in rows[1:]), last_session_began_at]
    return [
        row | {"resumed_from": step, "lost_env_steps": row["env_step"] - step}
        for row, step in zip(rows, resumed, strict=True)
    ]


# --- comparing -------------------------------------------------------------------------------------------------------


def records(folder: Path) -> dict[str, list[Any]]:
    """Return the rows of ``metrics.jsonl`` without what depends on the machine's speed, and the lines of ``eval.csv``.
    """
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    numbers = [{name: x for name, x in row.items() if not name.startswith(MACHINE_S)} for row in rows]
    return {"metrics.jsonl": numbers, "eval.csv": (folder / "eval.csv").read_text().splitlines()}


def arrays_of(folder: Path) -> tuple[dict[str, dict[str, np.ndarray]], dict[str, Any]]:
    """Return all arrays of a run by their source and name, and the host's state without its clock."""
    checkpoints = Checkpoints(folder / "checkpoints", read_only=True)
    stored = checkpoints.read(checkpoints.steps()[-1])
    checkpoints.close()
    stored.host["counters"].pop("clock")
    log = TransitionLog(folder / "replay", read_only=True)
    best = {name: np.asarray(array) for name, array in flatten_named(load_npz(folder / "best.npz")).items()}
    arrays = {"newest checkpoint": stored.arrays, "replay": vars(log.load(log.flushed_rows)), "best.npz": best}
    return arrays, stored.host | {"step": stored.step}


def different_bits(a: np.ndarray | None, b: np.ndarray | None) -> int:
    """Count the bits in which two arrays differ; all of the larger where types or shapes differ or one is absent."""
    if a is None or b is None or (a.dtype, a.shape) != (b.dtype, b.shape):
        return 8 * max(x.nbytes for x in (a, b) if x is not None) or 1
    flat_a, flat_b = (np.ascontiguousarray(x).reshape(-1).view(np.uint8) for x in (a, b))
    return int(np.bitwise_count(flat_a ^ flat_b).sum())


def comparison(whole: Path, killed: Path) -> Iterator[grid.Row]:
    """Compare what two runs left; yield a row for each part: how much was compared, how much differs."""
    (arrays_a, host_a), (arrays_b, host_b) = arrays_of(whole), arrays_of(killed)
    for source, a in arrays_a.items():
        b = arrays_b[source]
        bits = sum(different_bits(a.get(name), b.get(name)) for name in sorted(a.keys() | b.keys()))
        count = sum(array.size for array in a.values())
        yield {"part": source, "compared": f"{len(a)} arrays, {count} numbers", "different": f"{bits} bits"}
    entries = sorted(name for name in host_a.keys() | host_b.keys() if host_a.get(name) != host_b.get(name))
    yield {"part": "host", "compared": f"{len(host_a)} entries", "different": f"{len(entries)} entries"}
    records_a, records_b = records(whole), records(killed)
    for name, a in records_a.items():
        b = records_b[name]
        lines = sum(x != y for x, y in zip(a, b, strict=False)) + abs(len(a) - len(b))
        yield {"part": name, "compared": f"{len(a)} rows", "different": f"{lines} rows"}


def measure(options: argparse.Namespace) -> int:
    """Make both runs, compare them, write the tables; return 1 where anything differs or more was lost.

    Raises:
      ConfigError: no kill was asked for, or a run failed.
    """
    if options.kills < 1:
        raise ConfigError(f"--kills is {options.kills}; allowed: 1 or more")
    whole, killed = options.runs / "uninterrupted", options.runs / "killed"
    options.runs.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(killed, ignore_errors=True)
    if not is_uninterrupted(options, whole):
        shutil.rmtree(whole, ignore_errors=True)
        finish(options, whole)
    rows = kill_often(options, killed)
    last_began_at = max(checkpoint_steps(killed))
    finish(options, killed)
    revision = json.loads((killed / "environment.json").read_text())["git_revision"]
    rows = [row | {"git_revision": revision} for row in losses(rows, last_began_at)]
    parts = list(comparison(whole, killed))
    grid.write_csv(options.out / "killed_runs.csv", rows)
    grid.write_csv(options.out / "compared.csv", parts)
    most, allowed = max(row["lost_env_steps"] for row in rows), CHECKPOINT_EVERY + STEPS_PER_ITERATION
    print(f"{len(rows)} kills:", dict(collections.Counter(row["phase"] for row in rows)))
    print(f"lost at most {most} environment steps (an interval and an iteration: {allowed})")
    for part in parts:
        print(f"{part['part']}: {part['compared']} compared, {part['different']} different")
    equal = all(part["different"].startswith("0 ") for part in parts)
    return 0 if equal and most <= allowed else 1


def main() -> int:
    if sys.argv[1:2] == [SESSION]:
        return session(Path(sys.argv[2]), sys.argv[3:])
    options = parse()
    try:
        return measure(options)
    except ConfigError as error:
        print(f"{Path(__file__).stem}: {error}", file=sys.stderr)
        return cli.BAD_INPUT


if __name__ == "__main__":
    sys.exit(main())
