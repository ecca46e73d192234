"""How far is each world model from MuJoCo? The tables of the READMEs, from the CSV of a study.

Printed, of ``prediction_error.py``, ``small_data.py`` and ``partial_observation.py``: a Markdown table per task,
horizon and number of transitions, a line per model and rule, by the median of its seeds at the last step. Trained
networks, in variances of the data; means over seeds but for the error at the last step, which has every seed, in order
("-": none).

    python experiments/world_models/error_table.py results/world_models/prediction_error/prediction_error.csv
    python experiments/world_models/error_table.py results/world_models/small_data/small_data.csv --steps 1 5 9
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from experiments.harness import in_venv  # noqa: F401  first of all: it continues in the clone's .venv

# isort: split
import argparse
from collections.abc import Sequence

import numpy as np

from experiments.harness import grid, statistics
from experiments.harness.statistics import Row

TABLE_OF, LINE_OF = ("env", "horizon", "transitions", "preset"), ("model", "variant", "fields")


def shortly(value: float) -> str:
    """Write about two significant digits."""
    if not np.isfinite(value) or value < 0.000095:
        return f"{value:.1e}" if np.isfinite(value) else str(value)
    if value >= 99.5:
        return f"{value:,.0f}"
    return f"{value:.2g}" if value >= 0.0095 else f"{value:.4f}" if value >= 0.00095 else f"{value:.5f}"


def thousands(values: Sequence[float]) -> str:
    """Write ``44 to 47``, in thousands; one number where all round to it."""
    low, high = (f"{of(values) / 1000:.0f}" for of in (min, max))
    return low if low == high else f"{low} to {high}"


def line(name: tuple[str, ...], rows: Sequence[Row], steps: Sequence[int], seeds: Sequence[str]) -> tuple[float, str]:
    """Return what a model is sorted by, and its line."""

    finite = [r for r in rows if r["finite"] != "0"]  # of others it was not measured how far nothing moves

    def mean(measure: str, step: int) -> str:
        values = list(statistics.by_seed(rows if measure != "still" else finite, measure, step=str(step)).values())
        return shortly(float(np.mean(values))) if values else "-"

    last = statistics.by_seed(rows, "mse", step=str(steps[-1]))
    each = ", ".join(shortly(last[s]) if s in last else "-" for s in seeds)
    counts = [thousands([float(r[k]) for r in rows]) for k in ("best_updates", "updates")]
    cells = [" ".join(filter(None, name)), *(mean("mse", k) for k in steps[:-1]), each]
    cells += [mean(measure, steps[-1]) for measure in ("median", "percentile_95", "still")]
    return float(np.median(list(last.values()))), f"| {' | '.join(cells)} | {' of '.join(counts)} |"


def table(rows: Sequence[Row], steps: Sequence[int]) -> list[str]:
    """Return the lines of one table."""
    seeds = sorted({r["seed"] for r in rows}, key=int)
    said = [f"{k} step{'s' * (k > 1)}" for k in steps]
    said[-1] += f": seed{'s' * (len(seeds) > 1)} {', '.join(seeds)}"
    head = ["", *said, f"median, {steps[-1]}", f"95 %, {steps[-1]}", f"nothing moves, {steps[-1]}"]
    head.append("best after updates (thousands)")
    lines = sorted(line(name, own, steps, seeds) for name, own in statistics.groups(rows, LINE_OF).items())
    return [f"| {' | '.join(head)} |", "|---" * len(head) + "|", *(text for _, text in lines)]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("csv", type=Path)
    parser.add_argument("--steps", type=int, nargs="+", help="steps ahead (1, 5 and the last)")
    options = parser.parse_args()
    if not options.csv.is_file():
        parser.error(f"csv is {options.csv}, which there is not; allowed: a study's CSV file")
    rows = [r for r in grid.read_csv(options.csv) if r.get("network") == "trained"]
    if not rows:
        parser.error(f"csv is {options.csv}, which has no trained model; allowed: a study's CSV file")
    for row in grid.read_csv(options.csv):
        if row["outcome"] == "diverged":  # such a row has no measures
            print(f"diverged, in no table: {row['cell']}")
    tables = statistics.groups(rows, TABLE_OF)
    for name in sorted(tables, key=lambda x: (x[0], int(x[1]), int(x[2]), x[3])):
        own = tables[name]
        there = sorted({int(r["step"]) for r in own if r["finite"] != "0"})
        if not there:
            parser.error(f"csv has no finite error of {', '.join(name)}; allowed: one in which a model did not diverge")
        steps = options.steps or sorted({1, 5, there[-1]} & set(there))
        if missing := set(steps) - set(there):
            parser.error(f"--steps has {min(missing)}; allowed: 1 to {there[-1]}")
        print(f"\n{name[0]}, H = {name[1]}, {int(name[2]):,} transitions, preset {name[3]}\n")
        print(*table(own, steps), sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
