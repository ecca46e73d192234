"""The experiments that compare world models: what they draw, count and build."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from experiments.harness import error_by_step, grid, statistics, study
from experiments.harness.error_by_step import Measuring, ends_found, positions
from experiments.harness.recorded_episodes import ALL, drawn, episodes_of, held_out
from experiments.harness.study import variants
from experiments.world_models import (
    compared_models,
    computation_time,
    error_table,
    learning_rates,
    partial_observation,
    small_data,
    training_curves,
)
from experiments.world_models.compared_models import MODELS
from polygrad_jax import cli
from polygrad_jax import config as configs
from polygrad_jax.agents import a2c
from polygrad_jax.config import ConfigError, EnvSpec
from polygrad_jax.data.normaliser import to_normaliser
from polygrad_jax.data.transition_log import TransitionRecord
from polygrad_jax.runs.recorded_data import RecordedData
from polygrad_jax.types import Segment
from polygrad_jax.world_models.model_table import make_world_model


def record(lengths, terminated):
    """Episodes of these lengths; observation and reward are the row's number. The last one is left open."""
    total = sum(lengths)
    terminals, truncations = np.zeros(total, bool), np.zeros(total, bool)
    for end, by_itself in zip(np.cumsum(lengths)[:-1] - 1, terminated, strict=True):
        (terminals if by_itself else truncations)[end] = True
    rows = np.arange(total, dtype=np.float32)
    column = rows[:, None]
    return TransitionRecord(column, column, rows, terminals, truncations, column.astype(np.float64))


def test_fewer_transitions_are_whole_episodes_and_one_that_is_cut():
    whole = record([4, 3, 5, 2], [True, False, True])
    assert [len(e) for e in episodes_of(whole)] == [4, 3, 5, 2]
    before = whole.truncations.copy()
    part = drawn(whole, 6, seed=3)
    assert len(part) == 6 and len(set(part.rewards)) == 6
    ends = np.flatnonzero(part.terminals | part.truncations) + 1
    assert ends[-1] == 6  # a window never runs from one episode into the next
    starts = {0: 4, 4: 3, 7: 5, 12: 2}
    for a, b in zip([0, *ends[:-1]], ends, strict=True):
        first = int(part.rewards[a])
        assert b - a <= starts[first]
        np.testing.assert_array_equal(part.rewards[a:b], np.arange(first, first + b - a))
        assert part.terminals[b - 1] == (whole.terminals[first + b - a - 1])
    np.testing.assert_array_equal(whole.truncations, before)
    orders = {tuple(drawn(whole, 6, seed).rewards) for seed in range(20)}
    assert len(orders) > 5
    assert drawn(whole, ALL, 0) is whole
    for count in (15, 0, -1):  # below 1 it was an IndexError
        with pytest.raises(ConfigError, match=f"--transitions is {count}; allowed: from 1 to 14"):
            drawn(whole, count, 0)


def test_what_is_measured_from_was_not_learnt_from():
    whole = record([4, 3, 5, 2, 6, 7, 3], [True, False, True, False, True, False])
    rest, apart = held_out(whole, share=0.25)
    assert 0.25 * len(whole) <= len(apart) < 0.25 * len(whole) + 7
    assert sorted([*rest.rewards, *apart.rewards]) == list(whole.rewards)
    for part in (rest, apart):
        ends = np.flatnonzero(part.terminals | part.truncations) + 1
        for a, b in zip([0, *ends[:-1]], ends, strict=True):  # whole episodes, one after another
            np.testing.assert_array_equal(np.diff(part.rewards[a:b]), 1)
        assert ends[-1] == len(part)
        np.testing.assert_array_equal(part.terminals, whole.terminals[part.rewards.astype(int)])
    np.testing.assert_array_equal(held_out(whole, share=0.25)[1].rewards, apart.rewards)
    with pytest.raises(ConfigError, match="1 episode"):
        held_out(record([9], []))


def test_ends_that_are_found():
    """Of five trajectories the first three are said to end, the last four do. The second was said to a step too early,
    which is near enough, the third two steps: one of three right, one of four found. Only first ends count."""
    said = np.array([[0, 0, 1], [0, 1, 1], [1, 0, 0], [0, 0, 0], [0, 0, 0]], np.float32)
    real = np.array([[0, 0, 0], [0, 0, 1], [0, 0, 1], [0, 1, 0], [1, 0, 1]], np.float32)
    shares = {"ends_imagined": 0.6, "ends_real": 0.8}
    assert ends_found(said, real) == shares | {"terminal_precision": 1 / 3, "terminal_recall": 0.25}
    nothing = ends_found(0 * said, real)
    assert np.isnan(nothing["terminal_precision"]) and nothing["terminal_recall"] == 0.0
    perfect = ends_found(real, real)
    assert perfect["terminal_precision"] == perfect["terminal_recall"] == 1.0


def test_positions_are_what_is_left_without_velocities():
    task = configs.cpu("hopper").env
    asked = (task, dataclasses.replace(task, hide_velocities=True), dataclasses.replace(task, name="Hopper-v5"))
    assert [positions(each) for each in asked] == [5, 5, 11]  # of the last it is not known


def test_what_follows_on_an_end_is_not_counted(monkeypatch):
    """MuJoCo ends the first of two trajectories at its second step, and is 10 away from then on. The reward of that
    step counts, what it leads to does not; the unit is the whole data's although the model learnt with another."""
    rows = record([4, 3, 5, 2], [True, False, True])
    data = RecordedData("", rows, configs.cpu("hopper").env, configs.cpu("hopper"), None)
    unit = float(np.asarray(to_normaliser(data.replay(2).moments).observations.std)[0])
    real = np.float64([[0, 1, 10, 10], [0, 1, 2, 3]])[..., None]
    rewards, terminals = np.float64([[1, 1, 7], [1, 1, 1]]), np.array([[0, 1, 0], [0, 0, 0]], bool)
    monkeypatch.setattr(error_by_step, "replay_actions", lambda *_: (real, rewards, terminals))
    imagined = Segment(
        np.float32([[0, 2, 2, 2], [0, 2, 2, 2]])[..., None], np.zeros((2, 4, 1), np.float32),
        np.zeros((2, 4), np.float32), np.zeros((2, 4), np.float32), rows=np.zeros((2, 1), int),
    )
    measuring = Measuring(data, data, None, 0)
    monkeypatch.setattr(measuring, "imagined", lambda *_: imagined)
    monkeypatch.setattr(error_by_step, "positions", lambda _: 1)
    found = list(measuring.rows(data.collector, None))
    assert [r["alive"] for r in found] == [1.0, 0.5, 0.5] and [r["finite"] for r in found] == [1, 1, 1]
    np.testing.assert_allclose([r["mse_raw"] for r in found], [1, 0, 1])
    np.testing.assert_allclose([r["mse"] for r in found], np.array([1, 0, 1]) / unit**2)
    np.testing.assert_allclose([r["mse_positions"] for r in found], np.array([1, 0, 1]) / unit**2)
    np.testing.assert_allclose([r["median"] for r in found], np.array([1, 0, 1]) / unit**2)
    np.testing.assert_allclose([r["worst"] for r in found], np.array([1, 0, 1]) / unit**2)
    np.testing.assert_allclose([r["still"] for r in found], np.array([1, 4, 9]) / unit**2)
    np.testing.assert_allclose([r["mse_raw_past_ends"] for r in found], [1, 32, 32.5])
    np.testing.assert_allclose([r["reward_mse"] for r in found], [1, 1, 1])
    imagined.observations[0, 1] = np.nan
    assert list(measuring.rows(data.collector, None)) == [{"finite": 0}]


def test_only_polygrad_is_trained_for_every_horizon():
    """Asked of the models: who has a window of its own does not learn with the config's horizon."""
    for fields in MODELS.values():
        config = configs.validate(cli.override(configs.cpu("hopper"), fields))
        window = make_world_model(config, EnvSpec(11, 3)).window
        assert study.horizon_of_training(fields, 50) == (50 if window is None else 10)


def test_only_what_is_guided_has_variants():
    config = configs.cpu("hopper")
    rules = compared_models.RULES
    found = {name: varied.guidance.rule for name, varied in variants(config, rules).items()}
    assert found == {"score": "score", "relaxed": "correlated"}
    assert list(variants(dataclasses.replace(config, world_model="ensemble"), rules)) == [""]


@pytest.mark.parametrize("label", MODELS)
def test_every_model_has_a_config_and_a_colour(label):
    fields = MODELS[label]
    config = configs.validate(cli.override(configs.cpu("hopper"), fields))
    for variant in variants(config, compared_models.VARIANTS):
        assert (label, variant) in compared_models.COLOURS


@pytest.mark.parametrize("label", MODELS)
def test_every_model_is_tried_with_every_learning_rate(label):
    tried = learning_rates.with_rates({label: MODELS[label]})
    assert [learning_rates.split(name) for name in tried] == [(label, rate) for rate in learning_rates.RATES]
    for name, fields in tried.items():
        config = configs.validate(cli.override(configs.cpu("hopper"), fields))
        part = learning_rates.FIELD.get(config.world_model, config.world_model)
        assert getattr(config, part).learning_rate == learning_rates.split(name)[1]


def test_errors_by_learning_rate_are_of_trained_models_and_infinite_where_they_diverged():
    row = {"variant": "", "network": "trained", "finite": "1", "step": "9"}
    rows = [
        row | {"model": "a, b: 0.001", "mse": "2"},
        row | {"model": "a, b: 0.001", "mse": "3", "network": "untrained"},
        row | {"model": "a, b: 0.001", "mse": "4", "step": "8"},
        row | {"model": "a: 0.001", "mse": "5"},
        row | {"model": "a, b: 0.003", "mse": "", "step": "", "finite": "0"},
        row | {"model": "a, b: 0.0003", "mse": "6"},
    ]
    assert learning_rates.errors(rows, "a, b", "") == {3e-4: [6.0], 1e-3: [2.0], 3e-3: [float("inf")]}


@pytest.mark.parametrize(("label", "states"), [("PolyGRAD, 1 state", 1), ("PolyGRAD, 4 states", 4), ("transformer", 1)])
def test_without_velocities_the_histories_are_as_long_as_they_are_called(label, states):
    fields = partial_observation.MODELS[label]
    config = configs.validate(cli.override(configs.cpu("hopper"), fields))
    assert config.denoiser.context_length == states
    assert all((label, v) in partial_observation.COLOURS for v in variants(config, compared_models.SCORE))


@pytest.mark.parametrize(("follow", "least", "most"), [(True, 0.95, 1.0), (False, -0.1, 0.6)])
def test_a_policy_regressed_on_what_is_seen_knows_as_much_as_that_tells(follow, least, most, monkeypatch):
    """Hidden observations that follow from the seen ones cost nothing; independent ones, three times as loud, most."""
    monkeypatch.setattr(partial_observation, "REGRESSION_UPDATES", 1500)
    random, spec = np.random.default_rng(0), EnvSpec(6, 2)
    base = configs.cpu("hopper")
    collector = dataclasses.replace(base, a2c=dataclasses.replace(base.a2c, hidden_size=32))
    actor = jax.device_get(a2c.init(jax.random.key(5), spec, collector.a2c).actor)
    actor["log_std"] = np.float32([-1.0, -2.0])
    seen = random.normal(size=(4000, 3)).astype(np.float32)
    hidden = 3 * (np.sin(seen) if follow else random.normal(size=(4000, 3))).astype(np.float32)
    nothing = np.zeros(4000, bool)
    rows = TransitionRecord(np.hstack([seen, hidden]), seen[:, :2], seen[:, 0], nothing, nothing, seen.astype(float))
    learnt, share = partial_observation.regressed(RecordedData("", rows, collector.env, collector, actor), 3)
    assert least < share <= most
    assert learnt["network"]["hidden_0"]["kernel"].shape == (3, 32)
    np.testing.assert_array_equal(learnt["log_std"], actor["log_std"])


@pytest.mark.parametrize("module", [small_data, learning_rates, computation_time])
def test_where_all_diverged_there_is_no_figure(module, tmp_path, capsys):
    name = module.__name__.rsplit(".", 1)[1]
    grid.write_csv(tmp_path / f"{name}.csv", [{"cell": "a", "outcome": "diverged", "model": "x", "seed": 0}])
    module.draw(tmp_path)  # it was an IndexError
    assert f"is in {name}.csv: no figure" in capsys.readouterr().out and len(list(tmp_path.iterdir())) == 1


def test_a_part_of_the_models_is_drawn(tmp_path):
    """--models without the one that the others are compared with ended in an IndexError."""
    common = {"env": "hopper", "training_seconds": 60, "seed": 0, "network": "trained", "finite": 1, "variant": ""}
    common |= {"model": next(m for m in small_data.COMPARED if m != small_data.OTHER), "transitions": 1000}
    rows = [common | {"step": step, "mse": 0.1, "median": 0.1, "still": 1.0} for step in small_data.STEPS]
    grid.write_csv(tmp_path / "small_data.csv", rows)
    small_data.draw(tmp_path)
    assert (tmp_path / "small_data.png").stat().st_size > 1000


def test_errors_of_small_data_by_size_and_seed():
    rows = [
        {"model": "a", "network": network, "step": "5", "transitions": str(n), "mse": str(mse), "seed": str(seed)}
        for n, seed, mse in ((10_000, 0, 3.0), (1_000, 0, 1.0), (1_000, 1, 2.0), (10_000, 1, 4.0))
        for network in ("trained", "untrained")
    ]
    rows += [rows[0] | {"step": "1", "mse": "9"}, rows[0] | {"model": "b", "mse": "9"}]
    sizes, errors = small_data.at_step(rows, "a", 5)
    assert sizes == [1_000, 10_000]
    np.testing.assert_array_equal(errors, [[1, 2], [3, 4]])
    _, errors = small_data.at_step(rows[2:], "a", 5)  # a seed that diverged is missing
    assert [list(e) for e in errors] == [[1, 2], [4]]


def test_ratios_are_within_seeds_and_their_interval_is_students():
    """By hand: ratios 1, 2 and 4 have the geometric mean 2 and, of logs ln 2 apart, t(0.975, 2) = 4.3027 / sqrt(3)."""
    rows = [
        {"model": m, "network": "trained", "finite": "1", "step": "5", "seed": str(seed), "mse": str(mse)}
        for m, errors in (("a", (3.0, 2.0, 40.0)), ("b", (3.0, 1.0, 10.0)))
        for seed, mse in enumerate(errors)
    ]
    rows += [rows[0] | {"network": "untrained", "mse": "9"}, rows[0] | {"step": "9", "mse": "9"}]
    a, b = (statistics.by_seed(rows, "mse", model=m, step="5") for m in "ab")
    assert statistics.ratios(a, b) == [1.0, 2.0, 4.0]
    mean, low, high = statistics.interval([1.0, 2.0, 4.0])
    assert mean == pytest.approx(2.0) and low * high == pytest.approx(4.0)
    assert high == pytest.approx(2.0 * 2.0 ** (4.30265 / np.sqrt(3)), rel=1e-5)
    assert statistics.ratios(a, {"2": 10.0, "7": 1.0}) == [4.0]
    assert np.isnan(statistics.interval([4.0])[1:]).all()
    assert statistics.table(rows, [("a/b", {"model": "a"}, {"model": "b"})], (5, 9), "mse")[-1] == (
        "| a/b | 2 (0.36 to 11; 1, 2, 4) | - |"
    )
    assert (statistics.said([4.0]), statistics.said([])) == ("4", "-")
    diverged = [rows[1] | {"finite": "0", "step": "", "mse": ""}, *(r for r in rows if r["seed"] != "1")]
    assert statistics.by_seed(diverged, "mse", model="a", step="5")["1"] == np.inf
    with pytest.raises(ValueError, match="several rows of seed 0"):
        statistics.by_seed(rows, "mse", model="a")


def test_the_table_has_means_each_seed_and_what_diverged(tmp_path, capsys, monkeypatch):
    """By hand: means 0.02 and 2 one and five steps ahead; the model that diverged comes last."""
    same = {"env": "hopper", "horizon": "10", "transitions": "1000", "network": "trained", "finite": "1", "variant": ""}
    same |= {"preset": "cpu", "outcome": "finished"}
    same |= {"best_updates": "2000", "updates": "4400", "median": "1", "percentile_95": "3", "still": "0.5"}
    rows = [
        same | {"model": model, "seed": seed, "step": step, "mse": mse}
        for model in ("b", "a")
        for seed, errors in (("1", ("0.03", "1")), ("0", ("0.01", "3")))
        for step, mse in zip(("1", "5"), errors, strict=True)
    ]
    rows = [r for r in rows if r["model"] == "a" or r["seed"] == "1"]
    rows += [rows[0] | {"seed": "0", "finite": "0", "step": "", "mse": ""}, rows[0] | {"network": "untrained"}]
    grid.write_csv(tmp_path / "study.csv", rows)
    monkeypatch.setattr("sys.argv", ["error_table.py", str(tmp_path / "study.csv")])
    assert error_table.main() == 0
    said = capsys.readouterr().out.splitlines()
    assert said[1] == "hopper, H = 10, 1,000 transitions, preset cpu"
    assert said[-2] == "| a | 0.02 | 3, 1 | 1 | 3 | 0.5 | 2 of 4 |"
    assert said[-1] == "| b | inf | inf, 1 | inf | inf | 0.5 | 2 of 4 |"
    monkeypatch.setattr("sys.argv", ["error_table.py", str(tmp_path / "study.csv"), "--steps", "7"])
    with pytest.raises(SystemExit, match="2"):
        error_table.main()
    assert "--steps has 7; allowed: 1 to 5" in capsys.readouterr().err
    with pytest.raises(ValueError, match="several rows of seed 1"):
        error_table.table([r for r in rows if r["model"] == "a" and r["network"] == "trained"] * 2, (1, 5))


def test_the_least_error_so_far_is_in_the_order_of_the_seconds():
    found = (("9", "3"), ("10", "4"), ("8", "5"), ("11", "2"))
    rows = [{"training_seconds": seconds, "five_step_error": error} for seconds, error in found]
    seconds, errors = training_curves.least_so_far(rows)
    assert seconds == [8, 9, 10, 11]
    np.testing.assert_array_equal(errors, [5, 3, 3, 2])


def test_what_ten_times_the_seconds_gain_is_by_model_and_training():
    """9, and 2, half-way between 4 and 1 (a third training is judged too late), so sqrt(9 * 2) early; then 1."""
    found = {
        "a": [(10, 9.0), (11, 2.0), (100, 1.0)],
        "b": [(5, 4.0), (20, 1.0), (100, 4.0)],
        "c": [(11, 7.0), (100, 7.0)],
    }
    rows = [
        {"training": name, "model": "m", "training_seconds": str(seconds), "five_step_error": str(error)}
        for name, points in found.items()
        for seconds, error in points
    ]
    assert training_curves.gains(rows)["m"] == pytest.approx((np.sqrt(18.0), 1.0))


def test_trainings_are_read_by_the_names_of_the_comparison(tmp_path):
    for label, fields in MODELS.items():
        folder = tmp_path / label
        folder.mkdir()
        config = configs.validate(cli.override(configs.cpu("hopper"), fields))
        (folder / "config.json").write_text(json.dumps(dataclasses.asdict(config)))
        (folder / "data.json").write_text(json.dumps({"dataset": "d", "transitions": 7}))
        machine = dict.fromkeys(("device", "processor", "cores", "git_revision"), "x")
        (folder / "environment.json").write_text(json.dumps(machine))
        (folder / "eval.csv").write_text("updates,five_step_error,reward_mse,training_seconds\n2,0.5,0.1,3\n")
        (row,) = training_curves.rows_of(folder)
        assert row["model"] == label and row["five_step_error"] == "0.5" and row["transitions"] == 7


@pytest.mark.parametrize("label", computation_time.MODELS)
def test_every_model_is_timed_at_the_papers_size(label):
    """Table 2: 1,024 wide for 10 states, 2,048 for more; one-step models keep 1,024."""
    short, long = computation_time.sized(label, 10), computation_time.sized(label, 50)
    widths = (1024, 2048) if label.startswith("PolyGRAD") else (1024, 1024)
    assert (short.denoiser.width, long.denoiser.width) == widths
    assert (short.horizon, long.horizon) == (10, 50)
    assert short.diffusion.num_steps == 128
    assert short.diffusion.sampling_steps == (16 if "K = 16" in label else 128)
