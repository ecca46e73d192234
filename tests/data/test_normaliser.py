"""The statistics against float64 NumPy, and the floor of the standard deviation against hand-worked numbers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from polygrad_jax.config import EnvSpec
from polygrad_jax.data import normaliser
from polygrad_jax.envs import tasks
from polygrad_jax.types import MeanStd

MILLION = 1_000_000


def empty(size: int) -> normaliser.Moments:
    return normaliser.init(EnvSpec(size, 1)).observations


def from_rows(rows: jax.Array) -> normaliser.Moments:
    return jax.lax.scan(lambda m, row: (normaliser.add_row(m, row), None), empty(rows.shape[1]), rows)[0]


def statistics(moments: normaliser.Moments) -> MeanStd:
    spec = EnvSpec(moments.mean.shape[0], 1)
    return normaliser.to_normaliser(normaliser.init(spec).replace(observations=moments)).observations


def hard_rows(count: int) -> np.ndarray:
    """Channels that a naive float32 sum loses: far from zero, drifting, rare, and plain."""
    rng = np.random.default_rng(0)
    far = 1000.0 + rng.normal(size=count)
    drifting = np.linspace(-50.0, 50.0, count) + rng.normal(size=count)
    rare = (rng.uniform(size=count) < 1e-3).astype(np.float64)
    plain = rng.normal(size=count)
    return np.stack([far, drifting, rare, plain], axis=1).astype(np.float32)


@pytest.mark.parametrize(("how", "by_hand"), [("clipped", [-1, -0.5, 0, 1]), ("squashed", np.tanh([-40, -0.5, 0, 3]))])
def test_device_and_host_execute_actions_alike(how, by_hand):
    """Clipped: -40, -0.5, 0, 3 are -1, -0.5, 0, 1. A raw action that is executed as one given is executed so."""
    raw = np.array([-40, -0.5, 0, 3], np.float32)
    for execute in (normaliser.executed, tasks.executed):
        np.testing.assert_allclose(execute(raw, how), by_hand, rtol=1e-6)
        assert execute(raw, how).dtype == np.float32
    many = np.linspace(-9, 9, 10_001, dtype=np.float32)
    np.testing.assert_allclose(normaliser.executed(many, how), tasks.executed(many, how), rtol=0, atol=3e-7)
    inside = np.linspace(-0.999, 0.999, 101, dtype=np.float32)
    np.testing.assert_allclose(tasks.executed(tasks.raw_of(inside, how), how), inside, rtol=1e-5, atol=1e-7)
    bounds = tasks.executed(tasks.raw_of(np.array([-1, 1]), how), how)
    np.testing.assert_allclose(bounds, [-1, 1], atol=2e-3)


@pytest.mark.parametrize("episode_length", [None, 10, 1000])
def test_a_million_rows_lose_nothing(episode_length):
    rows = hard_rows(MILLION)
    if episode_length is None:
        moments = jax.jit(from_rows)(rows)
    else:
        episodes = rows.reshape(-1, episode_length, rows.shape[1])

        def merge_episode(total, episode):
            return normaliser.merge_moments(total, from_rows(episode)), None

        moments = jax.jit(lambda e: jax.lax.scan(merge_episode, empty(4), e)[0])(episodes)
    exact = rows.astype(np.float64)
    assert int(moments.count) == MILLION
    got = statistics(moments)
    # The mean is known to one float32 rounding of the channel's size.
    size = np.abs(exact.mean(0)) + exact.std(0)
    np.testing.assert_array_less(np.abs(np.asarray(got.mean, np.float64) - exact.mean(0)), 1.2e-7 * size)
    # The floor is 1 % of the root mean square: it rules the far channel (std 1 of 1000), so compare m2 itself.
    np.testing.assert_allclose(np.sqrt(moments.m2 / MILLION), exact.std(0), rtol=2e-6)


def test_one_by_one_equals_merged():
    rows = hard_rows(1000)
    together = from_rows(rows)
    merged = normaliser.merge_moments(from_rows(rows[:1]), from_rows(rows[1:]))
    merged = normaliser.merge_moments(merged, empty(4))
    size = np.abs(rows.mean(0)) + rows.std(0)
    np.testing.assert_array_less(np.abs(np.asarray(merged.mean) - np.asarray(together.mean)), 1.2e-7 * size)
    np.testing.assert_allclose(merged.m2, together.m2, rtol=1e-6)
    assert int(merged.count) == 1000


def test_count_does_not_saturate():
    # 2**24 + 1 is the first integer that a float32 cannot hold.
    huge = empty(1).replace(count=jnp.asarray(2**24, jnp.int32))
    assert int(normaliser.add_row(huge, jnp.zeros(1)).count) == 2**24 + 1


def test_by_hand():
    # Rows 1, 2, 6: mean 3, squared deviations 4 + 1 + 9 = 14, population variance 14 / 3.
    moments = from_rows(jnp.asarray([[1.0], [2.0], [6.0]]))
    np.testing.assert_allclose(moments.mean, [3.0], rtol=1e-6)
    np.testing.assert_allclose(moments.m2, [14.0], rtol=1e-6)
    np.testing.assert_allclose(statistics(moments).std, [np.sqrt(14 / 3)], rtol=1e-6)


def test_constant_channels():
    # Channel 0 is always 1: floor 1e-6 + 0.01 * 1, so the padding's 0 becomes -1 / 0.010001 = -99.99, not -1e6.
    # Channel 1 is always 0: 0 stays 0.
    got = statistics(from_rows(jnp.tile(jnp.asarray([[1.0, 0.0]]), (50, 1))))
    np.testing.assert_allclose(got.std, [0.010001, 1e-6], rtol=1e-5)
    normed_padding = normaliser.normalise(jnp.zeros((3, 2)), got)
    np.testing.assert_allclose(normed_padding, np.tile([[-99.990001, 0.0]], (3, 1)), rtol=1e-5)
    assert np.all(np.asarray(normaliser.normalise(jnp.asarray([1.0, 0.0]), got)) == 0)


def test_the_floor_leaves_ordinary_channels_alone():
    # 1000 rows, one of them terminal: std = sqrt(p (1 - p)) = 0.0316, root mean square 0.0316.
    rows = jnp.zeros((1000, 1)).at[-1].set(1.0)
    np.testing.assert_allclose(statistics(from_rows(rows)).std, [np.sqrt(1e-3 * 0.999)], rtol=1e-5)


def test_round_trip_and_identity_before_data():
    rng = np.random.default_rng(1)
    x = rng.normal(3.0, 5.0, size=(4, 7, 3)).astype(np.float32)
    got = statistics(from_rows(x.reshape(-1, 3)))
    normed = normaliser.normalise(x, got)
    np.testing.assert_allclose(np.asarray(normed).reshape(-1, 3).mean(0), np.zeros(3), atol=1e-5)
    np.testing.assert_allclose(np.asarray(normed).reshape(-1, 3).std(0), np.ones(3), rtol=1e-5)
    np.testing.assert_allclose(normaliser.unnormalise(normed, got), x, atol=1e-5)
    np.testing.assert_array_equal(normaliser.normalise(x, statistics(empty(3))), x)


def test_wrong_last_axis_is_refused():
    with pytest.raises(ValueError, match="last axis must be 3"):
        normaliser.normalise(jnp.zeros((3, 1)), statistics(empty(3)))
