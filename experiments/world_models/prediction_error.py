"""How far is each world model from the simulator, and how does that grow with the horizon? (Figures 5 and 8)

Every model is trained on the same recorded transitions for the same seconds of gradient steps, to its best five-step
error (``polygrad_jax/training/fixed_data.py``); then 500 trajectories are imagined from states of episodes that no
model has learnt from (a tenth of the dataset, the same for all), under the dataset's policy, and MuJoCo replays their
actions from the stored simulator states, past terminations.

    python experiments/prediction_error.py --dataset runs/grid-hopper-cpu/score-seed0 --seconds 600 \\
        --seeds 0 1 2 --horizons 10 --jobs 2 --threads 1 --out results/prediction_error/hopper
    python experiments/prediction_error.py --out results/prediction_error/hopper --figure-only

``--transitions`` trains on so many of the others, drawn as whole episodes (the paper's question about small data).
Several datasets go to one CSV by one call each. Rows of ``prediction_error.csv``, one per step ahead: ``mse_raw`` and
``mse`` (in units of each observation's variance in all of the dataset; the raw one is mostly velocities), averaged over
dimensions and trajectories (``mse_positions``: over those that ``--env.hide_velocities`` leaves), ``median``,
``percentile_95`` and ``worst`` over trajectories (few of them can be all of a mean), ``still``: the error of predicting
that nothing moves, ``reward_mse``, of the step that leads there.
These count a trajectory until MuJoCo ends it (``alive``: the share that does), since what follows is in no data. The
paper goes on past the end, and so does ``mse_raw_past_ends``; there a model that foresees ends loses to one that does
not, which is why nothing is chosen by it.
For the whole trajectory: the shares that end in imagination and in MuJoCo (``ends_imagined``, ``ends_real``), how many
of the first come within a step of a real end (``terminal_precision``), how many of the second within a step of an
imagined one (``terminal_recall``). ``variant`` is the guidance rule where there is one; ``told`` is the same denoiser
told the actions of ``relaxed`` from the start, which separates its own errors from guidance's; ``network`` is
``trained`` (the best judged), ``newest`` (``--newest``: the last) or ``untrained``: the same before any update, which
every measure must tell from the others; ``finite`` 0: it imagined numbers that are not finite, and has no errors.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import re
import shlex
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from experiments.harness import grid as sweep

from polygrad_jax import cli
from polygrad_jax import config as configs
from polygrad_jax.config import Config, ConfigError, EnvConfig
from polygrad_jax.data import replay as replays
from polygrad_jax.data.normaliser import to_normaliser
from polygrad_jax.data.transition_log import TransitionRecord
from polygrad_jax.envs import tasks as registry
from polygrad_jax.envs.mujoco_state import replay_actions
from polygrad_jax.agents import a2c
from polygrad_jax.training.fitting import FixedData, Schedule, Training, open_data, open_trained
from experiments.harness.gradient_error import absorbing
from polygrad_jax.training.loop import NonFiniteError
from polygrad_jax.analysis.action_spread import before_ends, mean_where, squared_errors, staying_still
from polygrad_jax.runs.run_folder import write_text_atomically
from polygrad_jax.types import Normaliser, Segment
from polygrad_jax.data import recordings as fitting
from polygrad_jax.world_models.polygrad import imagine_given_actions
from polygrad_jax.world_models.model_table import make_world_model

ALL = 10**9
"""Transitions: as many as there are."""
HELD_OUT = 0.1
"""Share of the transitions, in whole episodes, from whose states models are measured."""
CONTEXTS = 500
SETTLING = 64
STEPWISE_HORIZON = 10
"""Of the training of models that learn single steps: that of imagination, with which none of them learns."""
DELTA_LR = 3e-2
"""Of log delta where a model is trained alone (official code)."""
MODELS: dict[str, tuple[str, ...]] = {
    "PolyGRAD MLP": ("--world-model", "polygrad", "--denoiser.learning-rate", "3e-3"),
    "PolyGRAD transformer": (
        *("--world-model", "polygrad", "--denoiser.kind", "transformer"),
        *("--denoiser.token-dim", "64", "--denoiser.num-blocks", "3", "--denoiser.learning-rate", "3e-3"),
    ),
    "autoregressive diffusion": ("--world-model", "autoregressive", "--denoiser.learning-rate", "3e-3"),
    "transformer": ("--world-model", "transformer", "--transformer.learning-rate", "3e-3"),
    "ensemble": ("--world-model", "ensemble", "--ensemble.learning-rate", "3e-3"),
    "Dreamer-v3": ("--world-model", "dreamer", "--dreamer.learning-rate", "1e-3"),
}
"""With the learning rates of ``results/learning_rates``."""
EXECUTED = ("--denoiser.shown-actions", "executed")
"""Of PolyGRAD, where it is to be shown what all other models are shown; neither here nor in the official code it is."""
RULES = {"score": {"rule": "score"}, "relaxed": {"rule": "correlated", "rho": 1.0, "relaxation": 0.5}}
TOLD = "told"
"""The variant that has the actions of ``relaxed``, told from the start: its errors are the denoiser's own."""
VARIANTS = RULES | {TOLD: RULES["relaxed"]}


# --- the data --------------------------------------------------------------------------------------------------------


def episodes_of(record: TransitionRecord) -> list[TransitionRecord]:
    """The episodes of a record, in order; what is open at its end counts too."""
    ends = [*(np.flatnonzero(record.terminals | record.truncations) + 1), len(record)]
    return [record[a:b] for a, b in zip([0, *ends[:-1]], ends, strict=True) if b > a]


def joined(parts: list[TransitionRecord]) -> TransitionRecord:
    """One record of these episodes; none runs on into the next."""
    closed = []
    for part in parts:
        truncations = part.truncations.copy()
        truncations[-1] = not part.terminals[-1]
        closed.append(dataclasses.replace(part, truncations=truncations))
    columns = [f.name for f in dataclasses.fields(TransitionRecord)]
    return TransitionRecord(**{name: np.concatenate([getattr(p, name) for p in closed]) for name in columns})


def held_out(record: TransitionRecord, share: float = HELD_OUT) -> tuple[TransitionRecord, TransitionRecord]:
    """``(to learn from, to measure from)``: the second as many random episodes as come to the share, the same always.

    Raises:
      ConfigError: nothing would be left to learn from.
    """
    parts = episodes_of(record)
    order = np.random.default_rng(0).permutation(len(parts))
    lengths = np.cumsum([len(parts[i]) for i in order])
    taken = int(np.searchsorted(lengths, share * len(record))) + 1
    if taken >= len(parts):
        raise ConfigError(f"the dataset has {len(parts)} episode(s); allowed: enough to hold {share:.0%} back")
    return joined([parts[i] for i in sorted(order[taken:])]), joined([parts[i] for i in sorted(order[:taken])])


def drawn(record: TransitionRecord, count: int, seed: int) -> TransitionRecord:
    """``count`` transitions: whole episodes in random order, the last one cut; :data:`ALL` for all of them.

    Raises:
      ConfigError: there are not so many.
    """
    if count == ALL:
        return record
    if count > len(record):
        raise ConfigError(
            f"--transitions is {count}; allowed: at most {len(record)}, which is what the dataset has besides the "
            "episodes that are held back"
        )
    parts = episodes_of(record)
    chosen, left = [], count
    for i in np.random.default_rng(seed).permutation(len(parts)):
        chosen.append(parts[i][:left])
        left -= len(chosen[-1])
        if left == 0:
            break
    return joined(chosen)


# --- measuring -------------------------------------------------------------------------------------------------------


def ends_found(imagined: np.ndarray, real: np.ndarray) -> dict[str, float]:
    """Shares of trajectories that end, precision and recall of when; terminals ``[B, T]`` of both; NaN where none is.

    Only first ends within a step of one another are the same end: behind an imagined one the actions are those of
    states that do not move on, under which MuJoCo ends before long, too.
    """
    said, true = (absorbing(x).sum(axis=1) for x in (imagined, real))  # how many steps from the first end on
    right = ((said > 0) & (true > 0) & (np.abs(said - true) <= 1)).sum()
    return {
        "ends_imagined": float((said > 0).mean()),
        "ends_real": float((true > 0).mean()),
        "terminal_precision": float(right / (said > 0).sum()) if said.any() else float("nan"),
        "terminal_recall": float(right / (true > 0).sum()) if true.any() else float("nan"),
    }


def positions(task: EnvConfig) -> int:
    """How many observations are no velocities; all of them where a task does not say."""
    env = registry.make(dataclasses.replace(task, hide_velocities=task.name in registry.NAMED_TASKS))
    size = registry.spec_of(env).observation_size
    env.close()
    return size


@dataclasses.dataclass
class Measuring:
    """What every measure of one dataset shares, and the statistics that the model learnt with."""

    data: FixedData
    held_out: FixedData
    normaliser: Normaliser
    seed: int

    def imagined(self, config: Config, state: Any, told: bool = False) -> Segment:
        """Trajectories ``[CONTEXTS, H]`` under the dataset's policy, delta settled where there is one.

        ``told``: what PolyGRAD's denoiser makes of the same actions, given all of them from the start.
        """
        data, collector = self.data, self.data.collector
        model = make_world_model(config, data.spec)
        policy = a2c.make_policy_apply(data.spec, collector.a2c, collector.precision)
        actor = jax.tree.map(jnp.asarray, data.actor)
        context_key, settle_key, key = jax.random.split(jax.random.key(self.seed), 3)
        contexts = jax.jit(replays.sample_contexts, static_argnums=(2, 3))(
            self.held_out.replay(2), context_key, CONTEXTS, model.context_length
        )
        few = jax.tree.map(lambda x: x[:SETTLING], contexts)
        if config.world_model == "polygrad":
            state = fitting.settle(model, state, policy, actor, few, self.normaliser, settle_key, config.horizon)
        imagine = jax.jit(model.imagine, static_argnums=(1, 6))
        _, segment, _ = imagine(state, policy, actor, contexts, self.normaliser, key, config.horizon)
        if told:
            follow = jax.jit(imagine_given_actions, static_argnums=0)
            segment = follow(config, state, segment.actions, contexts, self.normaliser, jax.random.fold_in(key, 1))
        return jax.device_get(segment.replace(rows=contexts.rows[:, -1:], observed=None))

    def rows(self, config: Config, state: Any, told: bool = False) -> Iterator[dict[str, float]]:
        """One row per step ahead; one alone where what is imagined is not finite."""
        segment = self.imagined(config, state, told)
        if not all(np.isfinite(x).all() for x in (segment.observations, segment.actions, segment.rewards)):
            yield {"finite": 0}
            return
        states = self.held_out.transitions.simulator_states[np.asarray(segment.rows)[:, 0]]
        real, rewards, terminals = replay_actions(self.data.env, states, segment.actions[:, :-1])
        # Of all of the data, however few were learnt from: errors of different sizes have the same unit.
        unit = np.asarray(to_normaliser(self.data.replay(2).moments).observations.std, np.float64)
        alive = before_ends(terminals)
        taken = np.concatenate([np.ones_like(alive[:, :1]), alive[:, :-1]], axis=1)
        raw = squared_errors(segment.observations, real)
        scaled = squared_errors(segment.observations / unit, real / unit)
        shown = slice(positions(self.data.env))
        seen = squared_errors((segment.observations / unit)[..., shown], (real / unit)[..., shown])
        still = squared_errors(staying_still(real / unit), real / unit)
        reward = np.square(segment.rewards[:, :-1] - rewards)
        ends = ends_found(segment.terminals[:, :-1], terminals.astype(np.float32))
        means = {"mse_raw": raw, "mse": scaled, "mse_positions": seen, "still": still}
        means = {name: mean_where(values, alive) for name, values in means.items()}
        means |= {"reward_mse": mean_where(reward, taken), "mse_raw_past_ends": raw.mean(0), "alive": alive.mean(0)}
        for h in range(raw.shape[1]):
            living = scaled[alive[:, h], h]
            ranks = np.percentile(living, (50, 95, 100)) if living.size else np.full(3, np.nan)
            row = {name: values[h] for name, values in means.items()}
            row |= dict(zip(("median", "percentile_95", "worst"), ranks, strict=True))
            yield {"finite": 1, "step": h + 1} | row | ends


def variants(config: Config, rules: dict[str, dict[str, Any]] = RULES) -> dict[str, Config]:
    """The configs under which one trained model imagines."""
    if config.world_model != "polygrad":
        return {"": config}
    return {
        name: dataclasses.replace(config, guidance=dataclasses.replace(config.guidance, **rule))
        for name, rule in rules.items()
    }


@dataclasses.dataclass(frozen=True)
class Study:
    """A grid of trainings on fixed data; this script's own, and those of scripts that ask another question with it."""

    script: Path
    explained: str
    models: dict[str, tuple[str, ...]]
    rules: dict[str, dict[str, Any]]
    draw: Callable[[Path], None]
    """Of the folder: the figure, from the CSV alone."""
    prepare: Callable[[str], FixedData] = open_data
    transitions: tuple[int, ...] = (ALL,)
    """How many are learnt from, unless the command line says otherwise."""
    columns: Callable[[str], dict[str, Any]] = lambda _: {}
    """More of every row, by the dataset's name."""
    judged_apart: float = 0.0
    """Share of what is learnt from, in whole episodes, that is kept for the five-step error; 0: it is the same data."""

    @property
    def name(self) -> str:
        """Of the CSV."""
        return self.script.stem


def config_for(options: argparse.Namespace, data: FixedData, models: dict[str, tuple[str, ...]]) -> Config:
    """The preset for the dataset's task, the model's fields, then those of the command line."""
    base = dataclasses.replace(configs.preset(options.preset, data.env.name), env=data.env, seed=options.seed)
    base = dataclasses.replace(base, guidance=dataclasses.replace(base.guidance, delta_lr=DELTA_LR))
    fields = [*models[options.cell], "--horizon", str(options.horizon), *shlex.split(options.fields)]
    return configs.validate(cli.override(base, fields))


def horizon_of_training(fields: tuple[str, ...], horizon: int) -> int:
    """PolyGRAD learns whole trajectories; what learns single steps is trained once for all horizons."""
    return horizon if fields[fields.index("--world-model") + 1] == "polygrad" else STEPWISE_HORIZON


def run_cell(options: argparse.Namespace, study: Study) -> list[dict[str, Any]]:
    """Trains one model (or goes on) and measures it under every variant, and untrained."""
    data = study.prepare(options.dataset)
    config = config_for(options, data, study.models)
    rest, apart = held_out(data.transitions)
    given = drawn(rest, options.count, options.seed)
    seen, judging = held_out(given, study.judged_apart) if study.judged_apart else (given, None)
    learnt_from = dataclasses.replace(data, transitions=seen)
    judged_from = None if judging is None else dataclasses.replace(data, transitions=judging)
    schedule = Schedule(
        seconds=options.seconds, updates=None, evaluate_every_updates=options.evaluate_every, patience=10**6
    )
    horizon = horizon_of_training(study.models[options.cell], options.horizon)
    of_training = dataclasses.replace(config, horizon=horizon)
    training = Training(learnt_from, of_training, options.folder, schedule.checked(), judged_from)
    outcome = training.run()
    if outcome.stopped_by is not None:
        raise SystemExit(130)
    trained = open_trained(options.folder, learnt_from, options.newest)
    measuring = Measuring(data, dataclasses.replace(data, transitions=apart), trained.normaliser, options.seed)
    common = {"env": data.env.name, "env_version": data.env.version, "dataset": data.name, "model": options.cell}
    common |= study.columns(options.dataset)
    common |= {"seed": options.seed, "horizon": options.horizon, "transitions": len(given)}
    common |= {
        "training_seconds": round(outcome.at.training_seconds, 1),
        "updates": outcome.at.updates,
        "best_updates": trained.updates,
        "preset": options.preset,
        "fields": options.fields,
    }
    about = sweep.machine()
    measured = {"newest" if options.newest else "trained": trained.state}
    if not options.newest:
        measured["untrained"] = jax.jit(training.model.init)(jax.random.key(options.seed))
    found = []
    for name, there in variants(config, study.rules).items():
        for network, state in measured.items():
            for row in measuring.rows(there, state, told=name == TOLD):
                short = {k: float(f"{v:.5g}") if isinstance(v, float) else v for k, v in row.items()}
                found.append(common | {"variant": name, "network": network} | short | about)
    return found


# --- the figure ------------------------------------------------------------------------------------------------------

COLOURS: dict[tuple[str, str], str] = dict(
    zip(
        [(name, variant) for name in list(MODELS)[:2] for variant in VARIANTS]
        + [(name, "") for name in list(MODELS)[2:]],
        ["#0072B2", "#56B4E9", "#56B4E9", "#004060", "#7FB8D8", "#7FB8D8", "#D55E00", "#009E73", "#CC79A7", "#E69F00"],
        strict=True,
    )
)


def draw(out: Path, name: str = "prediction_error", colours: dict[tuple[str, str], str] = COLOURS) -> None:
    """``<name>.png`` from ``<name>.csv``: error against steps ahead, mean, median and raw; shaded: std over seeds."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    rows = [r for r in sweep.read_csv(out / f"{name}.csv") if r.get("network") == "trained" and r["finite"] == "1"]
    panels = list(dict.fromkeys((r["env"], r["horizon"], r["transitions"]) for r in rows))
    if not panels:
        print(f"{name}: nothing that was trained is in {out / f'{name}.csv'}: no figure")
        return
    measures = {"mse": "mean", "median": "median", "mse_raw": "mean, raw units"}
    figure, axes = plt.subplots(3, len(panels), figsize=(5.2 * len(panels), 10.5), squeeze=False)
    for j, panel in enumerate(panels):
        there = [r for r in rows if (r["env"], r["horizon"], r["transitions"]) == panel]
        for axis, (measure, what) in zip(axes[:, j], measures.items(), strict=True):
            for (model, variant), colour in colours.items():
                own = [r for r in there if (r["model"], r["variant"]) == (model, variant)]
                if own:
                    style = ":" if variant == TOLD else "-"
                    draw_curve(axis, own, measure, f"{model} {variant}".strip(), colour, style)
            if measure == "mse":
                draw_curve(axis, there, "still", "nothing moves", "#7F7F7F", "--")
            axis.set_yscale("log")
            axis.set_xlabel("steps ahead")
            axis.set_ylabel(f"squared error [{'' if measure == 'mse_raw' else 'variances; '}{what}]")
            axis.spines[["top", "right"]].set_visible(False)
            axis.margins(x=0.02)
            axis.set_xlim(right=axis.get_xlim()[1] * 1.45)
        seeds, seconds = len({r["seed"] for r in there}), float(there[0]["training_seconds"])
        axes[0, j].set_title(
            f"{panel[0]}, H = {panel[1]}, {int(panel[2]):,} transitions, {seconds:.0f} s of training, {seeds} seed(s)",
            fontsize=8,
        )
    figure.tight_layout()
    sweep.save_figure(figure, out / f"{name}.png")
    plt.close(figure)


def draw_curve(
    axis: Any, rows: list[dict[str, str]], measure: str, label: str, colour: str, style: str = "-"
) -> None:
    """Mean over seeds, labelled at its end, and one standard deviation."""
    steps = sorted({int(r["step"]) for r in rows})
    values = [[float(r[measure]) for r in rows if int(r["step"]) == k] for k in steps]
    mean, std = (np.array([of(v) for v in values]) for of in (np.mean, np.std))
    axis.plot(steps, mean, style, color=colour, linewidth=1.6)
    axis.fill_between(steps, np.maximum(mean - std, mean * 0.05), mean + std, color=colour, alpha=0.15, linewidth=0)
    sweep.label_end(axis, steps[-1], mean[-1], label, colour, size=7)


def add_arguments(parser: argparse.ArgumentParser, study: Study) -> None:
    """The options of a study."""
    sweep.add_arguments(parser)
    parser.add_argument("--dataset", help="folder of a run or of a dataset, with simulator states and a policy")
    parser.add_argument("--models", nargs="+", choices=list(study.models), default=list(study.models))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--horizons", type=int, nargs="+", default=[10])
    parser.add_argument("--transitions", type=int, nargs="+", default=list(study.transitions), help="trained on")
    parser.add_argument("--seconds", type=float, default=600.0, help="of gradient steps, for every model")
    parser.add_argument("--evaluate-every", type=int, default=2_000, help="updates between two five-step errors")
    parser.add_argument("--preset", default="cpu")
    parser.add_argument("--fields", default="", help='fields of every config, as in "--denoiser.width 512"')
    parser.add_argument("--newest", action="store_true", help="measure the last parameters, not the best judged")
    parser.add_argument("--trainings", type=Path, default=None, help="folders of the trainings (runs/<script>-<out>)")
    for hidden in ("--cell", "--rows", "--folder"):
        parser.add_argument(hidden, type=str if hidden == "--cell" else Path, help=argparse.SUPPRESS)
    for hidden in ("--seed", "--horizon", "--count"):
        parser.add_argument(hidden, type=int, help=argparse.SUPPRESS)


def cells_of(options: argparse.Namespace, study: Study) -> list[sweep.Cell]:
    """The grid: model, seed, horizon, transitions."""
    trainings = options.trainings or Path("runs") / f"{study.name}-{options.out.name}"
    same = ("--dataset", options.dataset, "--seconds", options.seconds, "--evaluate-every", options.evaluate_every)
    same += ("--preset", options.preset, f"--fields={options.fields}")
    same += ("--newest",) if options.newest else ()
    cells = []
    # Horizons outermost: those that share a training are far apart, since a second one would find its folder locked.
    for horizon, model, seed, count in itertools.product(
        options.horizons, options.models, options.seeds, options.transitions
    ):
        size = "all" if count == ALL else str(count)
        where = Path(options.dataset).resolve()
        asked = f"{where.parent.name}-{where.name}-{model}-{options.preset}-{options.seconds:g}s{options.fields}"
        asked = re.sub(r"[^A-Za-z0-9.]+", "-", asked)
        trained = f"{asked}-h{horizon_of_training(study.models[model], horizon)}-n{size}-seed{seed}"
        name = f"{asked}-h{horizon}-n{size}-seed{seed}" + ("-newest" if options.newest else "")
        own = ("--cell", model, "--seed", seed, "--horizon", horizon, "--count", count)
        own += ("--folder", trainings / trained)
        labels = (("model", model), ("seed", seed), ("horizon", horizon), ("transitions", count))
        cells.append(sweep.own_cell(study.script, options.out, name, *same, *own, labels=labels))
    return cells


def main(study: Study) -> int:
    """Runs what is missing of a study's grid, or one of its cells, and draws."""
    parser = argparse.ArgumentParser(description=study.explained, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser, study)
    options = parser.parse_args()
    if options.cell:
        try:
            write_text_atomically(options.rows, json.dumps(run_cell(options, study), default=float))
        except NonFiniteError as error:
            print(f"{study.name}: {error}", file=sys.stderr)
            return cli.DIVERGED
        except configs.ConfigError as error:
            print(f"{study.name}: {error}", file=sys.stderr)
            return cli.BAD_INPUT
        return 0
    code, path = 0, options.out / f"{study.name}.csv"
    if not options.figure_only:
        if options.dataset is None:
            parser.error("--dataset is missing; allowed: the folder of a run or of a dataset")
        code = sweep.run(cells_of(options, study), path, options)
    if path.exists():
        study.draw(options.out)
    return code


if __name__ == "__main__":
    sys.exit(main(Study(Path(__file__), __doc__, MODELS, VARIANTS, draw)))
