"""The settings tried on the way to the ``cpu`` preset: every curve, labelled by what it changed.

    python experiments/plot_search.py results/cpu_search

reads ``curves.csv`` (one row per evaluation: trial, env, seed, env_steps, return_mean, ...) and ``trials.csv`` (one
row per trial: what it changed) and draws ``<env>.png`` for each environment.
"""

from __future__ import annotations

import argparse
import csv
import os
from pathlib import Path

COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#7F7F7F"]


def read(path: Path) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def draw(folder: Path, env: str) -> None:
    """Evaluation return against environment steps, a line per trial, its label at its end."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    curves = [r for r in read(folder / "curves.csv") if r["env"] == env]
    figure, axis = plt.subplots(figsize=(8, 4.2))
    for colour, trial in zip(COLOURS * 4, dict.fromkeys(r["trial"] for r in curves), strict=False):
        points = [(int(r["env_steps"]), float(r["return_mean"])) for r in curves if r["trial"] == trial]
        axis.plot(*zip(*points, strict=True), color=colour, linewidth=1.8, marker="o", markersize=3)
        axis.annotate(trial, points[-1], color=colour, xytext=(4, 0), textcoords="offset points", va="center")
    axis.set_xlabel("environment steps, prefill included")
    axis.set_ylabel("evaluation return (20 episodes, mean action)")
    axis.set_title(f"{env}: settings tried for the cpu preset (see trials.csv)", fontsize=9)
    axis.spines[["top", "right"]].set_visible(False)
    axis.set_xlim(right=axis.get_xlim()[1] * 1.15)
    figure.tight_layout()
    temporary = folder / f".{env}.tmp.png"
    figure.savefig(temporary, dpi=150)
    plt.close(figure)
    os.replace(temporary, folder / f"{env}.png")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    for env in dict.fromkeys(r["env"] for r in read(folder / "curves.csv")):
        draw(folder, env)


if __name__ == "__main__":
    main()
