"""Which settings of the denoiser imagine best after a given number of gradient steps on one run's transitions?

Fits a fresh denoiser per setting on the first ROWS transitions of a run, lets it imagine under the run's policy, and
measures against MuJoCo replaying the same actions: the states' error, and whether the policy's gradient on the imagined
batch is the one that the real world would give. Much cheaper than training with each setting.

    python experiments/archive/denoiser_settings.py RUN --rows 20000 --updates 12000 --out results/archive/denoiser_settings.csv \
        --setting "--diffusion.tau 0.1" --setting "--diffusion.tau 1.0 --denoiser.learning-rate 1e-3"

One row per setting, appended as it is finished; a row that is in the file already (same run, rows, updates and setting)
is not made again. Errors are in units of each observation's std. The rows named ``untrained`` and ``nothing moves``
are what a fit must beat. ``as it learnt`` is the run's own model, trained while the replay grew (``--own`` lets it
imagine under other fields, such as "--guidance.rule correlated" or "--diffusion.terminals diffused"). What the columns
of gradients, advantages and terminals mean: ``polygrad_jax/training/gradient_error.py``.
"""

from __future__ import annotations

import argparse
import csv
import io
import shlex
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from experiments.harness import grid as sweep

from polygrad_jax import config as configs
from polygrad_jax.cli import override
from polygrad_jax.config import Config, ConfigError
from polygrad_jax.envs.mujoco_state import replay_actions
from experiments.harness import gradient_error
from polygrad_jax.analysis.opened_run import FinishedRun, open_finished, untrained_state
from polygrad_jax.analysis.action_spread import squared_errors, staying_still
from polygrad_jax.runs.run_folder import describe_environment, write_text_atomically
from polygrad_jax.types import Normaliser, Params, Segment
from polygrad_jax.data import recordings as fitting
from polygrad_jax.world_models.model_table import make_world_model

CONTEXTS = 4000
SETTLING = 128
"""Trajectories per imagination while delta settles, as many as the cpu preset imagines for a policy update."""
HORIZONS = (1, 5, 9)
COLUMNS = (
    "setting",
    "run",
    "rows",
    "updates",
    *(f"{statistic}_h{h}" for statistic in ("mean", "median") for h in HORIZONS),
    "sigma",
    "advantage_correlation",
    "advantage_std_ratio",
    "gradient_cosine",
    "gradient_cosine_true_observations",
    "gradient_cosine_true_terminals",
    "gradient_cosine_true_rewards",
    "halves_cosine",
    "closed_cosine",
    "closed_ceiling",
    "closed_norm_ratio",
    "ends_imagined",
    "ends_closed",
    "terminals_true",
    "terminals_missed",
    "terminals_false",
    "terminals_steps_late",
    "terminals_steps_off",
    "ms_per_update",
)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--updates", type=int, default=12_000)
    parser.add_argument("--setting", action="append", default=[], help="fields of the config, as for polygrad train")
    parser.add_argument("--own", action="append", default=[], help="the run's own model imagining under other fields")
    parser.add_argument("--out", type=Path, required=True)
    return parser.parse_args()


def episodes_of(run: FinishedRun, rows: int) -> list[fitting.Episode]:
    """The first ``rows`` transitions of a run as its episodes; the last one may be cut short."""
    t = run.transitions[:rows]
    ends = np.flatnonzero(t.terminals | t.truncations) + 1
    starts = np.concatenate([[0], ends])
    return [
        fitting.Episode(t.observations[a:b], t.actions[a:b], t.rewards[a:b], terminated=bool(t.terminals[b - 1]))
        for a, b in zip(starts, [*ends, len(t)], strict=True)
        if b > a
    ]


def drawn_rows(episodes: list[fitting.Episode], horizon: int) -> np.ndarray:
    """Row numbers ``[CONTEXTS]`` at which trajectories begin: any that ``horizon`` steps of its episode follow."""
    lengths = np.array([len(e.rewards) for e in episodes])
    first = np.cumsum(lengths) - lengths
    rows = np.concatenate([a + np.arange(max(n - horizon, 0)) for a, n in zip(first, lengths, strict=True)])
    return np.random.default_rng(0).choice(rows, CONTEXTS)


def measured(predicted: np.ndarray, replayed: np.ndarray, std: np.ndarray) -> dict[str, float]:
    """Mean and median over trajectories of the squared error in units of each observation's std."""
    errors = squared_errors(predicted / std, replayed / std)
    means = {f"mean_h{h}": float(errors[:, h - 1].mean()) for h in HORIZONS if h <= errors.shape[1]}
    medians = {f"median_h{h}": float(np.median(errors[:, h - 1])) for h in HORIZONS if h <= errors.shape[1]}
    return means | medians


def begun_rows(run: FinishedRun, rows: int) -> np.ndarray:
    """Row numbers ``[CONTEXTS]`` at which trajectories begin in training: any but the last steps of episodes."""
    inside = np.flatnonzero(~(run.transitions.terminals[:rows] | run.transitions.truncations[:rows]))
    return np.random.default_rng(1).choice(inside, CONTEXTS)


@dataclass
class Imagination:
    """A world model with everything that its ``imagine`` needs, delta settled under the run's policy."""

    run: FinishedRun
    config: Config
    state: Any
    normaliser: Normaliser

    def __post_init__(self):
        model = make_world_model(self.config, self.run.spec)
        context = self.contexts(begun_rows(self.run, len(self.run.transitions))[:SETTLING])
        policy = (self.run.policy_apply, self.actor)
        self.state = fitting.settle(
            model, self.state, *policy, context, self.normaliser, jax.random.key(1), self.config.horizon
        )
        self._imagine = jax.jit(model.imagine, static_argnums=(1, 6))

    @property
    def actor(self) -> Params:
        """The policy that learns, not an average of it, since gradients are what is compared."""
        return self.run.actor if self.run.learner is None else self.run.learner.actor

    def contexts(self, rows: np.ndarray) -> Segment:
        return fitting.contexts_at(self.run.transitions.observations[rows], self.run.spec)

    def __call__(self, rows: np.ndarray) -> tuple[Segment, float]:
        """``(Segment [B, H] raw, sigma)`` imagined from the states of these rows."""
        key, run = jax.random.key(2), self.run
        context = (self.contexts(rows), self.normaliser, key, self.config.horizon)
        _, segment, metrics = self._imagine(self.state, run.policy_apply, self.actor, *context)
        return jax.device_get(segment), float(metrics["guidance/sigma"])


def measures_of(imagine: Imagination, rows: int, std: np.ndarray) -> dict[str, float]:
    """Error of the states (trajectories that ``horizon`` real steps follow), then what the batch would teach."""
    run, config = imagine.run, imagine.config
    states = run.transitions.simulator_states
    whole = drawn_rows(episodes_of(run, rows), config.horizon)
    segment, sigma = imagine(whole)
    replay, _, _ = replay_actions(config.env, states[whole], segment.actions[:, :-1])
    found = measured(segment.observations, replay, std) | {"sigma": sigma}
    if run.learner is None:
        return found
    begun = begun_rows(run, rows)
    segment, _ = imagine(begun)
    truth = gradient_error.replayed(config.env, states[begun], segment)
    found |= gradient_error.gradient_errors(run.learner, segment, truth, run.config.a2c, run.spec)
    policy = (run.policy_apply, run.learner.actor, config.horizon)
    closed = tuple(gradient_error.played(config.env, states[begun], *policy, seed) for seed in (1, 2))
    return found | gradient_error.closed_errors(run.learner, segment, closed, run.config.a2c, run.spec)


def nothing_moves(run: FinishedRun, config: Config, rows: int, std: np.ndarray) -> dict[str, float]:
    """Error of predicting the first state for ever, under the actions that the run took."""
    whole = drawn_rows(episodes_of(run, rows), config.horizon)
    actions = run.transitions.actions[whole[:, None] + np.arange(config.horizon - 1)]
    replay, _, _ = replay_actions(config.env, run.transitions.simulator_states[whole], actions)
    return measured(staying_still(replay), replay, std)


def baselines(run: FinishedRun, options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """What any fit must beat, and the run's own model."""
    std, common = np.asarray(run.normaliser.observations.std), conditions(run, options) | {"updates": ""}
    if not recorded(options.out, common, "untrained"):
        state = untrained_state(run, jax.random.key(0))
        untrained = Imagination(run, run.config, state, run.normaliser)
        yield {"setting": "untrained"} | common | measures_of(untrained, options.rows, std)
    if not recorded(options.out, common, "nothing moves"):
        yield {"setting": "nothing moves"} | common | nothing_moves(run, run.config, options.rows, std)
    for words in ("", *options.own):
        name = f"as it learnt {words}".strip()
        if not recorded(options.out, common, name):
            config = configs.validate(override(run.config, shlex.split(words)))
            own = Imagination(run, config, run.model_state, run.normaliser)
            yield {"setting": name} | common | measures_of(own, options.rows, std)


def one_setting(run: FinishedRun, options: argparse.Namespace, setting: str) -> dict[str, Any]:
    """The row of a setting: a fresh fit, then its measures."""
    config = configs.validate(override(run.config, shlex.split(setting)))
    model, episodes = make_world_model(config, run.spec), episodes_of(run, options.rows)
    times: list[tuple[int, float]] = []

    def report(updates: int, metrics: dict[str, float]) -> None:
        times.append((updates, time.perf_counter()))
        print(f"\r{setting}: {updates:,}/{options.updates:,} updates", end="", file=sys.stderr, flush=True)

    state, normaliser = fitting.fit(model, episodes, config, jax.random.key(0), options.updates, report)
    print(file=sys.stderr)
    (first, began), (last, ended) = times[0], times[-1]
    std = np.asarray(run.normaliser.observations.std)  # the same unit for every setting
    found = measures_of(Imagination(run, config, state, normaliser), options.rows, std)
    speed = {"ms_per_update": 1e3 * (ended - began) / max(last - first, 1)}
    return {"setting": setting or "as the run"} | conditions(run, options) | found | speed


def conditions(run: FinishedRun, options: argparse.Namespace) -> dict[str, Any]:
    """What the rows of one call have in common."""
    c = run.config
    name = f"{c.env.name} {c.preset} {c.guidance.rule} seed {c.seed} at {run.env_steps} steps"
    return {"run": name, "rows": options.rows, "updates": options.updates}


def recorded(path: Path, common: dict[str, Any], setting: str) -> bool:
    """Whether the file has this row."""
    if not path.exists():
        return False
    wanted = {name: str(value) for name, value in (common | {"setting": setting}).items()}
    with path.open(newline="") as file:
        return any(wanted.items() <= row.items() for row in csv.DictReader(file))


def append(path: Path, row: dict[str, Any]) -> None:
    """The file with one row more, written whole or not at all."""
    packages = " ".join(f"{name}={version}" for name, version in describe_environment()["packages"].items())
    row = dict.fromkeys(COLUMNS, float("nan")) | row
    row = {name: f"{x:.4g}" if isinstance(x, float) else x for name, x in row.items()}
    row |= {"packages": packages} | sweep.machine()
    text = io.StringIO(path.read_text() if path.exists() else "", newline="")
    text.seek(0, io.SEEK_END)
    writer = csv.DictWriter(text, list(row), lineterminator="\n")
    if not path.exists():
        writer.writeheader()
    writer.writerow(row)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text_atomically(path, text.getvalue())


def keep(path: Path, row: dict[str, Any]) -> None:
    append(path, row)
    print({k: v if isinstance(v, str) else round(v, 4) for k, v in row.items()}, flush=True)


def main() -> None:
    options = parse()
    try:
        run = open_finished(options.run)
        for row in baselines(run, options):
            keep(options.out, row)
        for setting in options.setting:
            if not recorded(options.out, conditions(run, options), setting or "as the run"):
                keep(options.out, one_setting(run, options, setting))
    except ConfigError as error:
        print(f"denoiser_settings: {error}", file=sys.stderr)
        raise SystemExit(2) from None


if __name__ == "__main__":
    main()
