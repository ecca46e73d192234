"""Two processes on one machine, as two hosts: the run of one process with as many devices, and one folder."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from polygrad_jax import cli
from polygrad_jax.config import ConfigError, EnvSpec, override, smoke
from polygrad_jax.training import hosts, loop
from polygrad_jax.training.collecting import empty_chunk

FIELDS = [
    *("--env", "inverted_pendulum", "--preset", "smoke", "--loop.total-env-steps", "400", "--loop.eval-episodes", "2"),
    *("--loop.prefill-env-steps", "300", "--model-training.warmup-env-steps", "20"),
    *("--loop.eval-every-env-steps", "200", "--loop.log-every-env-steps", "50"),
]
TRAIN = [sys.executable, "-m", "polygrad_jax.cli", "train"]


def environment(devices: int) -> dict[str, str]:
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={devices}"
    return os.environ | {"XLA_FLAGS": flags}


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


def start(folder: Path, host: int, port: int, *fields: str) -> subprocess.Popen:
    """Start one of two hosts with a device each, in a folder of its own."""
    where = ["--hosts", "2", "--host", str(host), "--coordinator", f"127.0.0.1:{port}"]
    cwd = folder / f"host{host}"
    cwd.mkdir(parents=True, exist_ok=True)
    command = [*TRAIN, *FIELDS, *where, "--run", "run", *fields]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    paths = f"{Path(__file__).parents[2]}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
    return subprocess.Popen(command, cwd=cwd, env=environment(1) | {"PYTHONPATH": paths}, **pipes)


def ended(*hosts_: subprocess.Popen) -> list[tuple[int, str]]:
    said = [host.communicate(timeout=400)[0] for host in hosts_]
    return [(host.returncode, text) for host, text in zip(hosts_, said, strict=True)]


def numbers_of(folder: Path) -> tuple[np.ndarray, list[dict]]:
    """The evaluations of a run, and its metrics but for times and memory."""
    evaluations = np.genfromtxt(folder / "eval.csv", delimiter=",", skip_header=1)
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    timed = ("seconds/", "env_steps/per_second", "memory/")
    kept = [{k: v for k, v in row.items() if not k.startswith(timed) and isinstance(v, int | float)} for row in rows]
    return evaluations, kept


@pytest.mark.slow
def test_two_hosts_train_the_run_of_two_devices(tmp_path):
    """Within rounding; the second host writes nothing."""
    port = free_port()
    both = [start(tmp_path, host, port) for host in range(2)]
    alone = subprocess.run(
        [*TRAIN, *FIELDS, "--devices", "2", "--run", str(tmp_path / "alone")],
        env=environment(2), capture_output=True, text=True, timeout=400,
    )
    assert alone.returncode == 0, alone.stderr
    (code, said), (other_code, other_said) = ended(*both)
    assert code == 0 and "finished: 40" in said, said
    assert other_code == 0 and "host 0 has let this machine go" in other_said, other_said
    assert not list((tmp_path / "host1").iterdir())
    evaluations, rows = numbers_of(tmp_path / "host0" / "run")
    expected, expected_rows = numbers_of(tmp_path / "alone")
    assert json.loads((tmp_path / "host0" / "run" / "environment.json").read_text())["devices_used"] == 2
    np.testing.assert_allclose(evaluations, expected, rtol=1e-3)
    assert len(rows) == len(expected_rows) > 1
    for row, wanted in zip(rows, expected_rows, strict=True):
        assert row.keys() == wanted.keys()
        np.testing.assert_allclose(list(row.values()), list(wanted.values()), rtol=2e-2, atol=1e-3)


@pytest.mark.slow
def test_a_signal_to_all_hosts_stops_the_run_saved(tmp_path):
    """As a cluster sends it; the first saves, lets the second go, and says how to resume."""
    port = free_port()
    both = [start(tmp_path, host, port, "--loop.total-env-steps", "100000") for host in range(2)]
    rows = tmp_path / "host0" / "run" / "metrics.jsonl"
    while all(host.poll() is None for host in both) and not (rows.exists() and rows.read_text().count("\n") > 1):
        time.sleep(0.5)
    for host in both:
        host.send_signal(signal.SIGTERM)
    (code, said), (other_code, other_said) = ended(*both)
    assert code == 128 + signal.SIGTERM and "Resume with:" in said, said
    assert other_code == 0, other_said
    assert list((tmp_path / "host0" / "run" / "checkpoints").iterdir())


def test_a_mistake_of_the_first_host_lets_the_second_go(tmp_path):
    port = free_port()
    both = [start(tmp_path, host, port, *fields) for host, fields in enumerate((["--horizon", "1"], []))]
    (code, said), (other_code, other_said) = ended(*both)
    assert code == 2 and "horizon is 1; allowed: 2 or greater" in said, said
    assert other_code == 0 and "let this machine go" in other_said, other_said


def test_a_port_in_use_is_one_line():
    """JAX itself would end the program without a word of Python's."""
    with socket.create_server(("", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        words = re.escape(f"--coordinator is {address}, whose port cannot be opened here (Address already in use)")
        with pytest.raises(ConfigError, match=words):
            hosts.connect(2, 0, address)


@pytest.mark.parametrize("address", ["127.0.0.1", "[::1]", "no.such.host.invalid"])
def test_where_nothing_answers_is_one_line(address, monkeypatch):
    monkeypatch.setattr(hosts, "WAIT_SECONDS", 0.0)
    address = f"{address}:{free_port()}"
    with pytest.raises(ConfigError, match=re.escape(f"--coordinator is {address}, where nothing answers (")) as error:
        hosts.connect(2, 1, address)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("fields", "expected"), [(["--preallocate-gpu-memory"], "true"), (["--horizon", "x"], "false")], ids=str
)
def test_memory_preallocation_is_set_before_a_host_starts_jax(fields, expected, monkeypatch):
    """The first one reads its configuration after joining the others, who do not wait for what it says."""
    seen = []
    monkeypatch.delenv("XLA_PYTHON_CLIENT_PREALLOCATE", raising=False)
    monkeypatch.setattr(hosts, "connect", lambda *_: None)
    monkeypatch.setattr(hosts, "lends", lambda: pytest.fail("started JAX"))
    monkeypatch.setattr(loop, "follow", lambda: seen.append(os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"]))
    for host, lends in (("0", False), ("1", True)):
        words = ["--hosts", "2", "--host", host, "--coordinator", "10.0.0.1:8476", *fields]
        assert cli._join_hosts(*cli._train_parser().parse_known_args(words)) == lends
    assert seen == [expected]


def test_every_bit_of_a_message_arrives():
    """NaN, minus zero and odd sizes; of a tree as the one that is sent."""
    tree = {"a": np.float32([[1.5, -0.0, np.nan]]), "b": np.array([True, False, True]), "c": np.uint32(7)}
    bits = hosts.packed(tree)
    assert bits.dtype == np.uint32
    found = hosts.unpacked(bits, tree)
    for one, two in zip(jax.tree.leaves(found), jax.tree.leaves(tree), strict=True):
        assert one.dtype == two.dtype and one.shape == two.shape and one.tobytes() == two.tobytes()
    chunk = empty_chunk(3, EnvSpec(4, 1))
    assert jax.tree.structure(hosts.unpacked(hosts.packed(chunk), chunk)) == jax.tree.structure(chunk)


def test_one_host_sends_nothing(monkeypatch):
    sent = []
    monkeypatch.setattr(hosts.multihost_utils, "broadcast_one_to_all", sent.append)
    hosts.share_run(smoke("hopper"), EnvSpec(11, 3))
    hosts.let_go()
    assert not sent and not hosts.several() and not hosts.lends()
    monkeypatch.setattr(hosts, "several", lambda: True)
    config = override(smoke("hopper"), {"horizon": 7})
    hosts.share_run(config, EnvSpec(11, 3))
    kind, size = (int(x) for x in sent[0])
    assert (kind, size) == (hosts.BEGIN, sent[1].size)
    assert hosts.told(sent[1]) == (config, EnvSpec(11, 3))


@pytest.mark.parametrize("tree", [{"a": jax.numpy.ones(3)}, {"a": np.ones(3)}])
def test_what_is_here_stays(tree):
    assert hosts.here(tree)["a"] is tree["a"]
