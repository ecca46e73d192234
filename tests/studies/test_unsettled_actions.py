"""Training on unsettled actions: what is replaced by guesses, and what stays Algorithm 1."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.guidance import unsettled_actions
from experiments.guidance.unsettled_actions import ACTIONS, BLIND, BOTH, SETTLED, STATES, TRAININGS, make_unsettled
from experiments.harness import experiment, grid
from polygrad_jax.config import ConfigError
from polygrad_jax.diffusion.denoising_loss import denoising_loss
from polygrad_jax.diffusion.schedule import add_noise, training_coefficients
from polygrad_jax.world_models.polygrad import make_polygrad
from tests import tiny

FIELDS = {
    "denoiser.context_length": 1,
    "denoiser.kind": "transformer",
    "denoiser.token_dim": 8,
    "denoiser.num_heads": 2,
    "denoiser.shown_actions": "executed",
    "diffusion.prediction": "change",
    "diffusion.num_steps": 8,
    "env.actions": "squashed",
}
CONFIG = tiny.config_of("polygrad", fields=FIELDS)
B, H = tiny.B, tiny.H


def learnt(model, updates=3):
    """The state of a model after a few updates."""
    state = jax.jit(model.init)(jax.random.key(0))
    for k in range(updates):
        segment = tiny.batch_for(model, k)
        state, metrics = jax.jit(model.update)(state, segment, tiny.NORMALISER, jax.random.key(k))
    return state, metrics


def test_the_draw_stays_and_early_actions_too():
    """The policy's mean is 2 tanh(s): (a - mean) is the same at the guess, from the given time on."""
    policy, keys = tiny.policy(2.0), jax.random.split(jax.random.key(0), 3)
    obs, guess = (jax.random.normal(key, (B, H, tiny.O)) for key in keys[:2])
    actions = jax.random.normal(keys[2], (B, H, tiny.A))
    late = (jnp.arange(H)[None] >= jnp.arange(B)[:, None])[..., None]
    found = unsettled_actions.guessed_actions(policy, actions, obs, guess, late)
    np.testing.assert_array_equal(jnp.where(late, 0, found), jnp.where(late, 0, actions))
    kept = jnp.where(late, (found - policy(guess)[0]) - (actions - policy(obs)[0]), 0.0)
    np.testing.assert_allclose(kept, 0.0, atol=1e-6)
    assert float(jnp.abs(found - actions).max()) > 1.0


SCHEDULE = training_coefficients(CONFIG.diffusion)
MANY = 256
TRAJ, NOISE = jax.random.normal(jax.random.key(4), (2, MANY, H, tiny.O + 2))
NORMED_ACTIONS = jax.random.normal(jax.random.key(5), (MANY, H, 2))
STEPS = jnp.arange(MANY) % 8
GUESS = 5.0


def says(params, noisy, actions, steps):
    """A denoiser that says the same everywhere."""
    return jnp.full_like(noisy, params)


def guessed(denoise=says, share=1.0, params=GUESS):
    asked = (TRAJ, NORMED_ACTIONS, STEPS, jax.random.key(3))
    return unsettled_actions.guesses(denoise, params, *asked, SCHEDULE, 8, "clean", share)


def test_later_states_are_guessed_from_any_on_and_what_is_known_stays():
    guess = guessed()
    late = np.asarray(guess.late[..., 0])
    assert set(H - late.sum(1)) == set(range(H)) and (late[:, 1:] >= late[:, :-1]).all()
    np.testing.assert_array_equal(guess.traj[:, 0, :-2], TRAJ[:, 0, :-2])
    expected = jnp.where(guess.late, GUESS, TRAJ).at[:, 0, :-2].set(TRAJ[:, 0, :-2])
    np.testing.assert_array_equal(guess.traj, expected)
    assert 0.4 < guessed(share=0.5).late.any((1, 2)).mean() < 0.6
    assert not guessed(share=0.0).late.any()
    assert jax.grad(lambda params: guessed(params=params).traj.sum())(GUESS) == 0.0


def test_a_guess_comes_from_a_noisier_step_and_another_trajectorys_later_actions():
    seen = {}

    def looks(params, noisy, actions, steps):
        seen.update(actions=actions / unsettled_actions.at_steps(SCHEDULE, steps).sqrt_alpha_bar, steps=steps)
        return noisy

    late = np.asarray(guessed(looks).late[..., 0])
    assert (seen["steps"] >= STEPS).all() and (seen["steps"] > STEPS).any()
    own = np.isclose(seen["actions"], NORMED_ACTIONS, atol=1e-2).all(-1)
    others = np.isclose(seen["actions"], jnp.roll(NORMED_ACTIONS, 1, axis=0), atol=1e-2).all(-1)
    known = np.asarray(seen["steps"])[:, None] < 7  # at the noisiest step nothing of the actions is left
    assert (others | ~late | ~known).all() and (own | late | ~known).all()


@pytest.mark.parametrize("prediction", ["clean", "noise"])
def test_the_noise_leads_to_the_guess_and_the_target_stays(prediction):
    c = unsettled_actions.at_steps(SCHEDULE, STEPS)
    guess = guessed().traj
    noise = unsettled_actions.noise_to(guess, TRAJ, NOISE, c)
    np.testing.assert_allclose(add_noise(TRAJ, noise, c), add_noise(guess, NOISE, c), atol=1e-4)

    def knows(traj, noisy, actions, steps):
        if prediction == "clean":
            return traj
        return (noisy - c.sqrt_alpha_bar * traj) / c.sqrt_one_minus_alpha_bar

    def loss(denoise, params):
        return denoising_loss(denoise, params, TRAJ, NORMED_ACTIONS, STEPS, noise, SCHEDULE, prediction)[0]

    # at the least noisy step the noise that leads to the guess is large, and so is what float32 loses of it
    assert loss(knows, TRAJ) < 1e-5 and loss(says, GUESS) > 1.0


@pytest.mark.slow
@pytest.mark.parametrize("training", [ACTIONS, BOTH, STATES])
def test_where_nothing_is_unsettled_it_is_algorithm_1(training):
    """With a share of 0 the parameters are those of the package's model; with all unsettled they are not."""
    model = make_polygrad(CONFIG, tiny.SPEC)
    expected, _ = learnt(model)
    same, _ = learnt(make_unsettled(CONFIG, tiny.SPEC, tiny.policy(3.0), training, share=0.0))
    for a, b in zip(jax.tree.leaves(expected), jax.tree.leaves(same), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)
    other, metrics = learnt(make_unsettled(CONFIG, tiny.SPEC, tiny.policy(3.0), training, share=1.0))
    assert tiny.same_shapes(other, expected) and tiny.all_finite(metrics)
    apart = jax.tree.map(lambda a, b: float(np.abs(a - b).max()), expected.params, other.params)
    assert max(jax.tree.leaves(apart)) > 1e-3


@pytest.mark.slow
def test_the_policy_matters_where_actions_are_guessed_and_nowhere_else():
    for training in (ACTIONS, BOTH, STATES):
        one, other = (
            learnt(make_unsettled(CONFIG, tiny.SPEC, tiny.policy(gain), training, share=1.0))[0] for gain in (3.0, 0.1)
        )
        assert tiny.all_equal(one, other) == (training == STATES)


def test_settled_is_the_packages_own():
    model = make_unsettled(CONFIG, tiny.SPEC, tiny.policy(1.0), SETTLED)
    assert tiny.all_equal(learnt(model), learnt(make_polygrad(CONFIG, tiny.SPEC)))


def test_a_blind_denoiser_learns_nothing_of_actions():
    """Those of a window belong to another one: what it learns is what Algorithm 1 learns from such windows."""
    model = make_unsettled(CONFIG, tiny.SPEC, tiny.policy(1.0), BLIND)
    segment = tiny.batch_for(model, 0)
    others = unsettled_actions.of_others(segment)
    np.testing.assert_array_equal(others.actions[1:], segment.actions[:-1])
    np.testing.assert_array_equal(others.observations, segment.observations)
    state = jax.jit(model.init)(jax.random.key(0))
    found, _ = jax.jit(model.update)(state, segment, tiny.NORMALISER, jax.random.key(1))
    expected, _ = jax.jit(make_polygrad(CONFIG, tiny.SPEC).update)(state, others, tiny.NORMALISER, jax.random.key(1))
    assert tiny.all_equal(found, expected)


def test_noise_is_not_predicted_from_guesses():
    config = tiny.config_of("polygrad", fields=FIELDS | {"diffusion.prediction": "noise"})
    with pytest.raises(ConfigError, match="prediction is noise in training unsettled states; allowed: clean, change"):
        make_unsettled(config, tiny.SPEC, tiny.policy(1.0), STATES)


def test_the_key_of_the_guesses_is_not_that_of_the_noise():
    """What a comment in ``make_unsettled`` says of JAX's keys."""
    key = jax.random.key(0)
    bits = [jax.random.key_data(k).tolist() for k in (*jax.random.split(key), jax.random.fold_in(key, 2))]
    assert bits[1] == jax.random.key_data(jax.random.fold_in(key, 1)).tolist() and bits[2] not in bits[:2]


def asked(tmp_path, *words):
    return experiment.run(unsettled_actions.UNSETTLED_ACTIONS, [*words, "--out", str(tmp_path / "out")])


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["nowhere"], "run folder nowhere has no config.json"),
        ([], "RUN is missing"),
        (["RUN", "--updates", "0"], "--updates is 0; allowed: 1 or more"),
        (["RUN", "--fields", "'"], "--fields is '; allowed: words as in a shell (No closing quotation)"),
        (["RUN", "--guessing", "RUN"], "--trainings has settled, unsettled states, blind with --guessing; allowed: "),
        (["RUN", "--trainings", ACTIONS, "--guessing", "nowhere"], "run folder nowhere has no config.json"),
    ],
)
def test_what_cannot_be_asked_is_one_line(tmp_path, monkeypatch, capsys, words, said):
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "RUN"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    assert asked(tmp_path, *words) == 2
    errors = capsys.readouterr().err.strip()
    assert said in errors and len(errors.splitlines()) == 1


def test_another_runs_guesses_have_cells_of_their_own(tmp_path, monkeypatch):
    """``--guessing .`` has the name of the folder that it is."""
    for name in ("a/one", "b/one"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "config.json").write_text("{}")
    monkeypatch.chdir(tmp_path / "b" / "one")
    parser = unsettled_actions.UNSETTLED_ACTIONS.parser()
    words = ["../../a/one", "--out", "out", "--trainings", BOTH]
    alone, guessed_there = (
        unsettled_actions.cells(parser.parse_args([*words, *more])) for more in ([], ["--guessing", "."])
    )
    assert list(alone) == ["a-one-unsettled-actions-and-states"]
    assert list(guessed_there) == ["a-one-unsettled-actions-and-states-guessed-by-b-one"]


def test_the_figure_leaves_out_what_was_not_trained_or_guessed_by_others(tmp_path, capsys):
    errors = {f"{name}_h9": 0.5 for name in unsettled_actions.ERRORS}
    row = {"env": "hopper", "seed": 0, "training": BOTH, "rule": "followed", "sampling_steps": 4, "sigma": "0.1"}
    row |= {"updates": 5, "denoiser": "untrained", "guessing": "", "mujoco": "4.0.0"} | errors
    for rows in ([row], [row | {"denoiser": "fitted", "guessing": "b-one"}]):
        grid.write_csv(tmp_path / "unsettled_actions.csv", rows)
        unsettled_actions.draw(tmp_path)
        assert "no figure" in capsys.readouterr().out and not (tmp_path / "unsettled_actions.png").exists()
    grid.write_csv(tmp_path / "unsettled_actions.csv", [row | {"denoiser": "fitted"}])
    unsettled_actions.draw(tmp_path)
    assert (tmp_path / "unsettled_actions.png").exists()


def test_a_way_is_drawn_of_every_training():
    assert set(unsettled_actions.STYLES) == set(TRAININGS)
    assert set(unsettled_actions.LINES) == set(unsettled_actions.WAYS)
