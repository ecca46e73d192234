"""The official code beside ours: a child process, of a Python that has torch, that does its work when asked to."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax

from polygrad_jax.runs.run_folder import git_revision

OPTION = "--against-official"
FOLDERS = (OPTION, "--official-python")
"""Options whose values are paths of a machine."""


class Unusable(Exception):
    """--against-official cannot be done; the message is one line."""


class Child:
    """A worker of this folder, which sleeps between runs.

    Args:
      worker: the script: it reads one line of JSON, answers "ready" or what it lacks, and then, for every line "run",
        the seconds of one.
      needs: packages that it needs, as a message names them.

    Raises:
      Unusable: ours does not run on a CPU, as theirs does; the interpreter does not start, or lacks a package.
    """

    def __init__(self, worker: str, needs: str, clone: Path, python: str, size: dict[str, Any]):
        if jax.default_backend() != "cpu":
            raise Unusable(f"{OPTION} on {jax.default_backend()}; allowed: cpu, where the official code runs")
        try:
            self._child = subprocess.Popen(
                [python, str(Path(__file__).parent / worker), str(clone)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
            )
        except OSError as error:
            raise Unusable(f"--official-python is {python}; it does not start: {error.strerror}") from error
        answer = self._ask(json.dumps(size))
        if answer != "ready":
            self.close()
            raise Unusable(f"{OPTION} needs {needs}: {answer}")

    def _ask(self, line: str) -> str:
        try:
            self._child.stdin.write(line + "\n")
            self._child.stdin.flush()
        except BrokenPipeError:
            pass
        answer = self._child.stdout.readline().strip()
        if not answer:
            lines = self._child.stderr.read().strip().splitlines()
            self.close()
            why = lines[-1] if lines else f"exit code {self._child.returncode}"
            raise Unusable(f"{OPTION}: the official code failed: {why}")
        return answer

    def seconds(self) -> float:
        """Seconds of one run."""
        return float(self._ask("run"))

    def close(self) -> None:
        """End the child process; again, nothing."""
        with contextlib.suppress(BrokenPipeError):
            self._child.stdin.close()
        self._child.wait()
        self._child.stdout.close()
        self._child.stderr.close()


def check_clone(clone: Path) -> None:
    """Raise Unusable where ``clone`` does not look like the official repository."""
    if not (clone / "polygrad" / "models" / "diffusion.py").is_file():
        raise Unusable(
            f"{OPTION} is {clone}; allowed: a clone of marc-rigter/polygrad-world-models "
            "(it must hold polygrad/models/diffusion.py)"
        )


def facts(args: argparse.Namespace) -> dict[str, str | None]:
    """Return which official code was timed under which PyTorch: None where that is unknown, nothing without a clone."""
    clone: Path | None = args.against_official
    if clone is None:
        return {}
    version = "from importlib import metadata; print(metadata.version('torch'))"
    try:
        done = subprocess.run([args.official_python, "-c", version], capture_output=True, text=True, timeout=60)
        torch = done.stdout.strip() if done.returncode == 0 else None
    except (OSError, subprocess.TimeoutExpired):
        torch = None
    return {"official_revision": git_revision(clone), "official_torch": torch}


def add_arguments(parser: argparse.ArgumentParser, needs: str) -> None:
    """Add the options that name the clone and the interpreter."""
    parser.add_argument(OPTION, type=Path, default=None, metavar="PATH", help="a clone of the official repository")
    parser.add_argument(
        "--official-python", default=sys.executable, metavar="PYTHON", help=f"an interpreter with {needs}"
    )
