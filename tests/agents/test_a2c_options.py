"""A2C's options against oracles that share no code with them: NumPy, closed forms, and A2C without the option."""

from __future__ import annotations

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from polygrad_jax.agents import a2c
from polygrad_jax.config import A2CConfig, EnvSpec
from polygrad_jax.types import MeanStd, Normaliser, Segment

SPEC = EnvSpec(observation_size=3, action_size=2)
B, H = 8, 4
PLAIN = A2CConfig(hidden_size=8, trajectories=B, max_actor_lr=1e-3, actor_ema=0.9, search=False)
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


def make_update(config: A2CConfig):
    def update(state, segment, key, progress):
        return a2c.update(state, segment, config, SPEC, progress=progress, normaliser=NORMALISER)

    return jax.jit(update)


def updated(config: A2CConfig, state: a2c.A2CState, segment: Segment, progress: float = 0.0, seed: int = 0):
    return make_update(config)(state, segment, jax.random.key(seed), jnp.float32(progress))


def fresh(config: A2CConfig) -> a2c.A2CState:
    return jax.jit(lambda key: a2c.init(key, SPEC, config))(jax.random.key(0))


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
    apply, plain = a2c.make_policy_apply(SPEC, STANDARDISED), a2c.make_policy_apply(SPEC, PLAIN)
    value, plain_value = a2c.make_value_apply(STANDARDISED), a2c.make_value_apply(PLAIN)
    for name in NETWORKS:
        params = getattr(after_one_update, name)
        without = {x: y for x, y in params.items() if x != "observations"}
        ours, theirs = (apply, plain) if "actor" in name else (value, plain_value)
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
