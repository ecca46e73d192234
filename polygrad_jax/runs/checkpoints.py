"""Checkpoints (orbax) that are complete or absent, and come back bit for bit or not at all.

A checkpoint is one flat dictionary of named arrays and one JSON of what the host must remember. A checksum over
both is kept in the JSON, because a flipped bit in a file need not make reading it fail.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import shutil
import sys
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from polygrad_jax.config import ConfigError
from polygrad_jax.runs.run_folder import one_line_on_disk_trouble, write_bytes_atomically

FORMAT_VERSION = 1
"""To be raised when the meaning of a checkpoint's arrays or JSON changes."""

_ARRAYS, _HOST = "arrays", "host"
_TEMPORARY = ".orbax-checkpoint-tmp"


class CorruptCheckpoint(Exception):
    """A checkpoint that cannot be read back as it was written."""


# --- names for the leaves of a pytree ---------------------------------------------------------------------------------


def _key_name(key: Any) -> str:
    """The name of one step down a pytree: of a dictionary, a dataclass or named tuple, a sequence."""
    for attribute in ("key", "name", "idx"):
        if hasattr(key, attribute):
            return str(getattr(key, attribute))
    raise TypeError(f"no name for {key!r}")


def flatten_named(tree: Any) -> dict[str, Any]:
    """The leaves of a pytree by their path, ``a/b/c``.

    Raises:
      ValueError: two leaves have the same path (a name holds a slash).
    """
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    named = {"/".join(_key_name(k) for k in path): leaf for path, leaf in leaves}
    if len(named) != len(leaves):
        raise ValueError("two leaves of the pytree have the same path; names must not hold '/'")
    return named


def _on_host(tree: Any) -> dict[str, np.ndarray]:
    for name, leaf in flatten_named(tree).items():
        if jax.dtypes.issubdtype(getattr(leaf, "dtype", np.float32), jax.dtypes.extended):
            raise TypeError(f"{name} is a typed key; save jax.random.key_data of it")
    return {name: np.asarray(leaf) for name, leaf in flatten_named(jax.device_get(tree)).items()}


def _checksum(arrays: dict[str, np.ndarray], host_json: dict[str, Any]) -> int:
    """CRC-32 over the JSON and over names, types, shapes and bytes of all arrays."""
    crc = zlib.crc32(json.dumps(host_json, sort_keys=True).encode())
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        crc = zlib.crc32(f"{name} {array.dtype} {arrays[name].shape}".encode(), crc)
        crc = zlib.crc32(array.reshape(-1).view(np.uint8), crc)
    return crc


@contextlib.contextmanager
def _orbax_silent() -> Iterator[None]:
    """orbax logs every error with its stack before raising it; here each becomes one line."""
    logger = logging.getLogger("absl")
    before, logger.disabled = logger.disabled, True
    try:
        yield
    finally:
        logger.disabled = before


# --- checkpoints -----------------------------------------------------------------------------------------------------


class Checkpoints:
    """The newest ``keep`` checkpoints of a run, by environment step."""

    def __init__(
        self, folder: Path | str, keep: int = 2, say: Callable[[str], None] | None = None, read_only: bool = False
    ):
        """Opens the folder and removes what killed saves left in it.

        With ``read_only`` nothing on the disk is changed, so that a run that is still going on can be looked at: what
        is unfinished or unreadable stays where it is.
        """
        self.folder = Path(folder).absolute()
        self._say = say or (lambda line: print(line, file=sys.stderr))
        self._read_only = read_only
        if read_only:
            with _orbax_silent():  # it warns that it will not write
                options = ocp.CheckpointManagerOptions(read_only=True)
                self._manager = ocp.CheckpointManager(self.folder, options=options, item_names=(_ARRAYS, _HOST))
            return
        with one_line_on_disk_trouble(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            for left_over in self.folder.glob(f"*{_TEMPORARY}*"):
                shutil.rmtree(left_over)
            options = ocp.CheckpointManagerOptions(max_to_keep=keep, enable_async_checkpointing=False)
            self._manager = ocp.CheckpointManager(self.folder, options=options, item_names=(_ARRAYS, _HOST))

    def steps(self) -> list[int]:
        """Environment steps of the checkpoints there are, oldest first."""
        return sorted(self._manager.all_steps())

    def save(self, step: int, arrays: Any, host_json: dict[str, Any]) -> None:
        """Saves a pytree of arrays and a JSON; both are on the disk when this returns.

        ``host_json`` may hold what JSON can; ``format_version`` and ``checksum`` are added. One of the same step is
        replaced. A full disk is a ConfigError of one line, and the checkpoints before stay.
        """
        named = _on_host(arrays)
        # orbax refuses arrays without elements; their shapes come back from the target.
        stored = {name: array for name, array in named.items() if array.size}
        # As it will be read. What is no JSON fails here, before any file.
        remembered = json.loads(json.dumps(host_json))
        host = {**remembered, "format_version": FORMAT_VERSION, "checksum": _checksum(stored, remembered)}
        if step in self._manager.all_steps():
            self._manager.delete(step)
        items = {_ARRAYS: ocp.args.PyTreeSave(stored), _HOST: ocp.args.JsonSave(host)}
        with one_line_on_disk_trouble(self.folder / str(step)), _orbax_silent():
            try:
                self._manager.save(step, args=ocp.args.Composite(**items), force=True)
                self._manager.wait_until_finished()
            except BaseException:
                for left_over in self.folder.glob(f"*{_TEMPORARY}*"):
                    shutil.rmtree(left_over, ignore_errors=True)
                raise

    def restore(self, target: Any) -> tuple[int, Any, dict[str, Any]] | None:
        """``(step, arrays, host_json)`` of the newest checkpoint that can be read; None where there is none.

        ``target`` has the structure, shapes and types wanted (arrays or ``jax.ShapeDtypeStruct``); leaves that are
        NumPy arrays in it come back as NumPy arrays, all others on the default device. A checkpoint that cannot be
        read is named in a warning, set aside as ``corrupt-STEP``, and the one before is taken.

        Raises:
          ConfigError: none can be read, or it is of another version, or its arrays are not those of ``target``.
        """
        corrupt: dict[int, str] = {}
        for step in reversed(self.steps()):
            try:
                stored, host = self._read(step)
            except CorruptCheckpoint as error:
                corrupt[step] = str(error)
                continue
            arrays = self._as_target(step, stored, target)
            self._set_aside(corrupt, step)
            return step, arrays, host
        if corrupt:
            newest = max(corrupt)
            raise ConfigError(
                f"none of the checkpoints {sorted(corrupt)} in {self.folder} can be read "
                f"({newest}: {corrupt[newest]}); allowed: a run folder with a whole checkpoint, or a new one"
            )
        return None

    def _read(self, step: int) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        path = self.folder / str(step)
        host = self._read_item(step, _HOST, ocp.args.JsonRestore())
        found = host.get("format_version") if isinstance(host, dict) else None
        if found != FORMAT_VERSION:
            raise ConfigError(f"checkpoint {path} has format version {found}; allowed: {FORMAT_VERSION}")
        stored = self._read_item(step, _ARRAYS, ocp.args.PyTreeRestore())
        remembered = {k: v for k, v in host.items() if k not in ("format_version", "checksum")}
        if _checksum(stored, remembered) != host.get("checksum"):
            raise CorruptCheckpoint("its checksum is not that of its content")
        return stored, remembered

    def _read_item(self, step: int, item: str, how: Any) -> Any:
        try:
            with _orbax_silent():
                return self._manager.restore(step, args=ocp.args.Composite(**{item: how}))[item]
        except Exception as error:  # what a broken file raises depends on the layer that notices
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise CorruptCheckpoint(reason[:200]) from error

    def _as_target(self, step: int, stored: dict[str, np.ndarray], target: Any) -> Any:
        """The stored arrays in the structure of ``target``."""
        wanted = flatten_named(target)
        path = self.folder / str(step)
        expected = {name for name, leaf in wanted.items() if 0 not in np.shape(leaf)}
        if different := sorted(expected ^ stored.keys()):
            raise ConfigError(
                f"checkpoint {path} has other arrays: {', '.join(different[:3])}; allowed: those of this version"
            )
        leaves = [_placed(path, name, stored.get(name), leaf) for name, leaf in wanted.items()]
        return jax.tree.unflatten(jax.tree.structure(target), leaves)

    def _set_aside(self, corrupt: dict[int, str], taken: int) -> None:
        """Renames unreadable checkpoints, so that new ones can take their step; only names them if ``read_only``."""
        for step, reason in corrupt.items():
            if self._read_only:
                path = self.folder / str(step)
                self._say(f"warning: checkpoint {path} cannot be read ({reason}); showing step {taken}")
                continue
            aside = self.folder / f"corrupt-{step}"
            shutil.rmtree(aside, ignore_errors=True)
            (self.folder / str(step)).rename(aside)
            self._say(f"warning: checkpoint {aside} cannot be read ({reason}); going on from step {taken}")
        if corrupt and not self._read_only:
            self._manager.reload()

    def close(self) -> None:
        """Ends orbax's threads."""
        self._manager.close()


def _placed(path: Path, name: str, value: np.ndarray | None, wanted: Any) -> Any:
    """One array, checked and brought to where the target has it."""
    shape, dtype = np.shape(wanted), getattr(wanted, "dtype", None) or np.asarray(wanted).dtype
    value = np.zeros(shape, dtype) if value is None else value
    if value.shape != shape or value.dtype != dtype:
        raise ConfigError(
            f"checkpoint {path} has {name} as {value.dtype}{list(value.shape)}; allowed: {dtype}{list(shape)}"
        )
    # A copy of its own: device_put may share NumPy's memory, and the state is donated.
    return value if isinstance(wanted, np.ndarray | np.generic) else jnp.array(value)


# --- plain arrays ----------------------------------------------------------------------------------------------------


def npz_bytes(tree: Any) -> bytes:
    """A pytree as the content of a ``.npz``, arrays named by their paths, ``a/b/c``."""
    named = _on_host(tree)
    for name, array in named.items():
        # NumPy writes types that it does not know (bfloat16) as bytes without a type.
        if array.dtype.kind not in "biufc":
            raise TypeError(f"{name} is {array.dtype}; a .npz holds NumPy's own types")
    buffer = io.BytesIO()
    np.savez(buffer, **named)
    return buffer.getvalue()


def export_npz(path: Path | str, tree: Any) -> None:
    """Writes a pytree as plain arrays named by their paths, ``a/b/c``; readable with ``numpy.load`` alone."""
    write_bytes_atomically(path, npz_bytes(tree))


def load_npz(path: Path | str) -> dict[str, Any]:
    """What :func:`export_npz` wrote, as nested dictionaries of NumPy arrays.

    Raises:
      ConfigError: the file is not there or is not such a file.
    """
    try:
        # Opened here: np.load leaves the file open where it is no archive.
        with open(path, "rb") as raw, np.load(raw, allow_pickle=False) as file:
            named = {name: file[name] for name in file.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise ConfigError(f"{path} cannot be read ({error}); allowed: a .npz that this package exported") from error
    tree: dict[str, Any] = {}
    for name, array in named.items():
        *inner, last = name.split("/")
        node = tree
        for key in inner:
            node = node.setdefault(key, {})
        node[last] = array
    return tree


def save_best(path: Path | str, tree: dict[str, Any]) -> None:
    """Keeps parameters and normaliser of the best evaluation, as plain arrays; the one before is replaced at once."""
    export_npz(path, tree)
