"""Rows of a CSV by what they have in common, and how many times one model's error another's is.

Errors of different datasets differ by more than those of different models, so means over seeds say less than ratios
within them: pairs of the same dataset and seed, with their uncertainty. An interval of three ratios is wide; where it
holds 1, the seeds do not say which model is better.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from scipy.stats import t as student

Row = dict[str, str]
CONFIDENCE = 0.95


def groups(rows: Iterable[Row], columns: Sequence[str]) -> dict[tuple[str, ...], list[Row]]:
    """Return rows by the values of these columns, in their order; a column that a row lacks is empty."""
    found: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        found.setdefault(tuple(row.get(c, "") for c in columns), []).append(row)
    return found


def along(rows: Iterable[Row], column: str, measure: str) -> tuple[list[int], list[list[float]]]:
    """Return the whole numbers in ``column``, ascending, and for each of them ``measure`` of all its rows."""
    found: dict[int, list[float]] = {}
    for row in rows:
        found.setdefault(int(row[column]), []).append(float(row[measure]))
    places = sorted(found)
    return places, [found[place] for place in places]


def count_seeds(rows: Iterable[Row]) -> int:
    """Return how many seeds the rows are of."""
    return len({row["seed"] for row in rows})


def by_seed(rows: Iterable[Row], measure: str, **where: str) -> dict[str, float]:
    """Return ``measure`` of the trained rows with these columns by seed; infinite where the imagined is not finite.

    Raises:
      ValueError: a seed has several rows.
    """
    found: dict[str, float] = {}
    for row in rows:
        # What is not finite has one row for all steps.
        asked = {k: v for k, v in where.items() if not (k == "step" and row.get("finite") == "0")}
        if row.get("network") != "trained" or any(row[k] != v for k, v in asked.items()):
            continue
        if row["seed"] in found:
            raise ValueError(f"several rows of seed {row['seed']} with {where}")
        found[row["seed"]] = float("inf") if row.get("finite") == "0" else float(row[measure])
    return found


def ratios(over: dict[str, float], under: dict[str, float]) -> list[float]:
    """Return the ratios of the seeds that both have, in order."""
    return [over[seed] / under[seed] for seed in sorted(over) if seed in under]


def interval(values: Sequence[float]) -> tuple[float, float, float]:
    """Return ``(geometric mean, low, high)``: Student's 95 % of the mean logarithm; NaN bounds for fewer than two."""
    logs = np.log(np.asarray(values, np.float64))
    if logs.size < 2 or not np.isfinite(logs).all():
        return float(np.exp(logs.mean())), float("nan"), float("nan")
    half = student.ppf(0.5 + CONFIDENCE / 2, logs.size - 1) * logs.std(ddof=1) / np.sqrt(logs.size)
    return tuple(float(np.exp(logs.mean() + d)) for d in (0.0, -half, half))


def said(values: Sequence[float]) -> str:
    """Write ratios as ``1.4 (0.9 to 2.1; 1.2, 1.5, 1.4)``: mean, interval, and each; one value alone."""
    if len(values) < 2:
        return f"{values[0]:.2g}" if values else "-"
    mean, low, high = (f"{x:.2g}" for x in interval(values))
    return f"{mean} ({low} to {high}; {', '.join(f'{x:.2g}' for x in values)})"


Pair = tuple[str, dict[str, str], dict[str, str]]
"""A label, the columns of the rows above the line of a ratio, those below it."""


def table(rows: Sequence[Row], pairs: Iterable[Pair], steps: Iterable[int], measure: str) -> list[str]:
    """Return the lines of a table of ratios: a line per pair, a column per step ahead."""
    steps = [str(k) for k in steps]
    lines = [f"| {measure} | " + " | ".join(f"{k} step{'s' * (k != '1')}" for k in steps) + " |"]
    lines += ["|---" * (len(steps) + 1) + "|"]
    for label, over, under in pairs:
        found = [[by_seed(rows, measure, step=k, **columns) for columns in (over, under)] for k in steps]
        if any(a and b for a, b in found):
            lines.append(f"| {label} | " + " | ".join(said(ratios(a, b)) for a, b in found) + " |")
    return lines


def tables(rows: Sequence[Row], pairs: Sequence[Pair], steps: Sequence[int]) -> str:
    """Return the tables of the mean and of the median error, one behind the other."""
    return "\n".join(line for measure in ("mse", "median") for line in (*table(rows, pairs, steps, measure), ""))
