"""Runs that come with the package: what they had learnt at their best evaluation, some transitions, and a card each.

Each is a folder like that of any run, without checkpoints: ``config.json``, ``environment.json``, ``eval.csv``,
``best.npz``, a replay of its last transitions to imagine from, and ``card.json``, which says where all that is from.
``experiments/learning/export_pretrained.py`` makes one.
"""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from pathlib import Path
from typing import Any

from polygrad_jax.config import ConfigError
from polygrad_jax.runs.run_folder import BEST_FILE, CARD_FILE, one_line_on_disk_trouble, read_json

SHIPPED = Path(__file__).parents[1] / "pretrained"


def names() -> list[str]:
    """Return the names of all runs that come with the package."""
    return sorted(path.parent.name for path in SHIPPED.glob(f"*/{CARD_FILE}"))


def sha256_of(folder: Path) -> str:
    """Return the hash of a run's best parameters, in hexadecimal digits."""
    return hashlib.sha256((folder / BEST_FILE).read_bytes()).hexdigest()


def find(name: str) -> Path:
    """Return the folder of a run that comes with the package; it may be read-only.

    Raises:
      ConfigError: there is none of that name, or its parameters are not those of its card.
    """
    if name not in names():
        raise ConfigError(f"pretrained is {name}; allowed: {', '.join(names())}")
    folder = SHIPPED / name
    if not (folder / BEST_FILE).is_file() or sha256_of(folder) != read_card(folder)["sha256"]:
        raise ConfigError(f"{folder / BEST_FILE} is not the file of its card; allowed: the package as it was installed")
    return folder


def read_card(folder: Path) -> dict[str, Any]:
    """Return what is said of a pretrained run: task, preset, seed, steps, return, versions, hash."""
    return read_json(folder / CARD_FILE)


def copy_to(name: str, folder: Path) -> Path:
    """Copy a run that comes with the package to where files can be written beside it; one that is there stays.

    Raises:
      ConfigError: no run of that name, or the folder holds something else.
    """
    source = find(name)
    if (folder / CARD_FILE).is_file() and (folder / BEST_FILE).is_file() and sha256_of(folder) == sha256_of(source):
        return folder
    if folder.exists():
        raise ConfigError(f"{folder} is there and is not the pretrained {name}; allowed: to move or remove it")
    with one_line_on_disk_trouble(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as unfinished:
            whole = Path(unfinished) / name
            _copy_files(source, whole)
            whole.rename(folder)
    return folder


def _copy_files(source: Path, target: Path) -> None:
    """Copy what is in the files alone: those of an installation may be read-only."""
    for path in sorted(source.rglob("*")):
        if path.is_file():
            copy = target / path.relative_to(source)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, copy)
