"""Rows of a CSV by what they have in common, and how many times one model's error another's is.

Errors of different datasets differ by more than those of different models, so means over seeds say less than ratios
within them: pairs of the same dataset and seed, with their uncertainty. An interval of three ratios is wide; where it
holds 1, the seeds do not say which model is better.

Behind them, what is said of returns of several runs: interquartile mean, stratified bootstrap, probability of
improvement and performance profile of Agarwal et al. (2021, arXiv 2108.13264), which agree with rliable 1.2.0; and what
three seeds can carry, Student's interval and Welch's of a difference.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np
from scipy.stats import t as student
from scipy.stats import trim_mean, ttest_ind

Row = dict[str, str]
CONFIDENCE = 0.95
FEWEST_FOR_QUARTERS = 4
"""Of fewer runs the interquartile mean leaves out none."""


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


# --- returns of several runs -----------------------------------------------------------------------------------------

Scores = Sequence[Sequence[float]]
"""For each task the scores of its runs, one per seed; tasks may differ in their number of seeds."""
Estimate = tuple[float, float, float]
"""A statistic, and the bounds of its 95 % interval."""
REPETITIONS = 10_000


def mean_interval(values: Sequence[float]) -> Estimate:
    """Return the mean and Student's interval; NaN bounds for fewer than two."""
    mean = float(np.mean(values))
    if len(values) < 2:
        return mean, float("nan"), float("nan")
    half = student.ppf(0.5 + CONFIDENCE / 2, len(values) - 1) * np.std(values, ddof=1) / np.sqrt(len(values))
    return mean, float(mean - half), float(mean + half)


def difference_interval(over: Sequence[float], under: Sequence[float]) -> Estimate:
    """Return the difference of the means and Welch's interval; NaN bounds where one of the two has fewer than two."""
    difference = float(np.mean(over) - np.mean(under))
    if min(len(over), len(under)) < 2:
        return difference, float("nan"), float("nan")
    bounds = ttest_ind(over, under, equal_var=False).confidence_interval(CONFIDENCE)
    return difference, float(bounds.low), float(bounds.high)


def interquartile_mean(scores: Scores) -> float:
    """Return the mean of the middle half of all runs of all tasks, as ``rliable`` does.

    The number of runs left out at each end is rounded down: of fewer than ``FEWEST_FOR_QUARTERS`` none is, and the
    result is the plain mean.
    """
    return float(trim_mean(np.concatenate([np.asarray(x, np.float64) for x in scores]), 0.25))


def improvement(over: Scores, under: Scores) -> float:
    """Return the probability that a run of ``over`` beats one of ``under`` on the same task, the mean over tasks.

    A tie counts half.
    """

    def of_task(a: Sequence[float], b: Sequence[float]) -> float:
        differences = np.subtract.outer(np.asarray(a, np.float64), np.asarray(b, np.float64))
        return float(((differences > 0) + 0.5 * (differences == 0)).mean())

    return float(np.mean([of_task(a, b) for a, b in zip(over, under, strict=True)]))


def performance_profile(scores: Scores, thresholds: Sequence[float]) -> np.ndarray:
    """Return for each threshold the share of runs above it: the mean over tasks, ``[len(thresholds)]``."""
    return np.mean([[(np.asarray(x) > tau).mean() for tau in thresholds] for x in scores], axis=0)


def bootstrap(statistic: Callable[..., float], *given: Scores, seed: int = 0) -> Estimate:
    """Return ``statistic(*given)`` and the percentile interval of its stratified bootstrap.

    In each of ``REPETITIONS`` the runs of every task are drawn anew with replacement. With three seeds it is narrower
    than the truth (it covers less than it says): Student's and Welch's are the ones to quote then.
    """
    rng = np.random.default_rng(seed)

    def again(scores: Scores) -> list[np.ndarray]:
        return [rng.choice(np.asarray(x, np.float64), len(x)) for x in scores]

    drawn = [statistic(*(again(scores) for scores in given)) for _ in range(REPETITIONS)]
    low, high = np.quantile(drawn, [0.5 - CONFIDENCE / 2, 0.5 + CONFIDENCE / 2])
    return statistic(*given), float(low), float(high)
