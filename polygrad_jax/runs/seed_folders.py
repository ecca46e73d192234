"""The folder of several seeds that learn in one program: a run folder for each, ``FOLDER/seed0``, ``FOLDER/seed1``."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from polygrad_jax.config import ConfigError
from polygrad_jax.runs.run_folder import RunFolder, one_line_on_disk_trouble, runs_in

LARGEST_SEED = 2**32 - 1
_NAME = re.compile(r"seed(0|[1-9][0-9]{0,9})")


def seed_folder(folder: Path, seed: int) -> Path:
    """Return the run folder of one of several seeds."""
    return folder / f"seed{seed}"


def seeds_in(folder: Path) -> list[int]:
    """Return the seeds whose runs were begun in a folder of several, least first; none where it is something else."""
    named = [_NAME.fullmatch(name) for name in runs_in(folder)]
    return sorted(int(match[1]) for match in named if match and int(match[1]) <= LARGEST_SEED)


def check_folder_of_seeds(folder: Path, seeds: Sequence[int]) -> None:
    """Refuse what several seeds cannot learn in; nothing is written.

    Raises:
      ConfigError: it is a file, the folder of one run, or holds something else.
    """
    allowed = "allowed: a folder that is new, empty or of several seeds"
    if RunFolder(folder).holds_a_run():  # first: it says in one line where one may not look
        raise ConfigError(f"run folder {folder} holds one run, and {len(seeds)} seeds are asked for; {allowed}")
    if not folder.exists():
        return
    if not folder.is_dir():
        raise ConfigError(f"run folder {folder} is a file; {allowed}")
    with one_line_on_disk_trouble(folder):
        names = sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))
    if strangers := [name for name in names if not _NAME.fullmatch(name)]:
        more = ", ..." if len(strangers) > 3 else ""
        raise ConfigError(f"run folder {folder} holds {', '.join(strangers[:3])}{more}; {allowed}")
