"""Which learning rate does each world model of ``prediction_error.py`` get?

A comparison of models after equal seconds is also one of learning rates, and none of ours had been chosen for fixed
data. Here every model learns for a tenth of the seconds with every rate, from a run that is not among those compared;
the rate with the least error nine steps ahead is the one in ``prediction_error.MODELS``, but for the transformer, which
does not bear it for ten times as long (``results/learning_rates``).

    python experiments/learning_rates.py --dataset runs/grid-hopper-cpu/score-seed0 --seconds 120 --seeds 0 \\
        --evaluate-every 1000 --jobs 2 --threads 1 --out results/learning_rates
    python experiments/learning_rates.py --out results/learning_rates --figure-only

The columns are those of ``prediction_error.py``; the rate stands behind the model's name. A short budget favours large
rates, the same for all.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from experiments.harness import grid as sweep
from experiments.world_models.prediction_error import COLOURS, MODELS, RULES, Study, main

RATES = (3e-4, 1e-3, 3e-3, 1e-2)
STEP = 9
FIELD = {"polygrad": "denoiser", "autoregressive": "denoiser"}
"""Which part of the config has the rate, by world model; of the others it has the model's own name."""


def with_rate(fields: tuple[str, ...], rate: float) -> tuple[str, ...]:
    """The fields of a model, with another learning rate."""
    world_model = fields[fields.index("--world-model") + 1]
    return *fields, f"--{FIELD.get(world_model, world_model)}.learning-rate", f"{rate:g}"


def with_rates(models: dict[str, tuple[str, ...]]) -> dict[str, tuple[str, ...]]:
    """Every model with every rate, by names that :func:`split` takes apart again."""
    return {f"{name}: {rate:g}": with_rate(fields, rate) for name, fields in models.items() for rate in RATES}


def split(name: str) -> tuple[str, float]:
    """``(model, rate)`` of a cell's name."""
    model, rate = name.rsplit(": ", 1)
    return model, float(rate)


def errors(rows: list[dict[str, str]], model: str, variant: str) -> dict[float, list[float]]:
    """By rate: the errors of a trained model nine steps ahead, one per seed, infinite where it was not finite."""
    found: dict[float, list[float]] = {}
    for row in rows:
        if (split(row["model"])[0], row["variant"], row["network"]) != (model, variant, "trained"):
            continue
        if row["finite"] == "0":
            found.setdefault(split(row["model"])[1], []).append(float("inf"))
        elif row["step"] == str(STEP):
            found.setdefault(split(row["model"])[1], []).append(float(row["mse"]))
    return dict(sorted(found.items()))


def draw(out: Path) -> None:
    """``learning_rates.png``: error nine steps ahead against the learning rate, a line per model and variant."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    rows = [r for r in sweep.read_csv(out / "learning_rates.csv") if r.get("network")]
    figure, axis = plt.subplots(figsize=(6.4, 4.4))
    for (model, variant), colour in COLOURS.items():
        found = {rate: np.mean(values) for rate, values in errors(rows, model, variant).items()}
        if found:
            axis.plot(list(found), list(found.values()), color=colour, marker="o", markersize=3, linewidth=1.6)
            label = f"{model} {variant}".strip()
            sweep.label_end(axis, list(found)[-1], list(found.values())[-1], label, colour, size=7)
    axis.set(xscale="log", yscale="log", xlabel="learning rate")
    axis.set_ylabel(f"mean squared error {STEP} steps ahead [variances of the data]")
    axis.spines[["top", "right"]].set_visible(False)
    axis.set_xlim(right=axis.get_xlim()[1] * 4)
    first, seeds = rows[0], len({r["seed"] for r in rows})
    caption = f"{first['env']}, {first['transitions']} transitions, {first['training_seconds']} s of training each"
    axis.set_title(f"{caption}, {seeds} seed(s)", fontsize=8)
    figure.tight_layout()
    sweep.save_figure(figure, out / "learning_rates.png")
    plt.close(figure)


if __name__ == "__main__":
    sys.exit(main(Study(Path(__file__), __doc__, with_rates(MODELS), RULES, draw)))
