"""What draws without a screen, and one line where nothing does."""

import os
import subprocess
from types import SimpleNamespace

import gymnasium as gym
import numpy as np
import pytest

from polygrad_jax.config import ConfigError, EnvConfig
from polygrad_jax.envs import rendering

HOPPER = EnvConfig("hopper")


@pytest.fixture
def unknown(monkeypatch):
    """The environment is a copy, and says nothing of GL."""
    monkeypatch.setattr(os, "environ", dict(os.environ))
    monkeypatch.delenv("MUJOCO_GL", raising=False)
    return monkeypatch


def test_what_there_is_is_taken(unknown):
    unknown.setattr(rendering, "_loads", lambda name: name.startswith("libOSMesa"))
    assert rendering.choose_backend() == os.environ["MUJOCO_GL"] == "osmesa"


def test_a_missing_gl_library_is_named(unknown):
    unknown.setattr(rendering, "_loads", lambda name: False)
    with pytest.raises(ConfigError, match="rendering with egl needs a GL library that is missing .*libegl1"):
        rendering.choose_backend()
    assert "rendering with egl needs a GL library" in rendering.why_no_pictures(HOPPER)


@pytest.mark.parametrize(
    ("status", "stderr", "said"), [(1, "Traceback\nImportError: no EGL\n", "1: ImportError"), (-11, "", "-11: ")]
)
def test_a_gl_library_that_ends_its_process_ends_another_one(status, stderr, said, unknown):
    unknown.setenv("MUJOCO_GL", "egl")
    unknown.setattr(rendering, "_loads", lambda name: True)
    unknown.setattr(subprocess, "run", lambda *_, **__: SimpleNamespace(returncode=status, stderr=stderr))
    assert f"MUJOCO_GL=egl (exit status {said}" in rendering.why_no_pictures(HOPPER)


class Blank(gym.Env):
    """Draws what ``answer`` is, or raises it."""

    metadata = {"render_modes": ["rgb_array"]}
    observation_space = gym.spaces.Box(-np.inf, np.inf, (1,), np.float64)
    action_space = gym.spaces.Box(-1.0, 1.0, (1,), np.float32)
    answer = None
    opened = 0

    def __init__(self, render_mode=None):
        self.render_mode = render_mode
        Blank.opened += 1

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return np.zeros(1), {}

    def step(self, action):
        return np.zeros(1), 0.0, True, False, {}

    def render(self):
        if isinstance(self.answer, BaseException):
            raise self.answer
        return self.answer

    def close(self):
        Blank.opened -= 1


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (np.zeros((4, 4, 3), np.uint8), None),
        (None, "renders nothing as rgb_array"),
        (RuntimeError("out of paint"), "cannot be rendered .*out of paint"),
        (SystemExit(0), "cannot be rendered .*SystemExit"),
    ],
)
def test_a_task_that_needs_no_gl_is_asked_itself(answer, said, unknown):
    """And every copy that was made for asking is closed."""
    gym.registry.pop("PolygradBlank-v0", None)
    gym.register("PolygradBlank-v0", entry_point=Blank)
    unknown.setattr(Blank, "answer", answer)
    unknown.setattr(rendering, "_loads", lambda name: False)
    config = EnvConfig("PolygradBlank-v0")
    why = rendering.why_no_pictures(config)
    assert why is None if said is None else said.split(" .*")[0] in why and said.split(" .*")[-1] in why
    assert Blank.opened == 0
