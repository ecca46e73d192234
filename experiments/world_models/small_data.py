"""Is PolyGRAD better than autoregressive diffusion when data are few? (a hypothesis that the paper left untested)

    python experiments/world_models/small_data.py --dataset runs/hopper-115k/score-seed0 --seconds 600 \\
        --seeds 0 1 2 --jobs 2 --threads 1 --out results/world_models/small_data
    python experiments/world_models/small_data.py --out results/world_models/small_data --figure-only

Varied: PolyGRAD, autoregressive diffusion and the ensemble, on 1,000, 10,000 and 100,000 transitions of the same run,
drawn as whole episodes, for the same seconds of gradient steps. Each learns from nine tenths of them, to the best
five-step error from the states of the last tenth: judged on what it learnt from, a model that knows little data by
heart is always best. PolyGRAD is shown actions as they are executed, as the others are. The run has to be longer than
100,000 steps by what is held back: ``--loop.total-env-steps 115000``. What is measured, and the columns of
``small_data.csv``: ``experiments/harness/study.py``.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from experiments.harness import in_venv  # noqa: F401  first of all: it continues in the clone's .venv

# isort: split
from experiments.harness import figures, grid, statistics
from experiments.harness.study import Study, run
from experiments.world_models.compared_models import EXECUTED, MODELS, SCORE, colour_of

OTHER = "autoregressive diffusion"
COMPARED = {
    "PolyGRAD MLP": (*MODELS["PolyGRAD MLP"], *EXECUTED),
    OTHER: MODELS[OTHER],
    "ensemble": MODELS["ensemble"],
}
TRANSITIONS = (1_000, 10_000, 100_000)
STEPS = (1, 5, 9)
JUDGED_APART = 0.1
"""Share of the given transitions, in whole episodes, that decides which parameters are best."""


def at_step(
    rows: list[dict[str, str]], model: str, step: int, measure: str = "mse"
) -> tuple[list[int], list[list[float]]]:
    """Return ``(transitions, errors of the seeds at each)`` of a trained model so many steps ahead, in variances."""
    own = [r for r in rows if (r["model"], r["network"], r["step"]) == (model, "trained", str(step))]
    return statistics.along(own, "transitions", measure)


def draw(out: Path) -> None:
    """Draw ``small_data.png``: error against transitions, a panel per step ahead; std over seeds shaded. Print ratios.
    """
    rows = grid.read_measured(out / "small_data.csv", lambda r: r.get("network") == "trained")
    if not rows:
        return
    sizes = sorted({int(r["transitions"]) for r in rows})
    print(statistics.tables(rows, compared(sizes), STEPS))
    size = (4.4 * len(STEPS), 3.8)
    with figures.figure(out / "small_data.png", 1, len(STEPS), size, sharey=True) as (figure, axes):
        dots = {"marker": "o", "markersize": 3}
        for axis, step in zip(axes[0], STEPS, strict=True):
            for model in COMPARED:
                if any(r["model"] == model for r in rows):
                    curve = at_step(rows, model, step)
                    figures.mean_and_std(axis, *curve, model, color=colour_of(model), **dots)
            nothing = at_step(rows, OTHER, step, "still")
            figures.mean_and_std(axis, *nothing, "nothing moves", color=figures.GREY, linestyle="--", **dots)
            axis.set(xscale="log", yscale="log", xlabel="transitions", title=f"{step} step{'s' * (step > 1)} ahead")
            axis.set_xticks(sizes, [f"{n:,}" for n in sizes])
            axis.minorticks_off()
            figures.room_for_names(axis, 8)
        axes[0, 0].set_ylabel("mean squared error [variances of the data]")
        env, seconds, seeds = rows[0]["env"], rows[0]["training_seconds"], statistics.count_seeds(rows)
        figure.suptitle(f"{env}, {seconds} s of training each, {seeds} seed(s); {grid.physics_of(rows)}", fontsize=9)


def compared(sizes: list[int]) -> list[statistics.Pair]:
    """Return the ratios of the table: PolyGRAD and the ensemble over autoregressive diffusion, by size of the data."""
    return [
        (f"{model}, {size:,}", {"model": model, "transitions": str(size)}, {"model": OTHER, "transitions": str(size)})
        for model in COMPARED
        for size in sizes
        if model != OTHER
    ]


if __name__ == "__main__":
    study = Study(Path(__file__), __doc__, COMPARED, SCORE, draw, transitions=TRANSITIONS, judged_apart=JUDGED_APART)
    sys.exit(run(study))
