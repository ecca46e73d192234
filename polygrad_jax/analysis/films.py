"""Films of the simulator.

A film is written under another name and then renamed, so a killed or failing command leaves a whole film or none.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import gymnasium as gym
import numpy as np

from polygrad_jax.config import ConfigError, EnvConfig
from polygrad_jax.config.extras import require_extra
from polygrad_jax.envs import tasks
from polygrad_jax.envs.camera import frames_per_second
from polygrad_jax.envs.mujoco_state import is_mujoco, observation_of, set_state
from polygrad_jax.envs.rendering import choose_backend
from polygrad_jax.runs.evaluation_film import gif_rhythm
from polygrad_jax.runs.run_folder import TEMPORARY_SUFFIX, one_line_on_disk_trouble

FILM_FORMATS = {".mp4": "FFMPEG", ".gif": "GIF"}
GIF_LEAST_MILLISECONDS = 20
"""Per frame: browsers show what is shorter for 100."""


# --- films -----------------------------------------------------------------------------------------------------------


def check_film_path(path: Path) -> None:
    """Raises ConfigError where a film cannot have this name, or what writes such films is not installed."""
    if path.suffix.lower() not in FILM_FORMATS:
        raise ConfigError(f"video is {path}; allowed: a name that ends with {' or '.join(FILM_FORMATS)}")
    if path.is_dir():
        raise ConfigError(f"video is {path}, which is a folder; allowed: the name of a file")
    if path.suffix.lower() == ".mp4":
        require_extra("films", f"video {path}")


@contextlib.contextmanager
def film(path: Path, frames_per_second: float) -> Iterator[Callable[[np.ndarray], None]]:
    """Gives a function that appends a frame ``[height, width, 3]`` uint8; the film is there when the block ends.

    A .gif keeps as many of the frames as it can show at their speed.

    Raises:
      ConfigError: a name of another kind, a full disk, no permission.
    """
    check_film_path(path)
    import imageio.v2 as imageio

    suffix = path.suffix.lower()
    # The encoder knows the kind of film by the end of the name.
    temporary = path.with_name(f".{path.name}{TEMPORARY_SUFFIX}{suffix}")
    every, milliseconds = gif_rhythm(frames_per_second, GIF_LEAST_MILLISECONDS) if suffix == ".gif" else (1, 0)
    # 2 for the encoder's colours; by itself imageio stretches pictures to a multiple of 16 and warns at length.
    how = {
        ".mp4": {"fps": frames_per_second, "macro_block_size": 2},
        ".gif": {"duration": milliseconds, "loop": 0},
    }[suffix]
    with one_line_on_disk_trouble(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with warnings.catch_warnings():
                # imageio starts the encoder as a process of its own; JAX warns of every fork.
                warnings.filterwarnings("ignore", message=r"os\.fork\(\) was called", category=RuntimeWarning)
                # Left open after an error, as imageio's own context leaves it, the encoder writes its file later.
                with contextlib.closing(imageio.get_writer(temporary, format=FILM_FORMATS[suffix], **how)) as writer:
                    yield _one_in(every, writer.append_data)
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)


def _one_in(every: int, append: Callable[[np.ndarray], None]) -> Callable[[np.ndarray], None]:
    counted = itertools.count()

    def add(frame: np.ndarray) -> None:
        if next(counted) % every == 0:
            append(frame)

    return add


def frames_per_second_of(config: EnvConfig) -> float:
    """Return at which rate a film of the environment runs as fast as the simulated world; 30 where it does not tell."""
    with contextlib.closing(tasks.make(config)) as env:
        return frames_per_second(env)


# --- imagined states in the simulator -------------------------------------------------------------------------------


def observation_holds(env: gym.Env) -> str | None:
    """How the observation ``[O]`` of a MuJoCo task (reset once), wrappers included, is made of the simulator's state.

    ``pose`` for qpos then qvel, ``pose but x`` for the same without qpos[0], None for anything else. Found by asking
    the environment at a few states, velocities compared up to the +-10 at which some tasks clip them.
    """
    if not is_mujoco(env):
        return None
    base, random = env.unwrapped, np.random.default_rng(0)
    nq, nv = base.model.nq, base.model.nv
    size = env.observation_space.shape[0]
    skipped = nq + nv - size
    if nq != nv or skipped not in (0, 1):  # a free joint has a quaternion, which an imagined one would not keep unit
        return None
    for _ in range(3):
        qpos, qvel = base.model.qpos0 + random.normal(0, 0.1, nq), random.normal(0, 1.0, nv)
        base.data.qpos[:], base.data.qvel[:] = qpos, qvel
        observation, pose = observation_of(env), np.concatenate([qpos, qvel])[skipped:]
        if observation.shape != pose.shape or not np.allclose(observation, pose):
            return None
    return "pose but x" if skipped else "pose"


def imagined_poses(raw_obs: np.ndarray, first_x: float, seconds_per_step: float, nq: int) -> np.ndarray:
    """Positions ``[H, nq]`` for imagined observations ``[H, O]`` that hold qpos, with or without qpos[0], then qvel.

    A missing x starts at ``first_x`` and is the imagined velocity integrated (trapezoid rule).
    """
    raw_obs = np.asarray(raw_obs, np.float64)
    if raw_obs.shape[1] == 2 * nq:
        return raw_obs[:, :nq]
    velocity = raw_obs[:, nq - 1]
    travelled = np.append(0.0, np.cumsum((velocity[1:] + velocity[:-1]) / 2 * seconds_per_step))
    return np.concatenate([(first_x + travelled)[:, None], raw_obs[:, : nq - 1]], axis=1)


class SideBySide:
    """Draws imagined trajectories (left) beside the simulator doing the same actions (right)."""

    def __init__(self, config: EnvConfig):
        """Builds the environment that draws both.

        Raises:
          ConfigError: its observations do not hold positions and velocities, or it cannot be rendered.
        """
        choose_backend()
        self._env = tasks.make(config, "rgb_array")
        self._execution = config.actions
        self._env.reset(seed=0)
        if observation_holds(self._env) is None:
            self._env.close()
            raise ConfigError(
                f"env.name {config.name}: observations are not the simulator's positions and velocities; allowed for "
                "the film: hopper, walker2d, halfcheetah, inverted_pendulum and their like"
            )

    def frames(self, raw_obs: np.ndarray, actions: np.ndarray, simulator_state: np.ndarray) -> Iterator[np.ndarray]:
        """H frames ``[height, 2 * width, 3]`` of an imagined trajectory ``[H, O]``, ``[H, A]`` from a state ``[S]``."""
        replayed = self.replayed_poses(actions, simulator_state)
        base = self._env.unwrapped
        imagined = imagined_poses(raw_obs, replayed[0, 0], base.dt, base.model.nq)
        for poses in zip(imagined, replayed, strict=True):
            yield np.concatenate([self._picture(pose) for pose in poses], axis=1)

    def replayed_poses(self, actions: np.ndarray, simulator_state: np.ndarray) -> np.ndarray:
        """Positions ``[H, nq]`` of MuJoCo under raw actions ``[H, A]`` (the last unused) from a state ``[S]``."""
        set_state(self._env, simulator_state)
        data = self._env.unwrapped.data
        poses = [data.qpos.copy()]
        for action in tasks.executed(actions[:-1], self._execution):
            self._env.step(action)
            poses.append(data.qpos.copy())
        return np.stack(poses)

    def _picture(self, pose: np.ndarray) -> np.ndarray:
        base = self._env.unwrapped
        base.set_state(pose, np.zeros(base.model.nv))  # after a step MuJoCo would draw the bodies one substep late
        return np.array(self._env.render())

    def close(self) -> None:
        """Frees the environment and its window."""
        self._env.close()


def captioned(frame: np.ndarray, left: str, right: str) -> np.ndarray:
    """The frame with a line of text over each half."""
    from PIL import Image, ImageDraw

    picture = Image.fromarray(frame)
    draw, size = ImageDraw.Draw(picture), max(12, frame.shape[0] // 24)
    for text, x in ((left, 0), (right, frame.shape[1] // 2)):
        draw.text((x + size // 2, size // 2), text, fill=(255, 255, 255), font_size=size, stroke_width=2, stroke_fill=0)
    return np.asarray(picture)
