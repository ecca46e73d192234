"""One-step diffusion in few network calls: what is learnt from the teacher, and what one call says of chance."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from polygrad_jax.config import (
    Config,
    ConfigError,
    DenoiserConfig,
    DiffusionConfig,
    DistilledConfig,
    EnvSpec,
    ModelTrainingConfig,
    validate,
)
from polygrad_jax.diffusion.schedule import coefficients, strided_steps
from polygrad_jax.types import MeanStd, Normaliser, Segment
from polygrad_jax.world_models.autoregressive import Condition, make_autoregressive
from polygrad_jax.world_models.distilled import Distilling, distillation_targets, leap, levels_of_calls, make_distilled

O, A = 2, 1  # noqa: E741  (the letters of the docstrings)
SPEC = EnvSpec(O, A)
CONFIG = Config(
    world_model="distilled",
    diffusion=DiffusionConfig(num_steps=128, sampling_steps=128, prediction="change"),
    denoiser=DenoiserConfig(width=48, num_blocks=2, learning_rate=2e-3),
    model_training=ModelTrainingConfig(batch_size=256),
)
NORMALISER = Normaliser(*(MeanStd(jnp.zeros(n), jnp.full(n, std)) for n, std in ((O, 1), (A, 0.6), (1, 1), (1, 1))))
TRAJ = (64, 2, O + 2)


# --- the targets, exactly --------------------------------------------------------------------------------------------

MEAN, STD = 0.3, 0.4
"""Of a Gaussian over every channel, of which the optimal denoiser is known."""


def exact(levels: int):
    """Return ``(what tells of a network, the student's slope [levels])``: a teacher that is optimal, and the end of its
    reverse diffusion in closed form."""
    steps = strided_steps(128, levels)
    path = coefficients(128, steps, 1.0, eta=0.0)
    scale, noise = np.float64(path.sqrt_alpha_bar), np.float64(path.sqrt_one_minus_alpha_bar)
    gain = scale * STD**2 / ((scale * STD) ** 2 + noise**2)
    shrink = np.float64(path.posterior_clean) * gain + np.float64(path.posterior_noisy)
    slope = np.cumprod(shrink)
    shown = {"teacher": [], "student": []}

    def denoise(who, noisy, actions, step):
        level = np.searchsorted(steps, np.asarray(step))
        shown[who].append(np.asarray(actions))
        deviation = noisy - (scale[level] * MEAN)[:, None, None]
        slopes = (gain if who == "teacher" else slope)[level][:, None, None]
        return jnp.asarray(MEAN + slopes * deviation, jnp.float32)

    return Distilling(denoise, path, "clean"), shown


def asked(levels: int):
    rng = np.random.default_rng(0)
    noisy = jnp.asarray(rng.standard_normal(TRAJ), jnp.float32)
    given = Condition(jnp.full((TRAJ[0], O), MEAN), jnp.ones((TRAJ[0], 2, A)))
    return noisy, given, jnp.arange(TRAJ[0], dtype=jnp.int32) % levels


@pytest.mark.parametrize("levels", [1, 4, 16])
def test_where_the_student_is_the_end_of_the_teachers_diffusion_it_has_nothing_to_learn(levels):
    """A fixed point to rounding; the teacher sees actions as it was trained on them, the student as they are."""
    d, shown = exact(levels)
    noisy, given, level = asked(levels)
    targets = distillation_targets(d, "teacher", "student", noisy, given, level)
    said = leap_at(d, noisy, given, level)
    np.testing.assert_allclose(targets, said, rtol=0, atol=2e-5)
    scales = np.asarray(d.path.sqrt_alpha_bar)[np.asarray(level)]
    np.testing.assert_array_equal(shown["teacher"][0][:, 0, 0], scales)
    assert np.all(shown["student"][0] == 1.0)


def leap_at(d, noisy, given, level):
    """What the exact student says; the first state's observation is given."""
    said = d.denoise("student", noisy, given.actions, d.path.step[level])
    return said.at[:, 0, :O].set(given.initial)


def test_another_student_is_told_something_else():
    """That the test above can fail: a student that is half as wide."""
    d, _ = exact(4)
    noisy, given, level = asked(4)

    def narrower(who, *given):
        said = d.denoise(who, *given)
        return MEAN + 0.5 * (said - MEAN) if who == "student" else said

    targets = distillation_targets(d._replace(denoise=narrower), "teacher", "student", noisy, given, level)
    said = leap_at(d, noisy, given, level)
    # At the last step the teacher is the target; everywhere else the student's own word further on.
    np.testing.assert_allclose(targets[level == 0], said[level == 0], atol=2e-5)
    assert np.abs(np.asarray(targets - said))[np.asarray(level) > 0][:, 1].mean() > 0.05


@pytest.mark.parametrize(("steps", "calls", "error"), [(128, 1, 0.02), (16, 1, 0.12), (16, 2, 0.12), (16, 4, 0.14)])
def test_one_call_spreads_as_the_data_do(steps, calls, error):
    """With the exact student, but for what the teacher's few steps lose; the teacher in one call has a std of 0."""
    d, shown = exact(steps)
    rng = np.random.default_rng(1)
    noise = jnp.asarray(rng.standard_normal((calls, 4096, 2, O + 2)), jnp.float32)
    given = Condition(jnp.full((4096, O), MEAN), jnp.ones((4096, 2, A)))
    traj = np.asarray(leap(d, "student", given, levels_of_calls(calls, steps), noise))
    assert len(shown["student"]) == calls
    np.testing.assert_allclose(traj[:, 0, :O], MEAN, rtol=1e-6)
    np.testing.assert_allclose(traj[:, 1].mean(), MEAN, atol=0.02)
    np.testing.assert_allclose(traj[:, 1].std(), STD, rtol=error)
    at_once = d.denoise("teacher", noise[0], given.actions, d.path.step[-1:])
    assert np.asarray(at_once).std() < 0.01


def test_calls_begin_where_all_is_noise_and_each_is_at_less():
    assert levels_of_calls(1, 16).tolist() == [15]
    assert levels_of_calls(2, 16).tolist() == [15, 7]
    assert levels_of_calls(4, 16).tolist() == [15, 11, 7, 3]
    for calls in range(1, 17):
        levels = levels_of_calls(calls, 16)
        assert len(set(levels.tolist())) == calls and levels[0] == 15 and levels.min() >= 0


# --- what is learnt of a system with chance in it --------------------------------------------------------------------

KICK = 0.5
UPDATES = 2_000


def windows(count: int) -> Segment:
    """``[B, 2]`` of a system that is kicked up or down in its first observation, by a coin."""
    rng = np.random.default_rng(0)
    first, actions = rng.standard_normal((count, O)), rng.uniform(-1, 1, (count, A))
    kick = np.stack([KICK * np.sign(rng.random(count) - 0.5), np.zeros(count)], axis=1)
    states = np.stack([first, expected(first, actions) + kick], axis=1)
    both = np.stack([actions, actions], axis=1)
    arrays = (states, both, states[..., 0], np.zeros((count, 2)))
    return Segment(*(jnp.asarray(x, jnp.float32) for x in arrays))


def expected(raw_obs, actions):
    return 0.8 * raw_obs + 0.3 * actions


@pytest.fixture(scope="module")
def learnt():
    """The state after UPDATES gradient steps."""
    model, data = make_distilled(CONFIG, SPEC), windows(20_000)

    @jax.jit
    def learn(state):
        def one(state, key):
            rows = jax.random.randint(key, (CONFIG.model_training.batch_size,), 0, 20_000)
            return model.update(state, jax.tree.map(lambda x: x[rows], data), NORMALISER, jax.random.fold_in(key, 1))

        return jax.lax.scan(one, state, jax.random.split(jax.random.key(1), UPDATES))

    state, metrics = learn(jax.jit(model.init)(jax.random.key(0)))
    losses = np.asarray(metrics["world_model/distillation_loss"])
    assert np.isfinite(losses).all() and losses[-200:].mean() < 0.1 * losses[:20].mean()
    return state


def states_and_actions(count: int):
    rng = np.random.default_rng(5)
    arrays = rng.standard_normal((count, O)), rng.uniform(-1, 1, (count, A))
    return tuple(jnp.asarray(x, jnp.float32) for x in arrays)


PLACES, DRAWS = 8, 512


def kicks(model, state) -> np.ndarray:
    """What the model adds to the expected next state, in units of the kick: ``[PLACES, DRAWS]``."""
    raw_obs, actions = (jnp.repeat(x, DRAWS, axis=0) for x in states_and_actions(PLACES))
    said = jax.jit(model.step)(state, raw_obs, actions, NORMALISER, jax.random.key(7))
    added = np.asarray(said.observations - expected(raw_obs, actions))[:, 0]
    return added.reshape(PLACES, DRAWS) / KICK


def distance(found: np.ndarray) -> float:
    """Wasserstein distance from the coin's kicks at the same state and action, mean over those: 1 for no kick."""
    true = np.repeat([-1.0, 1.0], DRAWS // 2)
    return float(np.abs(np.sort(found, axis=1) - true).mean())


def of_both(found: np.ndarray) -> float:
    """The share of draws near one outcome or the other, of the rarer one, mean over states and actions."""
    return float(np.minimum((np.abs(found - 1) < 0.5).mean(1), (np.abs(found + 1) < 0.5).mean(1)).mean())


@pytest.mark.slow
def test_one_call_tells_both_outcomes_of_a_state_and_an_action(learnt):
    """The teacher tells them in sixteen calls, and neither in one. Draws between the outcomes would be near neither."""
    models = {f"student, {n}": (make_distilled(with_calls(n), SPEC), learnt) for n in (1, 4)}
    models |= {f"teacher, {n}": (make_autoregressive(in_steps(n), SPEC), learnt.teacher) for n in (1, 16)}
    models["untrained"] = make_distilled(CONFIG, SPEC), jax.jit(make_distilled(CONFIG, SPEC).init)(jax.random.key(0))
    found = {name: kicks(*each) for name, each in models.items()}
    far, both = ({name: of(x) for name, x in found.items()} for of in (distance, of_both))
    print("distance:", far, "share of both outcomes:", both)
    students = [name for name in far if "student" in name]
    assert max(far[name] for name in students) < 0.5 * min(far["teacher, 1"], far["untrained"])
    assert min(both[name] for name in students) > 0.2 > 0.05 > max(both["teacher, 1"], both["untrained"])
    assert far["teacher, 16"] < 0.3 and both["teacher, 16"] > 0.3


@pytest.mark.slow
def test_what_imagines_is_the_average(learnt):
    model = make_distilled(CONFIG, SPEC)
    moved = jax.tree.map(lambda x: x + 1.0, learnt.params)
    same = kicks(model, learnt.replace(params=moved))
    np.testing.assert_array_equal(same, kicks(model, learnt))
    assert not np.allclose(kicks(model, learnt.replace(ema_params=moved)), same)


@pytest.mark.slow
def test_the_reward_is_the_steps(learnt):
    """Here the first observation; an untrained model does not know it."""
    model = make_distilled(CONFIG, SPEC)
    raw_obs, actions = states_and_actions(256)

    def error(state) -> float:
        said = jax.jit(model.step)(state, raw_obs, actions, NORMALISER, jax.random.key(2))
        return float(jnp.square(said.rewards - raw_obs[:, 0]).mean())

    assert error(learnt) < 0.05 < 0.3 < error(jax.jit(model.init)(jax.random.key(0)))


def test_a_classifier_tells_how_likely_an_end_is():
    """As a probability, through which values can be followed; imagination decides."""
    config = dataclasses.replace(CONFIG, diffusion=dataclasses.replace(CONFIG.diffusion, terminals="classified"))
    model = make_distilled(config, SPEC)
    state = jax.jit(model.init)(jax.random.key(0))
    raw_obs, actions = states_and_actions(64)

    def total(actions):
        said = model.step(state, raw_obs, actions, NORMALISER, jax.random.key(2)).terminals
        return said.sum(), said

    slopes, said = jax.jit(jax.grad(total, has_aux=True))(actions)
    assert np.all((said > 0) & (said < 1)) and np.any(slopes != 0)


def with_calls(calls: int) -> Config:
    return dataclasses.replace(CONFIG, distilled=DistilledConfig(calls))


def in_steps(steps: int) -> Config:
    return dataclasses.replace(CONFIG, diffusion=dataclasses.replace(CONFIG.diffusion, sampling_steps=steps))


@pytest.mark.slow
def test_values_can_be_followed_through_a_step(learnt):
    """The slope of the next state in the action is the system's, 0.3, which an untrained model does not know."""
    model = make_distilled(CONFIG, SPEC)
    raw_obs, actions = states_and_actions(256)

    def slope(state) -> float:
        def second(actions):
            return model.step(state, raw_obs, actions, NORMALISER, jax.random.key(3)).observations[:, 1].sum()

        return float(jax.jit(jax.grad(second))(actions).mean())

    assert slope(learnt) == pytest.approx(0.3, abs=0.06)
    assert abs(slope(jax.jit(model.init)(jax.random.key(0)))) < 0.1


# --- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("calls", "prediction", "line"),
    [
        (5, "change", r"^distilled.calls is 5; allowed: at most distilled.steps \(4\)$"),
        (0, "change", "^distilled.calls is 0; allowed: 1 or greater$"),
        (1, "noise", "^diffusion.prediction is noise with world_model distilled; allowed: clean, change$"),
    ],
)
def test_what_cannot_be_distilled_is_one_line(calls, prediction, line):
    diffusion = dataclasses.replace(CONFIG.diffusion, prediction=prediction)
    config = dataclasses.replace(with_calls(calls), diffusion=diffusion)
    with pytest.raises(ConfigError, match=line):
        validate(config)
    validate(dataclasses.replace(config, world_model="autoregressive", distilled=DistilledConfig()))
    few = dataclasses.replace(CONFIG, diffusion=dataclasses.replace(CONFIG.diffusion, num_steps=3, sampling_steps=3))
    with pytest.raises(ConfigError, match=r"distilled.steps is 4; allowed: at most diffusion.num_steps \(3\)"):
        validate(few)


def test_windows_have_two_states():
    model = make_distilled(CONFIG, SPEC)
    three = jax.tree.map(lambda x: jnp.concatenate([x, x[:, :1]], axis=1), windows(4))
    with pytest.raises(ValueError, match="has 3 states; allowed: 2"):
        model.update(model.init(jax.random.key(0)), three, NORMALISER, jax.random.key(0))
