"""What is measured of z = (a - mu(s)) / sigma, on draws whose answer is known."""

import guidance_error
import jax.numpy as jnp
import numpy as np

B, T, A = 4000, 6, 2


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
    policy = guidance_error.with_std(lambda actor, obs: (actor * obs[..., :1], jnp.ones_like(obs[..., :1])))
    mean, std = policy((jnp.float32(2.0), jnp.float32(0.1)), jnp.ones((3, 4, 2)))
    np.testing.assert_array_equal(mean, np.full((3, 4, 1), 2.0))
    np.testing.assert_array_equal(std, np.full((3, 4, 1), np.float32(0.1)))
