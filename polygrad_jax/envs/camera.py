"""Pictures of a MuJoCo task that show the body wherever it has gone, even if other tasks draw. Host only."""

from __future__ import annotations

import sys
from typing import Any

import gymnasium as gym

TRACK = "track"
"""Gymnasium's name for the camera of a model that follows the body."""
UNKNOWN_RATE = 30.0
LEAST_RATE, LARGEST_RATE = 0.1, 10_000.0
"""Of frames per second."""


def follow_body(env: gym.Env) -> None:
    """Let the pictures of a task follow its body, where the task says how and chooses no camera itself.

    Gymnasium 1.4 draws with a camera that stays where the episode began: it sets the body to track, but leaves the
    camera free, and no longer takes the model's own. What walks has left the picture after two metres. Anything that
    is not Gymnasium's renderer is left alone.
    """
    mujoco = sys.modules.get("mujoco")
    renderer = vars(env.unwrapped).get("mujoco_renderer")
    if mujoco is None or getattr(renderer, "camera_id", None) != -1 or not hasattr(renderer, "default_cam_config"):
        return
    wanted = dict(renderer.default_cam_config or {})
    camera = mujoco.mj_name2id(renderer.model, mujoco.mjtObj.mjOBJ_CAMERA, TRACK)
    if camera >= 0:
        renderer.camera_id = camera
    elif wanted.get("trackbodyid", -1) > 0 and "type" not in wanted:  # 0 is the world
        renderer.default_cam_config = wanted | {"type": mujoco.mjtCamera.mjCAMERA_TRACKING}
        renderer.camera_id = None  # what is drawn keeps the type


def use_own_context(env: gym.Env) -> None:
    """Let the next picture of a task be drawn in the task's own GL context.

    Gymnasium 1.4 makes it current only when the viewer is made: once another task of the process has drawn, a task
    draws in the other one's context, and black when that one is closed.
    """
    viewer = _viewer(env)
    if hasattr(viewer, "make_context_current"):
        viewer.make_context_current()


def free_drawing(env: gym.Env) -> None:
    """Free what a task has in its own GL context, before the task is closed.

    Gymnasium 1.4 leaves this to the garbage collector, which frees it in whichever context is current: another task
    then draws black.
    """
    drawing = getattr(_viewer(env), "con", None)
    if hasattr(drawing, "free"):
        use_own_context(env)
        drawing.free()


def _viewer(env: gym.Env) -> Any:
    return getattr(vars(env.unwrapped).get("mujoco_renderer"), "viewer", None)


def draw_plainly(env: gym.Env, side: int) -> None:
    """Let a task that has drawn nothing yet draw ``side`` times ``side`` pixels, without shadows or smooth edges.

    Where a processor draws, a picture then takes a twentieth of the time. Nothing that moves the body is touched, and
    no renderer but Gymnasium's.
    """
    mujoco = sys.modules.get("mujoco")
    renderer = vars(env.unwrapped).get("mujoco_renderer")
    model = getattr(renderer, "model", None)
    if mujoco is None or not isinstance(model, mujoco.MjModel) or getattr(renderer, "viewer", None) is not None:
        return
    renderer.width = renderer.height = side
    model.vis.quality.offsamples = 0
    model.light_castshadow[:] = 0
    model.mat_reflectance[:] = 0


def frames_per_second(env: gym.Env) -> float:
    """Return at which rate a film of a task runs as fast as the simulated world; 30 where it does not tell."""
    rate = env.metadata.get("render_fps")
    known = isinstance(rate, int | float) and LEAST_RATE <= rate <= LARGEST_RATE
    return float(rate) if known else UNKNOWN_RATE
