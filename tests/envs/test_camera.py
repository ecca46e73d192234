"""Pictures show the body wherever it has gone."""

import gc

import gymnasium as gym
import numpy as np
import pytest

from polygrad_jax.config import EnvConfig
from polygrad_jax.envs import camera, rendering, tasks

needs_gl = pytest.mark.skipif(bool(rendering.missing_packages("egl")), reason="no GL library")


def picture(env, x):
    base = env.unwrapped
    pose = base.model.qpos0.copy()
    pose[0] = x
    base.set_state(pose, np.zeros(base.model.nv))
    return np.array(base.render(), np.float64)


def bodies_pixels(env, x):
    """How many pixels change when the body is hidden."""
    base = env.unwrapped
    seen = picture(env, x)
    colours, base.model.geom_rgba[1:, 3] = base.model.geom_rgba.copy(), 0.0  # all but the floor
    hidden = picture(env, x)
    base.model.geom_rgba[:] = colours
    return int((np.abs(seen - hidden).max(axis=-1) > 30).sum())


@needs_gl
@pytest.mark.parametrize("name", ["hopper", "walker2d", "halfcheetah", "Ant-v5"])
def test_what_has_walked_is_still_in_the_picture(name):
    rendering.choose_backend()
    env = tasks.make(EnvConfig(name), "rgb_array")
    env.reset(seed=0)
    at_home = bodies_pixels(env, 0.0)
    assert at_home > 1_000
    assert bodies_pixels(env, 15.0) > 0.7 * at_home
    env.close()


@needs_gl
def test_another_task_that_draws_or_is_closed_leaves_the_picture_as_it_was():
    rendering.choose_backend()
    hopper, ant = (tasks.make(EnvConfig(name), "rgb_array") for name in ("hopper", "Ant-v5"))
    hopper.reset(seed=0), ant.reset(seed=0)
    alone = np.array(hopper.render())
    ants = np.array(ant.render())
    np.testing.assert_array_equal(hopper.render(), alone)
    np.testing.assert_array_equal(ant.render(), ants)
    hopper.render()
    ant.close()  # while the other one's context is current
    np.testing.assert_array_equal(hopper.render(), alone)
    del ant
    gc.collect()  # nothing of it is freed in the other one's context
    np.testing.assert_array_equal(hopper.render(), alone)
    hopper.close()


@needs_gl
def test_a_task_without_a_camera_of_its_own_tracks_the_body_it_names():
    rendering.choose_backend()
    env = gym.make("Hopper-v5", render_mode="rgb_array")
    env.reset(seed=0)
    renderer = env.unwrapped.mujoco_renderer
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(camera, "TRACK", "no such camera")
        camera.follow_body(env)
    at_home = bodies_pixels(env, 0.0)
    assert renderer.camera_id is None and at_home > 1_000
    assert bodies_pixels(env, 9.0) > 0.7 * at_home
    env.close()


def test_a_camera_that_was_chosen_stays_and_other_renderers_are_left_alone():
    chosen = gym.make("Hopper-v5", render_mode="rgb_array", camera_id=0)
    camera.follow_body(chosen)
    assert chosen.unwrapped.mujoco_renderer.camera_id == 0
    pendulum = gym.make("InvertedPendulum-v5", render_mode="rgb_array")
    camera.follow_body(pendulum)
    assert pendulum.unwrapped.mujoco_renderer.camera_id == -1  # the world is tracked, which does not move
    other = gym.make("Pendulum-v1", render_mode="rgb_array")
    before = dict(vars(other.unwrapped))
    camera.follow_body(other)
    assert vars(other.unwrapped).keys() == before.keys()
