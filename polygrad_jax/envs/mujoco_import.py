"""Import MuJoCo where it is needed, and say in one line where it, or a package on top of it, is to blame."""

from __future__ import annotations

import importlib.util
import re
from importlib import metadata
from types import ModuleType

BRIDGES = {
    "dm_control": ("dm_control 1.0.50", (3, 17), (4, 0), "3.17.0"),
    "gymnasium_robotics": ("gymnasium-robotics 1.4.2", (3, 8), (3, 12), "3.11.0"),
}
"""Packages on top of MuJoCo, by module: the release tried, the MuJoCo from which and below which its tasks start, and
the release of MuJoCo to install. `docs/installation.md` has the same table."""
IMPORTED_FOR = {"shimmy": "dm_control"}
"""Modules that give Gymnasium the tasks of a bridge, and the bridge."""


def import_mujoco() -> ModuleType | None:
    """Return the package ``mujoco``; None where it is not installed or does not import, which `blamed` explains."""
    try:
        import mujoco
    except Exception:  # an installation of two releases raises anything
        return None
    return mujoco if hasattr(mujoco, "MjModel") else None  # the rest of a deleted one imports as an empty package


def blamed(error: BaseException) -> str | None:
    """Say in one line what of MuJoCo's installation made a task fail, and what to type; None where nothing did."""
    return _broken() or _missing_bridge(error) or _unsuited_bridge(error)


def _broken() -> str | None:
    """Say why the installed MuJoCo does not import; None where it does, or is not there at all."""
    if importlib.util.find_spec("mujoco") is None or import_mujoco() is not None:
        return None
    try:
        importlib.import_module("mujoco")
        trouble = "it has no MjModel"
    except Exception as error:
        # MuJoCo's own advice may bring parts of two releases.
        trouble = re.split(r"\. (?:Repair|Please)", " ".join(f"{type(error).__name__}: {error}".split()))[0]
    version = _version() or "4.0.0"
    packages = ("mujoco",) if int(version.split(".")[0]) < 4 else ("mujoco", "mujoco-core", "mujoco-studio")
    remedy = " ".join(f"{package}=={version}" for package in packages)
    return (
        f"the installed package mujoco does not import ({trouble}); allowed: pip install "
        f"--force-reinstall --no-deps {remedy}"
    )


def _missing_bridge(error: BaseException | None) -> str | None:
    """Say which bridge is not installed, with the MuJoCo that it needs; None where another module is missing."""
    while error is not None:
        module = getattr(error, "name", None) if isinstance(error, ModuleNotFoundError) else None
        bridge = IMPORTED_FOR.get(module, module)
        if bridge in BRIDGES:
            name, _, _, release = BRIDGES[bridge]
            return (
                f"no module named {module!r}; allowed: an environment with {name} and mujoco=={release}, which "
                "docs/installation.md describes"
            )
        error = error.__cause__ or error.__context__
    return None


def _unsuited_bridge(error: Exception) -> str | None:
    version = _version()
    installed = tuple(int(part) for part in re.findall(r"\d+", version or "")[:2])
    for module, (name, first, below, release) in BRIDGES.items():
        if version and module in _raised_in(error) and not first <= installed < below:
            words = " ".join(f"{type(error).__name__}: {error}".split())
            return (
                f"{words}; {name} does not start this task under mujoco {version}; allowed: an environment with "
                f"mujoco=={release}, which docs/installation.md describes"
            )
    return None


def _version() -> str | None:
    try:
        return metadata.version("mujoco")
    except metadata.PackageNotFoundError:
        return None


def _raised_in(error: BaseException | None) -> set[str]:
    """Return the packages whose code an error went through, its causes included."""
    packages = set()
    while error is not None:
        frame = error.__traceback__
        while frame is not None:
            packages.add(frame.tb_frame.f_globals.get("__name__", "").partition(".")[0])
            frame = frame.tb_next
        error = error.__cause__ or error.__context__
    return packages
