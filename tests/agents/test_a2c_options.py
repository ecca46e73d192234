"""A2C's options against oracles that share no code with them: NumPy, closed forms, and A2C without the option."""

from __future__ import annotations

import functools
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from polygrad_jax.agents import a2c, value_units
from polygrad_jax.agents.minibatches import shuffled_minibatches
from polygrad_jax.config import A2CConfig, EnvSpec
from polygrad_jax.types import MeanStd, Normaliser, Segment

SPEC = EnvSpec(observation_size=3, action_size=2)
B, H = 8, 4
PLAIN = A2CConfig(hidden_size=8, trajectories=B, max_actor_lr=1e-3, search=False, target_critic_ema=0.5, actor_ema=0.9)
MEAN, STD = np.array([10.0, -2.0, 0.5], np.float32), np.array([4.0, 0.1, 1.0], np.float32)
ONE = MeanStd(jnp.zeros(1), jnp.ones(1))
NORMALISER = Normaliser(MeanStd(jnp.asarray(MEAN), jnp.asarray(STD)), ONE, ONE, ONE)


def segment_of(seed: int = 0) -> Segment:
    """Observations of mean ``MEAN`` and deviation ``STD``, and trajectories of which some end."""
    rng = np.random.default_rng(seed)
    ends = np.maximum.accumulate(rng.random((B, H)) < 0.1, axis=1)
    arrays = (
        MEAN + STD * rng.standard_normal((B, H, 3)),
        rng.standard_normal((B, H, 2)),
        5.0 + 3.0 * rng.standard_normal((B, H)),
        ends,
    )
    return Segment(*(jnp.asarray(x, jnp.float32) for x in arrays))


@functools.cache
def make_update(config: A2CConfig):
    def update(state, segment, key, progress):
        return a2c.update(state, segment, config, SPEC, progress=progress, normaliser=NORMALISER, key=key)

    return jax.jit(update)


def updated(config: A2CConfig, state: a2c.A2CState, segment: Segment, progress: float = 0.0, seed: int = 0):
    return make_update(config)(state, segment, jax.random.key(seed), jnp.float32(progress))


@functools.cache
def fresh(config: A2CConfig) -> a2c.A2CState:
    return jax.jit(lambda key: a2c.init(key, SPEC, config))(jax.random.key(0))


@functools.cache
def make_policy(config: A2CConfig):
    return jax.jit(a2c.make_policy_apply(SPEC, config))


@functools.cache
def make_value(config: A2CConfig):
    return jax.jit(a2c.make_value_apply(config))


def assert_close(a, b, rtol: float = 1e-5, atol: float = 1e-6):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=rtol, atol=atol), a, b)


# --- observations standardised by the replay's statistics ------------------------------------------------------------

STANDARDISED = replace(PLAIN, normalise_observations=True)
NETWORKS = ("actor", "critic", "target_critic", "averaged_actor")


@pytest.fixture(scope="module")
def after_one_update() -> a2c.A2CState:
    return updated(STANDARDISED, fresh(STANDARDISED), segment_of())[0]


def test_before_the_first_update_observations_are_read_raw():
    """The first update is that without the option; only then do the statistics come, in every network."""
    ours, metrics = updated(STANDARDISED, fresh(STANDARDISED), segment_of())
    plain, expected = updated(PLAIN, fresh(PLAIN), segment_of())
    assert_close(metrics, expected)
    for name in NETWORKS:
        after, without = getattr(ours, name), getattr(plain, name)
        assert_close({x: after[x] for x in without}, without)
        np.testing.assert_array_equal(after["observations"]["mean"], MEAN)
        np.testing.assert_array_equal(after["observations"]["std"], STD)


def test_the_networks_read_what_numpy_standardises(after_one_update):
    raw_obs = np.asarray(segment_of(1).observations)
    normed_obs = (raw_obs - MEAN) / STD
    policy, plain_policy = make_policy(STANDARDISED), make_policy(PLAIN)
    value, plain_value = make_value(STANDARDISED), make_value(PLAIN)
    for name in NETWORKS:
        params = getattr(after_one_update, name)
        without = {x: y for x, y in params.items() if x != "observations"}
        ours, theirs = (policy, plain_policy) if "actor" in name else (value, plain_value)
        assert_close(ours(params, raw_obs), theirs(without, normed_obs))
        assert not np.allclose(ours(params, raw_obs), theirs(without, raw_obs), atol=1e-2)


def test_an_update_on_raw_observations_is_the_plain_one_on_standardised_ones(after_one_update):
    """Statistics take no gradient, no Adam, no weight decay: networks and metrics are those without the option."""
    segment = segment_of(2)
    ours, metrics = updated(STANDARDISED, after_one_update, segment)
    bare = {name: dict(getattr(after_one_update, name)) for name in NETWORKS}
    for params in bare.values():
        params.pop("observations")
    standardised = segment.replace(observations=jnp.asarray((np.asarray(segment.observations) - MEAN) / STD))
    plain, expected = updated(PLAIN, after_one_update.replace(**bare), standardised)
    assert_close(metrics, expected, rtol=1e-4)
    for name in NETWORKS:
        assert_close({x: y for x, y in getattr(ours, name).items() if x != "observations"}, getattr(plain, name))


# --- values in running units -----------------------------------------------------------------------------------------

RUNNING = replace(PLAIN, value_scale="running")


def units_of(mean: float, std: float, updates: int = 5) -> value_units.Units:
    return {"mean": jnp.float32(mean), "std": jnp.float32(std), "updates": jnp.int32(updates)}


def test_units_move_as_worked_by_hand():
    # targets 1, 2, 3 count, 100 does not: mean 2, variance 2/3; the first batch replaces the units
    targets, weights = jnp.array([[1.0, 2.0], [3.0, 100.0]]), jnp.array([[1.0, 1.0], [1.0, 0.0]])
    first = value_units.moved(value_units.raw_units(), targets, weights)
    np.testing.assert_allclose([first["mean"], first["std"]], [2.0, np.sqrt(2 / 3)], rtol=1e-6)
    # the second, 4, 4, 4, weighs as much: values 1, 2, 3, 4, 4, 4 have mean 3 and variance 8 / 6
    second = value_units.moved(first, jnp.full((2, 2), 4.0), weights)
    np.testing.assert_allclose([second["mean"], second["std"]], [3.0, np.sqrt(8 / 6)], rtol=1e-6)
    # after hundreds of updates a batch has a share of 0.01: mean 0 + 0.01 * 10, variance 0.99 * 4 + 0.0099 * 100
    late = value_units.moved(units_of(0.0, 2.0, 500), jnp.full((2, 2), 10.0), weights)
    np.testing.assert_allclose([late["mean"], late["std"]], [0.1, np.sqrt(3.96 + 0.99)], rtol=1e-6)
    assert [int(x["updates"]) for x in (first, second, late)] == [1, 2, 501]


def test_targets_that_do_not_count_move_nothing_and_equal_ones_leave_a_deviation():
    none = value_units.moved(units_of(3.0, 2.0), jnp.ones(4), jnp.zeros(4))
    np.testing.assert_array_equal([none["mean"], none["std"]], [3.0, 2.0])
    equal = value_units.moved(value_units.raw_units(), jnp.full(4, 7.0), jnp.ones(4))
    np.testing.assert_allclose([equal["mean"], equal["std"]], [7.0, 1e-4], rtol=1e-6)


@pytest.mark.parametrize(("mean", "std"), [(250.0, 80.0), (-3.0, 0.02), (0.0, 1.0)])
def test_values_stay_where_their_units_move(mean, std):
    """To the rounding of float32, at the size of the largest number in the sum."""
    critic = fresh(RUNNING).critic | {"values": units_of(10.0, 4.0)}
    raw_obs = segment_of().observations
    value = make_value(RUNNING)
    before, rescaled = value(critic, raw_obs), value_units.in_units(critic, units_of(mean, std))
    np.testing.assert_allclose(value(rescaled, raw_obs), before, rtol=0, atol=2e-7 * max(abs(mean), 20.0))
    kernels = (x["network"]["output"]["kernel"] for x in (critic, rescaled))
    assert np.allclose(*kernels) == (std == 4.0)


def test_mutant_units_move_alone():
    critic = fresh(RUNNING).critic | {"values": units_of(10.0, 4.0)}
    alone = critic | {"values": units_of(20.0, 2.0)}
    raw_obs, value = segment_of().observations, make_value(RUNNING)
    assert np.max(np.abs(value(alone, raw_obs) - value(critic, raw_obs))) > 5.0


def numpy_targets(config: A2CConfig, critic, segment: Segment) -> tuple[np.ndarray, np.ndarray]:
    """The targets of GAE under a critic, and which count; by the recursion, in float64."""
    values = np.asarray(make_value(config)(critic, segment.observations), np.float64)
    rewards, terminals = np.asarray(segment.rewards), np.asarray(segment.terminals)
    targets, later = np.zeros((B, H - 1)), np.zeros(B)
    for k in reversed(range(H - 1)):
        alive = 1.0 - terminals[:, k]
        error = rewards[:, k] + config.gamma * alive * values[:, k + 1] - values[:, k]
        later = error + config.gamma * config.gae_lambda * alive * later
        targets[:, k] = later + values[:, k]
    return targets, np.cumprod(1.0 - terminals[:, :-1], axis=1)


def test_an_update_moves_the_units_of_critic_and_target_critic_to_its_targets():
    """Two updates: the target critic, which averages the critic's weights, is averaged in the same units."""
    state, update = fresh(RUNNING), make_update(RUNNING)
    value, counted = make_value(RUNNING), []
    raw_obs = segment_of().observations
    for seed in range(2):
        segment = segment_of(seed)
        outputs = 0.5 * (np.asarray(value(state.target_critic, raw_obs)) + np.asarray(value(state.critic, raw_obs)))
        averaged = a2c.exponential_average(state.target_critic["network"], state.critic["network"], 0.5)
        targets, weights = numpy_targets(RUNNING, state.target_critic | {"network": averaged}, segment)
        counted.append(targets[weights > 0])
        state, _ = update(state, segment, jax.random.key(0), jnp.float32(0.0))
        assert_close(state.critic["values"], state.target_critic["values"], rtol=0, atol=0)
        # averaged weights, not averaged outputs: near where the networks are near
        np.testing.assert_allclose(value(state.target_critic, raw_obs), outputs, atol=0.1)
    means, variances = [x.mean() for x in counted], [x.var() for x in counted]
    mean, variance = np.mean(means), np.mean(variances) + np.var(means)
    np.testing.assert_allclose(state.critic["values"]["mean"], mean, rtol=1e-4)
    np.testing.assert_allclose(state.critic["values"]["std"], np.sqrt(variance), rtol=1e-4)
    assert float(state.critic["values"]["std"]) > 1.5


def test_the_critic_learns_in_its_units(monkeypatch):
    """Units that stay at (0, 4) and raw rewards: gradient and step are those of raw values and rewards divided by 4."""
    monkeypatch.setattr(value_units, "LEAST_RATE", 0.0)
    state, segment = fresh(PLAIN), segment_of()
    plain, expected = updated(PLAIN, state, segment.replace(rewards=segment.rewards / 4.0))
    critic = state.critic | {"values": units_of(0.0, 4.0, 10**9)}
    update = make_update.__wrapped__(RUNNING)
    state = state.replace(critic=critic, target_critic=critic)
    ours, metrics = update(state, segment, jax.random.key(0), jnp.float32(0.0))
    np.testing.assert_allclose(metrics["agent/critic_loss"], 16.0 * expected["agent/critic_loss"], rtol=1e-5)
    np.testing.assert_allclose(metrics["agent/critic_gradient_norm"], expected["agent/critic_gradient_norm"], rtol=1e-5)
    assert_close(learnt_by(ours), learnt_by(plain))


def learnt_by(state: a2c.A2CState):
    return state.actor, state.critic["network"], state.target_critic["network"], state.critic_adam


# --- several passes in minibatches, under a clipped ratio ------------------------------------------------------------


def test_the_clipped_ratio_by_hand():
    # ratios 0.5, 1.1, 1.5 and a bound of 0.2, so that the clipped ones are 0.8, 1.1, 1.2
    # advantage  2: min(1.0, 1.6), min(2.2, 2.2), min(3.0, 2.4);  slope in the log-probability 1.0, 2.2, 0
    # advantage -2: min(-1, -1.6), min(-2.2, -2.2), min(-3, -2.4); slope 0, -2.2, -3
    before = jnp.float32(-1.3)
    log_prob = jnp.tile(before + jnp.log(jnp.array([0.5, 1.1, 1.5])), (2, 1))
    advantages = jnp.array([[2.0] * 3, [-2.0] * 3])

    def gains(log_prob):
        return a2c.clipped_gains(log_prob, before, advantages, 0.2)

    np.testing.assert_allclose(gains(log_prob), [[1.0, 2.2, 2.4], [-1.6, -2.2, -3.0]], rtol=1e-5)
    slopes = jax.grad(lambda x: jnp.sum(gains(x)))(log_prob)
    np.testing.assert_allclose(slopes, [[1.0, 2.2, 0.0], [0.0, -2.2, -3.0]], rtol=1e-5)


def test_every_pass_has_every_transition_once_and_in_another_order():
    rows = np.asarray(shuffled_minibatches(jax.random.key(3), 24, 4, 3))
    assert rows.shape == (12, 8)
    passes = rows.reshape(4, 24)
    np.testing.assert_array_equal(np.sort(passes, axis=1), np.tile(np.arange(24), (4, 1)))
    other = np.asarray(shuffled_minibatches(jax.random.key(4), 24, 4, 3)).reshape(4, 24)
    assert len({tuple(x) for x in (np.arange(24), *passes, *other)}) == 9


def test_one_pass_of_one_minibatch_is_the_step_without_search_and_rates_fall_on_a_line():
    """A single step is linear in its learning rates: a quarter through the run it is three quarters as long.

    Where nothing ends: of what lies behind an end the searched step standardises the advantages too.
    """
    falling, state = replace(PLAIN, learning_rates="falling"), fresh(PLAIN)
    segment = segment_of()
    segment = segment.replace(terminals=jnp.zeros_like(segment.terminals))
    plain, expected = updated(PLAIN, state, segment)
    for progress, share in ((0.0, 1.0), (0.25, 0.75), (1.0, 0.0), (1.5, 0.0)):
        ours, metrics = updated(falling, state, segment, progress)
        for name in ("actor", "critic"):
            steps = (jax.tree.map(jnp.subtract, getattr(x, name), getattr(state, name)) for x in (ours, plain))
            moved, whole = steps
            assert_close(moved, jax.tree.map(lambda x, share=share: share * x, whole), rtol=1e-3, atol=1e-7)
        np.testing.assert_allclose(metrics["agent/learning_rate"], share * PLAIN.max_actor_lr, rtol=1e-6)
        assert float(ours.log_actor_lr) == float(state.log_actor_lr)
    common = metrics.keys() & expected.keys() - {"agent/change_final", "agent/learning_rate"}
    assert len(common) == 12
    assert_close({x: metrics[x] for x in common}, {x: expected[x] for x in common}, rtol=1e-4)


PASSES = replace(PLAIN, learning_rates="constant", epochs=2, minibatches=3, clip_ratio=0.05, max_actor_lr=3e-2)


class NumPyAdamW:
    """AdamW over flat arrays by name, with the official code's clip."""

    def __init__(self, rate: float, clipped: str):
        self.rate, self.clipped, self.count, self.moments = rate, clipped, 0, {}

    def step(self, params: dict, gradients: dict) -> dict:
        self.count += 1
        gradients = {name: np.asarray(g, np.float64) for name, g in gradients.items()}
        norm = np.sqrt(sum(np.sum(g**2) for name, g in gradients.items() if name.startswith(self.clipped)))
        scale, stepped = min(1.0, PASSES.grad_clip / (norm + 1e-6)), {}
        for name, g in gradients.items():
            g = g * scale if name.startswith(self.clipped) else g
            m, v = self.moments.get(name, (0.0, 0.0))
            m, v = self.moments[name] = (0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2)
            direction = m / (1 - 0.9**self.count) / (np.sqrt(v / (1 - 0.999**self.count)) + 1e-8)
            kept = np.asarray(params[name], np.float64) * (1 - self.rate * PASSES.weight_decay)
            stepped[name] = jnp.asarray(kept - self.rate * direction, jnp.float32)
        return stepped


def test_passes_are_steps_in_turn_on_what_was_computed_once():
    """A loop in NumPy: advantages and targets of the critic before, ratios to the policy before, then step by step.

    Kills: standardising over the batch or over what lies behind ends, ratios to the policy of the last step, gradients
    on other rows, Adam anew in every pass, targets computed again.
    """
    config, segment, state = PASSES, segment_of(5), fresh(PLAIN)
    (actor, unflatten_actor), (critic, unflatten_critic) = named(state.actor), named(state.critic)
    policy, value = make_policy(PLAIN), make_value(PLAIN)
    targets, weights = numpy_targets(PLAIN, state.target_critic, segment)
    advantages = targets - np.asarray(value(state.target_critic, segment.observations))[:, :-1]
    obs, actions = segment.observations[:, :-1].reshape(-1, 3), segment.actions[:, :-1].reshape(-1, 2)
    advantages, targets, weights = (np.ravel(x).astype(np.float32) for x in (advantages, targets, weights))

    @jax.jit
    def density(flat, obs, actions):
        mean, std = policy(unflatten_actor(flat), obs)
        return jnp.sum(jax.scipy.stats.norm.logpdf(actions, mean, std), axis=-1), std

    @jax.jit
    @jax.grad
    def actor_gradient(flat, obs, actions, advantages, weights, before):
        log_prob, std = density(flat, obs, actions)
        ratio = jnp.exp(log_prob - before)
        lowest, highest = 1 - config.clip_ratio, 1 + config.clip_ratio
        stuck = ((advantages > 0) & (ratio > highest)) | ((advantages < 0) & (ratio < lowest))
        bound = jnp.where(advantages > 0, highest, lowest)
        entropy = jnp.sum(jnp.log(std) + 0.5 * jnp.log(2 * jnp.pi * jnp.e), axis=-1)
        gains = jnp.where(stuck, bound, ratio) * advantages + config.entropy_weight * entropy
        return -jnp.mean(weights * gains)

    @jax.jit
    @jax.grad
    def critic_gradient(flat, obs, targets, weights):
        return 0.5 * jnp.mean(weights * (value(unflatten_critic(flat), obs) - targets) ** 2)

    before = density(actor, obs, actions)[0]
    adams = NumPyAdamW(config.max_actor_lr, "network"), NumPyAdamW(config.critic_lr, "")
    for rows in np.asarray(shuffled_minibatches(jax.random.key(7), 24, 2, 3)):
        part, counted = advantages[rows], advantages[rows][weights[rows] > 0]
        assert 2 < len(counted) < len(part)
        part = (part - counted.mean()) / counted.std(ddof=1)
        critic = adams[1].step(critic, critic_gradient(critic, obs[rows], targets[rows], weights[rows]))
        gradient = actor_gradient(actor, obs[rows], actions[rows], part, weights[rows], before[rows])
        actor = adams[0].step(actor, gradient)
    ours, metrics = updated(config, state, segment, seed=7)
    assert_close(named(ours.actor)[0], actor, rtol=1e-4, atol=2e-5)
    assert_close(named(ours.critic)[0], critic, rtol=1e-4, atol=2e-5)
    change = np.mean(np.abs(density(actor, obs, actions)[0] - before))
    np.testing.assert_allclose(metrics["agent/change_final"], change, rtol=1e-3)
    assert 0.1 < float(metrics["agent/clipped_share"]) < 0.9
    assert int(ours.actor_adam.count) == int(ours.critic_adam.count) == 6


def named(params):
    """``({path: array}, its inverse)``."""
    paths = ["/".join(key.key for key in path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]
    structure = jax.tree.structure(params)
    flat = dict(zip(paths, jax.tree.leaves(params), strict=True))
    return flat, lambda flat: jax.tree.unflatten(structure, [flat[path] for path in paths])


def test_another_key_shuffles_otherwise():
    states = [updated(PASSES, fresh(PLAIN), segment_of(5), seed=seed)[0] for seed in (7, 7, 8)]
    kernels = [x.actor["network"]["hidden_0"]["kernel"] for x in states]
    np.testing.assert_array_equal(kernels[0], kernels[1])
    assert not np.allclose(kernels[0], kernels[2])
