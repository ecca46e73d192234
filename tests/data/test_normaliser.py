"""The statistics against float64 NumPy, and the floor of the standard deviation against hand-worked numbers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from polygrad_jax.config import LARGEST_STORED, EnvSpec
from polygrad_jax.data import normaliser
from polygrad_jax.envs import tasks
from polygrad_jax.types import MeanStd

MILLION, EPS = 1_000_000, 2.0**-23


def empty(size: int) -> normaliser.Moments:
    return normaliser.init(EnvSpec(size, 1)).observations


def from_rows(rows: jax.Array) -> normaliser.Moments:
    return jax.lax.scan(lambda m, row: (normaliser.add_row(m, row), None), empty(rows.shape[1]), rows)[0]


def statistics(moments: normaliser.Moments, group: str = "observations") -> MeanStd:
    empty_ones = normaliser.init(EnvSpec(moments.mean.shape[0], 1))
    return getattr(normaliser.to_normaliser(empty_ones.replace(**{group: moments})), group)


def hard_rows(count: int) -> np.ndarray:
    """Channels that a naive float32 sum loses: far from zero, very far, drifting, rare, and plain."""
    rng = np.random.default_rng(0)
    far = 1000.0 + rng.normal(size=count)
    very_far = 1e4 + 0.1 * rng.normal(size=count)
    drifting = np.linspace(-50.0, 50.0, count) + rng.normal(size=count)
    rare = (rng.uniform(size=count) < 1e-3).astype(np.float64)
    plain = rng.normal(size=count)
    return np.stack([far, very_far, drifting, rare, plain], axis=1).astype(np.float32)


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

        moments = jax.jit(lambda e: jax.lax.scan(merge_episode, empty(5), e)[0])(episodes)
    exact = rows.astype(np.float64)
    assert int(moments.count) == MILLION
    got = statistics(moments)
    # The mean is known to one float32 rounding of the channel's size.
    size = np.abs(exact.mean(0)) + exact.std(0)
    np.testing.assert_array_less(np.abs(np.asarray(got.mean, np.float64) - exact.mean(0)), 1.2e-7 * size)
    np.testing.assert_allclose(got.std, exact.std(0), rtol=2e-6)


def test_one_by_one_equals_merged():
    rows = hard_rows(1000)
    together = from_rows(rows)
    merged = normaliser.merge_moments(from_rows(rows[:1]), from_rows(rows[1:]))
    merged = normaliser.merge_moments(merged, empty(5))
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


OFFSETS, SCALES = (0.0, 1.0, -300.0, 3e3, 1e4), (1e-7, 1e-6, 1e-3, 1.0, 1e3, 1e6)


@pytest.mark.parametrize("group", ["observations", "rewards"])
def test_no_offset_and_no_scale_changes_what_is_normalised(group):
    """One series in every unit, a channel each: the same numbers up to what float32 keeps of them, there and back."""
    rng = np.random.default_rng(0)
    series = np.cumsum(rng.normal(size=500)) * 0.1
    series = (series - series.mean()) / series.std()
    units = [(offset, scale) for offset in OFFSETS for scale in SCALES]
    raw = np.stack([scale * (series + offset) for offset, scale in units], axis=1).astype(np.float32)
    got = statistics(from_rows(raw), group)
    normed = normaliser.normalise(raw, got)
    for k, (offset, scale) in enumerate(units):
        resolution = 2 * EPS * (abs(offset) + 4.0)  # of raw numbers and of their mean, in units of the std
        np.testing.assert_allclose(normed[:, k], series, rtol=1e-5, atol=resolution, err_msg=f"{offset} {scale}")
        back = normaliser.unnormalise(normed, got)[:, k]
        np.testing.assert_allclose(back, raw[:, k], rtol=1e-5, atol=resolution * scale)


@pytest.mark.parametrize("constant", [0.0, 1.0, -300.0, 3e7, 1e-7])
@pytest.mark.parametrize("group", ["observations", "rewards"])
def test_what_rounding_leaves_of_a_constant_stays_small(group, constant):
    """A constant is 0 normalised; noise of one unit in the last place is less than a fifth of a standard deviation."""
    clean = np.full(200, constant, np.float32)
    noisy = np.where(np.arange(200) % 2 > 0, clean, np.nextafter(clean, np.float32(np.inf), dtype=np.float32))
    noisy = clean if constant == 0 else noisy  # next to 0 is a number that is flushed to 0
    raw = np.stack([clean, noisy], axis=1)
    got = statistics(from_rows(raw), group)
    normed = np.asarray(normaliser.normalise(raw, got))
    assert np.all(normed[:, 0] == 0) and np.abs(normed[:, 1]).max() < 0.2
    np.testing.assert_allclose(normaliser.unnormalise(normed, got), raw, rtol=EPS)


@pytest.mark.parametrize("group", ["actions", "terminals"])
def test_units_that_are_known_keep_a_floor_of_a_hundredth(group):
    """Always 1: the floor is 1e-6 + 0.01 * 1, so another action, 0, is -1 / 0.010001 = -99.99, not -1e6."""
    got = statistics(from_rows(jnp.tile(jnp.asarray([[1.0, 0.0]]), (50, 1))), group)
    np.testing.assert_allclose(got.std, [0.010001, 1e-6], rtol=1e-5)
    np.testing.assert_allclose(normaliser.normalise(jnp.zeros((3, 2)), got), [[-99.990001, 0.0]] * 3, rtol=1e-5)


def test_statistics_hold_the_largest_numbers_that_are_stored():
    """300 million rows of the largest size, by doubling; beyond it sums of squares would be infinite in float32."""
    moments = from_rows(jnp.asarray([[LARGEST_STORED], [-LARGEST_STORED]]))
    for _ in range(27):
        moments = normaliser.merge_moments(moments, moments)
    assert int(moments.count) == 2**28
    np.testing.assert_allclose(statistics(moments).std, [LARGEST_STORED], rtol=1e-5)


def test_what_was_divided_by_more_than_its_std_in_version_2_is_named():
    """300 K and 5 K about it are ordinary, 1 K is not; a constant is 0 whatever divides it."""
    mean, std = jnp.array([300.0, 300.0, 0.0, 7.0]), jnp.array([5.0, 1.0, 1e-7, 0.0])
    channels = empty(4).replace(count=jnp.int32(100), mean=mean, m2=100 * jnp.square(std))
    reward = empty(1).replace(count=jnp.int32(100), mean=mean[1:2], m2=jnp.array([100.0]))
    moments = normaliser.init(EnvSpec(4, 1)).replace(observations=channels, rewards=reward)
    assert normaliser.floored_in_version_2(moments) == ["observations[1]", "observations[2]", "rewards[0]"]


def test_a_channel_that_never_moved_does_not_overwhelm_a_policy():
    got = statistics(from_rows(jnp.tile(jnp.asarray([[1.0, 0.0, 5.0]]), (50, 1))))
    seen = normaliser.normalise_for_policy(jnp.asarray([[1.5, -1e-3, 5.0]]), got)
    assert seen.tolist() == [[100.0, -100.0, 0.0]]
    x = jnp.asarray([[-99.0, 3.0]])
    ones = MeanStd(jnp.zeros(2), jnp.ones(2))
    np.testing.assert_array_equal(normaliser.normalise_for_policy(x, ones), normaliser.normalise(x, ones))


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
