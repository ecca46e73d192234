"""Continues a script in the clone's own ``.venv`` where this Python lacks the packages that the project needs.

Import it first, before numpy or jax. It acts only where the running program is a script of this clone's
``experiments/`` or ``benchmarks/``; imported by a test or a library it does nothing.
"""

import importlib.util
import os
import sys
from pathlib import Path

CLONE = Path(__file__).resolve().parents[2]
STARTED_FROM = (CLONE / "experiments", CLONE / "benchmarks")
NEEDED = ("jax", "flax", "optax", "orbax", "gymnasium", "mujoco", "matplotlib", "scipy")
BAD_INPUT = 2


def missing():
    """Return the needed packages that this Python cannot import."""
    return [name for name in NEEDED if importlib.util.find_spec(name) is None]


def is_our_script(program):
    """Whether a program, by its path, is one that stands in this clone's folders of scripts."""
    return program is not None and any(folder in Path(program).resolve().parents for folder in STARTED_FROM)


def continue_in_venv(program, venv):
    """Replace this process by the same command under the Python of ``venv``; exit where that cannot help."""
    python = venv / "bin" / "python"
    lacking = missing()
    if not lacking:
        return
    if python.exists() and os.path.abspath(sys.executable) != str(python):
        words = getattr(sys, "orig_argv", [sys.executable, *sys.argv])[1:]
        sys.stdout.flush()
        os.execv(str(python), [str(python), *words])
    print(f"{Path(program).name}: this Python has no {lacking[0]}; type: make install", file=sys.stderr)
    raise SystemExit(BAD_INPUT)


_program = getattr(sys.modules.get("__main__"), "__file__", None)
if is_our_script(_program):
    continue_in_venv(_program, CLONE / ".venv")
