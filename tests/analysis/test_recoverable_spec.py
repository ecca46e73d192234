"""A dataset names an environment only if another program makes the same task from it; else one line says what lacks."""

import json
import re

import gymnasium as gym
import numpy as np
import pytest
import tasks_of_users as users
from gymnasium.envs.registration import EnvSpec

from polygrad_jax.analysis.recoverable_spec import recoverable_spec
from polygrad_jax.config import EnvConfig
from polygrad_jax.data import minari_dataset
from polygrad_jax.data.minari_dataset import RecordedEpisode
from polygrad_jax.envs import tasks


@pytest.mark.parametrize("name", ["inverted_pendulum", "hopper hidden", "Pendulum-v1", *users.KEPT])
def test_a_spec_that_is_kept_makes_the_task_again(name):
    if name in users.KEPT:
        config = EnvConfig(users.KEPT[name](name))
    else:
        config = EnvConfig(name.split()[0], hide_velocities=name.endswith("hidden"))
    spec, missing = recoverable_spec(config)
    assert missing is None
    again, env = gym.make(EnvSpec.from_json(spec.to_json())), tasks.make(config)
    assert json.loads(spec.to_json())["id"] == spec.id
    assert (again.observation_space, again.action_space) == (env.observation_space, env.action_space)
    np.testing.assert_array_equal(again.reset(seed=3)[0], env.reset(seed=3)[0])
    for action in np.random.default_rng(0).uniform(-1, 1, (5, *env.action_space.shape)).astype(np.float32):
        np.testing.assert_array_equal(again.step(action)[0], env.step(action)[0])


@pytest.mark.parametrize("name", users.LOST)
def test_a_spec_that_would_make_another_task_is_not_kept(name):
    make, words = users.LOST[name]
    spec, missing = recoverable_spec(EnvConfig(make(name)))
    assert spec is None and "\n" not in missing
    assert re.search(words, missing), missing


def test_a_dataset_without_an_environment_is_written_and_read(tmp_path):
    pytest.importorskip("minari", reason="the extra minari is not installed")
    pytest.importorskip("h5py", reason="the extra minari is not installed")
    env = tasks.make(EnvConfig("inverted_pendulum"))
    zeros, observations = np.zeros((3, 1), np.float32), np.arange(16, dtype=np.float32).reshape(4, 4)
    episode = RecordedEpisode(observations, zeros, zeros, zeros[:, 0], True, False, np.zeros((4, 0)))
    spaces, metadata = (env.observation_space, env.action_space), {"no_environment": "entry_point is <lambda>"}
    folder = minari_dataset.write(tmp_path, "ours/lambda-v0", [episode], None, spaces, metadata, {})
    transitions, env_id = minari_dataset.read(folder)
    assert len(transitions) == 3 and env_id is None
    assert json.loads((folder / "data" / "metadata.json").read_text())["no_environment"] == metadata["no_environment"]
