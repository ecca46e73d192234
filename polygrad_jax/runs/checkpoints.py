"""Checkpoints (orbax) that are complete or absent, and come back bit for bit or not at all.

A checkpoint is one flat dictionary of named arrays and one JSON of the host's state. The JSON holds a checksum over
both, because reading a file with a flipped bit need not fail.

orbax is imported by the first save or read, so that a new run starts without waiting for it.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import io
import json
import logging
import shutil
import sys
import threading
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from polygrad_jax.config import ConfigError
from polygrad_jax.data.normaliser import RunningMoments, floored_in_version_2
from polygrad_jax.data.plain_arrays import read_npz
from polygrad_jax.runs.run_folder import (
    FORMAT_VERSION,
    LARGEST_HOST_JSON,
    LOOKED_AT_VERSIONS,
    RESUMED_VERSIONS,
    RunFolder,
    cannot_be_resumed,
    one_line_on_disk_trouble,
    read_json,
    step_folders,
    write_bytes_atomically,
)

_VERSION_1_NAMES = {"train_state/learner": "train_state/agent"}
"""Parts of a checkpoint that had another name in version 1."""
_ONLY_IN_VERSION_1 = ("acting_actor", "next_actor")

_ARRAYS, _HOST = "arrays", "host"
_TEMPORARY = ".orbax-checkpoint-tmp"


class CorruptCheckpoint(Exception):
    """A checkpoint that cannot be read back as it was written."""


class Stored(NamedTuple):
    """One checkpoint, read without knowing what learns."""

    step: int
    arrays: dict[str, np.ndarray]  # by name, "a/b/c", under the names of FORMAT_VERSION
    host: dict[str, Any]
    version: int


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


def nested(named: Mapping[str, Any]) -> dict[str, Any]:
    """Turn names ``a/b/c`` into nested dictionaries.

    Raises:
      ValueError: a name is both an array's and the beginning of another's.
    """
    tree: dict[str, Any] = {}
    for name, leaf in named.items():
        *inner, last = name.split("/")
        node = tree
        for key in inner:
            node = node.setdefault(key, {})
            if not isinstance(node, dict):
                raise ValueError(f"{name} is below an array")
        if last in node:
            raise ValueError(f"{name} has arrays below it")
        node[last] = leaf
    return tree


def restored(template: Any, named: Mapping[str, np.ndarray], where: str, spare: bool = False) -> Any:
    """Arrange named arrays as the pytree ``template`` of arrays or ``jax.ShapeDtypeStruct``.

    Leaves that are NumPy arrays in ``template`` come back as NumPy arrays, all others on the default device. An array
    without elements may be missing. With ``spare`` there may be arrays that ``template`` has not.

    Raises:
      ConfigError: other arrays, or other shapes or types, than those of ``template``; ``where`` says whose.
    """
    wanted = flatten_named(template)
    expected = {name for name, leaf in wanted.items() if 0 not in np.shape(leaf)}
    different = sorted(expected - named.keys() if spare else expected ^ {n for n in named if named[n].size})
    if different:
        raise ConfigError(f"{where} has other arrays: {', '.join(different[:3])}; allowed: those of this version")
    leaves = [_placed(where, name, named.get(name), leaf) for name, leaf in wanted.items()]
    return jax.tree.unflatten(jax.tree.structure(template), leaves)


def _placed(where: str, name: str, value: np.ndarray | None, wanted: Any) -> Any:
    """Check one array and bring it to where the template has it."""
    shape, dtype = np.shape(wanted), getattr(wanted, "dtype", None) or np.asarray(wanted).dtype
    value = np.zeros(shape, dtype) if value is None else value
    if value.shape != shape or value.dtype != dtype:
        raise ConfigError(f"{where} has {name} as {value.dtype}{list(value.shape)}; allowed: {dtype}{list(shape)}")
    # A copy of its own: device_put may share NumPy's memory, and the state is donated.
    return value if isinstance(wanted, np.ndarray | np.generic) else jnp.array(value)


def _finishing(loop: asyncio.AbstractEventLoop) -> asyncio.AbstractEventLoop:
    """Have an event loop close when what it has begun is finished, or ten seconds later."""
    close_now = loop.close

    def close() -> None:
        loop.set_exception_handler(lambda loop, context: None)  # the first failure is what was raised
        if not loop.is_closed() and (begun := asyncio.all_tasks(loop)):
            loop.run_until_complete(asyncio.wait(begun, timeout=10.0))
        close_now()

    loop.close = close
    return loop


_SILENCING = threading.RLock()
"""Held where names of other modules are replaced: two threads would put back each other's."""


@contextlib.contextmanager
def _orbax_silent() -> Iterator[None]:
    """Have orbax say nothing about what it raises; here each becomes one line.

    It logs every error with its stack. And it closes its event loop at the first array that cannot be read: of each
    that is read afterwards tensorstore or asyncio would print the stack.
    """
    with _SILENCING:
        logger, new_event_loop = logging.getLogger("absl"), asyncio.new_event_loop
        before, logger.disabled = logger.disabled, True
        asyncio.new_event_loop = lambda: _finishing(new_event_loop())
        try:
            yield
        finally:
            logger.disabled, asyncio.new_event_loop = before, new_event_loop


def _remove(path: Path) -> None:
    shutil.rmtree(path) if path.is_dir() else path.unlink()


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
        self._keep, self._say = keep, say or (lambda line: print(line, file=sys.stderr))
        self._read_only = read_only
        if not read_only:
            with one_line_on_disk_trouble(self.folder):
                self.folder.mkdir(parents=True, exist_ok=True)
                for left_over in self.folder.glob(f"*{_TEMPORARY}*"):
                    _remove(left_over)

    @functools.cached_property
    def _manager(self) -> Any:
        import orbax.checkpoint as ocp

        if self._read_only:
            options = ocp.CheckpointManagerOptions(read_only=True)
        else:
            this = ocp.multihost.process_index()  # of several hosts one alone keeps the folder
            alone = ocp.options.MultiprocessingOptions(primary_host=this, active_processes={this})
            options = ocp.CheckpointManagerOptions(
                max_to_keep=self._keep, enable_async_checkpointing=False, create=False, multiprocessing_options=alone
            )
        with one_line_on_disk_trouble(self.folder), _orbax_silent():  # it warns that it will not write
            return ocp.CheckpointManager(self.folder, options=options, item_names=(_ARRAYS, _HOST))

    def steps(self) -> list[int]:
        """Environment steps of the checkpoints there are, oldest first."""
        if not self.folder.is_dir():
            return []
        return step_folders(self.folder)

    def save(self, step: int, arrays: Any, host_json: dict[str, Any]) -> None:
        """Saves a pytree of arrays and a JSON; both are on the disk when this returns.

        ``host_json`` may hold what JSON can; ``format_version`` and ``checksum`` are added. One of the same step is
        replaced. A full disk is a ConfigError of one line, and the checkpoints before stay.
        """
        import orbax.checkpoint as ocp

        named = _on_host(arrays)
        # orbax refuses arrays without elements; their shapes come back from the target.
        stored = {name: array for name, array in named.items() if array.size}
        # As it will be read. What is no JSON fails here, before any file.
        remembered = json.loads(json.dumps(host_json))
        host = {**remembered, "format_version": FORMAT_VERSION, "checksum": _checksum(stored, remembered)}
        if step in self.steps():
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

    def restore(self, target: Any, at_most: int | None = None) -> tuple[int, Any, dict[str, Any]] | None:
        """``(step, arrays, host_json)`` of the newest checkpoint that can be read; None where there is none.

        Checkpoints after the step ``at_most`` do not count, and stay where they are (see :meth:`remove_after`).

        ``target`` has the structure, shapes and types wanted (see :func:`restored`). A checkpoint that cannot be read
        is named in a warning, set aside as ``corrupt-STEP``, and the one before is taken.

        Raises:
          ConfigError: none can be read, or it is of another version, or its arrays are not those of ``target``.
        """
        stored, corrupt = self._newest(RESUMED_VERSIONS, at_most)
        if stored is None:
            return None
        arrays = restored(target, stored.arrays, f"checkpoint {self.folder / str(stored.step)}")
        self._set_aside(corrupt, stored.step)
        return stored.step, arrays, stored.host

    def look(self) -> Stored | None:
        """Read the newest readable checkpoint without a template; None where there is none.

        Checkpoints of version 1 are read too, under the names of today.

        Raises:
          ConfigError: none can be read, or it is of a version that is not known.
        """
        stored, corrupt = self._newest(LOOKED_AT_VERSIONS)
        if stored is not None:
            self._set_aside(corrupt, stored.step)
        return stored

    def hosts(self) -> dict[int, dict[str, Any]]:
        """What the host remembered in each checkpoint, by its step; those whose JSON cannot be read are left out."""
        hosts = {}
        for step in self.steps():
            with contextlib.suppress(FileNotFoundError, ConfigError):
                hosts[step] = read_json(self.folder / str(step) / _HOST / "metadata", LARGEST_HOST_JSON)
        return hosts

    def remove_after(self, step: int) -> None:
        """Remove the checkpoints after a step."""
        for later in self.steps():
            if later > step:
                self._manager.delete(later)

    def _newest(self, versions: tuple[int, ...], at_most: int | None = None) -> tuple[Stored | None, dict[int, str]]:
        """The newest checkpoint that can be read, and why newer ones cannot."""
        corrupt: dict[int, str] = {}
        for step in reversed(self.steps()):
            if at_most is not None and step > at_most:
                continue
            try:
                return self.read(step, versions), corrupt
            except CorruptCheckpoint as error:
                corrupt[step] = str(error)
        if corrupt:
            newest = max(corrupt)
            raise ConfigError(
                f"none of the checkpoints {sorted(corrupt)} in {self.folder} can be read "
                f"({newest}: {corrupt[newest]}); allowed: a run folder with a whole checkpoint, or a new one"
            )
        return None, corrupt

    def read(self, step: int, versions: tuple[int, ...] = RESUMED_VERSIONS) -> Stored:
        """Read one checkpoint.

        Raises:
          CorruptCheckpoint: it is not what was written.
          ConfigError: it is of another version than ``versions``.
        """
        import orbax.checkpoint as ocp

        host = self._read_item(step, _HOST, ocp.args.JsonRestore())
        found = host.get("format_version") if isinstance(host, dict) else None
        if found not in versions:
            raise ConfigError(cannot_be_resumed(self.folder / str(step), found))
        arrays = self._read_item(step, _ARRAYS, ocp.args.PyTreeRestore())
        remembered = {k: v for k, v in host.items() if k not in ("format_version", "checksum")}
        if _checksum(arrays, remembered) != host.get("checksum"):
            raise CorruptCheckpoint("its checksum is not that of its content")
        return Stored(step, _todays_names(arrays) if found == 1 else arrays, remembered, found)

    def _read_item(self, step: int, item: str, how: Any) -> Any:
        import orbax.checkpoint as ocp

        try:
            with _orbax_silent():
                return self._manager.restore(step, args=ocp.args.Composite(**{item: how}))[item]
        except Exception as error:  # what a broken file raises depends on the layer that notices
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise CorruptCheckpoint(reason[:200]) from error

    def _set_aside(self, corrupt: dict[int, str], taken: int) -> None:
        """Renames unreadable checkpoints, so that new ones can take their step; only names them if ``read_only``."""
        for step, reason in corrupt.items():
            if self._read_only:
                path = self.folder / str(step)
                self._say(f"warning: checkpoint {path} cannot be read ({reason}); showing step {taken}")
                continue
            aside = self.folder / f"corrupt-{step}"
            if aside.exists():
                _remove(aside)
            (self.folder / str(step)).rename(aside)
            self._say(f"warning: checkpoint {aside} cannot be read ({reason}); going on from step {taken}")
        if corrupt and not self._read_only:
            self._manager.reload()

    def close(self) -> None:
        """End orbax's threads, where it was used."""
        if "_manager" in self.__dict__:
            self._manager.close()


def why_standardised_otherwise(folder: Path, moments: RunningMoments) -> str | None:
    """Say why a saved world model sees other normalised numbers than those it learnt from; None where it does not.

    Args:
      folder: of its run.
      moments: of what it learnt from.
    """
    if RunFolder(folder).format_version() == FORMAT_VERSION or not (channels := floored_in_version_2(moments)):
        return None
    return (
        f"run folder {folder} is of a version that standardised otherwise what varies by less than a hundredth of its "
        f"size ({', '.join(channels[:3])})"
    )


def _todays_names(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The arrays of a checkpoint of version 1 under the names of version 2."""

    def renamed(name: str) -> str:
        for before, now in _VERSION_1_NAMES.items():
            if name == before or name.startswith(f"{before}/"):
                return now + name.removeprefix(before)
        return name

    return {renamed(name): array for name, array in arrays.items() if not name.startswith(_ONLY_IN_VERSION_1)}


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
        return nested(read_npz(path))
    except ValueError as error:
        raise ConfigError(f"{path} cannot be read ({error}); allowed: a .npz that this package exported") from error
