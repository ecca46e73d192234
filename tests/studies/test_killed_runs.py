"""What is counted of killed runs: bits that differ, rows that differ, steps that were lost."""

import json
import random
import sys
from types import SimpleNamespace

import numpy as np
import pytest

from experiments.learning import killed_runs
from polygrad_jax.config import ConfigError
from polygrad_jax.data.transition_log import TransitionLog
from polygrad_jax.runs.checkpoints import Checkpoints, export_npz


def leave(folder, weight=1.5, reward=0.25, loss=0.5, returned=3, counter=7, seconds=1.0):
    """What a run leaves, with one number of each part."""
    log = TransitionLog(folder / "replay")
    log.append(np.zeros((2, 3)), np.zeros((2, 1)), np.full(2, reward), np.zeros(2, bool), np.ones(2, bool))
    log.flush()
    checkpoints = Checkpoints(folder / "checkpoints")
    checkpoints.save(2, {"w": np.float32([weight])}, {"counters": {"env_steps": counter, "clock": seconds}})
    checkpoints.close()
    export_npz(folder / "best.npz", {"agent": {"w": np.float32([weight])}})
    row = {"env_steps": 2, "loss": loss, "seconds/training": seconds, "env_steps/per_second": seconds}
    (folder / "metrics.jsonl").write_text(json.dumps(row) + "\n")
    (folder / "eval.csv").write_text(f"env_steps,return_mean\n2,{returned}\n")
    return folder


@pytest.mark.parametrize(
    ("change", "different"),
    [
        ({}, {}),
        ({"seconds": 2.0}, {}),  # the machine's speed
        ({"weight": np.nextafter(np.float32(1.5), 2)}, {"newest checkpoint": "1 bits", "best.npz": "1 bits"}),
        ({"reward": 0.5}, {"replay": "4 bits"}),  # 0x3e800000 and 0x3f000000: 2 bits in each of two rewards
        ({"loss": 0.75}, {"metrics.jsonl": "1 rows"}),
        ({"returned": 4}, {"eval.csv": "1 rows"}),
        ({"counter": 8}, {"host": "1 entries"}),
    ],
)
def test_every_part_is_compared(tmp_path, change, different):
    parts = killed_runs.comparison(leave(tmp_path / "a"), leave(tmp_path / "b", **change))
    assert {p["part"]: p["different"] for p in parts if not p["different"].startswith("0 ")} == different


def test_bits_by_hand():
    a = np.float32([1.0, 2.0])
    assert killed_runs.different_bits(a, a.copy()) == 0
    assert killed_runs.different_bits(np.uint8([0b1010]), np.uint8([0b0110])) == 2
    assert killed_runs.different_bits(a, None) == killed_runs.different_bits(a, a.astype(np.int32)) == 64


def test_a_kill_lost_what_the_next_session_does_again():
    rows = [{"session_began_at": 300, "env_step": 370}, {"session_began_at": 360, "env_step": 381}]
    lost = killed_runs.losses(rows, 360)
    assert [(row["resumed_from"], row["lost_env_steps"]) for row in lost] == [(360, 10), (360, 21)]


def test_no_kill_is_refused_before_anything_is_trained(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["killed_runs.py", "--kills", "0", "--runs", str(tmp_path / "runs")])
    monkeypatch.setattr(killed_runs, "finish", lambda *_: pytest.fail("trained"))
    assert killed_runs.main() == 2
    assert capsys.readouterr().err == "killed_runs: --kills is 0; allowed: 1 or more\n"
    assert not (tmp_path / "runs").exists()


def test_a_session_marks_its_phase_and_its_step(tmp_path, monkeypatch):
    from polygrad_jax import cli
    from polygrad_jax.training import collecting, loop

    marks, seen = killed_runs.new_marks(tmp_path / "marks"), []
    for place, name in ((collecting.Collecting, "take_step"), (collecting.Collecting, "collect"), (loop, "evaluate")):
        monkeypatch.setattr(place, name, lambda *_: seen.append(killed_runs.PHASES[int(marks[0])]))
    for name in ("save", "log_row", "learn"):
        monkeypatch.setattr(loop, name, lambda *_: seen.append(killed_runs.PHASES[int(marks[0])]))

    def train(words):
        for function in (loop.evaluate, loop.log_row, loop.save, collecting.Collecting.collect):
            function(None)
        return len(words)

    monkeypatch.setattr(cli, "main", train)
    assert marks[killed_runs.FIRST_STEP] == -1
    assert killed_runs.session(tmp_path / "marks", ["train", "--run", "x"]) == 3
    assert seen == ["evaluating", "logging", "saving", "collecting"]
    assert killed_runs.PHASES[int(marks[killed_runs.PHASE])] == "learning"  # which follows collecting
    loop.learn([SimpleNamespace(at=SimpleNamespace(env_steps=40))], None)
    assert marks[killed_runs.FIRST_STEP] == marks[killed_runs.ENV_STEP] == 40


def test_a_session_that_fails_is_no_end(tmp_path):
    options = SimpleNamespace(env="none", preset="smoke", seed=0, kills=1, runs=tmp_path)
    with pytest.raises(ConfigError, match="a session ended with exit code 2: polygrad: env.name is 'none'"):
        killed_runs.kill_once(options, tmp_path / "run", "learning", random.Random(0))
