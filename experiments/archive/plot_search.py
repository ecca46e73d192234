"""Draw the settings tried on the way to the ``cpu_a2c`` preset: a curve per trial, labelled by what it changed.

    python experiments/archive/plot_search.py results/archive/preset_search_1

reads ``curves.csv`` (one row per evaluation: trial, env, seed, env_steps, return_mean, ...) and ``trials.csv`` (one
row per trial: what it changed) and draws ``<env>.png`` for each environment.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from experiments.harness import in_venv  # noqa: F401  first of all: it continues in the clone's .venv

# isort: split
import argparse
import csv
import os

COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#7F7F7F"]
STYLES = ["-", "--", ":"]


def read(path: Path) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def has(row: dict[str, str], name: str) -> bool:
    """Return whether a cell holds a number; the pendulum travels no distance."""
    return row[name] not in ("", "nan")


def draw(folder: Path, env: str) -> None:
    """Draw evaluation return, and distance where there is one, against environment steps: a line per trial."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    curves = [r for r in read(folder / "curves.csv") if r["env"] == env]
    meaning = {r["trial"]: r["what"] for r in read(folder / "trials.csv")}
    measured = {"return_mean": "return", "distance_mean": "distance (m)"}
    shown = [name for name in measured if any(has(r, name) for r in curves)]
    figure, axes = plt.subplots(len(shown), sharex=True, figsize=(11, 3.2 * len(shown)), squeeze=False)
    for axis, name in zip(axes[:, 0], shown, strict=True):
        for number, trial in enumerate(dict.fromkeys(r["trial"] for r in curves)):
            points = [(int(r["env_steps"]), float(r[name])) for r in curves if r["trial"] == trial and has(r, name)]
            style = {"color": COLOURS[number % len(COLOURS)], "linestyle": STYLES[number // len(COLOURS) % len(STYLES)]}
            label = f"{trial}: {meaning.get(trial, '').removeprefix(trial).strip(' :=')}"
            axis.plot(*zip(*points, strict=True), **style, linewidth=1.6, marker="o", markersize=3, label=label)
        axis.set_ylabel(f"evaluation {measured[name]}")
        axis.spines[["top", "right"]].set_visible(False)
    axes[0, 0].set_title(f"{env}: settings tried for the cpu preset, mean action", fontsize=9, loc="left")
    axes[0, 0].legend(loc="upper left", bbox_to_anchor=(1.01, 1.0), fontsize=7, frameon=False)
    axes[-1, 0].set_xlabel("environment steps, prefill included")
    figure.tight_layout()
    temporary = folder / f".{env}.tmp.png"
    figure.savefig(temporary, dpi=130)
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
