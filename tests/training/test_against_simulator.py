"""A run compares imagination with the simulator only as long as the simulator is the task."""

import dataclasses

import jax
import numpy as np
import pytest
import tasks_of_users as users
from recorded import config_of

from polygrad_jax.analysis import films
from polygrad_jax.analysis.opened_run import OpenedRun
from polygrad_jax.config import ConfigError, EnvConfig, override
from polygrad_jax.data import replay as replays
from polygrad_jax.data.simulator_log import SimulatorLog
from polygrad_jax.data.transition_log import TransitionLog
from polygrad_jax.envs import tasks
from polygrad_jax.runs.saved_run import SavedRun
from polygrad_jax.training import loop
from polygrad_jax.training.evaluating import Against, make_against, make_read_stored, simulator_is_the_task
from polygrad_jax.training.train_state import Counters, TrainState


@pytest.fixture
def begun(tmp_path):
    """Begins runs, and closes them."""
    runs = []

    def begin(env, steps=300, **fields):
        fields = {"loop.eval_episodes": 1, "loop.replay_capacity": 1_000} | fields
        runs.append(loop.begin(override(config_of(env, steps), fields), tmp_path / str(len(runs))))
        return runs[-1]

    yield begin
    for run in runs:
        run.checkpoints.close()
        run.close()


def filled(run):
    """The state of a run behind its prefill, as far as its replay goes."""
    add = jax.jit(replays.add, static_argnums=2)
    replay = replays.init(run.spec, 1_000, run.config.horizon)
    replay = run.collecting.prefill(replay, lambda replay, rows: add(replay, rows, run.config.horizon))
    count = np.int32(0)
    return TrainState(jax.random.key_data(jax.random.key(0)), count, count, replay, {}, {})


@pytest.mark.parametrize("task", ["GoalPerEpisode", "TimeAware", "ScaledInStep"])
def test_one_line_at_the_start_says_why_nothing_is_compared(task, begun, capsys):
    name = users.UNEQUAL[task](task)
    run = begun(name)
    said = capsys.readouterr().err.strip().splitlines()
    assert len(said) == 1 and said[0].startswith(f"{name}: no simulator states: the "), said
    assert make_against(run.collecting, run.world_model) is None
    chunk = run.collecting.new_chunk(2)
    run.collecting.take_step(chunk, np.zeros(1))
    assert chunk.simulator_states.shape == (2, 0)
    run.collecting.record(chunk)
    run.collecting.transitions.flush()
    opened = OpenedRun(SavedRun(run.folder, run.config), run.spec, *[None] * 5)
    with pytest.raises(ConfigError, match=f"{name}: no simulator states: the .*; allowed: a run with simulator states"):
        opened.simulator_states_at(np.arange(1))


def test_where_the_task_is_its_simulator_nothing_is_said(begun, capsys):
    run = begun("inverted_pendulum")
    state = filled(run)
    against = make_against(run.collecting, run.world_model)
    assert simulator_is_the_task(against, run.collecting, state)
    rows, stored = against.read_stored(state, np.int32(3))
    assert int(max(rows)) == run.at.env_steps - 1 and np.asarray(stored.followed).mean() > 0.5
    without = override(run.config, {"loop.error_trajectories": 0})
    assert make_against(dataclasses.replace(run.collecting, config=without), run.world_model) is None
    assert capsys.readouterr().err == ""


def test_a_task_that_changes_late_is_not_compared_from_then_on(begun, capsys, monkeypatch):
    """Its start is that of the pendulum; later the stored steps differ from their repetition."""
    name, imagined = users.register(users.Later), []
    run = begun(name, 900)
    state = filled(run)
    against = Against(make_read_stored(), lambda *given: imagined.append(given))
    results = {"return_mean": 1.0}
    monkeypatch.setattr(loop, "learnt", lambda state: {})
    monkeypatch.setattr(loop, "evaluate_policy", lambda *given, **known: None)
    monkeypatch.setattr(loop, "evaluation_row", lambda episodes: results)
    monkeypatch.setattr(run, "agent", type("Agent", (), {"evaluated": staticmethod(lambda agent, model: {})}))
    assert [loop.evaluate(run, state, against) for _ in range(2)] == [{}, {}] and not imagined
    said = capsys.readouterr().err.strip().splitlines()
    line = f"{name}: no simulator states: the reward of a restored copy differs by up to 0.5 from what was stored"
    found = f"{line} (found at environment step {run.at.env_steps}); no errors of imagination are measured from here on"
    assert said == [found]
    assert Counters.from_json(dataclasses.asdict(run.at)).simulator_differs == run.at.simulator_differs is not None
    run.at.simulator_differs = None
    simulator = override(run.config, {"world_model": "simulator"})
    with pytest.raises(ConfigError, match=f"world_model is simulator; {line}"):
        simulator_is_the_task(against, dataclasses.replace(run.collecting, config=simulator), state)


@pytest.mark.parametrize(("stored_size", "task"), [(0, "inverted_pendulum"), (5, "inverted_pendulum"), (7, "Goal")])
def test_a_run_whose_stored_states_are_not_todays_goes_on_without(stored_size, task, begun, capsys):
    run = begun(users.UNEQUAL["GoalPerEpisode"]("GoalPerEpisode") if task == "Goal" else task)
    collecting, before = run.collecting, np.zeros((6, stored_size))
    rows = (np.zeros((6, 4)), np.zeros((6, 1)), np.zeros(6), np.zeros(6), np.zeros(6))
    collecting.transitions.append(*rows, before)
    collecting.transitions.flush()
    capsys.readouterr()
    collecting.refill(None, lambda state, chunk: None, collecting.transitions.load(6))
    line = f"InvertedPendulum-v5: no simulator states: those stored have {stored_size} numbers, the task's 7"
    assert capsys.readouterr().err.strip() == ("" if task == "Goal" else line)
    assert collecting.simulator_log.get(np.arange(6)).shape == (6, 0)
    assert make_against(collecting, run.world_model) is None
    chunk = collecting.new_chunk(1)
    collecting.take_step(chunk, np.zeros(1))
    collecting.record(chunk)
    collecting.transitions.flush()
    assert TransitionLog(run.folder / "replay", read_only=True).load(7).simulator_states.shape == (7, 0)


def test_the_simulator_as_a_world_model_needs_the_stored_states(begun):
    run = begun("inverted_pendulum", world_model="simulator")
    run.collecting.transitions.append(
        np.zeros((6, 4)), np.zeros((6, 1)), np.zeros(6), np.zeros(6), np.zeros(6), np.zeros((6, 5))
    )
    run.collecting.transitions.flush()
    with pytest.raises(ConfigError, match="world_model is simulator; .* those stored have 5 numbers, the task's 7"):
        run.collecting.refill(None, lambda state, chunk: None, run.collecting.transitions.load(6))
    assert isinstance(run.collecting.simulator_log, SimulatorLog) and run.collecting.simulator_log.total == 0


@pytest.mark.parametrize(("task", "holds"), [("ScaledObservations", None), ("ScaledRewards", "pose")])
def test_the_film_puts_no_scaled_observations_into_the_simulator(task, holds):
    env = tasks.make(EnvConfig(users.EQUAL[task](task)))
    env.reset(seed=0)
    assert films.observation_holds(env) == holds
