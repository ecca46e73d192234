"""Files that something else has written: refused in one line with nothing written over, or read as what they are.

The mutated files are read by a program of its own with a bound on its memory, so that a hang, a crash or a huge
allocation is seen. ``hostile_files.py`` says which verbs read them. ``make test-slow`` tries one in sixteen;
``POLYGRAD_HOSTILE_EVERY=1`` tries all, which are above 300.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from judged import fault

pytestmark = pytest.mark.slow

PROGRAM = Path(__file__).with_name("hostile_files.py")
EVERY = int(os.environ.get("POLYGRAD_HOSTILE_EVERY", "16"))
COUNT, MOST_SECONDS = 250 // EVERY, 1_800


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """What the verbs made of whole files, by verb, and of the mutated ones."""
    command = [sys.executable, str(PROGRAM), str(tmp_path_factory.mktemp("hostile") / "files"), str(EVERY)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=MOST_SECONDS)
    assert done.returncode == 0, done.stderr[-2000:]
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    return {line["whole"]: line for line in lines if "whole" in line}, [line for line in lines if "mutation" in line]


def assert_no_fault(whole, mutated):
    whys = [(line, fault(line, whole[line["verb"]])) for line in mutated]
    faults = [f"{line['file']} ({line['mutation']}), {line['verb']}: {why}" for line, why in whys if why is not None]
    assert not faults, f"{len(faults)} of {len(mutated)}:\n" + "\n".join(faults)


def test_whole_files_are_read(results):
    whole, _ = results
    assert len(whole) >= 7
    assert all(line["code"] == 0 and line["raised"] is None for line in whole.values()), whole


def test_mutated_files_are_refused_in_one_line_or_read_as_what_they_are(results):
    whole, mutated = results[0], [line for line in results[1] if line["kind"] != "minari"]
    assert len(mutated) >= COUNT
    assert_no_fault(whole, mutated)
    assert sum(line["code"] == 2 for line in mutated) > len(mutated) // 2, "most are no longer mutated enough"


def test_mutated_minari_datasets_are_refused_in_one_line_or_read_as_what_they_are(results):
    pytest.importorskip("minari", reason="the extra minari is not installed")
    whole, mutated = results[0], [line for line in results[1] if line["kind"] == "minari"]
    assert mutated
    assert_no_fault(whole, mutated)
