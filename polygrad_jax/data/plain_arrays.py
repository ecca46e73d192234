"""Read the plain arrays of a ``.npz`` that somebody else may have written.

What a file says of its sizes is compared with its size before memory is asked for, and nothing is unpickled.
``numpy.load`` allocates what the header of an array says, whatever the file holds.
"""

from __future__ import annotations

import math
import os
import pickle
import stat
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

PART = 2**20
"""Bytes that are unpacked at once."""


class NoPlainArrays(ValueError):
    """The file is no archive of arrays, or damaged; the message is one line that says what."""


def read_npz(path: Path | str, names: Sequence[str] | None = None, most_expansion: int = 1) -> dict[str, np.ndarray]:
    """Read the named arrays of a ``.npz``, or all.

    Args:
      most_expansion: how many times the size of the file the arrays may have together. A file of ``numpy.savez`` is
        never smaller than its arrays; one of ``numpy.savez_compressed`` is.

    Raises:
      NoPlainArrays: the file is not there, damaged, lacks a name, has one twice, or holds objects (pickles).
    """
    try:
        require_file(path)
        with open(path, "rb") as raw:
            if raw.read(1) == pickle.PROTO:
                raise NoPlainArrays("it holds pickles")
        with open(path, "rb") as raw, zipfile.ZipFile(raw) as archive:
            parts = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
            if len(parts) != len(archive.infolist()):
                raise NoPlainArrays("it has a name twice")
            wanted = list(parts) if names is None else names
            if lacking := [name for name in wanted if name not in parts]:
                raise NoPlainArrays(f"it has no {', '.join(lacking)}")
            size, told = os.fstat(raw.fileno()).st_size, sum(parts[name].file_size for name in wanted)
            if told > most_expansion * size:
                times = f"{most_expansion} times the file's " if most_expansion > 1 else "the file's "
                raise NoPlainArrays(f"its arrays are said to have {told:,} bytes, more than {times}{size:,}")
            return {name: _array(archive, parts[name]) for name in wanted}
    except NoPlainArrays:
        raise
    except Exception as error:  # zipfile, zlib and numpy raise many kinds for bytes that are no such file
        raise NoPlainArrays(" ".join(f"{type(error).__name__}: {error}".split())[:200]) from error


def require_file(path: Path | str) -> None:
    """Refuse what is there but no file: whoever opens a pipe waits for its other end.

    Raises:
      NoPlainArrays: it is a folder, a pipe or a device.
      OSError: nothing is there.
    """
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise NoPlainArrays("it is no file")


def _array(archive: zipfile.ZipFile, part: zipfile.ZipInfo) -> np.ndarray:
    with archive.open(part) as file:
        version = np.lib.format.read_magic(file)
        header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, fortran, dtype = header(file)
        if dtype.hasobject:
            raise NoPlainArrays("it holds pickles")
        if dtype.itemsize == 0 or min(shape, default=0) < 0:
            raise NoPlainArrays(f"{part.filename} has type {dtype} and shape {shape}")
        count, held = math.prod(shape), part.file_size - file.tell()
        if count * dtype.itemsize != held:
            raise NoPlainArrays(f"{part.filename} is said to have {count * dtype.itemsize:,} bytes and holds {held:,}")
        numbers = np.empty(count, dtype)
        memory = memoryview(numbers.view(np.uint8)) if count else memoryview(b"")
        for start in range(0, len(memory), PART):
            if file.readinto(memory[start : start + PART]) != len(memory[start : start + PART]):
                raise NoPlainArrays(f"{part.filename} ends too early")
        return numbers.reshape(shape, order="F" if fortran else "C")
