"""Pictures of the simulator without a screen: which GL library draws them, and whether it can. Host only."""

from __future__ import annotations

import contextlib
import ctypes
import os
import subprocess
import sys
from collections.abc import Iterator

import numpy as np

from polygrad_jax.config import ConfigError, EnvConfig
from polygrad_jax.envs import random_steps, tasks
from polygrad_jax.envs.checked_task import FAILURES, EnvStepError
from polygrad_jax.envs.mujoco_state import is_mujoco

_LIBRARIES = {
    # Each inner tuple: one of these must be there. PyOpenGL takes its functions from libOpenGL or libGL.
    "egl": ((("libEGL.so.1",), "libegl1"), (("libOpenGL.so.0", "libGL.so.1"), "libopengl0")),
    "osmesa": ((("libOSMesa.so.8", "libOSMesa.so.6"), "libosmesa6"),),
}
_ONE_PICTURE = "import mujoco; mujoco.Renderer(mujoco.MjModel.from_xml_string('<mujoco/>'), 8, 8).render()"
_PATIENCE_SECONDS = 60.0
_REMEDY = "Debian: apt install libegl1 libopengl0 (or libosmesa6, with MUJOCO_GL=osmesa)"


def _loads(name: str) -> bool:
    try:
        ctypes.CDLL(name)
    except OSError:
        return False
    return True


def missing_packages(backend: str) -> list[str]:
    """Return Debian's packages that ``backend`` (egl or osmesa) would need and that are not there."""
    return [package for names, package in _LIBRARIES[backend] if not any(_loads(name) for name in names)]


def choose_backend() -> str:
    """Set ``MUJOCO_GL`` to what can render without a screen, egl before osmesa, unless it is set, and return it.

    Raises:
      ConfigError: the library for it is missing; names Debian's package.
    """
    asked = os.environ.get("MUJOCO_GL", "").strip().lower()
    candidates = [asked] if asked else list(_LIBRARIES)
    usable = [b for b in candidates if b not in _LIBRARIES or not missing_packages(b)]
    if not usable:
        lacking = " ".join(missing_packages(candidates[0]))
        raise ConfigError(
            f"rendering with {candidates[0]} needs a GL library that is missing ({lacking}); allowed: a machine with "
            f"it. {_REMEDY}"
        )
    os.environ["MUJOCO_GL"] = usable[0]
    return usable[0]


def require_rendering(config: EnvConfig, elsewhere_first: bool = False) -> None:
    """Render one frame, so that what is missing is said before any work.

    With ``elsewhere_first`` MuJoCo's GL library is tried in a process of its own before: a broken one may end the
    process that loads it.

    Raises:
      ConfigError: the environment cannot be rendered here; one line.
    """
    with contextlib.closing(tasks.make(config)) as env:
        needs_gl = is_mujoco(env)
    backend = choose_backend() if needs_gl else None
    if needs_gl and elsewhere_first:
        _draw_elsewhere()
    with _quiet_destructors():
        try:
            with contextlib.closing(tasks.make(config, "rgb_array")) as env:
                env.reset(seed=0)
                frame = env.render()
        except FAILURES as error:  # what a broken GL library raises depends on where it is noticed
            words = " ".join(str(error).split())[:150]
            remedy = f"; allowed: a working GL library. {_REMEDY}" if needs_gl else "; allowed: an environment that can"
            how = f" with MUJOCO_GL={backend}" if backend else ""
            raise ConfigError(f"env.name {config.name} cannot be rendered{how} ({words}){remedy}") from error
    if np.ndim(frame) != 3:
        raise ConfigError(f"env.name {config.name} renders nothing as rgb_array; allowed: an environment that does")


def why_no_pictures(config: EnvConfig) -> str | None:
    """Return why nothing can be drawn of a second copy of a task, in the middle of other work; None where it can."""
    if why := random_steps.why_not_side_by_side(config):
        return f"copies of the task disturb each other ({why})"
    try:
        require_rendering(config, elsewhere_first=True)
    except (ConfigError, EnvStepError) as error:
        return str(error)
    return None


def _draw_elsewhere() -> None:
    """Draw a picture in another process.

    Raises:
      ConfigError: that process failed.
    """
    try:
        how = {"capture_output": True, "text": True, "timeout": _PATIENCE_SECONDS}
        done = subprocess.run([sys.executable, "-c", _ONE_PICTURE], **how)
        last = (done.stderr.strip().splitlines() or [""])[-1][:150]
        trouble = f"exit status {done.returncode}: {last}" if done.returncode else ""
    except (OSError, subprocess.TimeoutExpired) as error:
        trouble = type(error).__name__
    if trouble:
        backend = os.environ["MUJOCO_GL"]
        raise ConfigError(f"MuJoCo draws nothing with MUJOCO_GL={backend} ({trouble}); allowed: a working GL library")


@contextlib.contextmanager
def _quiet_destructors() -> Iterator[None]:
    """Silence a viewer whose making failed, which complains again when it is thrown away."""
    before, sys.unraisablehook = sys.unraisablehook, lambda _: None
    try:
        yield
    finally:
        sys.unraisablehook = before
