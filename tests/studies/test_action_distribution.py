"""The experiment on the distribution of imagined actions: what it counts and how the std falls."""

import numpy as np
import pytest

from experiments.guidance import action_distribution
from experiments.guidance.action_distribution import BINS, EDGES, SIGMAS, counts_of, density, draw, falling
from experiments.harness import grid


def test_the_std_falls_on_one_line_and_stops_at_each_figure():
    """981 updates from 1 to 0.02 are steps of 0.001: 1 update at 1, 500 more to 0.5, 300 to 0.2, 100, 50, 30."""
    parts = falling(981)
    assert [len(parts[s]) for s in SIGMAS] == [1, 500, 300, 100, 50, 30]
    for sigma, stds in parts.items():
        np.testing.assert_allclose(stds[-1], sigma, atol=1e-6)
    whole = np.concatenate(list(parts.values()))
    np.testing.assert_allclose(np.diff(whole), -0.001, atol=1e-6)


def test_what_lies_outside_is_counted_in_the_outermost_bins():
    counts = counts_of(np.array([[-80.0, -4.95], [0.05, 0.01]]))
    assert (counts[0], counts[BINS // 2], counts.sum()) == (2, 2, 4)


def test_the_density_of_normal_draws_is_the_normal_one():
    """200,000 draws in two seeds: bins of 0.1 hold 4 % at most, so the density is off by about 0.005."""
    z = np.random.default_rng(0).standard_normal((2, 100_000))
    rows = [{"counts": " ".join(map(str, counts_of(part)))} for part in z]
    middle = (EDGES[1:] + EDGES[:-1]) / 2
    np.testing.assert_allclose(density(rows), np.exp(-(middle**2) / 2) / np.sqrt(2 * np.pi), atol=0.02)
    assert np.isnan(density([{"counts": ""}])).all()


def test_the_figures_are_made_from_the_csv_alone_and_show_what_was_lost(tmp_path, monkeypatch):
    said = []
    monkeypatch.setattr("matplotlib.axes.Axes.text", lambda axis, x, y, words, **how: said.append(words))
    common = {"env": "hopper", "seed": 0, "horizon": 10, "sampling_steps": 16, "protocol": "following", "sigma": 0.1}
    common |= {"updates": 7, "rows": 8, "falling_updates": 9}
    good = {"rule": "score", "finite": 1, "z_ks": 0.125, "counts": " ".join("1" for _ in range(BINS))}
    bad = {"rule": "no_clipping", "finite": 0, "z_ks": None, "counts": None}
    grid.write_csv(tmp_path / "action_distribution.csv", [common | good, common | bad])
    draw(tmp_path)
    assert said == ["KS 0.125", "not finite"]
    assert (tmp_path / "hopper_h10_k16.png").stat().st_size > 1000


@pytest.mark.parametrize("rule", action_distribution.RULES_TRIED)
def test_every_rule_has_a_colour(rule):
    assert rule in action_distribution.COLOURS
