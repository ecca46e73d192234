"""Read datasets of the official PyTorch code, without unpickling.

The official code saves its buffer by ``np.save(path, dictionary)``, which is a pickle: unpickling would run the code
that a file names. :mod:`polygrad_jax.data.pickled_arrays` follows the opcodes without importing or calling anything and
accepts arrays of numbers only. The same arrays as ``.npz`` are read too.

A dataset has ``observations``, ``actions``, ``next_observations`` ``[E, L, ...]``, ``rewards``, ``terminals``
``[E, L, 1]``, ``path_lengths`` ``[E]``; behind its length an episode is padded. Its ``sim_states`` are empty for
MuJoCo tasks, so that no simulator can replay such data. Its tasks are version 3.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from polygrad_jax.config import ConfigError
from polygrad_jax.data import pickled_arrays, plain_arrays
from polygrad_jax.data.transition_log import TransitionRecord

MOST_EXPANSION = 100
"""How many times the size of a compressed file its arrays may have: the padding behind short episodes packs well."""

_NEEDED = ("observations", "actions", "rewards", "terminals", "path_lengths")


def read(path: Path) -> TransitionRecord:
    """Read all transitions of the file, episode after episode; the last step of each is terminal or truncated.

    Raises:
      ConfigError: the file is damaged, lacks an array, or holds anything but arrays of numbers.
    """
    try:
        if path.suffix == ".npy":
            plain_arrays.require_file(path)
            with open(path, "rb") as file:
                arrays = pickled_arrays.read(file, _NEEDED)
        else:
            arrays = plain_arrays.read_npz(path, _NEEDED, MOST_EXPANSION)
    except (OSError, ValueError) as error:
        why = " ".join(str(error).split())[:200]
        allowed = f"a .npy of the official code or a .npz with {', '.join(_NEEDED)}"
        raise ConfigError(f"{path} cannot be read ({why}); allowed: {allowed}") from error
    lengths = _lengths(path, arrays)
    rows = np.arange(arrays["observations"].shape[1])[None, :] < lengths[:, None]  # [E, L], False for padding
    ends = np.cumsum(lengths) - 1
    if not np.isin(arrays["terminals"][rows], (0, 1)).all():  # nor is NaN
        raise ConfigError(f"{path}: terminals are not all 0 or 1; allowed: 0 and 1")
    terminals = arrays["terminals"][rows].reshape(-1) > 0
    if terminals.sum() != terminals[ends].sum():
        raise ConfigError(f"{path} has terminals inside of episodes; allowed: only last steps terminal")
    truncations = np.zeros_like(terminals)
    truncations[ends] = ~terminals[ends]
    return TransitionRecord(
        observations=arrays["observations"][rows].astype(np.float32, copy=False),
        actions=arrays["actions"][rows].astype(np.float32, copy=False),
        rewards=arrays["rewards"][rows].reshape(-1).astype(np.float32, copy=False),
        terminals=terminals,
        truncations=truncations,
        simulator_states=np.empty((len(terminals), 0)),
    )


def _lengths(path: Path, arrays: dict[str, np.ndarray]) -> np.ndarray:
    """Return the lengths ``[E]``, checked against the shapes of all arrays."""
    for name, array in arrays.items():
        if array.dtype.kind not in "fiub":
            raise ConfigError(f"{path}: {name} are of type {array.dtype}; allowed: numbers")
    episodes, longest = (*arrays["observations"].shape, 0, 0)[:2]
    widths = {"rewards": (1,), "terminals": (1,)}
    for name in _NEEDED[:-1]:
        shape = arrays[name].shape
        width = widths.get(name, shape[2:])
        if len(shape) != 3 or shape != (episodes, longest, *width) or 0 in shape:
            wanted = [episodes or "1 or more", longest or "1 or more", 1 if name in widths else "1 or more"]
            raise ConfigError(f"{path}: {name} have shape {list(shape)}; allowed: [{', '.join(map(str, wanted))}]")
    lengths = arrays["path_lengths"]
    counts = lengths.dtype.kind != "b" and lengths.shape == (episodes,)
    if not (counts and np.isin(lengths, np.arange(1, longest + 1)).all()):
        raise ConfigError(f"{path}: path_lengths are not {episodes} whole numbers from 1 to {longest}; allowed: such")
    return lengths.astype(np.int64)
