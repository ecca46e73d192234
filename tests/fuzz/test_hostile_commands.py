"""A command line that cannot be meant is one line, exit code 2, and nothing is written, whatever it is made of.

``make test`` tries one in eight of 300; ``POLYGRAD_HOSTILE_EVERY=1`` tries all.
"""

import os
import random

import pytest
from hostile_commands import COUNT, commands, make_working_folder
from judged import why_no_refusal

from polygrad_jax import cli
from polygrad_jax.analysis import task_page
from polygrad_jax.training import fitting, loop

EVERY = int(os.environ.get("POLYGRAD_HOSTILE_EVERY", "8"))


class Accepted(Exception):
    """A command line was taken for a sound one."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("working")
    make_working_folder(folder)
    return folder


def tree(folder):
    return {path.relative_to(folder): path.lstat().st_mtime_ns for path in folder.rglob("*")}


def refused(words, folder, capsys):
    """What is wrong with how a command line is refused; None if nothing is."""
    before = tree(folder)
    try:
        code = cli.main(words)
    except Accepted:
        return capsys.readouterr() and "accepted"
    except BaseException as error:
        capsys.readouterr()
        return f"{type(error).__name__}: {str(error)[:200]}"
    said = capsys.readouterr()
    if code != cli.BAD_INPUT or said.out:
        return f"exit code {code}, {len(said.out)} characters on stdout"
    return why_no_refusal(said.err) or (None if tree(folder) == before else "something was written")


def test_malformed_command_lines_are_refused_in_one_line(folder, capsys, monkeypatch):
    def accept(*_):
        raise Accepted

    for module, name in ((loop, "train"), (fitting, "Training"), (task_page, "describe")):
        monkeypatch.setattr(module, name, accept)
    monkeypatch.chdir(folder)
    lines = commands()
    assert len(lines) == COUNT
    lines = random.Random(0).sample(lines, COUNT // EVERY)
    whys = {repr(words)[:200]: refused(words, folder, capsys) for words in lines}
    faults = [f"{why}  <-  {words}" for words, why in whys.items() if why is not None]
    assert not faults, f"{len(faults)} of {len(lines)}:\n" + "\n".join(faults)
