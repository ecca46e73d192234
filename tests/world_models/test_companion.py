"""A companion changes nothing of what imagines, and is what steps."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from tiny import A, B, O

from polygrad_jax.world_models.companion import CHUNK, with_companion
from polygrad_jax.world_models.ensemble import make_ensemble
from polygrad_jax.world_models.model_table import WORLD_MODELS, make_world_model, make_world_model_for_agent


@pytest.fixture(scope="module", params=["polygrad", "transformer"])
def both(request):
    config = tiny.config_of(request.param)
    alone, companion = tiny.model_of(config), make_ensemble(config, tiny.SPEC, CHUNK)
    return alone, companion, with_companion(alone, companion)


def test_what_imagines_is_what_it_would_be_alone(both):
    alone, _, model = both
    key, batch = jax.random.key(3), tiny.batch_for(alone, 0)
    (init_key, _), (update_key, _) = jax.random.split(jax.random.key(0)), jax.random.split(key)
    state, expected = jax.jit(model.init)(jax.random.key(0)), jax.jit(alone.init)(init_key)
    assert tiny.all_equal(state.imagining, expected)
    state, metrics = jax.jit(model.update)(state, batch, tiny.NORMALISER, key)
    expected, of_alone = jax.jit(alone.update)(expected, batch, tiny.NORMALISER, update_key)
    for ours, theirs in zip(jax.tree.leaves(state.imagining), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)
    assert of_alone.keys() < metrics.keys()
    assert {name.split("/")[0] for name in metrics.keys() - of_alone.keys()} == {"companion"}
    given = (tiny.policy(1.0), tiny.contexts_for(alone, 0), tiny.NORMALISER, key)
    segment, aux = jax.jit(model.imagine)(state, *given)
    assert tiny.all_equal((segment, aux), jax.jit(alone.imagine)(state.imagining, *given))
    assert tiny.all_equal(model.adapt(state, aux).imagining, alone.adapt(state.imagining, aux))
    assert tiny.all_equal(model.adapt(state, aux).companion, state.companion)


def test_the_companion_learns_from_the_real_steps_of_each_window_and_steps(both):
    alone, companion, model = both
    key, batch = jax.random.key(3), tiny.batch_for(alone, 0)
    before = jax.jit(model.init)(jax.random.key(0))
    after, _ = jax.jit(model.update)(before, batch, tiny.NORMALISER, key)
    window = jax.tree.map(lambda x: x[:, alone.history :], batch)
    expected, _ = jax.jit(companion.update)(
        before.companion, window, tiny.NORMALISER, jax.random.split(key)[1]
    )
    for ours, theirs in zip(jax.tree.leaves(after.companion), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)
    raw_obs, actions = jnp.ones((B, O)), jnp.ones((B, A))
    said = model.step(after, raw_obs, actions, tiny.NORMALISER, key)
    assert tiny.all_equal(said, companion.step(after.companion, raw_obs, actions, tiny.NORMALISER, key))


def test_models_without_a_step_of_their_own_have_a_companion_where_the_agent_needs_one():
    for name in WORLD_MODELS:
        ours = make_world_model_for_agent(tiny.config_of(name, "value_gradient"), tiny.SPEC)
        assert ours.step is not None, name
        assert make_world_model_for_agent(tiny.config_of(name), tiny.SPEC)._fields == ours._fields
    assert make_world_model_for_agent(tiny.config_of("polygrad"), tiny.SPEC).step is None
    assert make_world_model(tiny.config_of("polygrad", "value_gradient"), tiny.SPEC).step is None
