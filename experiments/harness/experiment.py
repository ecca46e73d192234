"""Run one experiment from the command line: the grid of its cells, its CSV, its figure, its exit codes.

An experiment is a script that says what is varied (``cells``), what is measured in one of them (``measure``) and how
the CSV is drawn (``draw``). A cell is the same script with the same options, the cell's name, and the file for its
rows, so that every cell has a process of its own and nothing is passed from one to another but the command line.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments.harness import grid
from polygrad_jax import cli
from polygrad_jax.config import ConfigError
from polygrad_jax.runs.run_folder import write_text_atomically
from polygrad_jax.training.step import NonFiniteError


def _nothing(*_: Any) -> None:
    pass


@dataclass(frozen=True)
class Experiment:
    """What one script asks, and how it finds the answer."""

    script: Path
    """Its ``__file__``."""
    question: str
    """Its docstring, for ``--help``."""
    draw: Callable[[Path], None]
    """Draws the figures and prints the tables, of the folder, from the CSV alone."""
    cells: Callable[[argparse.Namespace], Mapping[str, Any]] | None = None
    """What is varied: by the name of a cell, what :attr:`measure` needs to know of it. None: there is no grid."""
    measure: Callable[[argparse.Namespace, Any], Iterable[grid.Row]] = _nothing
    """The rows of one cell, without the columns that describe the machine."""
    add_arguments: Callable[[argparse.ArgumentParser], None] = _nothing
    labels: Callable[[Any], grid.Row] = lambda _: {}
    """Columns of a cell that it has even if it diverged."""
    gather: Callable[[argparse.Namespace], None] = _nothing
    """What is written beside the CSV after the grid was run; where there is no grid, the CSV itself."""

    csv: str = ""
    """The name of the CSV in ``--out``, without its suffix; the script's if left out."""

    def parser(self) -> argparse.ArgumentParser:
        """Return the command line of the experiment and of its cells."""
        raw = argparse.RawDescriptionHelpFormatter
        parser = argparse.ArgumentParser(prog=self.script.name, description=self.question, formatter_class=raw)
        if self.cells is None:
            grid.add_output_arguments(parser)
        else:
            grid.add_arguments(parser)
            parser.add_argument("--cell", help=argparse.SUPPRESS)
            parser.add_argument("--rows", type=Path, help=argparse.SUPPRESS)
        self.add_arguments(parser)
        return parser


def run(experiment: Experiment, arguments: list[str] | None = None) -> int:
    """Run what is missing of the grid (or one cell of it) and draw; return the exit code.

    130 where it was interrupted, 1 where a cell failed, 2 for bad input, and, of a cell, 3 where it diverged.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    options = experiment.parser().parse_args(words)
    try:
        if getattr(options, "cell", None) is not None:
            _run_cell(experiment, options)
            return 0
        code, path = 0, options.out / f"{experiment.csv or experiment.script.stem}.csv"
        if options.figure_only and not path.is_file():
            raise ConfigError(f"--out is {options.out}; allowed with --figure-only: a folder with a {path.name}")
        if not options.figure_only:
            if experiment.cells is not None:
                code = grid.run(_cells_of(experiment, options, words), path, options)
            if code != grid.INTERRUPTED:
                experiment.gather(options)
        if path.exists():
            experiment.draw(options.out)
        return code
    except ConfigError as error:
        print(f"{experiment.script.stem}: {error}", file=sys.stderr)
        return cli.BAD_INPUT
    except NonFiniteError as error:
        print(f"{experiment.script.stem}: {error}", file=sys.stderr)
        return cli.DIVERGED


def _cells_of(experiment: Experiment, options: argparse.Namespace, words: list[str]) -> list[grid.Cell]:
    """Return the cells as commands."""
    command = (sys.executable, str(experiment.script.resolve()), *words, "--rows", "{rows}", "--cell")
    return [
        grid.Cell(name, (*command, name), tuple(experiment.labels(varied).items()))
        for name, varied in experiment.cells(options).items()
    ]


def _run_cell(experiment: Experiment, options: argparse.Namespace) -> None:
    """Measure one cell; each row is printed as it is found, and all are written at the end."""
    found, about = [], grid.machine()
    for row in experiment.measure(options, experiment.cells(options)[options.cell]):
        found.append(grid.rounded(row) | about)
        print(json.dumps(found[-1], default=float), flush=True)
    write_text_atomically(options.rows, json.dumps(found, default=float))
