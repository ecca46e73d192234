"""A wrong shape is refused where it enters, by a message that names it: rank promotion would let some of them pass."""

import jax
import jax.numpy as jnp
import pytest
import tiny
from tiny import SPEC, A, B, H, O

from polygrad_jax.agents import a2c
from polygrad_jax.agents.gae import gae
from polygrad_jax.config import A2CConfig, GuidanceConfig
from polygrad_jax.data import replay as replays
from polygrad_jax.diffusion.denoising_loss import denoising_loss
from polygrad_jax.diffusion.sampler import Given, Sampler, sample, sample_given_actions
from polygrad_jax.diffusion.schedule import training_coefficients
from polygrad_jax.types import Prediction, Segment, Transitions
from polygrad_jax.world_models.rollout import Standing, roll_out, under

SCHEDULE = training_coefficients(tiny.config_of("polygrad").diffusion)
N = SCHEDULE.step.shape[0]


def silent(params, normed_traj, normed_actions, step):
    """A denoiser that says 0."""
    return jnp.zeros_like(normed_traj)


def assert_refused(function, shapes: dict, name: str, shape: tuple, label: str):
    """``function(**arrays)`` takes ``shapes``, and refuses ``shape`` for ``name`` when it is traced."""
    jax.eval_shape(function, **{n: jax.ShapeDtypeStruct(s, jnp.float32) for n, s in shapes.items()})
    wrong = {n: jax.ShapeDtypeStruct(s, jnp.float32) for n, s in (shapes | {name: shape}).items()}
    with pytest.raises(AssertionError, match=rf"(?s)\[Chex\].*\[.*{label}.*\]"):
        jax.eval_shape(function, **wrong)


@pytest.mark.parametrize(
    ("name", "shape"), [("rewards", (H,)), ("values", (B, H - 1)), ("terminals", (B, H, 1)), ("terminals", (1, H))]
)
def test_gae(name, shape):
    def function(rewards, values, terminals):
        return gae(rewards, values, terminals, 0.9, 0.9)

    label = "values, terminals" if name != "rewards" else "rewards"
    assert_refused(function, {"rewards": (B, H), "values": (B, H), "terminals": (B, H)}, name, shape, label)


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("observations", (B, H, O + 1)),
        ("observations", (B, O)),
        ("actions", (B, H - 1, A)),
        ("rewards", (B, H, 1)),
        ("terminals", (B, H - 1)),
    ],
)
def test_a2c_update(name, shape):
    config = A2CConfig(hidden_size=4)
    state = a2c.init(jax.random.key(0), SPEC, config)

    def function(**arrays):
        return a2c.update(state, Segment(**arrays), config, SPEC)

    shapes = {"observations": (B, H, O), "actions": (B, H, A), "rewards": (B, H), "terminals": (B, H)}
    assert_refused(function, shapes, name, shape, name)


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("traj", (B, O + 2)),
        ("actions", (B, H - 1, A)),
        ("actions", (B, A)),
        ("steps", (1,)),
        ("noise", (1, H, O + 2)),
        ("noise", (B, H, O)),
    ],
)
def test_denoising_loss(name, shape):
    def function(traj, actions, steps, noise):
        return denoising_loss(silent, {}, traj, actions, steps.astype(jnp.int32), noise, SCHEDULE, "clean")

    shapes = {"traj": (B, H, O + 2), "actions": (B, H, A), "steps": (B,), "noise": (B, H, O + 2)}
    assert_refused(function, shapes, name, shape, name)


def given(initial) -> Given:
    return Given({}, tiny.policy(0.5), tiny.NORMALISER, initial, delta=jnp.float32(0.01))


@pytest.mark.parametrize(("name", "shape"), [("initial", (O,)), ("residual", (B, H)), ("residual", (1, H, A))])
def test_sample(name, shape):
    sampler = Sampler(silent, GuidanceConfig(rule="correlated"), "clean")

    def function(initial, residual):
        return sample(sampler, given(initial), SCHEDULE, jax.random.key(0), H, A, residual=residual)

    assert_refused(function, {"initial": (B, O), "residual": (B, H, A)}, name, shape, name)


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("initial", (O,)),
        ("actions", (B, A)),
        ("actions", (1, H, A)),
        ("noise", (N, B, H, O + 2)),
        ("noise", (N + 1, B, H, O)),
    ],
)
def test_sample_given_actions(name, shape):
    sampler = Sampler(silent, GuidanceConfig(), "clean")

    def function(initial, actions, noise):
        return sample_given_actions(sampler, given(initial), SCHEDULE, actions, noise)

    shapes = {"initial": (B, O), "actions": (B, H, A), "noise": (N + 1, B, H, O + 2)}
    assert_refused(function, shapes, name, shape, name)


@pytest.mark.parametrize(
    ("name", "shape", "label"),
    [
        ("start", (O,), "start.observations"),
        ("following", (B, O + 1), "predicted observations"),
        ("rewards", (B, 1), "predicted rewards"),
        ("terminals", (1,), "predicted rewards, terminals"),
        ("metric", (), "metrics"),
        ("std", (A,), "mean, std of the policy"),
    ],
)
def test_roll_out(name, shape, label):
    """What a model of someone else's may return of another shape."""

    def function(start, following, rewards, terminals, metric, std):
        def predict(memory, raw_obs, actions, key):
            return memory, Prediction(following, rewards, terminals), {"imagination/metric": metric}

        def choose(memory, raw_obs):
            return tiny.policy(0.5)(raw_obs)[0], std

        keys = jax.random.split(jax.random.key(0), H)
        return roll_out(predict, Standing(start, jnp.zeros(B), ()), choose, keys)

    shapes = {"start": (B, O), "following": (B, O), "rewards": (B,), "terminals": (B,), "metric": (B,), "std": (B, A)}
    assert_refused(function, shapes, name, shape, label)


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("observations", (6, O + 1)),
        ("observations", (5, O)),
        ("actions", (6,)),
        ("rewards", (6, 1)),
        ("terminals", (6, 1)),
        ("valid", (5,)),
    ],
)
def test_replay_add(name, shape):
    def function(valid, **arrays):
        return replays.add(replays.init(SPEC, 16, H), Transitions(valid=valid > 0, **arrays), H)

    shapes = {"observations": (6, O), "actions": (6, A), "valid": (6,)}
    shapes |= {name: (6,) for name in ("rewards", "terminals", "truncations")}
    assert_refused(function, shapes, name, shape, name)


def test_a_policy_of_raw_observations_is_asked_about_them():
    mean, std = under(tiny.policy(0.5))(None, jnp.zeros((B, O)))
    assert mean.shape == std.shape == (B, A)
