"""Plain arrays of files that somebody else may have written: sizes are checked before memory is asked for."""

import io
import tracemalloc
import zipfile

import numpy as np
import pytest

from polygrad_jax.data.plain_arrays import NoPlainArrays, read_npz

ARRAYS = {
    "a": np.arange(6, dtype=np.float32).reshape(2, 3),
    "fortran": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    "big": np.array([1.5, -2], ">f8"),
    "empty": np.zeros((0, 3), np.float32),
    "scalar": np.int64(7),
    "flags": np.array([True, False]),
}


def npy(array, **header):
    """A ``.npy`` with entries of its header replaced."""
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, np.lib.format.header_data_from_array_1_0(array) | header)
    return buffer.getvalue() + array.tobytes()


def write(path, members, how=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", how) as archive:
        for name, content in members:
            with archive.open(zipfile.ZipInfo(name), "w") as member:
                member.write(content)


def test_what_numpy_saved_is_read(tmp_path):
    np.savez(tmp_path / "x.npz", **ARRAYS)
    read = read_npz(tmp_path / "x.npz")
    assert read.keys() == ARRAYS.keys()
    for name, array in ARRAYS.items():
        np.testing.assert_array_equal(read[name], array)
        assert (read[name].dtype, read[name].shape) == (np.asarray(array).dtype, np.shape(array))
        assert read[name].flags.writeable
    assert read_npz(tmp_path / "x.npz", ["flags"]).keys() == {"flags"}
    with pytest.raises(NoPlainArrays, match="it has no more"):
        read_npz(tmp_path / "x.npz", ["a", "more"])


@pytest.mark.parametrize("shape", [(2**28,), (10**15, 10**3), (3,), (1,), (-1, 2)])
def test_memory_is_asked_for_only_as_far_as_the_file_goes(tmp_path, shape):
    write(tmp_path / "x.npz", [("a.npy", npy(np.zeros(2), shape=shape))])
    tracemalloc.start()
    with pytest.raises(NoPlainArrays, match="a.npy (is said to have .* bytes and holds 16|has type float64)"):
        read_npz(tmp_path / "x.npz")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**20


def test_a_type_without_bytes_has_no_size(tmp_path):
    write(tmp_path / "x.npz", [("a.npy", npy(np.zeros(0, "V0"), descr="|V0", shape=(10**12,)))])
    with pytest.raises(NoPlainArrays, match="has type"):
        read_npz(tmp_path / "x.npz")


def test_packed_arrays_may_have_so_many_times_the_size_of_the_file(tmp_path):
    np.savez_compressed(tmp_path / "x.npz", a=np.zeros(10**5))
    with pytest.raises(NoPlainArrays, match="said to have 800,128 bytes, more than the file's"):
        read_npz(tmp_path / "x.npz")
    with pytest.raises(NoPlainArrays, match="more than 100 times the file's"):
        read_npz(tmp_path / "x.npz", most_expansion=100)
    assert read_npz(tmp_path / "x.npz", most_expansion=1_000)["a"].shape == (10**5,)


def test_a_name_twice_and_objects_are_refused(tmp_path):
    with pytest.warns(UserWarning, match="Duplicate name"):
        write(tmp_path / "x.npz", [("a.npy", npy(np.zeros(1))), ("a.npy", npy(np.ones(1)))])
    with pytest.raises(NoPlainArrays, match="a name twice"):
        read_npz(tmp_path / "x.npz")
    np.savez(tmp_path / "x.npz", a=np.array([{}], dtype=object))
    with pytest.raises(NoPlainArrays, match="it holds pickles"):
        read_npz(tmp_path / "x.npz")


@pytest.mark.parametrize("place", ["header", "data"])
def test_a_changed_byte_is_noticed(tmp_path, place):
    np.savez(tmp_path / "x.npz", a=np.zeros(1000))
    content = bytearray((tmp_path / "x.npz").read_bytes())
    content[content.find(b"NUMPY") if place == "header" else 4000] ^= 1
    (tmp_path / "x.npz").write_bytes(content)
    with pytest.raises(NoPlainArrays):
        read_npz(tmp_path / "x.npz")
