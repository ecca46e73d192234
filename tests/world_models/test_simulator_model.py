"""The simulator behind the world models' protocol: exactly the closed loop, and trained with like any other."""

import csv
import dataclasses
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tasks_of_users as users

from polygrad_jax import cli
from polygrad_jax import config as configs
from polygrad_jax.analysis.opened_run import open_run
from polygrad_jax.config import ConfigError, EnvConfig, EnvSpec
from polygrad_jax.envs import collector as stepping
from polygrad_jax.envs import mujoco_state as simulator
from polygrad_jax.envs import tasks as registry
from polygrad_jax.envs.prediction_error import simulator_errors
from polygrad_jax.runs.checkpoints import Checkpoints
from polygrad_jax.training import loop
from polygrad_jax.types import Policy, Segment
from polygrad_jax.world_models import simulator as world
from polygrad_jax.world_models.model_table import make_world_model


def walked(task, count):
    """Simulator states ``[count, S]`` and observations ``[count, O]`` of episodes of random actions."""
    env = registry.make(EnvConfig(task))
    observation, _ = env.reset(seed=0)
    states, observations = [], []
    for k in range(count):
        states.append(simulator.read_state(env))
        observations.append(observation)
        observation, _, ended, _, _ = env.step(stepping.uniform_action(0, k, registry.spec_of(env).action_size))
        if ended:
            observation, _ = env.reset(seed=k)
    return np.stack(states), np.stack(observations).astype(np.float32)


def test_states_travel_bit_for_bit():
    states = np.array([[0.1, -np.pi, 1e-300], [np.nan, np.inf, -0.0]])
    words = world.as_words(states)
    assert words.shape == (2, 6) and words.dtype == np.uint32
    np.testing.assert_array_equal(world.from_words(words).view(np.uint64), states.view(np.uint64))


@pytest.mark.parametrize("task", ["hopper", "walker2d", "halfcheetah", "inverted_pendulum", "Swimmer-v5"])
@pytest.mark.parametrize("cores", [1, 3])
def test_copies_are_stepped_as_the_task_itself_whatever_the_threads(task, cores, monkeypatch):
    """Against an environment that is stepped on without being touched in between; 48 copies are worth 3 threads."""
    monkeypatch.setattr(simulator, "_cores", lambda: cores)
    config, states = EnvConfig(task), walked(task, 48)[0]
    size = registry.spec_of(registry.make(config)).action_size
    actions = 1.5 * np.random.default_rng(0).standard_normal((48, 4, size)).astype(np.float32)
    expected = simulator.replay_actions(config, states, actions)
    for k in range(4):
        after = simulator.step_copies(config, states, actions[:, k])
        np.testing.assert_array_equal(after.observations, expected[0][:, k + 1])
        np.testing.assert_array_equal(after.rewards, expected[1][:, k])
        np.testing.assert_array_equal(after.terminals, expected[2][:, k])
        again = simulator.step_copies(config, states, actions[:, k])
        for one, two in zip(after, again, strict=True):
            np.testing.assert_array_equal(one, two)
        states = after.states


def test_an_action_that_is_not_finite_is_not_stepped_as_zero():
    states = walked("hopper", 3)[0]
    actions = np.zeros((3, 3), np.float32)
    expected = simulator.step_copies(EnvConfig("hopper"), states, actions)
    actions[1, 2] = np.nan
    after = simulator.step_copies(EnvConfig("hopper"), states, actions)
    assert np.isnan(after.observations[1]).all() and np.isnan(after.states[1]).all() and np.isnan(after.rewards[1])
    for ours, theirs in zip(after[:3], expected[:3], strict=True):
        np.testing.assert_array_equal(ours[[0, 2]], theirs[[0, 2]])


def test_shapes_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"allowed are \[B, 19\]"):
        simulator.step_copies(EnvConfig("hopper"), np.zeros((2, 18)), np.zeros((2, 3)))
    with pytest.raises(ValueError, match=r"allowed are \[2, 3\]"):
        simulator.step_copies(EnvConfig("hopper"), np.zeros((2, 19)), np.zeros((2, 1)))


# --- imagine ---------------------------------------------------------------------------------------------------------


def policy(gain, raw_obs):
    """Leans on the observation, with a std that depends on it too."""
    return jnp.tanh(gain * raw_obs[..., :3]), 0.5 + 0.1 * jnp.tanh(raw_obs[..., 3:6])


@pytest.fixture(scope="module")
def imagined():
    """32 Hopper trajectories of 60 states from states 0, 7, 14, ... of 224 that were walked through."""
    states, observations = walked("hopper", 224)
    spec, rows = EnvSpec(11, 3), np.arange(0, 224, 7, dtype=np.int32)
    config = dataclasses.replace(configs.smoke("hopper"), world_model="simulator", horizon=60)
    model = make_world_model(config, spec, lambda rows: states[rows])
    # Two states of context, of which only the last counts.
    pairs = np.stack([np.maximum(rows - 1, 0), rows], axis=1)
    context = Segment(
        jnp.asarray(observations[pairs]), jnp.zeros((32, 2, 3)), jnp.zeros((32, 2)), jnp.zeros((32, 2)), pairs
    )
    imagine = jax.jit(model.imagine)
    given = (model.init(jax.random.key(9)), Policy(jnp.float32(0.3), policy), context, None)
    first = jax.device_get(imagine(*given, jax.random.key(1))[0])
    again = jax.device_get(imagine(*given, jax.random.key(1))[0])
    return model, states[rows], first, again


def test_imagining_is_the_closed_loop_bit_for_bit(imagined):
    """Under the same draws: its actions, executed by ``close_loop``, lead through the same observations, and at those
    the policy and the draws give these actions."""
    _, states, ours, _ = imagined
    action_keys = jax.vmap(jax.random.split)(jax.random.split(jax.random.key(1), 60))[:, 0]
    noise = np.asarray(jax.vmap(lambda key: jax.random.normal(key, (32, 3)))(action_keys))

    def act(k, raw_obs):
        mean, std = jax.device_get(policy(jnp.float32(0.3), jnp.asarray(raw_obs, jnp.float32)))
        np.testing.assert_allclose(ours.actions[:, k], mean + std * noise[k], rtol=1e-5, atol=1e-6)
        return ours.actions[:, k]

    observations, _, rewards, terminals = simulator.close_loop(EnvConfig("hopper"), states, act, 60)
    np.testing.assert_array_equal(ours.observations, observations[:, :-1].astype(np.float32))
    ended = np.maximum.accumulate(terminals, axis=1)
    np.testing.assert_array_equal(ours.terminals, ended)
    before = np.concatenate([np.zeros((32, 1), bool), ended[:, :-1]], axis=1)
    assert before.any() and not ended.all(), "terminals must be put to the test"
    np.testing.assert_array_equal(ours.rewards, np.where(before, 0.0, rewards).astype(np.float32))
    behind = np.abs(np.diff(ours.observations, axis=1)).sum(axis=2)[before[:, 1:]]
    assert behind.min() > 0  # the states go on


def test_under_squashed_actions_it_is_the_task_given_their_tanh(imagined):
    states, observations = imagined[1][:4], walked("hopper", 224)[1][:28:7]
    config = configs.override(configs.smoke("hopper"), {"world_model": "simulator", "env.actions": "squashed"})
    model = make_world_model(dataclasses.replace(config, horizon=4), EnvSpec(11, 3), lambda rows: states[rows])
    nothing = jnp.zeros((4, 1))
    rows = np.arange(4, dtype=np.int32)[:, None]
    context = Segment(jnp.asarray(observations[:, None]), nothing[..., None], nothing, nothing, rows)
    wide = Policy(jnp.float32(0.3), lambda gain, raw_obs: (policy(gain, raw_obs)[0], jnp.full((4, 3), 2.0)))
    ours = jax.device_get(jax.jit(model.imagine)((), wide, context, None, jax.random.key(1))[0])
    assert np.abs(ours.actions).max() > 1.5
    played = simulator.replay_actions(EnvConfig("hopper"), states, np.tanh(ours.actions))
    np.testing.assert_array_equal(ours.observations, played[0][:, :-1].astype(np.float32))
    errors = simulator_errors(config.env, ours, states)
    assert max(errors.values()) < 1e-12 < min(simulator_errors(EnvConfig("hopper"), ours, states).values())


def test_the_same_key_imagines_the_same_again(imagined):
    _, _, ours, again = imagined
    for one, two in zip(jax.tree.leaves(ours), jax.tree.leaves(again), strict=True):
        np.testing.assert_array_equal(one, two)


def test_its_error_against_replay_is_nothing_and_another_models_is_not(imagined):
    """The measure of the error experiments: 0 at every horizon, up to observations that travel in float32."""
    _, states, ours, _ = imagined
    found = simulator_errors(EnvConfig("hopper"), ours, states)
    assert len(found) == 60 and max(found.values()) < 1e-12
    still = ours.replace(observations=np.repeat(ours.observations[:, :1], 60, axis=1), rewards=0 * ours.rewards)
    nothing_moves = simulator_errors(EnvConfig("hopper"), still, states)
    assert min(nothing_moves.values()) > 1e-4
    real, _, terminals = simulator.replay_actions(EnvConfig("hopper"), states, np.asarray(ours.actions)[:, :-1])
    while_alive = simulator_errors(EnvConfig("hopper"), still, states, past_ends=False)
    assert while_alive["error/reward_mse"] == nothing_moves["error/reward_mse"]
    for h in (1, 20, 59):
        alive, name = ~terminals[:, :h].any(axis=1), f"error/observation_mse_{h:03d}"
        errors = np.square(np.asarray(still.observations)[alive, h] - real[alive, h])
        assert while_alive[name] == pytest.approx(errors.mean() if alive.any() else np.nan, nan_ok=True)
        assert (while_alive[name] == pytest.approx(nothing_moves[name])) == alive.all(), h


def test_updating_learns_nothing(imagined):
    model = imagined[0]
    assert jax.tree.leaves(model.init(jax.random.key(0))) == []
    assert model.update((), None, None, None) == ((), {})


def test_contexts_without_rows_are_refused(imagined):
    model = imagined[0]
    context = Segment(jnp.zeros((1, 1, 11)), jnp.zeros((1, 1, 3)), jnp.zeros((1, 1)), jnp.zeros((1, 1)))
    with pytest.raises(ConfigError, match="contexts have no rows"):
        model.imagine((), Policy(0.0, policy), context, None, jax.random.key(0))


def test_without_states_of_its_own_it_begins_where_an_episode_does():
    host = world.host_for(EnvConfig("hopper"))
    env = registry.make(EnvConfig("hopper"))
    env.reset(seed=0)
    first = simulator.read_state(env)
    env.close()
    assert host.state_size == len(first)
    np.testing.assert_array_equal(host.states_at(np.array([0, 7, 7])), np.tile(first, (3, 1)))
    with pytest.raises(ConfigError, match="MuJoCo"):
        world.host_for(EnvConfig("Pendulum-v1"))


@pytest.mark.parametrize("task", ["Pendulum-v1", "GoalPerEpisode", "Centred"])
def test_a_task_that_is_not_its_simulator_is_refused_in_one_line(task, capsys, tmp_path):
    name = users.UNEQUAL[task](task) if task in users.UNEQUAL else task
    folder = tmp_path / "run"
    words = ["train", "--env", name, "--preset", "smoke", "--world-model", "simulator", "--run", str(folder)]
    assert cli.main(words) == cli.BAD_INPUT
    captured = capsys.readouterr()
    assert captured.out == "" and len(captured.err.strip().splitlines()) == 1
    assert f"world_model is simulator; {name}: no simulator states: " in captured.err and "allowed" in captured.err
    assert not folder.exists()


# --- training --------------------------------------------------------------------------------------------------------


def tiny(total_env_steps):
    fields = {
        "world_model": "simulator",
        "model_training.warmup_env_steps": 8,
        "a2c.trajectories": 64,
        "loop.prefill_env_steps": 300,
        "loop.replay_capacity": 404,  # so that it overflows: prefill and ten horizons, and a little
        "loop.total_env_steps": total_env_steps,
        "loop.eval_every_env_steps": 40,
        "loop.checkpoint_every_env_steps": 50,
        "loop.log_every_env_steps": 20,
    }
    return configs.validate(configs.override(configs.smoke("inverted_pendulum"), fields))


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A run of 440 steps, and one that was killed before its last checkpoint and went on."""
    folder = tmp_path_factory.mktemp("runs")
    loop.train(tiny(440), folder / "whole")
    shutil.copytree(folder / "whole", folder / "killed")
    shutil.rmtree(folder / "killed" / "checkpoints" / "440")
    loop.train(tiny(440), folder / "killed")
    return folder


def test_a_resumed_run_is_the_uninterrupted_one(runs):
    arrays = {}
    for name in ("whole", "killed"):
        checkpoints = Checkpoints(runs / name / "checkpoints", read_only=True)
        assert checkpoints.steps()[-1] == 440
        arrays[name] = checkpoints.read(440).arrays
        checkpoints.close()
    assert arrays["whole"].keys() == arrays["killed"].keys()
    for name, array in arrays["whole"].items():
        np.testing.assert_array_equal(array, arrays["killed"][name], err_msg=name)
    assert arrays["whole"]["train_state/policy_updates"] > 20
    assert arrays["whole"]["train_state/replay/total"] == 440 > 404, "the ring of states must be put to the test"


def test_a_run_with_it_measures_no_error_and_is_opened_again(runs):
    rows = [json.loads(line) for line in (runs / "whole" / "metrics.jsonl").read_text().splitlines()]
    errors = {name: value for name, value in rows[-1].items() if name.startswith("error/")}
    assert len(errors) == 10 and max(errors.values()) < 1e-12
    with open(runs / "whole" / "eval.csv", newline="") as file:
        assert float(list(csv.DictReader(file))[-1]["return_mean"]) > 0
    run = open_run(runs / "whole")
    contexts = run.contexts(40, jax.random.key(0))
    segment = jax.device_get(run.imagine(contexts, jax.random.key(1)))
    assert max(simulator_errors(run.config.env, segment, run.simulator_states(contexts)).values()) < 1e-12
    best = open_run(runs / "whole", which="best")
    assert jax.tree.leaves(best.model_state) == []
