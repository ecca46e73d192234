"""The library examples that the README shows: short, verbatim, and doing what they say."""

import runpy
import sys
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest

from polygrad_jax import config as configs
from polygrad_jax.config import ConfigError, EnvSpec
from polygrad_jax.data import normaliser as normalisers
from polygrad_jax.data import replay as replays
from polygrad_jax.analysis.opened_run import imagine, open_finished
from polygrad_jax.runs.metrics_log import read_rows
from polygrad_jax.data import recordings as fitting
from polygrad_jax.data.recordings import Episode, contexts_at, fit, replay_of, transitions_of
from polygrad_jax.world_models.model_table import WORLD_MODELS, make_world_model

ROOT = Path(__file__).parent.parent
EXAMPLES = sorted((Path(__file__).parent / "readme_examples").glob("*.py"))
FROM_A_RUN, OWN_DATA, ADD_A_MODEL = (
    ROOT / "tests" / "readme_examples" / f"{name}.py"
    for name in ("imagine_from_a_run", "fit_your_own_data", "add_a_world_model")
)


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_the_readme_shows_it_verbatim_and_it_is_short(path):
    text = path.read_text()
    assert sum(bool(line.strip()) for line in text.splitlines()) < 20
    readme = ROOT / "README.md"
    assert readme.is_file() and f"```python\n{text.rstrip()}\n```" in readme.read_text(), f"{path.name} is not in it"


@pytest.fixture
def nothing_left_registered():
    before = dict(WORLD_MODELS)
    yield
    WORLD_MODELS.clear()
    WORLD_MODELS.update(before)


def test_a_world_model_is_added_trained_with_and_opened_again(tmp_path, monkeypatch, capsys, nothing_left_registered):
    """The first example runs on what the last one made: any world model imagines from a finished run."""
    monkeypatch.chdir(tmp_path)
    shorter = configs.smoke("hopper")
    shorter = replace(shorter, loop=replace(shorter.loop, total_env_steps=1_300))
    monkeypatch.setattr(configs, "smoke", lambda env: shorter)
    runpy.run_path(str(ADD_A_MODEL))
    folder = tmp_path / "runs" / "nothing-moves"
    run = open_finished(folder)
    assert run.env_steps >= 1_300 and "loss/critic" in read_rows(folder)[-1]
    # The mean reward of what was collected, of which an average over some thousand batches knows most.
    assert float(run.model_state) == pytest.approx(run.transitions.rewards.mean(), rel=0.5)
    contexts = run.contexts(7, jax.random.key(0))
    segment = imagine(run, contexts, jax.random.key(1))
    np.testing.assert_array_equal(segment.observations, np.repeat(contexts.observations, 10, axis=1))
    np.testing.assert_array_equal(segment.rewards, np.full((7, 10), run.model_state))

    monkeypatch.setattr(sys, "argv", ["example", str(folder)])
    names = runpy.run_path(str(FROM_A_RUN))
    assert names["imagined"].observations.shape == (100, 10, 11)
    z = ((names["imagined"].actions - names["mean"]) / names["std"])[:, :-1]
    assert f"(1 is on-policy): {z.std()!s}" in capsys.readouterr().out
    assert float(z.std()) == pytest.approx(1.0, abs=4 / np.sqrt(2 * z.size))  # drawn from the policy


def test_own_data_are_learnt_and_imagined_under_ones_own_policy():
    names = runpy.run_path(str(OWN_DATA))
    imagined = jax.device_get(names["imagined"])
    observations, actions = imagined.observations, imagined.actions
    true = [observations[:, 0]]
    for k in range(9):  # the linear system under the imagined actions
        true.append(true[-1] @ np.array([[0.95, -0.3], [0.3, 0.95]]) + actions[:, k] @ np.array([[0.0, 0.3]]))
    true = np.stack(true, axis=1)
    error = np.square(observations - true).mean(axis=(0, 2))
    nothing_moves = np.square(true - true[:, :1]).mean(axis=(0, 2))
    assert (error[3:] < 0.3 * nothing_moves[3:]).all(), (error, nothing_moves)
    # On-policy: the policy is N(-0.5 x_1, 0.3^2).
    z = (actions[:, :-1] + 0.5 * observations[:, :-1, 1:]) / 0.3
    assert z.std() == pytest.approx(1.0, abs=0.1) and abs(z.mean()) < 0.15
    assert float(names["metrics"]["guidance/sigma"]) == pytest.approx(z.std(ddof=1), rel=1e-3)


# --- arrays to a replay ----------------------------------------------------------------------------------------------


def episodes_of(lengths, terminated):
    rng = np.random.default_rng(0)
    return [
        Episode(rng.normal(2.0, 3.0, (n, 2)), rng.normal(size=(n, 1)), rng.normal(size=n), t)
        for n, t in zip(lengths, terminated, strict=True)
    ]


def test_every_window_of_the_episodes_can_be_drawn_and_no_other():
    # H = 4. Terminated, length 5: starts 0 to 3. Cut off, length 6: 0 to 2, rows 5 to 7. Cut off, length 3: none.
    replay = replay_of(transitions_of(episodes_of([5, 6, 3], [True, False, False])), horizon=4)
    assert np.asarray(replay.starts)[: int(replays.num_windows(replay))].tolist() == [0, 1, 2, 3, 5, 6, 7]


def test_the_normaliser_is_numpys_mean_and_standard_deviation():
    episodes = episodes_of([700, 900, 1200], [False, True, False])
    found = normalisers.to_normaliser(replay_of(transitions_of(episodes), horizon=4).moments)
    observations = np.concatenate([e.observations for e in episodes])
    np.testing.assert_allclose(found.observations.mean, observations.mean(0), rtol=1e-5)
    np.testing.assert_allclose(found.observations.std, observations.std(0), rtol=1e-5)


@pytest.mark.parametrize("padded_actions", ["repeated", "drawn"])
def test_fitting_is_the_updates_of_the_protocol_one_by_one(padded_actions, monkeypatch):
    monkeypatch.setattr(fitting, "REPORT_EVERY_UPDATES", 5)
    base = configs.smoke("own")
    small = {"width": 16, "num_blocks": 1, "batch_size": 8}
    config = replace(base, horizon=4, denoiser=replace(base.denoiser, **small, padded_actions=padded_actions))
    model = make_world_model(config, EnvSpec(2, 1))
    episodes, key = episodes_of([40, 30], [True, False]), jax.random.key(3)
    seen = []
    state, normaliser = fit(model, episodes, config, key, 7, lambda n, m: seen.append((n, m["denoiser/loss"])))
    replay = replay_of(transitions_of(episodes), 4)
    init_key, update_key = jax.random.split(key)
    by_hand, update = model.init(init_key), jax.jit(model.update)
    sample, draw = jax.jit(replays.sample, static_argnums=(2, 3)), jax.jit(replays.draw_padded_actions)
    for k in range(7):
        batch_key, noise_key = jax.random.split(jax.random.fold_in(update_key, k))
        batch = sample(replay, batch_key, 8, 4)
        if padded_actions == "drawn":
            batch = draw(replay, jax.random.fold_in(batch_key, 1), batch)
        by_hand, metrics = update(by_hand, batch, normaliser, noise_key)
    assert [n for n, _ in seen] == [5, 7] and int(state.updates) == 7
    assert seen[-1][1] == pytest.approx(float(metrics["denoiser/loss"]), rel=1e-3)
    for a, b in zip(jax.tree.leaves(state.params), jax.tree.leaves(by_hand.params), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("episodes", "updates", "words"),
    [
        ([], 1, "episodes is empty"),
        (episodes_of([5], [True]), 0, "updates is 0; allowed: 1 or greater"),
        (episodes_of([3, 2], [False, False]), 1, "no episode is long enough for a window of horizon 4"),
        ([Episode(np.zeros((5, 2)), np.zeros((4, 1)), np.zeros(5))], 1, r"episode 0: actions have shape \(4, 1\)"),
        ([Episode(np.zeros((5, 2)), np.zeros(5), np.zeros(5))], 1, r"episode 0: actions have shape \(5,\)"),
        ([Episode(np.full((5, 2), np.nan), np.zeros((5, 1)), np.zeros(5))], 1, "observations are not all finite"),
        (
            [*episodes_of([5], [True]), Episode(np.zeros((5, 3)), np.zeros((5, 1)), np.zeros(5))],
            1,
            r"episode 1: observations have shape \(5, 3\)",
        ),
    ],
)
def test_arrays_that_do_not_fit_are_one_line(episodes, updates, words):
    config = replace(configs.smoke("own"), horizon=4)
    with pytest.raises(ConfigError, match=words) as raised:
        fit(make_world_model(config, EnvSpec(2, 1)), episodes, config, jax.random.key(0), updates)
    assert "\n" not in str(raised.value)


def test_contexts_of_the_wrong_size_are_one_line():
    with pytest.raises(ConfigError, match=r"observations have shape \(3, 4\); allowed: \[B, 2\]"):
        contexts_at(np.zeros((3, 4)), EnvSpec(2, 1))
    assert contexts_at(np.zeros((3, 2)), EnvSpec(2, 1)).actions.shape == (3, 1, 1)
