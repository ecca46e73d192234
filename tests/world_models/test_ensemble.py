"""The probabilistic MLP ensemble: its loss by hand, what never trains it, what it imagines, a system it recovers."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import traced

from polygrad_jax.config import (
    PRESETS,
    Config,
    ConfigError,
    EnsembleConfig,
    EnvSpec,
    ModelTrainingConfig,
    preset,
    validate,
)
from polygrad_jax.data.normaliser import normalise
from polygrad_jax.data.recordings import Episode, contexts_at
from polygrad_jax.networks.probabilistic_mlp import GaussianPrediction, ProbabilisticMLP, bounded
from polygrad_jax.training.fitting import fit
from polygrad_jax.types import MeanStd, Normaliser, Policy, Segment
from polygrad_jax.world_models import ensemble
from polygrad_jax.world_models.ensemble import make_ensemble
from polygrad_jax.world_models.model_table import make_world_model

B, H, O, A = 12, 4, 2, 1  # noqa: E741  (the letters of the docstrings)
E, ELITES = 4, 3
SPEC = EnvSpec(O, A)
CONFIG = Config(
    world_model="ensemble",
    horizon=H,
    ensemble=EnsembleConfig(members=E, elites=ELITES, hidden_size=32, hidden_layers=2),
    model_training=ModelTrainingConfig(batch_size=128),
)
NORMALISER = Normaliser(
    observations=MeanStd(jnp.array([1.0, -2.0]), jnp.array([2.0, 0.5])),
    actions=MeanStd(jnp.array([0.3]), jnp.array([0.6])),
    rewards=MeanStd(jnp.array([1.5]), jnp.array([0.4])),
    terminals=MeanStd(jnp.array([0.01]), jnp.array([0.1])),
)


def policy_apply(params, raw_obs):
    """``params [2]``: mean and deviation of every action, whatever the state."""
    mean = jnp.broadcast_to(params[:1], (*raw_obs.shape[:-1], A))
    return mean, jnp.broadcast_to(params[1:], mean.shape)


def segment(seed: int) -> Segment:
    """Windows of rows 200, 201, ... without terminals, and one that ended at its second step and one at its last."""
    rng = np.random.default_rng(seed)
    terminals = np.zeros((B, H), np.float32)
    terminals[0, 1:] = terminals[1, 3:] = 1
    rows = 200 + np.arange(B * H, dtype=np.int32).reshape(B, H)
    rows[0, 2:] = rows[0, 1]
    return Segment(
        observations=jnp.asarray(rng.standard_normal((B, H, O)), jnp.float32),
        actions=jnp.asarray(rng.uniform(-1, 1, (B, H, A)), jnp.float32),
        rewards=jnp.asarray(rng.standard_normal((B, H)), jnp.float32),
        terminals=jnp.asarray(terminals),
        rows=jnp.asarray(rows),
    )


def context(batch: int = B) -> Segment:
    return contexts_at(np.random.default_rng(9).standard_normal((batch, O)), SPEC)


@pytest.fixture(scope="module")
def model():
    return make_ensemble(CONFIG, SPEC)


@pytest.fixture(scope="module")
def state(model):
    return jax.jit(model.init)(jax.random.key(0))


@pytest.fixture(scope="module")
def counted(model):
    return traced.counted(model, policy_apply)


def all_equal(a, b) -> bool:
    return all(jax.tree.leaves(jax.tree.map(np.array_equal, a, b)))


# --- what a batch teaches, by numbers --------------------------------------------------------------------------------


def test_a_step_teaches_what_is_known_of_it():
    """Windows 3 states long. One without an end: two changes are known, all rewards. One that ends at its second step:
    the change of the first only, the rewards of both. Padding teaches nothing."""
    raw = Segment(
        observations=jnp.array([[[1.0, -2.0], [3.0, -2.5], [5.0, -2.5]], [[1.0, -2.0], [1.0, -1.0], [1.0, -1.0]]]),
        actions=jnp.array([[[0.5], [3.0], [-3.0]], [[0.0], [0.0], [0.0]]]),
        rewards=jnp.array([[1.5, 1.9, 1.1], [1.5, 2.3, 0.0]]),
        terminals=jnp.array([[0.0, 0.0, 0.0], [0.0, 1.0, 1.0]]),
    )
    lesson = jax.jit(ensemble.lesson_of, static_argnums=2)(raw, NORMALISER, "clipped")
    # observations: (3 - 1) / 2 = 1 and (-2.5 + 2) / 0.5 = -1; rewards: (1.9 - 1.5) / 0.4 = 1
    np.testing.assert_allclose(lesson.targets[0], [[1, -1, 0], [1, 0, 1], [0, 0, -1]], atol=1e-5)
    np.testing.assert_allclose(lesson.targets[1, :2], [[0, 2, 0], [0, 0, 2]], atol=1e-5)
    np.testing.assert_array_equal(lesson.known[0], [[1, 1, 1], [1, 1, 1], [0, 0, 1]])
    np.testing.assert_array_equal(lesson.known[1], [[1, 1, 1], [0, 0, 1], [0, 0, 0]])
    np.testing.assert_array_equal(lesson.judged, [[1, 1, 1], [1, 1, 0]])
    np.testing.assert_allclose(lesson.inputs[0], [[0, 0, 0.5], [1, -1, 1], [2, -1, -1]], atol=1e-6)  # clipped


@pytest.mark.parametrize("length", [1, 2, 5])
def test_windows_of_two_judge_every_step_of_an_episode_once(length):
    """All windows of an episode that ends: the end counts as much as any step, and so do its odds."""
    first = np.arange(max(length - 1, 1))
    rows = np.minimum(np.stack([first, first + 1], 1), length - 1)
    ends = (rows == length - 1).astype(np.float32)
    windows = Segment(np.zeros((*rows.shape, 2)), np.zeros((*rows.shape, 1)), np.zeros(rows.shape), jnp.asarray(ends))
    judged = np.asarray(jax.jit(ensemble.lesson_of, static_argnums=2)(windows, NORMALISER, "clipped").judged)
    np.testing.assert_array_equal(np.bincount(rows.ravel(), judged.ravel()), np.ones(length))


def test_one_step_in_ten_is_held_out_whatever_window_it_is_in():
    """The fractional part of row * 0.618034 is below 0.1 for 0 (0), 5 (0.090), 13 (0.034), 18 (0.125: not), 26 (0.069).
    """
    rows = jnp.arange(30, dtype=jnp.int32)
    np.testing.assert_array_equal(np.flatnonzero(ensemble.held_out(rows, 0.1)), [0, 5, 13, 26])
    many = np.asarray(ensemble.held_out(jnp.arange(2**31 - 100_000, 2**31 - 1, dtype=jnp.int32), 0.1))
    np.testing.assert_allclose(many.mean(), 0.1, atol=1e-4)
    gaps = np.diff(np.flatnonzero(many))
    assert set(gaps) == {5, 8, 13}  # three gaps, Fibonacci numbers: never a lump, never a period
    assert np.sum(ensemble.held_out(rows, 0.5)) in (15, 16)


def test_every_member_draws_its_own_bootstrap():
    """As many draws as steps; a step is left out with probability (1 - 1/n)^n, 0.366 for n = 200."""
    draw = jax.jit(ensemble.bootstrap, static_argnums=(1, 2))
    counts = np.asarray(draw(jax.random.key(0), 50, (100, 2)))
    assert counts.shape == (50, 100, 2) and np.all(counts.sum((1, 2)) == 200)
    np.testing.assert_allclose((counts == 0).mean(), 0.366, atol=0.02)
    np.testing.assert_allclose(counts.var(), 1 - 1 / 200, atol=0.05)  # binomial
    assert np.abs(np.corrcoef(counts[0].ravel(), counts[1].ravel())[0, 1]) < 0.25
    assert np.array_equal(counts, draw(jax.random.key(0), 50, (100, 2)))


def test_the_gaussian_loss_by_hand():
    """Two steps, two channels. Channel 0: errors 1 and 3, variances 1 and 4, drawn once and twice: (1 + 0) and
    (9/4 + log 4); mean (1 + 2 (2.25 + log 4)) / 3. Channel 1: only the first step counts: error 2, variance e: 4/e + 1.
    """
    prediction = GaussianPrediction(
        mean=jnp.array([[[1.0, 2.0], [0.0, 0.0]]]),
        log_var=jnp.array([[[0.0, 1.0], [np.log(4.0), 0.0]]]),
        terminal_logit=jnp.zeros((1, 2)),
    )
    targets = jnp.array([[[0.0, 0.0], [3.0, 1e6]]])
    weights = jnp.array([[[1.0, 1.0], [2.0, 0.0]]])
    expected = ((1 + 2 * (2.25 + np.log(4))) / 3 + 4 / np.e + 1) / 2
    loss = jax.jit(ensemble.gaussian_loss)
    np.testing.assert_allclose(loss(prediction, targets, weights), expected, rtol=1e-6)
    assert float(loss(prediction, targets, jnp.zeros((1, 2, 2)))) == 0  # nothing was drawn


def test_the_log_variance_stays_in_its_bounds():
    """softplus(0) = log 2. At the upper bound 1 - log 2 is left; far outside, the bounds themselves, but for
    softplus(-11) = 1.7e-5 above and below."""
    low, high = jnp.array([-10.0]), jnp.array([1.0])
    values = jnp.array([[1.0], [-10.0], [1e3], [-1e3], [-4.0]])
    expected = [1 - np.log(2), -10 + np.log(2), 1.0, -10.0, -4.0]
    # in the middle both softplus bend it by about e^-5.5, in opposite directions
    bend = jax.jit(jax.vmap(jax.value_and_grad(lambda x: bounded(x[None], low, high)[0])))
    found, slopes = bend(values[:, 0])
    np.testing.assert_allclose(found, expected, atol=5e-3)
    np.testing.assert_allclose(slopes, [0.5, 0.5, 0.0, 0.0, 1.0], atol=1e-2)


def test_decay_and_bounds_by_hand():
    """Kernels of ones: half the number of weights times its share. Biases do not decay."""
    module = ProbabilisticMLP(3, hidden_size=4, hidden_layers=4)
    shapes = jax.eval_shape(module.init, jax.random.key(0), jnp.zeros((1, 5)))["params"]
    params = jax.tree.map(lambda x: np.ones(x.shape, np.float32), shapes)
    price = jax.jit(ensemble.regularisation)
    weights = 2.5e-5 * 5 * 4 + (5e-5 + 7.5e-5 + 7.5e-5) * 4 * 4 + 1e-4 * (4 * 6 + 4 * 1)
    np.testing.assert_allclose(price(params, 1e-4), weights / 2, rtol=1e-5)
    params |= {"max_log_var": np.full(3, 0.5, np.float32), "min_log_var": np.full(3, -10.0, np.float32)}
    np.testing.assert_allclose(price(params, 1e-4), weights / 2 + 0.01 * 3 * 10.5, rtol=1e-5)


def test_weights_begin_as_in_mbpo(state):
    """Truncated at two deviations of 1 / (2 sqrt(fan_in)); what is left has 0.88 of that deviation."""
    params = jax.device_get(state.params)
    kernel = params["hidden_1"]["kernel"]
    bound = 2 / (2 * np.sqrt(32))
    assert kernel.shape == (E, 32, 32) and np.abs(kernel).max() <= bound
    np.testing.assert_allclose(kernel.std(), 0.88 * bound / 2, rtol=0.03)
    assert not any(np.any(layer["bias"]) for name, layer in params.items() if "log_var" not in name)
    assert not np.array_equal(kernel[0], kernel[1])
    assert np.all(params["max_log_var"] == 0.5) and np.all(params["min_log_var"] == -10.0)


def test_the_elites_are_the_lowest_heldout_losses(state):
    assert all_equal(ensemble.heldout_losses(state), jnp.zeros(E))  # nothing was held out yet
    seen = state.replace(heldout_error=jnp.array([6.0, 2.0, 9.0, 4.0]), heldout_steps=jnp.float32(20.0))
    np.testing.assert_allclose(ensemble.heldout_losses(seen), [0.3, 0.1, 0.45, 0.2])
    np.testing.assert_array_equal(ensemble.elites_of(seen, 3), [1, 3, 0])


# --- update ----------------------------------------------------------------------------------------------------------


def test_windows_without_rows_are_refused(model, state):
    with pytest.raises(ConfigError, match="segment.rows is None; allowed: row numbers"):
        model.update(state, segment(0).replace(rows=None), NORMALISER, jax.random.key(0))


def test_the_numbers_of_an_update_are_those_of_its_parts(counted, state):
    """The loss of every member, put together outside: the mean over members is what is logged."""
    update, _, _ = counted
    raw, key = segment(1), jax.random.key(3)
    after, metrics = update(state, raw, NORMALISER, key)
    lesson = jax.tree.map(np.asarray, jax.jit(ensemble.lesson_of, static_argnums=2)(raw, NORMALISER, "clipped"))
    held = np.asarray(ensemble.held_out(raw.rows, 0.1))
    known = held & (lesson.known[..., 0] > 0)
    assert 2 < known.sum() < 10
    counts = np.asarray(ensemble.bootstrap(key, E, (B, H))) * ~held
    said = jax.jit(jax.vmap(lambda p: ensemble.make_network(CONFIG, SPEC).apply({"params": p}, lesson.inputs)))
    gaussian, terminal, errors = [], [], []
    for drawn, mean, log_var, odds in zip(counts, *map(np.asarray, said(state.params)), strict=True):
        squares, weights = np.square(mean - lesson.targets), drawn[..., None] * lesson.known
        nll = weights * (squares / np.exp(log_var) + log_var)
        gaussian.append((nll.sum((0, 1)) / weights.sum((0, 1))).mean())
        likely = 1 / (1 + np.exp(-np.where(lesson.terminals > 0, odds, -odds)))  # of what happened
        terminal.append(-(drawn * lesson.judged * np.log(likely)).sum() / (drawn * lesson.judged).sum())
        errors.append(squares[known].mean(-1).sum())
    rest = jax.jit(jax.vmap(ensemble.regularisation, in_axes=(0, None)))(state.params, 1e-4)
    total = np.array(gaussian) + np.array(terminal) + np.asarray(rest)
    np.testing.assert_allclose(metrics["world_model/gaussian_loss"], np.mean(gaussian), rtol=1e-5)
    np.testing.assert_allclose(metrics["world_model/terminal_loss"], np.mean(terminal), rtol=1e-5)
    np.testing.assert_allclose(metrics["world_model/loss"], np.mean(total), rtol=1e-5)
    np.testing.assert_allclose(after.heldout_error, errors, rtol=1e-5)
    assert float(after.heldout_steps) == known.sum()
    best = np.sort(np.asarray(errors) / known.sum())
    np.testing.assert_allclose(metrics["world_model/heldout_loss"], best[:ELITES].mean(), rtol=1e-5)
    np.testing.assert_allclose(metrics["world_model/heldout_loss_worst"], best[-1], rtol=1e-5)
    # and a second update remembers 0.99 of the first
    again, _ = update(after, raw, NORMALISER, key)
    np.testing.assert_allclose(again.heldout_steps, 1.99 * known.sum(), rtol=1e-5)


def poisoned(raw: Segment, where, value: float) -> Segment:
    value = np.float32(value)
    return raw.replace(
        observations=np.where(where[..., None], value, raw.observations),
        actions=np.where(where[..., None], value, raw.actions),
        rewards=np.where(where, value, raw.rewards),
    )


def test_padding_is_never_learnt(counted, state):
    update, _, traces = counted
    raw, key = segment(1), jax.random.key(0)
    after, metrics = update(state, raw, NORMALISER, key)
    padded = np.zeros((B, H), bool)
    padded[0, 2:] = True
    for value in (1e5, -1e5):
        other, other_metrics = update(state, poisoned(raw, padded, value), NORMALISER, key)
        assert all_equal(after, other) and all_equal(metrics, other_metrics)
    # the same poison one step earlier, in the step that ended the episode, is learnt
    padded[0, 1] = True
    assert not all_equal(after.params, update(state, poisoned(raw, padded, 1.0), NORMALISER, key)[0].params)
    assert traces["update"] == 1


def test_the_last_state_of_a_window_teaches_its_reward_and_no_change(counted, state):
    """Only the last states train (row 0 is held out, row 1 is not): of the outputs [mean, log-variance] of the three
    channels, those of the reward move. The others' biases would move with any gradient at all: they do not decay."""
    update, _, _ = counted
    rows = np.zeros((B, H), np.int32)
    rows[:, -1] = 1
    raw = segment(1).replace(terminals=np.zeros((B, H), np.float32), rows=rows)
    bias = np.asarray(update(state, raw, NORMALISER, jax.random.key(0))[0].params["output"]["bias"])
    assert np.all(bias[:, [2, 5]] != 0) and np.all(bias[:, [0, 1, 3, 4]] == 0)


def test_what_is_held_out_trains_nothing_and_is_what_ranks_the_members(counted, state):
    update, _, _ = counted
    raw, key = segment(1), jax.random.key(0)
    after, metrics = update(state, raw, NORMALISER, key)
    held = ensemble.held_out(raw.rows, 0.1)
    worse, worse_metrics = update(state, raw.replace(rewards=raw.rewards + 100.0 * np.float32(held)), NORMALISER, key)
    assert all_equal((after.params, after.adam), (worse.params, worse.adam))
    assert metrics["world_model/loss"] == worse_metrics["world_model/loss"]
    assert worse_metrics["world_model/heldout_loss"] > 10 * metrics["world_model/heldout_loss"]


def test_with_everything_held_out_only_decay_and_bounds_move_the_parameters(counted, state):
    """Adam's first step is its learning rate against the gradient's sign: weights shrink, the bounds close in."""
    update, _, _ = counted
    raw = segment(1).replace(rows=jnp.zeros((B, H), jnp.int32))
    after, _ = update(state, raw, NORMALISER, jax.random.key(0))
    before, after = jax.device_get((state.params, after.params))
    for name, layer in before.items():
        if "log_var" in name:
            step = -1e-3 if name == "max_log_var" else 1e-3
            np.testing.assert_allclose(after[name] - layer, step, rtol=1e-3)
        else:
            size = np.abs(layer["kernel"])
            shrunk = (size - np.abs(after[name]["kernel"]))[size > 0.02]  # Adam's epsilon counts below
            np.testing.assert_allclose(shrunk, 1e-3, rtol=0.05)
            assert not np.any(after[name]["bias"])


def test_members_learn_apart_and_draws_follow_from_the_key(counted, state):
    update, _, _ = counted
    raw = segment(1)

    def learnt(state, key=5):
        return jax.device_get(update(state, raw, NORMALISER, jax.random.key(key))[0].params)

    after, same, other = learnt(state), learnt(state), learnt(state, 6)
    assert all_equal(after, same)
    assert np.any(after["output"]["kernel"] != other["output"]["kernel"], axis=(1, 2)).all()
    params = jax.device_get(state.params)
    there = learnt(state.replace(params=jax.tree.map(lambda x: np.concatenate([x[:1], 1.5 * x[1:2], x[2:]]), params)))
    assert all_equal(*(jax.tree.map(lambda x: x[[0, 2, 3]], p) for p in (after, there)))
    assert not np.array_equal(after["output"]["kernel"][1], there["output"]["kernel"][1])
    # two equal members that draw differently part
    parted = learnt(state.replace(params=jax.tree.map(lambda x: x[[0, 0, 2, 3]], params)))["output"]["kernel"]
    assert not np.array_equal(parted[0], parted[1])


def in_other_units(raw: Segment) -> tuple[Segment, Normaliser]:
    """Observations times 64 and 1/8 (exact in float32), rewards times 4."""
    scale, n = np.array([64.0, 0.125], np.float32), jax.device_get(NORMALISER)
    raw = jax.device_get(raw)
    return raw.replace(observations=raw.observations * scale, rewards=4 * raw.rewards), n.replace(
        observations=MeanStd(n.observations.mean * scale, n.observations.std * scale),
        rewards=MeanStd(4 * n.rewards.mean, 4 * n.rewards.std),
    )


def test_units_do_not_matter(counted, state):
    update, imagine, traces = counted
    here, there = (segment(1), NORMALISER), in_other_units(segment(1))
    assert all_equal(*(update(state, *batch, jax.random.key(0))[0].params for batch in (here, there)))
    start, units = in_other_units(context())
    policy = jnp.array([0.2, 0.5])
    expected, doubt = jax.device_get(imagine(state, policy, context(), NORMALISER, jax.random.key(0)))
    scaled, other_doubt = jax.device_get(imagine(state, policy, start, units, jax.random.key(0)))
    want, _ = in_other_units(expected)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-5), scaled, want)
    assert all_equal(doubt, other_doubt)
    assert traces == {"update": 1, "imagine": 1}


# --- imagine ---------------------------------------------------------------------------------------------------------


def test_a_new_policy_a_new_model_and_a_new_normaliser_do_not_trace_again(counted, state):
    update, imagine, traces = counted
    _, units = in_other_units(segment(0))
    for i in range(3):
        policy, normaliser = jnp.array([0.1 * i, 0.5]), (NORMALISER, units)[i % 2]
        imagined, metrics = imagine(state, policy, context(), normaliser, jax.random.key(i))
        state, _ = update(state, segment(i), normaliser, jax.random.key(i))
    assert traces == {"update": 1, "imagine": 1}
    assert jax.tree.map(jnp.shape, imagined) == Segment((B, H, O), (B, H, A), (B, H), (B, H))
    assert all(np.isfinite(x).all() for x in jax.tree.leaves((imagined, metrics)))
    np.testing.assert_array_equal(imagined.observations[:, 0], context().observations[:, 0])


@pytest.fixture
def telling(monkeypatch):
    """``imagine`` of an ensemble whose members ``say(member, inputs)``, by the number that is their parameters."""

    def make(say):
        class Network:
            def apply(self, variables, inputs):
                return say(variables["params"], inputs)

        monkeypatch.setattr(ensemble, "make_network", lambda *_: Network())

        @jax.jit(static_argnums=3)
        def imagine(policy_params, context, normaliser, horizon):
            model = make_ensemble(dataclasses.replace(CONFIG, horizon=horizon), SPEC)
            return model.imagine(MEMBERS, Policy(policy_params, policy_apply), context, normaliser, jax.random.key(0))

        return lambda *args: jax.device_get(imagine(*args))

    return make


def sure(mean, terminal_logit) -> GaussianPrediction:
    return GaussianPrediction(mean, jnp.full_like(mean, -60.0), terminal_logit)


MEMBERS = ensemble.EnsembleState(
    params=jnp.arange(4.0), adam=None, heldout_error=jnp.array([3.0, 1.0, 4.0, 2.0]), heldout_steps=jnp.float32(1.0)
)


def test_a_rollout_by_hand(telling):
    """Every step adds the action, as it is executed, to the first normalised channel and takes 1 from the second; the
    normalised reward is 2, raw 1.5 + 0.8. The episode ends where the first normalised channel is above 1.5.

    The mean action 3 is clipped to 1, so the first raw channel grows by 2 (its deviation), from 1 (its mean) to 3, 5,
    and ends there (normalised 2 > 1.5): reward 2.3 still. Behind it states go on, with reward 0 and terminal 1.
    """

    def say(member, inputs):
        mean = jnp.stack([inputs[:, 2], -jnp.ones(2), jnp.full(2, 2.0)], axis=-1)
        return sure(mean, inputs[:, 0] - 1.5)

    start = contexts_at(np.array([[1.0, -2.0], [-9.0, 0.0]]), SPEC)
    imagined, metrics = telling(say)(np.float32([3.0, 1e-6]), start, NORMALISER, 5)
    np.testing.assert_allclose(imagined.observations[0, :, 0], [1, 3, 5, 7, 9], rtol=1e-6)
    np.testing.assert_allclose(imagined.observations[0, :, 1], [-2, -2.5, -3, -3.5, -4], rtol=1e-6)
    np.testing.assert_allclose(imagined.rewards[0], [2.3, 2.3, 2.3, 0, 0], rtol=1e-6)
    np.testing.assert_array_equal(imagined.terminals[0], [0, 0, 1, 1, 1])
    np.testing.assert_allclose(imagined.observations[1, :, 0], [-9, -7, -5, -3, -1], rtol=1e-6)
    np.testing.assert_allclose(imagined.rewards[1], 2.3, rtol=1e-6)  # the last state's too
    np.testing.assert_array_equal(imagined.terminals[1], 0)
    np.testing.assert_allclose(imagined.actions, 3.0, rtol=1e-4)  # as sampled
    assert imagined.rows is None and imagined.observed is None
    np.testing.assert_allclose(metrics["imagination/disagreement"], 0.0, atol=1e-6)


def test_every_step_asks_one_of_the_elites_by_chance(telling):
    """The elites are members 1, 3, 0. Each says ten times its number of the reward and its number of the first channel:
    mean 4/3, variance (1 + 9 + 0) / 3 - 16/9 = 14/9; they agree on the second.
    """

    def say(member, inputs):
        rewards = jnp.broadcast_to(10.0 * member, inputs.shape[:1])
        nothing = jnp.zeros_like(rewards)
        return sure(jnp.stack([nothing + member, nothing, rewards], axis=-1), nothing - 1.0)

    unit = NORMALISER.replace(rewards=MeanStd(jnp.zeros(1), jnp.ones(1)))
    imagined, metrics = telling(say)(np.float32([0.0, 1.0]), context(600), unit, 5)
    members, counts = np.unique(np.round(imagined.rewards / 10), return_counts=True)
    np.testing.assert_array_equal(members, [0, 1, 3])
    np.testing.assert_allclose(counts / 3000, 1 / 3, atol=0.03)  # 3 deviations of a share of 1/3 of 3,000
    said = np.round(imagined.rewards / 10)
    assert abs(np.mean(said[:, 0] == said[:, 1]) - 1 / 3) < 0.06  # another draw at every step
    np.testing.assert_allclose(metrics["imagination/disagreement"], np.sqrt(14 / 9) / 2, rtol=1e-5)
    # the state follows the member that was asked: deviation 2 per unit
    np.testing.assert_allclose(np.diff(imagined.observations[..., 0], axis=1), 2 * said[:, :-1], atol=1e-4)


def test_draws_have_the_predicted_deviation(telling):
    """Log-variance log 0.25: normalised deviation 0.5, raw 1.0 and 0.25 in the states, 0.2 in the rewards."""

    def say(member, inputs):
        mean = jnp.zeros((inputs.shape[0], 3))
        return GaussianPrediction(mean, jnp.full_like(mean, np.log(0.25)), jnp.full(inputs.shape[0], -1.0))

    imagined, metrics = telling(say)(np.float32([0.0, 1.0]), context(4000), NORMALISER, 2)
    change = imagined.observations[:, 1] - imagined.observations[:, 0]
    # the deviation of 4,000 draws is off by 1 / sqrt(8,000) = 1.1 %, and their correlations by 1.6 %
    np.testing.assert_allclose(change.std(0), [1.0, 0.25], rtol=0.04)
    np.testing.assert_allclose(imagined.rewards.std(0), 0.2, rtol=0.04)
    drawn = np.concatenate([change, imagined.rewards, imagined.actions[..., 0]], axis=1)
    assert np.abs(np.corrcoef(drawn.T) - np.eye(6)).max() < 0.07
    np.testing.assert_allclose(metrics["imagination/predicted_std"], 0.5, rtol=1e-5)


def test_a_single_step_deals_the_states_evenly_to_the_elites(telling):
    """The elites are members 1, 3, 0, and each says its number; 601 states do not divide by three."""

    def say(member, inputs):
        nothing = jnp.zeros(inputs.shape[0])
        return sure(jnp.stack([nothing + member, inputs[:, 2], nothing + 10.0 * member], axis=-1), nothing - 1.0)

    telling(say)  # replaces the network by what it says
    unit = NORMALISER.replace(rewards=MeanStd(jnp.zeros(1), jnp.ones(1)))
    raw_obs, actions = jnp.zeros((601, 2)), jnp.linspace(-2.0, 2.0, 601)[:, None]
    step = jax.jit(make_ensemble(CONFIG, SPEC).step)
    first, second = (step(MEMBERS, raw_obs, actions, unit, jax.random.key(k)) for k in (0, 1))
    for said in (first, second):
        members, counts = np.unique(np.round(said.rewards / 10), return_counts=True)
        np.testing.assert_array_equal(members, [0, 1, 3])
        assert set(counts) <= {199, 200, 201}
        np.testing.assert_allclose(said.observations[:, 0], 2 * np.round(said.rewards / 10), atol=1e-4)
        np.testing.assert_allclose(said.observations[:, 1], 0.5 * np.clip(actions[:, 0], -1, 1), atol=1e-5)
    assert not np.allclose(first.rewards, second.rewards)  # dealt anew


def test_in_chunks_a_window_gives_several_steps_each_on_its_own_states():
    """What is known of a chunk's last state comes from the whole window; padding behind an end still counts nothing."""
    x = jnp.arange(2 * 5 * 1).reshape(2, 5, 1)
    np.testing.assert_array_equal(ensemble.in_chunks(x, 2)[..., 0], [[[0, 1], [5, 6]], [[2, 3], [7, 8]]])
    window = segment(0)
    whole, chunked = make_ensemble(CONFIG, SPEC), make_ensemble(CONFIG, SPEC, chunk=2)
    start = jax.jit(whole.init)(jax.random.key(0))
    once, _ = jax.jit(whole.update)(start, window, NORMALISER, jax.random.key(1))
    several, metrics = jax.jit(chunked.update)(start, window, NORMALISER, jax.random.key(1))
    count = optax.tree.get(several.adam, "count")
    assert count == window.terminals.shape[1] // 2 > optax.tree.get(once.adam, "count") == 1
    assert all(x.shape == () for x in metrics.values())
    known = jax.jit(ensemble.lesson_of, static_argnums=2)(window, NORMALISER, "clipped").known
    held = np.asarray(ensemble.held_out(window.rows, ensemble.HELDOUT_SHARE), np.float32)
    measured = (np.asarray(known)[..., 0] * held)[:, : 2 * count].reshape(len(known), -1, 2).sum(2)
    keys, halves = jax.random.split(jax.random.key(1), count), jax.jit(ensemble.halves, static_argnums=(1, 2))
    by_chunk = [measured[np.asarray(halves(keys[k], E, len(known))), k].sum() / E for k in range(count)]
    expected = sum(n * ensemble.HELDOUT_DECAY ** (len(by_chunk) - 1 - k) for k, n in enumerate(by_chunk))
    np.testing.assert_allclose(several.heldout_steps, expected, rtol=1e-5)


def test_in_chunks_every_member_learns_from_its_own_half_of_the_batch():
    halves = jax.jit(ensemble.halves, static_argnums=(1, 2))
    chosen = np.asarray(halves(jax.random.key(1), 3, 9))
    assert chosen.shape == (3, 4) and halves(jax.random.key(1), 3, 1).shape == (3, 1)
    assert all(len(set(half)) == 4 for half in chosen.tolist()) and len({tuple(sorted(half)) for half in chosen}) > 1
    window = jax.tree.map(lambda x: x[:, :2], segment(0))
    key = jax.random.key(1)
    chosen = np.asarray(halves(jax.random.split(key, 1)[0], E, len(window.terminals)))
    model = make_ensemble(CONFIG, SPEC, chunk=2)
    start = jax.jit(model.init)(jax.random.key(0))
    changed = next(i for i in range(len(window.terminals)) if 0 < (chosen == i).any(1).sum() < E)
    other = window.replace(rewards=window.rewards.at[changed].add(1.0), rows=window.rows.at[changed].set(1))
    assert not ensemble.held_out(other.rows, ensemble.HELDOUT_SHARE)[changed].any()
    same = window.replace(rows=other.rows)
    before, after = (jax.device_get(jax.jit(model.update)(start, x, NORMALISER, key)[0].params) for x in (same, other))
    moved = np.zeros(E, bool)
    for a, b in zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True):
        moved |= np.any((a != b).reshape(E, -1), axis=1)
    np.testing.assert_array_equal(moved, (chosen == changed).any(1))


# --- a known system --------------------------------------------------------------------------------------------------

DYNAMICS = np.array([[0.9, 0.3], [-0.2, 0.8]])
INPUT = np.array([[0.3], [0.8]])
NOISE = np.array([0.2, 0.1])
REWARD = np.array([1.0, -0.5, 2.0])  # of both observations and the action
REWARD_NOISE = 0.3
UNITS = np.array([100.0, 0.01])
FATAL = 1.0  # an episode ends at a step that begins with observation 0 above this


def episodes(count: int) -> list[Episode]:
    """Of s' = D s + B clip(a) + noise, up to 40 steps, in odd units; actions reach beyond their bounds."""
    rng = np.random.default_rng(0)
    made = []
    for _ in range(count):
        states, actions, rewards = [rng.standard_normal(2)], [], []
        while True:
            action = 1.5 * rng.standard_normal(1)
            executed = np.clip(action, -1, 1)
            actions.append(action)
            rewards.append(REWARD @ np.concatenate([states[-1], executed]) + REWARD_NOISE * rng.standard_normal())
            terminated = states[-1][0] > FATAL
            if terminated or len(rewards) == 40:
                break
            states.append(DYNAMICS @ states[-1] + INPUT @ executed + NOISE * rng.standard_normal(2))
        made.append(Episode(np.array(states) * UNITS, np.array(actions), np.array(rewards), terminated))
    return made


@pytest.fixture(scope="module")
def fitted():
    """``(fit and imagine as functions of the state, learnt state, untrained state, normaliser)``."""
    config = dataclasses.replace(CONFIG, horizon=2)
    model = make_world_model(config, SPEC)
    learnt, normaliser = fit(model, episodes(300), config, jax.random.key(1), 3_000)

    @jax.jit
    def jitted(state, policy_params, context, key):
        return model.imagine(state, Policy(policy_params, policy_apply), context, normaliser, key)

    def imagine(*args):
        return jax.device_get(jitted(*args))

    return imagine, learnt, jax.jit(model.init)(jax.random.key(1)), normaliser


DRAWS = 10_000
STARTS = np.array([[0.5, 0.0], [-1.0, 0.5], [0.0, -1.0], [-0.5, 1.0]])


def moment_errors(imagine, state, policy) -> tuple[float, float, float]:
    """Of one step from four states, in true deviations: the largest error of the mean, of a correlation-scaled entry
    of the covariance of (action, next observation), and of the reward's mean. 10,000 draws each.
    """
    each = DRAWS
    start = contexts_at(np.repeat(STARTS * UNITS, each, axis=0), SPEC)
    imagined, _ = imagine(state, policy, start, jax.random.key(2))
    mean, std = np.asarray(policy, np.float64)
    gain = np.concatenate([[[1.0]], INPUT])  # of the action in (action, next observation)
    covariance = std**2 * gain @ gain.T + np.diag([0.0, *NOISE**2])
    deviations = np.sqrt(np.diag(covariance))
    drawn = np.concatenate([imagined.actions[:, 0], imagined.observations[:, 1] / UNITS[None]], axis=1)
    errors = []
    for place, group in zip(STARTS, np.split(drawn.astype(np.float64), len(STARTS)), strict=True):
        centre = np.concatenate([[mean], DYNAMICS @ place + INPUT[:, 0] * mean])
        off = np.abs(group.mean(0) - centre) / deviations
        spread = np.abs(np.cov(group.T) - covariance) / np.outer(deviations, deviations)
        errors.append((off.max(), spread.max()))
    rewards = np.asarray(imagined.rewards[:, 0]).reshape(len(STARTS), each).mean(1)
    expected = STARTS @ REWARD[:2] + REWARD[2] * mean
    reward_std = np.hypot(REWARD_NOISE, REWARD[2] * std)
    return (*np.max(errors, axis=0), np.abs(rewards - expected).max() / reward_std)


def test_a_linear_gaussian_system_is_recovered(fitted):
    """Next state ~ N(D s + B m, B std^2 B' + noise), jointly with the action: closed form, no simulation.

    10,000 draws are off by 0.01 deviations in the mean and 0.014 in a variance; the rest is the fit's.
    """
    imagine, learnt, untrained, _ = fitted
    policy = jnp.array([-0.2, 0.2])  # four deviations inside the bounds
    found, before = moment_errors(imagine, learnt, policy), moment_errors(imagine, untrained, policy)
    print("errors of mean, covariance, reward: fitted", found, "untrained", before)
    bounds = (0.25, 0.25, 0.25)
    assert all(error < bound for error, bound in zip(found, bounds, strict=True)), found
    assert all(error > 2 * bound for error, bound in zip(before, bounds, strict=True)), before


def test_actions_beyond_their_bounds_do_what_the_bound_does(fitted):
    imagine, learnt, _, _ = fitted
    start = contexts_at(np.repeat(STARTS * UNITS, DRAWS, axis=0), SPEC)
    ends = [
        imagine(learnt, jnp.array([mean, 1e-6]), start, jax.random.key(3))[0].observations[:, 1]
        for mean in (1.0, 5.0, -1.0)
    ]
    np.testing.assert_allclose(ends[0], ends[1], rtol=1e-3, atol=1e-3)
    assert np.all(np.abs(ends[0] - ends[2]).mean(0) / UNITS > [0.3, 1.0])  # 2 B = 0.6 and 1.6


def test_the_end_of_an_episode_is_learnt(fitted):
    """It ends where observation 0 is above 1, which has no successor in the data: 94 % of states are judged rightly,
    where always saying no gets three in four."""
    imagine, learnt, untrained, _ = fitted
    states = np.random.default_rng(5).uniform([-0.5, -1.0], [1.5, 1.0], (4 * DRAWS, 2))
    fatal = states[:, 0] > FATAL
    start = contexts_at(states * UNITS, SPEC)

    def accuracy(state):
        said = imagine(state, jnp.array([0.0, 0.3]), start, jax.random.key(4))[0]
        return np.mean((np.asarray(said.terminals[:, 0]) > 0) == fatal)

    print("terminals judged rightly:", accuracy(learnt), accuracy(untrained), "always no:", np.mean(~fatal))
    assert accuracy(learnt) > 0.94 > 0.8 > max(accuracy(untrained), np.mean(~fatal))


def test_the_members_find_the_noise_and_agree_on_it(fitted):
    """Held-out squared error of a perfect mean: the noise's variance, in normalised units, averaged over channels. The
    best members are within a tenth of it and each other; nothing of the untrained is."""
    imagine, learnt, untrained, normaliser = fitted
    variances = np.concatenate(
        [
            np.square(NOISE * UNITS / np.asarray(normaliser.observations.std)),
            np.square(REWARD_NOISE / np.asarray(normaliser.rewards.std)),
        ]
    )
    losses = np.sort(np.asarray(ensemble.heldout_losses(learnt)))[:ELITES]
    print("held-out losses", losses, "noise", variances.mean())
    np.testing.assert_allclose(losses, variances.mean(), rtol=0.15)
    policy, start = jnp.array([0.0, 0.5]), contexts_at(np.repeat(STARTS * UNITS, DRAWS, axis=0), SPEC)
    doubts, before = (imagine(state, policy, start, jax.random.key(0))[1] for state in (learnt, untrained))
    print("doubts", doubts, before)
    noise = np.sqrt(variances[:2]).mean()
    np.testing.assert_allclose(doubts["imagination/predicted_std"], noise, rtol=0.1)
    assert before["imagination/predicted_std"] > 2 * noise
    assert doubts["imagination/disagreement"] < 0.25 * noise


# --- configuration ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PRESETS)
def test_presets_hold_an_ensemble(name):
    config = validate(dataclasses.replace(preset(name, "hopper"), world_model="ensemble"))
    published = EnsembleConfig(7, 5, 200, 4, 1e-3, 1e-4), 256
    found = config.ensemble, config.model_training.batch_size
    assert (found == published) == (name not in ("cpu", "cpu_long", "smoke", "cpu_a2c", "cpu_a2c_passes"))


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"elites": 8}, "ensemble.elites is 8; allowed: at most ensemble.members (7)"),
        ({"members": 0}, "ensemble.members is 0; allowed: 1 or greater"),
        ({"elites": 0}, "ensemble.elites is 0; allowed: 1 or greater"),
        ({"learning_rate": 0.0}, "ensemble.learning_rate is 0.0; allowed: greater than 0"),
    ],
)
def test_what_cannot_be_run_is_refused(changes, line):
    with pytest.raises(ConfigError) as refused:
        validate(Config(ensemble=EnsembleConfig(**changes)))
    assert str(refused.value) == line


def test_normalised_and_raw_are_told_apart():
    """What the network is given is the normalised observation: (3 - 1) / 2 and (-2 + 2) / 0.5."""
    raw = jnp.array([[3.0, -2.0]])
    inputs = ensemble.inputs_of(raw, jnp.array([[-7.0]]), NORMALISER, "clipped")
    np.testing.assert_allclose(inputs, [[1.0, 0.0, -1.0]])
    np.testing.assert_allclose(inputs[:, :2], normalise(raw, NORMALISER.observations))
