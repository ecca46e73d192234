"""How many times one model's error another's is: pairs of the same dataset and seed, with their uncertainty.

Errors of different datasets differ by more than those of different models, so that means over seeds say less than
ratios within them. An interval of three ratios is wide; where it holds 1, the seeds do not say which model is better.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from scipy.stats import t as student

Row = dict[str, str]
CONFIDENCE = 0.95


def by_seed(rows: Iterable[Row], measure: str, **where: str) -> dict[str, float]:
    """``measure`` of the trained rows with these columns, by seed; infinite where what was imagined is not finite.

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
    """Of the seeds that both have, in order."""
    return [over[seed] / under[seed] for seed in sorted(over) if seed in under]


def interval(values: Sequence[float]) -> tuple[float, float, float]:
    """``(geometric mean, low, high)``: Student's 95 % of the mean logarithm; NaN bounds for fewer than two values."""
    logs = np.log(np.asarray(values, np.float64))
    if logs.size < 2 or not np.isfinite(logs).all():
        return float(np.exp(logs.mean())), float("nan"), float("nan")
    half = student.ppf(0.5 + CONFIDENCE / 2, logs.size - 1) * logs.std(ddof=1) / np.sqrt(logs.size)
    return tuple(float(np.exp(logs.mean() + d)) for d in (0.0, -half, half))


def said(values: Sequence[float]) -> str:
    """``1.4 (0.9 to 2.1; 1.2, 1.5, 1.4)``: mean, interval, and each; of one value that alone."""
    if len(values) < 2:
        return f"{values[0]:.2g}" if values else "-"
    mean, low, high = (f"{x:.2g}" for x in interval(values))
    return f"{mean} ({low} to {high}; {', '.join(f'{x:.2g}' for x in values)})"


def table(
    rows: Sequence[Row],
    pairs: Iterable[tuple[str, dict[str, str], dict[str, str]]],
    steps: Iterable[int],
    measure: str,
) -> list[str]:
    """Lines of a table: a pair ``(label, columns of one, columns of the other)`` each, a column per step ahead."""
    steps = [str(k) for k in steps]
    lines = [f"| {measure} | " + " | ".join(f"{k} step{'s' * (k != '1')}" for k in steps) + " |"]
    lines += ["|---" * (len(steps) + 1) + "|"]
    for label, over, under in pairs:
        found = [[by_seed(rows, measure, step=k, **columns) for columns in (over, under)] for k in steps]
        if any(a and b for a, b in found):
            lines.append(f"| {label} | " + " | ".join(said(ratios(a, b)) for a, b in found) + " |")
    return lines
