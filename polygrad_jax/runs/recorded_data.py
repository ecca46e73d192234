"""Recorded transitions to train a world model on: a run's, a Minari dataset's, or the official code's arrays."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import zlib
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from polygrad_jax import config as configs
from polygrad_jax.config import LARGEST_STORED, Config, ConfigError, EnvConfig, EnvSpec, Execution
from polygrad_jax.data import minari_dataset, official_npy
from polygrad_jax.data import replay as replays
from polygrad_jax.data.recordings import replay_of, transitions_of_record
from polygrad_jax.data.transition_log import TransitionRecord
from polygrad_jax.envs import tasks
from polygrad_jax.envs.mujoco_state import no_simulator_states
from polygrad_jax.envs.prediction_error import why_not_replayed
from polygrad_jax.runs.checkpoints import load_npz
from polygrad_jax.runs.run_folder import CONFIG_FILE, RunFolder, read_json
from polygrad_jax.runs.saved_run import read_saved
from polygrad_jax.types import Params

POLICY_FILE = "policy.npz"
"""Beside a dataset of ``polygrad dataset``: the parameters of the policy that acted last, ``actor/...``."""


@dataclass(frozen=True)
class RecordedData:
    """Recorded transitions and their origin, as far as it is known.

    Actions are raw: of a run of ours as sampled, executed as its ``env.actions`` says; of other programs as stored.
    """

    name: str
    transitions: TransitionRecord
    env: EnvConfig | None
    collector: Config | None
    """Configuration of the run that collected; None for data of other programs."""
    actor: Params | None
    """Parameters by name of that run's last policy, under which the prediction error is measured."""

    @functools.cached_property
    def _why_not_replayed(self) -> str | None:
        try:
            reason = why_not_replayed(self.collector.env, self.transitions)
            return None if reason is None else no_simulator_states(self.collector.env, reason)
        except ConfigError as error:  # a program may have registered it that is not here
            return f"its task cannot be made ({error})"

    @property
    def spec(self) -> EnvSpec:
        """Sizes O and A."""
        return EnvSpec(self.transitions.observations.shape[1], self.transitions.actions.shape[1])

    def fingerprint(self) -> dict[str, Any]:
        """Identify the data: a resumed training must find them unchanged."""
        crc = 0
        for field in fields(TransitionRecord):
            flat = np.ascontiguousarray(getattr(self.transitions, field.name)).reshape(-1)
            crc = zlib.crc32(flat.view(np.uint8), crc)
        return {"transitions": len(self.transitions), "checksum": crc}

    def replay(self, window: int) -> replays.ReplayState:
        """Put all of it on the device, for windows of ``window`` states; row t is transition t."""
        return replay_of(transitions_of_record(self.transitions), window)

    def executed_as(self, how: Execution) -> RecordedData:
        """Return the data with raw actions that ``how`` executes as they were executed.

        Raises:
          ConfigError: they are of a run that executes another way, whose policy is one over its own raw actions.
        """
        if self.collector is not None:
            if self.collector.env.actions != how:
                ours = self.collector.env.actions
                raise ConfigError(f"env.actions is {how}; allowed for dataset {self.name}: {ours}, as in its run")
            return self
        actions = tasks.raw_of(self.transitions.actions, how)
        return dataclasses.replace(self, transitions=dataclasses.replace(self.transitions, actions=actions))

    def why_not_judged(self) -> str | None:
        """Say why the error five steps ahead cannot be measured; None where it can."""
        if self.transitions.simulator_states.shape[1] == 0:
            return "it has no simulator states to replay imagined actions from"
        if self.actor is None or self.collector is None:
            return f"it has no policy of raw observations ({POLICY_FILE}, {CONFIG_FILE} beside it) to imagine under"
        return self._why_not_replayed


FORMATS = (
    "the folder of a run or of a Minari dataset (the one that holds data/), the id of a local Minari dataset, or the "
    "official code's .npy (or the same arrays as .npz)"
)


def open_data(where: str | Path) -> RecordedData:
    """Open a dataset: the folder of a run or of a Minari dataset, the id of a local one, or the official code's file.

    Raises:
      ConfigError: there is none, it cannot be read, or it holds numbers that are not finite.
    """
    with np.errstate(over="ignore"):  # float64 beyond float32 becomes infinite, which is refused below
        data = _opened(where)
    for name in ("observations", "actions", "rewards"):
        array = getattr(data.transitions, name)
        fits = (np.abs(array.reshape(len(array), -1)) <= LARGEST_STORED).all(axis=1)  # nor does NaN
        if not fits.all():
            row = int(np.argmin(fits))
            value = " ".join(str(array[row]).split())
            allowed = f"finite numbers up to {LARGEST_STORED:.0e}"
            raise ConfigError(f"dataset {where}: {name} of transition {row} are {value}; allowed: {allowed}")
    return data


def _opened(where: str | Path) -> RecordedData:
    path = Path(where)
    holds_a_run = RunFolder(path).holds_a_run()  # first: it says in one line where one may not look
    if minari_dataset.is_minari_dataset(path):
        return _open_minari(path)
    if holds_a_run:
        return _open_run(path)
    if path.suffix in (".npz", ".npy"):
        return RecordedData(path.name, official_npy.read(path), None, None, None)
    if not path.exists():
        if (local := _local_minari(str(where))) is not None:
            return _open_minari(local)
        raise ConfigError(f"dataset {where} is not there; allowed: {FORMATS}")
    kind = "a folder of something else" if path.is_dir() else f"a file that is not read ({path.suffix or 'no suffix'})"
    raise ConfigError(f"dataset {where} is {kind}; allowed: {FORMATS}")


def _local_minari(dataset_id: str) -> Path | None:
    """Return the folder of the local Minari dataset of that id; None where there is none."""
    with contextlib.suppress(ConfigError, OSError, ValueError):  # no Minari, no folder for it, no such name
        minari_dataset.require_minari()
        from minari.storage import get_dataset_path  # which makes the folder that holds all datasets

        local = Path(get_dataset_path(dataset_id))
        return local if minari_dataset.is_minari_dataset(local) else None
    return None


def _open_run(folder: Path) -> RecordedData:
    RunFolder(folder).check_has_policy()
    run = read_saved(folder)
    # A policy that reads latents cannot act in another world model.
    actor = run.arrays["agent"]["actor"] if run.config.agent in ("a2c", "value_gradient") else None
    name = folder.absolute().name  # that of ``.`` too
    return RecordedData(name, run.transitions, run.config.env, run.config, actor)


def _open_minari(folder: Path) -> RecordedData:
    metadata = read_json(folder / "data" / "metadata.json")  # before minari reads it, whatever it is
    collector, actor = None, None
    if "polygrad_config" in metadata:  # which says how the sampled actions were executed, whatever is beside the data
        try:
            told = json.loads(metadata["polygrad_config"])
        except (TypeError, ValueError, RecursionError) as error:
            raise ConfigError(f"dataset {folder}: polygrad_config cannot be read ({error}); allowed: JSON") from error
        collector = configs.validate(configs.from_dict(told))
    if (folder / CONFIG_FILE).is_file() and (folder / POLICY_FILE).is_file():
        collector = configs.validate(configs.from_dict(RunFolder(folder).saved_config()))
        actor = load_npz(folder / POLICY_FILE).get("actor")
    # What Minari combined of several has their sampled actions too, and nothing that says how they were executed.
    transitions, env_id = minari_dataset.read(folder, sampled=collector is not None)
    named = None if env_id is None else EnvConfig(name=env_id)
    env = named if collector is None else collector.env
    # The folder's own name is only the last part of the id, without the task.
    name = str(metadata.get("dataset_id", folder.absolute().name)).replace("/", "-")
    return RecordedData(name, transitions, env, collector, actor)
