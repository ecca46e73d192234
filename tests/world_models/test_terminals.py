"""The classifier of terminals, and the measures that led to it."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from experiments.harness import gradient_error
from polygrad_jax.agents import a2c
from polygrad_jax.config import A2CConfig, EnvConfig, EnvSpec
from polygrad_jax.data.normaliser import unnormalise
from polygrad_jax.data.segment_masks import happened
from polygrad_jax.envs import collector as stepping
from polygrad_jax.envs import mujoco_state as simulator
from polygrad_jax.envs import tasks as registry
from polygrad_jax.types import MeanStd, Normaliser, Policy, Segment
from polygrad_jax.world_models import terminal_classifier
from polygrad_jax.world_models.terminal_classifier import ClassifierState

SPEC = EnvSpec(2, 1)
NORMALISER = Normaliser(
    observations=MeanStd(jnp.array([1.0, -3.0]), jnp.array([2.0, 0.5])),
    actions=MeanStd(jnp.zeros(1), jnp.ones(1)),
    rewards=MeanStd(jnp.zeros(1), jnp.ones(1)),
    terminals=MeanStd(jnp.zeros(1), jnp.ones(1)),
)


def segment_of(observations, actions, terminals) -> Segment:
    terminals = jnp.asarray(terminals, jnp.float32)
    return Segment(jnp.asarray(observations), jnp.asarray(actions), jnp.zeros_like(terminals), terminals)


@functools.cache
def untrained_classifier() -> ClassifierState:
    return jax.jit(lambda key: terminal_classifier.init(key, SPEC))(jax.random.key(0))


def test_what_pads_a_window_behind_its_terminal_did_not_happen():
    terminals = jnp.array([[0.0, 0.0, 0.0], [0.0, 1.0, 1.0], [1.0, 1.0, 1.0]])
    expected = [[1, 1, 1], [1, 1, 0], [1, 0, 0]]
    np.testing.assert_array_equal(happened(terminals), expected)


def test_the_loss_by_hand(monkeypatch):
    """Log-odds 0 everywhere: log 2 a step, whatever happened. Log-odds 2: log(1 + e^2) where it did not end, less 2
    where it did; of the second window only two steps count: (3 + 1) log(1 + e^2) + (log(1 + e^2) - 2), over 5.
    """
    segment = segment_of(np.zeros((2, 3, 2)), np.zeros((2, 3, 1)), [[0, 0, 0], [0, 1, 1]])
    for odds, expected in [(0.0, np.log(2)), (2.0, (5 * np.log1p(np.exp(2.0)) - 2.0) / 5)]:
        monkeypatch.setattr(terminal_classifier, "logits", lambda *_, odds=odds: jnp.full((2, 3), odds))
        np.testing.assert_allclose(terminal_classifier.loss({}, segment, NORMALISER, "clipped"), expected, rtol=1e-6)


def test_units_of_observations_do_not_matter_and_actions_count_as_executed():
    params = untrained_classifier().params
    rng = np.random.default_rng(0)
    observations, actions = rng.standard_normal((4, 5, 2)), 3 * rng.standard_normal((4, 5, 1))
    segment = segment_of(observations, actions, np.zeros((4, 5)))
    logits = terminal_classifier.logits(params, segment, NORMALISER, "clipped")
    scale = jnp.array([100.0, 0.01])
    n = NORMALISER.observations
    scaled = NORMALISER.replace(observations=MeanStd(n.mean * scale, n.std * scale))
    clipped = jnp.clip(segment.actions, -1.0, 1.0)
    there = segment.replace(observations=segment.observations * scale[None, None], actions=clipped)
    moved = terminal_classifier.logits(params, there, scaled, "clipped")
    np.testing.assert_allclose(moved, logits, rtol=1e-3, atol=1e-4)


def test_imagined_terminals_stay(monkeypatch):
    monkeypatch.setattr(terminal_classifier, "logits", lambda *_: jnp.array([[-1.0, 0.5, -1.0], [-1.0, -1.0, -1.0]]))
    np.testing.assert_array_equal(terminal_classifier.classify({}, None, None, "clipped"), [[0, 1, 1], [0, 0, 0]])


def test_a_boundary_is_learnt():
    """An episode ends where obs_0 + 2 clip(a) > 4, about one step in ten: 97 % of fresh steps, where always saying no
    gets 90 %."""

    @functools.partial(jax.jit, static_argnums=1)
    def windows(key, count):
        keys = jax.random.split(key)
        raw = unnormalise(jax.random.normal(keys[0], (count, 8, 2)), NORMALISER.observations)
        actions = 2.0 * jax.random.normal(keys[1], (count, 8, 1))
        ends = (raw[..., 0] + 2.0 * jnp.clip(actions[..., 0], -1.0, 1.0) > 4.0).astype(jnp.float32)
        return Segment(raw, actions, jnp.zeros((count, 8)), ends)

    @jax.jit
    def learn(state: ClassifierState) -> ClassifierState:
        def step(state, key):
            return terminal_classifier.update(state, windows(key, 16), NORMALISER, "clipped")[0], None

        return jax.lax.scan(step, state, jax.random.split(jax.random.key(1), 1500))[0]

    fresh = windows(jax.random.key(99), 64)
    untrained = untrained_classifier()
    share = float(fresh.terminals.mean())
    assert 0.08 < share < 0.2

    def accuracy(state):
        says = terminal_classifier.logits(state.params, fresh, NORMALISER, "clipped") > 0
        return float((says == (fresh.terminals > 0)).mean())

    reached = accuracy(learn(untrained))
    print("steps judged rightly:", reached)
    assert reached > 0.97 > 1 - share


# --- what a batch teaches --------------------------------------------------------------------------------------------


def batch(seed: int, size: int = 64) -> Segment:
    rng = np.random.default_rng(seed)
    return Segment(
        observations=rng.standard_normal((size, 6, 2)).astype(np.float32),
        actions=rng.standard_normal((size, 6, 1)).astype(np.float32),
        rewards=rng.standard_normal((size, 6)).astype(np.float32),
        terminals=(rng.uniform(size=(size, 6)) < 0.05).astype(np.float32),
    )


@pytest.fixture(scope="module")
def learner():
    return jax.jit(lambda key: a2c.init(key, SPEC, A2CConfig(hidden_size=16)))(jax.random.key(0))


CONFIG = A2CConfig(hidden_size=16, train_terminal_transitions=True)


def test_a_batch_agrees_with_itself_and_not_with_another(learner):
    ours, other = (gradient_error.learning(learner, batch(seed), CONFIG, SPEC) for seed in (0, 1))
    for agreement in gradient_error.compare(ours, ours).values():
        np.testing.assert_allclose(agreement, 1.0, rtol=1e-5)
    assert abs(gradient_error.compare(ours, other)["advantage_correlation"]) < 0.3


def test_the_gradient_is_that_of_the_learner(learner):
    """The direction of plain gradient descent on the loss of ``a2c.update``, here by finite differences."""
    segment = batch(2)
    ours = gradient_error.learning(learner, segment, CONFIG, SPEC)
    flat, unravel = ravel_pytree(learner.actor["network"])
    policy_apply = a2c.make_policy_apply(SPEC, CONFIG)
    scaled = a2c.standardise(jnp.asarray(ours.advantages))

    @jax.jit
    def loss(network):
        actor = learner.actor | {"network": unravel(network)}
        raw_obs, actions = jnp.asarray(segment.observations[:, :-1]), jnp.asarray(segment.actions[:, :-1])
        return a2c.actor_loss(actor, policy_apply, raw_obs, actions, scaled, jnp.asarray(ours.weights), 0.0)[0]

    gradient = np.concatenate([np.ravel(x) for x in jax.tree.leaves(unravel(jax.grad(loss)(flat)))])
    np.testing.assert_allclose(ours.gradient, gradient, rtol=1e-4, atol=1e-6)
    direction = np.random.default_rng(0).standard_normal(flat.shape).astype(np.float32)
    slope = (loss(flat + 1e-2 * direction) - loss(flat - 1e-2 * direction)) / 2e-2
    np.testing.assert_allclose(gradient @ direction, slope, rtol=0.02)


def test_advantages_are_standardised_as_the_learner_does(learner):
    """Passes leave out what is behind an end, of which the loss of a batch knew nothing."""
    passes = dataclasses.replace(CONFIG, learning_rates="constant", search=False)
    segment = batch(3)
    searched, passed = (gradient_error.learning(learner, segment, config, SPEC) for config in (CONFIG, passes))
    scaled = a2c.standardise_what_counts(jnp.asarray(passed.advantages), jnp.asarray(passed.weights))
    policy_apply = a2c.make_policy_apply(SPEC, passes)
    raw_obs, actions = jnp.asarray(segment.observations[:, :-1]), jnp.asarray(segment.actions[:, :-1])

    def loss(actor):
        return a2c.actor_loss(actor, policy_apply, raw_obs, actions, scaled, jnp.asarray(passed.weights), 0.0)[0]

    gradient = jax.tree.leaves(jax.jit(jax.grad(loss))(learner.actor)["network"])
    np.testing.assert_allclose(passed.gradient, np.concatenate([np.ravel(x) for x in gradient]), rtol=1e-4, atol=1e-6)
    assert np.abs(passed.gradient - searched.gradient).max() > 1e-4


def test_playing_is_the_policy_in_the_simulator():
    """Its actions are the policy's mean and std at the states it meets times draws, and their replay is the same."""
    config, spec = EnvConfig("hopper"), EnvSpec(11, 3)
    env = registry.make(config)
    env.reset(seed=0)
    states = []
    for k in range(6):
        states.append(simulator.read_state(env))
        env.step(stepping.uniform_action(0, k, 3))
    states = np.stack(states)
    learner = jax.jit(lambda key: a2c.init(key, spec, A2CConfig(hidden_size=16)))(jax.random.key(0))
    policy_apply = a2c.make_policy_apply(spec, A2CConfig(hidden_size=16))
    played = gradient_error.played(config, states, Policy(learner.actor, policy_apply), 30, seed=4)
    mean, std = policy_apply(learner.actor, jnp.asarray(played.observations))
    random = np.random.default_rng(4)
    draws = np.stack([random.standard_normal((6, 3)) for _ in range(30)], axis=1)
    np.testing.assert_allclose((played.actions - mean) / std, draws, atol=1e-4)
    again = gradient_error.replayed(config, states, played)
    for ours, theirs in zip(jax.tree.leaves(played), jax.tree.leaves(again), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert played.terminals[:, -1].any()
    assert np.all(played.rewards[:, 1:][played.terminals[:, :-1] > 0] == 0)
