"""Show a person the state of a run: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import contextlib
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TextIO

PLAIN_LINE_EVERY_SECONDS = 30.0
MEASURED_ITERATIONS = 20
"""Iterations that the first estimate of the time left is measured on."""
_RATE_OVER_SECONDS = 60.0
"""Steps per second are those of the last minute, so that prefill and compilation are soon forgotten."""


def clock_time(seconds: float) -> str:
    """``1:02:03`` or ``2:03``."""
    whole = int(round(seconds))
    hours, minutes = divmod(whole // 60, 60)
    return f"{hours}:{minutes:02d}:{whole % 60:02d}" if hours else f"{minutes}:{whole % 60:02d}"


def status_text(values: dict[str, float | None]) -> str:
    """``name value`` of each, with a dash for what is not known yet."""
    return ", ".join(f"{name} {'-' if value is None else format(value, '.4g')}" for name, value in values.items())


class Progress:
    """Steps, their rate, the time left, and a few watched numbers: of a run its last evaluation return, delta, and the
    std of standardised actions.

    Without a ``total`` (None) the time left is that of :meth:`show`.
    """

    def __init__(
        self,
        total: int | None,
        initial: int = 0,
        stream: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
        plain_every_seconds: float = PLAIN_LINE_EVERY_SECONDS,
        unit: str = "env steps",
        watched: Sequence[str] = ("return", "delta", "action std"),
    ):
        self._total, self._steps, self._clock = total, initial, clock
        self._stream = sys.stderr if stream is None else stream
        self._every = plain_every_seconds
        self._status: dict[str, float | None] = dict.fromkeys(watched)
        self._unit, self._seconds_left = unit, None
        self._seen = deque([(clock(), initial)])
        self._next_line = clock() + self._every
        self._bar = None
        self._first_learnt: tuple[float, int] | None = None
        self._learnt = 0
        if self._stream.isatty():
            from tqdm import tqdm

            form = "{desc}|{bar}|{postfix}"
            self._bar = tqdm(total=total, initial=initial, file=self._stream, bar_format=form, dynamic_ncols=True)

    def update(
        self,
        env_steps: int,
        evaluation_return: float | None = None,
        delta: float | None = None,
        action_std: float | None = None,
    ) -> None:
        """Where the run is now; what is None is shown as it was last."""
        self.show(env_steps, {"return": evaluation_return, "delta": delta, "action std": action_std})

    def show(self, steps: int, values: Mapping[str, float | None], seconds_left: float | None = None) -> None:
        """Where it is now, with what is watched by name; what is None is shown as it was last."""
        self._steps, self._seconds_left = steps, seconds_left
        self._status |= {name: float(value) for name, value in values.items() if value is not None}
        self._remember()
        if self._bar is not None:
            self._draw()
        elif self._clock() >= self._next_line:
            self._next_line = self._clock() + self._every
            print(self.line(), file=self._stream, flush=True)

    def _remember(self) -> None:
        now = self._clock()
        if now - self._seen[-1][0] < 0.1:
            return
        self._seen.append((now, self._steps))
        while len(self._seen) > 2 and now - self._seen[1][0] >= _RATE_OVER_SECONDS:
            self._seen.popleft()

    def learnt(self, steps: int) -> None:
        """Count an iteration in which everything learns; after the first ones say how long the rest takes.

        The first iteration only starts the clock.
        """
        self._learnt += 1
        if self._first_learnt is None:
            self._first_learnt = (self._clock(), steps)
        elif self._learnt == MEASURED_ITERATIONS + 1 and self._total is not None:
            began, first = self._first_learnt
            per_step = (self._clock() - began) / max(steps - first, 1)
            left = clock_time(per_step * max(self._total - steps, 0))
            self.say(
                f"about {left} left without evaluations: {1e3 * per_step:.1f} ms per environment step, measured on "
                f"{MEASURED_ITERATIONS} iterations"
            )

    def steps_per_second(self) -> float | None:
        """Over the last minute; None before there is anything to divide."""
        (then, before), (now, steps) = self._seen[0], self._seen[-1]
        return (steps - before) / (now - then) if now > then and steps > before else None

    def line(self) -> str:
        """The whole state in one line."""
        return f"{self._count()}, {status_text(self._status)}"

    def _count(self) -> str:
        rate = self.steps_per_second()
        lefts = [] if self._seconds_left is None else [self._seconds_left]
        if self._total is not None and rate is not None:
            lefts.append(max(self._total - self._steps, 0) / rate)
        left = clock_time(min(lefts)) if lefts else "-"
        per_second = "-" if rate is None else f"{rate:.1f}"
        of = "" if self._total is None else f"/{self._total:,}"
        return f"{self._steps:,}{of} {self._unit}, {per_second} {self._unit.split()[-1]}/s, {left} left"

    def _draw(self) -> None:
        # As often as tqdm would; the texts are only made when they are drawn.
        assert self._bar is not None
        if time.time() - self._bar.last_print_t < self._bar.mininterval:
            return
        self._bar.set_description_str(self._count(), refresh=False)
        self._bar.set_postfix_str(status_text(self._status), refresh=False)
        self._bar.n = self._steps
        self._bar.last_print_t = time.time()
        self._bar.refresh()

    def say(self, text: str) -> None:
        """A line of its own, above the bar."""
        if self._bar is not None:
            self._bar.write(text, file=self._stream)
        else:
            print(text, file=self._stream, flush=True)

    @contextlib.contextmanager
    def announced(self, text: str) -> Iterator[None]:
        """Says ``text ...`` before, and how many seconds it took after; for what keeps a person waiting."""
        with announced(text, self.say, self._clock):
            yield

    def close(self) -> None:
        """Leaves the last state on the screen."""
        if self._bar is not None:
            self._bar.last_print_t = 0.0
            self._draw()
            self._bar.close()
        else:
            print(self.line(), file=self._stream, flush=True)


def announce(text: str, stream: TextIO | None = None) -> None:
    """A line where there is no bar yet."""
    print(text, file=sys.stderr if stream is None else stream, flush=True)


@contextlib.contextmanager
def announced(
    text: str, say: Callable[[str], None] = announce, clock: Callable[[], float] = time.monotonic
) -> Iterator[None]:
    """Says ``text ...`` before, and how many seconds it took after."""
    say(f"{text} ...")
    start = clock()
    yield
    say(f"{text}: {clock() - start:.1f} s")
