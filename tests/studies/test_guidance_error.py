"""What is measured of z = (a - mu(s)) / sigma, on draws whose answer is known."""

import json
from dataclasses import replace

import jax.numpy as jnp
import numpy as np
import pytest

from experiments.guidance import convergence, guidance_error, rule_ranking, rules_tried
from experiments.harness import experiment, grid
from experiments.harness.guided_sampler import with_std
from polygrad_jax.config import paper, validate

B, T, A = 4000, 6, 2
H10 = (1, 5, 9)


def test_the_share_of_z_that_the_state_explains():
    """Independent: 0. State and square with as much variance as the noise: a half. The first time is left out."""
    random = np.random.default_rng(0)
    states, noise = random.standard_normal((B, T, 5)), random.standard_normal((B, T, A))
    assert abs(guidance_error.explained(noise, states)) < 0.005
    quadratic = (states[..., :1] + (states[..., 1:2] ** 2 - 1.0) / np.sqrt(2)) / np.sqrt(2)
    np.testing.assert_allclose(guidance_error.explained(noise + quadratic, 3.0 * states + 7.0), 0.5, atol=0.02)
    only_first = noise + quadratic * (np.arange(T) == 0)[None, :, None]
    assert abs(guidance_error.explained(only_first, states)) < 0.005


def test_the_largest_correlation_between_two_times_of_the_same_dimension():
    """z_3 = 0.6 z_1 + 0.8 noise in one dimension; what two dimensions share at one time does not count."""
    z = np.random.default_rng(1).standard_normal((B, T, A))
    z[:, 3, 1] = 0.6 * z[:, 1, 1] + 0.8 * z[:, 3, 1]
    z[:, 5, 0] = z[:, 5, 1]
    np.testing.assert_allclose(guidance_error.over_time(z), 0.6, atol=0.03)


def test_errors_are_in_variances_and_raw():
    """Off by twice the std in one of two dimensions: 4 / 2 variances, and (2 * 3)^2 / 2 raw; one trajectory in four."""
    real = np.zeros((4, 10, 2))
    predicted = real.copy()
    predicted[0, 5, 1] = 6.0
    row = guidance_error.errors("closed", predicted, real, np.array([1.0, 3.0]))
    assert (row["closed_h5"], row["closed_raw_h5"], row["closed_median_h5"]) == (0.5, 4.5, 0.0)
    assert (row["closed_h1"], row["closed_h9"]) == (0.0, 0.0)


def test_the_std_is_replaced_and_the_mean_is_not():
    policy = with_std(lambda actor, obs: (actor * obs[..., :1], jnp.ones_like(obs[..., :1])))
    mean, std = policy((jnp.float32(2.0), jnp.float32(0.1)), jnp.ones((3, 4, 2)))
    np.testing.assert_array_equal(mean, np.full((3, 4, 1), 2.0))
    np.testing.assert_array_equal(std, np.full((3, 4, 1), np.float32(0.1)))
    policy = with_std(lambda actor, obs: (actor * obs, jnp.ones_like(obs)))
    _, std = policy((jnp.float32(2.0), jnp.array([0.1, 0.9])), jnp.ones((3, 4, 2)))
    np.testing.assert_array_equal(std, np.broadcast_to(np.float32([0.1, 0.9]), (3, 4, 2)))


def test_every_rule_that_is_tried_is_a_valid_config():
    base = paper("hopper")  # and a run that was sampled in another way: nothing of it is taken over
    config = validate(replace(base, diffusion=replace(base.diffusion, sampling_steps=64)))
    cells = dict.fromkeys(tried.cell for tried in rules_tried.TRIED.values())
    found = [setting for cell in cells for setting in rules_tried.settings(config, 0.5, cell)]
    assert len(found) == sum(len(tried.sampling_steps) for tried in rules_tried.TRIED.values())
    for labels, config, schedule, tried in found:
        assert (labels["sampling_tau"] > 0) == ("spaced" in labels["rule"])
        assert (schedule.step[0] > 0) == ("spaced" in labels["rule"])
        assert len(schedule.step) == config.diffusion.sampling_steps == labels["sampling_steps"]
        assert labels["eta"] == 0.5  # of the noise of the states, but not of the actions
        np.testing.assert_allclose(schedule.posterior_std, 0.5 * schedule.action_noise_std, rtol=1e-6)
        assert set(tried.sigmas) <= set(rules_tried.SIGMAS)
        assert tried.z_of in ("", "score") and labels["rule"].endswith(rules_tried.OF_SCORE) == bool(tried.z_of)


def test_every_setting_is_compared_with_the_best_rule_at_all_steps():
    """Two rules, two seeds; means 2 and 4 at K = 128, so the best is 2; 3 and 2.1 at K = 16: ratios 1.5 and 1.05."""

    def row(rule, steps, seed, error, denoiser="fitted"):
        errors = {f"closed_h{h}": str(error) for h in H10}
        labels = {"env": "hopper", "sigma": "0.1", "rule": rule, "sampling_steps": str(steps), "seed": str(seed)}
        return labels | {"denoiser": denoiser} | errors

    given = {("a", 128): (1, 3), ("b", 128): (4, 4), ("a", 16): (3, 3), ("b", 16): (2.0, 2.2)}
    rows = [row(*key, seed, error) for key, pair in given.items() for seed, error in enumerate(pair)]
    rows.append(row("a", 128, 0, 0.1, denoiser="untrained"))
    table = rule_ranking.against_best(rows)
    at_five = {(r["rule"], r["sampling_steps"]): r for r in table if r["step"] == 5}
    assert {key: round(r["ratio"], 6) for key, r in at_five.items()} == {
        ("a", 128): 1.0, ("b", 128): 2.0, ("a", 16): 1.5, ("b", 16): 1.05
    }
    assert at_five["a", 128]["spread"] == 0.5 and {r["best_rule"] for r in table} == {"a"}
    summary = rule_ranking.summarised(table)
    assert [(r["rule"], r["sampling_steps"], r["within_a_tenth"], r["settings"]) for r in summary] == [
        ("a", 128, 3, 3), ("b", 16, 3, 3), ("a", 16, 0, 3), ("b", 128, 0, 3)
    ]


def test_same_z_comparison_goes_seed_by_seed_and_stays_out_of_the_ranking():
    """0.5 of 1 and 3 of 2: ratios 0.5 and 1.5, mean 1; another K, untrained rows and other rules do not enter."""

    def row(rule, seed, error, steps="16", denoiser="fitted"):
        errors = {f"closed_h{h}": str(error * h) for h in H10}
        labels = {"env": "hopper", "sigma": "0.1", "rule": rule, "sampling_steps": steps, "seed": str(seed)}
        return labels | {"denoiser": denoiser} | errors

    rows = [row("score", 0, 1.0), row("score", 1, 2.0), row("score", 0, 9.0, steps="128")]
    rows.append(row("policy_sampling", 0, 7.0))
    rows += [row("relaxed, z of score", 0, 0.5), row("relaxed, z of score", 1, 3.0)]
    rows.append(row("score", 0, 100.0, denoiser="untrained"))
    found = rule_ranking.matched(rows)
    assert [r["step"] for r in found] == list(H10)
    assert all((r["rule"], r["ratio"], r["least"], r["largest"]) == ("relaxed", 1.0, 0.5, 1.5) for r in found)
    assert {r["rule"] for r in rule_ranking.against_best(rows)} == {"score", "policy_sampling"}


def test_only_some_rules_and_as_far_ahead_as_the_horizon_goes(capsys):
    config = validate(replace(paper("hopper"), horizon=50))
    found = [labels["rule"] for labels, *_ in rules_tried.settings(config, 1.0, rules=["score"])]
    assert set(found) == {"score"} and len(found) == len(rules_tried.EVERY)
    found = rules_tried.settings(config, 1.0, rules=["score", "score, spaced"], only_steps=[16, 128])
    assert [(labels["rule"], labels["sampling_steps"]) for labels, *_ in found] == [
        ("score", 16), ("score", 128), ("score, spaced", 16)
    ]
    row = guidance_error.errors("closed", np.ones((2, 25, 3)), np.zeros((2, 25, 3)), np.ones(3))
    assert rule_ranking.steps_ahead([row]) == [1, 5, 9, 24]
    arguments = ["RUN", "--out", "nowhere", "--rules", "correlated 1, relaxed, z of score"]
    assert experiment.run(guidance_error.GUIDANCE_ERROR, arguments) == 2
    assert "allowed: with score too" in capsys.readouterr().err


def test_measures_of_the_map_by_numbers():
    """H = 2, A = 1: the first map is strictly triangular, the second swaps the two times, twice as large."""
    maps = np.float64([[[0, 0], [3, 0]], [[0, 2], [2, 0]]]).reshape(2, 2, 1, 2, 1)
    found = convergence.turn_measures(maps)
    assert found["spectral_radius"] == found["spectral_radius_median"] == pytest.approx(1.0)
    assert found["spectral_radius_largest"] == pytest.approx(2.0)
    assert found["norm_of_power_1"] == pytest.approx(2.5) and found["norm_of_power_2"] == pytest.approx(2.0)
    assert found["norm_of_power_4_median"] == pytest.approx(8.0)
    assert found["acausal_share"] == pytest.approx(2 / (3 + np.sqrt(8)))


def test_convergence_of_runs_whose_cells_are_gone_is_kept(tmp_path):
    old = [{"env": "hopper", "seed": 0, "norm": 1.0}, {"env": "hopper", "seed": 1, "norm": 2.0}]
    grid.write_csv(tmp_path / "convergence.csv", old)
    convergence.keep_convergence(tmp_path)  # nothing new, as where every cell has its rows
    (tmp_path / "guidance_error.cells").mkdir()
    new = tmp_path / "guidance_error.cells" / ".a.convergence"
    new.write_text(json.dumps([{"env": "hopper", "seed": 1, "norm": 3.0}]))
    convergence.keep_convergence(tmp_path)
    found = grid.read_csv(tmp_path / "convergence.csv")
    assert [(r["seed"], r["norm"]) for r in found] == [("0", "1.0"), ("1", "3.0")]
