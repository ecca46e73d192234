"""``benchmarks/scaling.py`` and ``limits.py``: what they run, what they make of numbers, and their figures."""

import argparse
import json
import subprocess
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from experiments.harness import grid
from polygrad_jax import cli
from polygrad_jax import config as configs

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))
import flops
import limits
import measure
import scaling
import training_speed


def points():
    return [(axis, value) for axis, varied in scaling.AXES.items() for value in varied.values]


def words_of(axis, value, folder=Path("folder")):
    command = scaling.cell(axis, value, 2.0, folder).command
    return command[[Path(word).name for word in command].index("training_speed.py") + 1 :]


def test_every_point_is_one_change_of_the_preset_or_of_how_it_is_run():
    preset = dict(configs.flatten(configs.preset(scaling.PRESET, scaling.TASK)))
    fields_of = {
        "horizon": "horizon",
        "rollouts": "a2c.trajectories",
        "width": "denoiser.width",
        "replay": "loop.replay_capacity",
    }
    names = [scaling.cell(*point, 2.0, Path()).name for point in points()]
    assert len(set(names)) == len(names)
    for axis, value in points():
        _, args, fields = training_speed.parse(words_of(axis, value))
        config = configs.validate(cli.override(configs.preset(args.preset, args.env[0]), fields))
        found = dict(configs.flatten(config))
        expected = {fields_of[axis]: value} if axis in fields_of else {}
        expected |= {"loop.side_by_side": False} if axis == "devices" else {}
        assert found == preset | expected, (axis, value)
        assert args.stored == (value if axis == "replay" else training_speed.PREFILL_ENV_STEPS)
        assert (args.seeds == [value]) == (axis == "seeds" or value == 1)
        assert (args.devices == value) == (axis == "devices" or value == 1)
        assert args.out.name == f"{axis}_{value}.speed.json"
    simulated = "XLA_FLAGS=--xla_force_host_platform_device_count=8"
    assert scaling.cell("devices", 1, 2.0, Path()).command[:2] == ("env", simulated)


def test_a_table_is_written_whole_with_the_line_ends_of_all_tables(tmp_path):
    """The earlier file is replaced, not opened: a link to it keeps what it said."""
    path, earlier = tmp_path / "x.csv", tmp_path / "earlier"
    facts = {"packages": {"mujoco": "4.0.0"}}
    for value in (1, 2):
        measure.write(path, [{"env": "hopper", "x": value, "y": None}], facts)
        if not earlier.exists():
            earlier.hardlink_to(path)
    assert earlier.read_bytes() == b"env,x,y,mujoco\nhopper,1,,4.0.0\n"
    assert path.read_bytes() == b"env,x,y,mujoco\nhopper,2,,4.0.0\n"
    assert json.loads((tmp_path / "x.json").read_text()) == facts
    measure.write(tmp_path / "both.json", [{"x": 1}], facts)
    assert json.loads((tmp_path / "both.json").read_text()) == facts | {"rows": [{"x": 1}]}


def test_a_point_keeps_what_was_measured_and_where(tmp_path):
    """The grid runs the command itself; here a program that leaves what training_speed.py would."""
    row = dict.fromkeys(scaling.KEPT, 2.0) | {"env": "hopper", "preset": "cpu_a2c", "seeds": 1, "imagine_seconds": None}
    made = scaling.cell("seeds", 4, 2.0, tmp_path / "scaling.cells")
    table = Path(made.command[-1])
    write = "import pathlib, sys; pathlib.Path(sys.argv[1]).write_text(sys.argv[2])"
    where = {"device": "D", "processor": "X", "cores": 3, "git_revision": "r", "packages": {"mujoco": "4.5.6"}}
    text = json.dumps({"rows": [row], **where})
    made = grid.Cell(made.name, (sys.executable, "-c", write, str(table), text), made.labels, made.collect)
    options = argparse.Namespace(only=None, again=False, jobs=1, threads=0, ray=False, mixed_physics=False)
    assert grid.run([made], tmp_path / "scaling.csv", options) == 0
    (kept,) = grid.read_csv(tmp_path / "scaling.csv")
    assert (kept["axis"], kept["value"], kept["seconds_per_update"]) == ("seeds", "4", "2.0")
    assert kept["imagine_seconds"] == "" and "seeds" not in kept
    assert (kept["processor"], kept["cores"], kept["git_revision"], kept["mujoco"]) == ("X", "3", "r", "4.5.6")
    assert not table.exists()


def rows_that_grow(power):
    found = []
    for axis, value in points():
        row = dict.fromkeys(scaling.SHOWN, 1.0) | {"seconds_per_update": 3.0 * value**power, "imagine_seconds": None}
        found.append({"axis": axis, "value": value, "processor": "X", "cores": 2, **row})
    return found


@pytest.mark.parametrize("power", [0.0, 1.0, 1.5])
def test_the_exponent_of_a_power_is_that_power(power):
    rows = rows_that_grow(power)
    for axis, varied in scaling.AXES.items():
        found = scaling.with_exponents(scaling.along(reversed(rows), axis))
        assert [row["value"] for row in found] == list(varied.values)
        assert found[0]["exponent"] is None
        np.testing.assert_allclose([row["exponent"] for row in found[1:]], power, atol=1e-12)


def test_what_was_measured_so_far_is_said_and_drawn(tmp_path):
    grid.write_csv(tmp_path / scaling.TABLE, [row for row in rows_that_grow(1.0) if row["axis"] in ("width", "replay")])
    script = [sys.executable, scaling.__file__, "--figure-only", "--out"]
    done = subprocess.run([*script, str(tmp_path)], capture_output=True, text=True, check=True)
    assert "width" in done.stdout and "replay" in done.stdout and "horizon" not in done.stdout
    assert (tmp_path / "scaling.png").stat().st_size > 10_000
    done = subprocess.run([*script, str(tmp_path / "none")], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr == f"--out is {tmp_path / 'none'}; allowed with --figure-only: a folder with a scaling.csv\n"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--seeds", "2", "0"], "--seeds is 0; allowed: 1 or greater"),
        (["--stored", "-5"], "--stored is -5; allowed: 1 or greater"),
        (["--seconds", "nan"], "--seconds is nan; allowed: 0 or greater"),
        (["--seconds", "-1"], "--seconds is -1.0; allowed: 0 or greater"),
    ],
)
def test_a_number_out_of_range_is_one_line(words, said, monkeypatch, capsys):
    for script in (training_speed, scaling):
        if script is scaling and words[0] != "--seconds":
            continue
        monkeypatch.setattr(sys, "argv", ["x.py", *words, "--out", "nowhere"])
        assert script.main() == 2
        assert capsys.readouterr().err == f"{said}\n"
    assert not Path("nowhere").exists()


# --- limits ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("preset", ["cpu", "paper"])
def test_the_products_are_all_the_arithmetic_of_a_call(preset):
    config = configs.preset(preset, "hopper")
    count = sum(2 * np.prod(shape, dtype=np.int64) * times for shape, times in limits.shapes(config).items())
    assert count == flops.denoiser_flops(config, limits.HOPPER, config.a2c.trajectories, steps=1)


def test_operations_per_byte():
    assert limits.intensity((2, 3, 5)) == 60 / (4 * (6 + 15 + 10))


def test_a_call_is_compared_with_its_products_at_their_rooflines(monkeypatch):
    """Every product takes a second, the whole call 20; first the memory is the limit, then the units that multiply."""
    monkeypatch.setattr(limits, "time_product", lambda shape, precision: 1.0)
    monkeypatch.setattr(limits, "time_whole_call", lambda config: 20.0)
    peak = 1e9
    *products, whole = limits.rows_of("cpu", "float32", (peak, 1e-3))
    made = sum(row["times"] for row in products)
    assert whole["part"] == limits.WHOLE and whole["share_in_products"] == made / 20.0
    for row in products:
        np.testing.assert_allclose(row["roofline_GFLOP/s"], 1e-12 * row["FLOP/byte"])
    least = sum(row["times"] * row["GFLOP/s"] / row["roofline_GFLOP/s"] for row in products)
    np.testing.assert_allclose(whole["share_of_roofline"], least / 20.0)
    *products, _ = limits.rows_of("cpu", "float32", (peak, 1e30))
    assert {row["roofline_GFLOP/s"] for row in products} == {1.0}


def test_every_repetition_is_made():
    """x's first entry gathers a thousandth of what came out of every repetition but the last."""
    x, y, w = np.array([[1.0, 2.0], [3.0, 0.5]]), np.zeros((2, 2)), np.array([[2.0, 0.0], [1.0, 1.0]])
    for _ in range(7):
        x[0, 0] += 1e-3 * y[0, 0]
        y = x @ w
    given = jnp.array([[1.0, 2.0], [3.0, 0.5]])
    found = limits.repeated(lambda w, x: x @ w)(jnp.asarray(w, jnp.float32), given, 7)
    np.testing.assert_allclose(found[0], x, rtol=1e-5)
    np.testing.assert_allclose(found[1], y, rtol=1e-5)


def test_limits_are_drawn_from_the_table(tmp_path):
    common = {"preset": "cpu", "precision": "float32", "times": 1}
    rows = [common | {"part": "p", "FLOP/byte": 3.0, "GFLOP/s": 5.0}, common | {"part": limits.WHOLE, "FLOP/byte": ""}]
    grid.write_csv(tmp_path / limits.TABLE, rows)
    facts = {"limits": {"float32": {"peak_GFLOP/s": 100.0, "memory_GB/s": 10.0}}}
    (tmp_path / "limits.json").write_text(json.dumps(facts))
    assert limits.draw_only(tmp_path) == 0
    assert (tmp_path / "limits.png").stat().st_size > 10_000
    (tmp_path / "limits.json").unlink()
    for folder in (tmp_path / "none", tmp_path):
        with pytest.raises(configs.ConfigError, match="allowed with --figure-only: a folder with a limits.csv and its"):
            limits.draw_only(folder)
