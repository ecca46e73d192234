"""The subsets of diffusion steps that only experiments sample: which steps, and their coefficients."""

import numpy as np
import pytest

from experiments.harness.schedules import Spacing, noise_std, schedule_of, spaced_steps
from polygrad_jax.config import DiffusionConfig
from polygrad_jax.diffusion.schedule import sampling_coefficients, strided_steps


def test_spaced_steps_by_hand():
    """std of step t is sin(pi / 2 (t + 1) / 128) for tau 1: at least 0.08 from t = 6 on (0.0858; t = 5 has 0.0736)."""
    steps = spaced_steps(128, 16, 1.0, 0.1, 0.08)
    np.testing.assert_array_equal(steps, [6, 8, 11, 13, 15, 18, 20, 23, 26, 29, 32, 36, 41, 46, 54, 127])
    places = 2 / np.pi * np.arccos(np.cos(np.pi / 2 * (steps + 1) / 128) ** 10)  # 0 to 1, where tau is 0.1
    np.testing.assert_allclose(places, np.linspace(places[0], 1.0, 16), atol=0.5 * np.diff(places).max())


@pytest.mark.parametrize("tau", [0.1, 1.0])
@pytest.mark.parametrize("sampling_tau", [0.01, 0.1, 1.0, 10.0, 1e16])
@pytest.mark.parametrize(("sampling_steps", "floor"), [(1, 0.0), (2, 0.2), (16, 0.0), (16, 0.08), (100, 0.08)])
def test_spaced_steps_ascend_from_the_floor_to_the_first(tau, sampling_tau, sampling_steps, floor):
    steps = spaced_steps(128, sampling_steps, tau, sampling_tau, floor)
    assert len(steps) == sampling_steps and (np.diff(steps) > 0).all() and steps[-1] == 127
    assert noise_std(128, tau)[steps].min() >= floor
    diffusion = DiffusionConfig(num_steps=128, sampling_steps=sampling_steps, tau=tau)
    c = schedule_of(diffusion, Spacing(sampling_tau, floor))
    np.testing.assert_array_equal(c.step, steps)
    assert c.posterior_clean[0] == 1.0 and c.posterior_noisy[0] == 0.0  # the run ends with the predicted clean one


def test_spaced_as_the_schedule_itself_is_strided():
    ours, strided = spaced_steps(128, 16, 1.0, 1.0, 0.0), strided_steps(128, 16)
    assert np.abs(ours - strided).max() <= 1


def test_without_spacing_the_steps_are_those_of_the_configuration():
    diffusion = DiffusionConfig(num_steps=128, sampling_steps=16, tau=1.0)
    ours, configured = schedule_of(diffusion, Spacing(0.0, 0.0)), sampling_coefficients(diffusion)
    for name in ("step", "posterior_clean", "posterior_noisy", "posterior_std", "action_noise_std"):
        np.testing.assert_array_equal(getattr(ours, name), getattr(configured, name))


def test_a_floor_that_leaves_too_few_steps_is_refused():
    for tau, sampling_steps in ((0.01, 16), (0.1, 16), (1.0, 16), (1.0, 40)):
        most = noise_std(128, tau)[-sampling_steps]
        assert len(spaced_steps(128, sampling_steps, tau, 0.1, most - 1e-4)) == sampling_steps
        with pytest.raises(ValueError, match="allowed: at most"):
            spaced_steps(128, sampling_steps, tau, 0.1, most + 1e-4)
