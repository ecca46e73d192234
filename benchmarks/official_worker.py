"""What the child processes of ``official.py`` share: work on demand, and how long it took. Needs no package."""

from __future__ import annotations

import json
import os
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any


def serve(make_run: Callable[[str, dict[str, Any]], Callable[[], None]]) -> None:
    """Read the sizes, answer "ready" or what is not installed; then, for every line "run", the seconds of one run."""
    answers = os.fdopen(os.dup(1), "w")
    sys.stdout = sys.stderr  # the official code prints
    warnings.simplefilter("ignore")  # its autocast to CUDA warns on a CPU at every step
    size = json.loads(sys.stdin.readline())
    try:
        run = make_run(sys.argv[1], size)
    except ModuleNotFoundError as error:
        print(f"{error.name} is not installed for {Path(sys.executable).name}", file=answers, flush=True)
        return
    print("ready", file=answers, flush=True)
    for line in sys.stdin:
        if line.strip() == "run":
            began = time.perf_counter()
            run()
            print(time.perf_counter() - began, file=answers, flush=True)
