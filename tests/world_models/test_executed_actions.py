"""Every model sees the action that is executed: squashed raw actions teach and predict what their tanh does clipped."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import NORMALISER, SPEC, batch_for, config_of, contexts_for, policy

from polygrad_jax.config import GuidanceConfig, override
from polygrad_jax.diffusion.sampler import Given, Sampler, shown
from polygrad_jax.types import Policy
from polygrad_jax.world_models.model_table import make_world_model

MANY = 512  # so that some terminals, which are 0 or 1, turn on the action
RAW = jnp.asarray(np.random.default_rng(0).normal(0, 1.5, (MANY, 1)), jnp.float32)
MEAN = 1.7


def two_models(name):
    """The model under squashed and under clipped actions; with what else executes them: a classifier of terminals."""
    config = override(config_of(name), {"diffusion.terminals": "classified", "denoiser.shown_actions": "executed"})
    return [make_world_model(override(config, {"env.actions": how}), SPEC) for how in ("squashed", "clipped")]


def some_state(model):
    """A state of random numbers; to initialise one takes longer to compile than to use it."""
    rng = np.random.default_rng(0)

    def numbers(x):
        return np.abs(rng.normal(0, 0.3, x.shape)).astype(x.dtype) * rng.choice([-1, 1], x.shape).astype(x.dtype)

    return jax.tree.map(numbers, jax.eval_shape(model.init, jax.random.key(0)))


def assert_same(squashed, clipped):
    """Equal but for rounding."""
    for one, two in zip(jax.tree.leaves(squashed), jax.tree.leaves(clipped), strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["polygrad", "autoregressive", "distilled", "transformer", "ensemble"])
def test_a_model_learns_and_predicts_by_the_action_that_is_executed(name):
    """Mistakes: a place that still clips, tanh taken twice, tanh of a normalised action."""
    squashed, clipped = two_models(name)
    batch = batch_for(squashed, 0)
    batch = batch.replace(actions=3.0 * batch.actions)
    raw_obs = jnp.asarray(np.random.default_rng(1).normal(0, 1, (MANY, 4)), jnp.float32)

    @jax.jit
    def measured(state, batch, raw_obs, raw):
        """Losses before the gradient step, and predictions: of raw actions squashed, and of their tanh clipped."""
        args = NORMALISER, jax.random.key(1)
        models = ((squashed, lambda x: x), (clipped, jnp.tanh))
        losses = [model.update(state, batch.replace(actions=f(batch.actions)), *args)[1] for model, f in models]
        if squashed.step is None:
            return losses, [(), ()]
        return losses, [model.step(state, raw_obs, f(raw), *args) for model, f in models]

    losses, predictions = measured(some_state(squashed), batch, raw_obs, RAW)
    assert_same(*losses)
    assert_same(*predictions)


def test_the_transformer_imagines_by_the_action_that_is_executed():
    squashed, clipped = two_models("transformer")
    context = contexts_for(squashed, 0)
    context = context.replace(actions=3.0 * context.actions)

    def steady(mean):
        return Policy(jnp.float32(mean), lambda mean, raw_obs: (mean + 0 * raw_obs[..., :1], 0 * raw_obs[..., :1]))

    @jax.jit
    def imagined(state, context):
        args = NORMALISER, jax.random.key(1)
        as_executed = context.replace(actions=jnp.tanh(context.actions))
        one, _ = squashed.imagine(state, steady(MEAN), context, *args)
        two, _ = clipped.imagine(state, steady(np.tanh(MEAN)), as_executed, *args)
        return [(s.observations, s.rewards, s.terminals) for s in (one, two)]

    assert_same(*imagined(some_state(squashed), context))


def test_the_denoiser_is_shown_squashed_actions():
    given = Given(None, policy(0.0), NORMALISER, jnp.zeros((MANY, 4)), jnp.float32(0.0))
    for how, by_hand in (("clipped", jnp.clip(RAW, -1, 1)), ("squashed", jnp.tanh(RAW))):
        sampler = Sampler(None, GuidanceConfig(), "clean", "executed", how)
        seen = shown(sampler, given, RAW[:, None] / 0.6)
        np.testing.assert_allclose(seen, by_hand[:, None] / 0.6, rtol=1e-5)
