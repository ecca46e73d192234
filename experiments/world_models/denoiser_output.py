"""Should the denoiser predict states, or their change from the state it begins in?

    polygrad train --env hopper --preset cpu --loop.total-env-steps 20000 --run runs/hopper_20k/PolyGRAD-seed0
    python experiments/world_models/denoiser_output.py --dataset runs/hopper_20k/PolyGRAD-seed0 --preset cpu \\
        --transitions 1000 10000 --seconds 60 --seeds 0 1 2 --jobs 2 --threads 1 \\
        --out results/world_models/denoiser_output
    python experiments/world_models/denoiser_output.py --out results/world_models/denoiser_output --figure-only

Varied: what the denoisers of PolyGRAD and of autoregressive diffusion predict (``diffusion.prediction``); the ensemble
is beside them. Every model learns from nine tenths of the given transitions for the same seconds, to the best five-step
error on the rest. What is measured, and the columns of ``denoiser_output.csv``: ``experiments/harness/study.py``.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from experiments.harness import in_venv  # noqa: F401  first of all: it continues in the clone's .venv

# isort: split
from experiments.harness import grid, statistics
from experiments.harness.study import Fields, Study, run
from experiments.world_models.prediction_error import draw

POLYGRAD: Fields = ("--world-model", "polygrad", "--denoiser.shown-actions", "executed")
AUTOREGRESSIVE: Fields = ("--world-model", "autoregressive")
STATES: Fields = ("--diffusion.prediction", "clean")
CHANGES: Fields = ("--diffusion.prediction", "change")
COMPARED: dict[str, Fields] = {
    "PolyGRAD, states": (*POLYGRAD, *STATES),
    "PolyGRAD, changes": (*POLYGRAD, *CHANGES),
    "autoregressive, states": (*AUTOREGRESSIVE, *STATES),
    "autoregressive, changes": (*AUTOREGRESSIVE, *CHANGES),
    "ensemble": ("--world-model", "ensemble"),
}
RULES = {"correlated": {"rule": "correlated"}}
COLOURS = {
    ("PolyGRAD, states", "correlated"): "#56B4E9",
    ("PolyGRAD, changes", "correlated"): "#0072B2",
    ("autoregressive, states", ""): "#E69F00",
    ("autoregressive, changes", ""): "#D55E00",
    ("ensemble", ""): "#CC79A7",
}
TRANSITIONS = (1_000, 10_000)
JUDGED_APART = 0.1
"""Share of the given transitions, in whole episodes, that decides which parameters are best."""
STEPS = (1, 5, 9)


def compared() -> list[statistics.Pair]:
    """Return the ratios of the table: changes over states, and the better of the one model over that of the others."""
    pairs = [(f"{model}, changes", f"{model}, states") for model in ("PolyGRAD", "autoregressive")]
    pairs += [("PolyGRAD, changes", "autoregressive, changes"), ("autoregressive, changes", "ensemble")]
    return [
        (f"{size}: {one} / {other}", *({"transitions": str(size), "model": model} for model in (one, other)))
        for size in TRANSITIONS
        for one, other in pairs
    ]


def draw_and_compare(out: Path) -> None:
    """Draw ``denoiser_output.png`` and print the ratios."""
    draw(out, "denoiser_output", COLOURS)
    print(statistics.tables(grid.read_csv(out / "denoiser_output.csv"), compared(), STEPS))


if __name__ == "__main__":
    study = Study(
        Path(__file__), __doc__, COMPARED, RULES, draw_and_compare, transitions=TRANSITIONS, judged_apart=JUDGED_APART
    )
    sys.exit(run(study))
