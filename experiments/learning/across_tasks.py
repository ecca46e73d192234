"""How do algorithms stand to each other over all tasks, trained for the same number of steps on each?

Print a table of every setting that the experiments of ``training_runs.py`` and ``model_free_runs.py`` have on all of
their tasks: for each task the mean over seeds of the last three evaluations, and over the tasks interquartile mean and
probability of improvement with their stratified bootstrap (Agarwal et al. 2021, arXiv 2108.13264). Draw
``across_tasks.png``, performance profiles and interquartile means. Returns of different tasks become comparable when
divided by the mean of ``--against`` there, which is taken as given: 1 is as good. So that all tasks weigh the same,
the statistics over tasks use the seeds that every algorithm has on every task. Runs nothing: all of it is made
from CSV files.

    python experiments/learning/across_tasks.py --against PolyGRAD --out results/learning_curves \\
        --experiments hopper_long walker2d_long halfcheetah_long \\
        hopper_model_free walker2d_model_free halfcheetah_model_free

Settings of one name on several tasks are one algorithm. Repeated runs ("... again") are left out.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from experiments.harness import in_venv

# isort: split
import argparse
import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from experiments.harness import figures, statistics
from experiments.learning import returns_table
from polygrad_jax.config import ConfigError
from polygrad_jax.runs import physics

Returns = dict[str, list[returns_table.Run]]
"""An algorithm's runs by task."""
POINTS = 400
"""Of a performance profile."""


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--experiments", nargs="+", required=True, metavar="EXPERIMENT", help="names of CSV files")
    parser.add_argument("--against", required=True, metavar="SETTING", help="whose mean return of a task is its 1")
    parser.add_argument("--out", type=Path, required=True, help="folder of the CSV files and the figure")
    parser.add_argument("--until", type=int, default=None, metavar="STEP", help="evaluations up to here (all)")
    parser.add_argument(physics.ASKED_BY, action="store_true", help="whatever versions of MuJoCo made the curves")
    return parser.parse_args()


def algorithms_of(options: argparse.Namespace) -> dict[str, Returns]:
    """Return the settings that all tasks have, the one of ``--against`` first.

    Raises:
      ConfigError: no such experiment or setting, several physics, a run twice, or runs of one task of different
        lengths.
    """
    rows = returns_table.read_experiments(options)
    tasks = list(dict.fromkeys(row["env_name"] for row in rows))
    found: dict[str, Returns] = {}
    for (name, task), own in statistics.groups(rows, ["exp_name", "env_name"]).items():
        if runs := returns_table.runs_of(own, options.until):
            found.setdefault(name, {})[task] = runs
    if not found:
        raise returns_table.nothing_until(options.until, rows)
    everywhere = {name: {task: of[task] for task in tasks} for name, of in found.items() if len(of) == len(tasks)}
    if options.against not in everywhere:
        allowed = ", ".join(everywhere) or "a setting that all tasks have (none)"
        raise ConfigError(f"--against is {options.against}; allowed: {allowed}")
    for task in tasks:
        refuse_other_lengths(task, {name: [run.step for run in of[task]] for name, of in everywhere.items()})
    return {options.against: everywhere.pop(options.against)} | everywhere


def refuse_other_lengths(task: str, steps: dict[str, list[int]]) -> None:
    """Raise ConfigError where runs on one task were trained for different numbers of steps."""
    shortest, longest = min(steps, key=lambda name: min(steps[name])), max(steps, key=lambda name: max(steps[name]))
    least, most = min(steps[shortest]), max(steps[longest])
    if not returns_table.as_far(least, most):
        raise ConfigError(
            f"on {task} a run of {shortest} has {least:,} steps and one of {longest} {most:,}; allowed: equally many "
            "(--until STEP)"
        )


def of_common_seeds(algorithms: dict[str, Returns]) -> dict[str, Returns]:
    """Return the runs of the seeds that every algorithm has on every task.

    Raises:
      ConfigError: there is none.
    """
    every = [runs for returns in algorithms.values() for runs in returns.values()]
    common = set.intersection(*({run.seed for run in runs} for runs in every))
    if not common:
        raise ConfigError("--experiments have no seed in common; allowed: one or more that every run has")
    return {
        name: {task: [run for run in runs if run.seed in common] for task, runs in returns.items()}
        for name, returns in algorithms.items()
    }


def relative(returns: Returns, reference: Returns) -> statistics.Scores:
    """Return for each task the runs' returns over the reference's mean return.

    Raises:
      ConfigError: that mean is not above 0, so that it cannot be the measure.
    """
    means = {task: float(np.mean([run.value for run in runs])) for task, runs in reference.items()}
    if low := [f"{mean:.0f} on {task}" for task, mean in means.items() if mean <= 0]:
        raise ConfigError(f"--against returns {low[0]}; allowed: a setting with a positive mean on every task")
    return [[run.value / means[task] for run in returns[task]] for task in reference]


class Standing(NamedTuple):
    """How an algorithm stands over all tasks."""

    scores: statistics.Scores  # over the reference's mean, for each task
    middle: statistics.Estimate  # interquartile mean of all of them
    below: statistics.Estimate | None  # how probably a run of the reference is better; None of the reference itself


def standings(algorithms: dict[str, Returns]) -> dict[str, Standing]:
    """Return how every algorithm stands to the first, the best of the others next.

    Raises:
      ConfigError: the first has a mean return of 0 or less, or no seed is in common.
    """
    (first, reference), *_ = algorithms.items()
    common = of_common_seeds(algorithms)
    of_first = relative(common[first], reference)
    found = {}
    for name, returns in common.items():
        scores = relative(returns, reference)
        below = statistics.bootstrap(statistics.improvement, of_first, scores) if name != first else None
        found[name] = Standing(scores, statistics.bootstrap(statistics.interquartile_mean, scores), below)
    return dict(sorted(found.items(), key=lambda item: (item[0] != first, -item[1].middle[0])))


# --- table and figure ------------------------------------------------------------------------------------------------


def table(algorithms: dict[str, Returns], standing: dict[str, Standing]) -> list[str]:
    """Return the lines of a table, an algorithm each."""
    (first, reference), *_ = algorithms.items()
    head = ["algorithm", *reference, f"interquartile mean (95 %), {first}'s mean being 1", f"{first} is better (95 %)"]
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    whole, hundredth = returns_table.number_of(returns_table.RETURN), lambda value: f"{value:.2f}"
    for name, (_, middle, below) in standing.items():
        returns = algorithms[name].values()
        cells = [returns_table.with_deviation([run.value for run in runs], whole) for runs in returns]
        cells += [returns_table.estimate(of, hundredth) if of else "" for of in (middle, below)]
        lines.append(f"| {' | '.join([name, *cells])} |")
    return lines


def draw(tasks: Sequence[str], standing: dict[str, Standing], path: Path) -> None:
    """Draw the algorithms' performance profiles, and their interquartile means with intervals."""
    first, *_ = standing
    every = np.concatenate([run for of in standing.values() for run in of.scores])
    thresholds = np.linspace(min(0.0, every.min()) - 0.02, every.max() + 0.02, POINTS)
    with figures.figure(path, columns=2, size=(11.0, 4.4)) as (figure, (axes,)):
        for place, own in enumerate(standing.values()):
            colour = figures.PALETTE[place % len(figures.PALETTE)]
            axes[0].plot(thresholds, statistics.performance_profile(own.scores, thresholds), color=colour)
            draw_estimate(axes[1], place, own.middle, colour)
        axes[0].set(xlabel=f"return over the mean of {first}", ylabel="share of runs above it, mean over tasks")
        axes[1].set_yticks(range(len(standing)), list(standing), fontsize=8)
        for label, colour in zip(axes[1].get_yticklabels(), itertools.cycle(figures.PALETTE), strict=False):
            label.set_color(colour)  # the legend of both
        axes[1].invert_yaxis()
        axes[1].set(xlabel="interquartile mean of all runs, 95 % of the bootstrap")
        seeds = len(standing[first].scores[0])
        title = f"{', '.join(tasks)}: last evaluations over the mean of {first}, {seeds} seeds each"
        figure.suptitle(title, fontsize=9)


def draw_estimate(axis: Any, place: int, of: statistics.Estimate, colour: str) -> None:
    """Draw an estimate as a point, its interval as a bar, in a line of its own."""
    middle, low, high = of
    axis.plot([low, high], [place, place], color=colour, linewidth=6, alpha=0.35, solid_capstyle="butt")
    axis.plot([middle], [place], "o", color=colour, markersize=5)


def main() -> int:
    options = parse()
    try:
        algorithms = algorithms_of(options)
        standing = standings(algorithms)
        print("\n".join(table(algorithms, standing)))
        draw(list(algorithms[options.against]), standing, options.out / "across_tasks.png")
    except ConfigError as error:
        print(f"across_tasks: {error}", file=sys.stderr)
        return in_venv.BAD_INPUT
    return 0


if __name__ == "__main__":
    sys.exit(main())
