"""The film of an evaluation runs as fast as the simulated world, changes no number, and never ends a run."""

import io
import subprocess
from types import SimpleNamespace

import gymnasium as gym
import numpy as np
import pytest
from events import read_events
from PIL import Image
from test_metrics_log import X

from polygrad_jax.config import EnvConfig, override, smoke
from polygrad_jax.envs import rendering
from polygrad_jax.envs.episodes import run_episodes
from polygrad_jax.runs.evaluation_film import SIDE, EvaluationFilm
from polygrad_jax.runs.metrics_log import MetricsLog
from polygrad_jax.training import loop

needs_gl = pytest.mark.skipif(
    all(rendering.missing_packages(b) for b in ("egl", "osmesa")), reason="no GL library to render with"
)


class Painting(gym.Env):
    """Twenty steps per second; step k is a picture of colour k, until it breaks."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 20}
    observation_space = gym.spaces.Box(-np.inf, np.inf, (1,), np.float64)
    action_space = gym.spaces.Box(-1.0, 1.0, (1,), np.float32)

    def __init__(self, length=300, breaks_at=None, render_mode=None):
        self.length, self.breaks_at, self.render_mode = length, breaks_at, render_mode

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.count = 0
        return np.zeros(1), {}

    def step(self, action):
        self.count += 1
        return np.zeros(1), 1.0, False, self.count == self.length, {}

    def render(self):
        if self.count == self.breaks_at:
            raise RuntimeError("the paint\nis used up")
        return np.full((300, 600, 3), self.count, np.uint8)


def painting(**fields):
    name = f"PolygradPainting{'-'.join(f'{k}{v}' for k, v in fields.items())}".replace("_", "").replace("-", "") + "-v0"
    gym.registry.pop(name, None)
    gym.register(name, entry_point=Painting, kwargs=fields)
    return EnvConfig(name)


def filmed(config, episodes=2):
    film = EvaluationFilm()
    return film, run_episodes(config, lambda raw_obs: np.zeros((episodes, 1)), episodes, 0, film.watch)


def test_a_film_has_ten_seconds_at_the_speed_of_the_simulated_world():
    film, results = filmed(painting())
    gif = Image.open(io.BytesIO(film.gif()))
    assert film.size == gif.size == (SIDE, SIDE // 2)
    # Every second of twenty pictures a second, for 200 of the 300 steps.
    assert (gif.n_frames, gif.info["duration"], film.trouble) == (100, 100, None)
    gif.seek(99)
    assert np.abs(np.asarray(gif.convert("RGB"), int) - 198).max() <= 4  # 64 colours
    assert results.lengths.tolist() == [300, 300]


def test_an_episode_that_is_shorter_makes_a_shorter_film():
    film, _ = filmed(painting(length=7))
    assert Image.open(io.BytesIO(film.gif())).n_frames == 4  # after 0, 2, 4 and 6 steps


def test_a_task_that_stops_drawing_ends_its_film_but_no_evaluation():
    film, results = filmed(painting(breaks_at=10))
    assert Image.open(io.BytesIO(film.gif())).n_frames == 5
    assert film.trouble == "RuntimeError: the paint is used up"
    assert results.returns.tolist() == [300.0, 300.0]
    film, results = filmed(painting(breaks_at=0))
    assert film.gif() is None and results.returns.tolist() == [300.0, 300.0]


@needs_gl
@pytest.mark.parametrize("name", ["hopper", "inverted_pendulum"])
def test_being_filmed_changes_no_number(name):
    rendering.choose_backend()
    config, sizes = EnvConfig(name), {"hopper": 3, "inverted_pendulum": 1}
    results = [
        run_episodes(config, lambda raw_obs: 0.3 * raw_obs[:, : sizes[name]], 3, 5, watch)
        for watch in (None, EvaluationFilm().watch)
    ]
    np.testing.assert_array_equal(results[0].returns, results[1].returns)
    np.testing.assert_array_equal(results[0].lengths, results[1].lengths)


@needs_gl
def test_the_body_is_in_the_picture_and_the_picture_is_small():
    rendering.choose_backend()
    film = EvaluationFilm()
    run_episodes(EnvConfig("hopper"), lambda raw_obs: np.zeros((1, 3)), 1, 0, film.watch)
    gif = Image.open(io.BytesIO(film.gif()))
    pictures = []
    for k in (0, gif.n_frames - 1):
        gif.seek(k)
        pictures.append(np.asarray(gif.convert("RGB"), int))
    assert pictures[0].shape == (SIDE, SIDE, 3)
    assert (np.abs(pictures[0] - pictures[1]).max(axis=-1) > 30).sum() > 300  # it has fallen


def test_tensorboard_finds_the_film_at_its_step_and_going_back_cuts_it_off(tmp_path):
    film, _ = filmed(painting(length=7))
    log = MetricsLog(tmp_path)
    for step in (5, 9):
        log.write_film(step, "evaluation/first_episode", film.gif(), film.size)
    images = read_events(tmp_path).Images(f"evaluation/first_episode {X}")
    assert [(i.step, i.width, i.height) for i in images] == [(5, 240, 120), (9, 240, 120)]
    assert images[0].encoded_image_string == film.gif()
    log.truncate(5)
    assert [i.step for i in read_events(tmp_path).Images(f"evaluation/first_episode {X}")] == [5]


# --- where nothing can be drawn -------------------------------------------------------------------------------------


@pytest.fixture
def unknown(monkeypatch):
    """Nothing is known yet of what can be drawn."""
    rendering.why_no_pictures.cache_clear()
    loop.can_be_filmed.cache_clear()
    yield monkeypatch
    rendering.why_no_pictures.cache_clear()
    loop.can_be_filmed.cache_clear()


def test_a_missing_gl_library_is_said_once(unknown, capsys):
    unknown.delenv("MUJOCO_GL", raising=False)
    unknown.setattr(rendering, "_loads", lambda name: False)
    hopper = smoke("hopper").env
    assert not loop.can_be_filmed(hopper) and not loop.can_be_filmed(hopper)
    said = capsys.readouterr().err
    assert said.count("no films of evaluations in TensorBoard: rendering with egl needs a GL library") == 1


@pytest.mark.parametrize("status", [1, -11])
def test_a_gl_library_that_ends_the_process_ends_another_one(status, unknown):
    unknown.setenv("MUJOCO_GL", "egl")
    unknown.setattr(rendering, "_loads", lambda name: True)
    unknown.setattr(subprocess, "run", lambda *_, **__: SimpleNamespace(returncode=status))
    assert f"MUJOCO_GL=egl (exit status {status})" in rendering.why_no_pictures(smoke("hopper").env)


def test_tasks_that_draw_nothing_are_not_filmed(unknown):
    assert "the paint is used up" in rendering.why_no_pictures(painting(breaks_at=0))
    assert rendering.why_no_pictures(painting(length=9)) is None  # without any GL library


def test_a_run_films_at_checkpoints_and_says_what_cut_a_film_short(unknown, tmp_path, capsys):
    config = override(smoke(painting(breaks_at=4).name), {"loop.film_checkpoints": True})
    wanted = []
    unknown.setattr(loop, "evaluate", lambda run, state, against, filmed: wanted.append(filmed) or {})
    unknown.setattr(loop, "log_row", lambda *_: {})
    unknown.setattr(loop, "uncovered_share", lambda *_: {})
    run = SimpleNamespace(config=config, at=SimpleNamespace(env_steps=8), window=None)
    state, session = SimpleNamespace(replay=None), SimpleNamespace(against=None, began=0.0, first_step=0)
    for save in (True, False):
        loop.look(run, session, state, loop.Due(True, True, save))
    unfilmed = override(config, {"loop.film_checkpoints": False})
    loop.look(SimpleNamespace(**vars(run) | {"config": unfilmed}), session, state, loop.Due(True, True, True))
    assert wanted == [True, False, False]
    film, _ = filmed(config.env)
    run.metrics = MetricsLog(tmp_path)
    loop.keep_film(run, film)
    assert "at environment step 8 is cut short: RuntimeError: the paint is used up" in capsys.readouterr().err
    assert len(read_events(tmp_path).Images(f"evaluation/first_episode {X}")) == 1
