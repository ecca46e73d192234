"""Grids: finished cells are kept whatever becomes of the others, divergence is a result, an interruption goes on."""

import argparse
import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest

from experiments.harness import figures, grid
from polygrad_jax.config import ConfigError
from polygrad_jax.runs import physics, run_folder

MUJOCO = physics.installed_mujoco()
CLONE = Path(grid.__file__).parents[2]
WRITES = "import json, sys; open(sys.argv[1], 'w').write(json.dumps({rows}))"


def cell(name: str, code: str, **more) -> grid.Cell:
    return grid.Cell(name, (sys.executable, "-c", code, "{rows}"), **more)


def writes(name: str, rows: list) -> grid.Cell:
    return cell(name, WRITES.replace("{rows}", repr(rows)))


def options(tmp_path: Path, *arguments: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    grid.add_arguments(parser)
    return parser.parse_args(["--out", str(tmp_path), *arguments])


def test_rows_divergence_and_failure(tmp_path, capsys):
    cells = [
        writes("two", [{"x": 1}, {"x": 2, "y": 3}]),
        cell("diverges", "raise SystemExit(3)", labels=(("seed", 7),)),
        cell("fails", "print('why'); raise SystemExit(2)"),
    ]
    path = tmp_path / "grid.csv"
    assert grid.run(cells, path, options(tmp_path)) == 1
    assert "fails: exit code 2: why" in capsys.readouterr().err
    assert grid.read_csv(path) == [
        {"cell": "two", "outcome": "finished", "x": "1", "y": "", "seed": "", "mujoco": ""},
        {"cell": "two", "outcome": "finished", "x": "2", "y": "3", "seed": "", "mujoco": ""},
        {"cell": "diverges", "outcome": "diverged", "x": "", "y": "", "seed": "7", "mujoco": MUJOCO},
    ]


def rows_on(task, version):
    return [{"env": task, "mujoco": version}]


@pytest.mark.parametrize("clone", [False, True])
def test_rows_of_two_physics_are_joined_only_if_asked(clone, tmp_path, capsys):
    """Cells on disk, or the CSV alone, that another MuJoCo measured; of a task that was measured already, or anew."""
    path, asked = tmp_path / "grid.csv", options(tmp_path, "--mixed-physics")
    old = [writes("a", rows_on("hopper", "3.4.0")), writes("z", rows_on("walker2d", "3.4.0"))]
    assert grid.run(old, path, options(tmp_path)) == 0
    if clone:
        for kept in (tmp_path / "grid.cells").iterdir():
            kept.unlink()
    text = path.read_text()
    cells = [old[0], writes("b", rows_on("hopper", MUJOCO))]
    with pytest.raises(ConfigError) as refused:  # before b is run
        grid.run(cells, path, options(tmp_path))
    used = f"MuJoCo 3.4.0 (grid.csv) and MuJoCo {MUJOCO} (installed)"
    assert str(refused.value).startswith(f"hopper is another task under another MuJoCo: {used}; allowed: one version")
    assert path.read_text() == text and not (tmp_path / "grid.cells" / "b.json").exists()
    # Nothing of this grid tells the task before it is measured: the cell is kept, and not joined.
    assert grid.run([writes("c", rows_on("walker2d", MUJOCO))], path, options(tmp_path)) == 1
    said = capsys.readouterr().err
    assert "c is kept, but not in grid.csv: walker2d is another task" in said and path.read_text() == text
    with pytest.raises(ConfigError, match="walker2d is another task"):
        grid.run([writes("c", [])], path, options(tmp_path))
    assert grid.run([cell("c", "raise SystemExit(2)")], path, asked) == 0
    assert grid.run(cells, path, asked) == 0
    assert {(r["cell"], r["mujoco"]) for r in grid.read_csv(path)} == {
        ("a", "3.4.0"), ("b", MUJOCO), ("c", MUJOCO), ("z", "3.4.0")
    }  # fmt: skip


def test_recorded_tables_are_of_one_physics_and_curves_of_that_of_their_run():
    """No figure of recorded results is refused; a curve's version is the one that its run recorded."""
    tables = {path: grid.read_csv(path) for path in (CLONE / "results").rglob("*.csv")}
    assert len(tables) > 20
    for path, rows in tables.items():
        physics.refuse_mixed(grid.used(rows, path), asked=False)
        runs = {(r["exp_name"], r["env_name"], r["seed"]): r for r in tables.get(path.with_name("runs.csv"), [])}
        for row in rows if runs and "metric" in rows[0] else ():
            run = runs[row["exp_name"], row["env_name"], row["seed"]]
            assert row["mujoco"] == physics.version_of_row(run) != "", (path, row)


def test_another_task_may_have_another_physics(tmp_path):
    path = tmp_path / "grid.csv"
    for name, task, version in (("a", "hopper", "3.4.0"), ("b", "walker2d", MUJOCO)):
        assert grid.run([writes(name, rows_on(task, version))], path, options(tmp_path)) == 0
    of_other_cells_last = ["walker2d", "hopper"]
    assert [grid.task_of(row) for row in grid.read_csv(path)] == of_other_cells_last
    assert grid.task_of({"env_name": "Hopper-v5"}) == "Hopper-v5" and grid.task_of({"system": "scalar"}) is None
    assert grid.task_of({"env": "hopper", "env_version": 4}) == "hopper 4"


def test_finished_cells_are_not_run_again_unless_asked(tmp_path):
    counts = "import json, sys, pathlib; p = pathlib.Path({p!r}); n = len(p.read_text()) if p.exists() else 0\n"
    counts += "p.write_text('.' * (n + 1)); open(sys.argv[1], 'w').write(json.dumps([{{'n': n}}]))"
    cells = [cell(name, counts.format(p=str(tmp_path / f"{name}.count"))) for name in ("a", "b")]
    path = tmp_path / "grid.csv"

    def seen(*arguments: str) -> list[str]:
        assert grid.run(cells, path, options(tmp_path, *arguments)) == 0
        return [row["n"] for row in grid.read_csv(path)]

    assert seen("--only", "a") == ["0"]
    assert seen() == ["0", "0"]  # b alone was run, and a's row kept
    assert seen("--again", "--only", "b") == ["0", "1"]


def test_a_grid_goes_on_from_the_csv_alone_and_keeps_rows_of_other_cells(tmp_path):
    path, opts = tmp_path / "grid.csv", options(tmp_path)
    assert grid.run([writes("a", [{"x": 1}, {"x": 2, "y": 3}]), writes("z", [{"x": 9}])], path, opts) == 0
    for kept in (tmp_path / "grid.cells").iterdir():
        kept.unlink()
    assert grid.run([cell("a", "raise SystemExit(2)"), writes("b", [{"x": 4}])], path, opts) == 0
    assert [(r["cell"], r["x"], r["y"]) for r in grid.read_csv(path)] == [
        ("a", "1", ""), ("a", "2", "3"), ("b", "4", ""), ("z", "9", "")
    ]


def test_rows_that_another_grid_joins_meanwhile_stay(tmp_path):
    """Two grids of one CSV: neither knows when it begins what the other will measure."""
    path = tmp_path / "grid.csv"
    ours, theirs = writes("a", [{"x": 1}]), writes("z", [{"x": 9}])
    one, other = (grid.Grid([own], path, jobs=1, threads=0, mixed_physics=False) for own in (ours, theirs))
    one.run_one(ours)
    other.run_one(theirs)
    one.run_one(ours)
    assert sorted((r["cell"], r["x"]) for r in grid.read_csv(path)) == [("a", "1"), ("z", "9")]


def test_a_folder_is_locked_by_one_at_a_time_and_nothing_is_left_in_it(tmp_path):
    order = []

    def second():
        with grid.locked(tmp_path):
            order.append("second")

    waiting = threading.Thread(target=second)
    with grid.locked(tmp_path):
        waiting.start()
        time.sleep(0.2)
        order.append("first")
    waiting.join(10)
    assert order == ["first", "second"] and not list(tmp_path.iterdir())


def test_a_cell_with_other_fields_is_another_cell():
    assert grid.with_fields("hopper-seed0", "") == "hopper-seed0"
    named = grid.with_fields("hopper-seed0", "--denoiser.width 512 --a2c.gamma 0.9 ")
    assert named == "hopper-seed0-denoiser.width-512-a2c.gamma-0.9"


def test_a_name_that_no_cell_has_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"--only is c; allowed: a, b"):
        grid.run([writes("a", []), writes("b", [])], tmp_path / "grid.csv", options(tmp_path, "--only", "c"))


@pytest.mark.parametrize(
    ("names", "words", "line"),
    [
        ("aba", [], "cells are asked for twice: a; allowed: each once"),
        (
            ["a", "b" * 231],
            [],
            f"the name of a cell has 231 bytes: {'b' * 231}; allowed: 230, by shorter names of folders or shorter "
            "--fields",
        ),
        ("ab", ["--jobs", "0"], "--jobs is 0; allowed: 1 or more"),
        ("ab", ["--threads", "-1"], "--threads is -1; allowed: 0 or more"),
    ],
)
def test_what_no_grid_can_run_is_refused_before_anything_is_written(names, words, line, tmp_path):
    with pytest.raises(ConfigError) as refused:
        grid.run([writes(name, []) for name in names], tmp_path / "grid.csv", options(tmp_path, *words))
    assert str(refused.value) == line and not list(tmp_path.iterdir())


def test_the_longest_name_can_be_written(tmp_path):
    """It was refused when its rows were to be written, after all of the work."""
    name = "a" * grid.LONGEST_NAME
    assert grid.run([writes(name, [{"x": 1}])], tmp_path / "grid.csv", options(tmp_path)) == 0
    assert [row["cell"] for row in grid.read_csv(tmp_path / "grid.csv")] == [name]
    with pytest.raises(ConfigError, match="the name is too long"):
        run_folder.write_text_atomically(tmp_path / f".{name}a.fresh.json", "[]")


def test_a_file_in_the_place_of_the_folder_is_one_line(tmp_path):
    """It was the traceback of a thread."""
    (tmp_path / "out").write_text("mine")
    with pytest.raises(ConfigError, match="cannot be written: a part of the path is a file; allowed: a folder with"):
        grid.run([writes("a", [{}])], tmp_path / "out" / "grid.csv", options(tmp_path / "out"))
    assert (tmp_path / "out").read_text() == "mine"


def test_a_command_that_knows_nothing_of_rows_has_them_collected(tmp_path):
    commands = {code: (sys.executable, "-c", f"raise SystemExit({code})") for code in (0, 3)}
    cells = [grid.Cell(str(code), commands[code], collect=lambda code: [{"code": code}]) for code in commands]
    assert grid.run(cells, tmp_path / "grid.csv", options(tmp_path)) == 0
    rows = grid.read_csv(tmp_path / "grid.csv")
    assert [(row["code"], row["outcome"]) for row in rows] == [("0", "finished"), ("3", "diverged")]


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no affinity here")
def test_cells_at_once_have_cores_and_threads_of_their_own(tmp_path, monkeypatch):
    allowed = sorted(os.sched_getaffinity(0))
    code = "import json, os, sys, time; time.sleep(1.0); open(sys.argv[1], 'w').write(json.dumps([{'cores': "
    code += "sorted(os.sched_getaffinity(0)), 'omp': os.environ['OMP_NUM_THREADS'], 'at': time.time()}]))"
    jobs = min(2, len(allowed))
    cells = [cell(name, code) for name in "abc"]
    assert grid.run(cells, tmp_path / "grid.csv", options(tmp_path, "--jobs", str(jobs), "--threads", "1")) == 0
    rows = grid.read_csv(tmp_path / "grid.csv")
    assert {row["omp"] for row in rows} == {"1"}
    assert len({row["cores"] for row in rows[:2]}) == jobs
    assert all(len(json.loads(row["cores"])) == 1 for row in rows)


def test_core_shares(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {2, 3, 5, 8}, raising=False)
    monkeypatch.setattr(os, "sched_setaffinity", None, raising=False)
    assert grid.core_shares(2, 2) == [{2, 3}, {5, 8}]
    assert grid.core_shares(3, 0) == [None, None, None]


def script_of_slow_cells(tmp_path: Path) -> Path:
    """Write a script of two cells that save at SIGTERM and end with 130, and end at once where something is saved."""
    script = tmp_path / "grid.py"
    script.write_text(
        textwrap.dedent(f"""
        import argparse, sys
        from pathlib import Path
        sys.path.insert(0, {str(CLONE)!r})
        from experiments.harness import grid
        slow = '''
        import json, pathlib, signal, sys, time
        mark = pathlib.Path({str(tmp_path)!r}) / "saved"
        def save(*_):
            mark.write_text("")
            sys.exit(130)
        signal.signal(signal.SIGTERM, save)
        if not mark.exists():
            print("going", flush=True)
            time.sleep(60)
        open(sys.argv[1], "w").write(json.dumps([{{"resumed": mark.exists()}}]))
        '''
        import textwrap
        parser = argparse.ArgumentParser()
        grid.add_arguments(parser)
        options = parser.parse_args()
        cells = [grid.Cell(n, (sys.executable, "-c", textwrap.dedent(slow), "{{rows}}")) for n in ("a", "b")]
        sys.exit(grid.run(cells, options.out / "grid.csv", options))
        """)
    )
    return script


def started(tmp_path: Path, *arguments: str) -> tuple[list[str], subprocess.Popen]:
    """Start the slow cells and wait until the first one goes."""
    command = [sys.executable, str(script_of_slow_cells(tmp_path)), "--out", str(tmp_path), *arguments]
    running = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    log, until = tmp_path / "grid.cells" / "a.log", time.monotonic() + 90
    while time.monotonic() < until and not (log.exists() and "going" in log.read_text()):
        time.sleep(0.05)
    return command, running


def test_a_signal_reaches_a_cell_that_is_just_being_started(tmp_path, monkeypatch):
    """It comes when the cell was found to be wanted and is not yet among those to be told."""
    slow = cell("a", "import time; time.sleep(20)")
    one = grid.Grid([slow], tmp_path / "grid.csv", jobs=1, threads=0, mixed_physics=False)
    pinned = grid.pinned

    def stopped_meanwhile(*given):
        one.stop(signal.SIGINT)
        return pinned(*given)

    monkeypatch.setattr(grid, "pinned", stopped_meanwhile)
    began = time.monotonic()
    one.run_one(slow)
    assert time.monotonic() - began < 10 and not one.done() and not one.wrong


def test_sigterm_reaches_the_cells_and_the_same_command_goes_on(tmp_path):
    """The cell that runs saves and ends with 130; the one that waits never begins; then both are run."""
    command, running = started(tmp_path)
    running.send_signal(signal.SIGTERM)
    _, said = running.communicate(timeout=30)
    assert running.returncode == 130
    assert "The same command resumes" in said
    assert not (tmp_path / "grid.csv").exists() and not (tmp_path / "grid.cells" / "b.log").exists()
    assert subprocess.run(command, capture_output=True).returncode == 0
    assert [row["resumed"] for row in grid.read_csv(tmp_path / "grid.csv")] == ["True", "True"]


def test_a_grid_on_ray_is_stopped_saved_and_goes_on(tmp_path):
    """On a real cluster of this machine alone: its tasks are told, and the same command runs what is left."""
    pytest.importorskip("ray")
    command, running = started(tmp_path, "--ray")
    running.send_signal(signal.SIGTERM)
    _, said = running.communicate(timeout=120)
    assert running.returncode == 130 and "The same command resumes" in said
    assert (tmp_path / "saved").exists() and not (tmp_path / "grid.csv").exists()
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert [row["resumed"] for row in grid.read_csv(tmp_path / "grid.csv")] == ["True", "True"]


def test_without_ray_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ConfigError, match=r"no ray; type: pip install -e \.\[ray\]"):
        grid.run([writes("a", [])], tmp_path / "grid.csv", options(tmp_path, "--ray"))


def test_names_at_lines_ends_do_not_lie_on_one_another(tmp_path):
    """Three ends at one height go to one line of text above, none and one below; a far one stays where it is."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axis = plt.subplots()
    axis.set_ylim(0, 100)
    for height, name in ((10, "a"), (10, "b"), (90, "far"), (10, "c")):
        figures.label_end(axis, 1.0, height, name, "black", size=10)
    figures.save_figure(figure, tmp_path / "x.png")
    moved = {text.get_text(): text.get_position()[1] for text in axis.texts}
    assert {name: round(by, 6) for name, by in moved.items()} == {"a": -12.0, "b": 0.0, "c": 12.0, "far": 0.0}
    plt.close(figure)
