"""Mutated files, and what the verbs make of them: a program of its own, so that a hang, an end of the process or a huge
allocation is seen from outside.

``python tests/fuzz/hostile_files.py FOLDER [EVERY]`` prints a line of JSON for each file, or for one in EVERY. The
verbs run by ``cli.main``; what comes behind reading (training, episodes, drawing a picture) is replaced by looking at
what was read.
"""

import argparse
import contextlib
import dataclasses
import functools
import io
import json
import os
import random
import resource
import shutil
import signal
import sys
import time
import traceback
import tracemalloc
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "tests" / "fuzz")]

import conftest  # noqa: E402, F401  strict promotion, the flags and the cache of all tests
import jax  # noqa: E402
import mutations as m  # noqa: E402
import numpy as np  # noqa: E402
import recorded  # noqa: E402

from polygrad_jax import cli  # noqa: E402
from polygrad_jax.analysis import figures, opened_run, reports  # noqa: E402
from polygrad_jax.config import INSERT_CHUNK  # noqa: E402
from polygrad_jax.envs import mujoco_state  # noqa: E402
from polygrad_jax.envs.collector import uniform_action  # noqa: E402
from polygrad_jax.runs import first_screen  # noqa: E402
from polygrad_jax.training import fitting, loop  # noqa: E402
from polygrad_jax.training.step import make_steps  # noqa: E402

COUNT = 300
SECONDS, ROOM = 20, 4 * 2**30
"""Of the processor for one file; of addresses for the whole program beyond what it has when it begins."""
FILES = ("config.json", "environment.json", "metrics.jsonl", "eval.csv", "evaluations.csv", "best.npz")


class Case(NamedTuple):
    """One mutated file, and the verb that reads it."""

    kind: str
    file: str  # of the folder of all files
    mutation: str
    verb: str


class Accepted(Exception):
    """What was read was accepted; carries its checksum."""


# --- whole files -----------------------------------------------------------------------------------------------------


def record(folder: Path, seed: int) -> None:
    """Leave a run with a checkpoint, two shards, an evaluation, metrics and a best evaluation; nothing has learnt."""
    config = dataclasses.replace(recorded.config_of("inverted_pendulum", 300), seed=seed)
    run = loop.begin(config, folder)
    made = make_steps(run.config, run.spec, run.world_model, run.agent)
    insert = jax.jit(made.insert)
    state = run.collecting.prefill(jax.jit(made.init)(), insert)
    run.collecting.transitions.flush(150)
    run.metrics.write(200, {"world_model/loss": 0.5, "guidance/delta": 0.1}, {"h": [0.0, 1.0]})
    chunk = run.collecting.new_chunk(INSERT_CHUNK)
    for k in range(2):
        run.collecting.take_step(chunk, uniform_action(1, k, run.spec.action_size))
    state = insert(state, run.collecting.record(chunk))
    at = run.at.env_steps
    loop.export_npz(folder / "best.npz", loop.learnt(state) | {"env_steps": np.int64(at)})
    numbers = {f"{name}_{what}": 3.5 for name in ("return", "length") for what in ("mean", "std")}
    run.metrics.write_evaluation(at, numbers | {"distance_mean": None, "distance_std": None}, {"mujoco": "4"})
    for step in (at, at + 1):
        run.metrics.write(step, {"world_model/loss": 0.25, "guidance/delta": 0.2})
    loop.save(run, state)
    run.checkpoints.close()
    run.close()
    reports.append_csv_row(folder / "evaluations.csv", evaluation_row(at))


def evaluation_row(env_steps: int) -> dict[str, Any]:
    return {"env_steps": env_steps, "which": "newest", "seed": 0, "episodes": 1, "return_mean": 3.5, "mujoco": "4"}


def official() -> dict[str, np.ndarray]:
    """Two episodes of three and two steps, as the official code saves them."""
    rng = np.random.default_rng(0)
    terminals = np.zeros((2, 4, 1), np.float32)
    terminals[0, 2:] = 1
    return {
        "path_lengths": np.array([3, 2]),
        "observations": rng.standard_normal((2, 4, 2)).astype(np.float32),
        "actions": rng.standard_normal((2, 4, 1)).astype(np.float32),
        "next_observations": np.zeros((2, 4, 2), np.float32),
        "rewards": rng.standard_normal((2, 4, 1)).astype(np.float32),
        "terminals": terminals,
    }


def make_whole(folder: Path) -> None:
    """Make the whole files that are mutated."""
    record(folder / "run", 0)
    record(folder / "other", 1)
    np.save(folder / "official.npy", official())
    np.savez(folder / "official.npz", **official())
    if has_minari():
        from polygrad_jax.analysis.dataset_export import export

        written = export(folder / "run", folder / "datasets")
        shutil.copytree(written, folder / "minari")
        shutil.rmtree(folder / "datasets")


def has_minari() -> bool:
    try:
        import h5py  # noqa: F401
        import minari  # noqa: F401
    except ImportError:
        return False
    return True


# --- the verbs, up to where all is read ------------------------------------------------------------------------------


def checksum(*trees: Any) -> int:
    """CRC-32 of names, types, shapes and bytes of everything."""
    crc = 0
    for path, leaf in jax.tree_util.tree_leaves_with_path(trees):
        array = np.asarray(leaf)
        crc = zlib.crc32(f"{jax.tree_util.keystr(path)} {array.dtype} {array.shape}".encode(), crc)
        crc = zlib.crc32(np.ascontiguousarray(array).tobytes(), crc)
    return crc


def finite(transitions: Any) -> bool:
    return all(np.isfinite(getattr(transitions, name)).all() for name in ("observations", "actions", "rewards"))


def accept(*trees: Any) -> None:
    raise Accepted(checksum(*trees))


def accept_data(training: Any, data: Any, *_: Any) -> None:
    """In place of preparing ``fit``."""
    accept(vars(data.transitions), np.array(finite(data.transitions)))


def look(run: Any, *_: Any) -> list[str]:
    """In place of ``evaluate``: everything that it and ``imagine`` may read."""
    read = run.agent_state, run.model_state, run.normaliser, vars(run.transitions), np.array(run.env_steps)
    reports.append_evaluation(run, evaluation_row(run.env_steps))
    accept(*read)


class Uncompiled:
    """In place of the compiled programs."""

    def __init__(self, *_: Any):
        pass

    def close(self) -> None:
        pass


class Session:
    """The loop with what is compiled made once; a run of another configuration is accepted before it would compile."""

    def __init__(self, folder: Path):
        run = loop.begin(loop.configs.from_dict(json.loads((folder / "config.json").read_text())), folder)
        self.config, self.steps = run.config, make_steps(run.config, run.spec, run.world_model, run.agent)
        self.insert = jax.jit(self.steps.insert)
        self.state = jax.jit(self.steps.init)()
        run.close()

    def make_steps(self, config: Any, *_: Any) -> Any:
        if config != self.config:
            raise Accepted("another configuration")
        return self.steps

    def learn(self, runs: Any, steps: Any, programs: Any, state: Any, *_: Any) -> list[None]:
        [run] = runs
        t = run.collecting.transitions
        accept(state.agent, state.world_model, state.replay, vars(t.load(t.flushed_rows)), dataclasses.asdict(run.at))
        return [None]


@contextlib.contextmanager
def replaced(folder: Path) -> Iterator[None]:
    """Replace what comes behind reading."""
    session, environment = Session(folder), loop.describe_environment()
    agents, models = opened_run.make_agent, opened_run.make_world_model_for_agent
    model_of = functools.lru_cache(lambda config, spec: models(config, spec, lambda rows: rows))
    agent_of = functools.lru_cache(lambda config, spec: agents(config, spec, model_of(config, spec)))
    changes = [
        (loop, "make_steps", session.make_steps),
        (loop, "compile_init", lambda *_: [session.state]),
        (loop, "compile_insert", lambda *_: session.insert),
        (loop, "Programs", Uncompiled),
        (loop, "learn", session.learn),
        (loop, "repeatable_warnings", lambda _: []),  # these two step copies of the task
        (mujoco_state, "why_no_simulator_states", lambda *_: None),
        (loop, "say_units", lambda *_: None),
        (loop, "say_uncovered", lambda *_: None),
        (loop, "describe_environment", lambda: dict(environment)),
        (opened_run, "make_world_model_for_agent", lambda config, spec, _: model_of(config, spec)),
        (opened_run, "make_agent", lambda config, spec, _: agent_of(config, spec)),
        (reports, "report_evaluation", look),
        (fitting.Training, "__init__", accept_data),
        (figures, "save", lambda figure, out: accept(np.zeros(()))),
        (first_screen, "describe", lambda *_: ""),
    ]
    before = [(place, name, getattr(place, name)) for place, name, _ in changes]
    for place, name, value in changes:
        setattr(place, name, value)
    try:
        yield
    finally:
        for place, name, value in before:
            setattr(place, name, value)


VERBS: dict[str, Callable[[Path], list[str]]] = {
    "evaluate": lambda folder: ["evaluate", str(folder / "run")],
    "evaluate best": lambda folder: ["evaluate", str(folder / "run"), "--which", "best"],
    "plot": lambda folder: ["plot", str(folder / "run")],
    "train": lambda folder: ["train", "--run", str(folder / "run")],
    "fit run": lambda folder: ["fit", "--preset", "smoke", "--dataset", str(folder / "run")],
    "fit npy": lambda folder: ["fit", "--preset", "smoke", "--dataset", str(folder / "official.npy")],
    "fit npz": lambda folder: ["fit", "--preset", "smoke", "--dataset", str(folder / "official.npz")],
    "fit minari": lambda folder: ["fit", "--preset", "smoke", "--dataset", str(folder / "minari")],
}


# --- the cases -------------------------------------------------------------------------------------------------------


def cases(whole: Path) -> tuple[list[Case], list[Case]]:
    """Return the 300 cases, and those of a Minari dataset beside them (none where the package is absent)."""
    chance = random.Random(15)
    step = next(p.name for p in (whole / "run" / "checkpoints").iterdir())
    checkpoint = Path("run/checkpoints") / step
    parts = sorted(p.relative_to(whole) for p in (whole / checkpoint).rglob("*") if p.is_file())
    shards = sorted(p.relative_to(whole) for p in (whole / "run" / "replay").iterdir())
    (events,) = (whole / "run").glob("events.*")
    metadata = [path for path in parts if "METADATA" in path.name or path.name == "metadata"]
    other, leaves = {"another run's": None}, {name: mutate for name, mutate in m.JSON.items() if "leaf" in name}

    def some(kind: str, files: Any, mutations: Any, verbs: tuple[str, ...], count: int) -> list[Case]:
        files = [str(f) for f in ([files] if isinstance(files, str | Path) else files)]
        every = [Case(kind, f, name, "") for name in mutations for f in files]
        chosen = every if count >= len(every) else chance.sample(every, count)
        return [case._replace(verb=verbs[k % len(verbs)]) for k, case in enumerate(chosen)]

    chosen = [
        *some("config.json", "run/config.json", m.JSON, ("train", "evaluate", "plot", "fit run"), 99),
        *some("config.json", "run/config.json", leaves, ("evaluate", "train"), 99),
        *some("config.json", "run/config.json", m.ANY, ("plot", "evaluate", "train"), 10),
        *some("environment.json", "run/environment.json", m.JSON, ("train", "plot"), 24),
        *some("environment.json", "run/environment.json", m.ANY, ("plot", "train"), 6),
        *some("metrics.jsonl", "run/metrics.jsonl", m.TABLE, ("plot", "train"), 19),
        *some("metrics.jsonl", "run/metrics.jsonl", m.ANY, ("train", "plot"), 8),
        *some("eval.csv", "run/eval.csv", m.TABLE, ("plot", "evaluate best", "train"), 19),
        *some("eval.csv", "run/eval.csv", m.ANY, ("train", "plot", "evaluate best"), 8),
        *some("evaluations.csv", "run/evaluations.csv", m.TABLE | m.ANY, ("evaluate",), 5),
        *some("events", f"run/{events.name}", m.ANY | m.EVENT_NAMES, ("train",), 8),
        *some("best.npz", "run/best.npz", m.NPZ | m.ANY, ("evaluate best",), 36),
        *some("checkpoint", parts, m.ANY, ("evaluate", "train"), 28),
        *some("checkpoint", metadata, m.JSON, ("evaluate", "train"), 12),
        *some("checkpoint", checkpoint, m.STEP_NAMES | other, ("evaluate", "train"), 7),
        *some("replay", shards, m.NPZ, ("train", "fit run", "evaluate"), 22),
        *some("replay", shards, m.ANY, ("evaluate", "train", "fit run"), 8),
        *some("replay", shards[0], m.SHARD_NAMES | other, ("train", "fit run"), 8),
        *some("official.npz", "official.npz", m.NPZ | m.ANY, ("fit npz",), 22),
        *some("official.npy", "official.npy", m.OFFICIAL, ("fit npy",), 15),
        *some("official.npy", "official.npy", m.ANY, ("fit npy",), 8),
    ]
    if not has_minari():
        return chosen, []
    hdf5 = "minari/data/main_data.hdf5"
    beside = [
        *some("minari", "minari/data/metadata.json", m.JSON, ("fit minari",), 12),
        *some("minari", ["minari/data/metadata.json", hdf5], m.ANY, ("fit minari",), 16),
        *some("minari", "minari/policy.npz", m.NPZ, ("fit minari",), 6),
        *some("minari", "minari/config.json", m.JSON, ("fit minari",), 6),
    ]
    return chosen, beside


def mutation_of(case: Case, whole: Path) -> m.Mutation:
    if case.mutation == "another run's":
        return m.replaced_by(Path(str(whole / case.file).replace("/run/", "/other/", 1)))
    tables = (m.ANY, m.JSON, m.TABLE, m.STEP_NAMES, m.EVENT_NAMES)
    if case.kind in ("best.npz", "replay", "official.npz") or case.file.endswith("policy.npz"):
        tables = (m.NPZ, m.ANY, m.SHARD_NAMES)
    elif case.kind == "official.npy":
        tables = (m.OFFICIAL, m.ANY)
    return next(table[case.mutation] for table in tables if case.mutation in table)


# --- one case --------------------------------------------------------------------------------------------------------


def snapshot(folder: Path) -> dict[str, Any]:
    """Return what is in the folder, without the lock."""
    found = {}
    for path in folder.rglob("*"):
        whole = path.read_bytes() if path.is_file() and not path.is_symlink() else path.is_dir()
        found[str(path.relative_to(folder))] = whole if isinstance(whole, bool) else zlib.crc32(whole)
    return {name: content for name, content in found.items() if not name.endswith(".lock")}


def over_time(*_: Any) -> None:
    raise TimeoutError(f"{SECONDS} seconds of the processor")


def call(words: list[str]) -> dict[str, Any]:
    """Run a verb; return its exit code, what it said, what it accepted and the most memory of Python and NumPy."""
    out, err = io.StringIO(), io.StringIO()
    result: dict[str, Any] = {"code": None, "accepted": None, "raised": None}
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    tracemalloc.clear_traces()  # of every call before
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            result["code"] = cli.main(words)
    except Accepted as accepted:
        result |= {"code": 0, "accepted": accepted.args[0]}
    except BaseException as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        where = f"{Path(place.filename).name}:{place.lineno}"
        result["raised"] = f"{type(error).__name__} at {where}: {str(error)[:200]}"
    signal.setitimer(signal.ITIMER_PROF, 0)
    result["peak"] = tracemalloc.get_traced_memory()[1]
    return result | {"said": err.getvalue()}


def try_case(case: Case, whole: Path, work: Path, seed: int) -> dict[str, Any]:
    """Mutate one file of a copy and run the verb on it."""
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir()
    part = Path(case.file).parts[0]
    (shutil.copytree if (whole / part).is_dir() else shutil.copyfile)(whole / part, work / part)
    mutation_of(case, whole)(work / case.file, random.Random(seed))
    size = sum(path.lstat().st_size for path in work.rglob("*") if path.is_file())
    before = snapshot(work)
    with contextlib.chdir(work):
        result = call(VERBS[case.verb](work))
    after = snapshot(work)
    changed = sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))
    unpickled = any(path.name == m.MARKER for path in work.rglob("*"))
    return {**case._asdict(), **result, "size": size, "changed": changed, "unpickled": unpickled}


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="a new or empty one, for the files")
    parser.add_argument("every", type=int, nargs="?", default=1, help="one in how many files is tried (1)")
    options = parser.parse_args()
    if options.every < 1:
        parser.error(f"EVERY is {options.every}; allowed: 1 or more")
    if options.folder.exists() and any(options.folder.iterdir()):
        parser.error(f"FOLDER is {options.folder}, which is not empty; allowed: a new or empty one")
    return options


def main() -> int:
    options = parse()
    folder = options.folder
    whole, work = folder / "whole", folder / "work"
    whole.mkdir(parents=True)
    make_whole(whole)
    signal.signal(signal.SIGPROF, over_time)
    # For good: Python 3.11 crashes where it stops while a thread of orbax's takes memory (CPython issue 128679).
    tracemalloc.start(1)
    chosen, beside = cases(whole)
    verbs = list(dict.fromkeys(case.verb for case in [*chosen, *beside]))
    with replaced(whole / "run"):
        for verb in verbs:  # what the whole files give, twice: the first call traces and imports
            shutil.rmtree(work, ignore_errors=True)
            shutil.copytree(whole, work)
            with contextlib.chdir(work):
                call(VERBS[verb](work))
                print(json.dumps({"whole": verb, **call(VERBS[verb](work))}), flush=True)
        used = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
        resource.setrlimit(resource.RLIMIT_AS, (used + ROOM, resource.RLIM_INFINITY))
        numbered = list(enumerate([*chosen, *beside]))
        for seed, case in sorted(random.Random(0).sample(numbered, len(numbered) // options.every)):
            began = time.process_time()
            result = try_case(case, whole, work, seed)
            print(json.dumps(result | {"cpu_seconds": time.process_time() - began}), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
