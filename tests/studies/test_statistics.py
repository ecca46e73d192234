"""What is said of returns of several runs, against rliable, by hand, and by how often intervals hold the truth."""

import numpy as np
import pytest

from experiments.harness import statistics

# Runs of two algorithms on three tasks, and what rliable 1.2.0 said of them (arch 7.2.0, NumPy 2.4.6; 50,000 resamples
# for the intervals of interquartile means, 20,000 for that of the probability).
ONE = [
    [1438.6, 2706.6, 193.4, 1698.5, 2215.4],
    [1927.6, 837.3, 552.8, 1231.1, 813.7],
    [942.0, 886.4, 936.5, 860.6, 993.4],
]
OTHER = [[497.2, 669.9, 2406.4, 3023.9], [970.3, 1768.8, 1289.9, 1368.2], [1249.1, 395.8, 2549.7, 1080.1]]
INTERQUARTILE = {"one": (1091.6, 851.11, 1391.96), "other": (1287.733333333, 891.05, 1922.02)}
IMPROVEMENT = (0.316666666667, 0.1, 0.56666666667)
PROFILES = {"one": [0.933333333, 0.4, 0.133333333], "other": [0.833333333, 0.666666667, 0.25]}


@pytest.fixture(autouse=True)
def fewer_repetitions(monkeypatch):
    monkeypatch.setattr(statistics, "REPETITIONS", 2_000)


@pytest.mark.parametrize(("name", "scores"), [("one", ONE), ("other", OTHER)])
def test_interquartile_means_and_profiles_are_those_of_rliable(name, scores):
    mean, low, high = statistics.bootstrap(statistics.interquartile_mean, scores)
    assert mean == pytest.approx(INTERQUARTILE[name][0], abs=1e-6)
    # 40 is what the quantiles of 2,000 resamples differ by from seed to seed, four times over.
    assert (low, high) == pytest.approx(INTERQUARTILE[name][1:], abs=40)
    profile = statistics.performance_profile(scores, [500.0, 1000.0, 2000.0])
    np.testing.assert_allclose(profile, PROFILES[name], atol=1e-6)


def test_the_interquartile_mean_of_few_runs_is_the_mean():
    for runs in range(1, 6):
        scores = [*np.linspace(100, 110, runs - 1), 3000.0]
        left_out = statistics.interquartile_mean([scores]) != pytest.approx(np.mean(scores))
        assert left_out == (runs >= statistics.FEWEST_FOR_QUARTERS)


def test_the_probability_of_improvement_is_that_of_rliable():
    mean, low, high = statistics.bootstrap(statistics.improvement, ONE, OTHER)
    assert mean == pytest.approx(IMPROVEMENT[0], abs=1e-6)
    assert (low, high) == pytest.approx(IMPROVEMENT[1:], abs=0.04)


def test_a_tie_counts_half():
    assert statistics.improvement([[1.0, 2.0]], [[1.0, 2.0]]) == 0.5
    assert statistics.improvement([[2.0], [0.0]], [[1.0], [1.0]]) == 0.5


@pytest.mark.parametrize(
    ("of", "truth"),
    [
        (lambda rng: statistics.mean_interval(rng.normal(5.0, 2.0, 3)), 5.0),
        (lambda rng: statistics.difference_interval(rng.normal(7.0, 1.0, 3), rng.normal(5.0, 3.0, 5)), 2.0),
    ],
    ids=["mean", "difference"],
)
def test_95_of_100_intervals_hold_the_truth(of, truth):
    rng = np.random.default_rng(1)
    held = [low <= truth <= high for _, low, high in (of(rng) for _ in range(1_000))]
    assert 0.93 < np.mean(held) < 0.98


def test_one_run_has_no_interval():
    assert np.isnan(statistics.mean_interval([3.0])[1:]).all()
    assert np.isnan(statistics.difference_interval([3.0], [1.0, 2.0])[1:]).all()
    assert statistics.difference_interval([3.0], [1.0, 2.0])[0] == 1.5
