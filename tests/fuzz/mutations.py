"""What may have happened to a file on disk: seeded mutations of bytes, JSON, tables and arrays.

Every mutation is a function ``(path, chance) -> None`` that changes the file (or what stands in its place). Nothing
here does harm where a reader is fooled: the pickles make an empty file.
"""

import io
import json
import os
import pickle
import random
import shutil
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from polygrad_jax.data import pickled_arrays

Mutation = Callable[[Path, random.Random], None]
MARKER = "unpickled"
HUGE = 2**28  # bytes: far more than any file here, and few enough to be allocated where nothing is checked


def _bytes(change: Callable[[bytearray, random.Random], bytes | bytearray]) -> Mutation:
    def mutate(path: Path, chance: random.Random) -> None:
        path.write_bytes(bytes(change(bytearray(path.read_bytes()), chance)))

    return mutate


# --- of any file -----------------------------------------------------------------------------------------------------


def _flipped(content: bytearray, chance: random.Random, count: int) -> bytearray:
    for _ in range(count if content else 0):
        content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
    return content


def _swapped(content: bytearray, chance: random.Random) -> bytearray:
    size = max(len(content) // 8, 1)
    a, b = chance.randrange(len(content)), chance.randrange(len(content))
    content[a : a + size], content[b : b + size] = content[b : b + size], content[a : a + size]
    return content


def _folder(path: Path, chance: random.Random) -> None:
    path.unlink()
    path.mkdir()


def _link_to_itself(path: Path, chance: random.Random) -> None:
    path.unlink()
    path.symlink_to(path.name)


def _pickle(path: Path, chance: random.Random) -> None:
    path.write_bytes(pickle.dumps(MakesAFile(path.parent / MARKER)))


class MakesAFile:
    """Makes an empty file when it is unpickled."""

    def __init__(self, path: Path):
        self._path = str(path)

    def __reduce__(self):
        return open, (self._path, "w")


ANY: dict[str, Mutation] = {
    "cut in half": _bytes(lambda c, _: c[: len(c) // 2]),
    "cut by a byte": _bytes(lambda c, _: c[:-1]),
    "first byte only": _bytes(lambda c, _: c[:1]),
    "empty": _bytes(lambda c, _: b""),
    "one bit flipped": _bytes(lambda c, chance: _flipped(c, chance, 1)),
    "bits flipped": _bytes(lambda c, chance: _flipped(c, chance, 20)),
    "parts swapped": _bytes(_swapped),
    "zeros": _bytes(lambda c, _: bytes(len(c))),
    "random": _bytes(lambda c, chance: chance.randbytes(len(c))),
    "grown": _bytes(lambda c, chance: c + chance.randbytes(1000)),
    "twice": _bytes(lambda c, _: c + c),
    "text": _bytes(lambda c, _: b"no such file\n"),
    "missing": lambda path, _: path.unlink(),
    "a folder": _folder,
    "a link to itself": _link_to_itself,
    "a pickle": _pickle,
}


# --- of JSON ---------------------------------------------------------------------------------------------------------


def _json(change: Callable[[Any, random.Random], Any]) -> Mutation:
    def mutate(path: Path, chance: random.Random) -> None:
        path.write_text(json.dumps(change(json.loads(path.read_text()), chance)))

    return mutate


def _leaf(value: Any) -> Mutation:
    """Put ``value`` in the place of a random leaf."""

    def change(saved: Any, chance: random.Random) -> Any:
        node = saved
        while True:
            key = chance.choice(sorted(node))
            if not isinstance(node[key], dict) or not node[key]:
                node[key] = value
                return saved
            node = node[key]

    return _json(change)


def _branch(value: Any) -> Mutation:
    """Put ``value`` in the place of a random group."""

    def change(saved: Any, chance: random.Random) -> Any:
        saved[chance.choice(sorted(k for k, v in saved.items() if isinstance(v, dict)) or sorted(saved))] = value
        return saved

    return _json(change)


def _written(content: bytes) -> Mutation:
    return lambda path, _: path.write_bytes(content) and None


def _dropped(saved: Any, chance: random.Random) -> Any:
    del saved[chance.choice(sorted(saved))]
    return saved


JSON: dict[str, Mutation] = {
    "a list": _written(b"[]"),
    "a number": _written(b"3"),
    "null": _written(b"null"),
    "no entries": _written(b"{}"),
    "deep lists": _written(b"[" * 100_000),
    "deep objects": _written(b'{"a":' * 100_000 + b"1" + b"}" * 100_000),
    "not UTF-8": _written('{"name": "\xe9"}'.encode("latin1")),
    "UTF-16": _written('{"name": 1}'.encode("utf-16")),
    "many lists": _written(b"[" + b"[]," * 700_000 + b"[]]"),
    "long number": _written(b'{"seed": ' + b"9" * 5000 + b"}"),
    "lone surrogate": _leaf("\ud800"),
    "control characters": _leaf("a\x1b[31m\r\n\x00\u2028b"),
    "leaf NaN": _leaf(float("nan")),
    "leaf infinite": _leaf(float("inf")),
    "leaf huge": _leaf(10**400),
    "leaf beyond int64": _leaf(2**63),
    "leaf negative": _leaf(-1),
    "leaf text": _leaf("x"),
    "leaf long text": _leaf("x" * 100_000),
    "leaf null": _leaf(None),
    "leaf list": _leaf([]),
    "leaf object": _leaf({"a": {}}),
    "leaf true": _leaf(True),
    "group list": _branch([1]),
    "group number": _branch(7),
    "group null": _branch(None),
    "group text": _branch("x"),
    "entry dropped": _json(_dropped),
    "entry added": _json(lambda saved, _: saved | {"more": 1, "": {}}),
    "dotted entry": _json(lambda saved, _: saved | {"a2c.gamma": 0.5}),
    "duplicates": _bytes(lambda c, _: c.rstrip()[:-1] + b', "seed": "x", "seed": []}'),
}


# --- of tables -------------------------------------------------------------------------------------------------------


def _cell(value: str) -> Mutation:
    """Put ``value`` in the place of a random number of a random row of a CSV or of JSON lines."""

    def mutate(path: Path, chance: random.Random) -> None:
        lines = path.read_text().splitlines()
        number = chance.randrange(0 if path.suffix == ".jsonl" else 1, len(lines))
        if path.suffix == ".jsonl":
            head, colon, rest = lines[number].partition(":") if chance.random() < 0.5 else lines[number].rpartition(":")
            lines[number] = f"{head}{colon} {value}" + ("}" if "," not in rest else rest[rest.index(",") :])
        else:
            cells = lines[number].split(",")
            cells[chance.randrange(len(cells))] = value
            lines[number] = ",".join(cells)
        path.write_text("\n".join(lines) + "\n", errors="surrogateescape")

    return mutate


def _line(content: bytes) -> Mutation:
    """Put a line behind the first one."""

    def change(whole: bytearray, chance: random.Random) -> bytes:
        first, _, rest = bytes(whole).partition(b"\n")
        return first + b"\n" + content + b"\n" + rest

    return _bytes(change)


TABLE: dict[str, Mutation] = {
    "cell text": _cell("x"),
    "cell NaN": _cell("NaN"),
    "cell infinite": _cell("1e999"),
    "cell huge": _cell("9" * 400),
    "cell too long": _cell("9" * 5000),
    "cell negative": _cell("-7"),
    "cell null": _cell("null"),
    "cell list": _cell("[]"),
    "cell quote": _cell('"'),
    "cell NUL": _cell("\x00"),
    "line list": _line(b"[1, 2]"),
    "line object": _line(b"{}"),
    "line deep": _line(b"[" * 100_000),
    "line long": _line(b"9" * 300_000),
    "line not UTF-8": _line(b"\xff\xfe,1"),
    "line empty": _line(b""),
    "lines reversed": _bytes(lambda c, _: b"\n".join(bytes(c).split(b"\n")[::-1]) + b"\n"),
    "no header": _bytes(lambda c, _: bytes(c).partition(b"\n")[2]),
    "carriage returns": _bytes(lambda c, _: bytes(c).replace(b"\n", b"\r")),
}


# --- of arrays -------------------------------------------------------------------------------------------------------


def _members(path: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(path) as archive:
        return {info.filename: archive.read(info) for info in archive.infolist()}


def _write_members(path: Path, members: list[tuple[str, bytes]], how: int = zipfile.ZIP_STORED) -> None:
    with zipfile.ZipFile(path, "w", how) as archive:
        for name, content in members:
            archive.writestr(name, content)


def _npy(array: np.ndarray, **header: Any) -> bytes:
    """Return a ``.npy`` with entries of its header replaced."""
    buffer = io.BytesIO()
    data = np.lib.format.header_data_from_array_1_0(array) | header
    np.lib.format.write_array_header_2_0(buffer, data)
    if array.dtype.hasobject:
        pickle.dump(array, buffer)
    else:
        buffer.write(array.tobytes())
    return buffer.getvalue()


def _member(change: Callable[[np.ndarray], bytes]) -> Mutation:
    """Replace a random member that has numbers."""

    def mutate(path: Path, chance: random.Random) -> None:
        members = _members(path)
        arrays = {name: np.lib.format.read_array(io.BytesIO(content)) for name, content in members.items()}
        name = chance.choice(sorted(name for name, array in arrays.items() if array.size > 1))
        _write_members(path, list((members | {name: change(arrays[name])}).items()))

    return mutate


def _sizes(factor: int, first: bool) -> Mutation:
    """Say another unpacked size, in the directory at the end or in the header of a member."""

    def change(whole: bytearray, chance: random.Random) -> bytearray:
        at = whole.find(b"PK\x03\x04") + 22 if first else whole.find(b"PK\x01\x02") + 24
        (size,) = struct.unpack_from("<I", whole, at)
        struct.pack_into("<I", whole, at, min(size * factor, 2**32 - 2))
        return whole

    return _bytes(change)


def _objects(path: Path, chance: random.Random) -> None:
    payload = np.array([MakesAFile(path.parent / MARKER)], dtype=object)
    members = _members(path)
    name = chance.choice(sorted(members))
    _write_members(path, list((members | {name: _npy(payload)}).items()))


def _zeros(path: Path, chance: random.Random) -> None:
    """Sixteen times the size of HUGE in zeros, which are packed to a thousandth."""
    members = _members(path)
    _write_members(path, [(name, _npy(np.zeros(HUGE // 64, np.float32))) for name in members], zipfile.ZIP_DEFLATED)


def _twice(path: Path, chance: random.Random) -> None:
    members = list(_members(path).items())
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in [*members, members[0]]:
            with archive.open(zipfile.ZipInfo(name), "w") as member:
                member.write(content)


def _without_one(path: Path, chance: random.Random) -> None:
    members = _members(path)
    del members[chance.choice(sorted(members))]
    _write_members(path, list(members.items()))


def _name_below_a_name(path: Path, chance: random.Random) -> None:
    members = _members(path)
    name = chance.choice(sorted(members))
    _write_members(path, [*members.items(), (name.removesuffix(".npy") + "/below.npy", members[name])])


def _renamed(path: Path, chance: random.Random) -> None:
    members = _members(path)
    name = chance.choice(sorted(members))
    _write_members(path, [("../" * (n == name) + n, content) for n, content in members.items()])


NPZ: dict[str, Mutation] = {
    "another type": _member(lambda a: _npy(a.astype(np.complex64))),
    "integers": _member(lambda a: _npy(a.astype(np.int64))),
    "text array": _member(lambda a: _npy(np.full(a.shape, "x"))),
    "big-endian": _member(lambda a: _npy(a.astype(a.dtype.newbyteorder(">")))),
    "records": _member(lambda a: _npy(np.zeros(a.shape, [("a", "f4"), ("b", "i8")]))),
    "another rank": _member(lambda a: _npy(a[None])),
    "no axes": _member(lambda a: _npy(a.reshape(-1)[0])),
    "a row less": _member(lambda a: _npy(a[:-1])),
    "no rows": _member(lambda a: _npy(a[:0])),
    "NaN": _member(lambda a: _npy(np.full(a.shape, np.nan, a.dtype) if a.dtype.kind == "f" else ~a)),
    "declared larger": _member(lambda a: _npy(a, shape=(len(a) + 1, *a.shape[1:]))),
    "declared huge": _member(lambda a: _npy(a, shape=(HUGE // a.itemsize,))),
    "declared beyond memory": _member(lambda a: _npy(a, shape=(10**15, 10**3))),
    "declared negative": _member(lambda a: _npy(a, shape=(-1, 2))),
    "declared many axes": _member(lambda a: _npy(a, shape=(1,) * 70)),
    "declared without bytes": _member(lambda a: _npy(np.zeros(0, "V0"), shape=(10**12,), descr="|V0")),
    "declared long text": _member(lambda a: _npy(a, descr=f"<U{HUGE // 4}", shape=(1,))),
    "an object array": _objects,
    "the size told is huge": _sizes(10**5, first=False),
    "the size told is larger": _sizes(3, first=False),
    "the header's size told is larger": _sizes(3, first=True),
    "packed zeros": _zeros,
    "a name twice": _twice,
    "a name is missing": _without_one,
    "a name below a name": _name_below_a_name,
    "a name outside": _renamed,
}


# --- of the official code's pickle -----------------------------------------------------------------------------------


OFFICIAL_NAMES = ("path_lengths", "observations", "actions", "next_observations", "rewards", "terminals")


def _official(change: Callable[[dict[str, Any], Path], Any]) -> Mutation:
    def mutate(path: Path, chance: random.Random) -> None:
        with open(path, "rb") as file:
            whole = pickled_arrays.read(file, OFFICIAL_NAMES)
        np.save(path, change(whole, path))

    return mutate


def _opcodes(content: bytes) -> Mutation:
    """Put opcodes where the dictionary's pickle is."""

    def mutate(path: Path, chance: random.Random) -> None:
        with open(path, "wb") as file:
            held = np.array({}, dtype=object)
            np.lib.format.write_array_header_1_0(file, np.lib.format.header_data_from_array_1_0(held))
            file.write(pickle.PROTO + bytes([4]) + content)

    return mutate


OFFICIAL: dict[str, Mutation] = {
    "makes a file": _official(lambda d, path: d | {"rewards": MakesAFile(path.parent / MARKER)}),
    "makes a file beside": _official(lambda d, path: d | {"more": MakesAFile(path.parent / MARKER)}),
    "an array of objects": _official(lambda d, path: d | {"more": np.array([MakesAFile(path.parent / MARKER)])}),
    "a list": _official(lambda d, path: [d]),
    "a name is missing": _official(lambda d, path: {n: a for n, a in d.items() if n != "actions"}),
    "another rank": _official(lambda d, path: d | {"rewards": d["rewards"][None]}),
    "text": _official(lambda d, path: d | {"actions": d["actions"].astype(str)}),
    "NaN": _official(lambda d, path: d | {"rewards": np.full_like(d["rewards"], np.nan)}),
    "lengths too long": _official(lambda d, path: d | {"path_lengths": d["path_lengths"] + 10**9}),
    "bytes said to be huge": _opcodes(pickle.BINBYTES8 + struct.pack("<Q", HUGE) + b"x" + pickle.STOP),
    "bytes said to be beyond memory": _opcodes(pickle.BINBYTES8 + struct.pack("<Q", 2**60) + b"x" + pickle.STOP),
    "text said to be huge": _opcodes(pickle.BINUNICODE8 + struct.pack("<Q", HUGE) + b"x" + pickle.STOP),
    "deep tuples": _opcodes(pickle.EMPTY_TUPLE + pickle.TUPLE1 * 100_000 + pickle.STOP),
    "a list of itself": _opcodes(b"]\x94h\x00a."),
    "many memos": _opcodes(b"]" + b"\x94" * 50_000 + b"."),
}


# --- of folders ------------------------------------------------------------------------------------------------------


def _beside(name: str, content: bytes | None = b"") -> Mutation:
    """Put a file (or a folder) of another name beside."""

    def mutate(path: Path, chance: random.Random) -> None:
        if content is None:
            (path.parent / name).mkdir()
        else:
            (path.parent / name).write_bytes(content)

    return mutate


def _name(name: str) -> Mutation:
    return lambda path, _: path.rename(path.parent / name) and None


def _replaced_by(other: Path) -> Mutation:
    """Put another run's file in its place."""

    def mutate(path: Path, chance: random.Random) -> None:
        shutil.rmtree(path) if path.is_dir() else os.unlink(path)
        (shutil.copytree if other.is_dir() else shutil.copyfile)(other, path)

    return mutate


SHARD_NAMES: dict[str, Mutation] = {
    "a name without numbers": _beside("transitions_a_b.npz"),
    "a name with one number": _beside("transitions_000000000000.npz"),
    "a name with superscripts": _beside("transitions_\u00b2_\u00b3.npz"),
    "a folder named so": _beside("transitions_000000000150_000000000400.npz", None),
    "an unfinished folder": _beside("transitions_000000000150_000000000400.npz.tmp", None),
    "renamed": _name("transitions_000000000000_000000000149.npz"),
    "renamed backwards": _name("transitions_000000000150_000000000000.npz"),
}
STEP_NAMES: dict[str, Mutation] = {
    "a file named as a later step": _beside("99999"),
    "an empty later step": _beside("99999", None),
    "a step in superscript": _beside("\u00b2", None),
    "a long step": _beside("9" * 200, None),
    "an unfinished file": _beside("5.orbax-checkpoint-tmp-1"),
    "a corrupt file": _beside("corrupt-301"),
}
EVENT_NAMES: dict[str, Mutation] = {
    "a foreign name": _beside("events.out.tfevents.1700000000.host"),
    "a name without parts": _beside("events.out.tfevents."),
    "a folder named so": _beside("events.out.tfevents.0000000009.polygrad", None),
}
replaced_by = _replaced_by
