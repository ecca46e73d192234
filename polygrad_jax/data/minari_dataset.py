"""Write and read Minari datasets on the local disk, in the HDF5 format that all tools of Minari read.

The package ``minari`` is an optional extra (``pip install 'polygrad_jax[minari]'``).
"""

from __future__ import annotations

import os
import shutil
import tempfile
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np

from polygrad_jax.config import ConfigError
from polygrad_jax.config.extras import require_extra
from polygrad_jax.data.transition_log import TransitionRecord

SIMULATOR_STATES = "simulator_states"
SAMPLED_ACTIONS = "sampled_actions"
"""Names of two arrays that our datasets add to the ``infos`` of Minari."""


@dataclass(frozen=True)
class RecordedEpisode:
    """T transitions and the observation behind the last, raw."""

    observations: np.ndarray  # [T + 1, O] float32
    actions: np.ndarray  # [T, A] float32, as executed
    sampled_actions: np.ndarray  # [T, A] float32, as sampled
    rewards: np.ndarray  # [T] float32
    terminated: bool  # by the environment
    truncated: bool  # by a time limit, or by the end of the recording
    simulator_states: np.ndarray  # [T + 1, S] float64; S = 0 without MuJoCo


def require_minari() -> Any:
    """Import the package.

    Raises:
      ConfigError: the package is not installed.
    """
    return require_extra("minari", "a Minari dataset")


# --- writing ---------------------------------------------------------------------------------------------------------


def write(
    root: Path,
    dataset_id: str,
    episodes: Iterable[RecordedEpisode],
    env_spec: Any,
    spaces: tuple[gym.spaces.Box, gym.spaces.Box],
    metadata: dict[str, Any],
    beside: dict[str, bytes],
) -> Path:
    """Write the dataset ``dataset_id`` (``namespace/name-v0``) below ``root`` and return its folder.

    A killed process leaves the folder complete or absent. ``actions`` are the executed ones, which lie in the action
    space; ``infos`` have the simulator's states ``[T + 1, S]`` and the actions as sampled (the last row, of an action
    that was not taken, is NaN).

    Args:
      env_spec: Gymnasium's ``EnvSpec``, by which Minari recovers the environment; None where there is none to keep.
      spaces: of observations and actions.
      metadata: ``algorithm_name``, ``description``, ``requirements`` are Minari's own; other entries are added.
      beside: further files of the dataset's folder, contents by name.

    Raises:
      ConfigError: minari is not installed, or the dataset exists already.
    """
    minari = require_minari()
    target = Path(root) / dataset_id
    if target.exists():
        raise ConfigError(f"dataset {target} exists already; allowed: another --out, or remove it first")
    target.parent.mkdir(parents=True, exist_ok=True)
    known = {name: metadata[name] for name in ("algorithm_name", "description", "requirements") if name in metadata}
    # Hidden, so that a listing of datasets skips the leftovers of a killed process.
    unfinished = Path(tempfile.mkdtemp(prefix=".unfinished-", dir=root))
    try:
        with _datasets_in(unfinished), warnings.catch_warnings():
            # Minari recommends an author, an e-mail address, a link and an evaluation environment.
            warnings.filterwarnings("ignore", category=UserWarning)
            written = minari.create_dataset_from_buffers(
                dataset_id=dataset_id,
                buffer=_buffers(episodes),
                env=env_spec,
                observation_space=spaces[0],
                action_space=spaces[1],
                data_format="hdf5",
                **known,
            )
        written.storage.update_metadata({name: x for name, x in metadata.items() if name not in known})
        for name, content in beside.items():
            (unfinished / dataset_id / name).write_bytes(content)
        os.replace(unfinished / dataset_id, target)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return target


def _buffers(episodes: Iterable[RecordedEpisode]) -> Iterator[Any]:
    from minari.data_collector import EpisodeBuffer

    for episode in episodes:
        length = len(episode.rewards)
        ends = np.arange(length) == length - 1
        no_action = np.full_like(episode.sampled_actions[:1], np.nan)
        infos = {SAMPLED_ACTIONS: np.concatenate([episode.sampled_actions, no_action])}
        if episode.simulator_states.shape[1]:
            infos[SIMULATOR_STATES] = episode.simulator_states
        yield EpisodeBuffer(
            observations=episode.observations,
            actions=episode.actions,
            rewards=episode.rewards,
            terminations=ends & episode.terminated,
            truncations=ends & episode.truncated,
            infos=infos,
        )


class _datasets_in:
    """Make Minari keep its datasets in another folder, within a ``with`` block."""

    def __init__(self, folder: Path):
        self._folder = str(folder.absolute())

    def __enter__(self) -> None:
        self._before = os.environ.get("MINARI_DATASETS_PATH")
        os.environ["MINARI_DATASETS_PATH"] = self._folder

    def __exit__(self, *_: object) -> None:
        del os.environ["MINARI_DATASETS_PATH"]
        if self._before is not None:
            os.environ["MINARI_DATASETS_PATH"] = self._before


# --- reading ---------------------------------------------------------------------------------------------------------


def is_minari_dataset(folder: Path) -> bool:
    """Return whether this is the folder of a Minari dataset (the one that holds ``data``)."""
    return (Path(folder) / "data" / "metadata.json").is_file()


def read(folder: Path, sampled: bool = False) -> tuple[TransitionRecord, str | None]:
    """Read all transitions of a dataset, and the Gymnasium id of its task where the dataset names one.

    Episodes follow one another; the last step of each is terminal or truncated (truncated too where the recording just
    stops). Actions are rescaled to [-1, 1], the bounds of our environments, from other bounds of the dataset's action
    space. Only datasets of ours have simulator states; for others S = 0.

    Args:
      sampled: take the actions as sampled, where a dataset of ours has them.

    Raises:
      ConfigError: minari is not installed, the folder is damaged, a space is not a flat Box (finite for actions), or
        the episodes are not those that the metadata and the spaces describe.
    """
    minari = require_minari()
    try:
        dataset = minari.MinariDataset(Path(folder) / "data")
        low, high = _bounds(folder, dataset.observation_space, dataset.action_space)
        told, parts, moves = list(dataset.storage.get_episode_metadata(dataset.episode_indices)), [], False
        for episode, metadata in zip(dataset.iterate_episodes(), told, strict=False):
            _check_lengths(folder, episode, metadata, dataset.storage.FORMAT)
            _check_axes(folder, episode, dataset.observation_space.shape, dataset.action_space.shape)
            moves |= len(episode.rewards) < 2 or bool(np.any(episode.observations[1:] != episode.observations[-1]))
            parts.append(_record(folder, episode, low, high, sampled))
        total, spec = dataset.total_steps, dataset.env_spec
    except ConfigError:
        raise
    except Exception as error:  # minari and h5py raise many kinds for files that are no such dataset
        why = f"{type(error).__name__}: {error}"[:200]
        raise ConfigError(f"dataset {folder} cannot be read ({why}); allowed: a whole Minari dataset") from error
    if not parts:
        raise ConfigError(f"dataset {folder} has no episode; allowed: at least one")
    read = len(parts), sum(len(part) for part in parts)
    if read != (told := (len(told), total)):
        raise ConfigError(
            f"dataset {folder} has {read[0]} episodes of {read[1]} steps, its metadata say {told[0]} of {told[1]}; "
            "allowed: a whole dataset"
        )
    if not moves:  # Minari's collector keeps references: of an array that the task fills again, all are its last value
        raise ConfigError(
            f"dataset {folder}: the observations of each episode are all the same; allowed: observations that change "
            "(a task that returns one array again and again must be collected with copies)"
        )
    if len({part.simulator_states.shape[1] for part in parts}) != 1:
        raise ConfigError(f"dataset {folder} has simulator states in some episodes only; allowed: in all or none")
    names = TransitionRecord.__dataclass_fields__
    whole = TransitionRecord(**{name: np.concatenate([getattr(part, name) for part in parts]) for name in names})
    return whole, None if spec is None else spec.id


def _bounds(folder: Path, observations: gym.Space, actions: gym.Space) -> tuple[np.ndarray, np.ndarray]:
    for name, space in (("observation", observations), ("action", actions)):
        if not isinstance(space, gym.spaces.Box) or len(space.shape) != 1 or 0 in space.shape:
            words = " ".join(str(space).split())
            raise ConfigError(f"dataset {folder}: {name} space is {words}; allowed: a Box with one axis, not empty")
    if not (np.isfinite(actions.low).all() and np.isfinite(actions.high).all()):
        raise ConfigError(f"dataset {folder}: action space has infinite bounds; allowed: finite ones")
    if (actions.low > actions.high).any():
        raise ConfigError(f"dataset {folder}: action space has a lower bound above the upper; allowed: up to the upper")
    return np.asarray(actions.low, np.float64), np.asarray(actions.high, np.float64)


def to_unit(actions: np.ndarray, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """Rescale actions ``[T, A]`` from their bounds ``[A]`` to [-1, 1]; 0 in a dimension whose bounds are equal.

    The inverse of what ``envs/checked_task.py`` does when it executes actions.
    """
    if np.all(low == -1.0) and np.all(high == 1.0):
        return np.asarray(actions)
    width = high / 2.0 - low / 2.0  # halves, because the whole may be more than a float64 holds
    above = np.asarray(actions, np.float64) / 2.0 - low / 2.0
    return 2.0 * np.divide(above, width, out=np.full(above.shape, 0.5), where=width > 0) - 1.0


def _check_lengths(folder: Path, episode: Any, metadata: dict[str, Any], data_format: str) -> None:
    """Refuse an episode that is not as long as its metadata say, or whose arrays differ in length."""
    steps = int(metadata.get("total_steps", len(episode.rewards)))
    wanted = dict.fromkeys(("rewards", "actions", "terminations", "truncations"), steps) | {"observations": steps + 1}
    for name, length in wanted.items():
        if (found := len(getattr(episode, name))) != length:
            cut = "" if data_format == "hdf5" else f" (Minari cuts episodes of more than 32,767 steps in {data_format})"
            raise ConfigError(
                f"dataset {folder}: episode {episode.id} has {found} {name}, its metadata say {steps} steps{cut}; "
                f"allowed: {length} {name}, e.g. of a dataset written as hdf5"
            )


def _check_axes(folder: Path, episode: Any, observation: tuple[int, ...], action: tuple[int, ...]) -> None:
    """Refuse an episode whose arrays have other axes than its spaces say, or more than one number a step."""
    rows = {"observations": observation, "actions": action, "rewards": (), "terminations": (), "truncations": ()}
    for name, row in rows.items():
        if (found := np.shape(getattr(episode, name)))[1:] != row:
            wanted = (found[0], *row)
            raise ConfigError(f"dataset {folder}: episode {episode.id}: {name} have shape {found}; allowed: {wanted}")


def _record(folder: Path, episode: Any, low: np.ndarray, high: np.ndarray, sampled: bool) -> TransitionRecord:
    """Return the transitions of one episode, without the observation behind the last."""
    count, infos = len(episode.rewards), episode.infos or {}
    terminals, truncations = np.array(episode.terminations, bool), np.array(episode.truncations, bool)
    if count == 0 or (terminals | truncations)[:-1].any():
        raise ConfigError(f"dataset {folder}: episode {episode.id} is empty or ends before its last step; allowed: not")
    truncations[-1] = not terminals[-1]
    if sampled and SAMPLED_ACTIONS in infos:
        actions = np.asarray(infos[SAMPLED_ACTIONS])[:count]
    else:
        actions = to_unit(episode.actions, low, high)
    states = np.asarray(infos[SIMULATOR_STATES])[:count] if SIMULATOR_STATES in infos else np.empty((count, 0))
    return TransitionRecord(
        observations=np.asarray(episode.observations, np.float32)[:count],
        actions=np.asarray(actions, np.float32),
        rewards=np.asarray(episode.rewards, np.float32),
        terminals=terminals,
        truncations=truncations,
        simulator_states=np.asarray(states, np.float64),
    )
