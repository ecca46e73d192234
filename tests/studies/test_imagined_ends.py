"""Where imagined episodes end against where MuJoCo ends them, on the run that the README's example leaves."""

import dataclasses
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.learning import imagined_ends
from polygrad_jax.analysis.opened_run import open_run
from polygrad_jax.config import ConfigError
from polygrad_jax.envs.mujoco_state import replay_actions
from polygrad_jax.types import Policy, Prediction, Segment
from polygrad_jax.world_models.companion import CompanionState

TRAJECTORIES = 96
PROBABILITY = 0.25


def falling(run):
    """A policy that Hopper falls under before the horizon."""

    def apply(params, raw_obs):
        shape = (*raw_obs.shape[:-1], run.spec.action_size)
        return jnp.full(shape, 0.9), jnp.full(shape, 0.1)

    return Policy({}, apply)


class Known:
    """A run whose world model is MuJoCo itself, ``late`` steps late, and whose companion ends by a known chance."""

    def __init__(self, run, late):
        self.folder, self.config, self.spec, self.env_steps = run.folder, run.config, run.spec, run.env_steps
        self.normaliser, self.replay, self.simulator_states = run.normaliser, run.replay, run.simulator_states
        self.policy, self.late = falling(run), late
        self.model_state = CompanionState(None, None)
        self.world_model = run.world_model._replace(step=self.step)

    def step(self, state, raw_obs, raw_actions, normaliser, key):
        del state, raw_actions, normaliser, key
        return Prediction(raw_obs, raw_obs[:, 0], jnp.full(raw_obs.shape[0], PROBABILITY))

    def untrained_state(self, key):
        del key
        return "untrained"

    def imagine(self, contexts, key, model_state=None):
        horizon, size = self.config.horizon, self.spec.action_size
        noise = jax.random.normal(key, (TRAJECTORIES, horizon, size))
        actions = np.asarray(0.9 + 0.1 * noise, np.float32)
        observations, rewards, ends = replay_actions(
            self.config.env, self.simulator_states(contexts), actions[:, :-1]
        )
        ends = np.maximum.accumulate(np.pad(ends, ((0, 0), (self.late, 1)))[:, :horizon], axis=1)
        if model_state == "untrained":
            ends = np.zeros_like(ends)
        return Segment(observations, actions, np.pad(rewards, ((0, 0), (0, 1))), ends.astype(np.float32))


@pytest.fixture(scope="module")
def run(readme_run):
    return open_run(readme_run.folder)


@pytest.fixture(scope="module", params=[0, 3])
def measured(request, run):
    """How late the model's ends are, and the rows by states and model."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(imagined_ends, "TRAJECTORIES", TRAJECTORIES)
        patch.setattr(imagined_ends, "open_run", lambda folder: Known(run, request.param))
        rows = list(imagined_ends.measure(SimpleNamespace(), run.folder))
    assert [(row["states"], row["model"]) for row in rows] == [
        (states, model) for states in ("recent", "all") for model in ("world model", "untrained", "companion")
    ]
    return request.param, {(row["states"], row["model"]): row for row in rows}


def test_the_simulator_as_the_model_is_right_about_every_end_unless_it_is_late(measured):
    """Kills: actions, states or ends of other trajectories; ends that count as right wherever they are."""
    late, rows = measured
    share = 1.0 if late == 0 else 0.0
    for states in ("recent", "all"):
        row = rows[states, "world model"]
        assert row["ends_real"] > 0, "nothing falls"
        assert (row["terminal_precision"], row["terminal_recall"]) == (share, share)
        never = rows[states, "untrained"]
        assert never["ends_imagined"] == never["terminal_recall"] == 0 and np.isnan(never["terminal_precision"])


def test_the_companions_probabilities_are_drawn(measured, run):
    """Kills: ends wherever they are possible, or where they are more likely than not."""
    share = measured[1]["all", "companion"]["ends_imagined"]
    expected = 1 - (1 - PROBABILITY) ** (run.config.horizon - 1)
    assert abs(share - expected) < 4 * np.sqrt(expected * (1 - expected) / TRAJECTORIES)


def test_recent_states_are_from_the_newest_windows(monkeypatch, run):
    monkeypatch.setattr(imagined_ends, "TRAJECTORIES", TRAJECTORIES)
    monkeypatch.setattr(imagined_ends, "NEWEST", 100)
    newest = imagined_ends.contexts_of(run, "recent")
    anywhere = imagined_ends.contexts_of(run, "all")
    assert newest.rows.shape == anywhere.rows.shape == (TRAJECTORIES, 1)
    replay = run.replay
    positions = np.arange(int(replay.tail) - 100, int(replay.tail)) % len(replay.starts)
    newest_starts = np.asarray(replay.starts)[positions]
    assert np.isin(newest.rows, newest_starts).all()
    assert not np.isin(anywhere.rows, newest_starts).all()


def test_a_cell_is_a_run_folder_and_bad_ones_are_refused(tmp_path, run):
    found = imagined_ends.cells(SimpleNamespace(runs=[tmp_path / "a" / "one", tmp_path / "two"]))
    assert found == {"one": tmp_path / "a" / "one", "two": tmp_path / "two"}
    with pytest.raises(ConfigError, match="two folders of --runs are named one; allowed: different names"):
        imagined_ends.cells(SimpleNamespace(runs=[tmp_path / "a" / "one", tmp_path / "b" / "one"]))
    longer = dataclasses.replace(run, world_model=run.world_model._replace(context_length=3))
    with pytest.raises(ConfigError, match="contexts of several states; allowed: a world model that begins from one"):
        imagined_ends.contexts_of(longer, "all")
