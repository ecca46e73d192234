"""Is PolyGRAD better than autoregressive diffusion when data are few? (a hypothesis that the paper left untested)

Both, and the ensemble, are given 1,000, 10,000 and 100,000 transitions of the same run, drawn as whole episodes, for
the same seconds of gradient steps. They learn from nine tenths of these and to the best five-step error from the states
of the last tenth (on what it learnt from, a model that knows little data by heart is always best); then 500
trajectories from states of episodes that none was given are compared with MuJoCo (``prediction_error.py``, whose
columns these are). PolyGRAD is shown actions as they are executed, as the others are. The run has to be longer than
100,000 steps by what is held back: ``--loop.total-env-steps 115000``.

    python experiments/small_data.py --dataset runs/grid-hopper-cpu/score-seed0 --seconds 600 --seeds 0 1 2 \\
        --jobs 2 --threads 1 --out results/small_data
    python experiments/small_data.py --out results/small_data --figure-only
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
from experiments.harness import statistics as paired
from experiments.harness import grid as sweep
from experiments.world_models.prediction_error import COLOURS, EXECUTED, MODELS, Study, main

OTHER = "autoregressive diffusion"
COMPARED = ("PolyGRAD MLP", OTHER, "ensemble")
RULES = {"score": {"rule": "score"}}
STEPS = (1, 5, 9)
JUDGED_APART = 0.1
"""Share of the given transitions, in whole episodes, that decides which parameters are best."""


def at_step(
    rows: list[dict[str, str]], model: str, step: int, measure: str = "mse"
) -> tuple[list[int], list[np.ndarray]]:
    """``(transitions, errors [seeds] of each)`` of a trained model so many steps ahead, in variances."""
    own = [r for r in rows if (r["model"], r["network"], r["step"]) == (model, "trained", str(step))]
    sizes = sorted({int(r["transitions"]) for r in own})
    return sizes, [np.array([float(r[measure]) for r in own if int(r["transitions"]) == n]) for n in sizes]


def draw(out: Path) -> None:
    """``small_data.png``: error against transitions, one panel per step ahead; shaded: std over seeds. Says ratios."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    rows = [r for r in sweep.read_csv(out / "small_data.csv") if r.get("network")]
    print(*compared(rows), sep="\n")
    figure, axes = plt.subplots(1, len(STEPS), figsize=(4.4 * len(STEPS), 3.8), sharey=True, squeeze=False)
    for axis, step in zip(axes[0], STEPS, strict=True):
        for (model, _), colour in ((k, c) for k, c in COLOURS.items() if k[0] in COMPARED and k[1] in ("score", "")):
            if any(r["model"] == model for r in rows):
                draw_line(axis, *at_step(rows, model, step), model, colour)
        draw_line(axis, *at_step(rows, OTHER, step, "still"), "nothing moves", "#7F7F7F", "--")
        axis.set(xscale="log", yscale="log", xlabel="transitions", title=f"{step} step{'s' * (step > 1)} ahead")
        axis.set_xticks(sizes := sorted({int(r["transitions"]) for r in rows}), [f"{n:,}" for n in sizes])
        axis.minorticks_off()
        axis.spines[["top", "right"]].set_visible(False)
        axis.set_xlim(right=axis.get_xlim()[1] * 8)
    axes[0, 0].set_ylabel("mean squared error [variances of the data]")
    first, seeds = rows[0], len({r["seed"] for r in rows})
    figure.suptitle(f"{first['env']}, {first['training_seconds']} s of training each, {seeds} seed(s)", fontsize=9)
    figure.tight_layout()
    sweep.save_figure(figure, out / "small_data.png")
    plt.close(figure)


def compared(rows: list[dict[str, str]]) -> list[str]:
    """Tables: the errors of PolyGRAD and the ensemble over those of autoregressive diffusion, by size."""
    pairs = [
        (f"{model}, {size:,}", {"model": model, "transitions": str(size)}, {"model": OTHER, "transitions": str(size)})
        for model in COMPARED
        for size in sorted({int(r["transitions"]) for r in rows})
        if model != OTHER
    ]
    return [line for measure in ("mse", "median") for line in (*paired.table(rows, pairs, STEPS, measure), "")]


def draw_line(axis: Any, sizes: list[int], errors: list[np.ndarray], label: str, colour: str, style: str = "-") -> None:
    """Mean over seeds, labelled at its end, and one standard deviation."""
    mean, std = (np.array([of(e) for e in errors]) for of in (np.mean, np.std))
    axis.plot(sizes, mean, style, color=colour, marker="o", markersize=3, linewidth=1.6)
    axis.fill_between(sizes, np.maximum(mean - std, mean * 0.05), mean + std, color=colour, alpha=0.15, linewidth=0)
    sweep.label_end(axis, sizes[-1], mean[-1], label, colour, size=7)


if __name__ == "__main__":
    models = {name: MODELS[name] + (EXECUTED if name.startswith("PolyGRAD") else ()) for name in COMPARED}
    transitions = (1_000, 10_000, 100_000)
    study = Study(Path(__file__), __doc__, models, RULES, draw, transitions=transitions, judged_apart=JUDGED_APART)
    sys.exit(main(study))
