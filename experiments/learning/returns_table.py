"""What do runs return in the end, how much does that depend on the seed, and how sure is a difference?

Print a table of every setting of experiments of ``training_runs.py`` and ``model_free_runs.py``: for each seed the mean
of the last three evaluations, over the seeds mean, standard deviation and Student's 95 % interval of the mean,
interquartile mean, the worst seed and the metres; against one of the settings the difference of the means with Welch's
interval, and the probability that a run is better (empty where they were trained for another number of steps). Runs
nothing: all of it is made from CSV files. Repeated runs ("... again") are left out.

    python experiments/learning/returns_table.py --experiments hopper_long hopper_model_free \\
        --against PPO --out results/learning_curves
    python experiments/learning/returns_table.py --experiments hopper_horizon_20 \\
        --metric error/observation_mse_009 --out results/learning_curves

Another ``--metric`` of the curves is tabled in the same way: the second command tables how wrong imagination is nine
steps ahead.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from experiments.harness import in_venv

# isort: split
import argparse
import math
from collections import Counter
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from experiments.harness import grid, statistics
from experiments.learning.curves_beside import rows_of
from polygrad_jax.config import ConfigError
from polygrad_jax.runs import physics

LAST = 3
"""Evaluations whose mean is a run's return: one alone is one sample of a deterministic gait."""
RETURN, DISTANCE = "return_mean", "distance_mean"


class Run(NamedTuple):
    """What one run came to."""

    seed: str
    value: float  # the mean of its last evaluations
    metres: float  # NaN where the task tells none
    step: int  # of the last of them


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--experiments", nargs="+", required=True, metavar="EXPERIMENT", help="names of CSV files")
    parser.add_argument("--out", type=Path, required=True, help="their folder")
    parser.add_argument("--until", type=int, default=None, metavar="STEP", help="evaluations up to here (all)")
    parser.add_argument("--against", default=None, metavar="SETTING", help="what every other setting is compared with")
    parser.add_argument("--metric", default=RETURN, help="of the curves, to be tabled in place of returns")
    parser.add_argument(physics.ASKED_BY, action="store_true", help="whatever versions of MuJoCo made the curves")
    return parser.parse_args()


def runs_of(rows: Sequence[grid.Row], until: int | None, metric: str = RETURN) -> list[Run]:
    """Return a setting's runs, by seed; one with fewer than three evaluations counts those it has."""
    found = []
    for (seed,), own in sorted(statistics.groups(rows, ["seed"]).items()):
        last = last_values(own, metric, until)
        if last:
            metres = [value for _, value in last_values(own, DISTANCE, until)]
            value = float(np.mean([value for _, value in last]))
            found.append(Run(seed, value, float(np.mean(metres)) if metres else math.nan, last[-1][0]))
    return found


def last_values(rows: Sequence[grid.Row], metric: str, until: int | None) -> list[tuple[int, float]]:
    """Return steps and values of the last evaluations of one run."""
    values = sorted((int(row["env_step"]), float(row["value"])) for row in rows if row["metric"] == metric)
    return [(step, value) for step, value in values if until is None or step <= until][-LAST:]


# --- the table -------------------------------------------------------------------------------------------------------


Number = Callable[[float], str]
"""How a value is written."""


def number_of(metric: str) -> Number:
    """Return how values of a metric are written: returns as whole numbers."""
    return (lambda value: f"{value:,.0f}") if metric == RETURN else (lambda value: f"{value:.2g}")


def table(settings: dict[str, list[Run]], against: str | None, metric: str = RETURN) -> list[str]:
    """Return the lines of a table, a setting each, without columns that none of them fills."""
    number, (least, more) = number_of(metric), ("worst", "better") if metric == RETURN else ("least", "more")
    head = ["setting", "steps", "last three, by seed", "mean ± sd (95 %)", "interquartile mean", least, "metres"]
    if against is not None:
        head += [f"less {against} (95 %)", f"{more} than {against}"]
    lines = []
    for name, runs in settings.items():
        values = [run.value for run in runs]
        cells = [
            name,
            f"{min(run.step for run in runs):,}",
            ", ".join(map(number, values)),
            with_deviation(values, number),
            # Of fewer than four runs it leaves out none: the mean by another name.
            number(statistics.interquartile_mean([values])) if len(values) >= statistics.FEWEST_FOR_QUARTERS else "",
            number(min(values)),
            ", ".join(f"{run.metres:.1f}" for run in runs) if not any(math.isnan(run.metres) for run in runs) else "",
        ]
        if against is not None:
            alike = name != against and as_far(*(min(run.step for run in of) for of in (runs, settings[against])))
            others = [run.value for run in settings[against]]
            cells += compared(values, others, number) if alike else ["", ""]
        lines.append(cells)
    filled = [k for k in range(len(head)) if any(cells[k] for cells in lines)]
    written = [f"| {' | '.join(cells[k] for k in filled)} |" for cells in (head, *lines)]
    return [written[0], "|---" * len(filled) + "|", *written[1:]]


def with_deviation(values: list[float], number: Number) -> str:
    """Write ``1,200 ± 90 (900 to 1,500)``: mean, standard deviation over seeds, interval of the mean."""
    mean, interval = (estimate(statistics.mean_interval(values), number) + " ").split(" ", 1)
    return f"{mean} ± {number(np.std(values, ddof=1))} {interval}".strip() if len(values) > 1 else mean


def as_far(steps: int, other_steps: int) -> bool:
    """Return whether both are as many, but for the interval between evaluations."""
    return abs(steps - other_steps) <= 0.05 * other_steps


def nothing_until(until: int | None, rows: Sequence[grid.Row], metric: str = RETURN) -> ConfigError:
    """Say that there is no evaluation, or none up to that step."""
    evaluated = [int(row["env_step"]) for row in rows if row["metric"] == metric]
    if not evaluated:
        return ConfigError(f"--experiments have no {metric}; allowed: experiments with evaluations")
    first = min(evaluated)
    return ConfigError(f"--until is {until}; allowed: from {first:,} on, where the first evaluation is")


def compared(values: list[float], others: list[float], number: Number) -> list[str]:
    """Return how much more these are, and how often one of them is more."""
    share = statistics.improvement([values], [others])
    return [estimate(statistics.difference_interval(values, others), number), f"{share:.2f}"]


def estimate(of: statistics.Estimate, number: Number) -> str:
    """Write ``1,200 (900 to 1,500)``; the value alone where there is no interval."""
    value, low, high = of
    return number(value) if math.isnan(low) else f"{number(value)} ({number(low)} to {number(high)})"


def read_experiments(options: argparse.Namespace) -> list[grid.Row]:
    """Return the curves of all ``--experiments``, without repeated runs.

    Raises:
      ConfigError: no such experiment, one without an evaluation, several physics, or a run that two of them have.
    """
    of_each = {name: rows_of(options.out, name, "--experiments") for name in options.experiments}
    used = [use for name, own in of_each.items() for use in grid.used(own, Path(f"{name}.csv"))]
    physics.refuse_mixed(used, options.mixed_physics)
    named = [r for own in of_each.values() for r in {(row["exp_name"], row["env_name"], row["seed"]) for row in own}]
    if twice := [run for run, count in sorted(Counter(named).items()) if count > 1]:
        name, task, seed = twice[0]
        raise ConfigError(f"--experiments have {name}, seed {seed} on {task} more than once; allowed: different runs")
    return [row for own in of_each.values() for row in own]


def settings_of(options: argparse.Namespace) -> dict[str, list[Run]]:
    """Return the runs of every setting of the experiments.

    Raises:
      ConfigError: no such experiment or setting, or experiments of several tasks or of several physics.
    """
    rows = read_experiments(options)
    tasks = list(dict.fromkeys(row["env_name"] for row in rows))
    if len(tasks) > 1:
        raise ConfigError(f"--experiments are of {', '.join(tasks)}; allowed: experiments on one task")
    metrics = sorted({row["metric"] for row in rows})
    if options.metric not in metrics:
        raise ConfigError(f"--metric is {options.metric}; allowed: {', '.join(metrics)}")
    of_settings = statistics.groups(rows, ["exp_name"]).items()
    by_name = {name: runs_of(own, options.until, options.metric) for (name,), own in of_settings}
    settings = {name: runs for name, runs in by_name.items() if runs}
    if not settings:
        raise nothing_until(options.until, rows, options.metric)
    if options.against is not None and options.against not in settings:
        raise ConfigError(f"--against is {options.against}; allowed: {', '.join(settings)}")
    return settings


def main() -> int:
    options = parse()
    try:
        print("\n".join(table(settings_of(options), options.against, options.metric)))
    except ConfigError as error:
        print(f"returns_table: {error}", file=sys.stderr)
        return in_venv.BAD_INPUT
    return 0


if __name__ == "__main__":
    sys.exit(main())
