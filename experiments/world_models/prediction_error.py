"""How far is each world model from the simulator, and how does that grow with the horizon? (Figures 5 and 8)

    python experiments/world_models/prediction_error.py --dataset runs/hopper-115k/score-seed0 --seconds 600 \\
        --seeds 0 1 2 --horizons 10 --jobs 2 --threads 1 --out results/world_models/prediction_error
    python experiments/world_models/prediction_error.py --out results/world_models/prediction_error --figure-only

Varied: the world model, the seed, the horizon; ``--transitions`` trains on so many of the recorded ones, drawn as whole
episodes. Several datasets go to one CSV by one call each. What is measured, and the columns of
``prediction_error.csv``: ``experiments/harness/study.py``.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from experiments.harness import in_venv  # noqa: F401  first of all: it continues in the clone's .venv

# isort: split
from experiments.harness import figures, grid, statistics
from experiments.harness.study import TOLD, Study, run
from experiments.world_models.compared_models import COLOURS, MODELS, VARIANTS

MEASURES = {"mse": "mean", "median": "median", "mse_raw": "mean, raw units"}


def draw(out: Path, name: str = "prediction_error", colours: dict[tuple[str, str], str] = COLOURS) -> None:
    """Draw ``<name>.png`` from ``<name>.csv``: error against steps ahead, mean, median and raw; std over seeds shaded.
    """
    rows = grid.read_measured(out / f"{name}.csv", lambda r: r.get("network") == "trained" and r["finite"] == "1")
    if not rows:
        return
    panels = statistics.groups(rows, ("env", "horizon", "transitions"))
    size = (5.2 * len(panels), 10.5)
    with figures.figure(out / f"{name}.png", len(MEASURES), len(panels), size) as (_, axes):
        for column, ((env, horizon, transitions), there) in zip(axes.T, panels.items(), strict=True):
            for axis, (measure, meaning) in zip(column, MEASURES.items(), strict=True):
                for (model, variant), colour in colours.items():
                    own = [r for r in there if (r["model"], r["variant"]) == (model, variant)]
                    if own:
                        style = {"color": colour, "linestyle": ":" if variant == TOLD else "-"}
                        curve = statistics.along(own, "step", measure)
                        figures.mean_and_std(axis, *curve, f"{model} {variant}".strip(), **style)
                if measure == "mse":
                    nothing = statistics.along(there, "step", "still")
                    figures.mean_and_std(axis, *nothing, "nothing moves", color=figures.GREY, linestyle="--")
                unit = "" if measure == "mse_raw" else "variances; "
                axis.set(yscale="log", xlabel="steps ahead", ylabel=f"squared error [{unit}{meaning}]")
                axis.margins(x=0.02)
                figures.room_for_names(axis, 1.45)
            seeds, seconds = statistics.count_seeds(there), float(there[0]["training_seconds"])
            about = f"{int(transitions):,} transitions, {seconds:.0f} s of training, {seeds} seed(s)"
            column[0].set_title(f"{env}, H = {horizon}, {about}\n{grid.physics_of(there)}", fontsize=8)


if __name__ == "__main__":
    sys.exit(run(Study(Path(__file__), __doc__, MODELS, VARIANTS, draw)))
