"""The look of every figure of the experiments, and the curves that several of them draw.

matplotlib is imported when the first figure is drawn: the processes of a grid measure and draw nothing.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy.optimize import isotonic_regression

from polygrad_jax.runs.run_folder import one_line_on_disk_trouble

PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#7F7F7F")
"""Colours that are told apart by colour-blind readers too (Okabe and Ito), blue first."""
GREY = "#7F7F7F"
LINE_END = "line end"
"""What marks the names at lines' ends in a figure."""


@contextlib.contextmanager
def figure(
    path: Path,
    rows: int = 1,
    columns: int = 1,
    size: tuple[float, float] = (6.4, 4.4),
    rect: tuple[float, float, float, float] | None = None,
    **shared: Any,
) -> Iterator[tuple[Any, np.ndarray]]:
    """Give a figure and its axes ``[rows, columns]`` to draw on, then write it to ``path``.

    Args:
      size: inches.
      rect: part of the figure that the axes take, as of ``tight_layout``.
      shared: ``sharex``, ``sharey``.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    drawn, axes = plt.subplots(rows, columns, figsize=size, squeeze=False, **shared)
    try:
        yield drawn, axes
        for axis in axes.flat:
            axis.spines[["top", "right"]].set_visible(False)
        drawn.tight_layout(rect=rect)
        save_figure(drawn, path)
    finally:
        plt.close(drawn)


def save_figure(figure: Any, path: Path) -> None:
    """Write a matplotlib figure, whole or not at all.

    Raises:
      ConfigError: the disk is full, or one may not write there.
    """
    for axis in figure.axes:
        move_apart(axis)
    temporary = path.with_name(f".{path.stem}.tmp{path.suffix}")
    with one_line_on_disk_trouble(path):
        try:
            figure.savefig(temporary, dpi=150)
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)


def label_end(axis: Any, x: float, y: float, text: str, colour: str, size: int = 9) -> None:
    """Write a line's name at its end, in its colour; :func:`save_figure` moves names that would overlap."""
    place = {"xytext": (4, 0), "textcoords": "offset points", "va": "center"}
    axis.annotate(text, (x, y), color=colour, fontsize=size, gid=LINE_END, **place)


def move_apart(axis: Any) -> None:
    """Move the names at lines' ends by as little as keeps them a line of text apart (squares, isotonic regression)."""
    ends = [text for text in axis.texts if text.get_gid() == LINE_END]
    if not ends:
        return
    points = 72.0 / axis.figure.dpi
    heights = np.array([axis.transData.transform(text.xy)[1] * points for text in ends])
    order = np.argsort(heights, kind="stable")
    apart = np.arange(len(ends)) * 1.2 * ends[0].get_fontsize()
    lowest = axis.bbox.y0 * points + 0.5 * ends[0].get_fontsize()  # not on the numbers of the axis
    moved = np.maximum(isotonic_regression(heights[order] - apart).x, lowest) + apart
    for index, height in zip(order, moved, strict=True):
        ends[index].set_position((ends[index].get_position()[0], height - heights[index]))


def room_for_names(axis: Any, factor: float) -> None:
    """Widen an axis to the right by this factor, so that the names at lines' ends have a place."""
    axis.set_xlim(right=axis.get_xlim()[1] * factor)


def mean_and_std(axis: Any, xs: Sequence[float], values: Sequence[Iterable[float]], label: str, **style: Any) -> None:
    """Draw the mean of ``values`` (one group of seeds per x), named at its end, and shade one standard deviation.

    Without a value nothing is drawn.
    """
    if len(xs) == 0:
        return
    colour, line = style.pop("color"), style.pop("linestyle", "-")
    mean, std = (np.array([of(v) for v in values]) for of in (np.mean, np.std))
    axis.plot(xs, mean, line, color=colour, linewidth=1.6, **style)
    axis.fill_between(xs, np.maximum(mean - std, mean * 0.05), mean + std, color=colour, alpha=0.15, linewidth=0)
    label_end(axis, xs[-1], mean[-1], label, colour, size=7)


def mean_and_range(
    axis: Any, xs: Sequence[float], values: Sequence[Iterable[float]], style: str, label: str, colour: str, alpha: float
) -> None:
    """Draw the mean of ``values`` (one group of seeds per x) for a legend, and shade from the least to the largest."""
    mean, low, high = ([of(v) for v in values] for of in (np.mean, min, max))
    axis.plot(xs, mean, style, color=colour, markersize=3, label=label)
    axis.fill_between(xs, low, high, color=colour, alpha=alpha, linewidth=0)


def diffusion_steps_axis(axis: Any, steps: Sequence[int]) -> None:
    """Make K, the diffusion steps sampled, the x axis."""
    axis.set_xscale("log", base=2)
    axis.set_xticks(steps, [str(k) for k in steps])
    axis.tick_params(which="both", labelsize=7)


def legend_of_all(figure: Any, **how: Any) -> None:
    """Draw one legend for all axes; a label that several have is named once."""
    drawn = {line.get_label(): line for axis in figure.axes for line in axis.lines}
    figure.legend(list(drawn.values()), list(drawn), frameon=False, **how)
