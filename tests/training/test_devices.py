"""Several devices compute what one computes, and send each other sums alone; eight are simulated on the CPU."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest
import tiny

from polygrad_jax.config import ConfigError
from polygrad_jax.training.devices import make_mesh, on_all, shared_out
from polygrad_jax.training.loop import train

SCRIPT = Path(__file__).with_name("on_simulated_devices.py")


def told(agent, seeds, devices):
    given = [sys.executable, str(SCRIPT), agent, str(seeds), str(devices)]
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={devices}"
    paths = f"{SCRIPT.parents[1]}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"  # tiny
    environment = os.environ | {"XLA_FLAGS": flags, "PYTHONPATH": paths}
    done = subprocess.run(given, capture_output=True, text=True, timeout=600, env=environment)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
def test_one_seed_shares_its_trajectories_and_batches_out():
    found = told("a2c", 1, 8)
    assert found["mesh"] == {"seed": 1, "data": 8}
    assert found["differ"] == 0 and found["numbers"] > 10_000
    # Sums of gradients and of statistics: neither the replay nor the trajectories travel.
    counts = found["counts"]
    assert counts["all-reduce"] > 0
    assert counts["all-gather"] == counts["all-to-all"] == counts["collective-permute"] == 0
    assert found["devices_of_state"] == [8] and found["whole_on_each"]


@pytest.mark.slow
def test_seeds_and_their_data_share_the_devices():
    found = told("a2c", 4, 8)
    assert found["mesh"] == {"seed": 4, "data": 2}
    assert found["differ"] == 0
    counts = found["counts"]
    assert counts["all-gather"] == counts["all-to-all"] == counts["collective-permute"] == 0
    assert not found["whole_on_each"]  # a seed's state is on its two devices alone


@pytest.mark.slow
def test_value_gradients_gather_no_more_than_a_weight_per_start():
    found = told("value_gradient", 1, 8)
    assert found["differ"] == 0
    starts = tiny.B * tiny.H  # which start states are drawn is decided on all devices
    assert found["counts"]["all-gather"] <= 1 and found["largest_gathered"] <= starts


def test_as_many_devices_as_there_are(tmp_path):
    count = len(jax.local_devices())
    assert make_mesh(1, 5) is None
    for wanted in (0, count + 1):
        with pytest.raises(ConfigError, match=f"devices is {wanted}; allowed: from 1 to {count}"):
            make_mesh(wanted, 1)
    with pytest.raises(ConfigError, match=f"devices is {count + 1}"):
        train(tiny.config_of("polygrad"), tmp_path / "run", devices=count + 1)
    assert not (tmp_path / "run").exists()
    batch = {"a": jax.numpy.zeros(3)}
    assert shared_out(batch, None) is batch and on_all(batch, None) is batch
