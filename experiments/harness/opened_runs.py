"""Open runs for the experiments on guidance: the command line, where trajectories begin, a denoiser fitted to the data.

Every experiment on guidance takes run folders, fits a denoiser of N = 128 diffusion steps to a run's first transitions
(the run's own model has fewer), and measures what it imagines under the run's policy.
"""

from __future__ import annotations

import argparse
import dataclasses
import shlex
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from experiments.harness import grid
from experiments.harness.recorded_episodes import UNIFORM, episodes_of
from polygrad_jax import config as configs
from polygrad_jax.analysis.opened_run import OpenedRun, require_raw_policy
from polygrad_jax.cli import override
from polygrad_jax.config import Config, ConfigError
from polygrad_jax.data.recordings import Episode
from polygrad_jax.diffusion.denoising_loss import with_terminal_std
from polygrad_jax.runs.run_folder import RunFolder
from polygrad_jax.training import fitting
from polygrad_jax.types import Normaliser, Policy, WorldModel
from polygrad_jax.world_models.model_table import make_world_model
from polygrad_jax.world_models.polygrad import PolyGRADState

NUM_STEPS = 128
CONTEXTS = 4000


# --- the command line ------------------------------------------------------------------------------------------------


class OfRun(NamedTuple):
    """One cell of an experiment on runs: the run, and what else is varied."""

    run: Path
    more: Any = None


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of an experiment that fits denoisers to the transitions of runs."""
    parser.add_argument("runs", type=Path, nargs="*", metavar="RUN", help="folders of runs")
    parser.add_argument("--data-rows", type=int, default=50_000, help="transitions that the denoisers are fitted to")
    parser.add_argument("--updates", type=int, default=12_000, help="gradient steps of each")
    parser.add_argument("--fields", default="", help='fields of the config, as in "--denoiser.width 512"')


def cells(options: argparse.Namespace, endings: Iterable[tuple[str, Any]] = (("", None),)) -> dict[str, OfRun]:
    """Return a cell for every ending ``(end of its name, what else is varied)`` and run.

    Raises:
      ConfigError: no run is named or a folder is none, two runs would be one cell, the fields are no words, or there is
        too little to fit to.
    """
    if not options.runs:
        raise ConfigError("RUN is missing; allowed: one or more folders of runs")
    try:
        shlex.split(options.fields)
    except ValueError as error:
        raise ConfigError(f"--fields is {options.fields}; allowed: words as in a shell ({error})") from None
    for run in options.runs:
        require_run(run)
    for name, least in (("data_rows", 1), ("updates", 0)):
        if getattr(options, name) < least:
            raise ConfigError(f"--{name.replace('_', '-')} is {getattr(options, name)}; allowed: {least} or more")
    found: dict[str, OfRun] = {}
    for ending, more in endings:
        for run in (path.resolve() for path in options.runs):
            # Runs of two tasks may have one name.
            name = grid.with_fields(f"{run.parent.name}-{run.name}{ending}", options.fields)
            if name in found and found[name].run != run:
                raise ConfigError(f"RUN is {found[name].run} and {run}; allowed: runs whose last two names differ")
            found[name] = OfRun(run, more)
    return found


def require_run(folder: Path) -> None:
    """Return where a folder is one of ``polygrad train``.

    Raises:
      ConfigError: it is not.
    """
    RunFolder(folder).check_has_policy()
    RunFolder(folder).saved_config()


def config_of(run: OpenedRun, options: argparse.Namespace, *fields: str) -> Config:
    """Return the run's config with the fields of the command line, N steps, uniform batches, and these fields.

    Raises:
      ConfigError: it has no denoiser, or one that sees more than the state in which a trajectory begins.
    """
    words = [*UNIFORM, *shlex.split(options.fields), "--diffusion.num-steps", str(NUM_STEPS), *fields]
    config = configs.validate(override(run.config, words))
    if config.world_model != "polygrad":
        raise ConfigError(f"world_model is {config.world_model}; allowed: polygrad, by --fields if need be")
    if (length := config.denoiser.context_length) > 1:
        raise ConfigError(f"denoiser.context_length is {length}; allowed: 1, the state in which a trajectory begins")
    return config


# --- where trajectories begin ----------------------------------------------------------------------------------------


def recorded_episodes(run: OpenedRun, rows: int) -> list[Episode]:
    """Return the first ``rows`` transitions of a run as its episodes; the last one may be cut short.

    Where actions are clipped, they are those that the policy drew: its Gaussian goes beyond the bounds.
    """
    actions_of = np.tanh if run.config.env.actions == "squashed" else np.asarray
    return [
        Episode(part.observations, actions_of(part.actions), part.rewards, terminated=bool(part.terminals[-1]))
        for part in episodes_of(run.transitions[:rows])
    ]


def drawn_rows(episodes: list[Episode], horizon: int) -> np.ndarray:
    """Draw row numbers ``[CONTEXTS]`` at which trajectories begin: any that ``horizon`` steps of its episode follow.

    Raises:
      ConfigError: there is none.
    """
    lengths = np.array([len(e.rewards) for e in episodes])
    first = np.cumsum(lengths) - lengths
    rows = np.concatenate([a + np.arange(max(n - horizon, 0)) for a, n in zip(first, lengths, strict=True)])
    if len(rows) == 0:
        raise ConfigError(f"horizon is {horizon}; allowed: below {lengths.max()}, the steps of the longest episode")
    return np.random.default_rng(0).choice(rows, CONTEXTS)


def begun_rows(run: OpenedRun, rows: int) -> np.ndarray:
    """Draw row numbers ``[CONTEXTS]`` at which trajectories begin in training: any but the last steps of episodes."""
    inside = np.flatnonzero(~(run.transitions.terminals[:rows] | run.transitions.truncations[:rows]))
    return np.random.default_rng(1).choice(inside, CONTEXTS)


# --- the denoiser ----------------------------------------------------------------------------------------------------


@dataclasses.dataclass
class Fitted:
    """A denoiser of N steps, fitted to a run's transitions or not at all."""

    run: OpenedRun
    config: Config
    state: PolyGRADState
    normaliser: Normaliser
    episodes: list[Episode]

    @property
    def policy(self) -> Policy:
        """Return the run's policy, under which the denoiser imagines."""
        return require_raw_policy(self.run)


def fit(run: OpenedRun, config: Config, rows: int, updates: int, model: WorldModel | None = None) -> Fitted:
    """Take ``updates`` gradient steps on the run's first ``rows`` transitions; with 0 the network is as drawn.

    ``model``: PolyGRAD that learns in another way than that of ``config``.
    """
    model, episodes = model or make_world_model(config, run.spec), recorded_episodes(run, rows)
    state, normaliser = fitting.fit(model, episodes, config, jax.random.key(0), max(updates, 1))
    if updates == 0:
        state = model.init(jax.random.key(0))
    return Fitted(run, config, state, with_terminal_std(normaliser, config.diffusion.terminal_std), episodes)
