"""A profile's operations are those of the program, and its products all the arithmetic there is."""

import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))
import profile_iteration
from training_speed import Part


def part_of(function, *given):
    return Part(jax.jit(function).lower(*given).compile(), given)


def in_turn(x, matrices):
    """Three products [2, 4, 8] @ [2, 8, 8] in a loop, and one more outside."""
    x, _ = jax.lax.scan(lambda x, w: (jnp.tanh(jnp.einsum("bij,bjk->bik", x, w)), None), x, matrices)
    return jnp.sort(x[0] @ jnp.ones((8, 5)))


def test_products_are_counted_as_often_as_they_are_made():
    part = part_of(in_turn, jnp.ones((2, 4, 8)), jnp.ones((3, 2, 8, 8)))
    rows = {row["kind"]: row for row in profile_iteration.rows_of("some part", 7, part, 4, 1e9)}
    expected = 3 * 2 * (2 * 4 * 8 * 8) + 2 * 4 * 8 * 5
    assert rows["products"]["GFLOP"] * 1e9 == pytest.approx(expected)
    assert rows["products"]["calls"] == 4 and rows["products"]["times"] == 7
    assert sum(row["share"] for row in rows.values()) == pytest.approx(1.0)
    assert all(row["GFLOP"] == 0 for kind, row in rows.items() if kind != "products")
    assert rows["fused"]["calls"] >= 3  # tanh, in every turn of the loop


def test_a_program_without_products_has_none():
    rows = profile_iteration.rows_of("sum", 1, part_of(lambda x: jnp.cumsum(x * x), jnp.ones(1000)), 2, 1e9)
    assert [row["kind"] for row in rows] == list(profile_iteration.KINDS)
    assert all(row["GFLOP"] == 0 and row["GFLOP/s"] is None for row in rows)
    assert {row["kind"]: row["calls"] for row in rows}["products"] == 0


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--runs", "0"], "--runs is 0; allowed: 1 or greater"),
        (["--preset", "smoke", "--horizon", "1"], "horizon is 1; allowed: 2 or greater"),
        (
            ["--preset", "smoke", "--world-model", "dreamer", "--agent", "dreamer"],
            "agent is dreamer; allowed: one whose trajectories are imagined before its update",
        ),
    ],
)
def test_a_mistake_is_one_line(words, said, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["profile_iteration.py", *words])
    assert profile_iteration.main() == 2
    *_, last = capsys.readouterr().err.splitlines()
    assert said in last


def test_instructions_of_several_results_are_seen():
    part = part_of(lambda x, y: jax.lax.sort((x, y), num_keys=1), jnp.ones(300), jnp.arange(300))
    text = part.program.as_text()
    assert any(name.startswith("sort") for name in profile_iteration.operations_of(text)), text


@pytest.mark.parametrize(
    ("out", "said"),
    [
        ("/proc/x/y.csv", "/proc/x cannot be written: "),
        ("/proc/x.csv", "/proc cannot be written: "),
        (".", "--out is ., a folder; allowed: a file"),
    ],
)
def test_a_table_that_cannot_be_written_is_one_line_before_anything_is_measured(out, said, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["profile_iteration.py", "--out", out])
    assert profile_iteration.main() == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(said) and "allowed: a f" in line
