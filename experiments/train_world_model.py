"""Trains any world model on recorded transitions, to the best prediction five steps ahead (paper, Appendix C.1).

    polygrad dataset --run runs/hopper-cpu-seed0
    python experiments/train_world_model.py --dataset datasets/polygrad/hopper/cpu-seed0-v0 --world-model polygrad \
        --preset cpu --seconds 1800
    python experiments/train_world_model.py --dataset runs/hopper-cpu-seed0 --updates 100000 --denoiser.width 512

The dataset is a folder that ``polygrad dataset`` wrote or of a run, the folder or the id of a local Minari dataset, or
the official code's ``step-*-dataset.npy`` (``polygrad_jax/data/pickled_arrays.py`` says how it is read). Every
``--evaluate-every-updates`` trajectories from 500 stored states are imagined under the dataset's policy and replayed in
MuJoCo; ``best.npz`` has the model of the least squared error at five steps, and the training stops when that has not
got better for ``--patience`` evaluations, or when the budget is spent: ``--updates`` gradient steps, ``--seconds`` of
them (compiling, judging and saving are reported, not counted), or both; the paper's million steps without either.

``--out`` is the folder (``runs/<dataset>-<world model>-<preset>-seed<seed>``); the same command goes on there after
Ctrl-C, SIGTERM or a kill. All further options are fields of the configuration, as for ``polygrad train``.
"""

from __future__ import annotations

import argparse
import shlex
import signal
import sys
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

from polygrad_jax import cli
from polygrad_jax import config as configs
from polygrad_jax.config import Config, ConfigError

DELTA_LR = 3e-2
"""Of log delta where a model is trained alone (official code): it must settle within an evaluation."""


class Parser(argparse.ArgumentParser):
    """argparse, but its complaint is one line."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(message)


def parser() -> Parser:
    """The options that are not fields of the configuration."""
    p = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    p.add_argument("--dataset", required=True)
    p.add_argument("--preset", default=None, help="of the world model (cpu, or paper where JAX finds an accelerator)")
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--out", type=Path, default=None, metavar="RUNFOLDER")
    p.add_argument("--updates", type=int, default=None)
    p.add_argument("--seconds", type=float, default=None)
    p.add_argument("--no-early-stopping", dest="early_stopping", action="store_false")
    p.add_argument("--patience", type=int, default=10)
    p.add_argument("--evaluate-every-updates", type=int, default=5_000)
    p.add_argument("--contexts", type=int, default=500)
    p.add_argument("--log-every-updates", type=int, default=500)
    p.add_argument("--checkpoint-every-seconds", type=float, default=300.0)
    return p


def config_for(options: argparse.Namespace, fields: list[str], env: configs.EnvConfig | None) -> Config:
    """The preset for the dataset's task, then the fields of the command line."""
    env = env or configs.EnvConfig(name="recorded")
    preset = options.preset or cli._choose_preset()[0]
    base = replace(configs.preset(preset, env.name), env=env, seed=options.seed)
    base = replace(base, guidance=replace(base.guidance, delta_lr=DELTA_LR))
    return configs.validate(cli.override(base, fields))


def train(options: argparse.Namespace, fields: list[str], arguments: list[str]) -> int:
    """Opens the data, trains, and says what came of it; the exit code."""
    from polygrad_jax.training.fitting import Schedule, Training, open_data
    from polygrad_jax.training.loop import NonFiniteError
    from polygrad_jax.runs.console import clock_time

    names = Schedule.__dataclass_fields__
    schedule = Schedule(**{name: getattr(options, name) for name in names}).checked()
    cli._prepare_jax(cli.override(configs.smoke("recorded"), fields))  # choosing a preset starts jax
    config_for(options, fields, None)  # a mistake is reported before the data are read
    data = open_data(options.dataset)
    config = config_for(options, fields, data.env)
    name = f"{data.name}-{config.world_model}-{config.preset}-seed{config.seed}"
    folder = options.out or Path("runs") / name
    print(f"{config.world_model} on {data.name}: {len(data.transitions):,} transitions; folder {folder}", flush=True)
    try:
        outcome = Training(data, config, folder, schedule).run()
    except NonFiniteError as error:
        print(f"train_world_model: {error}", file=sys.stderr)
        return cli.DIVERGED
    at = outcome.at
    print(
        f"{at.updates:,} updates in {clock_time(at.training_seconds)} of training; beside it "
        f"{clock_time(at.compiling_seconds)} compiling, {clock_time(at.judging_seconds)} judging"
    )
    if at.best_error is not None:
        print(f"best five-step error {at.best_error:.4g} after {at.best_updates:,} updates: {folder / 'best.npz'}")
    if outcome.stopped_by is None:
        print(f"finished: {outcome.why}")
        return 0
    words = arguments if options.out else [*arguments, "--out", str(folder)]
    print(f"stopped by {outcome.stopped_by}; all is saved. Go on with:\n  {shlex.join([sys.argv[0], *words])}")
    return 128 + signal.Signals[outcome.stopped_by]


def main(arguments: list[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    try:
        options, fields = parser().parse_known_args(arguments)
        return train(options, fields, arguments)
    except ConfigError as error:
        print(f"train_world_model: {error}", file=sys.stderr)
        return cli.BAD_INPUT
    except KeyboardInterrupt:
        print("train_world_model: interrupted before it could save; the last checkpoint is kept", file=sys.stderr)
        return 128 + signal.SIGINT


if __name__ == "__main__":
    sys.exit(main())
