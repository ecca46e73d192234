"""Which learning rate does each world model get in the comparison of ``prediction_error.py``?

A comparison of models after equal seconds is also one of learning rates, and none had been chosen for fixed data.

    python experiments/world_models/learning_rates.py --dataset runs/hopper-50k/score-seed0 --seconds 120 \\
        --seeds 0 --evaluate-every 1000 --jobs 2 --threads 1 --out results/world_models/learning_rates
    python experiments/world_models/learning_rates.py --out results/world_models/learning_rates --figure-only

Varied: every model with every rate, for a tenth of the seconds, on a run that is not among those compared. The rate
with the least error nine steps ahead is the one in ``compared_models.py``, but for the transformer, which does not bear
it for ten times as long (``results/world_models/learning_rates``). A short budget favours large rates, the same for
all. The columns of ``learning_rates.csv``: ``experiments/harness/study.py``; the rate stands behind the model's name.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from experiments.harness import in_venv  # noqa: F401  first of all: it continues in the clone's .venv

# isort: split
import numpy as np

from experiments.harness import figures, grid, statistics
from experiments.harness.study import Fields, Study, run
from experiments.world_models.compared_models import COLOURS, MODELS, RULES

RATES = (3e-4, 1e-3, 3e-3, 1e-2)
STEP = 9
FIELD = {"polygrad": "denoiser", "autoregressive": "denoiser"}
"""Which part of the config has the rate, by world model; of the others it has the model's own name."""


def with_rate(fields: Fields, rate: float) -> Fields:
    """Return the fields of a model with another learning rate."""
    world_model = fields[fields.index("--world-model") + 1]
    return *fields, f"--{FIELD.get(world_model, world_model)}.learning-rate", f"{rate:g}"


def with_rates(models: dict[str, Fields]) -> dict[str, Fields]:
    """Return every model with every rate, by names that :func:`split` takes apart again."""
    return {f"{name}: {rate:g}": with_rate(fields, rate) for name, fields in models.items() for rate in RATES}


def split(name: str) -> tuple[str, float]:
    """Return ``(model, rate)`` of a cell's name."""
    model, rate = name.rsplit(": ", 1)
    return model, float(rate)


def errors(rows: list[dict[str, str]], model: str, variant: str) -> dict[float, list[float]]:
    """Return by rate the errors of a trained model nine steps ahead, one per seed, infinite where it was not finite."""
    found: dict[float, list[float]] = {}
    for row in rows:
        (name, rate), labels = split(row["model"]), (row["variant"], row["network"])
        if (name, *labels) == (model, variant, "trained"):
            if row["finite"] == "0":
                found.setdefault(rate, []).append(float("inf"))
            elif row["step"] == str(STEP):
                found.setdefault(rate, []).append(float(row["mse"]))
    return dict(sorted(found.items()))


def draw(out: Path) -> None:
    """Draw ``learning_rates.png``: error nine steps ahead against the rate, a line per model and variant."""
    rows = grid.read_measured(out / "learning_rates.csv", lambda r: r.get("network") == "trained")
    if not rows:
        return
    with figures.figure(out / "learning_rates.png") as (_, axes):
        axis = axes[0, 0]
        for (model, variant), colour in COLOURS.items():
            means = {rate: np.mean(values) for rate, values in errors(rows, model, variant).items()}
            if means:
                rates, values = list(means), list(means.values())
                axis.plot(rates, values, color=colour, marker="o", markersize=3, linewidth=1.6)
                figures.label_end(axis, rates[-1], values[-1], f"{model} {variant}".strip(), colour, size=7)
        axis.set(xscale="log", yscale="log", xlabel="learning rate")
        axis.set_ylabel(f"mean squared error {STEP} steps ahead [variances of the data]")
        figures.room_for_names(axis, 4)
        first, seeds = rows[0], statistics.count_seeds(rows)
        caption = f"{first['env']}, {first['transitions']} transitions, {first['training_seconds']} s of training each"
        axis.set_title(f"{caption}, {seeds} seed(s)\n{grid.physics_of(rows)}", fontsize=8)


if __name__ == "__main__":
    sys.exit(run(Study(Path(__file__), __doc__, with_rates(MODELS), RULES, draw)))
