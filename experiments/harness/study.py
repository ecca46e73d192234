"""Compare world models on recorded data: train each for the same seconds, measure it against MuJoCo, keep one CSV.

The questions of ``experiments/world_models/`` are thin files that name their models and their figure; what they share
is here. Every model is trained on the same recorded transitions for the same seconds of gradient steps, to its best
five-step error. Then 500 trajectories are imagined under the dataset's policy from states of episodes that no model
has learnt from (a tenth of the dataset, the same for all), and MuJoCo replays their actions from the stored simulator
states, past terminations (``error_by_step.py``).

The columns, one row per step ahead:

- ``mse_raw`` and ``mse``: squared error, raw and in units of each observation's variance in all of the dataset (the
  raw one is mostly velocities), averaged over dimensions and trajectories; ``mse_positions``: over the observations
  that ``--env.hide-velocities`` leaves; ``median``, ``percentile_95`` and ``worst``: over trajectories, of which few
  can be all of a mean; ``still``: the error of predicting that nothing moves; ``reward_mse``: of the step that leads
  there. These count a trajectory until MuJoCo ends it (``alive``: the share that does), since what follows is in no
  data. The paper goes on past the end, and so does ``mse_raw_past_ends``; there a model that predicts ends loses to
  one that does not, which is why nothing is chosen by it.
- ``ends_imagined`` and ``ends_real``: shares of trajectories that end in imagination and in MuJoCo;
  ``terminal_precision``: how many of the first come within a step of a real end; ``terminal_recall``: how many of the
  second come within a step of an imagined one.
- ``variant``: the guidance rule where there is one, or the way of ``Study.ways``; ``told``: the same denoiser given the
  actions of ``relaxed`` from the start, which separates its own errors from guidance's. ``policy_std``: the policy's
  std, raw, where it is not its own.
- ``network``: ``trained`` (the best judged), ``newest`` (``--newest``: the last) or ``untrained``, the same before any
  update, which every measure must tell from the others. ``finite`` 0: it imagined numbers that are not finite.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import itertools
import re
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax

from experiments.harness import experiment
from experiments.harness.error_by_step import Measuring
from experiments.harness.grid import Row
from experiments.harness.recorded_episodes import ALL, UNIFORM, drawn, held_out
from polygrad_jax import cli
from polygrad_jax import config as configs
from polygrad_jax.analysis.opened_run import open_trained
from polygrad_jax.config import Config, ConfigError
from polygrad_jax.runs.recorded_data import RecordedData, open_data
from polygrad_jax.training.fitting import Schedule, Training

STEPWISE_HORIZON = 10
"""Of the training of models that learn single steps: that of imagination, with which none of them learns."""
DELTA_LR = 3e-2
"""Of log delta where a model is trained alone (official code)."""
TOLD = "told"
"""The variant that is given the actions of ``relaxed`` from the start."""
RECORDED_NAMES = {"cpu_a2c": "cpu", "cpu": "cpu_value_gradient"}
"""Presets by the name that cells have: those recorded when ``cpu_a2c`` was called ``cpu`` are still found."""
Fields = tuple[str, ...]
"""Fields of a configuration as on the command line."""


@dataclasses.dataclass(frozen=True)
class Study:
    """One question about world models on recorded data."""

    script: Path
    question: str
    models: dict[str, Fields]
    rules: dict[str, dict[str, Any]]
    """Fields of the guidance under which a trained model of PolyGRAD imagines, by the name of the variant."""
    draw: Callable[[Path], None]
    """Draws, of the folder, the figure from the CSV alone."""
    ways: dict[str, dict[str, Fields]] = dataclasses.field(default_factory=dict)
    """Fields under which a trained model imagines, by the model and the name of the variant. Of models without any,
    :attr:`rules` tell. A world model that is distilled may imagine as its teacher, ``--world-model autoregressive``."""
    stds: tuple[float | None, ...] = (None,)
    """Of the policy under which models imagine, in raw actions; None: its own."""
    prepare: Callable[[str], RecordedData] = open_data
    transitions: tuple[int, ...] = (ALL,)
    """How many are learnt from, unless the command line says otherwise."""
    columns: Callable[[str], Row] = lambda _: {}
    """More columns of every row, by the dataset's name."""
    judged_apart: float = 0.0
    """Share of what is learnt from, in whole episodes, that is kept for the five-step error; 0: it is the same data."""


@dataclasses.dataclass(frozen=True)
class Varied:
    """What tells one cell of a study from the others."""

    model: str
    seed: int
    horizon: int
    count: int
    folder: Path
    """Of the training, which cells of several horizons may share."""

    def labels(self) -> Row:
        """Return the columns that also a diverged cell has."""
        return {"model": self.model, "seed": self.seed, "horizon": self.horizon, "transitions": self.count}


def run(study: Study, arguments: list[str] | None = None) -> int:
    """Run what is missing of a study's grid, or one of its cells, and draw; return the exit code."""
    of_study = (functools.partial(f, study) for f in (cells_of, rows_of, add_arguments))
    cells, measure, add = of_study
    one = experiment.Experiment(study.script, study.question, study.draw, cells, measure, add, Varied.labels)
    return experiment.run(one, arguments)


def add_arguments(study: Study, parser: argparse.ArgumentParser) -> None:
    """Add the options of a study."""
    parser.add_argument("--dataset", help="folder of a run or of a dataset, with simulator states and a policy")
    parser.add_argument("--models", nargs="+", choices=list(study.models), default=list(study.models))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--horizons", type=int, nargs="+", default=[10])
    parser.add_argument("--transitions", type=int, nargs="+", default=list(study.transitions), help="trained on")
    parser.add_argument("--seconds", type=float, default=600.0, help="of gradient steps, for every model")
    parser.add_argument("--evaluate-every", type=int, default=2_000, help="updates between two five-step errors")
    parser.add_argument("--preset", default="cpu_a2c")
    parser.add_argument("--fields", default="", help='fields of every config, as in "--denoiser.width 512"')
    parser.add_argument("--newest", action="store_true", help="measure the last parameters, not the best judged")
    parser.add_argument("--trainings", type=Path, default=None, help="folders of the trainings (runs/<script>-<out>)")


def cells_of(study: Study, options: argparse.Namespace) -> dict[str, Varied]:
    """Return the grid: horizon, model, seed, transitions.

    Raises:
      ConfigError: no dataset is named.
    """
    if options.dataset is None:
        raise ConfigError("--dataset is missing; allowed: the folder of a run or of a dataset")
    trainings = options.trainings or Path("runs") / f"{study.script.stem}-{options.out.name}"
    where, cells = Path(options.dataset).resolve(), {}
    # Horizons outermost: those that share a training are far apart, since a second one would find its folder locked.
    for horizon, model, seed, count in itertools.product(
        options.horizons, options.models, options.seeds, options.transitions
    ):
        size = "all" if count == ALL else str(count)
        preset = RECORDED_NAMES.get(options.preset, options.preset)
        asked = f"{where.parent.name}-{where.name}-{model}-{preset}-{options.seconds:g}s{options.fields}"
        asked = re.sub(r"[^A-Za-z0-9.]+", "-", asked)
        trained = f"{asked}-h{horizon_of_training(study.models[model], horizon)}-n{size}-seed{seed}"
        name = f"{asked}-h{horizon}-n{size}-seed{seed}" + ("-newest" if options.newest else "")
        cells[name] = Varied(model, seed, horizon, count, trainings / trained)
    return cells


def horizon_of_training(fields: Fields, horizon: int) -> int:
    """Return the horizon to train with: what learns single steps is trained once for all horizons."""
    return horizon if fields[fields.index("--world-model") + 1] == "polygrad" else STEPWISE_HORIZON


def config_of(study: Study, options: argparse.Namespace, varied: Varied, data: RecordedData) -> Config:
    """Return the preset for the dataset's task, with the model's fields, then those of the command line."""
    base = dataclasses.replace(configs.preset(options.preset, data.env.name), env=data.env, seed=varied.seed)
    base = dataclasses.replace(base, guidance=dataclasses.replace(base.guidance, delta_lr=DELTA_LR))
    fields = [*UNIFORM, *study.models[varied.model], "--horizon", str(varied.horizon), *shlex.split(options.fields)]
    return configs.validate(cli.override(base, fields))


def variants(config: Config, rules: dict[str, dict[str, Any]]) -> dict[str, Config]:
    """Return the configs under which one trained model imagines, by the name of the rule where there is one."""
    if config.world_model != "polygrad":
        return {"": config}
    return {
        name: dataclasses.replace(config, guidance=dataclasses.replace(config.guidance, **rule))
        for name, rule in rules.items()
    }


def ways_of(study: Study, model: str, config: Config) -> dict[str, Config]:
    """Return the configs under which a trained model imagines, by the name of the variant."""
    if model not in study.ways:
        return variants(config, study.rules)
    return {name: configs.validate(cli.override(config, [*fields])) for name, fields in study.ways[model].items()}


def state_for(asked: Config, trained: Config, state: Any) -> Any:
    """Return what imagines: all that was learnt, or the teacher alone where it is asked in the student's place."""
    return state.teacher if (trained.world_model, asked.world_model) == ("distilled", "autoregressive") else state


def train(
    study: Study, options: argparse.Namespace, varied: Varied, data: RecordedData, config: Config
) -> tuple[Training, RecordedData]:
    """Train a model, or resume its training; return it finished, and what it learnt from.

    Raises:
      SystemExit: it was stopped by a signal; all is saved.
    """
    judged_from = None
    if study.judged_apart:
        learnt_from, apart = held_out(data.transitions, study.judged_apart)
        judged_from = dataclasses.replace(data, transitions=apart)
        data = dataclasses.replace(data, transitions=learnt_from)
    horizon = horizon_of_training(study.models[varied.model], varied.horizon)
    schedule = Schedule(
        seconds=options.seconds, updates=None, evaluate_every_updates=options.evaluate_every, patience=10**6
    )
    training = Training(
        data, dataclasses.replace(config, horizon=horizon), varied.folder, schedule.checked(), judged_from
    )
    if training.run().stopped_by is not None:
        raise SystemExit(130)
    return training, data


def rows_of(study: Study, options: argparse.Namespace, varied: Varied) -> Iterator[Row]:
    """Train one model (or resume) and measure it under every variant, and untrained."""
    whole = study.prepare(options.dataset)
    config = config_of(study, options, varied, whole)
    rest, apart = held_out(whole.transitions)
    given = dataclasses.replace(whole, transitions=drawn(rest, varied.count, varied.seed))
    training, learnt_from = train(study, options, varied, given, config)
    trained = open_trained(varied.folder, learnt_from, options.newest)
    measuring = Measuring(whole, dataclasses.replace(whole, transitions=apart), trained.normaliser, varied.seed)
    common = {"env": whole.env.name, "env_version": whole.env.version, "dataset": whole.name, "model": varied.model}
    common |= study.columns(options.dataset)
    common |= {"seed": varied.seed, "horizon": varied.horizon, "transitions": len(given.transitions)}
    common |= {
        "training_seconds": round(training.at.training_seconds, 1),
        "updates": training.at.updates,
        "best_updates": trained.updates,
        "preset": options.preset,
        "fields": options.fields,
    }
    measured = {"newest" if options.newest else "trained": trained.state}
    if not options.newest:
        measured["untrained"] = jax.jit(training.model.init)(jax.random.key(varied.seed))
    ways = ways_of(study, varied.model, config)
    for (name, there), std, (network, state) in itertools.product(ways.items(), study.stds, measured.items()):
        if network == "untrained" and std != study.stds[0]:
            continue  # one null case is enough
        given_std = {} if std is None else {"policy_std": std}
        for row in measuring.rows(there, state_for(there, config, state), told=name == TOLD, std=std):
            yield common | {"variant": name, "network": network} | given_std | row
