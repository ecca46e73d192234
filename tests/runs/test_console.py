"""What is shown, by a clock of our own; and stopping on signals."""

import io
import os
import signal
import threading

import pytest

from polygrad_jax.runs.console import Progress, announced, clock_time
from polygrad_jax.runs.stop_signals import StopOnSignal


class Clock:
    def __init__(self):
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_clock_time():
    assert [clock_time(s) for s in (0, 59.4, 59.6, 3599, 3661)] == ["0:00", "0:59", "1:00", "59:59", "1:01:01"]


def test_plain_lines_by_hand():
    clock, out = Clock(), io.StringIO()
    progress = Progress(total=10_000, initial=1_000, stream=out, clock=clock)
    for second in range(1, 61):
        clock.now = float(second)
        progress.update(1_000 + 50 * second, delta=0.0051234)
        if second == 40:
            progress.update(1_000 + 50 * second, evaluation_return=123.456, action_std=0.98)
    # One line each 30 s. At 30 s: 2,500 of 10,000 at 50/s leaves 7,500 / 50 = 150 s; at 60 s: 6,000 / 50 = 120 s.
    assert out.getvalue().splitlines() == [
        "2,500/10,000 env steps, 50.0 steps/s, 2:30 left, return -, delta 0.005123, action std -",
        "4,000/10,000 env steps, 50.0 steps/s, 2:00 left, return 123.5, delta 0.005123, action std 0.98",
    ]


def test_rate_is_that_of_the_last_minute():
    clock = Clock()
    progress = Progress(total=10**6, stream=io.StringIO(), clock=clock)
    assert progress.steps_per_second() is None
    # A fast prefill of 5,000 steps in one second, then 10 a second: after two minutes only the latter counts.
    for second in range(1, 121):
        clock.now = float(second)
        progress.update(5_000 + 10 * (second - 1))
    assert progress.steps_per_second() == pytest.approx(10.0)


def test_bar_on_a_terminal_shows_everything():
    clock, out = Clock(), Terminal()
    progress = Progress(total=100, stream=out, clock=clock)
    clock.now = 2.0
    progress.update(50, evaluation_return=7.25, delta=0.5, action_std=1.5)
    progress.say("compiling")
    progress.close()
    shown = out.getvalue()
    # 50 steps in 2 s are 25 a second; the other 50 take 2 s.
    assert "50/100 env steps, 25.0 steps/s, 0:02 left" in shown
    assert "return 7.25, delta 0.5, action std 1.5" in shown
    assert "\rcompiling\n" in shown or "\ncompiling\n" in shown


def test_announcement_has_the_seconds():
    clock, lines = Clock(), []
    with announced("compiling the iteration", lines.append, clock):
        assert lines == ["compiling the iteration ..."]
        clock.now = 12.34
    assert lines[1:] == ["compiling the iteration: 12.3 s"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_first_signal_asks_second_interrupts(number):
    before = signal.getsignal(number)
    with StopOnSignal() as stop:
        assert not stop.requested
        os.kill(os.getpid(), number)
        assert stop.requested and stop.signal_name == signal.Signals(number).name
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), number)
    assert signal.getsignal(number) is before


def test_outside_the_main_thread_it_does_nothing():
    seen = []

    def inside():
        with StopOnSignal() as stop:
            seen.append(stop.requested)

    thread = threading.Thread(target=inside)
    thread.start()
    thread.join()
    assert seen == [False]


def test_the_first_estimate_is_measured_on_twenty_iterations():
    clock, out = Clock(), io.StringIO()
    progress = Progress(total=1_000, stream=out, clock=clock, plain_every_seconds=1e9)
    for iteration in range(1, 31):
        # The first iteration takes 9 s and is not measured; the others take 0.2 s for 4 steps.
        clock.now += 9.0 if iteration == 1 else 0.2
        progress.learnt(500 + 4 * iteration)
        assert (out.getvalue() == "") == (iteration <= 20)
    # After 21 iterations 584 steps are done: 416 are left, at 0.2 s / 4 = 50 ms each 20.8 s.
    (line,) = out.getvalue().splitlines()
    assert line.startswith("about 0:21 left without evaluations: 50.0 ms per environment step, measured on 20")
