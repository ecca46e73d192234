"""The version of MuJoCo that a result was made with.

One task id is another task under another version: one step of Hopper-v5 from one state differs by tens of per cent
between MuJoCo 3.4.0 and 3.5.0. Every row of results says its version, and what joins runs refuses to mix two.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping
from importlib import metadata
from typing import Any, NamedTuple

from polygrad_jax.config import ConfigError, EnvConfig

COLUMN = "mujoco"
"""Of tables of results, and of ``environment.json``: versions; empty where nothing recorded them."""
NO_MUJOCO = "none"
"""In the place of a version: MuJoCo does not simulate the task."""
ASKED_BY = "--mixed-physics"


class Used(NamedTuple):
    """One result and its physics."""

    task: str  # Gymnasium's id
    version: str  # as of COLUMN
    where: str  # in words, for the message


def installed_mujoco() -> str:
    """Return the version of the package; `NO_MUJOCO` without it."""
    try:
        return metadata.version("mujoco")
    except metadata.PackageNotFoundError:
        return NO_MUJOCO


_TODAYS: dict[EnvConfig, str] = {}


def todays_mujoco(env_config: EnvConfig, env: Any = None) -> str:
    """Return the version that simulates a task here and now; `NO_MUJOCO` where it is none's or not installed.

    Args:
      env_config: which task; what was found of it is kept.
      env: the task made already, for one of which no other copy can be made.
    """
    from polygrad_jax.envs import mujoco_state, tasks  # here, so that what only reads rows need not load Gymnasium

    if env_config in _TODAYS:
        return _TODAYS[env_config]
    try:
        with contextlib.nullcontext(env) if env is not None else contextlib.closing(tasks.make(env_config)) as made:
            simulated = mujoco_state.uses_mujoco(made)
    except ConfigError:  # recorded data of a task that is not installed
        return NO_MUJOCO
    return _TODAYS.setdefault(env_config, installed_mujoco() if simulated else NO_MUJOCO)


def versions_of_run(environment: Mapping[str, Any]) -> list[str]:
    """Return the versions that a run's ``environment.json`` tells of, oldest first, each once; the last is the newest.
    """
    every = [*environment.get("earlier", []), environment]
    found = [str(one.get(COLUMN) or one.get("packages", {}).get("mujoco") or "") for one in every]
    return [version for number, version in enumerate(found) if version not in found[number + 1 :]]


def version_of_run(environment: Mapping[str, Any]) -> str:
    """Return all versions of a run as one cell of a table."""
    return " ".join(versions_of_run(environment))


def version_of_row(row: Mapping[str, Any]) -> str:
    """Return the cell of a row of results; of an older table from its packages (``mujoco=4.0.0``), else empty."""
    if row.get(COLUMN):
        return str(row[COLUMN])
    packages = dict(word.split("=", 1) for word in str(row.get("packages") or "").split() if "=" in word)
    return packages.get("mujoco", "")


def versions_of_rows(rows: Iterable[Mapping[str, Any]]) -> str:
    """Return the versions of some rows, in the order of their first rows, as one cell."""
    return " ".join(dict.fromkeys(filter(None, map(version_of_row, rows))))


def in_words(version: str) -> str:
    """Return a cell as a caption says it; nothing for a task without MuJoCo."""
    if version == NO_MUJOCO:
        return ""
    return f"MuJoCo {version.replace(' ', ' and ')}" if version else "MuJoCo version not recorded"


def refuse_mixed(used: Iterable[Used], asked: bool) -> None:
    """Raise ConfigError where results of one task were made with different versions, or with an unknown one.

    Unknown ones of one place were joined before this was looked at; they stay together and join no others.

    Args:
      asked: mixing was asked for, so nothing is refused.
    """
    first: dict[str, Used] = {}
    for result in used:
        before = first.setdefault(result.task, result)
        known_or_joined = before.version != "" or before.where == result.where
        if asked or NO_MUJOCO in (before.version, result.version):
            continue
        if before.version != result.version or not known_or_joined:
            both = " and ".join(f"{in_words(one.version)} ({one.where})" for one in (before, result))
            line = f"{result.task} is another task under another MuJoCo: {both}"
            raise ConfigError(f"{line}; allowed: one version, or {ASKED_BY}")
