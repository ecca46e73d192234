"""Training on guesses: which states are guessed, from what, and that the target stays the trajectory."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from polygrad_jax.config import DiffusionConfig
from polygrad_jax.diffusion.denoising_loss import (
    at_steps,
    denoising_loss,
    draw_steps_and_noise,
    guesses,
    set_initial_state,
    unsettled,
)
from polygrad_jax.diffusion.schedule import add_noise, training_coefficients
from tests import tiny

B, H, O, A = 256, 6, 3, 2  # noqa: E741
CONFIG = DiffusionConfig(num_steps=16, sampling_steps=4, unsettled_share=1.0)
SCHEDULE = training_coefficients(CONFIG)
TRAJ, ACTIONS = jax.random.normal(jax.random.key(0), (B, H, O + 2)), jax.random.normal(jax.random.key(1), (B, H, A))
DRAWS = draw_steps_and_noise(jax.random.key(2), TRAJ.shape, 16)
GUESS = 5.0


def says(params, noisy, actions, steps):
    """A denoiser that says the same everywhere."""
    return jnp.full_like(noisy, params)


def noisy_of(draws, traj=TRAJ):
    return add_noise(traj, draws.noise, at_steps(SCHEDULE, draws.steps))


def draws_of(denoise=says, params=GUESS, config=CONFIG, context_length=1):
    asked = (TRAJ, ACTIONS, DRAWS.steps, jax.random.key(3), SCHEDULE, config, context_length)
    return unsettled(DRAWS, TRAJ, guesses(denoise, params, *asked).traj, SCHEDULE)


@pytest.mark.parametrize("context_length", [1, 3])
def test_later_states_are_the_guess_with_the_same_noise_and_earlier_ones_are_not(context_length):
    """From a state on that is drawn evenly, of those that may follow what is known."""
    draws = draws_of(context_length=context_length)
    np.testing.assert_array_equal(draws.steps, DRAWS.steps)
    found, settled = noisy_of(draws), noisy_of(DRAWS)
    guess = set_initial_state(jnp.full_like(TRAJ, GUESS), TRAJ[:, :context_length, :-2])
    guessed = noisy_of(DRAWS, guess)
    late = np.isclose(found, guessed, atol=1e-4).all(-1)
    early = np.isclose(found, settled, atol=1e-4).all(-1)
    assert (late | early).all() and (late[:, 1:] >= late[:, :-1]).all() and late[:, -1].all()
    first = H - late.sum(1)
    assert set(first) == set(range(context_length - 1, H))
    # what is known stays: the reward and the end of the last known state are guessed, its observations are not
    np.testing.assert_allclose(found[:, :context_length, :-2], settled[:, :context_length, :-2], atol=1e-5)


def test_the_share_is_that_of_the_trajectories_and_none_is_a_share_of_0():
    half = (draws_of(config=replace(CONFIG, unsettled_share=0.5)).noise != DRAWS.noise).any((1, 2))
    assert 0.4 < half.mean() < 0.6
    np.testing.assert_array_equal(draws_of(config=replace(CONFIG, unsettled_share=0.0)).noise, DRAWS.noise)


def test_the_guess_comes_from_a_noisier_step_and_another_trajectorys_actions():
    """Earlier actions are its own: nothing before a state can tell that a later one is guessed."""
    seen = {}

    def looks(params, noisy, actions, steps):
        seen.update(actions=actions / at_steps(SCHEDULE, steps).sqrt_alpha_bar, steps=steps)
        return jnp.full_like(noisy, params)

    draws = draws_of(looks)
    late = (draws.noise != DRAWS.noise).any(-1)
    assert (seen["steps"] >= DRAWS.steps).all() and (seen["steps"] > DRAWS.steps).any()
    own = np.isclose(seen["actions"], ACTIONS, atol=1e-2).all(-1)
    others = np.isclose(seen["actions"], jnp.roll(ACTIONS, 1, axis=0), atol=1e-2).all(-1)
    known = np.asarray(seen["steps"])[:, None] < 15  # at the noisiest step nothing of the actions is left
    assert (others | ~late | ~known).all() and (own | late | ~known).all()


@pytest.mark.parametrize("prediction", ["clean", "change", "noise"])
def test_the_target_is_the_trajectory(prediction):
    """A denoiser that knows it has no loss; one that says the guess has."""
    config = replace(CONFIG, prediction=prediction)
    draws = draws_of(config=config)

    def knows(traj, noisy, actions, steps):
        if prediction == "noise":
            c = at_steps(SCHEDULE, steps)
            return (noisy - c.sqrt_alpha_bar * traj) / c.sqrt_one_minus_alpha_bar
        return traj.at[..., :-2].add(-traj[:, :1, :-2]) if prediction == "change" else traj

    def loss(denoise, params):
        return denoising_loss(denoise, params, TRAJ, ACTIONS, *draws, SCHEDULE, prediction)[0]

    # at the least noisy step the noise that leads to the guess is large, and what float32 loses with it
    assert loss(knows, TRAJ) < 1e-5 and loss(says, GUESS) > 1.0


def test_no_gradient_passes_through_the_guess():
    gradient = jax.grad(lambda params: draws_of(params=params).noise.sum())(GUESS)
    assert gradient == 0.0


@pytest.mark.parametrize("context_length", [1, 2])
def test_polygrad_learns_from_guesses_when_asked_to(context_length):
    def after(share):
        fields = {"diffusion.unsettled_share": share, "denoiser.context_length": context_length}
        model = tiny.model_of(tiny.config_of("polygrad", fields=fields))
        state = jax.jit(model.init)(jax.random.key(0))
        for k in range(3):
            state, metrics = jax.jit(model.update)(state, tiny.batch_for(model, k), tiny.NORMALISER, jax.random.key(k))
        assert tiny.all_finite(state) and tiny.all_finite(metrics)
        return state.params

    assert not tiny.all_equal(after(0.0), after(1.0))


def test_models_of_single_steps_have_nothing_to_settle():
    for name in ("autoregressive", "distilled"):
        found = []
        for share in (0.0, 1.0):
            model = tiny.model_of(tiny.config_of(name, fields={"diffusion.unsettled_share": share}))
            state = jax.jit(model.init)(jax.random.key(0))
            found.append(jax.jit(model.update)(state, tiny.batch_for(model, 0), tiny.NORMALISER, jax.random.key(0))[0])
        assert tiny.all_equal(*found)
