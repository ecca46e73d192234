"""The line search on cases that can be worked by hand, and the actor's step along one Adam direction.

The rule under test: the change must lie within 20 % of the target 0.01, that is in [0.008, 0.012]; every retry
multiplies or divides the learning rate by 0.8.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from polygrad_jax.agents import a2c, gaussian
from polygrad_jax.agents.line_search import search
from polygrad_jax.config import A2CConfig, EnvSpec
from polygrad_jax.types import Segment

CONFIG = A2CConfig(max_actor_lr=1.0)


def proportional(slope: float):
    """A policy whose log-probability changes in proportion to the learning rate."""
    return lambda rate: slope * rate


def test_shrinks_until_within_tolerance():
    # change = 0.02 * rate from rate 1: 0.02, 0.016, 0.0128, 0.01024: three retries, rate 0.8^3 = 0.512
    found = jax.jit(lambda rate: search(proportional(0.02), rate, CONFIG))(jnp.float32(1.0))
    assert int(found.retries) == 3
    np.testing.assert_allclose([found.learning_rate, found.change], [0.512, 0.01024], rtol=1e-6)
    np.testing.assert_allclose(found.first_change, 0.02, rtol=1e-6)


def test_grows_until_within_tolerance():
    # change = 0.02 * rate from rate 0.32: 0.0064, 0.008 (0.0064 / 0.8, at the bound), so start a little higher:
    # from rate 0.33: 0.0066, 0.00825: one retry, rate 0.33 / 0.8 = 0.4125
    found = search(proportional(0.02), jnp.float32(0.33), CONFIG)
    assert int(found.retries) == 1
    np.testing.assert_allclose([found.learning_rate, found.change], [0.4125, 0.00825], rtol=1e-6)


@pytest.mark.parametrize("slope", [0.0081, 0.0119])
def test_keeps_the_first_step_within_tolerance(slope):
    found = search(proportional(slope), jnp.float32(1.0), CONFIG)
    assert int(found.retries) == 0
    assert float(found.learning_rate) == 1.0


@pytest.mark.parametrize(("slope", "retries"), [(0.0079, 0), (0.0121, 1)])
def test_does_not_keep_one_just_outside(slope, retries):
    # 0.0079 is too small, but 1 / 0.8 would exceed the maximum: kept. 0.0121 is too large: 0.8 of it is within.
    found = search(proportional(slope), jnp.float32(1.0), CONFIG)
    assert int(found.retries) == retries
    np.testing.assert_allclose(found.change, slope * 0.8**retries, rtol=1e-6)


def test_stops_where_the_next_rate_would_exceed_the_maximum_even_below_target():
    # change = 0.001 * rate from 0.5: 0.5, 0.625, 0.78125, 0.9765625; the next, 1.22, exceeds 1
    found = search(proportional(0.001), jnp.float32(0.5), CONFIG)
    assert int(found.retries) == 3
    np.testing.assert_allclose([found.learning_rate, found.change], [0.9765625, 0.0009765625], rtol=1e-6)


def test_stops_after_fifty_retries():
    # A change that never shrinks: 50 retries, rate 0.8^50 = 1.427e-5, and the last step is kept.
    found = search(lambda rate: jnp.float32(1.0) + 0.0 * rate, jnp.float32(1.0), CONFIG)
    assert int(found.retries) == 50
    np.testing.assert_allclose(found.learning_rate, 0.8**50, rtol=1e-4)


def test_swings_across_the_window_end_after_fifty_retries():
    # A jump: below rate 0.9 no change at all, from there on far too much. 1 -> 0.8 -> 1 -> 0.8 ...: 50 swings end at 1.
    config = A2CConfig(max_actor_lr=2.0)
    found = search(lambda rate: jnp.where(rate < 0.9, 0.0, 1.0), jnp.float32(1.0), config)
    assert int(found.retries) == 50
    np.testing.assert_allclose(found.learning_rate, 1.0, rtol=1e-4)


def test_the_target_falls_on_a_line_and_is_what_is_searched_for():
    """0.03 to 0.006: 0.018 half way, so 0.0144 to 0.0216; 0.05, 0.04, 0.032, 0.0256, 0.0205: four retries."""
    config = A2CConfig(target_change=0.03, final_target_change=0.006, max_actor_lr=1.0)
    progress = jnp.asarray([-1.0, 0.0, 0.5, 1.0, 3.0])
    expected = [0.03, 0.03, 0.018, 0.006, 0.006]
    np.testing.assert_allclose(a2c.target_change_at(config, progress), expected, rtol=1e-6)
    assert a2c.target_change_at(A2CConfig(target_change=0.02), jnp.float32(0.5)) == 0.02
    found = search(proportional(0.05), jnp.float32(1.0), config, a2c.target_change_at(config, jnp.float32(0.5)))
    assert int(found.retries) == 4 and float(found.change) == pytest.approx(0.05 * 0.8**4, rel=1e-5)


def test_a_change_that_is_not_a_number_ends_the_search():
    found = search(lambda rate: rate * jnp.nan, jnp.float32(1.0), CONFIG)
    assert int(found.retries) == 0


def test_no_search_keeps_the_first_step():
    found = search(proportional(1.0), jnp.float32(1.0), A2CConfig(max_actor_lr=1.0, search=False))
    assert int(found.retries) == 0
    assert float(found.learning_rate) == 1.0


# The whole update: the step that the search keeps.

SPEC = EnvSpec(observation_size=3, action_size=2)


def make_segment() -> Segment:
    keys = jax.random.split(jax.random.key(4), 3)
    return Segment(
        observations=jax.random.normal(keys[0], (16, 5, 3)),
        actions=jax.random.normal(keys[1], (16, 5, 2)),
        rewards=jax.random.normal(keys[2], (16, 5)),
        terminals=jnp.zeros((16, 5)),
    )


def update(before: a2c.A2CState, config: A2CConfig) -> tuple[a2c.A2CState, dict]:
    return jax.jit(lambda state, segment: a2c.update(state, segment, config, SPEC))(before, make_segment())


def config_with(max_actor_lr: float) -> A2CConfig:
    return A2CConfig(hidden_size=16, max_actor_lr=max_actor_lr)


@pytest.fixture(scope="module")
def searched():
    """(before, after, metrics, config) of an update whose search shrinks the learning rate many times."""
    config = config_with(0.1)
    before = a2c.init(jax.random.key(0), SPEC, config)
    after, metrics = update(before, config)
    assert 5 < int(metrics["policy/search_steps"]) <= 51
    return before, after, metrics, config


def test_the_kept_step_changes_the_policy_as_much_as_it_says(searched):
    before, after, metrics, config = searched
    policy_apply = a2c.make_policy_apply(SPEC, config)
    segment = make_segment()
    obs, actions = segment.observations[:, :-1], segment.actions[:, :-1]
    old, new = (gaussian.log_prob(*policy_apply(state.actor, obs), actions) for state in (before, after))
    change = jnp.mean(jnp.abs(old - new))
    np.testing.assert_allclose(change, metrics["policy/change_final"], rtol=1e-3)
    assert 0.008 <= float(change) <= 0.012


def test_searched_along_a_single_adam_direction(searched):
    """The first Adam step of every parameter is the sign of its gradient, so that with decay taken off every entry
    moves by the same amount: the learning rate. Retries that advanced the moments or started the log-std from the last
    try (as the official code's) would move them by other amounts."""
    before, after, metrics, config = searched
    rate = float(metrics["policy/learning_rate"])
    decayed = jax.tree.map(lambda p: p * (1.0 - rate * config.weight_decay), before.actor)
    moved = jax.tree.map(lambda p, q: np.median(np.abs(np.asarray(p - q))), decayed, after.actor)
    for name, amount in (("log_std", moved["log_std"]), ("kernel", moved["network"]["hidden_1"]["kernel"])):
        np.testing.assert_allclose(amount, rate, rtol=2e-2, err_msg=name)
    assert int(after.actor_adam.count) == 1


def test_adam_moments_do_not_depend_on_the_search(searched):
    before, after, _, config = searched
    still = A2CConfig(hidden_size=16, max_actor_lr=0.1, search=False)
    unsearched, _ = update(before, still)
    for a, b in zip(jax.tree.leaves(after.actor_adam), jax.tree.leaves(unsearched.actor_adam), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-9)


def test_the_next_learning_rate_follows_the_first_change(searched):
    # AdamW's first step is lr_step * sign(gradient): log_lr * (1 - 3e-4 * 0.01) - 3e-4 after too large a change.
    before, after, metrics, _ = searched
    assert float(metrics["policy/change_first"]) > 0.012
    start = np.log(0.1)
    np.testing.assert_allclose(after.log_actor_lr, start * (1 - 3e-6) - 3e-4, rtol=1e-6)


def test_the_next_learning_rate_is_clamped_to_the_maximum():
    config = config_with(1e-7)  # no step is large enough: the rate would grow
    before = a2c.init(jax.random.key(0), SPEC, config)
    after, metrics = update(before, config)
    assert float(metrics["policy/change_first"]) < 0.008
    assert int(metrics["policy/search_steps"]) == 1
    assert float(after.log_actor_lr) == float(before.log_actor_lr)


def test_mutant_retries_advance_adam(searched):
    """With moments advanced at every retry the gradients' history is longer than one step."""
    before, after, metrics, _ = searched
    retries = int(metrics["policy/search_steps"]) - 1
    gradient = jax.tree.map(lambda m: m / 0.1, after.actor_adam.mu)  # mu = 0.1 g after one step
    moments = before.actor_adam
    for _ in range(1 + retries):
        _, moments = a2c.adam_direction(gradient, moments)
    assert int(moments.count) != int(after.actor_adam.count)
    first, mutant = jax.tree.leaves(after.actor_adam.mu)[0], jax.tree.leaves(moments.mu)[0]
    assert not np.allclose(first, mutant, rtol=0.1, atol=0.0)
