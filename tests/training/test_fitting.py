"""A world model alone on recorded transitions: what decides, when it stops, how it goes on.

The models here are small enough to know what they must do: one that learns the mean change of the observations, one
that says that nothing moves, and the simulator.
"""

import csv
import dataclasses
import json
import shutil
import signal
import sys
from types import SimpleNamespace

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from recorded import record

from polygrad_jax import cli
from polygrad_jax import config as configs
from polygrad_jax.analysis.opened_run import open_run, open_trained
from polygrad_jax.config import ConfigError, EnvConfig, EnvSpec
from polygrad_jax.data import replay as replays
from polygrad_jax.data.recordings import Episode
from polygrad_jax.envs.checked_task import EnvStepError
from polygrad_jax.envs.mujoco_state import replay_actions
from polygrad_jax.runs import recorded_data
from polygrad_jax.runs.checkpoints import Checkpoints, load_npz
from polygrad_jax.runs.console import Progress
from polygrad_jax.runs.metrics_log import event_files, read_rows
from polygrad_jax.runs.recorded_data import open_data
from polygrad_jax.runs.run_folder import RunFolder
from polygrad_jax.training import fitting, loop
from polygrad_jax.training.fitting import CannotBeJudgedError, Judge, Judged, Progressing, Schedule, Training
from polygrad_jax.training.step import NonFiniteError
from polygrad_jax.types import Segment, WorldModel
from polygrad_jax.world_models.model_table import WORLD_MODELS, make_world_model


@flax.struct.dataclass
class Drift:
    """What the drifting model learns, and what it adapts while it imagines."""

    change: jax.Array  # [O] per step
    imaginations: jax.Array


def drifting(learning_rate, adapts=True, window=4):
    """Every step the observations change by what they changed by on average; counts its imaginations if it adapts."""

    def make(config, spec):
        def update(state, segment, normaliser, key):
            change = (segment.observations[:, 1:] - segment.observations[:, :-1]).mean(axis=(0, 1))
            # A little noise, so that what is drawn matters.
            error = change - state.change + 1e-3 * jax.random.normal(key, change.shape)
            loss = {"world_model/loss": jnp.square(error).sum()}
            return state.replace(change=state.change + learning_rate * error), loss

        def imagine(state, policy, context, normaliser, key):
            steps = jnp.arange(config.horizon, dtype=jnp.float32)[None, :, None]
            obs = context.observations[:, -1:] + steps * state.change[None, None, :]
            mean, std = policy(obs)
            zero = jnp.zeros(obs.shape[:2])
            return Segment(obs, mean + std * jax.random.normal(key, mean.shape), zero, zero), {}

        def adapt(state, aux):
            return state.replace(imaginations=state.imaginations + 1) if adapts else state

        def init(key):
            return Drift(jnp.ones(spec.observation_size), jnp.int32(0))

        return WorldModel(init, update, imagine, adapt, window=window)

    return make


@pytest.fixture(autouse=True)
def registered():
    before = dict(WORLD_MODELS)
    WORLD_MODELS.update(
        drift=drifting(0.05),
        constant=drifting(0.05, adapts=False),
        still=drifting(0.0),
        wild=drifting(1e30),
        long=drifting(0.05, window=8),
    )
    yield
    WORLD_MODELS.clear()
    WORLD_MODELS.update(before)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return open_data(str(record(tmp_path_factory.mktemp("runs") / "pendulum")))


def config_of(data, name):
    return configs.override(data.collector, {"world_model": name, "model_training.batch_size": 16})


NAN, INF = float("nan"), float("inf")
SCHEDULE = Schedule(updates=60, evaluate_every_updates=20, log_every_updates=10, contexts=40)


def trained(data, folder, name="drift", **changes):
    return Training(data, config_of(data, name), folder, dataclasses.replace(SCHEDULE, **changes)).run()


def newest(folder):
    checkpoints = Checkpoints(folder / "checkpoints", read_only=True)
    step = checkpoints.steps()[-1]
    stored = checkpoints.read(step)
    checkpoints.close()
    return step, stored.arrays, stored.host["progress"]


def without_clock(rows):
    return [{n: x for n, x in row.items() if "second" not in n} for row in rows]


def evaluations(folder):
    with open(folder / "eval.csv", newline="") as file:
        return [{n: x for n, x in row.items() if "second" not in n} for row in csv.DictReader(file)]


# --- the error that decides ------------------------------------------------------------------------------------------


def judge_of(data, name, states_at=None):
    config = config_of(data, name)
    model = make_world_model(config, data.spec, states_at)
    return Judge(data, config, model, 40), model.init(jax.random.key(0))


def test_the_five_step_error_of_nothing_moves_is_how_far_mujoco_moves(data):
    """By hand: the contexts are drawn again, and what the policy would do in their first states is replayed."""
    judge, state = judge_of(data, "still")
    state = state.replace(change=jnp.zeros_like(state.change))
    _, judged = judge(state, None, first=True)
    rows = np.asarray(judge._contexts.rows)[:, -1]
    np.testing.assert_array_equal(judge._contexts.observations[:, -1], data.transitions.observations[rows])
    _, segment = judge._imagine(state, judge._policy, judge._contexts, None, judge._imagine_key)
    assert segment.actions.shape == (40, 6, 1)
    moved, _, terminals = replay_actions(
        data.collector.env, data.transitions.simulator_states[rows], np.asarray(segment.actions)[:, :5]
    )
    alive = ~terminals.any(axis=1)
    assert 0 < alive.sum() < 40, "what MuJoCo ends must be put to the test"
    expected = np.square(moved[:, 5] - moved[:, 0])[alive].mean()
    assert judged.five_step_error == pytest.approx(expected, rel=1e-5) and expected > 1e-3
    assert len(judged.errors) == 6  # horizons 1 to 5, and the reward's


def test_data_under_which_no_trajectory_lives_five_steps_are_refused(data, monkeypatch):
    judge, state = judge_of(data, "still")
    monkeypatch.setattr(fitting, "simulator_errors", lambda *_, past_ends: {"error/observation_mse_005": np.nan})
    with pytest.raises(ConfigError, match="cannot be judged five steps ahead: in MuJoCo no trajectory lives so long"):
        judge(state, None, first=True)


def test_the_simulator_makes_no_error(data):
    judge, state = judge_of(data, "simulator", lambda rows: data.transitions.simulator_states[rows])
    _, judged = judge(state, None, first=True)
    assert judged.five_step_error < 1e-12


def test_what_a_model_adapts_settles_before_it_is_judged(data):
    judge, state = judge_of(data, "drift")
    settled, _ = judge(state, None, first=True)
    assert int(settled.imaginations) == fitting.FIRST_SETTLING_ROUNDS
    again, _ = judge(settled, None, first=False)
    assert int(again.imaginations) == fitting.FIRST_SETTLING_ROUNDS + fitting.SETTLING_ROUNDS
    judge, state = judge_of(data, "constant")
    same, _ = judge(state, None, first=True)
    assert same is state


def part_of(data, rows):
    columns = [f.name for f in dataclasses.fields(data.transitions)]
    part = type(data.transitions)(**{name: getattr(data.transitions, name)[rows] for name in columns})
    return dataclasses.replace(data, transitions=part)


def test_what_is_judged_from_is_not_learnt_from_and_is_the_same_when_it_goes_on(data, tmp_path):
    half = len(data.transitions) // 2
    first, last = part_of(data, slice(0, half)), part_of(data, slice(half, None))
    config, schedule = config_of(data, "drift"), dataclasses.replace(SCHEDULE, updates=20)
    apart = Training(first, config, tmp_path / "apart", schedule, last)
    apart.run()
    drawn_from = last.transitions.observations
    rows = np.asarray(apart.judge._contexts.rows)[:, -1]
    np.testing.assert_array_equal(apart.judge._contexts.observations[:, -1], drawn_from[rows])
    same = Training(first, config, tmp_path / "same", schedule)
    same.run()
    # Learnt from the same, judged from other states.
    learnt = [newest(tmp_path / name)[1] for name in ("apart", "same")]
    jax.tree.map(np.testing.assert_array_equal, learnt[0], learnt[1])
    errors = [float(evaluations(tmp_path / name)[0]["five_step_error"]) for name in ("apart", "same")]
    assert errors[0] != errors[1]
    for other in (None, first):
        with pytest.raises(ConfigError, match="was begun with judged_from .*; allowed: the same"):
            Training(first, config, tmp_path / "apart", schedule, other)


# --- training --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory):
    before = dict(WORLD_MODELS)
    WORLD_MODELS["drift"] = drifting(0.05)
    folder = tmp_path_factory.mktemp("whole") / "run"
    outcome = trained(data, folder)
    WORLD_MODELS.clear()
    WORLD_MODELS.update(before)
    return folder, outcome


def test_it_learns_and_keeps_the_best(whole, data):
    folder, outcome = whole
    assert (outcome.why, outcome.stopped_by, outcome.at.updates) == ("updates", None, 60)
    found = {int(row["updates"]): float(row["five_step_error"]) for row in evaluations(folder)}
    assert list(found) == [20, 40, 60]
    best, best_updates = load_npz(folder / "best.npz"), min(found, key=found.get)
    assert float(best["five_step_error"]) == outcome.at.best_error == found[best_updates]
    assert int(best["updates"]) == outcome.at.best_updates == best_updates > 20, "the drift begins far off"
    # (1 - 0.05)^60 = 0.046 of the way from 1 to the mean change within windows is left.
    windows = replays.sample(data.replay(4), jax.random.key(5), 4096, 4).observations
    expected = np.asarray(windows[:, 1:] - windows[:, :-1]).mean(axis=(0, 1))
    learnt = newest(folder)[1]["world_model/change"]
    np.testing.assert_allclose(learnt, expected + 0.046 * (1 - expected), atol=0.1)
    assert np.abs(expected - 1).max() > 0.5
    rows = read_rows(folder)
    assert [row["updates"] for row in rows] == [10, 20, 30, 40, 50, 60]
    assert rows[-1]["error/five_step"] == found[60] and rows[-1]["world_model/loss"] < 0.1 * rows[0]["world_model/loss"]
    assert rows[-1]["seconds/training"] > 0 and rows[-1]["seconds/compiling"] > 0
    assert len(event_files(folder)) == 1
    last, again = open_trained(folder, data, newest=True), open_trained(folder, data)
    assert (last.updates, again.updates) == (60, best_updates)
    np.testing.assert_array_equal(last.state.change, learnt)
    np.testing.assert_array_equal(again.state.change, best["world_model"]["change"])


def test_killed_and_resumed_is_bit_for_bit_the_uninterrupted_training(whole, data, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(whole[0], folder)
    shutil.rmtree(folder / "checkpoints" / "60")
    assert newest(folder)[0] == 40
    outcome = trained(data, folder)
    assert outcome.at.updates == 60
    for ours, theirs in zip(newest(folder)[1].items(), newest(whole[0])[1].items(), strict=True):
        np.testing.assert_array_equal(ours[1], theirs[1], err_msg=ours[0])
    assert without_clock(read_rows(folder)) == without_clock(read_rows(whole[0]))
    assert evaluations(folder) == evaluations(whole[0])
    # Finished already: nothing more is done, and a larger budget goes on.
    assert trained(data, folder).at.updates == 60
    assert trained(data, folder, updates=70).at.updates == 70


def test_killed_before_it_wrote_what_it_learns_from_it_begins_again(data, tmp_path):
    """``config.json`` is there and ``data.json`` is not; with anything else beside it, it is no such folder."""
    RunFolder(tmp_path).record(config_of(data, "still"), {})
    (tmp_path / "eval.csv").touch()
    with pytest.raises(ConfigError, match="has no data.json"):
        Training(data, config_of(data, "still"), tmp_path, SCHEDULE)
    (tmp_path / "eval.csv").unlink()
    Training(data, config_of(data, "still"), tmp_path, SCHEDULE).lock.close()
    assert json.loads((tmp_path / "data.json").read_text())["transitions"] == len(data.transitions)


def test_another_dataset_or_schedule_is_refused(whole, data):
    folder = whole[0]
    other = dataclasses.replace(data.transitions, truncations=np.arange(len(data.transitions)) == 3)
    with pytest.raises(ConfigError, match="was begun with checksum"):
        trained(dataclasses.replace(data, transitions=other), folder)
    with pytest.raises(ConfigError, match="was begun with evaluate_every_updates 20, now 7"):
        trained(data, folder, evaluate_every_updates=7)
    with pytest.raises(ConfigError, match="another config in .*world_model"):
        trained(data, folder, name="constant")


def test_it_is_no_run_of_a_policy(whole):
    """Nor the data of another training: ``polygrad train --run``, ``imagine`` and ``--dataset`` say so at once."""
    folder = whole[0]
    config = configs.validate(configs.from_dict(json.loads((folder / "config.json").read_text())))
    for use in (lambda: loop.begin(config, folder), lambda: open_run(folder), lambda: open_data(str(folder))):
        with pytest.raises(ConfigError, match=r"of a world model alone \(data.json\); allowed: a folder of polygrad"):
            use()


def test_it_stops_when_the_error_gets_no_better(data, tmp_path):
    """A model that learns nothing is best at its first evaluation; two more do not make it better."""
    outcome = trained(data, tmp_path / "run", name="still", patience=2, updates=10_000)
    assert (outcome.why, outcome.at.updates, outcome.at.best_updates) == ("early stopping", 60, 20)
    assert newest(tmp_path / "run")[0] == 60


@pytest.mark.parametrize(
    ("errors", "best", "since"),
    [([2.0, NAN, 1.0, 3.0], [1, 3], 1), ([NAN, INF, 4.0], [3], 0), ([3.0, NAN, NAN], [1], 2)],
)
@pytest.mark.parametrize("before", [None, NAN])
def test_only_a_finite_error_is_the_least(errors, best, since, before, tmp_path, monkeypatch):
    """Also after a checkpoint of an older version that took NaN for it; patience counts what is not finite."""
    kept, at = [], Progressing(best_error=before)
    monkeypatch.setattr(fitting, "export_npz", lambda path, tree: kept.append(int(tree["updates"])))
    for update, error in enumerate(errors, start=1):
        at.updates = update

        def judge(state, *_, error=error, **__):
            return state, Judged(error, {"error/reward_mse": 0.0})

        judge.env = EnvConfig(name="recorded")
        training = SimpleNamespace(
            at=at,
            judge=judge,
            normaliser=None,
            replay=SimpleNamespace(moments={}),
            folder=tmp_path,
            metrics=SimpleNamespace(write_evaluation=lambda *_: None),
        )
        Training._look(training, {})
    assert kept == best and at.judged_since_best == since
    assert at.best_error == min(e for e in errors if np.isfinite(e))


def test_seconds_are_those_of_gradient_steps(data, tmp_path, monkeypatch):
    """Judging takes 0.05 s each time here, and none of it is counted."""
    judge = Judge.__call__

    def slow(self, *given, **named):
        fitting.time.sleep(0.05)
        return judge(self, *given, **named)

    monkeypatch.setattr(Judge, "__call__", slow)
    outcome = trained(
        data, tmp_path / "run", name="constant", updates=None, seconds=0.5, patience=10**6, evaluate_every_updates=500
    )
    at = outcome.at
    assert outcome.why == "seconds" and at.training_seconds >= 0.5
    assert at.judging_seconds >= 0.05 * len(evaluations(tmp_path / "run"))
    last = read_rows(tmp_path / "run")[-1]
    assert last["seconds/training"] == at.training_seconds
    assert trained(
        data, tmp_path / "run", name="constant", updates=None, seconds=0.5, patience=10**6, evaluate_every_updates=500
    ).at.updates == at.updates, "what was spent before counts"


def test_chunks_end_where_something_is_due():
    chunks = fitting._Chunks(Schedule(updates=23, seconds=10.0, evaluate_every_updates=20, log_every_updates=8))
    assert chunks.end(Progressing()) == 1  # the first is to find out how long one takes
    chunks.took(1, 0.01)  # 100 a second: at most ten times as many at once
    assert chunks.end(Progressing(updates=1)) == 8
    assert chunks.end(Progressing(updates=8)) == 16 and chunks.end(Progressing(updates=16)) == 20
    assert chunks.end(Progressing(updates=20)) == 23  # the budget
    assert chunks.end(Progressing(updates=8, training_seconds=9.965)) == 11  # 0.035 s are three updates
    assert chunks.end(Progressing(updates=8, training_seconds=9.999)) == 9


def test_the_library_says_that_learning_diverged():
    config = configs.override(configs.smoke("own"), {"horizon": 4})
    episode = Episode(np.arange(12.0).reshape(6, 2), np.zeros((6, 1)), np.zeros(6))
    with pytest.raises(NonFiniteError, match="not finite after update 7: world model"):
        fitting.fit(drifting(1e30)(config, EnvSpec(2, 1)), [episode], config, jax.random.key(0), 7)


def test_divergence_leaves_the_last_good_checkpoint(data, tmp_path):
    with pytest.raises(NonFiniteError, match="not finite after update .*; no checkpoint was saved before"):
        trained(data, tmp_path / "run", name="wild")
    assert not (tmp_path / "run" / "best.npz").exists()


def test_what_cannot_be_judged_is_refused_before_anything_is_written(data, tmp_path):
    folder = tmp_path / "run"
    blind = dataclasses.replace(data.transitions, simulator_states=np.empty((len(data.transitions), 0)))
    without_states = dataclasses.replace(data, transitions=blind)
    without_policy = dataclasses.replace(data, actor=None)
    for what, words in ((without_states, "no simulator states"), (without_policy, "no policy")):
        with pytest.raises(ConfigError, match=f"{words}.*allowed: --no-early-stopping"):
            trained(what, folder)
    short = dataclasses.replace(config_of(data, "drift"), horizon=5)
    with pytest.raises(ConfigError, match="horizon is 5; allowed: more than 5"):
        Training(data, short, folder, SCHEDULE)
    with pytest.raises(ConfigError, match="simulator, which learns nothing"):
        trained(data, folder, name="simulator")
    assert not folder.exists()
    outcome = trained(without_states, folder, early_stopping=False, updates=30)
    assert outcome.at.updates == 30 and outcome.at.best_error is None and not (folder / "best.npz").exists()
    saved = newest(folder)[1]["world_model/change"]
    np.testing.assert_array_equal(open_trained(folder, without_states).state.change, saved)


def test_data_of_a_task_that_is_not_installed_cannot_be_judged(data):
    """But learnt from: a program may have registered the task for itself."""
    config = configs.override(data.collector, {"env.name": "Gone-v0"})
    gone = dataclasses.replace(data, collector=config)
    assert "its task cannot be made (env.name is 'Gone-v0'; allowed" in gone.why_not_judged()
    model = make_world_model(config_of(data, "still"), data.spec)
    with pytest.raises(CannotBeJudgedError, match="five steps ahead: its task .* allowed: --no-early-stopping"):
        Judge(gone, config, model, contexts=1)


def test_without_early_stopping_nothing_has_to_be_judged(data, tmp_path, monkeypatch):
    schedule = dataclasses.replace(SCHEDULE, early_stopping=False, updates=30)
    short = dataclasses.replace(config_of(data, "drift"), horizon=5)
    outcome = Training(data, short, tmp_path / "short", schedule).run()
    assert outcome.at.updates == 30 and outcome.at.best_error is None

    lives_two_steps = {"error/observation_mse_005": np.nan}
    monkeypatch.setattr(fitting, "simulator_errors", lambda *given, **more: lives_two_steps)
    outcome = trained(data, tmp_path / "falls", early_stopping=False, updates=30)
    assert outcome.at.updates == 30 and not (tmp_path / "falls" / "best.npz").exists()
    with pytest.raises(ConfigError, match="no trajectory lives so long; allowed: --no-early-stopping"):
        trained(data, tmp_path / "stops", updates=30)


# --- the command -----------------------------------------------------------------------------------------------------


@pytest.fixture
def command(data, monkeypatch, tmp_path):
    """Runs the command in this process, on the data of this file."""
    monkeypatch.setattr(recorded_data, "open_data", lambda where: data)
    monkeypatch.setattr(cli, "fit_config", lambda options, fields, env: config_of(data, "drift"))
    monkeypatch.chdir(tmp_path)
    words = ["fit", "--dataset", "pendulum", "--updates", "60", "--evaluate-every-updates", "20", "--contexts", "40"]
    words += ["--log-every-updates", "10"]
    return lambda *more: cli.main([*words, *more])


def test_sigterm_saves_and_says_how_to_go_on(command, whole, capsys, monkeypatch, tmp_path):
    log = Training._log

    def interrupted(self, *given):
        if self.at.updates == 30:
            signal.raise_signal(signal.SIGTERM)
        return log(self, *given)

    monkeypatch.setattr(Training, "_log", interrupted)
    assert command() == 128 + signal.SIGTERM
    said = capsys.readouterr().out.strip().splitlines()
    folder = tmp_path / "runs" / "pendulum-drift-smoke-seed0"
    assert said[-1].endswith("--out runs/pendulum-drift-smoke-seed0") and "stopped by SIGTERM" in said[-2]
    assert newest(folder)[0] == 30
    monkeypatch.setattr(Training, "_log", log)
    assert command("--out", "runs/pendulum-drift-smoke-seed0") == 0
    out = capsys.readouterr().out
    assert "finished: updates" in out and "best five-step error" in out
    for ours, theirs in zip(newest(folder)[1].items(), newest(whole[0])[1].items(), strict=True):
        np.testing.assert_array_equal(ours[1], theirs[1], err_msg=ours[0])


def test_a_task_that_breaks_while_it_judges_is_one_line(command, capsys, monkeypatch):
    def broken(*_, **__):
        raise EnvStepError("Hopper-v5: step 3 failed")

    monkeypatch.setattr(fitting, "simulator_errors", broken)
    assert command() == cli.FAILED
    assert capsys.readouterr().err.splitlines()[-1] == "polygrad: Hopper-v5: step 3 failed"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "--dataset"),
        (["--dataset", "nowhere", "--preset", "smoke"], "dataset nowhere is not there"),
        (["--dataset", "nowhere", "--preset", "smoke", "--seconds", "-1"], "seconds is -1"),
        (["--dataset", "nowhere", "--preset", "smoke", "--updates", "0"], "updates is 0"),
        (["--dataset", "nowhere", "--preset", "smoke", "--denoiser.widht", "3"], "--denoiser.width"),
        (["--dataset", "nowhere", "--preset", "smoke", "--world-model", "dream"], "dream"),
    ],
)
def test_a_mistake_is_one_line(arguments, words, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["fit", *arguments]) == cli.BAD_INPUT
    captured = capsys.readouterr()
    assert captured.out == "" and len(captured.err.strip().splitlines()) == 1 and words in captured.err
    assert not list(tmp_path.iterdir())


def test_the_config_is_the_presets_for_the_datasets_task(data):
    options = cli._fit_parser().parse_args(["--dataset", "x", "--preset", "cpu", "--seed", "4"])
    config = cli.fit_config(options, ["--denoiser.width", "32"], data.env)
    assert (config.env, config.seed, config.denoiser.width) == (data.env, 4, 32)
    assert config.guidance.delta_lr == cli.FIT_DELTA_LR
    expected = configs.cpu("inverted_pendulum")
    assert config.a2c == expected.a2c and config.diffusion == expected.diffusion


def test_progress_without_a_total_counts_the_seconds_that_are_left(capsys):
    now = [0.0]
    progress = Progress(None, stream=sys.stderr, clock=lambda: now[0], unit="updates", watched=("loss",))
    now[0] = 2.0
    progress.show(100, {"loss": 0.5}, seconds_left=90.0)
    assert progress.line() == "100 updates, 50.0 updates/s, 1:30 left, loss 0.5"
    both = Progress(400, stream=sys.stderr, clock=lambda: now[0], unit="updates", watched=())
    now[0] = 4.0
    both.show(100, {}, seconds_left=90.0)
    assert both._count() == "100/400 updates, 50.0 updates/s, 0:06 left"  # the nearer end


def test_records_by_update_are_cut_back_as_those_by_environment_step(whole):
    rows = (whole[0] / "metrics.jsonl").read_text().splitlines()
    assert [next(iter(json.loads(row))) for row in rows] == ["updates"] * 6
    assert (whole[0] / "eval.csv").read_text().startswith("updates,five_step_error,")


def test_contexts_are_the_same_for_every_model(data):
    """Any stored states but the last ones of episodes that were cut off, whatever windows a model learns from: errors
    of two models compare."""
    one, two = judge_of(data, "drift")[0], judge_of(data, "long")[0]
    np.testing.assert_array_equal(one._contexts.rows, two._contexts.rows)
    assert len(set(np.asarray(one._contexts.rows)[:, 0])) > 25
