"""Read arrays from a dictionary that ``np.save`` wrote as a pickle, without unpickling the file.

``pickletools.genops`` reads the opcodes and runs nothing. They are followed on tuples, lists and dictionaries: nothing
that a file names is imported or called. A name stays a :class:`Name`, a call stays a :class:`Call`. Only calls that
make arrays of numbers are turned into arrays, from type, shape and bytes; a file with anything else is refused. Only
the requested arrays are made.
"""

from __future__ import annotations

import os
import pickletools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np

_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_LITERALS = {
    *("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT"),
    *("BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8"),
}
_MAKES_ARRAYS = {"numpy.core.multiarray._reconstruct", "numpy._core.multiarray._reconstruct"}
_NUMBERS = re.compile(r"[fiub][0-9]{1,2}")
_MARK = object()
MOST_OPCODES = 100_000
"""A dictionary of arrays needs some tens for each; following a million takes seconds."""


@dataclass(frozen=True)
class Name:
    """A name that unpickling would import."""

    path: str


@dataclass
class Call:
    """A call that unpickling would make, and the state that it would set on the result."""

    name: Name
    arguments: tuple[Any, ...]
    state: Any = None


class NotArrays(ValueError):
    """The file holds something other than a dictionary of arrays of numbers; the message says what."""


def read(file: BinaryIO, names: Sequence[str]) -> dict[str, np.ndarray]:
    """Read the named arrays of ``np.save(file, {name: array, ...})``, protocols 2 to 4; ``file`` is at its beginning.

    The arrays are read-only views of the bytes that were read.

    Raises:
      NotArrays: the file is of another kind, damaged, lacks a name, or holds anything but arrays of numbers.
    """
    try:
        version = np.lib.format.read_magic(file)
        header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = header(file)
        if shape != () or not dtype.hasobject:
            raise NotArrays(f"an array of shape {shape} and type {dtype} in place of a dictionary")
        held = _follow(_Bounded(file))
        dictionary = _only(held.state[4]) if isinstance(held, Call) and held.name.path in _MAKES_ARRAYS else held
        if not isinstance(dictionary, dict):
            raise NotArrays("it holds no dictionary")
        calls = {name: _checked(name, call) for name, call in dictionary.items()}
        if lacking := [name for name in names if name not in calls]:
            raise NotArrays(f"it has no {', '.join(lacking)}")
        return {name: _array(name, calls[name]) for name in names}
    except NotArrays:
        raise
    except Exception as error:  # numpy and pickletools raise many kinds for bytes that are no such file
        raise NotArrays(f"damaged or incomplete: {type(error).__name__} {error}") from error


class _Bounded:
    """A file as ``pickletools`` reads it, from which no more is asked than it has: asking allocates."""

    def __init__(self, file: BinaryIO):
        self._file, self._size = file, os.fstat(file.fileno()).st_size
        self.tell, self.readline = file.tell, file.readline

    def read(self, count: int) -> bytes:
        if count > self._size - self.tell():
            raise NotArrays(f"damaged or incomplete: {count:,} bytes are said to follow")
        return self._file.read(count)


def _follow(file: Any) -> Any:
    """Follow the opcodes; return the one object on the stack at the end."""
    stack: list[Any] = []
    memo: dict[int, Any] = {}
    for count, (opcode, argument, _) in enumerate(pickletools.genops(file)):
        if count == MOST_OPCODES:
            raise NotArrays(f"it has more than {MOST_OPCODES:,} opcodes, which no dictionary of arrays needs")
        name = opcode.name
        if name in ("PROTO", "FRAME"):
            continue
        if name == "STOP":
            return _only(stack)
        if name in ("MEMOIZE", "BINPUT", "LONG_BINPUT"):
            memo[len(memo) if name == "MEMOIZE" else argument] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            stack.append(memo[argument])
        else:
            _step(stack, name, argument)
    raise NotArrays("it ends too early")


def _step(stack: list[Any], name: str, argument: Any) -> None:
    """Apply one opcode to the stack."""
    if name in _LITERALS:
        stack.append(argument)
    elif name in _CONSTANTS:
        stack.append(_CONSTANTS[name])
    elif name in ("EMPTY_DICT", "EMPTY_LIST", "EMPTY_TUPLE"):
        stack.append({"EMPTY_DICT": dict, "EMPTY_LIST": list, "EMPTY_TUPLE": tuple}[name]())
    elif name == "MARK":
        stack.append(_MARK)
    elif name == "TUPLE":
        stack.append(tuple(_from_mark(stack)))
    elif name in ("TUPLE1", "TUPLE2", "TUPLE3"):
        stack.append(tuple(_pop(stack, int(name[-1]))))
    elif name == "GLOBAL":
        stack.append(Name(argument.replace(" ", ".")))
    elif name == "STACK_GLOBAL":
        stack.append(Name(".".join(map(_text, _pop(stack, 2)))))
    elif name == "REDUCE":
        stack.append(Call(*_pop(stack, 2)))
    elif name == "BUILD":
        (state,) = _pop(stack, 1)
        stack[-1].state = state
    elif name in ("SETITEM", "SETITEMS"):
        pairs = _pop(stack, 2) if name == "SETITEM" else _from_mark(stack)
        # only strings are accepted as keys: hashing nested tuples can take for ever
        stack[-1].update((_text(name), value) for name, value in zip(pairs[::2], pairs[1::2], strict=True))
    elif name in ("APPEND", "APPENDS"):
        items = _pop(stack, 1) if name == "APPEND" else _from_mark(stack)
        stack[-1].extend(items)
    else:
        raise NotArrays(f"it has the opcode {name}, which no dictionary of arrays needs")


def _pop(stack: list[Any], count: int) -> list[Any]:
    """Remove and return the last ``count`` values, in their order."""
    if len(stack) < count:
        raise NotArrays("it takes more than it put down")
    values = stack[-count:]
    del stack[-count:]
    return values


def _from_mark(stack: list[Any]) -> list[Any]:
    """Remove and return the values above the last mark, and remove the mark."""
    values = []
    while stack:
        value = stack.pop()
        if value is _MARK:
            return values[::-1]
        values.append(value)
    raise NotArrays("it takes more than it put down")


def _only(values: list[Any]) -> Any:
    if not isinstance(values, list) or len(values) != 1:
        raise NotArrays("it holds no single dictionary")
    return values[0]


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise NotArrays(f"a {type(value).__name__} where a name should be")
    return value


def _checked(name: str, call: Any) -> Call:
    """Return the call if it makes an array of numbers."""
    if not isinstance(call, Call) or call.name.path not in _MAKES_ARRAYS or call.state is None:
        what = call.name.path if isinstance(call, Call) else type(call).__name__
        raise NotArrays(f"{name[:60]!r} is no array ({what[:60]!r})")
    _dtype(name, call.state[2])
    return call


def _array(name: str, call: Call) -> np.ndarray:
    """Make the array of numbers that numpy's own call would make."""
    _, shape, dtype, fortran, data = call.state
    numbers = np.frombuffer(dtype=_dtype(name, dtype), buffer=_bytes(name, data))
    return numbers.reshape(shape, order="F" if fortran else "C")


def _dtype(name: str, call: Any) -> np.dtype:
    code = call.arguments[0] if isinstance(call, Call) and call.name.path == "numpy.dtype" else None
    if not isinstance(code, str) or not _NUMBERS.fullmatch(code):
        raise NotArrays(f"{name[:60]!r} is no array of numbers")
    order = call.state[1] if call.state[1] in ("<", ">", "|") else "="
    return np.dtype(code).newbyteorder(order)


def _bytes(name: str, data: Any) -> bytes:
    """Return bytes, which protocol 2 writes as text to be encoded in Latin-1, or as a call without arguments."""
    if isinstance(data, Call) and data.name.path == "_codecs.encode" and data.arguments[1:] == ("latin1",):
        return _text(data.arguments[0]).encode("latin1")
    if isinstance(data, Call) and (data.name.path, data.arguments) == ("__builtin__.bytes", ()):
        return b""
    if not isinstance(data, bytes):
        raise NotArrays(f"{name!r} has no bytes")
    return data
