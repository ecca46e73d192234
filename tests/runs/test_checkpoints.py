"""Checkpoints come back bit for bit, or say that they cannot."""

import errno
import gc
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from polygrad_jax.config import ConfigError, EnvSpec
from polygrad_jax.data import normaliser
from polygrad_jax.runs import checkpoints
from polygrad_jax.runs.checkpoints import Checkpoints, export_npz, load_npz


@flax.struct.dataclass
class Moments:
    mean: jax.Array
    count: jax.Array


def a_state(seed: int = 0) -> dict:
    """Every kind of leaf that a run has, with the values that rounding or text would spoil."""
    rng = np.random.default_rng(seed)
    return {
        "params": {"dense": {"kernel": jnp.asarray(rng.standard_normal((5, 3)), jnp.float32)}},
        "moments": Moments(mean=jnp.array([np.nan, -0.0, np.inf, 1e-42], jnp.float32), count=jnp.int32(seed)),
        "key": jax.random.key_data(jax.random.key(seed)),
        "half": jnp.arange(4, dtype=jnp.bfloat16) / 3,
        "valid": jnp.array([True, False]),
        "empty": jnp.zeros((0, 2), jnp.float32),
        "optimiser": ({"nothing": None}, (), [jnp.float32(seed + 0.1)]),
        "simulator": rng.standard_normal(6),  # float64, stays on the host
    }


def assert_same_bits(a, b) -> None:
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert (x.dtype, x.shape) == (y.dtype, y.shape)
        assert np.asarray(x).tobytes() == np.asarray(y).tobytes()
        assert isinstance(x, jax.Array) == isinstance(y, jax.Array)


def flip_last_byte(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(bytes(content))


def largest_file(folder: Path) -> Path:
    return max((p for p in folder.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)


def test_nothing_to_restore(tmp_path):
    assert Checkpoints(tmp_path / "c").restore(a_state()) is None


def test_round_trip_is_bit_exact_and_keeps_two(tmp_path):
    # numpy's generators have 128-bit numbers in their state.
    host = {"env_steps": 30, "return": 1 / 3, "random": np.random.default_rng(0).bit_generator.state}
    kept = Checkpoints(tmp_path)
    for step in (10, 20, 30):
        kept.save(step, a_state(step), host)
    assert kept.steps() == [20, 30]
    kept.close()

    step, state, remembered = Checkpoints(tmp_path).restore(a_state())
    assert step == 30
    assert remembered == host
    assert_same_bits(state, a_state(30))


def test_target_may_be_abstract(tmp_path):
    state = {"a": jnp.arange(3, dtype=jnp.float32)}
    kept = Checkpoints(tmp_path)
    kept.save(1, state, {})
    assert_same_bits(kept.restore(jax.eval_shape(lambda: state))[1], state)


def test_saving_a_step_again_replaces_it(tmp_path):
    kept = Checkpoints(tmp_path)
    for seed in (1, 2):
        kept.save(10, a_state(seed), {"seed": seed})
    step, state, host = kept.restore(a_state())
    assert (step, host) == (10, {"seed": 2})
    assert_same_bits(state, a_state(2))


@pytest.mark.parametrize("how", ["a flipped bit", "a short file", "a missing file", "a short host", "a wrong host"])
def test_corrupt_newest_falls_back_with_a_warning(tmp_path, how):
    said = []
    kept = Checkpoints(tmp_path, say=said.append)
    for step in (10, 20):
        kept.save(step, a_state(step), {"env_steps": step})
    file = largest_file(tmp_path / "20" / "arrays")
    if how == "a flipped bit":
        flip_last_byte(file)
    elif how == "a short file":
        os.truncate(file, file.stat().st_size // 2)
    elif how == "a missing file":
        file.unlink()
    elif how == "a short host":
        (tmp_path / "20" / "host" / "metadata").write_text('{"format_ver')
    else:
        host = tmp_path / "20" / "host" / "metadata"
        host.write_text(host.read_text().replace('"env_steps": 20', '"env_steps": 21'))

    kept = Checkpoints(tmp_path, say=said.append)
    step, state, host = kept.restore(a_state())
    assert (step, host) == (10, {"env_steps": 10})
    assert_same_bits(state, a_state(10))
    (line,) = said
    assert line.startswith(f"warning: checkpoint {tmp_path / 'corrupt-20'} cannot be read")
    assert line.endswith("going on from step 10") and "\n" not in line

    # The same step can be reached and saved again.
    kept.save(20, a_state(3), {"env_steps": 20})
    assert kept.steps() == [10, 20]
    assert_same_bits(Checkpoints(tmp_path).restore(a_state())[1], a_state(3))


def test_a_bit_that_reading_does_not_notice_is_noticed(tmp_path, monkeypatch):
    """The checksum alone: the layers below read the file without complaint."""
    kept = Checkpoints(tmp_path)
    kept.save(10, {"a": np.zeros(4)}, {})
    changed = {"a": np.array([0.0, 0.0, 0.0, 5e-324])}  # one bit
    read = kept._read_item
    monkeypatch.setattr(kept, "_read_item", lambda s, item, how: changed if item == "arrays" else read(s, item, how))
    with pytest.raises(ConfigError, match="checksum"):
        kept.restore({"a": np.zeros(4)})


def test_all_corrupt_is_an_error_and_nothing_is_moved(tmp_path):
    kept = Checkpoints(tmp_path)
    for step in (10, 20):
        kept.save(step, a_state(step), {})
        flip_last_byte(largest_file(tmp_path / str(step) / "arrays"))
    with pytest.raises(ConfigError, match=r"none of the checkpoints \[10, 20\]") as error:
        Checkpoints(tmp_path).restore(a_state())
    assert "\n" not in str(error.value)
    assert {p.name for p in tmp_path.iterdir()} == {"10", "20"}


def test_arrays_that_cannot_be_read_are_one_error_and_nothing_else(tmp_path, monkeypatch, caplog, capfd):
    """Those that are read after the first has failed are not printed, each with a stack."""
    late = []
    monkeypatch.setattr(sys, "unraisablehook", late.append)
    kept = Checkpoints(tmp_path)
    kept.save(10, {f"array {k}": np.zeros(2_000) for k in range(60)}, {})
    (tmp_path / "10" / "arrays" / "manifest.ocdbt").unlink()
    for _ in range(5):  # at the first of them nothing came late
        with pytest.raises(checkpoints.CorruptCheckpoint, match="NOT_FOUND"):
            kept.read(10)
        gc.collect()
    assert (late, caplog.records, capfd.readouterr().err) == ([], [], "")


def test_another_version_is_refused_naming_both(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoints, "FORMAT_VERSION", 7)
    Checkpoints(tmp_path).save(10, a_state(), {})
    monkeypatch.undo()
    with pytest.raises(ConfigError, match="10 has format version 7; allowed: 2, 3$"):
        Checkpoints(tmp_path).restore(a_state())


@pytest.mark.parametrize(("version", "differs"), [(2, True), (3, False)])
def test_a_model_of_version_2_may_have_been_standardised_otherwise(version, differs, tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoints, "FORMAT_VERSION", version)
    Checkpoints(tmp_path / "checkpoints").save(10, a_state(), {})
    monkeypatch.undo()
    assert Checkpoints(tmp_path / "checkpoints").restore(a_state())[0] == 10
    moments = normaliser.init(EnvSpec(2, 1))
    many, spread = jnp.int32(100), jnp.array([100.0, 100.0])
    ordinary = moments.observations.replace(count=many, mean=jnp.array([30.0, 0.0]), m2=spread)
    kelvins = ordinary.replace(mean=jnp.array([300.0, 0.0]))
    assert checkpoints.why_standardised_otherwise(tmp_path, moments.replace(observations=ordinary)) is None
    why = checkpoints.why_standardised_otherwise(tmp_path, moments.replace(observations=kelvins))
    assert why.endswith("less than a hundredth of its size (observations[0])") if differs else why is None


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda s: s | {"valid": jnp.array([True])}, r"valid as bool\[2\]; allowed: bool\[1\]"),
        (lambda s: s | {"half": jnp.zeros(4, jnp.float32)}, r"half as bfloat16\[4\]; allowed: float32\[4\]"),
        (lambda s: s | {"new": jnp.zeros(1)}, "other arrays: new"),
    ],
)
def test_other_arrays_are_refused_by_name(tmp_path, change, named):
    kept = Checkpoints(tmp_path)
    kept.save(10, a_state(), {})
    with pytest.raises(ConfigError, match=named):
        kept.restore(change(a_state()))


_KILLED_WHILE_SAVING = """
import os, signal, sys, threading, time
from pathlib import Path
import numpy as np
from polygrad_jax.runs.checkpoints import Checkpoints
folder = Path(sys.argv[1])
kept = Checkpoints(folder)
kept.save(10, {"a": np.arange(5.0)}, {"env_steps": 10})
def kill():
    while not list(folder.glob("20.*")): pass
    os.kill(os.getpid(), signal.SIGKILL)
threading.Thread(target=kill, daemon=True).start()
kept.save(20, {"a": np.ones(3_000_000)}, {"env_steps": 20})
time.sleep(60)
"""


def test_killed_while_saving(tmp_path):
    root = Path(checkpoints.__file__).parents[2]
    command = [sys.executable, "-c", _KILLED_WHILE_SAVING, str(tmp_path)]
    done = subprocess.run(command, cwd=root, env=os.environ | {"PYTHONPATH": str(root)}, timeout=100)
    assert done.returncode == -signal.SIGKILL
    (left_over,) = [p for p in tmp_path.iterdir() if p.name != "10"]
    assert "tmp" in left_over.name

    kept = Checkpoints(tmp_path)
    assert not left_over.exists()
    step, state, host = kept.restore({"a": np.zeros(5)})
    assert (step, host) == (10, {"env_steps": 10})
    assert_same_bits(state, {"a": np.arange(5.0)})
    kept.save(20, {"a": np.ones(5)}, {})
    assert kept.steps() == [10, 20]


@pytest.mark.parametrize(
    "error",
    [OSError(errno.ENOSPC, "No space left on device"), ValueError("RESOURCE_EXHAUSTED: No space left on device [x]")],
)
def test_full_disk_is_one_line_and_keeps_what_there_is(tmp_path, monkeypatch, error):
    kept = Checkpoints(tmp_path)
    kept.save(10, a_state(), {})

    def full(*_, **__):
        (tmp_path / "20.orbax-checkpoint-tmp").mkdir()
        raise error

    monkeypatch.setattr(kept._manager, "save", full)
    with pytest.raises(ConfigError, match="20 cannot be written: the disk is full") as caught:
        kept.save(20, a_state(), {})
    assert "\n" not in str(caught.value)
    assert [p.name for p in tmp_path.iterdir()] == ["10"]


def test_typed_keys_are_refused(tmp_path):
    with pytest.raises(TypeError, match="stream/key is a typed key"):
        Checkpoints(tmp_path).save(1, {"stream": {"key": jax.random.key(0)}}, {})


def test_host_that_is_no_json_leaves_nothing(tmp_path):
    with pytest.raises(TypeError):
        Checkpoints(tmp_path).save(1, {"a": np.zeros(1)}, {"bad": object()})
    assert list(tmp_path.iterdir()) == []


def test_npz_has_plain_names(tmp_path):
    tree = {"actor": {"dense": {"bias": jnp.array([1.5, -2.0])}}, "moments": Moments(jnp.ones(2), jnp.int32(3))}
    export_npz(tmp_path / "x.npz", tree)
    with np.load(tmp_path / "x.npz", allow_pickle=False) as file:
        assert sorted(file.files) == ["actor/dense/bias", "moments/count", "moments/mean"]
    back = load_npz(tmp_path / "x.npz")
    np.testing.assert_array_equal(back["actor"]["dense"]["bias"], np.array([1.5, -2.0], np.float32))
    assert back["moments"]["count"] == 3 and back["moments"]["count"].dtype == np.int32


def test_npz_refuses_what_it_would_spoil(tmp_path):
    with pytest.raises(TypeError, match="a is bfloat16"):
        export_npz(tmp_path / "x.npz", {"a": jnp.zeros(2, jnp.bfloat16)})
    assert list(tmp_path.iterdir()) == []


def test_no_metric_decides_what_is_kept(tmp_path):
    """The newest two stay whatever was measured, a NaN in the middle included, and so does the best evaluation.

    With orbax's ``best_fn`` one NaN can delete the best checkpoint.
    """
    export_npz(tmp_path / "best.npz", {"step": np.int64(1)})
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    for step, measured in ((1, 9.0), (2, float("nan")), (3, 5.0)):
        checkpoints.save(step, {"w": np.float32([measured])}, {"last_return": measured})
        assert checkpoints.steps() == [s for s in (1, 2, 3) if step - 2 < s <= step]
    for step, measured in ((2, float("nan")), (3, 5.0)):
        stored = checkpoints.read(step)
        np.testing.assert_array_equal([stored.arrays["w"][0], stored.host["last_return"]], measured)
    checkpoints.close()
    assert int(load_npz(tmp_path / "best.npz")["step"]) == 1


def test_best_is_replaced(tmp_path):
    for value in (1.0, 2.0):
        export_npz(tmp_path / "best.npz", {"a": np.array([value])})
    assert load_npz(tmp_path / "best.npz")["a"] == 2.0
    assert [p.name for p in tmp_path.iterdir()] == ["best.npz"]


def test_best_beside_checkpoints_is_no_checkpoint(tmp_path):
    kept = Checkpoints(tmp_path)
    kept.save(10, {"a": np.zeros(1)}, {})
    export_npz(tmp_path / "best.npz", {"a": np.zeros(1)})
    assert Checkpoints(tmp_path).steps() == [10]


@pytest.mark.parametrize("content", [None, b"", b"PK\x03\x04 no archive", json.dumps({}).encode()])
def test_what_is_no_npz_is_one_line(tmp_path, content):
    path = tmp_path / "x.npz"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError, match="cannot be read"):
        load_npz(path)
