"""Make a run one that comes with the package: its best evaluation, its last transitions, and a card.

The card says what was trained, how, and what the policy returns in 20 episodes that chose nothing: their seeds are
those of no evaluation of the training, by which the best one was chosen.

    python experiments/learning/export_pretrained.py runs/hopper-cpu_long-seed1 --name hopper
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from experiments.harness import in_venv

# isort: split
import argparse
import contextlib
import json
import shlex
import shutil
import tempfile
from dataclasses import fields
from typing import Any

from polygrad_jax import config as configs
from polygrad_jax.analysis import reports
from polygrad_jax.analysis.opened_run import OpenedRun, open_run
from polygrad_jax.config import ConfigError
from polygrad_jax.data.transition_log import TransitionLog, TransitionRecord
from polygrad_jax.envs.tasks import gymnasium_id
from polygrad_jax.runs import pretrained
from polygrad_jax.runs.run_folder import (
    BEST_FILE,
    CARD_FILE,
    CONFIG_FILE,
    ENVIRONMENT_FILE,
    RunFolder,
    write_text_atomically,
)

TRANSITIONS = 2_000
"""Of the newest, to imagine from."""
EPISODES, SEED = 20, 10_000
KEPT_OF_THE_MACHINE = ("python", "packages", "device", "processor", "cores", "machine", "git_revision", "mujoco")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, metavar="RUN", help="folder of a finished run")
    parser.add_argument("--name", required=True, help="by which it is asked for, e.g. hopper")
    parser.add_argument("--out", type=Path, default=pretrained.SHIPPED, help="folder of all of them (the package's)")
    return parser.parse_args()


def export(run: OpenedRun, target: Path) -> dict[str, Any]:
    """Write the folder; return its card.

    Raises:
      ConfigError: it is there already.
    """
    if target.exists():
        raise ConfigError(f"{target} is there already; allowed: another --name, or remove it first")
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}.") as unfinished:
        folder = Path(unfinished) / target.name
        folder.mkdir()
        for name in (BEST_FILE, CONFIG_FILE, "eval.csv"):
            shutil.copyfile(run.folder / name, folder / name)
        environment = RunFolder(run.folder).saved_environment()
        told = {name: environment[name] for name in KEPT_OF_THE_MACHINE if name in environment}
        write_json(folder / ENVIRONMENT_FILE, told | {"command": command_of(run)})
        log = TransitionLog(folder / "replay")
        newest = run.transitions[slice(-TRANSITIONS, None)]
        log.append(**{field.name: getattr(newest, field.name) for field in fields(TransitionRecord)})
        log.flush()
        card = card_of(run, told, len(newest)) | {"sha256": pretrained.sha256_of(folder)}
        write_json(folder / CARD_FILE, card)
        folder.rename(target)
    return card


def command_of(run: OpenedRun) -> str:
    """Return what a user types for this run: the fields that differ from its preset, no folder of a machine."""
    config = run.config
    words = ["polygrad", "train", "--env", config.env.name, "--preset", config.preset, "--seed", str(config.seed)]
    for name, value in configs.non_default(config).items():
        if name != "seed":
            words += _as_words(name.replace("_", "-"), value)
    return shlex.join(words)


def _as_words(name: str, value: Any) -> list[str]:
    if not isinstance(value, bool):
        return [f"--{name}", str(value)]
    room, dot, leaf = name.rpartition(".")
    return [f"--{name}" if value else f"--{room}{dot}no-{leaf}"]


def card_of(run: OpenedRun, told: dict[str, Any], transitions: int) -> dict[str, Any]:
    """Return what is to be said of the run; the policy is evaluated anew for it."""
    row = reports.evaluate(run, EPISODES, SEED)
    evaluations = run.saved.evaluations
    return {
        "task": gymnasium_id(run.config.env),
        "preset": run.config.preset,
        "seed": run.config.seed,
        "command": command_of(run),
        "env_steps": run.env_steps,
        "trained_env_steps": int(evaluations["env_steps"][-1]),
        "data": f"the transitions of its own training; the newest {transitions:,} of them come along",
        "return_mean": round(row["return_mean"], 1),
        "return_std": round(row["return_std"], 1),
        "length_mean": row["length_mean"],
        "distance_mean": None if row["distance_mean"] is None else round(row["distance_mean"], 2),
        "evaluated": f"{EPISODES} episodes with the mean action, seed {SEED}, which chose nothing",
        "mujoco": row["mujoco"],
        "git_revision": told.get("git_revision"),
        "licence": "MIT, as the code",
    }


def write_json(path: Path, content: dict[str, Any]) -> None:
    write_text_atomically(path, json.dumps(content, indent=2) + "\n")


def main() -> int:
    options = parse()
    try:
        card = export(open_run(options.run, "best"), options.out / options.name)
    except ConfigError as error:
        print(f"export_pretrained: {error}", file=sys.stderr)
        return in_venv.BAD_INPUT
    with contextlib.suppress(BrokenPipeError):
        print(json.dumps(card, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
