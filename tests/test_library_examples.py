"""The examples of the README and the pages: verbatim, short, and doing what they say."""

import ast
import importlib.util
import re
import runpy
import shlex
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import gymnasium as gym
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from readme_run import SHORTER

import polygrad_jax
from polygrad_jax import cli
from polygrad_jax.config import ConfigError, EnvConfig, EnvSpec, override, preset
from polygrad_jax.data import minari_dataset
from polygrad_jax.data import normaliser as normalisers
from polygrad_jax.data import replay as replays
from polygrad_jax.data.recordings import Episode, contexts_at, replay_of, transitions_of
from polygrad_jax.envs import mujoco_import, mujoco_state
from polygrad_jax.runs.metrics_log import read_rows
from polygrad_jax.training import fitting
from polygrad_jax.training.fitting import fit
from polygrad_jax.training.step import make_model_update
from polygrad_jax.world_models.model_table import WORLD_MODELS, make_world_model

ROOT = Path(__file__).parent.parent
FOLDER = Path(__file__).parent / "readme_examples"
EXAMPLES = sorted(FOLDER.glob("*.py"))
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(r"^```python\n(.*?)^```$", flags=re.MULTILINE | re.DOTALL)


def blocks(page: Path) -> list[str]:
    return BLOCK.findall(page.read_text())


def statements(text: str) -> int:
    """Lines that are neither blank nor an import."""
    return sum(bool(line.strip()) and not re.match(r"(import|from) ", line) for line in text.splitlines())


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_is_shown_verbatim(path):
    assert any(path.read_text() in blocks(page) for page in PAGES), f"no page shows {path.name}"


def test_the_readme_shows_what_is_run_and_nothing_else():
    shown = blocks(ROOT / "README.md")
    assert shown == [(FOLDER / "library.py").read_text()]
    assert len([line for line in shown[0].splitlines() if line.strip()]) <= 12
    imported = re.findall(r"^from (\S+) import", shown[0], flags=re.MULTILINE)
    assert imported == ["polygrad_jax"]


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_block_is_python(page):
    for block in blocks(page):
        ast.parse(block)
        assert statements(block) <= 25


@pytest.fixture
def nothing_left_registered():
    before = dict(WORLD_MODELS), dict(gym.registry)
    yield
    for table, old in zip((WORLD_MODELS, gym.registry), before, strict=True):
        table.clear()
        table.update(old)


@pytest.fixture
def run_shortened(tmp_path, monkeypatch, nothing_left_registered):
    """Run an example in an empty folder, with a budget of 1,300 environment steps in place of the preset's."""

    def shorter(name, env):
        config = preset(name, env)
        return replace(config, loop=replace(config.loop, total_env_steps=1_300))

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(polygrad_jax, "preset", shorter, raising=False)
    return lambda name: runpy.run_path(str(FOLDER / f"{name}.py"))


def test_a_run_is_trained_opened_and_imagined_from(readme_run):
    names = readme_run.names
    assert names["result"].env_steps >= 1_300 and names["result"].folder == Path("runs/library")
    imagined = names["imagined"]
    assert imagined.observations.shape == (100, 10, 11) and imagined.actions.shape == (100, 10, 3)
    z = ((jnp.asarray(imagined.actions) - names["mean"]) / names["std"])[:, :-1]
    assert f"(1 is on-policy): {z.std()!s}" in readme_run.said


def test_a_world_model_is_added_trained_with_and_opened_again(run_shortened):
    run_shortened("add_a_world_model")
    run = polygrad_jax.open_run("runs/nothing-moves")
    assert run.env_steps >= 1_300 and "agent/critic_loss" in read_rows(run.folder)[-1]
    # The mean reward of what was collected, of which an average over some thousand batches knows most.
    assert float(run.model_state) == pytest.approx(run.transitions.rewards.mean(), rel=0.5)
    contexts = run.contexts(7, jax.random.key(0))
    segment = run.imagine(contexts, jax.random.key(1))
    np.testing.assert_array_equal(segment.observations, np.repeat(contexts.observations, 10, axis=1))
    np.testing.assert_array_equal(segment.rewards, np.full((7, 10), run.model_state))
    mean, std = run.policy(segment.observations)
    z = ((segment.actions - mean) / std)[:, :-1]
    assert float(z.std()) == pytest.approx(1.0, abs=4 / np.sqrt(2 * z.size))  # drawn from the policy


@pytest.mark.slow
def test_an_environment_is_registered_and_trained_on(run_shortened):
    names = run_shortened("add_an_environment")
    run = polygrad_jax.open_run("runs/point")
    assert run.spec == EnvSpec(2, 1) and names["result"].env_steps >= 1_300
    # The position moves by 0.1 times the velocity, within an episode.
    stored = run.transitions
    inside = ~(stored.terminals | stored.truncations)[:-1]
    position, velocity = stored.observations[:-1].T
    np.testing.assert_allclose(
        stored.observations[1:, 0][inside], (position + 0.1 * velocity)[inside], rtol=1e-4, atol=1e-5
    )
    assert stored.truncations.any()


@pytest.mark.slow
def test_own_data_are_learnt_and_imagined_under_ones_own_policy():
    names = runpy.run_path(str(FOLDER / "fit_your_own_data.py"))
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
    assert float(names["sigma"]) == pytest.approx(z.std(ddof=1), rel=1e-3)


@pytest.fixture
def module_of(tmp_path, monkeypatch, nothing_left_registered):
    """Save an example in an empty folder, as a reader would; return the `polygrad` commands that the page has on it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))

    def save(name):
        shutil.copy(FOLDER / f"{name}.py", tmp_path)
        monkeypatch.setitem(sys.modules, name, None)  # so that it is forgotten afterwards
        del sys.modules[name]
        page = (ROOT / "docs" / "your_own_environment.md").read_text()
        return [shlex.split(line) for line in re.findall(rf"^(?:\$ )?\S+/polygrad (.*{name}:.*)$", page, re.MULTILINE)]

    return save


@pytest.mark.slow
def test_a_wrapped_task_is_looked_at_and_trained_on(module_of, monkeypatch, capsys):
    """With the README example's tiny networks, whose programs are compiled already."""
    (check,) = module_of("upright_hopper")
    assert cli.main(check) == 0
    said, page = capsys.readouterr().out, (ROOT / "docs" / "your_own_environment.md").read_text()
    told = re.findall("^(?:actions|repeatable|simulator) .*$", said, flags=re.MULTILINE)  # by no timing, by no version
    assert len(told) == 3 and all(f"\n{line}\n" in page for line in told)
    tiny = lambda name, env: override(preset(name, "hopper"), SHORTER | {"env.name": env})  # noqa: E731
    monkeypatch.setattr(polygrad_jax, "preset", tiny, raising=False)
    names = runpy.run_path("upright_hopper.py", run_name="__main__")
    assert f"last evaluation return: {names['result'].last_return}\n" in capsys.readouterr().out
    run = polygrad_jax.open_run("runs/upright")
    assert run.env_steps >= 1_500 and run.has_simulator_states
    # The same steps of Hopper itself, from the stored states: its reward less the angle that follows.
    stored = run.transitions
    hopper = mujoco_state.step_copies(EnvConfig("hopper"), stored.simulator_states, stored.actions)
    np.testing.assert_allclose(stored.rewards, hopper.rewards - abs(hopper.observations[:, 1]), rtol=1e-5, atol=1e-5)
    assert abs(hopper.observations[:, 1]).max() > 0.1


# GLFW warns where there is no display; MuJoCo's Python package makes it when dm_control is imported.
@pytest.mark.filterwarnings("ignore::Warning:glfw")
def test_a_dm_control_task_runs_or_one_line_says_what_it_needs(module_of, capsys):
    check, train = module_of("walker_walk")
    starts = importlib.util.find_spec("shimmy") and mujoco_import._version() == "3.17.0"
    for words in (check, [*train, "--loop.total-env-steps", "1300", "--loop.eval-episodes", "2"]):
        code, said = cli.main(words), capsys.readouterr()
        if starts:
            assert code == 0
            assert words != check or ("24 numbers" in said.out and "time limit 1,000 steps" in said.out)
        else:
            assert code == cli.BAD_INPUT and said.err.count("\n") == 1
            assert said.err.startswith("polygrad: env.name is 'walker_walk:WalkerWalk-v0', which does not start: ")
            if importlib.util.find_spec("shimmy"):  # under a MuJoCo that dm_control does not know
                assert "allowed: an environment with mujoco==3.17.0, which docs/installation.md" in said.err
            else:
                page = (ROOT / "docs" / "your_own_environment.md").read_text()
                assert " ".join(said.err.split()) in " ".join(page.split())
    if starts:
        run = polygrad_jax.open_run("runs/walker_walk:WalkerWalk-v0-smoke-seed0")
        assert run.spec == EnvSpec(24, 6) and run.env_steps >= 1_300 and not run.has_simulator_states


# Minari recommends an author, an e-mail address, a link and an evaluation environment.
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_minari_dataset_is_learnt_and_judged(tmp_path, monkeypatch, capsys):
    for package in ("minari", "h5py"):
        pytest.importorskip(package, reason="the extra minari is not installed")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    names = runpy.run_path(str(FOLDER / "fit_a_minari_dataset.py"))
    # The library's own reader of the dataset's folder finds the same transitions.
    read, _ = minari_dataset.read(tmp_path / "pendulum" / "random-v0")
    ours = transitions_of(names["episodes"])
    for name in ("observations", "actions", "rewards", "terminals", "truncations"):
        np.testing.assert_array_equal(getattr(ours, name), getattr(read, name).astype(np.float32))
    assert len(names["episodes"]) == 30 and np.abs(ours.actions).max() == pytest.approx(1.0, abs=0.01)
    error, still = (np.square(names[x] - names["after"]).mean() for x in ("predicted", "before"))
    assert error < 0.05 * still
    assert capsys.readouterr().out.endswith(
        f"squared error one step ahead: {error!s}\nof predicting that nothing moves: {still!s}\n"
    )


def sb3_says(policy, observations):
    """Mean and std that Stable-Baselines3's own code has for a policy of its."""
    import torch

    with torch.no_grad():
        gaussian = policy.get_distribution(torch.as_tensor(observations)).distribution
    return gaussian.mean.numpy(), gaussian.stddev.numpy()


# The example is a user's program, without the strictness of these tests.
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("weights", ["recorded", "exported"])
def test_a_policy_of_stable_baselines3_is_imagined_under(weights, readme_run, tmp_path, monkeypatch, capsys):
    """With weights that the exporting example wrote once, and what Stable-Baselines3 2.9.2 has for them at 64 states of
    Hopper; and with those that it writes now, where that library is installed."""
    monkeypatch.chdir(tmp_path)
    with np.load(FOLDER / "ppo_hopper_distribution.npz") as recorded:
        observations, mean, std = (recorded[name] for name in ("observations", "mean", "std"))
    if weights == "recorded":
        shutil.copy(FOLDER / "ppo_hopper.npz", tmp_path)
    else:
        pytest.importorskip("stable_baselines3", reason="the extra baselines is not installed")
        exported = runpy.run_path(str(FOLDER / "export_sb3_policy.py"))
        mean, std = sb3_says(exported["model"].policy, observations)
    (tmp_path / "runs").symlink_to(readme_run.folder.parent)
    with jax.numpy_rank_promotion("allow"):
        names = runpy.run_path(str(FOLDER / "imagine_under_sb3_policy.py"))
        ours = names["policy"](observations)
    np.testing.assert_allclose(ours[0], mean, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(ours[1], std, rtol=1e-6)
    run, imagined = names["run"], names["imagined"]
    assert imagined.observations.shape == (100, 10, 11) and imagined.actions.shape == (100, 10, 3)
    # Delta went from the run's to one under which the actions spread as the policy says: 1.21 without, 1.42 under the
    # run's own policy. The tiny model's actions do not have the policy's mean.
    z = ((imagined.actions - names["mean"]) / names["std"])[:, :-1]
    assert float(z.std()) == pytest.approx(1.0, abs=0.05)
    assert f"(0 and 1 are on-policy): {z.mean()!s} {z.std()!s}\n" in capsys.readouterr().out
    assert float(names["state"].log_delta) != float(run.model_state.log_delta)


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


@pytest.mark.parametrize(("capacity", "kept"), [(7, 7), (None, 14), (3, 4)])
def test_of_the_episodes_the_last_are_kept(capacity, kept):
    """Rows 7 to 13 hold all windows of 4 that begin in them; a replay holds a window at least."""
    transitions = transitions_of(episodes_of([5, 9], [False, True]))
    replay = replay_of(transitions, horizon=4, capacity=capacity)
    rows = np.arange(14 - kept, 14)
    starts = np.asarray(replay.starts)[np.arange(int(replay.head), int(replay.tail)) % len(replay.starts)]
    assert starts.tolist() == [row for row in [0, 1, *range(5, 13)] if row in rows]
    stored = np.asarray(replay.observations)[rows % len(replay.observations)]
    np.testing.assert_array_equal(stored, transitions.observations[rows])


def test_the_normaliser_is_numpys_mean_and_standard_deviation():
    episodes = episodes_of([700, 900, 1200], [False, True, False])
    found = normalisers.to_normaliser(replay_of(transitions_of(episodes), horizon=4).moments)
    observations = np.concatenate([e.observations for e in episodes])
    np.testing.assert_allclose(found.observations.mean, observations.mean(0), rtol=1e-5)
    np.testing.assert_allclose(found.observations.std, observations.std(0), rtol=1e-5)


@pytest.mark.parametrize("padded_actions", ["repeated", "drawn"])
def test_fitting_is_the_updates_of_the_protocol_one_by_one(padded_actions, monkeypatch):
    monkeypatch.setattr(fitting, "REPORT_EVERY_UPDATES", 5)
    base = preset("smoke", "own")
    config = replace(
        base,
        horizon=4,
        denoiser=replace(base.denoiser, width=16, num_blocks=1),
        model_training=replace(base.model_training, batch_size=8, padded_actions=padded_actions),
    )
    model = make_world_model(config, EnvSpec(2, 1))
    episodes, key = episodes_of([40, 30], [True, False]), jax.random.key(3)
    seen = []
    state, normaliser = fit(model, episodes, config, key, 7, lambda n, m: seen.append((n, m["world_model/loss"])))
    replay = replay_of(transitions_of(episodes), 4)
    init_key, update_key = jax.random.split(key)
    by_hand, update, losses = model.init(init_key), jax.jit(make_model_update(model, config)), []
    for k in range(7):
        batch_key, noise_key = jax.random.split(jax.random.fold_in(update_key, k))
        by_hand, metrics = update(by_hand, replay, normaliser, batch_key, noise_key)
        losses.append(float(metrics["world_model/loss"]))
    assert [n for n, _ in seen] == [5, 7] and int(state.updates) == 7
    # Means over the updates since the last report.
    assert [loss for _, loss in seen] == pytest.approx([np.mean(losses[:5]), np.mean(losses[5:])], rel=1e-3)
    for a, b in zip(jax.tree.leaves(state.params), jax.tree.leaves(by_hand.params), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("episodes", "updates", "words"),
    [
        ([], 1, "episodes is empty"),
        (episodes_of([5], [True]), 0, "updates is 0; allowed: 1 or greater"),
        (episodes_of([3, 2], [False, False]), 1, r"\(horizon 4\): .* cut off after 3 steps; allowed: horizon"),
        ([Episode(np.zeros((5, 2)), np.zeros((4, 1)), np.zeros(5))], 1, r"episode 0: actions have shape \(4, 1\)"),
        ([Episode(np.zeros((5, 2)), np.zeros(5), np.zeros(5))], 1, r"episode 0: actions have shape \(5,\)"),
        ([Episode(np.zeros((5, 2)), np.zeros((5, 0)), np.zeros(5))], 1, r"episode 0: actions have shape \(5, 0\)"),
        ([Episode(np.zeros((5, 0)), np.zeros((5, 1)), np.zeros(5))], 1, r"observations .*, T, O and A of 1 or more"),
        ([Episode(np.full((5, 2), np.nan), np.zeros((5, 1)), np.zeros(5))], 1, "observations are not all finite"),
        ([Episode(np.zeros((5, 2)), np.zeros((5, 1)), np.full(5, 1e39))], 1, "rewards are not all finite"),
        (
            [*episodes_of([5], [True]), Episode(np.zeros((5, 3)), np.zeros((5, 1)), np.zeros(5))],
            1,
            r"episode 1: observations have shape \(5, 3\)",
        ),
    ],
)
def test_arrays_that_do_not_fit_are_one_line(episodes, updates, words):
    config = replace(preset("smoke", "own"), horizon=4)
    with pytest.raises(ConfigError, match=words) as raised:
        fit(make_world_model(config, EnvSpec(2, 1)), episodes, config, jax.random.key(0), updates)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("largest", [1.0, 1.0 + 1e-6, 2.0])
def test_actions_beyond_their_bounds_are_warned_of_where_they_are_clipped_and_refused_where_squashed(largest, capsys):
    """As of a recording whose bounds are -2 and 2; tanh has no such value."""
    episode = Episode(np.zeros((5, 2)), np.linspace(-1, largest, 5)[:, None], np.zeros(5))
    config = override(preset("smoke", "own"), {"horizon": 4, "world_model": "ensemble"})
    model, key = make_world_model(config, EnvSpec(2, 1)), jax.random.key(0)
    fit(model, [episode], config, key, 1)
    said = capsys.readouterr().err
    warning = "warning: actions are up to 2; what lies beyond -1 and 1 counts as these bounds"
    assert (warning in said) == (largest == 2.0) and "actions are up to 1" not in said
    squashed = override(config, {"env.actions": "squashed"})
    if largest < 2.0:
        fit(make_world_model(squashed, EnvSpec(2, 1)), [episode], squashed, key, 1)
        return
    with pytest.raises(ConfigError, match="actions are up to 2; allowed where env.actions is squashed: from -1 to 1"):
        fit(model, [episode], squashed, key, 1)


def test_contexts_of_the_wrong_size_are_one_line():
    with pytest.raises(ConfigError, match=r"observations have shape \(3, 4\); allowed: \[B, 2\]"):
        contexts_at(np.zeros((3, 4)), EnvSpec(2, 1))
    assert contexts_at(np.zeros((3, 2)), EnvSpec(2, 1)).actions.shape == (3, 1, 1)
