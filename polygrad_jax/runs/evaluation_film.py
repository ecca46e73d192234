"""A short film of an evaluated episode, small enough to be made beside training and to lie in TensorBoard's events."""

from __future__ import annotations

import contextlib
import io
import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from polygrad_jax.envs.camera import draw_plainly, frames_per_second
from polygrad_jax.envs.checked_task import FAILURES, CheckedTask

if TYPE_CHECKING:
    from PIL.Image import Image

SIDE = 240
"""Pixels of the longer side."""
LEAST_MILLISECONDS = 80
"""Per frame."""
SECONDS = 10.0
COLOURS = 64
_SPEED_TOLERANCE = 0.05


def gif_rhythm(frames_per_second: float, least_milliseconds: int) -> tuple[int, int]:
    """Return every how many frames one is kept in a GIF, and the milliseconds for which it is shown.

    A GIF counts hundredths of a second: the 8 ms between two pictures of Hopper become 0. What is returned is right to
    a twentieth.
    """
    for every in itertools.count(1):  # ends: from 100 ms on, rounding is within the tolerance
        exact = 1000.0 * every / frames_per_second
        shown = 10 * round(exact / 10)
        if shown >= least_milliseconds and abs(shown - exact) <= _SPEED_TOLERANCE * exact:
            break
    return every, shown


@dataclass
class EvaluationFilm:
    """The first ten seconds of an episode, as a GIF; :meth:`watch` is what ``run_episodes`` calls.

    Whatever fails ends the film, never the evaluation.
    """

    trouble: str | None = None
    """Why drawing stopped."""
    _frames: list[Image] = field(default_factory=list)
    _steps: int = 0
    _every: int = 1
    _milliseconds: int = LEAST_MILLISECONDS
    _last: float = 0.0

    def watch(self, env: CheckedTask) -> None:
        """Draw the task where a frame is due."""
        if self.trouble is None:
            with self._guard():
                self._watch(env)

    def _watch(self, env: CheckedTask) -> None:
        if self._steps == 0:
            draw_plainly(env, SIDE)
            rate = frames_per_second(env)
            self._every, self._milliseconds = gif_rhythm(rate, LEAST_MILLISECONDS)
            self._last = SECONDS * rate
        if self._steps % self._every == 0 and self._steps < self._last:
            self._frames.append(_small(env.render()))
        self._steps += 1

    @contextlib.contextmanager
    def _guard(self) -> Iterator[None]:
        try:
            yield
        except FAILURES as error:  # a task of a user raises anything
            self.trouble = " ".join(str(error).split())[:200] or type(error).__name__

    def size(self) -> tuple[int, int]:
        """Return width and height in pixels, of a film that has frames."""
        return self._frames[0].size

    def gif(self) -> bytes | None:
        """Return the film, which runs as fast as the simulated world; None where nothing could be drawn or written."""
        if not self._frames:
            return None
        first, *others = self._frames
        written = io.BytesIO()
        with self._guard():
            first.save(written, "GIF", save_all=True, append_images=others, duration=self._milliseconds, loop=0)
            return written.getvalue()
        return None  # what was written before it failed is no film


def _small(picture: np.ndarray) -> Image:
    from PIL import Image

    frame = Image.fromarray(np.asarray(picture))
    frame.thumbnail((SIDE, SIDE))
    return frame.convert("RGB").quantize(COLOURS)
