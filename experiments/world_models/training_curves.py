"""How exact was each world model after how many seconds? The five-step errors of trainings on fixed data.

    python experiments/training_curves.py runs/prediction_error-prediction_error/* --out results/prediction_error
    python experiments/training_curves.py --out results/prediction_error --figure-only

reads what ``train_world_model.py`` and the grids that train on fixed data leave in a training's folder (``eval.csv``,
``config.json``, ``data.json``, ``environment.json``) into ``training_curves.csv``, one row per judgement:
``five_step_error`` (mean squared error five steps ahead, raw, by which the training keeps its best parameters; judged
on states of the data it learns from), ``reward_mse``, ``updates`` and ``training_seconds`` of gradient steps. Rows of
trainings that are not named stay in the file. ``training_curves.png``: the least error so far against seconds, a line
per training. Printed, too: the least error until a tenth of the seconds (on a line between the judgements before and
after, both axes logarithmic, as in the figure) and within all of them, and their ratio, each a geometric mean over
trainings.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from experiments.harness import grid as sweep
from experiments.world_models.prediction_error import COLOURS

NAMES = {
    ("polygrad", "mlp"): "PolyGRAD MLP",
    ("polygrad", "transformer"): "PolyGRAD transformer",
    ("autoregressive", "mlp"): "autoregressive diffusion",
    ("transformer", "mlp"): "transformer",
    ("ensemble", "mlp"): "ensemble",
    ("dreamer", "mlp"): "Dreamer-v3",
}
"""By world model and kind of denoiser."""


def rows_of(folder: Path) -> list[dict[str, Any]]:
    """One row per judgement of a training.

    Raises:
      FileNotFoundError: the folder is none of a training on fixed data.
    """
    config, data, machine = (
        json.loads((folder / f"{name}.json").read_text()) for name in ("config", "data", "environment")
    )
    about = {
        "training": folder.name,
        "env": config["env"]["name"],
        "dataset": data["dataset"],
        "model": NAMES[config["world_model"], config["denoiser"]["kind"]],
        "seed": config["seed"],
        "horizon": config["horizon"],
        "transitions": data["transitions"],
    }
    where = {name: machine[name] for name in ("device", "processor", "cores", "git_revision")}
    return [about | row | where for row in sweep.read_csv(folder / "eval.csv")]


def least_so_far(rows: list[dict[str, str]]) -> tuple[list[float], np.ndarray]:
    """``(seconds, errors)`` of one training, each error the least until then."""
    rows = sorted(rows, key=lambda r: float(r["training_seconds"]))
    errors = np.array([float(r["five_step_error"]) for r in rows])
    return [float(r["training_seconds"]) for r in rows], np.minimum.accumulate(errors)


def gains(rows: list[dict[str, str]]) -> dict[str, tuple[float, float]]:
    """By model: ``(least error until a tenth of the seconds, within all)``, geometric means over trainings."""
    found: dict[str, list[np.ndarray]] = {}
    for name in dict.fromkeys(r["training"] for r in rows):
        own = [r for r in rows if r["training"] == name]
        seconds, errors = least_so_far(own)
        tenth = seconds[-1] / 10
        if seconds[0] <= tenth:
            early = np.interp(np.log(tenth), np.log(seconds), np.log(errors))
            found.setdefault(own[0]["model"], []).append(np.array([early, np.log(errors[-1])]))
    return {model: tuple(np.exp(np.mean(logs, axis=0))) for model, logs in found.items()}


def draw(out: Path) -> None:
    """``training_curves.png``: a panel per task, horizon and size of the data; a model's name at its worst line."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    rows = sweep.read_csv(out / "training_curves.csv")
    panels = list(dict.fromkeys((r["env"], r["horizon"], r["transitions"]) for r in rows))
    figure, axes = plt.subplots(1, len(panels), figsize=(5.4 * len(panels), 4.0), squeeze=False)
    for axis, panel in zip(axes[0], panels, strict=True):
        there = [r for r in rows if (r["env"], r["horizon"], r["transitions"]) == panel]
        for model in NAMES.values():
            colour = next(c for (name, _), c in COLOURS.items() if name == model)
            trainings = list(dict.fromkeys(r["training"] for r in there if r["model"] == model))
            curves = [least_so_far([r for r in there if r["training"] == name]) for name in trainings]
            for seconds, errors in curves:
                axis.plot(seconds, errors, color=colour, linewidth=1.2, alpha=0.8)
            if curves:
                seconds, errors = max(curves, key=lambda curve: curve[1][-1])
                sweep.label_end(axis, seconds[-1], errors[-1], model, colour, size=7)
        axis.set(xscale="log", yscale="log", xlabel="seconds of gradient steps")
        axis.set_ylabel("least five-step error so far [mean squared, raw]")
        axis.spines[["top", "right"]].set_visible(False)
        axis.set_xlim(right=axis.get_xlim()[1] * 4)
        seeds = len({r["seed"] for r in there})
        axis.set_title(f"{panel[0]}, H = {panel[1]}, {panel[2]} transitions, {seeds} seed(s)", fontsize=8)
        for model, (early, late) in gains(there).items():
            print(f"{', '.join(panel)}, {model}: {early:.3g} -> {late:.3g}, {early / late:.2f} times less")
    figure.tight_layout()
    sweep.save_figure(figure, out / "training_curves.png")
    plt.close(figure)


def main() -> int:
    """Reads the trainings that are named and draws all in the CSV."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("trainings", nargs="*", type=Path, help="folders of trainings on fixed data")
    parser.add_argument("--out", type=Path, required=True, help="folder of the CSV and the figure")
    parser.add_argument("--figure-only", action="store_true", help="draw from the CSV, read nothing else")
    options = parser.parse_args()
    path = options.out / "training_curves.csv"
    if not options.figure_only:
        missing = [str(f) for f in options.trainings if not (f / "eval.csv").exists() or not (f / "data.json").exists()]
        if missing or not options.trainings:
            said = ", ".join(missing) or "empty"
            print(f"trainings is {said}; allowed: folders of trainings on fixed data", file=sys.stderr)
            return 2
        named = {folder.name for folder in options.trainings}
        kept = [r for r in (sweep.read_csv(path) if path.exists() else []) if r["training"] not in named]
        sweep.write_csv(path, kept + [row for folder in options.trainings for row in rows_of(folder)])
    draw(options.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
