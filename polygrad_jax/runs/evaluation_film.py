"""A short film of an evaluated episode, small enough to be made beside training and to lie in TensorBoard's events."""

from __future__ import annotations

import io
import itertools
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from polygrad_jax.envs.camera import draw_plainly
from polygrad_jax.envs.checked_task import CheckedTask

if TYPE_CHECKING:
    from PIL.Image import Image

SIDE = 240
"""Pixels of the longer side."""
LEAST_MILLISECONDS = 80
"""For which a frame is shown."""
SECONDS = 10.0
COLOURS = 64
_UNKNOWN_RATE = 30.0
_SPEED_TOLERANCE = 0.05


def gif_rhythm(frames_per_second: float, least_milliseconds: int) -> tuple[int, int]:
    """Return every how many frames one is kept in a GIF, and the milliseconds for which it is shown.

    A GIF counts hundredths of a second: the 8 ms between two pictures of Hopper become 0. Browsers show anything below
    20 ms for 100. What is returned is right to a twentieth.
    """
    for every in itertools.count(1):
        exact = 1000.0 * every / frames_per_second
        shown = 10 * round(exact / 10)
        if shown >= least_milliseconds and abs(shown - exact) <= _SPEED_TOLERANCE * exact:
            return every, shown
    raise AssertionError("unreachable: from 100 ms on, rounding is less than the tolerance")


@dataclass
class EvaluationFilm:
    """The first ten seconds of an episode, as a GIF; :meth:`watch` is what ``run_episodes`` calls."""

    trouble: str | None = None
    """Why the film ends before its time."""
    _frames: list[Image] = field(default_factory=list)
    _steps: int = 0
    _every: int = 1
    _milliseconds: int = LEAST_MILLISECONDS
    _last: float = 0.0

    def watch(self, env: CheckedTask) -> None:
        """Draw the task where a frame is due. A task that cannot draw ends the film, not the evaluation."""
        if self._steps == 0:
            draw_plainly(env, SIDE)
            rate = float(env.metadata.get("render_fps") or _UNKNOWN_RATE)
            self._every, self._milliseconds = gif_rhythm(rate, LEAST_MILLISECONDS)
            self._last = SECONDS * rate
        due = self._steps % self._every == 0 and self._steps < self._last and self.trouble is None
        self._steps += 1
        if due:
            try:
                self._frames.append(_small(env.render()))
            except Exception as error:  # a task of a user raises anything
                self.trouble = f"{type(error).__name__}: {' '.join(str(error).split())[:150]}"

    @property
    def size(self) -> tuple[int, int]:
        """Return width and height in pixels."""
        return self._frames[0].size

    def gif(self) -> bytes | None:
        """Return the film, which runs as fast as the simulated world; None where nothing was drawn."""
        if not self._frames:
            return None
        first, *others = self._frames
        written = io.BytesIO()
        first.save(written, "GIF", save_all=True, append_images=others, duration=self._milliseconds, loop=0)
        return written.getvalue()


def _small(picture: np.ndarray) -> Image:
    from PIL import Image

    frame = Image.fromarray(np.asarray(picture))
    frame.thumbnail((SIDE, SIDE))
    return frame.convert("RGB").quantize(COLOURS)
