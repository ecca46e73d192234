"""Looking at a run: the numbers shown are those of the environment and of the model, and looking changes nothing."""

import contextlib
import csv
import gc
import io
import json
import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import gymnasium as gym
import imageio.v2 as imageio
import jax
import matplotlib.image
import numpy as np
import pytest
import scipy.stats
from PIL import Image
from recorded import record

from polygrad_jax import cli
from polygrad_jax import config as configs
from polygrad_jax.analysis import action_spread, figures, films, opened_run, reports
from polygrad_jax.analysis.opened_run import diffuse, open_run
from polygrad_jax.config import ConfigError, EnvConfig
from polygrad_jax.envs import mujoco_state, rendering, tasks
from polygrad_jax.envs.episodes import run_episodes
from polygrad_jax.envs.prediction_error import squared_errors, staying_still
from polygrad_jax.runs import checkpoints as checkpoint_files
from polygrad_jax.runs import physics
from polygrad_jax.runs.checkpoints import Checkpoints, flatten_named, load_npz, nested
from polygrad_jax.runs.metrics_log import read_rows, todays_metric
from polygrad_jax.runs.saved_run import read_evaluations
from polygrad_jax.training.train_state import without_optimisers

pytestmark = [
    # imageio's encoder is a process of its own, and so are the entry points; JAX warns of every fork.
    pytest.mark.filterwarnings("ignore:os.fork:RuntimeWarning"),
    # imageio leaves the pipes to its encoder to the garbage collector.
    pytest.mark.filterwarnings("ignore:unclosed file <_io.Buffered:ResourceWarning"),
]

B = 4  # trajectories, everywhere: programs of one size are compiled once
METRICS_PAGE = Path(__file__).parents[2] / "docs" / "metrics.md"
needs_gl = pytest.mark.skipif(
    all(rendering.missing_packages(b) for b in ("egl", "osmesa")), reason="no GL library to render with"
)


@pytest.fixture(scope="module")
def hopper(readme_run) -> Path:
    return readme_run.folder


@pytest.fixture(scope="module")
def pendulum(tmp_path_factory) -> Path:
    """Gymnasium's own pendulum has no MuJoCo state."""
    folder = tmp_path_factory.mktemp("runs") / "pendulum"
    return record(folder, env="Pendulum-v1", steps=600)


@pytest.fixture(scope="module")
def run(hopper):
    return open_run(hopper)


def files(folder: Path) -> dict[str, tuple[int, int]]:
    return {str(p.relative_to(folder)): (p.stat().st_size, p.stat().st_mtime_ns) for p in folder.rglob("*")}


def table(path: Path) -> dict[str, np.ndarray]:
    rows = list(csv.DictReader(io.StringIO(path.read_text())))
    assert all(row["mujoco"] for row in rows)
    return {name: np.array([float(row[name]) for row in rows]) for name in rows[0] if name != "mujoco"}


# --- opening ---------------------------------------------------------------------------------------------------------


def test_the_newest_checkpoint_is_what_is_opened(run, hopper):
    checkpoints = Checkpoints(hopper / "checkpoints", read_only=True)
    step = checkpoints.steps()[-1]
    stored = checkpoints.read(step).arrays
    checkpoints.close()
    assert run.env_steps == step >= 1_300
    for name, value in flatten_named(run.policy.params).items():
        # the preset evaluates an average of the policy; what learns is beside it
        np.testing.assert_array_equal(value, stored[f"train_state/agent/averaged_actor/{name}"])
        assert np.any(value != stored[f"train_state/agent/actor/{name}"])
    for name, value in flatten_named(run.agent_state).items():
        np.testing.assert_array_equal(value, stored[f"train_state/agent/{name}"])
    for name, value in flatten_named(run.model_state).items():
        np.testing.assert_array_equal(value, stored[f"train_state/world_model/{name}"])


def test_the_normaliser_is_the_statistics_of_the_finished_episodes(run):
    stored = run.transitions
    finished = np.flatnonzero(stored.terminals | stored.truncations)[-1] + 1
    np.testing.assert_allclose(
        run.normaliser.observations.mean, stored.observations[:finished].mean(0, np.float64), rtol=1e-5, atol=1e-6
    )
    assert len(stored) == run.env_steps


def test_the_best_evaluation_is_opened_when_asked_for(hopper):
    best, written = open_run(hopper, "best"), load_npz(hopper / "best.npz")
    for name, value in flatten_named(best.policy.params).items():
        np.testing.assert_array_equal(value, flatten_named(written["agent"]["averaged_actor"])[name])
    newest = without_optimisers(open_run(hopper).model_state)
    assert newest.adam is None and best.agent_state.actor_adam is None
    assert jax.tree.structure(best.model_state) == jax.tree.structure(newest)
    evaluations = read_evaluations(hopper)
    assert best.env_steps == evaluations["env_steps"][evaluations["return_mean"].argmax()]


def test_contexts_are_starts_of_windows_and_know_their_simulator_state(run):
    contexts = run.contexts(50, jax.random.key(1))
    rows = np.asarray(contexts.rows)[:, 0]
    np.testing.assert_array_equal(contexts.observations[:, 0], run.transitions.observations[rows])
    # The replay keeps 1,000; the last row of an episode starts no window.
    assert rows.min() >= run.env_steps - 1_000 - replays_slack(run) and not run.transitions.terminals[rows].any()
    env = tasks.make(run.config.env)
    env.reset(seed=0)
    for row, state in zip(rows, run.simulator_states(contexts), strict=True):
        np.testing.assert_array_equal(
            mujoco_state.set_state(env, state).astype(np.float32), run.transitions.observations[row]
        )


def replays_slack(run) -> int:
    """The replay of a look is at least one chunk of sending long."""
    return int(run.replay.rewards.shape[0]) - 1_000


def test_looking_changes_nothing_not_even_what_a_running_training_has_not_finished(hopper, tmp_path):
    folder = tmp_path / "watched"
    shutil.copytree(hopper, folder)
    unfinished = folder / "checkpoints" / "9999.orbax-checkpoint-tmp-0"
    unfinished.mkdir()
    (folder / "replay" / "transitions_000000009999_000000010000.npz.tmp").write_bytes(b"half")
    before = files(folder)
    watched = open_run(folder)
    watched.imagine(watched.contexts(B, jax.random.key(0)), jax.random.key(1))
    open_run(folder, "best")
    assert files(folder) == before


def test_a_damaged_newest_checkpoint_is_said_and_left_alone(hopper, tmp_path, capsys):
    folder = tmp_path / "damaged"
    shutil.copytree(hopper, folder)
    steps = sorted(int(p.name) for p in (folder / "checkpoints").iterdir())
    shutil.rmtree(folder / "checkpoints" / str(steps[-1]) / "arrays" / "d")
    for file in (folder / "checkpoints" / str(steps[-1]) / "arrays").rglob("*"):
        if file.is_file():
            file.write_bytes(b"")
    before = files(folder)
    assert open_run(folder).env_steps == steps[-2]
    assert f"warning: checkpoint {folder}/checkpoints/{steps[-1]} cannot be read" in capsys.readouterr().err
    assert files(folder) == before


# --- folders of the revision before ----------------------------------------------------------------------------------


def as_version_1(folder: Path, target: Path, monkeypatch) -> Path:
    """A copy with the names of arrays, fields and metrics, and the format version, of the revision before."""
    shutil.copytree(folder, target)
    kept = Checkpoints(target / "checkpoints")
    stored = kept.read(kept.steps()[-1])
    arrays = {name.replace("train_state/agent", "train_state/learner"): x for name, x in stored.arrays.items()}
    actor = nested(stored.arrays)["train_state"]["agent"]["actor"]
    arrays |= flatten_named({"acting_actor": actor, "next_actor": actor})
    with monkeypatch.context() as patched:
        patched.setattr(checkpoint_files, "FORMAT_VERSION", 1)
        kept.save(stored.step, arrays, stored.host)
    kept.close()

    best = load_npz(target / "best.npz")
    agent = best.pop("agent")
    checkpoint_files.export_npz(target / "best.npz", best | {"actor": agent["averaged_actor"]})

    config, former = open_run(folder).config, {now: before for before, now in configs.RENAMED.items()}
    named = {former.get(name, name): value for name, value in configs.flatten(config)}
    named |= {name: removed.constant for name, removed in configs.REMOVED.items()}
    del named["compilation_cache"]
    tree = nested({name.replace(".", "/"): value for name, value in named.items()})
    (target / "config.json").write_text(json.dumps(tree))

    text = (target / "metrics.jsonl").read_text()
    (target / "metrics.jsonl").write_text(text.replace("world_model/", "denoiser/").replace("agent/", "policy/"))
    return target


def test_a_folder_of_the_revision_before_can_be_looked_at_but_not_resumed(hopper, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    before = as_version_1(hopper, tmp_path / "before", monkeypatch)
    for which in ("newest", "best"):
        old, new = open_run(before, which), open_run(hopper, which)
        assert (old.env_steps, old.config) == (new.env_steps, new.config)
        for x, y in zip(jax.tree.leaves(old.policy.params), jax.tree.leaves(new.policy.params), strict=True):
            np.testing.assert_array_equal(x, y)
        contexts, key = new.contexts(B, jax.random.key(0)), jax.random.key(1)
        np.testing.assert_array_equal(old.imagine(contexts, key).observations, new.imagine(contexts, key).observations)
    assert cli.main(["evaluate", str(before), "--episodes", "1", "--which", "best"]) == 0
    assert cli.main(["imagine", str(before), "--trajectories", f"{B}", "--no-video"]) == 0
    assert cli.main(["plot", str(before)]) == 0
    names = {name for row in open_run(before).saved.rows for name in row}
    assert {"world_model/loss", "agent/entropy"} <= names and "denoiser/loss" not in names
    capsys.readouterr()
    line = complaint(capsys, "train", "--run", str(before))
    assert "format version 1 and cannot be resumed" in line and "begin anew" in line


# --- imagining -------------------------------------------------------------------------------------------------------


def test_imagining_begins_at_the_contexts_and_the_strip_ends_in_it(run):
    contexts, key = run.contexts(B, jax.random.key(2)), jax.random.key(3)
    segment = run.imagine(contexts, key)
    np.testing.assert_allclose(segment.observations[:, 0], contexts.observations[:, 0], rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(segment.rows, contexts.rows)
    stages = diffuse(run, contexts, key)
    assert stages.steps.tolist() == [3, 2, 1, 0, -1]
    np.testing.assert_allclose(stages.observations[-1], segment.observations, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(stages.actions[-1], segment.actions, rtol=1e-4, atol=1e-4)
    # The start is standard normal in normalised units: 4 * 10 * 3 draws.
    n = run.normaliser.actions
    start = (stages.actions[0] - np.asarray(n.mean)) / np.asarray(n.std)
    assert abs(start.mean()) < 4 / np.sqrt(120) and abs(start.std() - 1) < 4 / np.sqrt(240)


def test_imagined_trajectories_are_exported_as_plain_arrays(run, tmp_path):
    segment = run.imagine(run.contexts(B, jax.random.key(0)), jax.random.key(1))
    opened_run.export_segment(tmp_path / "t.npz", segment, policy_mean=np.zeros(2))
    with np.load(tmp_path / "t.npz") as stored:
        assert sorted(stored) == ["actions", "observations", "policy_mean", "rewards", "rows", "terminals"]
        np.testing.assert_array_equal(stored["observations"], segment.observations)


# --- measures, by hand -----------------------------------------------------------------------------------------------


def test_squared_errors_by_hand():
    # One trajectory of 3 states in 2 dimensions; the first state does not count.
    # Horizon 1: (1^2 + 3^2) / 2 = 5. Horizon 2: (2^2 + 0^2) / 2 = 2.
    replayed = np.array([[[0.0, 0.0], [1.0, 1.0], [2.0, 2.0]]])
    predicted = replayed + np.array([[[9.0, 9.0], [1.0, -3.0], [2.0, 0.0]]])
    assert squared_errors(predicted, replayed).tolist() == [[5.0, 2.0]]
    # Nothing moves: horizon 1 off by (1, 1), horizon 2 by (2, 2).
    assert squared_errors(staying_still(replayed), replayed).tolist() == [[1.0, 4.0]]


def test_mean_and_quartiles_are_over_trajectories():
    error = action_spread.by_horizon(np.array([[0.0], [1.0], [2.0], [3.0], [14.0]]))
    assert (error.mean[0], error.lower_quartile[0], error.upper_quartile[0]) == (4.0, 1.0, 3.0)


def test_spread_is_scipys():
    values = np.random.default_rng(0).standard_t(5, (7, 11, 3)) * 1.3 + 0.2
    spread = action_spread.spread_of(values)
    assert spread.ks_distance == pytest.approx(scipy.stats.kstest(values.ravel(), "norm").statistic, rel=1e-12)
    assert spread.excess_kurtosis == pytest.approx(scipy.stats.kurtosis(values.ravel()), rel=1e-9)
    assert (spread.mean, spread.std) == pytest.approx((values.mean(), values.std(ddof=1)))


def test_one_action_has_no_spread_and_no_warning():
    """One trajectory of H = 2 under --trajectories 1: numpy warned twice for every table and figure."""
    one = action_spread.spread_of(np.zeros((1, 1, 1)))
    assert (one.mean, one.ks_distance) == (0.0, 0.5) and np.isnan(one.std)


def test_standardised_actions_leave_the_last_state_out():
    # (a - mu) / sigma: (3 - 1) / 2 = 1; the second state is the last.
    actions, mean, std = np.array([[[3.0], [99.0]]]), np.array([[[1.0], [0.0]]]), np.full((1, 2, 1), 2.0)
    z = action_spread.standardised_actions(actions, mean, std)
    assert z.tolist() == [[[1.0]]]


# --- evaluate --------------------------------------------------------------------------------------------------------


def test_evaluation_is_whole_episodes_with_the_mean_action(run, hopper, tmp_path, capsys):
    folder = tmp_path / "copy"
    shutil.copytree(hopper, folder)

    def mean_action(raw_obs):
        return np.asarray(run.policy(raw_obs)[0])

    expected = run_episodes(run.config.env, mean_action, 3, seed=5)
    assert cli.evaluate_command([str(folder), "--episodes", "3", "--seed", "5"]) == 0
    row = table_row(folder / "evaluations.csv")[0]
    assert float(row["return_mean"]) == pytest.approx(expected.returns.mean(), rel=1e-6)
    assert float(row["distance_std"]) == pytest.approx(expected.distances.std(), rel=1e-3, abs=1e-7)
    assert (row["env_steps"], row["which"], row["seed"], row["episodes"]) == (str(run.env_steps), "newest", "5", "3")
    said = capsys.readouterr().out
    assert f"return {expected.returns.mean():.1f} ± {expected.returns.std():.1f} over 3 episodes" in said
    assert f"length {expected.lengths.mean():.1f} ±" in said and "distance" in said
    assert cli.evaluate_command([str(folder), "--episodes", "1", "--which", "best"]) == 0
    assert [row["which"] for row in table_row(folder / "evaluations.csv")] == ["newest", "best"]


@pytest.mark.parametrize("distances", [(None, 1.0), (1.0, None), (None, None), (1.0, 2.0)])
def test_evaluations_are_one_table_whether_or_not_a_position_was_told(distances, tmp_path):
    run, path = SimpleNamespace(folder=tmp_path), tmp_path / "evaluations.csv"
    row = {"env_steps": 5, "which": "newest", "seed": 0, "episodes": 2, "return_mean": 1.5, "return_std": 0.5}
    for distance in distances:
        assert reports.append_evaluation(run, row | {"distance_mean": distance}) == path
    assert [r["distance_mean"] for r in table_row(path)] == ["" if d is None else repr(d) for d in distances]
    assert all(r["return_std"] == "0.5" for r in table_row(path))
    path.write_text("mine,return_mean\n1,2\n")
    with pytest.raises(ConfigError, match="has other columns .mine.; allowed: a file that this command wrote"):
        reports.append_evaluation(run, row)
    assert path.read_text() == "mine,return_mean\n1,2\n"


def test_what_cannot_be_added_to_the_table_is_told_all_the_same(tmp_path, monkeypatch):
    (tmp_path / "evaluations.csv").mkdir()
    row = {"env_steps": 5, "distance_mean": None, physics.COLUMN: physics.NO_MUJOCO}
    row |= {"return_mean": 1.5, "return_std": 0.5, "length_mean": 10.0, "length_std": 0.0}
    monkeypatch.setattr(reports, "evaluate", lambda *_: row)
    monkeypatch.setattr(reports, "title", lambda run: "the run")
    lines = reports.report_evaluation(SimpleNamespace(folder=tmp_path), 2, 0, tmp_path / "film.gif")
    assert lines[1:3] == [
        "return 1.5 ± 0.5 over 2 episodes, mean action", "length 10.0 ± 0.0 environment steps"
    ]  # fmt: skip
    why = f"{tmp_path}/evaluations.csv cannot be written: there is a folder in its place"
    assert lines[3] == f"video {tmp_path}/film.gif" and lines[4].startswith(f"not added to evaluations.csv: {why}; ")


def table_row(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(path.read_text())))


def test_evaluations_and_captions_say_the_physics(run, tmp_path):
    """A row below those of a revision that did not say it, whose cells stay empty; a policy of another physics."""
    version = physics.installed_mujoco()
    looked_at = SimpleNamespace(folder=tmp_path, config=run.config)
    (tmp_path / "evaluations.csv").write_text("env_steps,return_mean\n10,1.5\n")
    for step in (20, 30):
        reports.append_evaluation(looked_at, {"env_steps": step, "return_mean": 2.5, "mujoco": version})
    lines = ["env_steps,return_mean,mujoco", "10,1.5,", f"20,2.5,{version}", f"30,2.5,{version}"]
    assert (tmp_path / "evaluations.csv").read_text().splitlines() == lines
    assert f"Hopper-v5, MuJoCo {version}, preset smoke, seed 0, " in reports.title(run)
    assert reports._other_physics(run, version) is None and reports._other_physics(run, "none") is None
    (tmp_path / "environment.json").write_text('{"packages": {"mujoco": "3.4.0"}}')
    assert reports._other_physics(looked_at, version).endswith("trained with another physics (MuJoCo 3.4.0)")


@needs_gl
def test_the_video_has_one_frame_per_state_of_the_first_episode(run, tmp_path):
    video = tmp_path / "new" / "episode.mp4"
    row = reports.evaluate(run, 1, 0, video)
    reader = imageio.get_reader(video)
    assert reader.count_frames() == row["length_mean"] + 1
    assert reader.get_meta_data()["fps"] == 125.0  # Hopper's
    reader.close()
    assert [p.name for p in video.parent.iterdir()] == ["episode.mp4"]


# --- imagine ---------------------------------------------------------------------------------------------------------


def test_the_error_at_every_horizon_is_that_of_a_hand_loop_with_the_environment(run, tmp_path, capsys):
    out = tmp_path / "look"
    arguments = [str(run.folder), "--trajectories", f"{B}", "--out", str(out), "--no-video", "--seed", "7"]
    assert cli.imagine_command(arguments) == 0
    with np.load(out / "trajectories.npz") as stored:
        segment = {name: stored[name] for name in stored}
    env = gym.make("Hopper-v5").unwrapped
    env.reset(seed=0)
    errors = np.zeros((B, run.config.horizon - 1))
    still = np.zeros_like(errors)
    for b, row in enumerate(segment["rows"][:, 0]):
        first = mujoco_state.set_state(env, run.transitions.simulator_states[row])
        for k in range(run.config.horizon - 1):
            real, *_ = env.step(np.clip(segment["actions"][b, k], -1.0, 1.0))
            errors[b, k] = np.mean((segment["observations"][b, k + 1] - real) ** 2)
            still[b, k] = np.mean((first - real) ** 2)
    found = table(out / "error_against_horizon.csv")
    assert found["horizon"].tolist() == list(range(1, 10))
    np.testing.assert_allclose(found["imagined_mean"], errors.mean(0), rtol=1e-9)
    np.testing.assert_allclose(found["imagined_lower_quartile"], np.quantile(errors, 0.25, axis=0), rtol=1e-9)
    np.testing.assert_allclose(found["nothing_moves_mean"], still.mean(0), rtol=1e-9)
    assert (found["untrained_mean"] > 0).all()
    z = (segment["actions"] - segment["policy_mean"])[:, :-1] / segment["policy_std"][:, :-1]
    spread = table_row(out / "action_distribution.csv")
    assert [row["action"] for row in spread] == ["all", "0", "1", "2"]
    assert float(spread[0]["std"]) == pytest.approx(z.std(ddof=1), rel=1e-5)
    assert float(spread[2]["ks_distance"]) == pytest.approx(scipy.stats.kstest(z[..., 1].ravel(), "norm")[0], rel=1e-4)
    said = capsys.readouterr().out
    assert f"horizon 1 -> 9: imagined {errors.mean(0)[0]:.4g} -> {errors.mean(0)[-1]:.4g}" in said
    for name in ("error_against_horizon", "action_distribution", "diffusion_strip"):
        assert matplotlib.image.imread(out / f"{name}.png").std() > 0.01


def test_an_environment_without_simulator_state_gets_everything_but_the_replay(pendulum, tmp_path, capsys):
    out = tmp_path / "look"
    assert cli.imagine_command([str(pendulum), "--trajectories", "5", "--out", str(out)]) == 0
    assert sorted(p.name for p in out.iterdir()) == [
        "action_distribution.csv",
        "action_distribution.png",
        "diffusion_strip.png",
        "trajectories.npz",
    ]
    said = capsys.readouterr().out.splitlines()
    line = "Pendulum-v1: no simulator states: it is no task of Gymnasium's MuJoCo; no error against horizon, no film"
    assert line in said
    assert cli.evaluate_command([str(pendulum), "--episodes", "1"]) == 0
    assert "distance" not in capsys.readouterr().out


# --- the film --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "holds"),
    [
        ("hopper", "pose but x"),
        ("walker2d", "pose but x"),
        ("halfcheetah", "pose but x"),
        ("inverted_pendulum", "pose"),
        ("Ant-v5", None),
        ("Reacher-v5", None),
        ("Pendulum-v1", None),
    ],
)
def test_which_observations_hold_a_pose(name, holds):
    env = tasks.make(EnvConfig(name))
    env.reset(seed=0)
    assert films.observation_holds(env) == holds


def test_imagined_poses_by_hand():
    # qpos = (x, z), qvel = (vx, vz), observation (z, vx, vz); half a second per step.
    # x: 10, then + 0.5 * (1 + 3) / 2 = 11, then + 0.5 * (3 + 3) / 2 = 12.5.
    raw_obs = np.array([[0.1, 1.0, 0.0], [0.2, 3.0, 0.0], [0.3, 3.0, 0.0]])
    assert films.imagined_poses(raw_obs, 10.0, 0.5, nq=2).tolist() == [[10.0, 0.1], [11.0, 0.2], [12.5, 0.3]]
    assert films.imagined_poses(np.ones((1, 4)), 10.0, 0.5, nq=2).tolist() == [[1.0, 1.0]]


@needs_gl
@pytest.mark.parametrize("how", ["clipped", "squashed"])
def test_a_trajectory_imagined_without_error_looks_like_its_replay(how):
    config = EnvConfig("inverted_pendulum", actions=how)
    env = tasks.make(config)
    env.reset(seed=3)
    state, actions = mujoco_state.read_state(env), np.full((4, 1), 0.7, np.float32)
    real, _, _ = mujoco_state.replay_actions(config, state[None], actions[None, :-1])
    stage = films.SideBySide(config)
    frames = list(stage.frames(real[0], actions, state))
    np.testing.assert_allclose(stage.replayed_poses(actions, state), real[0, :, :2], rtol=0, atol=1e-12)
    stage.close()
    assert len(frames) == 4
    left, right = np.split(np.stack(frames), 2, axis=2)
    np.testing.assert_array_equal(left, right)
    assert (left[0] != left[-1]).any()


@needs_gl
def test_the_film_shows_every_state_and_rests_on_the_first_and_last(run, tmp_path):
    out = tmp_path / "look"
    arguments = ["--trajectories", f"{B}", "--shown", "1", "--video", "--out", str(out)]
    assert cli.imagine_command([str(run.folder), *arguments]) == 0
    reader = imageio.get_reader(out / "side_by_side.mp4")
    # 10 states; the first and the last four times each.
    assert (reader.count_frames(), reader.get_meta_data()["size"]) == (10 + 2 * 3, (960, 480))
    reader.close()


@pytest.mark.parametrize("suffix", [".mp4", ".gif"])
def test_a_film_is_whole_or_absent(tmp_path, suffix):
    path = tmp_path / f"film{suffix}"
    path.write_bytes(b"the one before")
    with contextlib.suppress(ZeroDivisionError), films.film(path, 10) as add:
        add(np.zeros((16, 16, 3), np.uint8))
        raise ZeroDivisionError
    del add
    gc.collect()  # an encoder that had been left open now wrote .film.mp4.tmp.mp4
    assert path.read_bytes() == b"the one before" and len(list(tmp_path.iterdir())) == 1
    with films.film(path, 10) as add:
        for shade in (0, 100, 200):
            add(np.full((16, 16, 3), shade, np.uint8))
    reader = imageio.get_reader(path)
    assert sum(1 for _ in reader) == 3  # list() asks imageio for the length, which it does not know of an mp4
    reader.close()
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("suffix", [".mp4", ".gif"])
def test_a_film_has_the_size_of_its_pictures(tmp_path, suffix, caplog):
    """The pendulum's 500 x 500 pixels were stretched to 512 x 512, which a long warning said."""
    with films.film(tmp_path / f"film{suffix}", 30) as add:
        add(np.zeros((20, 36, 3), np.uint8))
    reader = imageio.get_reader(tmp_path / f"film{suffix}")
    assert np.shape(next(iter(reader)))[:2] == (20, 36) and not caplog.records
    reader.close()


@pytest.mark.parametrize("rate", [125.0, 100.0, 67.0, 60.0, 30.0, 20.0, 12.5, 10.0])
def test_a_gif_runs_as_fast_as_the_simulated_world(tmp_path, rate):
    """A GIF counts hundredths of a second, and browsers take anything below two of them for ten."""
    path = tmp_path / "film.gif"
    with films.film(path, rate) as add:
        for k in range(120):
            add(np.full((8, 8, 3), 2 * k, np.uint8))
    shown, gif = 0, Image.open(path)
    for k in range(gif.n_frames):
        gif.seek(k)
        assert gif.info["duration"] >= 20
        shown += gif.info["duration"]
    assert shown == pytest.approx(1000 * 120 / rate, rel=0.08)


# --- figures ---------------------------------------------------------------------------------------------------------


def test_training_curves_draw_the_numbers_of_the_run(hopper, tmp_path, capsys):
    figure = figures.training_curves(read_rows(hopper), read_evaluations(hopper), "title")
    returns, distances, losses, guidance = figure.axes
    evaluations = read_evaluations(hopper)
    np.testing.assert_array_equal(returns.get_lines()[0].get_ydata(), evaluations["return_mean"])
    np.testing.assert_array_equal(distances.get_lines()[0].get_ydata(), evaluations["distance_mean"])
    rows = read_rows(hopper)
    np.testing.assert_array_equal(losses.get_lines()[0].get_xdata(), [row["env_steps"] for row in rows])
    sigma = [row["guidance/sigma"] for row in rows if "guidance/sigma" in row]
    np.testing.assert_array_equal(guidance.get_lines()[0].get_ydata(), sigma)
    assert cli.plot_command([str(hopper), "-o", str(tmp_path / "new" / "curves.png")]) == 0
    assert matplotlib.image.imread(tmp_path / "new" / "curves.png").std() > 0.01


def test_every_name_that_a_run_writes_has_a_line_on_the_page(hopper):
    page = METRICS_PAGE.read_text()
    evaluated = {f"evaluation/{name}" for name in read_evaluations(hopper)} - {"evaluation/env_steps"}
    for name in evaluated.union(*read_rows(hopper)) - {"env_steps"}:
        assert f"| `{re.sub(r'_[0-9]{3}$', '_NNN', name)}` |" in page, name


LOGGED = {
    "polygrad": ["world_model/loss", "world_model/terminal_loss", "guidance/delta", "guidance/sigma"],
    "autoregressive": ["world_model/loss", "world_model/reward_loss"],
    "distilled": ["world_model/loss", "world_model/distillation_loss"],
    "transformer": ["world_model/loss", "world_model/classifier_loss"],
    "ensemble": ["world_model/loss", "world_model/heldout_loss"],
    "dreamer": ["world_model/loss", "world_model/continue_loss"],
    "simulator": ["imagination/reward_mean"],
    "polygrad of the revision before": ["denoiser/loss", "loss/terminal_classifier", "guidance/sigma"],
    "transformer of the revision before": ["transformer/loss", "transformer/reward_loss"],
    "ensemble of the revision before": ["ensemble/loss", "ensemble/heldout_loss"],
    "dreamer of the revision before": ["loss/dreamer", "loss/continue"],
}


@pytest.mark.parametrize("model", LOGGED)
def test_no_panel_of_the_training_curves_is_empty(model):
    names = [*LOGGED[model], *(["loss/actor", "loss/critic"] if "before" in model else ["agent/actor_loss"])]
    rows = [{"env_steps": x} | {todays_metric(name): value * x for name in names} for x, value in ((1, 2), (2, -1))]
    steps = {"env_steps": np.array([1.0, 2.0])}
    evaluations = steps | {f"{n}_{s}": np.ones(2) for n in ("return", "length") for s in ("mean", "std")}
    figure = figures.training_curves(rows, evaluations, model)
    for ax in figure.axes:
        (line, *_) = ax.get_lines()
        assert len(line.get_xdata()) == 2, ax.get_title(loc="left")
    shown = [line.get_gid() for line in figure.axes[2].get_lines()]
    assert shown[0] == "loss" or model == "simulator"
    assert len(shown) == sum(todays_metric(n).startswith(("world_model", "imagination")) for n in names)


def test_the_curves_of_a_world_model_alone_are_over_updates():
    rows = [{"updates": u, "world_model/loss": 1.0 / u, "fit/updates_per_second": 9.0} for u in (1, 2)]
    evaluations = {name: np.array([1.0, 2.0]) for name in ("updates", "five_step_error", "reward_mse")}
    figure = figures.training_curves(rows, evaluations, "alone")
    assert all(ax.get_lines()[0].get_xdata().tolist() == [1, 2] for ax in figure.axes)
    assert "gradient steps" in figure.axes[3].get_xlabel()


@pytest.mark.parametrize("header", [(), ("updates", "five_step_error", "reward_mse")])
def test_a_world_model_alone_that_was_not_judged_yet_has_no_returns(header):
    """Its panels were called evaluation return and distance; behind a header alone they were empty without a word."""
    rows = [{"updates": 5, "world_model/loss": 1.0, "fit/updates_per_second": 9.0}]
    figure = figures.training_curves(rows, dict.fromkeys(header, np.empty(0)), "alone")
    assert "five steps ahead" in figure.axes[0].get_title(loc="left")
    assert [text.get_text() for ax in figure.axes[:2] for text in ax.texts] == 2 * ["no evaluation yet"]
    assert [line.get_marker() for ax in figure.axes[2:] for line in ax.get_lines()] == ["o", "o"]  # or nothing is seen


def test_a_run_whose_evaluations_were_cut_off_says_that_there_are_none():
    header = ("env_steps", "return_mean", "return_std", "length_mean", "distance_mean", "distance_std")
    figure = figures.training_curves([], dict.fromkeys(header, np.empty(0)), "resumed")
    assert [text.get_text() for ax in figure.axes[:2] for text in ax.texts] == 2 * ["no evaluation yet"]


@pytest.mark.parametrize(
    ("joints", "holds", "names"),
    [
        ("xz", "pose but x", {0: "z, position", 1: "x, velocity"}),
        ("xz", "pose", {0: "x, position", 2: "x, velocity"}),
        ("x", "pose", {0: "x, position", 1: "x, velocity"}),
        ("x", "pose but x", {0: "x, velocity"}),  # it was an IndexError
    ],
)
def test_the_strip_names_what_it_shows(monkeypatch, joints, holds, names):
    model = SimpleNamespace(nq=len(joints), njnt=len(joints), joint=lambda j: SimpleNamespace(name=joints[j]))
    env = SimpleNamespace(unwrapped=SimpleNamespace(model=model), reset=lambda seed: None, close=lambda: None)
    monkeypatch.setattr(tasks, "make", lambda _: env)
    monkeypatch.setattr(films, "observation_holds", lambda _: holds)
    run = SimpleNamespace(config=SimpleNamespace(env=None), has_simulator_states=True)
    assert reports._observation_names(run) == names


@pytest.mark.parametrize("still", [0.0, 2.0])
def test_an_error_of_zero_has_a_name_within_the_figure(still):
    """Of a model that is the simulator: its name lay infinitely far below, and took the room of the others."""
    errors = {"imagined": np.zeros((4, 3)), "nothing moves": np.full((4, 3), still)}
    figure = figures.error_against_horizon({n: action_spread.by_horizon(e) for n, e in errors.items()}, "simulator")
    figure.canvas.draw()
    shown = [text.get_text() for text in figure.axes[0].texts]
    assert shown == ["imagined: 0", "nothing moves" if still else "nothing moves: 0"]
    assert all(figure.bbox.containsx(x) for t in figure.axes[0].texts for x in t.get_window_extent().intervalx)


def test_a_long_title_is_whole():
    """It was cut off at the right edge: of the action distribution, every title of a run."""
    name = "HalfCheetah-v5, MuJoCo 3.17.0, preset cpu_value_gradient, seed 1, 1,500,000 environment steps (newest)"
    errors = {"imagined": action_spread.by_horizon(np.ones((4, 3)))}
    steps, two = np.array([0, -1]), np.zeros((2, 1, 2, 1))  # K = 1, H = 2, one trajectory, one number each
    for figure in (
        figures.action_distribution(np.arange(4.0).reshape(1, 2, 2), name),
        figures.error_against_horizon(errors, name),
        figures.diffusion_strip(steps, two, two, (two, two), None, {0: "x"}, name),
    ):
        figure.canvas.draw()
        written = figure._suptitle or figure.axes[0]._left_title
        extent = written.get_window_extent()
        assert written.get_text() == name and 0 <= extent.x0 < extent.x1 <= figure.bbox.x1


@pytest.mark.parametrize(
    ("count", "shown"), [(129, [0, 26, 51, 77, 102, 128]), (6, [0, 1, 2, 3, 4, 5]), (3, [0, 1, 2]), (2, [0, 1])]
)
def test_the_strip_begins_random_and_ends_finished(count, shown):
    assert figures.strip_columns(count).tolist() == shown


# --- bad input -------------------------------------------------------------------------------------------------------


def complaint(capsys, name: str, *arguments: str) -> str:
    """The one line that a command says before it ends with exit code 2."""
    assert cli.main([name, *arguments]) == cli.BAD_INPUT
    said = capsys.readouterr()
    assert said.out == "" and said.err.count("\n") == 1, said
    return said.err


@pytest.mark.parametrize(
    ("name", "arguments", "words"),
    [
        ("evaluate", ["{none}"], "has no config.json; allowed: the folder of a run"),
        ("evaluate", ["{foreign}"], "has no config.json; allowed: the folder of a run"),
        ("evaluate", ["{unfinished}"], "has no checkpoint yet; allowed: a run that has saved one"),
        ("evaluate", ["{unfinished}", "--which", "best"], "has no best.npz yet; allowed: --which newest"),
        ("evaluate", ["{run}", "--which", "worst"], "invalid choice: 'worst'"),
        ("evaluate", ["{run}", "--episodes", "0"], "--episodes: '0'; allowed: how many, from 1 to 1,000,000"),
        ("evaluate", ["{run}", "--seed", "-1"], "--seed"),
        ("evaluate", ["{run}", "--video", "out.avi"], "video is out.avi; allowed: a name that ends with .mp4 or .gif"),
        ("evaluate", [], "RUN"),
        ("imagine", ["{run}", "--trajectories", "many"], "--trajectories: 'many'; allowed: how many, from 1 to 1,000"),
        ("imagine", ["{run}", "--video", "--gif"], "not allowed with argument"),
        ("imagine", ["{run}", "--out", "{file}"], "which is a file; allowed: a folder"),
        ("imagine", ["{foreign}"], "has no config.json; allowed: the folder of a run"),
        ("plot", ["{run}", "-o", "curves.bmp"], "allowed: a name that ends with .png, .pdf, .svg"),
        ("plot", ["{unfinished}"], "metrics.jsonl does not exist; allowed: the folder of a run that has logged a row"),
    ],
)
def test_bad_input_is_one_line_and_writes_nothing(hopper, tmp_path, monkeypatch, capsys, name, arguments, words):
    monkeypatch.chdir(tmp_path)
    for folder in ("foreign", "unfinished"):
        (tmp_path / folder).mkdir()
    (tmp_path / "foreign" / "notes.txt").write_text("not a run")
    shutil.copy(hopper / "config.json", tmp_path / "unfinished")
    (tmp_path / "file").write_text("")
    places = {n: str(tmp_path / n) for n in ("none", "foreign", "unfinished", "file")} | {"run": str(hopper)}
    before = files(tmp_path)
    assert words in complaint(capsys, name, *(a.format(**places) for a in arguments))
    assert files(tmp_path) == before


def test_a_config_that_names_an_unknown_world_model_says_so(hopper, tmp_path, capsys):
    saved = (hopper / "config.json").read_text().replace('"world_model": "polygrad"', '"world_model": "crystal_ball"')
    (tmp_path / "config.json").write_text(saved)
    assert "world_model is crystal_ball; allowed: polygrad" in complaint(capsys, "evaluate", str(tmp_path))


def test_a_missing_gl_library_names_debians_package_and_leaves_no_file(run, tmp_path, monkeypatch, capsys):
    monkeypatch.delenv("MUJOCO_GL", raising=False)
    monkeypatch.setattr(rendering, "_loads", lambda name: False)
    video, out = tmp_path / "v.mp4", tmp_path / "look"
    assert "apt install libegl1" in complaint(capsys, "evaluate", str(run.folder), "--video", str(video))
    assert "libosmesa6" in complaint(capsys, "imagine", str(run.folder), "--gif", "--out", str(out))
    assert list(tmp_path.iterdir()) == []
    # Where no film was asked for, the rest is made.
    assert cli.imagine_command([str(run.folder), "--trajectories", f"{B}", "--out", str(out)]) == 0
    assert "no film: rendering with egl needs a GL library that is missing (libegl1" in capsys.readouterr().out
    assert not list(out.glob("side_by_side*")) and (out / "error_against_horizon.png").is_file()
    monkeypatch.setenv("MUJOCO_GL", "osmesa")
    with pytest.raises(ConfigError, match="rendering with osmesa needs a GL library that is missing \\(libosmesa6\\)"):
        rendering.choose_backend()
