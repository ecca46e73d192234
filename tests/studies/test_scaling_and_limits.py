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
import scaling
import training_speed


def points():
    return [(axis, value) for axis, varied in scaling.AXES.items() for value in varied.values]


def words_of(axis, value, folder=Path("folder")):
    command = scaling.cell(axis, value, 2.0, folder).command
    return command[[Path(word).name for word in command].index("training_speed.py") + 1 :]


def test_every_point_is_one_change_of_the_preset_or_of_how_it_is_run():
    preset = dict(configs.flatten(configs.preset(scaling.PRESET, scaling.TASK)))
    names = [scaling.cell(*point, 2.0, Path()).name for point in points()]
    assert len(set(names)) == len(names)
    for axis, value in points():
        _, args, fields = training_speed.parse(words_of(axis, value))
        config = configs.validate(cli.override(configs.preset(args.preset, args.env[0]), fields))
        changed = {name: x for name, x in configs.flatten(config) if x != preset[name]}
        assert list(changed.values()) in ([value], []), (axis, value)
        assert (args.seeds == [value]) == (axis == "seeds" or value == 1)
        assert (args.devices == value) == (axis == "devices" or value == 1)
        assert args.out.name == f"{axis}_{value}.speed.json"
    simulated = "XLA_FLAGS=--xla_force_host_platform_device_count=8"
    assert scaling.cell("devices", 1, 2.0, Path()).command[:2] == ("env", simulated)


def test_a_point_keeps_what_was_measured_and_where(tmp_path):
    """The grid runs the command itself; here a program that leaves what training_speed.py would."""
    row = dict.fromkeys(scaling.KEPT, 2.0) | {"env": "hopper", "preset": "cpu_a2c", "seeds": 1, "imagine_seconds": None}
    made = scaling.cell("seeds", 4, 2.0, tmp_path / "scaling.cells")
    table = Path(made.command[-1])
    write = "import pathlib, sys; pathlib.Path(sys.argv[1]).write_text(sys.argv[2])"
    text = json.dumps({"rows": [row], "processor": "X"})
    made = grid.Cell(made.name, (sys.executable, "-c", write, str(table), text), made.labels, made.collect)
    options = argparse.Namespace(only=None, again=False, jobs=1, threads=0, ray=False, mixed_physics=False)
    assert grid.run([made], tmp_path / "scaling.csv", options) == 0
    (kept,) = grid.read_csv(tmp_path / "scaling.csv")
    assert (kept["axis"], kept["value"], kept["seconds_per_update"]) == ("seeds", "4", "2.0")
    assert kept["imagine_seconds"] == "" and kept["mujoco"] and kept["processor"] and "seeds" not in kept
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


def test_what_was_measured_so_far_is_said_and_drawn(tmp_path, capsys):
    grid.write_csv(tmp_path / scaling.TABLE, [row for row in rows_that_grow(1.0) if row["axis"] in ("width", "replay")])
    script = [sys.executable, scaling.__file__, "--figure-only", "--out"]
    done = subprocess.run([*script, str(tmp_path)], capture_output=True, text=True, check=True)
    assert "width" in done.stdout and "replay" in done.stdout and "horizon" not in done.stdout
    assert (tmp_path / "scaling.png").stat().st_size > 10_000
    done = subprocess.run([*script, str(tmp_path / "none")], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr == f"--out is {tmp_path / 'none'}; allowed with --figure-only: a folder with a scaling.csv\n"


# --- limits ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("preset", ["cpu", "paper", "paper_transformer"])
def test_the_products_are_all_the_arithmetic_of_a_call(preset):
    config = configs.preset(preset, "hopper")
    made = limits.shapes(config)
    count = sum(2 * np.prod(shape, dtype=np.int64) * times for shape, times in made.items())
    assert count == flops.denoiser_flops(config, limits.HOPPER, config.a2c.trajectories, steps=1)


def test_the_roof_is_the_memory_or_the_units_that_multiply():
    few, many = (limits.measured(0.5, 1e9, intensity, (4e9, 1e9)) for intensity in (2.0, 100.0))
    assert few["roofline_GFLOP/s"] == 2.0 and many["roofline_GFLOP/s"] == 4.0
    assert few["share_of_roofline"] == 1.0 and many["share_of_roofline"] == 0.5


def test_every_repetition_is_made():
    x = jnp.array([[1.0, 2.0], [3.0, 0.5]])
    for times in (1, 7):
        total = limits.repeated(lambda x: x @ x)(x, times)
        np.testing.assert_allclose(total, times * np.min(np.asarray(x) @ np.asarray(x)), rtol=1e-5)
    assert limits.seconds_each(lambda x: x @ x, x) > 0


def test_limits_are_drawn_from_the_table(tmp_path):
    common = {"preset": "cpu", "precision": "float32", "times": 1}
    rows = [common | {"part": "p", "FLOP/byte": 3.0, "GFLOP/s": 5.0}, common | {"part": limits.WHOLE, "FLOP/byte": ""}]
    grid.write_csv(tmp_path / limits.TABLE, rows)
    facts = {"limits": {"float32": {"peak_GFLOP/s": 100.0, "memory_GB/s": 10.0}}}
    (tmp_path / "limits.json").write_text(json.dumps(facts))
    assert limits.draw_only(tmp_path) == 0
    assert (tmp_path / "limits.png").stat().st_size > 10_000
    with pytest.raises(configs.ConfigError, match="allowed with --figure-only: a folder with a limits.csv"):
        limits.draw_only(tmp_path / "none")
