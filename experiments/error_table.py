"""The tables of the READMEs: how far is each world model from MuJoCo, from the CSV of a study of prediction errors?

Of ``prediction_error.py``, ``small_data.py`` and ``partial_observation.py``: a Markdown table per task, horizon and
number of transitions, a line per model and rule, by the median of its seeds at the last step. Trained networks, in
variances of the data; means over seeds but for the last step, which has every seed, in order.

    python experiments/error_table.py results/prediction_error/prediction_error.csv
    python experiments/error_table.py results/small_data/small_data.csv --steps 1 5 9
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import sweep

Row = dict[str, str]
TABLE_OF, LINE_OF = ("env", "horizon", "transitions"), ("model", "variant", "fields")


def shortly(value: float) -> str:
    """Two significant digits, never with an exponent for what is small."""
    if not np.isfinite(value):
        return str(value)
    return f"{value:.2g}" if value >= 0.0095 else f"{value:.4f}" if value >= 0.00095 else f"{value:.5f}"


def thousands(values: Sequence[float]) -> str:
    """``44 to 47``, in thousands; one number where all round to it."""
    low, high = (f"{of(values) / 1000:.0f}" for of in (min, max))
    return low if low == high else f"{low} to {high}"


def groups(rows: Sequence[Row], columns: Sequence[str]) -> dict[tuple[str, ...], list[Row]]:
    """Rows by the values of these columns, in their order."""
    found: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        found.setdefault(tuple(row.get(c, "") for c in columns), []).append(row)
    return found


def column_of(rows: Sequence[Row]) -> Callable[[str, int], list[float]]:
    """``(measure, step)`` to the values of the seeds, in order of seeds; infinite of what was not finite."""

    def column(measure: str, step: int) -> list[float]:
        asked = [r for r in rows if r["step"] == str(step) or r["finite"] == "0"]
        asked.sort(key=lambda r: int(r["seed"]))
        return [float("inf") if r["finite"] == "0" else float(r[measure]) for r in asked]

    return column


def line(name: tuple[str, ...], rows: Sequence[Row], steps: Sequence[int]) -> tuple[float, str]:
    """What a model is sorted by, and its line."""
    column, last = column_of(rows), steps[-1]
    means = [shortly(float(np.mean(column("mse", k)))) for k in steps[:-1]]
    each = ", ".join(shortly(x) for x in column("mse", last))
    ranks = [shortly(float(np.mean(column(measure, last)))) for measure in ("median", "percentile_95")]
    still = shortly(float(np.mean(column("still", last))))
    counts = [thousands([float(r[k]) for r in rows]) for k in ("best_updates", "updates")]
    cells = [" ".join(filter(None, name)), *means, each, *ranks, still, " of ".join(counts)]
    return float(np.median(column("mse", last))), f"| {' | '.join(cells)} |"


def table(rows: Sequence[Row], steps: Sequence[int]) -> list[str]:
    """The lines of one table."""
    seeds = ", ".join(sorted({r["seed"] for r in rows}, key=int))
    said = [f"{k} step{'s' * (k > 1)}" for k in steps]
    said[-1] += f": seed{'s' * (', ' in seeds)} {seeds}"
    head = ["", *said, f"median, {steps[-1]}", f"95 %, {steps[-1]}", f"nothing moves, {steps[-1]}"]
    head.append("best after updates (thousands)")
    lines = sorted(line(name, own, steps) for name, own in groups(rows, LINE_OF).items())
    return [f"| {' | '.join(head)} |", "|---" * len(head) + "|", *(text for _, text in lines)]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("csv", type=Path)
    parser.add_argument("--steps", type=int, nargs="+", help="steps ahead (1, 5 and the last)")
    options = parser.parse_args()
    if not options.csv.is_file():
        parser.error(f"csv is {options.csv}, which there is not; allowed: a study's CSV file")
    rows = [r for r in sweep.read_csv(options.csv) if r.get("network") == "trained"]
    if not rows:
        parser.error(f"csv is {options.csv}, which has no trained model; allowed: a study's CSV file")
    for name, own in groups(rows, TABLE_OF).items():
        there = sorted({int(r["step"]) for r in own if r["finite"] != "0"})
        steps = options.steps or sorted({1, 5, there[-1]} & set(there))
        if missing := set(steps) - set(there):
            parser.error(f"--steps has {min(missing)}; allowed: 1 to {there[-1]}")
        print(f"\n{name[0]}, H = {name[1]}, {int(name[2]):,} transitions\n", *table(own, steps), sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
