"""The film of an evaluation runs as fast as the simulated world, changes no number, and never ends a run."""

import contextlib
import io
import sys
from types import SimpleNamespace

import gymnasium as gym
import numpy as np
import pytest
from events import read_events
from PIL import Image
from test_metrics_log import X

from polygrad_jax.config import ConfigError, EnvConfig, override, smoke, validate
from polygrad_jax.envs import rendering, tasks
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

    def __init__(self, length=300, breaks_at=None, leaves=False, refuses_to_draw=False, render_mode=None):
        if refuses_to_draw and render_mode is not None:
            raise RuntimeError("no pictures")
        self.length, self.breaks_at, self.leaves, self.render_mode = length, breaks_at, leaves, render_mode

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.count = 0
        return np.zeros(1), {}

    def step(self, action):
        self.count += 1
        return np.zeros(1), 1.0, False, self.count == self.length, {}

    def render(self):
        if self.count == self.breaks_at and self.leaves:
            sys.exit(0)
        if self.count == self.breaks_at:
            raise RuntimeError("the paint\nis used up")
        return np.full((300, 600, 3), self.count, np.uint8)


def painting(**fields):
    name = f"PolygradPainting{''.join(f'{k}{v}' for k, v in fields.items())}-v0"
    gym.registry.pop(name, None)
    gym.register(name, entry_point=Painting, kwargs=fields)
    return EnvConfig(name)


def filmed(config, episodes=2):
    film = EvaluationFilm()
    return film, run_episodes(config, lambda raw_obs: np.zeros((episodes, 1)), episodes, 0, film.watch)


def test_a_film_has_ten_seconds_at_the_speed_of_the_simulated_world():
    film, results = filmed(painting())
    gif = Image.open(io.BytesIO(film.gif()))
    assert film.size() == gif.size == (SIDE, SIDE // 2)
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
    assert film.trouble.endswith("step 10: render failed: RuntimeError: the paint is used up")
    assert results.returns.tolist() == [300.0, 300.0]
    for fields in ({"breaks_at": 0}, {"breaks_at": 0, "leaves": True}):
        film, results = filmed(painting(**fields))
        assert film.gif() is None and film.trouble and results.returns.tolist() == [300.0, 300.0]


def test_a_film_that_cannot_be_written_to_its_end_is_none(monkeypatch):
    """The bytes before the failure went into TensorBoard's events."""
    film, _ = filmed(painting(length=7))

    def fail(image, file, *_, **how):
        file.write(b"GIF89a")
        raise MemoryError

    monkeypatch.setattr(Image.Image, "save", fail)
    assert (film.gif(), film.trouble) == (None, "MemoryError")


@pytest.mark.parametrize("rate", [None, "fast", -20, 0, float("inf"), float("nan"), 1e-9])
def test_a_task_with_an_impossible_frame_rate_is_filmed_at_thirty(rate, monkeypatch):
    monkeypatch.setitem(Painting.metadata, "render_fps", rate)
    film, _ = filmed(painting(length=30), 1)
    gif = Image.open(io.BytesIO(film.gif()))
    assert (gif.n_frames, gif.info["duration"], film.trouble) == (11, 100, None)  # every third of 31


def test_a_renderer_of_someone_elses_is_left_alone():
    config = painting(length=4)
    env = tasks.make(config, "rgb_array")
    env.unwrapped.mujoco_renderer = SimpleNamespace(model=SimpleNamespace(nq=1), viewer=None)
    env.reset(seed=0)
    film = EvaluationFilm()
    film.watch(env)
    assert film.trouble is None and film.gif() is not None
    assert vars(env.unwrapped.mujoco_renderer).keys() == {"model", "viewer"}


def test_a_task_without_a_copy_that_draws_is_evaluated_unfilmed():
    """The copy that training collects from is lent where there can be no other, and draws nothing."""
    config = painting(length=9, refuses_to_draw=True)
    film = EvaluationFilm()
    act, spare = (lambda raw_obs: np.zeros((2, 1))), (lambda: contextlib.nullcontext(tasks.make(config)))
    results = run_episodes(config, act, 2, 0, film.watch, spare=spare)
    assert results.lengths.tolist() == [9, 9] and results.remarks == ()
    assert film.gif() is None and film.trouble is None
    with pytest.raises(ConfigError, match="does not start"):
        run_episodes(config, act, 2, 0, film.watch)  # a film that was asked for


@needs_gl
@pytest.mark.parametrize("name", ["hopper", "inverted_pendulum"])
def test_being_filmed_changes_no_number(name):
    rendering.choose_backend()
    config, sizes = EnvConfig(name), {"hopper": 3, "inverted_pendulum": 1}
    film = EvaluationFilm()
    results = [
        run_episodes(config, lambda raw_obs: 0.3 * raw_obs[:, : sizes[name]], 3, 5, watch)
        for watch in (None, film.watch)
    ]
    assert film.trouble is None and film.gif() is not None
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
        log.write_film(step, "evaluation/first_episode", film.gif(), film.size())
    images = read_events(tmp_path).Images(f"evaluation/first_episode {X}")
    assert [(i.step, i.width, i.height) for i in images] == [(5, 240, 120), (9, 240, 120)]
    assert images[0].encoded_image_string == film.gif()
    log.truncate(5)
    assert [i.step for i in read_events(tmp_path).Images(f"evaluation/first_episode {X}")] == [5]



# --- in training -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("evaluated_every", "saved_every", "filmed_at"),
    [(5, 10, [10, 20, 30]), (7, 10, [14, 21]), (10, 5, [10, 20, 30]), (5, 100, [])],
)
def test_the_first_evaluation_after_each_checkpoint_is_filmed(evaluated_every, saved_every, filmed_at):
    fields = {"eval_every_env_steps": evaluated_every, "checkpoint_every_env_steps": saved_every}
    config = override(smoke("hopper"), {f"loop.{n}": x for n, x in (fields | {"film_checkpoints": True}).items()})
    run = SimpleNamespace(config=validate(config), over=False, at=SimpleNamespace(env_steps=0))
    found = []
    for run.at.env_steps in range(evaluated_every, 31, evaluated_every):
        found += [run.at.env_steps] if loop.is_filmed(run) else []
    assert found == filmed_at
    run.over = True
    assert loop.is_filmed(run)
    run.config = override(run.config, {"loop.film_checkpoints": False})
    assert not loop.is_filmed(run)


@pytest.mark.parametrize(("breaks_at", "films", "said"), [(4, 1, "a short film"), (0, 0, "no film"), (None, 1, None)])
def test_why_a_film_is_short_is_announced(breaks_at, films, said, tmp_path, capsys):
    film, _ = filmed(painting(breaks_at=breaks_at))
    run = SimpleNamespace(at=SimpleNamespace(env_steps=8), metrics=MetricsLog(tmp_path))
    run.metrics.write(8, {"a": 1.0})
    loop.keep_film(run, film)
    err = capsys.readouterr().err
    assert err == "" if said is None else f"{said} of the evaluation at environment step 8: " in err
    assert len(read_events(tmp_path).Tags()["images"]) == films


def test_that_nothing_can_be_drawn_is_said_once(monkeypatch, capsys):
    loop.can_be_filmed.cache_clear()
    monkeypatch.setattr(loop, "why_no_pictures", lambda config: "the reason")
    hopper = smoke("hopper").env
    assert not loop.can_be_filmed(hopper) and not loop.can_be_filmed(hopper)
    assert capsys.readouterr().err.count("no films of evaluations in TensorBoard: the reason") == 1
    loop.can_be_filmed.cache_clear()
