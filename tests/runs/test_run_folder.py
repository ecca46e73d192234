"""What a run folder writes, accepts and refuses."""

import errno
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from polygrad_jax import config as c
from polygrad_jax.config import ConfigError
from polygrad_jax.runs import run_folder as rf
from polygrad_jax.runs.run_folder import RunFolder, differing_fields, processor, write_text_atomically

ENVIRONMENT = {
    "python": "3.11.7",
    "packages": {"jax": "0.10.2", "mujoco": "4.0.0"},
    "device": "cpu: cpu",
    "cores": 2,
    "machine": "Linux x86_64",
    "xla_flags": "",
    "git_revision": "abc",
    "command": "polygrad train",
}


def contents(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.iterdir()}


def a_run(tmp_path: Path) -> tuple[RunFolder, c.Config]:
    folder, config = RunFolder(tmp_path / "run"), c.smoke("hopper")
    assert folder.check(config, ENVIRONMENT) == []
    folder.record(config, ENVIRONMENT)
    return folder, config


def test_new_folder_holds_config_and_environment(tmp_path):
    folder, config = a_run(tmp_path)
    assert sorted(contents(folder.path)) == ["config.json", "environment.json"]
    assert c.from_dict(folder.saved_config()) == config
    assert folder.saved_environment() == ENVIRONMENT | {"earlier": []}
    assert folder.holds_a_run()


def test_check_writes_nothing(tmp_path):
    RunFolder(tmp_path / "run").check(c.smoke("hopper"), ENVIRONMENT)
    assert list(tmp_path.iterdir()) == []


def test_every_field_but_the_listed_ones_conflicts():
    names = {name for name, _ in c.flatten(c.paper("hopper"))}
    assert set(rf.MAY_DIFFER_ON_RESUME) <= names
    for name in sorted(names):
        saved, current = ({"x": 1}, {"x": 1})
        for tree, value in ((saved, 1), (current, 2)):
            *inner, last = name.split(".")
            for key in inner:
                tree = tree.setdefault(key, {})
            tree[last] = value
        assert differing_fields(saved, current) == ([] if name in rf.MAY_DIFFER_ON_RESUME else [name])


def test_a_field_of_one_side_only_conflicts():
    assert differing_fields({"a": {"b": 1}}, {"a": {}}) == ["a.b"]
    assert differing_fields({}, {"a": {"b": None}}) == ["a.b"]


def test_another_config_is_refused_naming_the_fields_and_writing_nothing(tmp_path):
    folder, config = a_run(tmp_path)
    before = contents(folder.path)
    other = replace(config, seed=3, a2c=replace(config.a2c, gamma=0.5))
    with pytest.raises(ConfigError, match=r"a2c\.gamma \(0\.99, now 0\.5\), seed \(0, now 3\); allowed") as error:
        folder.check(other, ENVIRONMENT)
    assert "\n" not in str(error.value)
    assert contents(folder.path) == before


def test_a_run_of_an_older_version_goes_on_with_what_that_did(tmp_path):
    """Its config lacks the fields that have come since: their defaults are no conflict, other values are one."""
    folder, config = a_run(tmp_path)
    saved = folder.saved_config()
    del saved["denoiser"]["shown_actions"]
    (folder.path / "config.json").write_text(json.dumps(saved))
    assert folder.check(config, ENVIRONMENT) == []
    other = replace(config, denoiser=replace(config.denoiser, shown_actions="executed"))
    with pytest.raises(ConfigError, match=r"denoiser\.shown_actions \(sampled, now executed\); allowed"):
        folder.check(other, ENVIRONMENT)
    (folder.path / "config.json").write_text(json.dumps(saved | {"denoiser": 3}))
    with pytest.raises(ConfigError, match="3 in place of DenoiserConfig; allowed"):
        folder.check(config, ENVIRONMENT)


def test_a_longer_run_goes_on_and_is_recorded(tmp_path):
    folder, config = a_run(tmp_path)
    longer = replace(config, loop=replace(config.loop, total_env_steps=9_000, log_every_env_steps=7))
    assert folder.check(longer, ENVIRONMENT) == []
    folder.record(longer, ENVIRONMENT)
    assert folder.saved_config()["loop"]["total_env_steps"] == 9_000


def test_another_machine_is_a_warning_and_the_earlier_one_is_kept(tmp_path):
    folder, config = a_run(tmp_path)
    now = ENVIRONMENT | {"cores": 8, "packages": {"jax": "0.11.2", "mujoco": "4.0.0"}, "git_revision": "def"}
    (line,) = folder.check(config, now)
    assert "cores: 2 -> 8; packages.jax: 0.10.2 -> 0.11.2" in line and "git" not in line and "\n" not in line
    folder.record(config, now)
    assert folder.saved_environment() == now | {"earlier": [ENVIRONMENT]}


@pytest.mark.parametrize("name", ["thesis.tex", "metrics.jsonl", "environment.json"])
def test_a_folder_of_something_else_is_refused(tmp_path, name):
    (tmp_path / name).write_text("mine")
    with pytest.raises(ConfigError, match=f"has no config.json but holds {name}; allowed"):
        RunFolder(tmp_path).check(c.smoke("hopper"), ENVIRONMENT)
    assert contents(tmp_path) == {name: b"mine"}


def test_two_runs_cannot_train_in_one_folder(tmp_path):
    folder, config = a_run(tmp_path)
    first = folder.lock()
    with pytest.raises(ConfigError, match="being trained in by another process"):
        RunFolder(folder.path).lock()
    first.close()
    RunFolder(folder.path).lock().close()
    assert folder.check(config, ENVIRONMENT) == []


def test_a_file_system_without_locks_costs_a_warning(tmp_path, monkeypatch, capsys):
    def no_locks(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(rf.fcntl, "flock", no_locks)
    RunFolder(tmp_path).lock().close()
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"warning: run folder {tmp_path} cannot be locked (No locks available); ")


@pytest.mark.parametrize("ask", [RunFolder.holds_a_run, RunFolder.is_pretrained, RunFolder.check_has_policy])
def test_a_folder_that_one_may_not_enter_is_one_line(ask, tmp_path, monkeypatch):
    found = os.stat

    def closed(path, *given, **named):
        if isinstance(path, os.PathLike) and Path(path).parent == tmp_path:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return found(path, *given, **named)

    monkeypatch.setattr(os, "stat", closed)  # who runs the tests may enter every folder
    with pytest.raises(ConfigError, match=r"cannot be looked into \(Permission denied\); allowed") as error:
        ask(RunFolder(tmp_path))
    assert str(tmp_path) in str(error.value) and "\n" not in str(error.value)


def test_a_lock_alone_is_no_hindrance(tmp_path):
    RunFolder(tmp_path).lock().close()
    assert RunFolder(tmp_path).check(c.smoke("hopper"), ENVIRONMENT) == []


def test_a_file_in_place_of_the_folder_is_refused(tmp_path):
    (tmp_path / "run").write_text("mine")
    with pytest.raises(ConfigError, match="run is a file"):
        RunFolder(tmp_path / "run").check(c.smoke("hopper"), ENVIRONMENT)


def test_what_a_killed_start_leaves_is_no_hindrance(tmp_path):
    (tmp_path / ".config.json.abc.tmp").write_text('{"pre')
    assert RunFolder(tmp_path).check(c.smoke("hopper"), ENVIRONMENT) == []


@pytest.mark.parametrize("content", ['{"preset": ', "[]", ""])
def test_an_unreadable_config_is_one_line(tmp_path, content):
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(ConfigError, match="config.json") as error:
        RunFolder(tmp_path).check(c.smoke("hopper"), ENVIRONMENT)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("broken", ["os.fsync", "os.replace"])
def test_full_disk_leaves_the_earlier_file_whole(tmp_path, monkeypatch, broken):
    path = tmp_path / "x.json"
    write_text_atomically(path, "before")

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(broken, full)
    with pytest.raises(ConfigError, match="x.json cannot be written: the disk is full; allowed") as error:
        write_text_atomically(path, "after")
    assert "\n" not in str(error.value)
    assert contents(tmp_path) == {"x.json": b"before"}


@pytest.mark.parametrize("missing", ["", "checkpoints/20", ".."], ids=["itself", "in it", "on the way"])
def test_a_folder_that_is_gone_is_one_line(tmp_path, missing):
    run = tmp_path / "gone" / "run"
    with pytest.raises(ConfigError, match="run cannot be written: a folder on the way to it is gone") as error:
        with rf.one_line_on_disk_trouble(run):
            os.scandir(os.path.normpath(run / missing))
    assert "\n" not in str(error.value)


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="no /proc here")
def test_where_no_folder_can_be_made_is_one_line():
    with pytest.raises(ConfigError, match="/proc/x cannot be written"):
        rf.RunFolder("/proc/x").lock()


def test_other_errors_pass_through(tmp_path):
    with pytest.raises(ZeroDivisionError), rf.one_line_on_disk_trouble(tmp_path):
        1 / 0  # noqa: B018
    with pytest.raises(FileNotFoundError), rf.one_line_on_disk_trouble(tmp_path / "run"):
        (tmp_path / "elsewhere").stat()  # a missing file of ours is no trouble of the disk


def test_files_have_the_usual_permissions(tmp_path):
    write_text_atomically(tmp_path / "a", "x")
    (tmp_path / "b").write_text("x")
    assert (tmp_path / "a").stat().st_mode == (tmp_path / "b").stat().st_mode


def test_environment_says_what_bit_exactness_needs(monkeypatch):
    for name in ("PJRT_NPROC", "NPROC"):
        monkeypatch.delenv(name, raising=False)
    found = rf.describe_environment(["polygrad", "train", "--run", "a b"])
    assert set(rf.NEEDED_FOR_BIT_EXACTNESS) <= set(found)
    assert all(found["packages"].values())
    assert found["cores"] == len(os.sched_getaffinity(0))
    assert found["command"] == "polygrad train --run 'a b'"
    assert json.loads(json.dumps(found)) == found


@pytest.mark.parametrize(
    ("told", "threads"),
    [
        ({}, None),
        ({"NPROC": "1"}, 1),
        ({"NPROC": " +3"}, 3),
        ({"NPROC": "-2"}, 1),
        ({"NPROC": "two"}, None),
        ({"NPROC": "99999999999"}, None),
        ({"PJRT_NPROC": "3", "NPROC": "1"}, 3),
        ({"PJRT_NPROC": "x", "NPROC": "1"}, 1),
        ({"PJRT_NPROC": "0", "NPROC": "3"}, 1),
    ],
)
def test_cores_are_the_threads_that_xla_starts(told, threads):
    """Its pool is read off the process itself: another number of threads takes sums in another order."""
    code = (
        "import pathlib, jax\n"
        "from polygrad_jax.runs.run_folder import cores\n"
        "jax.devices()\n"
        "names = [(task / 'comm').read_text() for task in pathlib.Path('/proc/self/task').iterdir()]\n"
        "print(cores(), names.count('tf_XLAEigen\\n'))"
    )
    if not Path("/proc/self/task").exists():
        pytest.skip("the system does not name the threads of a process")
    environment = {k: v for k, v in os.environ.items() if k not in ("PJRT_NPROC", "NPROC")} | told
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    said, started = (int(word) for word in done.stdout.split())
    assert said == started == (threads or len(os.sched_getaffinity(0)))


def test_a_processor_is_told_from_another_of_its_name(tmp_path):
    told = tmp_path / "cpuinfo"
    one = "processor\t: {}\nvendor_id\t: AuthenticAMD\ncpu family\t: 25\nmodel\t\t: {}\nmodel name\t: AMD EPYC: new\n\n"
    told.write_text(one.format(0, 17) + one.format(1, 18))
    assert processor(told) == "AMD EPYC: new (family 25, model 17)"
    told.write_text("processor\t: 0\nmodel name\t: ARMv8\n")
    assert processor(told) == "ARMv8"
    told.write_text("processor\t: 0\nBogoMIPS\t: 50.00\n")
    assert processor(told) is None
    assert processor(tmp_path / "no such file") is None


def test_a_processor_saved_before_its_family_was_told_is_the_same():
    saved, other = ENVIRONMENT | {"processor": "AMD EPYC"}, ENVIRONMENT | {"processor": "AMD EPYC 7763"}
    current = ENVIRONMENT | {"processor": "AMD EPYC (family 25, model 17)"}
    assert rf.differing_environment(saved, current) == []
    for a, b in ((current, current | {"processor": "AMD EPYC (family 25, model 1)"}), (other, current)):
        assert rf.differing_environment(a, b) == [f"processor: {a['processor']} -> {b['processor']}"]
