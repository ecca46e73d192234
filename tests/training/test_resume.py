"""A killed run that is resumed is the run that was never killed: bit for bit, arrays and records.

The agent is that of ``make train``; ``test_simulator_model`` resumes a run of A2C. ``POLYGRAD_KILLS=5`` kills
more often than ``make test-slow`` has time for.
"""

import json
import os
import random
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from polygrad_jax.runs.checkpoints import Checkpoints

KILLS = int(os.environ.get("POLYGRAD_KILLS", "1"))
TOTAL_ENV_STEPS = 1_500 + 400 * max(KILLS - 1, 0)
LATE_ENV_STEPS = TOTAL_ENV_STEPS - 300
FIELDS = (
    f"--env hopper --preset smoke --seed 7 --loop.total-env-steps {TOTAL_ENV_STEPS} "
    "--loop.checkpoint-every-env-steps 150 --loop.eval-every-env-steps 300 --loop.log-every-env-steps 50 "
    "--agent value_gradient --env.actions squashed --value-gradient.actor-ema 0.9 --value-gradient.hidden-size 16 "
    "--value-gradient.critics 2 --value-gradient.updates 2 --value-gradient.batch-size 16 "
    "--value-gradient.trajectories 16 --value-gradient.path-length 2 --denoiser.width 16 --denoiser.num-blocks 1 "
    "--ensemble.members 2 --ensemble.elites 2"
).split()


def command(folder, *fields):
    return [sys.executable, "-m", "polygrad_jax.cli", "train", *FIELDS, *fields, "--run", str(folder)]


def environment(cache):
    """All runs share compiled programs, so that the test's time goes to running them; not with other tests, since one
    that is killed may leave half a program."""
    keep = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST")}
    return keep | {"JAX_COMPILATION_CACHE_DIR": str(cache)}


def finish(folder, cache, *fields):
    done = subprocess.run(command(folder, *fields), env=environment(cache), capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr
    return done.stdout


def newest_arrays(folder):
    """Every array of the newest checkpoint, by name, and what the host remembers (less the clock)."""
    checkpoints = Checkpoints(folder / "checkpoints")
    step = checkpoints.steps()[-1]
    stored = checkpoints.read(step)
    arrays, host = stored.arrays, stored.host
    checkpoints.close()
    host["counters"].pop("clock")
    return step, arrays, host


def records(folder):
    """metrics.jsonl and eval.csv without what depends on the machine's speed."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    slow = ("seconds/", "env_steps/per_second", "memory/")
    return [{k: v for k, v in row.items() if not k.startswith(slow)} for row in rows], (folder / "eval.csv").read_text()


def assert_same_run(a, b):
    step_a, arrays_a, host_a = newest_arrays(a)
    step_b, arrays_b, host_b = newest_arrays(b)
    assert step_a == step_b
    assert arrays_a.keys() == arrays_b.keys()
    for name in arrays_a:
        np.testing.assert_array_equal(arrays_a[name], arrays_b[name], err_msg=name)
    assert host_a == host_b
    assert records(a) == records(b)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    cache = tmp_path_factory.mktemp("compiled")
    folder = tmp_path_factory.mktemp("runs") / "uninterrupted"
    finish(folder, cache)
    return folder, cache


@pytest.mark.slow
def test_killed_then_stopped_and_resumed_is_bit_for_bit_the_uninterrupted_run(uninterrupted, tmp_path):
    """Killed at any moment, then stopped by SIGTERM, which says how to resume; the folder alone says all it needs."""
    (whole, cache), folder = uninterrupted, tmp_path / "killed"
    kill_often(folder, cache)
    process = subprocess.Popen(command(folder), env=environment(cache), stdout=subprocess.PIPE, text=True)
    while checkpoint_count(folder) < LATE_ENV_STEPS and process.poll() is None:
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM
    assert f"--run {folder}" in said.splitlines()[-1]
    assert LATE_ENV_STEPS <= checkpoint_count(folder) < TOTAL_ENV_STEPS
    alone = [sys.executable, "-m", "polygrad_jax.cli", "train", "--run", str(folder)]  # the run's own config is taken
    done = subprocess.run(alone, env=environment(cache), capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr
    assert_same_run(whole, folder)


def kill_often(folder, cache):
    """Start or resume KILLS times and kill each session at some moment behind its first checkpoint."""
    chance, ended = random.Random(0), []
    for _ in range(KILLS):
        process = subprocess.Popen(
            command(folder), env=environment(cache), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        before = checkpoint_count(folder)
        deadline = time.monotonic() + 120
        # any moment after this session's first checkpoint, so that every session gets somewhere
        while process.poll() is None and checkpoint_count(folder) == before and time.monotonic() < deadline:
            time.sleep(0.02)
        time.sleep(chance.uniform(0.0, 0.5))
        process.send_signal(signal.SIGKILL)
        ended.append(process.wait())
    assert KILLS == 0 or checkpoint_count(folder) > 0, "the run was killed before it had saved anything"
    assert KILLS == 0 or -signal.SIGKILL in ended, f"no run was killed while it ran: they ended with {ended}"


def checkpoint_count(folder):
    """The newest checkpoint's step, as a mark of progress; 0 without any."""
    steps = [int(p.name) for p in (folder / "checkpoints").glob("*") if p.name.isdigit()]
    return max(steps, default=0)


@pytest.mark.slow
def test_another_configuration_is_refused_in_one_line(uninterrupted):
    whole, cache = uninterrupted
    done = subprocess.run(
        command(whole, "--value-gradient.gamma", "0.5"),
        env=environment(cache),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 2
    assert len(done.stderr.strip().splitlines()) == 1
    assert "value_gradient.gamma (0.995, now 0.5)" in done.stderr


