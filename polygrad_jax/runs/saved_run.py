"""What the folder of a run holds, read without knowing what learns; nothing on the disk is changed."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from polygrad_jax import config as configs
from polygrad_jax.config import Config, ConfigError
from polygrad_jax.data.transition_log import TransitionLog, TransitionLogError, TransitionRecord
from polygrad_jax.runs import physics
from polygrad_jax.runs.checkpoints import Checkpoints, flatten_named, load_npz, nested
from polygrad_jax.runs.console import announce
from polygrad_jax.runs.metrics_log import csv_lines, read_rows, todays_metric
from polygrad_jax.runs.run_folder import BEST_FILE, CHECKPOINTS, RunFolder

Which = Literal["newest", "best"]
WHICH = ("newest", "best")

_PARTS = {
    "agent": "train_state/agent",
    "world_model": "train_state/world_model",
    "moments": "train_state/replay/moments",
}


@dataclass(frozen=True)
class SavedRun:
    """A run on disk: its configuration, and what it learnt up to the newest checkpoint or the best evaluation.

    Arrays, transitions and metrics are read when they are first asked for.
    """

    folder: Path
    config: Config
    which: Which = "newest"

    @property
    def env_steps(self) -> int:
        """Environment steps after which the arrays were saved, the prefill included; updates of ``polygrad fit``."""
        return self._stored[0]

    @property
    def arrays(self) -> dict[str, Any]:
        """Named arrays as nested dictionaries: ``agent``, ``world_model``, and ``moments`` of everything stored.

        A best evaluation keeps no optimisers (format version 1 kept the policy alone of the agent, ``agent/actor``).
        ``polygrad fit`` saves a world model alone.

        Raises:
          ConfigError: nothing is saved yet, it cannot be read, or the best evaluation is not a finite one.
        """
        return self._stored[1]

    @functools.cached_property
    def _stored(self) -> tuple[int, dict[str, Any]]:
        return _read_best(self.folder) if self.which == "best" else _read_newest(self.folder)

    @functools.cached_property
    def transitions(self) -> TransitionRecord:
        """Every stored transition, ``[T, ...]`` raw, on the host.

        Raises:
          ConfigError: they are missing or damaged.
        """
        try:
            log = TransitionLog(self.folder / "replay", read_only=True)
            return log.load(log.flushed_rows)
        except TransitionLogError as error:
            raise ConfigError(f"{error}; allowed: the folder of a run with its replay") from error

    @functools.cached_property
    def evaluations(self) -> dict[str, np.ndarray]:
        """The columns of ``eval.csv``, ``[rows]`` float64 each; see :func:`read_evaluations`."""
        return read_evaluations(self.folder)

    @functools.cached_property
    def rows(self) -> list[dict[str, Any]]:
        """The rows of ``metrics.jsonl``, under the names of ``docs/metrics.md`` whatever revision wrote them.

        Raises:
          ConfigError: there is no such file.
        """
        return [{todays_metric(name): value for name, value in row.items()} for row in read_rows(self.folder)]


def read_saved(folder: Path | str, which: Which = "newest") -> SavedRun:
    """Open the folder of a run of this revision or of the one before.

    Raises:
      ConfigError: the folder is not a run's, or ``which`` is another word.
    """
    folder = Path(folder)
    if which not in WHICH:
        raise ConfigError(f"which is {which}; allowed: {', '.join(WHICH)}")
    return SavedRun(folder, configs.validate(configs.from_dict(RunFolder(folder).saved_config())), which)


def read_evaluations(folder: Path | str) -> dict[str, np.ndarray]:
    """Read the columns of numbers of ``eval.csv``: ``[rows]`` float64 each, NaN where a cell is empty.

    Without the file there are no columns: an empty dictionary.

    Raises:
      ConfigError: it cannot be read, or a cell is no number.
    """
    path = Path(folder) / "eval.csv"
    names, *cells = csv_lines(path) or [[]]
    rows = [dict(zip(names, row, strict=True)) for row in cells if len(row) == len(names)]
    numbers = [name for name in names if name != physics.COLUMN]
    return {name: np.array([_number(path, name, row[name]) for row in rows]) for name in numbers}


def _number(path: Path, name: str, cell: str) -> float:
    try:
        return float(cell) if cell else np.nan
    except ValueError:
        raise ConfigError(f"{path}: {name} is {cell[:40]!r}; allowed: numbers and empty cells") from None


def _read_newest(folder: Path) -> tuple[int, dict[str, Any]]:
    checkpoints = Checkpoints(folder / CHECKPOINTS, say=announce, read_only=True)
    try:
        found = checkpoints.look()
    finally:
        checkpoints.close()
    if found is None:
        raise ConfigError(f"run folder {folder} has no checkpoint yet; allowed: a run that has saved one")
    tree = nested(found.arrays)
    if "train_state" not in tree:  # a world model alone
        return found.step, tree
    return found.step, {name: _at(tree, path) for name, path in _PARTS.items()}


def _read_best(folder: Path) -> tuple[int, dict[str, Any]]:
    path = folder / BEST_FILE
    if not path.is_file():
        raise ConfigError(
            f"run folder {folder} has no {BEST_FILE} yet; allowed: --which newest, or a run evaluated once"
        )
    tree = load_npz(path)
    counted = tree.pop("env_steps", tree.pop("updates", np.int64(0)))
    if np.shape(counted) != () or not np.issubdtype(np.asarray(counted).dtype, np.integer):
        raise ConfigError(f"{path} has no whole number as its step; allowed: a .npz that this package exported")
    env_steps = int(counted)
    tree.pop("five_step_error", None)
    tree.setdefault("world_model", {})  # the simulator's state has no arrays
    if "actor" in tree:
        tree["agent"] = {"actor": tree.pop("actor")}
    tree.setdefault("agent", {})
    if strange := sorted(name for name in tree if name not in _PARTS or not isinstance(tree[name], dict)):
        raise ConfigError(f"{path} has {', '.join(strange[:3])}; allowed: arrays of {', '.join(_PARTS)}")
    numbers = flatten_named(tree)
    if bad := [name for name, x in numbers.items() if x.dtype.kind == "f" and np.isnan(x).any()]:
        raise ConfigError(f"{path} has NaN in {', '.join(bad[:3])}; allowed: newest, or a finite evaluation")
    _require_finite_evaluation(folder, env_steps)
    return env_steps, tree


def _require_finite_evaluation(folder: Path, step: int) -> None:
    """Refuse what was kept for an evaluation that ``eval.csv`` has no number of (earlier versions kept such)."""
    evaluations = read_evaluations(folder)
    steps = next(iter(evaluations.values()), np.empty(0))
    for name in ("return_mean", "five_step_error"):
        if name in evaluations and not np.isfinite(evaluations[name][steps == step]).all():
            raise ConfigError(
                f"{folder / BEST_FILE} is of step {step}, whose {name} is not finite; allowed: newest, or a run whose "
                "evaluations are finite"
            )


def _at(tree: Mapping[str, Any], path: str) -> dict[str, Any]:
    """The part of nested dictionaries at ``a/b/c``; empty where there is none."""
    node: Any = tree
    for name in path.split("/"):
        node = node.get(name, {})
    return node
