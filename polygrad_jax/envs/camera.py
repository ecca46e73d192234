"""Pictures of a MuJoCo task that show the body wherever it has gone, whoever else draws. Host only."""

from __future__ import annotations

import sys

import gymnasium as gym

TRACK = "track"
"""Gymnasium's name for the camera of a model that follows the body."""


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
    """Let the next picture of a task be drawn in the task's own GL context, and what it frees be its own.

    Gymnasium 1.4 makes it current only when the viewer is made: once another task of the process has drawn, a task
    draws in the other one's context, and black when that one is closed.
    """
    viewer = getattr(vars(env.unwrapped).get("mujoco_renderer"), "viewer", None)
    if hasattr(viewer, "make_context_current"):
        viewer.make_context_current()


def draw_plainly(env: gym.Env, side: int) -> None:
    """Let a task that has drawn nothing yet draw ``side`` times ``side`` pixels, without shadows or smooth edges.

    Where a processor draws, a picture then costs a twentieth. Nothing that moves the body is touched. Anything that is
    not Gymnasium's renderer is left alone.
    """
    renderer = vars(env.unwrapped).get("mujoco_renderer")
    if getattr(renderer, "viewer", None) is not None or not hasattr(renderer, "model"):
        return
    renderer.width = renderer.height = side
    renderer.model.vis.quality.offsamples = 0
    renderer.model.light_castshadow[:] = 0
    renderer.model.mat_reflectance[:] = 0
