"""Which settings of the denoiser imagine best after a given number of gradient steps on one run's transitions?

Fits a fresh denoiser per setting on the first ROWS transitions of a run, lets it imagine under the run's policy, and
measures against MuJoCo replaying the same actions. Much cheaper than training a policy with each setting.

    python experiments/denoiser_settings.py RUN --rows 20000 --updates 12000 --out results/denoiser_settings.csv \
        --setting "--diffusion.tau 0.1" --setting "--diffusion.tau 1.0 --denoiser.learning-rate 1e-3"

One row per setting, appended as it is finished; a row that is in the file already (same run, rows, updates and setting)
is not made again. Errors are in units of each observation's std. The rows named ``untrained`` and ``nothing moves``
are what a fit must beat.
"""

from __future__ import annotations

import argparse
import csv
import io
import shlex
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from polygrad_jax import config as configs
from polygrad_jax.cli import override
from polygrad_jax.config import Config, ConfigError
from polygrad_jax.envs.simulator import replay_actions
from polygrad_jax.training.finished_run import FinishedRun, open_finished
from polygrad_jax.training.measures import squared_errors, staying_still
from polygrad_jax.training.run_folder import describe_environment, write_text_atomically
from polygrad_jax.world_models import fitting
from polygrad_jax.world_models.registry import make_world_model

CONTEXTS = 1000
SETTLING = 128
"""Trajectories per imagination while delta settles, as many as the cpu preset imagines for a policy update."""
HORIZONS = (1, 5, 9)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--updates", type=int, default=12_000)
    parser.add_argument("--setting", action="append", default=[], help="fields of the config, as for polygrad train")
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


def imagined_and_replayed(run: FinishedRun, config: Config, model: Any, state: Any, normaliser: Any, rows: np.ndarray):
    """``(imagined Segment, replayed observations [B, H, O], sigma)`` under the run's policy."""
    context = fitting.contexts_at(run.transitions.observations[rows], run.spec)
    few = jax.tree.map(lambda x: x[:SETTLING], context)
    settle_key, imagine_key = jax.random.split(jax.random.key(1))
    policy = (run.policy_apply, run.actor)
    state = fitting.settle(model, state, *policy, few, normaliser, settle_key, config.horizon)
    imagine = jax.jit(model.imagine, static_argnums=(1, 6))
    _, segment, metrics = imagine(state, *policy, context, normaliser, imagine_key, config.horizon)
    segment = jax.device_get(segment)
    states = run.transitions.simulator_states[rows]
    replayed, _, _ = replay_actions(config.env, states, segment.actions[:, :-1])
    return segment, replayed, float(metrics["guidance/sigma"])


def one_setting(run: FinishedRun, options: argparse.Namespace, setting: str) -> Iterator[dict[str, Any]]:
    """The row of a setting; before it, for the first, the rows of what any fit must beat."""
    config = configs.validate(override(run.config, shlex.split(setting)))
    model, episodes = make_world_model(config, run.spec), episodes_of(run, options.rows)
    rows = drawn_rows(episodes, config.horizon)
    times: list[tuple[int, float]] = []

    def report(updates: int, metrics: dict[str, float]) -> None:
        times.append((updates, time.perf_counter()))
        print(f"\r{setting}: {updates:,}/{options.updates:,} updates", end="", file=sys.stderr, flush=True)

    state, normaliser = fitting.fit(model, episodes, config, jax.random.key(0), options.updates, report)
    print(file=sys.stderr)
    std = np.asarray(normaliser.observations.std)
    (first, began), (last, ended) = times[0], times[-1]
    common = conditions(run, options)
    if not recorded(options.out, common, "untrained"):
        untrained = jax.jit(model.init)(jax.random.key(0))
        segment, replayed, sigma = imagined_and_replayed(run, config, model, untrained, normaliser, rows)
        errors = measured(segment.observations, replayed, std)
        yield {"setting": "untrained"} | common | errors | {"sigma": sigma}
        errors = measured(staying_still(replayed), replayed, std)
        yield {"setting": "nothing moves"} | common | errors | {"sigma": float("nan")}
    segment, replayed, sigma = imagined_and_replayed(run, config, model, state, normaliser, rows)
    speed = {"ms_per_update": 1e3 * (ended - began) / max(last - first, 1)}
    errors = measured(segment.observations, replayed, std)
    yield {"setting": setting or "as the run"} | common | errors | {"sigma": sigma} | speed


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
    facts = describe_environment()
    packages = " ".join(f"{name}={version}" for name, version in facts["packages"].items())
    row = row | {"ms_per_update": row.get("ms_per_update", float("nan"))}
    row = {name: f"{x:.4g}" if isinstance(x, float) else x for name, x in row.items()}
    row |= {"packages": packages} | {name: facts[name] for name in ("device", "processor", "cores", "git_revision")}
    text = io.StringIO(path.read_text() if path.exists() else "", newline="")
    text.seek(0, io.SEEK_END)
    writer = csv.DictWriter(text, list(row), lineterminator="\n")
    if not path.exists():
        writer.writeheader()
    writer.writerow(row)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text_atomically(path, text.getvalue())


def main() -> None:
    options = parse()
    try:
        run = open_finished(options.run)
        for setting in options.setting or [""]:
            if recorded(options.out, conditions(run, options), setting or "as the run"):
                continue
            for row in one_setting(run, options, setting):
                append(options.out, row)
                print({k: v if isinstance(v, str) else round(v, 4) for k, v in row.items()}, flush=True)
    except ConfigError as error:
        print(f"denoiser_settings: {error}", file=sys.stderr)
        raise SystemExit(2) from None


if __name__ == "__main__":
    main()
