"""A command line that cannot be meant is one line, exit code 2, and nothing is written, whatever it is made of."""

import pytest
from hostile_commands import COUNT, commands, make_working_folder

from polygrad_jax import cli
from polygrad_jax.analysis import task_page
from polygrad_jax.training import fitting, loop

LONGEST_LINE = 1_000


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
    lines = said.err.split("\n")[:-1]
    if code != cli.BAD_INPUT or said.out or len(lines) != 1:
        return f"exit code {code}, {len(lines)} lines on stderr, {len(said.out)} characters on stdout"
    if len(lines[0]) > LONGEST_LINE or not lines[0].isprintable() or not lines[0].startswith("polygrad: "):
        return f"a line of {len(lines[0])} characters: {lines[0][:200]!r}"
    return None if tree(folder) == before else "something was written"


def test_300_malformed_command_lines_are_refused_in_one_line(folder, capsys, monkeypatch):
    def accept(*_):
        raise Accepted

    for module, name in ((loop, "train"), (fitting, "Training"), (task_page, "describe")):
        monkeypatch.setattr(module, name, accept)
    monkeypatch.chdir(folder)
    lines = commands()
    assert len(lines) == COUNT
    faults = {repr(words)[:300]: fault for words in lines if (fault := refused(words, folder, capsys)) is not None}
    assert not faults, f"{len(faults)} of {COUNT}:\n" + "\n".join(f"{fault}  <-  {line}" for line, fault in faults.items())
