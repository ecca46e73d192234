"""Runs as Minari datasets and back, other people's datasets, and the official code's arrays.

What needs the package ``minari`` (an optional extra) is skipped without it.
"""

import json
import os
import pickle
import shlex
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import gymnasium as gym
import jax
import numpy as np
import pytest
import tasks_of_users as users
from recorded import record

from polygrad_jax import cli
from polygrad_jax import config as configs
from polygrad_jax.analysis import dataset_export
from polygrad_jax.analysis.opened_run import open_run
from polygrad_jax.config import ConfigError
from polygrad_jax.data import minari_dataset, official_npy, pickled_arrays
from polygrad_jax.data.normaliser import to_normaliser
from polygrad_jax.data.transition_log import TransitionRecord
from polygrad_jax.envs import mujoco_state, tasks
from polygrad_jax.envs.collector import Collector, uniform_action
from polygrad_jax.runs import physics
from polygrad_jax.runs.recorded_data import open_data
from polygrad_jax.runs.run_folder import RunFolder
from polygrad_jax.training import loop
from polygrad_jax.training.step import make_steps

FIELDS = TransitionRecord.__dataclass_fields__


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return record(tmp_path_factory.mktemp("runs") / "pendulum")


@pytest.fixture(scope="module")
def minari():
    return pytest.importorskip("minari", reason="the extra minari is not installed")


@pytest.fixture(scope="module")
def exported(folder, minari, tmp_path_factory):
    pytest.importorskip("h5py", reason="the extra minari is not installed")
    root = tmp_path_factory.mktemp("datasets")
    return root, dataset_export.export(folder, root)


# --- what the last steps led to --------------------------------------------------------------------------------------


def test_episodes_by_hand():
    flags = np.zeros(6, bool)
    t = TransitionRecord(np.zeros((6, 1)), np.zeros((6, 1)), np.zeros(6), flags.copy(), flags.copy(), np.zeros((6, 0)))
    assert dataset_export.episode_bounds(t) == [(0, 6)]
    t.terminals[2], t.truncations[4] = True, True
    assert dataset_export.episode_bounds(t) == [(0, 3), (3, 5), (5, 6)]
    t.terminals[5] = True
    assert dataset_export.episode_bounds(t) == [(0, 3), (3, 5), (5, 6)]


def test_final_observations_are_exact_by_two_ways(folder, capsys):
    """From the simulator's states, and by going through whole episodes from their seeds, which uses none of them; the
    observations inside of episodes show what exact means."""
    run = open_run(folder)
    stepped = dataset_export.ends_of(run.transitions, run.config)
    from_seeds = dataset_export._ends_from_seeds(run.transitions, run.config)
    assert (stepped.how, from_seeds.how) == (dataset_export.STEPPED, dataset_export.FROM_SEEDS)
    np.testing.assert_array_equal(stepped.observations, from_seeds.observations)
    bounds = dataset_export.episode_bounds(run.transitions)
    assert len(stepped.observations) == len(bounds) > 20
    last = np.array([end - 1 for _, end in bounds])
    assert np.abs(stepped.observations - run.transitions.observations[last]).max(axis=1).min() > 1e-3
    # The same of steps whose successor is stored.
    inside = last[np.diff([0, *last]) > 1] - 1
    after = mujoco_state.step_copies(
        run.config.env, run.transitions.simulator_states[inside], run.transitions.actions[inside]
    )
    np.testing.assert_array_equal(after.observations.astype(np.float32), run.transitions.observations[inside + 1])
    np.testing.assert_array_equal(after.states, run.transitions.simulator_states[inside + 1])
    # and MuJoCo calls the pendulum fallen where the log says so, but for the episode that was cut off
    assert (np.abs(stepped.observations[:-1, 1]) > 0.2).all() and abs(stepped.observations[-1, 1]) < 0.2
    assert capsys.readouterr().err == ""


@pytest.fixture(scope="module")
def squashed(tmp_path_factory):
    return record(tmp_path_factory.mktemp("runs") / "squashed", actions="squashed")


def test_a_run_of_squashed_actions_is_exported_as_it_was_executed(squashed):
    """The last steps, from the simulator's states and from seeds; and every episode, in a task that only clips."""
    run = open_run(squashed)
    t = run.transitions
    assert np.abs(t.actions).max() > 1.5
    stepped, from_seeds = dataset_export.ends_of(t, run.config), dataset_export._ends_from_seeds(t, run.config)
    assert (stepped.how, from_seeds.how) == (dataset_export.STEPPED, dataset_export.FROM_SEEDS)
    np.testing.assert_array_equal(stepped.observations, from_seeds.observations)
    episodes = list(dataset_export.recorded_episodes(t, stepped, run.config.env.actions))
    np.testing.assert_array_equal(np.concatenate([e.sampled_actions for e in episodes]), t.actions)
    plain = configs.override(run.config, {"env.actions": "clipped"}).env
    for e in episodes:
        np.testing.assert_array_equal(e.actions, np.tanh(e.sampled_actions))
        replayed = mujoco_state.replay_actions(plain, e.simulator_states[:1], e.actions[None])[0][0]
        np.testing.assert_array_equal(replayed.astype(np.float32), e.observations)


def test_the_prefill_of_squashed_actions_executes_what_that_of_clipped_ones_does(squashed, folder):
    """The same draws; so the same episodes, up to the rounding of tanh(arctanh(a))."""
    ours, theirs = (open_run(f).transitions for f in (squashed, folder))
    prefilled = min(len(ours), len(theirs)) - 2  # behind it are two steps with raw actions of the fixture's
    np.testing.assert_allclose(np.tanh(ours.actions[:prefilled]), theirs.actions[:prefilled], atol=1.1e-3)
    ordered = np.sort(np.tanh(ours.actions[:prefilled]), axis=None)
    assert np.abs(np.arange(prefilled) / prefilled - (ordered + 1) / 2).max() < 1.63 / np.sqrt(prefilled)


def test_a_run_of_squashed_actions_goes_on_exactly(squashed):
    """Back in the open episode of its checkpoint, the environment stands where the last stored step leads, and goes on
    from there; the replay is refilled with actions as sampled."""
    run = open_run(squashed)
    t = run.transitions
    again = loop.begin(run.config, squashed)
    steps = make_steps(again.config, again.spec, again.world_model, again.agent)
    state = loop.restore(again, jax.jit(steps.init)(), jax.jit(steps.insert))
    np.testing.assert_array_equal(state.replay.actions[: len(t)], t.actions)
    after = dataset_export.ends_of(t, run.config)  # where the open episode stands
    np.testing.assert_array_equal(again.collecting.collector.observation, after.observations[-1])
    step = again.collecting.collector.step(np.full(1, 1.3))
    np.testing.assert_array_equal(step.simulator_state, after.simulator_states[-1])
    plain = configs.override(run.config, {"env.actions": "clipped"}).env
    following = mujoco_state.step_copies(plain, after.simulator_states[-1:], np.tanh(np.full((1, 1), 1.3, np.float32)))
    np.testing.assert_array_equal(step.next_observation, following.observations[0].astype(np.float32))
    again.close()


def test_executed_actions_of_other_programs_become_raw_ones(squashed, tmp_path):
    """arctanh of 0.5 is 0.549; of 1 that of 0.999, which is 3.8. A run's own keep their execution."""
    arrays = official()
    arrays["actions"] = np.array([0.5, 1, -1, 0, 0.25, 0, 0, 0], np.float32).reshape(2, 4, 1)
    np.savez(tmp_path / "official.npz", **arrays)
    data = open_data(str(tmp_path / "official.npz"))
    assert data.executed_as("clipped").transitions.actions.tolist() == data.transitions.actions.tolist()
    raw = data.executed_as("squashed").transitions.actions[:, 0]
    np.testing.assert_allclose(raw, [0.549306, 3.8002, -3.8002, 0.255413, 0], rtol=1e-4)
    ours = open_data(str(squashed))
    assert ours.executed_as("squashed") is ours and np.abs(ours.transitions.actions).max() > 1.5
    with pytest.raises(ConfigError, match="env.actions is clipped; allowed for dataset squashed: squashed"):
        ours.executed_as("clipped")


def test_what_is_not_exact_is_said_aloud(folder, capsys):
    run = open_run(folder)
    t = run.transitions
    other = TransitionRecord(**{name: getattr(t, name) for name in FIELDS} | {"rewards": t.rewards + 0.25})
    ends = dataset_export.ends_of(other, run.config)
    assert ends.how == dataset_export.REPEATED and ends.simulator_states.shape[1] == 0
    said = capsys.readouterr().err
    assert "the reward of a restored copy differs by up to 0.25 from what was stored; the dataset has none" in said
    assert "step 0 of the run, taken again, gave another reward" in said

    spoilt = {"simulator_states": np.empty((len(t), 0)), "observations": t.observations.copy()}
    spoilt["observations"][17, 0] += 1e-6
    without = TransitionRecord(**{name: getattr(t, name) for name in FIELDS} | spoilt)
    ends = dataset_export.ends_of(without, run.config)
    said = capsys.readouterr().err
    assert ends.how == dataset_export.REPEATED
    assert "are repeated ones: step 17 of the run, taken again, gave another" in said
    np.testing.assert_array_equal(ends.observations[-1], t.observations[-1])


@pytest.mark.parametrize(
    ("task", "how"),
    [
        ("ScaledObservations", dataset_export.STEPPED),
        ("ScaledRewards", dataset_export.STEPPED),
        ("GoalPerEpisode", dataset_export.FROM_SEEDS),
        ("MassPerEpisode", dataset_export.FROM_SEEDS),
        ("TimeAware", dataset_export.FROM_SEEDS),
        ("Centred", dataset_export.FROM_SEEDS),
        ("GoalPerInstance", dataset_export.REPEATED),
    ],
)
def test_a_dataset_says_exact_only_of_what_the_task_did(task, how, capsys):
    """Against the observations that the collector saw behind the last steps, which no log has."""
    make = users.EQUAL.get(task) or users.UNEQUAL[task]
    config = configs.override(configs.smoke(make(task)), {"seed": 4})
    collector = Collector(config.env, config.seed)
    steps = [collector.step(uniform_action(4, k, 1)) for k in range(120)]
    collector.close()
    empty = np.empty(collector.simulator_state_size)
    columns = {
        "observations": [s.observation for s in steps],
        "actions": [s.action for s in steps],
        "rewards": np.float32([s.reward for s in steps]),
        "terminals": [s.terminal for s in steps],
        "truncations": [s.truncated for s in steps],
        "simulator_states": [empty if s.simulator_state is None else s.simulator_state for s in steps],
    }
    t = TransitionRecord(**{name: np.array(column) for name, column in columns.items()})
    ends = dataset_export.ends_of(t, config)
    last = [s.next_observation for s in steps if s.terminal or s.truncated or s is steps[-1]]
    said = capsys.readouterr().err
    assert ends.how == how
    assert (ends.simulator_states.shape[1] > 0) == (how == dataset_export.STEPPED)
    assert ("no simulator states: " in said) == (how != dataset_export.STEPPED)
    assert ("repeated" in said) == (how == dataset_export.REPEATED)
    if how != dataset_export.REPEATED:
        np.testing.assert_array_equal(ends.observations, last)
    episodes = list(dataset_export.recorded_episodes(t, ends, "clipped"))
    assert {e.simulator_states.shape[1] for e in episodes} == {ends.simulator_states.shape[1]}


# --- Minari ----------------------------------------------------------------------------------------------------------


def test_minari_reads_what_a_run_left(exported, folder, minari, monkeypatch):
    root, written = exported
    assert written == root / "polygrad" / "inverted_pendulum" / "smoke-seed0-v0"
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(root))
    assert list(minari.list_local_datasets()) == ["polygrad/inverted_pendulum/smoke-seed0-v0"]
    assert [path.name for path in root.iterdir()] == ["polygrad"], "something unfinished was left"
    dataset = minari.load_dataset("polygrad/inverted_pendulum/smoke-seed0-v0")
    run = open_run(folder)
    t = run.transitions
    assert (dataset.total_steps, dataset.total_episodes) == (len(t), len(dataset_export.episode_bounds(t)))
    for episode, (first, end) in zip(dataset.iterate_episodes(), dataset_export.episode_bounds(t), strict=True):
        part = t[first:end]
        assert len(episode.observations) == len(part) + 1
        np.testing.assert_array_equal(episode.observations[:-1], part.observations)
        np.testing.assert_array_equal(episode.actions, np.clip(part.actions, -1, 1))
        np.testing.assert_array_equal(episode.rewards, part.rewards)
        np.testing.assert_array_equal(episode.terminations, part.terminals)
        np.testing.assert_array_equal(episode.infos["simulator_states"][:-1], part.simulator_states)
    assert not episode.terminations.any() and episode.truncations.tolist() == [False] * (len(part) - 1) + [True]
    # The environment that Minari recovers takes the stored actions: from the first state it goes where they went.
    env = dataset.recover_environment()
    assert env.action_space == tasks.make(run.config.env).action_space
    env.reset(seed=0)
    episode = dataset[0]
    mujoco_state.set_state(env, episode.infos["simulator_states"][0])
    for k, action in enumerate(episode.actions):
        observation, reward, ended, _, _ = env.step(action)
        np.testing.assert_array_equal(observation.astype(np.float32), episode.observations[k + 1])
    assert ended
    metadata = dataset.storage.metadata
    assert metadata["data_format"] == "hdf5"  # in which Minari cuts no episode
    assert metadata["final_observations"] == dataset_export.STEPPED
    assert any(line.startswith("mujoco==") for line in metadata["requirements"])


def test_our_reader_gives_the_run_back(exported, folder, monkeypatch):
    run, data = open_run(folder), open_data(str(exported[1]))
    for name in FIELDS:
        ours, stored = getattr(run.transitions, name).copy(), getattr(data.transitions, name)
        if name == "truncations":
            ours[-1] = True  # the recording stops there
        np.testing.assert_array_equal(ours, stored, err_msg=name)
    assert data.name == "polygrad-inverted_pendulum-smoke-seed0-v0"
    assert data.collector == run.config and data.env == run.config.env and data.why_not_judged() is None
    actor = jax.device_get(run.agent.policy(run.agent_state).params)
    assert jax.tree.structure(actor) == jax.tree.structure(data.actor)
    for ours, stored in zip(jax.tree.leaves(actor), jax.tree.leaves(data.actor), strict=True):
        np.testing.assert_array_equal(ours, stored)
    monkeypatch.chdir(folder)
    assert open_data(".").name == "pendulum"  # after which fit names a folder of its own
    from_run = open_data(str(folder))
    np.testing.assert_array_equal(from_run.transitions.simulator_states, data.transitions.simulator_states)


@pytest.mark.filterwarnings("ignore::UserWarning")  # Minari recommends an author, an e-mail address and so on
def test_what_minari_combined_of_our_datasets_has_the_actions_as_executed(minari, monkeypatch, tmp_path):
    """It keeps the sampled actions, but no configuration that says that tanh squashed them: 2 was executed as 0.96."""
    config = configs.override(configs.smoke("hopper"), {"env.actions": "squashed"})
    raw, zeros = np.full((3, 1), 2.0, np.float32), np.zeros(3, np.float32)
    observations = np.arange(4, dtype=np.float32)[:, None]
    episode = minari_dataset.RecordedEpisode(observations, np.tanh(raw), raw, zeros, True, False, np.zeros((4, 0)))
    spaces = gym.spaces.Box(-9.0, 9.0, (1,)), gym.spaces.Box(-1.0, 1.0, (1,))
    told = {"polygrad_config": json.dumps(configs.to_dict(config))}
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    one = minari_dataset.write(tmp_path, "ours-v0", [episode], None, spaces, told, {})
    minari.combine_datasets([minari.load_dataset("ours-v0")] * 2, "combined-v0")
    for data, stored in ((open_data(one), raw), (open_data("combined-v0"), np.tanh([*raw, *raw]))):
        np.testing.assert_allclose(data.transitions.actions, stored)
        squashed = data.executed_as("squashed").transitions.actions
        np.testing.assert_allclose(squashed, 2.0, rtol=1e-5)


def test_an_existing_dataset_is_left_alone(exported, folder):
    root, written = exported
    before = (written / "data" / "main_data.hdf5").read_bytes()
    with pytest.raises(ConfigError, match="exists already"):
        dataset_export.export(folder, root)
    assert (written / "data" / "main_data.hdf5").read_bytes() == before


def test_where_no_dataset_can_be_written_is_one_line(folder, minari, tmp_path, monkeypatch):
    (tmp_path / "polygrad").touch()
    with pytest.raises(ConfigError, match=f"{tmp_path} cannot be written: .*file.*; allowed: a folder with room"):
        dataset_export.export(folder, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["polygrad"]


def others(minari, root, observation_space, action_space, episodes):
    """A dataset as someone else writes it; its folder."""
    os.environ["MINARI_DATASETS_PATH"] = str(root)
    try:
        with pytest.warns(UserWarning):
            minari.create_dataset_from_buffers(
                "theirs-v0", episodes, observation_space=observation_space, action_space=action_space
            )
    finally:
        del os.environ["MINARI_DATASETS_PATH"]
    return root / "theirs-v0"


def test_someone_elses_dataset(minari, tmp_path):
    """Actions of [0, 4] are brought to [-1, 1]: 0, 1, 4 are -1, -0.5, 1. Nothing is known of a policy."""
    box = gym.spaces.Box(-np.inf, np.inf, (2,), np.float64)
    episodes = [
        minari.data_collector.EpisodeBuffer(
            observations=np.arange(8.0).reshape(4, 2) + 10 * e,
            actions=np.array([[0.0], [1.0], [4.0]]),
            rewards=[1.0, 2.0, 3.0],
            terminations=[False, False, e == 0],
            truncations=[False, False, False],
        )
        for e in range(2)
    ]
    path = others(minari, tmp_path, box, gym.spaces.Box(0.0, 4.0, (1,), np.float64), episodes)
    data = open_data(str(path))
    t = data.transitions
    np.testing.assert_array_equal(t.observations, [[0, 1], [2, 3], [4, 5], [10, 11], [12, 13], [14, 15]])
    np.testing.assert_array_equal(t.actions, [[-1], [-0.5], [1]] * 2)
    np.testing.assert_array_equal(t.rewards, [1, 2, 3, 1, 2, 3])
    np.testing.assert_array_equal(t.terminals, [0, 0, 1, 0, 0, 0])
    np.testing.assert_array_equal(t.truncations, [0, 0, 0, 0, 0, 1])
    assert t.simulator_states.shape == (6, 0) and "no simulator states" in data.why_not_judged()


def test_a_dimension_of_one_value_is_read_as_0(minari, tmp_path):
    """[1, 1] has no way back to [-1, 1]; the other dimension, of [0, 4], has."""
    box = gym.spaces.Box(-np.inf, np.inf, (2,), np.float64)
    bounds = gym.spaces.Box(np.array([1.0, 0.0]), np.array([1.0, 4.0]), dtype=np.float64)
    episode = minari.data_collector.EpisodeBuffer(
        observations=np.arange(6.0).reshape(3, 2),
        actions=np.array([[1.0, 1.0], [1.0, 4.0]]),
        rewards=[0.0, 1.0],
        terminations=[False, True],
        truncations=[False, False],
    )
    data = open_data(others(minari, tmp_path, box, bounds, [episode]))
    np.testing.assert_array_equal(data.transitions.actions, [[0.0, -0.5], [0.0, 1.0]])
    statistics = to_normaliser(data.replay(2).moments).actions
    assert np.isfinite(statistics.std).all() and (np.asarray(statistics.std) > 0).all()


class Theirs:
    """What Minari gives of a dataset: episodes of these lengths, and what the metadata say of them."""

    def __init__(self, lengths, told=None, total=None, data_format="arrow", **changes):
        self.observation_space = gym.spaces.Box(-np.inf, np.inf, (2,), np.float64)
        self.action_space, self.env_spec = gym.spaces.Box(-1.0, 1.0, (1,), np.float64), None
        told = lengths if told is None else told
        self.episode_indices, self.total_steps = range(len(told)), sum(told) if total is None else total
        metadata = [{"id": k, "total_steps": n} for k, n in enumerate(told)]
        self.storage = SimpleNamespace(FORMAT=data_format, get_episode_metadata=lambda indices: iter(metadata))
        self.episodes = [self.episode(k, n) | (changes if k == 0 else {}) for k, n in enumerate(lengths)]

    def episode(self, k, n):
        flags, arrays = np.zeros(n, bool), {"observations": np.arange(2.0 * (n + 1)).reshape(n + 1, 2)}
        arrays |= {"actions": np.zeros((n, 1)), "rewards": np.zeros(n), "terminations": flags, "truncations": flags}
        return arrays | {"id": k, "infos": None}

    def iterate_episodes(self):
        return (SimpleNamespace(**e) for e in self.episodes)


@pytest.mark.parametrize(
    ("theirs", "words"),
    [
        # Of episodes of 9 and 3 steps, what reads 5 rows at a time makes episodes of 4 and 4.
        (Theirs([4, 4], [9, 3]), r"episode 0 has 4 rewards, its metadata say 9 steps \(Minari cuts .* in arrow\)"),
        (Theirs([3, 4], [3, 9], data_format="parquet"), r"episode 1 has 4 rewards, .* in parquet\); allowed: 9"),
        (Theirs([4], [9], data_format="hdf5"), "its metadata say 9 steps; allowed: 9 rewards"),
        (Theirs([9], [4]), "episode 0 has 9 rewards, its metadata say 4"),
        (Theirs([3, 2], [3, 2, 4]), "has 2 episodes of 5 steps, its metadata say 3 of 9; allowed: a whole"),
        (Theirs([3, 2], total=99), "has 2 episodes of 5 steps, its metadata say 2 of 99"),
        (Theirs([3, 2], observations=np.zeros((3, 2))), "episode 0 has 3 observations, .* allowed: 4 observations"),
        (Theirs([3, 2], actions=np.zeros((4, 1))), "episode 0 has 4 actions, .* allowed: 3 actions"),
        (Theirs([3, 2], truncations=np.zeros(2, bool)), "episode 0 has 2 truncations"),
        (Theirs([3, 2], terminations=np.array([True, False, False])), "episode 0 is empty or ends before its last"),
        (Theirs([3, 2], rewards=np.zeros((3, 1))), r"episode 0: rewards have shape \(3, 1\); allowed: \(3,\)"),
        (Theirs([3], observations=np.arange(4.0)), r"observations have shape \(4,\); allowed: \(4, 2\)"),
        (Theirs([3], actions=np.zeros((3, 2))), r"actions have shape \(3, 2\); allowed: \(3, 1\)"),
        (Theirs([3], terminations=np.zeros((3, 1), bool)), r"terminations have shape \(3, 1\); allowed: \(3,\)"),
        (Theirs([3], observations=np.ones((4, 2))), "the observations of each episode are all the same"),
        (Theirs([3], observations=np.array([[0, 0], [7, 1], [7, 1], [7, 1.0]])), "each episode are all the same"),
        (Theirs([]), "has no episode"),
    ],
)
def test_a_dataset_that_does_not_add_up_is_refused_in_one_line(theirs, words, monkeypatch, tmp_path):
    monkeypatch.setattr(minari_dataset, "require_minari", lambda: SimpleNamespace(MinariDataset=lambda path: theirs))
    with pytest.raises(ConfigError, match=words) as refused:
        minari_dataset.read(tmp_path)
    assert "\n" not in str(refused.value) and "cannot be read" not in str(refused.value)


def test_a_dataset_that_adds_up_is_read(monkeypatch, tmp_path):
    """Also one whose episodes have a single step, and one some of whose episodes stand still."""
    for theirs in (Theirs([3, 1, 2]), Theirs([1, 1]), Theirs([3, 2], observations=np.ones((4, 2)))):
        fake = SimpleNamespace(MinariDataset=lambda path, theirs=theirs: theirs)
        monkeypatch.setattr(minari_dataset, "require_minari", lambda fake=fake: fake)
        read, task = minari_dataset.read(tmp_path)
        assert len(read) == theirs.total_steps and task is None
        ends = np.cumsum([len(e["rewards"]) for e in theirs.episodes]) - 1
        assert np.flatnonzero(read.truncations).tolist() == ends.tolist()


def test_a_local_dataset_by_its_id_is_refused_for_what_is_wrong_with_it(minari, monkeypatch, tmp_path):
    """And one of no name is not there, even where Minari can have no folder."""
    box, unbounded = (gym.spaces.Box(-x, x, (1,), np.float64) for x in (1.0, np.inf))
    arrays = {"observations": np.zeros((2, 1)), "actions": np.zeros((1, 1)), "rewards": [0.0]}
    episode = minari.data_collector.EpisodeBuffer(**arrays, terminations=[True], truncations=[False])
    path = others(minari, tmp_path, box, unbounded, [episode])
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    with pytest.raises(ConfigError, match=f"dataset {path}: action space has infinite bounds"):
        open_data("theirs-v0")
    (tmp_path / "file").touch()
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "file"))
    with pytest.raises(ConfigError, match="dataset theirs-v0 is not there"):
        open_data("theirs-v0")


def test_spaces_that_are_not_flat_boxes_are_refused(minari, tmp_path):
    episode = minari.data_collector.EpisodeBuffer(
        observations=np.zeros((2, 3)), actions=np.array([1]), rewards=[0.0], terminations=[True], truncations=[False]
    )
    box = gym.spaces.Box(-1.0, 1.0, (3,), np.float64)
    path = others(minari, tmp_path, box, gym.spaces.Discrete(3), [episode])
    with pytest.raises(ConfigError, match="action space is Discrete"):
        minari_dataset.read(path)
    unbounded = gym.spaces.Box(-np.inf, np.inf, (1,), np.float64)
    with pytest.raises(ConfigError, match="infinite bounds"):
        minari_dataset._bounds(path, box, unbounded)
    with pytest.raises(ConfigError, match="action space is Box.*not empty"):
        minari_dataset._bounds(path, box, gym.spaces.Box(-1.0, 1.0, (0,), np.float64))
    reversed_bounds = gym.spaces.Box(-1.0, 1.0, (1,), np.float64)
    reversed_bounds.low += 3.0
    with pytest.raises(ConfigError, match="a lower bound above the upper"):
        minari_dataset._bounds(path, box, reversed_bounds)


def test_without_the_package_one_line_says_how_to_install_it(monkeypatch, capsys, folder, tmp_path):
    monkeypatch.setitem(sys.modules, "minari", None)
    assert cli.main(["dataset", "--run", str(folder), "--out", str(tmp_path)]) == cli.BAD_INPUT
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1 and "pip install 'polygrad_jax[minari]'" in lines[0]
    assert not list(tmp_path.iterdir())


# --- the command -----------------------------------------------------------------------------------------------------


def test_the_command_trains_first_where_there_is_no_run(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(minari_dataset, "require_minari", lambda: None)
    trained, written = [], []
    monkeypatch.setattr(cli, "train_command", lambda words: trained.append(words) or 0)
    monkeypatch.setattr(cli, "_export", lambda run, out: written.append((run, out)) or 0)
    words = ["dataset", "--env", "walker2d", "--preset", "smoke", "--out", "there", "--loop.total-env-steps", "3000"]
    assert cli.main(words) == 0
    assert trained == [["--env", "walker2d", "--preset", "smoke", "--loop.total-env-steps", "3000"]]
    assert written == [(Path("runs/walker2d-smoke-seed0"), Path("there"))]
    assert "is not there: it is trained first, to 3,000" in capsys.readouterr().out

    # A run that has come to its end is not trained again; one that was interrupted ends the command with its code.
    run = tmp_path / "runs" / "walker2d-smoke-seed0"
    (run / "checkpoints" / "3000").mkdir(parents=True)
    config = cli.build_config(*cli._train_parser().parse_known_args(trained[0]), "smoke")
    (run / "config.json").write_text(configs.to_json(config))
    (run / "environment.json").write_text(json.dumps({"mujoco": physics.installed_mujoco()}))
    assert cli.main(words) == 0 and len(trained) == 1 and len(written) == 2
    monkeypatch.setattr(cli, "train_command", lambda words: 143)
    (run / "checkpoints" / "3000").rename(run / "checkpoints" / "2000")
    assert cli.main(words) == 143 and len(written) == 2
    assert "go on with" in capsys.readouterr().err


@pytest.mark.parametrize("options", [[], ["--env", "walker2d", "--preset", "smoke"], ["--a2c.gamma", "0.9"]], ids=str)
def test_an_interrupted_run_goes_on_by_the_words_that_are_said(options, monkeypatch, capsys, tmp_path):
    """A run named alone is written as it is, unfinished; with what it was begun with it is trained to its end."""
    run, trained, written = tmp_path / "run", [], []

    def interrupted(words):
        if not trained:
            config = cli.build_config(*cli._train_parser().parse_known_args(words), "smoke")
            RunFolder(run).record(config, {"mujoco": physics.installed_mujoco()})
        trained.append(words)
        return 130

    monkeypatch.setattr(minari_dataset, "require_minari", lambda: None)
    monkeypatch.setattr(cli, "_choose_preset", lambda: ("smoke", ""))
    monkeypatch.setattr(cli, "train_command", interrupted)
    monkeypatch.setattr(cli, "_export", lambda run, out: written.append(run) or 0)
    assert cli.main(["dataset", "--run", str(run), *options]) == 130
    again = shlex.split(capsys.readouterr().err.partition("go on with: ")[2])
    assert cli.main(again[again.index("dataset") :]) == 130
    assert len(trained) == 2 and not written
    assert cli.main(["dataset", "--run", str(run), "--mixed-physics"]) == 130 and "--mixed-physics" in trained[2]
    assert cli.main(["dataset", "--run", str(run)]) == 0 and written == [run]
    assert cli.main(["dataset", "--run", str(run), "--env", "hopper", "--seed", "5"]) == cli.BAD_INPUT
    assert "has another config in " in capsys.readouterr().err


def test_what_is_typed_to_read_a_dataset_can_be_pasted(monkeypatch, capsys):
    monkeypatch.setattr(dataset_export, "export", lambda run, out: out / "polygrad" / "x-v0")
    assert cli._export(Path("run"), Path("my data")) == 0
    assert "MINARI_DATASETS_PATH='my data' and minari.load_dataset(\"polygrad/x-v0\")" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ([], "exists already; allowed: another --out"),
        (["--agent", "dreamer"], "agent is dreamer, whose policy reads"),
        (["--out", "file"], "out is file, which is a file; allowed: a folder"),
    ],
)
def test_what_cannot_be_written_is_not_trained_first(fields, words, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(minari_dataset, "require_minari", lambda: None)
    monkeypatch.setattr(cli, "train_command", lambda words: pytest.fail("was trained"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    if not fields:
        (tmp_path / "datasets" / "polygrad" / "inverted_pendulum" / "smoke-seed0-v0").mkdir(parents=True)
    model = ["--world-model", "dreamer", *fields] if fields else []
    assert cli.main(["dataset", "--env", "inverted_pendulum", "--preset", "smoke", *model]) == cli.BAD_INPUT
    captured = capsys.readouterr()
    assert words in captured.err and captured.out == "" and not (tmp_path / "runs").exists()


# --- the official code's arrays --------------------------------------------------------------------------------------


def official():
    """Two episodes of 3 and 2 steps in room for 4; the first terminates, and is padded as the official buffer pads."""
    observations = np.zeros((2, 4, 2), np.float32)
    observations[0, :3], observations[1, :2] = [[1, 2], [3, 4], [5, 6]], [[7, 8], [9, 10]]
    observations[0, 3] = [5, 6]
    terminals = np.zeros((2, 4, 1), np.float32)
    terminals[0, 2:] = 1
    return {
        "path_lengths": np.array([3, 2]),
        "observations": observations,
        "actions": np.arange(8, dtype=np.float32).reshape(2, 4, 1),
        "next_observations": observations,
        "rewards": 10 * np.arange(8, dtype=np.float32).reshape(2, 4, 1),
        "terminals": terminals,
        "sim_states": np.full((2, 4, 1), np.nan, np.float32),
        "timeouts": np.zeros((2, 4, 1), np.float32),
    }


def test_official_arrays_by_hand(tmp_path):
    np.savez(tmp_path / "official.npz", **official())
    data = open_data(str(tmp_path / "official.npz"))
    t = data.transitions
    np.testing.assert_array_equal(t.observations, [[1, 2], [3, 4], [5, 6], [7, 8], [9, 10]])
    np.testing.assert_array_equal(t.actions[:, 0], [0, 1, 2, 4, 5])
    np.testing.assert_array_equal(t.rewards, [0, 10, 20, 40, 50])
    np.testing.assert_array_equal(t.terminals, [0, 0, 1, 0, 0])
    np.testing.assert_array_equal(t.truncations, [0, 0, 0, 0, 1])
    assert t.simulator_states.shape == (5, 0) and data.why_not_judged() is not None


def save_as_official(path, arrays, protocol):
    """What ``np.save(path, arrays)`` of an older numpy wrote: the same header, another pickle protocol."""
    held = np.array(arrays, dtype=object)
    with open(path, "wb") as file:
        np.lib.format.write_array_header_1_0(file, np.lib.format.header_data_from_array_1_0(held))
        pickle.dump(held, file, protocol=protocol)


@pytest.mark.parametrize("protocol", [None, 2, 3, 4])
def test_the_official_file_gives_the_arrays_that_were_saved(tmp_path, protocol):
    path, arrays = tmp_path / "step-10-dataset.npy", official()
    arrays |= {"fortran": np.asfortranarray(arrays["actions"][..., 0]), "big": np.array([1.5, -2], ">f8")}
    arrays |= {"empty": np.zeros((0, 3), np.float32), "shared": arrays["observations"], "flags": np.array([True])}
    if protocol is None:
        np.save(path, arrays)
    else:
        save_as_official(path, arrays, protocol)
    with open(path, "rb") as file:
        read = pickled_arrays.read(file, list(arrays))
    assert read.keys() == arrays.keys()
    for name, array in arrays.items():
        np.testing.assert_array_equal(read[name], array, err_msg=name)
        assert read[name].dtype == array.dtype, name
    np.savez(tmp_path / "official.npz", **arrays)
    ours, same = (vars(official_npy.read(p)) for p in (path, tmp_path / "official.npz"))
    for name in ours:
        np.testing.assert_array_equal(ours[name], same[name])


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e39, -1e16])
@pytest.mark.parametrize("name", ["observations", "actions", "rewards"])
def test_numbers_that_are_not_finite_or_too_large_are_refused_where_they_enter(tmp_path, name, value, capsys):
    arrays = {part: np.asarray(array, np.float64) for part, array in official().items()}
    arrays[name][1, 1, 0] = value  # transition 4; what pads an episode is not read
    arrays[name][1, 3, 0] = np.nan
    np.savez(tmp_path / "official.npz", **arrays)
    with pytest.raises(ConfigError, match=f"official.npz: {name} of transition 4 are .*; allowed: finite numbers"):
        open_data(tmp_path / "official.npz")
    assert cli.main(["fit", "--dataset", str(tmp_path / "official.npz"), "--preset", "smoke"]) == cli.BAD_INPUT
    assert len(capsys.readouterr().err.splitlines()) == 1


@pytest.mark.parametrize("name", ["terminals", "path_lengths"])
def test_ends_that_are_not_finite_are_refused(tmp_path, name):
    arrays = {part: np.asarray(array, np.float64) for part, array in official().items()}
    arrays[name][0] = np.nan
    np.savez(tmp_path / "official.npz", **arrays)
    with pytest.raises(ConfigError, match=f"{name} are not"):
        open_data(tmp_path / "official.npz")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("d4rl.hdf5", "is a file that is not read (.hdf5)"),
        ("data/main_data.h5", "is a file that is not read (.h5)"),
        ("table.csv", "is a file that is not read (.csv)"),
        ("README", "is a file that is not read (no suffix)"),
        ("folder/", "is a folder of something else"),
        ("absent.hdf5", "is not there"),
        ("absent", "is not there"),
    ],
)
def test_what_is_no_dataset_is_told_what_is(tmp_path, name, words, capsys):
    path = tmp_path / name
    if name.endswith("/"):
        path.mkdir()
    elif "absent" not in name:
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"HDF")
    assert cli.main(["fit", "--dataset", str(path), "--preset", "smoke"]) == cli.BAD_INPUT
    [line] = capsys.readouterr().err.splitlines()
    for word in (str(path), words, "the folder of a run or of a Minari dataset", ".npz"):
        assert word in line, line


class Malicious:
    """Writes a file when it is unpickled."""

    def __init__(self, path):
        self._path = str(path)

    def __reduce__(self):
        return (open, (self._path, "w"))


def test_nothing_is_unpickled(tmp_path):
    path, proof = tmp_path / "step-10-dataset.npy", tmp_path / "was-here"
    bad = Malicious(proof)
    for arrays in (official() | {"bad": bad}, official() | {"bad": np.array([bad])}, official() | {"rewards": bad}):
        np.save(path, arrays)
        with pytest.raises(ConfigError, match=r"'(bad|rewards)' is no array.*; allowed: a .npy of the official code"):
            open_data(str(path))
    for held in (bad, np.array(bad, dtype=object), [official()], np.zeros(3)):
        np.save(path, held)
        with pytest.raises(ConfigError, match="cannot be read"):
            official_npy.read(path)
    path.with_suffix(".npz").write_bytes(pickle.dumps(Malicious(proof)))
    with pytest.raises(ConfigError, match="it holds pickles") as refused:
        official_npy.read(path.with_suffix(".npz"))
    assert "unsafely" not in str(refused.value)  # as numpy advises
    np.savez(path.with_suffix(".npz"), **official() | {"rewards": np.array([Malicious(proof)])})
    with pytest.raises(ConfigError):
        official_npy.read(path.with_suffix(".npz"))
    assert not proof.exists()


@pytest.mark.parametrize("suffix", [".npy", ".npz"])
def test_damaged_official_files_are_refused_or_read_in_one_way_or_the_other(tmp_path, suffix):
    """Cut off: refused. One byte changed: refused, or another number; nothing else ever comes out."""
    path = tmp_path / f"official{suffix}"
    if suffix == ".npy":
        np.save(path, official())
    else:
        np.savez_compressed(path, **official())
    whole = path.read_bytes()
    for end in range(0, len(whole) - 1, 7):
        path.write_bytes(whole[:end])
        with pytest.raises(ConfigError, match="cannot be read"):
            official_npy.read(path)
    refused = 0
    for place in range(0, len(whole), 3):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0x55]) + whole[place + 1 :])
        try:
            assert official_npy.read(path).observations.shape[1] >= 1
        except ConfigError:
            refused += 1
    assert refused > len(whole) // 12


@pytest.mark.parametrize("deep", ["wide", "long"])
def test_keys_that_take_for_ever_to_hash_are_refused(tmp_path, deep):
    """{((x, x), (x, x)): ...}, 40 levels of it, and a tuple in a tuple a million times."""
    twice = pickle.EMPTY_TUPLE + b"".join(
        pickle.BINPUT + bytes([0]) + pickle.BINGET + bytes([0]) + pickle.TUPLE2 for _ in range(40)
    )
    key = twice if deep == "wide" else pickle.EMPTY_TUPLE + pickle.TUPLE1 * 90_000
    held = np.array({}, dtype=object)
    with open(tmp_path / "official.npy", "wb") as file:
        np.lib.format.write_array_header_1_0(file, np.lib.format.header_data_from_array_1_0(held))
        file.write(pickle.PROTO + bytes([4]) + pickle.EMPTY_DICT + key + pickle.NONE + pickle.SETITEM + pickle.STOP)
    with pytest.raises(ConfigError, match="a tuple where a name should be"):
        official_npy.read(tmp_path / "official.npy")


def test_a_file_of_opcodes_is_refused_before_all_are_followed(tmp_path):
    held = np.array({}, dtype=object)
    with open(tmp_path / "official.npy", "wb") as file:
        np.lib.format.write_array_header_1_0(file, np.lib.format.header_data_from_array_1_0(held))
        file.write(pickle.PROTO + bytes([4]) + pickle.EMPTY_LIST + (pickle.NONE + pickle.APPEND) * 60_000 + pickle.STOP)
    with pytest.raises(ConfigError, match="more than 100,000 opcodes"):
        official_npy.read(tmp_path / "official.npy")


@pytest.mark.parametrize("name", ["official.npz", "official.npy", "run"])
def test_a_pipe_is_refused_and_not_waited_for(tmp_path, name):
    """In a process of its own, which ends it if it waits."""
    (tmp_path / "run").mkdir()
    os.mkfifo(tmp_path / "run" / "config.json")
    os.mkfifo(tmp_path / "official.npz")
    os.mkfifo(tmp_path / "official.npy")
    read = "read_json(Path(sys.argv[1]) / 'config.json')" if name == "run" else "official_npy.read(Path(sys.argv[1]))"
    program = (
        "import signal, sys; from pathlib import Path; from polygrad_jax.config import ConfigError\n"
        "from polygrad_jax.data import official_npy; from polygrad_jax.runs.run_folder import read_json\n"
        f"signal.setitimer(signal.ITIMER_REAL, 30)\ntry:\n    {read}\nexcept ConfigError as error:\n    print(error)"
    )
    done = subprocess.run([sys.executable, "-c", program, tmp_path / name], capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "it is no file" in done.stdout, done


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("path_lengths", np.array([3, 5]), "path_lengths"),
        ("path_lengths", np.array([3]), "path_lengths"),
        ("path_lengths", np.array([2.7, 2.0]), "path_lengths are not 2 whole numbers"),
        ("path_lengths", np.array([np.inf, 2.0]), "path_lengths are not 2 whole numbers"),
        ("path_lengths", np.array([True, True]), "path_lengths are not 2 whole numbers"),
        ("rewards", np.zeros((2, 3, 1)), "rewards have shape"),
        ("rewards", np.zeros((2, 4, 2)), r"allowed: \[2, 4, 1\]"),
        ("terminals", np.zeros((2, 4, 0)), r"allowed: \[2, 4, 1\]"),
        ("observations", np.zeros((2, 10**12, 0)), "observations have shape"),
        ("observations", np.zeros((0, 4, 2)), r"shape \[0, 4, 2\]; allowed: \[1 or more, 4, 1 or more\]"),
        ("observations", np.zeros((2, 0, 2)), r"shape \[2, 0, 2\]; allowed: \[2, 1 or more, 1 or more\]"),
        ("observations", np.zeros(3), "observations have shape"),
        ("observations", np.float32(1), "observations have shape"),
        ("actions", np.full((2, 4, 1), "left"), "actions are of type <U4"),
        ("terminals", np.ones((2, 4, 1)), "terminals inside"),
        ("terminals", -official()["terminals"], "terminals are not all 0 or 1"),
        ("terminals", 0.5 * official()["terminals"], "terminals are not all 0 or 1"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(tmp_path, name, value, words):
    np.savez(tmp_path / "official.npz", **official() | {name: value})
    with pytest.raises(ConfigError, match=words):
        official_npy.read(tmp_path / "official.npz")
    arrays = official()
    del arrays["rewards"]
    np.savez(tmp_path / "official.npz", **arrays)
    np.save(tmp_path / "official.npy", arrays)
    for file in ("official.npz", "official.npy"):
        with pytest.raises(ConfigError, match=r"cannot be read \(it has no rewards\); allowed: "):
            official_npy.read(tmp_path / file)
