"""Figures of a run, drawn without a screen: every function takes plain arrays and returns a figure.

Colours are Okabe and Ito's, which colour-blind readers tell apart; lines are labelled where they end, not in a legend.
"""

from __future__ import annotations

import io
import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from polygrad_jax.analysis.action_spread import ByHorizon, spread_of
from polygrad_jax.config import ConfigError
from polygrad_jax.config.extras import require_extra
from polygrad_jax.runs.run_folder import write_bytes_atomically

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BLUE, ORANGE, GREEN, PURPLE, GREY = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#767676"
FIGURE_FORMATS = (".png", ".pdf", ".svg")
STRIP_PANELS = 6
X_AXIS = "environment steps, prefill included"


# --- the common look -------------------------------------------------------------------------------------------------


def _blank(rows: int, columns: int, size: tuple[float, float], **how: Any) -> tuple[Figure, np.ndarray]:
    """A figure of ``rows`` by ``columns`` axes; pyplot, which keeps figures alive, is not used."""
    require_extra("figures", "a figure")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, columns, squeeze=False, **how)
    for ax in axes.flat:
        ax.spines[["top", "right"]].set_visible(False)
        ax.grid(True, color="#E6E6E6", linewidth=0.6)
        ax.set_axisbelow(True)
    return figure, axes


def _logarithmic(ax: Axes) -> None:
    """A logarithmic y-axis with plain numbers, between the powers of ten too where there are few of those."""
    from matplotlib.ticker import LogFormatter

    ax.set_yscale("log")
    ax.yaxis.set_major_formatter(LogFormatter())
    ax.yaxis.set_minor_formatter(LogFormatter(minor_thresholds=(2.0, 0.5)))


def _label_line_ends(ax: Axes, ends: Sequence[tuple[float, float, str, str]]) -> None:
    """Writes ``(x, y, text, colour)`` to the right of line ends, moved apart where they would overlap."""
    least_gap, above = 11.0, -np.inf  # points
    to_points = 72.0 / ax.figure.dpi
    finite = [end for end in ends if np.isfinite(end[1])]
    for x, y, text, colour in sorted(finite, key=lambda end: end[1]):
        height = ax.transData.transform((x, y))[1] * to_points
        lifted = max(height, above + least_gap)
        above = lifted
        ax.annotate(
            text, (x, y), (6, lifted - height), textcoords="offset points", color=colour, va="center", fontsize=8,
            annotation_clip=False,
        )  # fmt: skip


def save(figure: Figure, path: Path | str) -> None:
    """Writes a figure that is complete or not there; the kind follows from the name.

    Raises:
      ConfigError: a name of another kind, a full disk, no permission.
    """
    path = Path(path)
    check_figure_path(path)
    buffer = io.BytesIO()
    figure.savefig(buffer, format=path.suffix[1:].lower(), dpi=150)
    write_bytes_atomically(path, buffer.getvalue())


def check_figure_path(path: Path) -> None:
    """Raises ConfigError where a figure cannot have this name."""
    if path.suffix.lower() not in FIGURE_FORMATS:
        raise ConfigError(f"figure is {path}; allowed: a name that ends with {', '.join(FIGURE_FORMATS)}")


# --- error against horizon -------------------------------------------------------------------------------------------


def error_against_horizon(errors: Mapping[str, ByHorizon], title: str) -> Figure:
    """Mean squared error over horizons 1 to H - 1 with the interquartile band, one line per predictor by name."""
    figure, axes = _blank(1, 1, (7.0, 4.2))
    ax, ends = axes[0, 0], []
    styles = [(BLUE, "-"), (GREY, "--"), (ORANGE, ":"), (GREEN, "-."), (PURPLE, "-")]
    for (name, error), (colour, dashes) in zip(errors.items(), styles, strict=False):
        horizon = np.arange(1, len(error.mean) + 1)
        ax.plot(horizon, error.mean, dashes, color=colour, linewidth=1.8, marker="o", markersize=3)
        ax.fill_between(horizon, error.lower_quartile, error.upper_quartile, color=colour, alpha=0.15, linewidth=0)
        ends.append((horizon[-1], error.mean[-1], name, colour))
    if any((error.mean > 0).any() for error in errors.values()):
        _logarithmic(ax)
    ax.set_xlabel("horizon, steps imagined")
    ax.set_ylabel("squared error per observation dimension, raw units")
    ax.set_title(title, fontsize=9, loc="left", wrap=True)
    ax.xaxis.get_major_locator().set_params(integer=True)
    figure.canvas.draw()  # labels are placed by where the lines came to lie
    lowest = ax.get_ylim()[0]  # where a line that is 0 would be, which no logarithmic axis shows
    _label_line_ends(ax, [(x, y, name, c) if y != 0 else (x, lowest, f"{name}: 0", c) for x, y, name, c in ends])
    return figure


# --- distribution of actions -----------------------------------------------------------------------------------------


def action_distribution(standardised: np.ndarray, title: str) -> Figure:
    """Histogram of ``(a - mu(s)) / sigma(s)`` over ``[B, H - 1, A]`` against N(0, 1), with how far it is from it."""
    figure, axes = _blank(1, 1, (6.0, 4.0))
    ax, spread = axes[0, 0], spread_of(standardised)
    edges = np.linspace(-4.0, 4.0, 61)
    ax.hist(np.clip(standardised.ravel(), -4, 4), edges, density=True, color=BLUE, alpha=0.55, label="imagined")
    at = np.linspace(-4.0, 4.0, 401)
    density = np.exp(-0.5 * at**2) / np.sqrt(2 * np.pi)
    ax.plot(at, density, "--", color="black", linewidth=1.5)
    beside = (1.25, density[at.searchsorted(1.25)])
    ax.annotate("policy, N(0, 1)", beside, (8, 6), textcoords="offset points", fontsize=8)
    numbers = (
        f"KS distance {spread.ks_distance:.3f}\nmean {spread.mean:+.2f}\nstd {spread.std:.2f}\n"
        f"excess kurtosis {spread.excess_kurtosis:+.2f}\n{standardised.size:,} actions"
    )
    ax.text(0.02, 0.97, numbers, transform=ax.transAxes, va="top", fontsize=9, color=BLUE)
    ax.set_xlabel("(action - policy's mean) / policy's std; beyond 4 counted at 4")
    ax.set_ylabel("density")
    ax.set_title(title, fontsize=9, loc="left", wrap=True)
    return figure


# --- the diffusion strip ---------------------------------------------------------------------------------------------


def strip_columns(count: int, panels: int = STRIP_PANELS) -> np.ndarray:
    """Which of ``count`` stages of a diffusion are shown: the first, the last, and evenly between."""
    return np.unique(np.round(np.linspace(0, count - 1, min(panels, count))).astype(int))


def diffusion_strip(
    steps: np.ndarray,
    observations: np.ndarray,
    actions: np.ndarray,
    policy: tuple[np.ndarray, np.ndarray],
    replayed: np.ndarray | None,
    names: Mapping[int, str],
    title: str,
    action: int = 0,
) -> Figure:
    """One trajectory on its way from random to on-policy (the paper's Figures 1 and 2, made from a run).

    Args:
      steps: ``[K + 1]`` diffusion step t that comes next; -1 for the finished trajectory.
      observations: ``[K + 1, B, H, O]`` raw; trajectory 0 is the one shown, the others are faint.
      actions: ``[K + 1, B, H, A]`` raw.
      policy: mean and std ``[K + 1, B, H, A]`` of the policy at those observations.
      replayed: ``[H, O]`` what the simulator does under the finished actions of trajectory 0, or None.
      names: observation dimensions to show, with their names.
      action: action dimension to show.
    """
    shown = strip_columns(len(steps))
    rows = [*names, "action"]
    figure, axes = _blank(len(rows), len(shown), (2.1 * len(shown), 1.7 * len(rows)), sharex=True, sharey="row")
    for column, stage in enumerate(shown):
        axes[0, column].set_title(_stage_name(steps, stage), fontsize=8)
        for row, dimension in enumerate(names):
            _draw_states(axes[row, column], observations[stage, ..., dimension])
            if replayed is not None:
                axes[row, column].plot(replayed[:, dimension], "--", color="black", linewidth=1.0)
        mean, std = (x[stage, ..., action] for x in policy)
        _draw_actions(axes[-1, column], actions[stage, ..., action], mean[0], std[0])
        axes[-1, column].set_xlabel("time in trajectory", fontsize=8)
        axes[-1, column].xaxis.get_major_locator().set_params(integer=True)
    for row, dimension in enumerate(names):
        axes[row, 0].set_ylabel(names[dimension], fontsize=8)
        _fit_rows(axes[row, 0], observations[shown][..., dimension])
    axes[-1, 0].set_ylabel(f"action {action}", fontsize=8)
    _fit_rows(axes[-1, 0], actions[shown][..., action])
    figure.suptitle(title, fontsize=9, x=0.01, ha="left", wrap=True)
    return figure


def _stage_name(steps: np.ndarray, stage: int) -> str:
    if stage == 0:
        return "random start"
    return f"after all {len(steps) - 1} steps" if stage == len(steps) - 1 else f"after {stage} of {len(steps) - 1}"


def _draw_states(ax: Axes, states: np.ndarray) -> None:
    """One observation dimension of trajectories ``[B, H]``, the first in colour."""
    ax.plot(states[1:].T, color=GREY, linewidth=0.5, alpha=0.25)
    ax.plot(states[0], color=BLUE, linewidth=1.6, marker="o", markersize=2.5)


def _draw_actions(ax: Axes, actions: np.ndarray, mean: np.ndarray, std: np.ndarray) -> None:
    """One action dimension of trajectories ``[B, H]`` without the last state's, and the policy ``[H]`` of the first."""
    time = np.arange(actions.shape[1] - 1)
    ax.plot(time, actions[1:, :-1].T, color=GREY, linewidth=0.5, alpha=0.25)
    low, high = mean - 2 * std, mean + 2 * std
    ax.fill_between(time, low[:-1], high[:-1], color=ORANGE, alpha=0.25, linewidth=0)
    ax.plot(time, mean[:-1], color=ORANGE, linewidth=1.0)
    ax.plot(time, actions[0, :-1], "o", color=BLUE, markersize=3.5)


def _fit_rows(ax: Axes, values: np.ndarray) -> None:
    """The axis shows nearly all of the values; what random starts throw far out is cut off."""
    low, high = np.nanquantile(values, [0.01, 0.99])
    margin = 0.1 * (high - low) + 1e-6
    ax.set_ylim(low - margin, high + margin)


# --- training curves -------------------------------------------------------------------------------------------------

LINE_COLOURS = (BLUE, ORANGE, GREEN, PURPLE, GREY, "#56B4E9", "#E69F00")
X_AXES = {"env_steps": X_AXIS, "updates": "gradient steps of the world model"}


def training_curves(rows: Sequence[Mapping[str, Any]], evaluations: Mapping[str, np.ndarray], title: str) -> Figure:
    """Draw evaluations, the world model's losses, and guidance or the agent's losses, over environment steps.

    Args:
      rows: of ``metrics.jsonl``, under the names of ``docs/metrics.md``.
      evaluations: the columns of ``eval.csv``.
    """
    figure, axes = _blank(2, 2, (10.0, 6.0), sharex=True)
    alone = "five_step_error" in evaluations or any("updates" in row for row in rows)  # a world model without a policy
    step = "updates" if alone else "env_steps"
    if not any(map(len, evaluations.values())):  # the header is left where a run went back to before the first
        evaluations = {}
    if alone:
        _draw_column(axes[0, 0], evaluations, "five_step_error", "squared error five steps ahead, raw units", step)
        _draw_column(axes[0, 1], evaluations, "reward_mse", "squared error of the first reward, raw units", step)
        for ax in axes[0]:
            _scale(ax)
    else:
        _draw_evaluations(axes[0, 0], evaluations, "return", "evaluation return (mean, std over episodes)")
        if not evaluations or np.isfinite(evaluations.get("distance_mean", np.nan)).any():
            _draw_evaluations(axes[0, 1], evaluations, "distance", "evaluation distance, m (mean, std over episodes)")
        else:
            _draw_column(axes[0, 1], evaluations, "length_mean", "length of an evaluation episode, steps", step)
    _draw_model(axes[1, 0], rows, step)
    _draw_agent(axes[1, 1], rows, step)
    for ax in axes[1]:
        _scale(ax)
        ax.set_xlabel(X_AXES[step])
    figure.suptitle(title, fontsize=10, x=0.01, ha="left", wrap=True)
    figure.canvas.draw()
    for ax in axes.flat:
        _label_line_ends(ax, [(*line.get_xydata()[-1], line.get_gid(), line.get_color()) for line in _named(ax)])
    return figure


def _named(ax: Axes) -> list[Any]:
    return [line for line in ax.get_lines() if line.get_gid()]


def _scale(ax: Axes) -> None:
    """Choose the y-axis: logarithmic where values span more than a factor of 2; linear around 0 where some are not
    positive."""
    values = np.concatenate([np.asarray(line.get_ydata(), float) for line in ax.get_lines()] or [np.ones(1)])
    values = values[np.isfinite(values)]
    if not (values > 0).all():
        ax.set_yscale("symlog", linthresh=max(float(np.quantile(np.abs(values), 0.1)), 1e-6))
    elif len(values) and values.max() > 2 * values.min():
        _logarithmic(ax)


def _draw_model(ax: Axes, rows: Sequence[Mapping[str, Any]], step: str) -> None:
    """Every loss that the world model logs; of a model that learns nothing, what is imagined with it."""
    names = {name for row in rows for name in row if name.startswith("world_model/") and name.endswith("loss")}
    if names:
        # The whole loss first: it has the first colour.
        ordered = sorted(names, key=lambda name: (name != "world_model/loss", name))
        _draw_rows(ax, rows, {n: n.removeprefix("world_model/").removesuffix("_loss") for n in ordered}, step)
        ax.set_title("world model's loss and its parts", fontsize=9, loc="left")
        return
    imagined = {"imagination/reward_mean": "reward", "imagination/terminal_rate": "share that ends"}
    _draw_rows(ax, rows, imagined, step)
    ax.set_title("imagined trajectories (the world model learns nothing)", fontsize=9, loc="left")


def _draw_agent(ax: Axes, rows: Sequence[Mapping[str, Any]], step: str) -> None:
    """Guidance where there is one, else the agent's losses and entropy; of a world model alone, its speed."""
    guidance = {"guidance/sigma": "sigma", "guidance/delta": "delta"}
    if _draw_rows(ax, rows, guidance, step):
        ax.axhline(1.0, color="black", linestyle="--", linewidth=0.8)
        ax.set_title("sigma of standardised actions (dashed: wanted), and delta", fontsize=9, loc="left")
        return
    agent = {"agent/actor_loss": "actor's loss", "agent/critic_loss": "critic's loss", "agent/entropy": "entropy"}
    if _draw_rows(ax, rows, agent, step):
        ax.set_title("agent's losses and entropy", fontsize=9, loc="left")
        return
    _draw_rows(ax, rows, {"fit/updates_per_second": "updates/s"}, step)
    ax.set_title("gradient steps per second", fontsize=9, loc="left")


def _draw_evaluations(ax: Axes, evaluations: Mapping[str, np.ndarray], name: str, label: str) -> None:
    ax.set_title(label, fontsize=9, loc="left")
    if _say_lacking(ax, evaluations, ("env_steps", f"{name}_mean", f"{name}_std")):
        return
    x, mean, std = evaluations["env_steps"], evaluations[f"{name}_mean"], evaluations[f"{name}_std"]
    ax.plot(x, mean, color=BLUE, linewidth=1.6, marker="o", markersize=3)
    ax.fill_between(x, mean - std, mean + std, color=BLUE, alpha=0.2, linewidth=0)


def _say_lacking(ax: Axes, evaluations: Mapping[str, np.ndarray], columns: Sequence[str]) -> bool:
    """Say that there is nothing to draw where a column is not there; return whether one is not."""
    lacking = not all(name in evaluations for name in columns)
    if lacking:
        ax.text(0.5, 0.5, "no evaluation yet", ha="center", transform=ax.transAxes, color=GREY)
    return lacking


def _draw_column(ax: Axes, evaluations: Mapping[str, np.ndarray], name: str, label: str, step: str) -> None:
    ax.set_title(label, fontsize=9, loc="left")
    if _say_lacking(ax, evaluations, (step, name)):
        return
    ax.plot(evaluations[step], evaluations[name], color=BLUE, linewidth=1.6, marker="o", markersize=3)


def _draw_rows(ax: Axes, rows: Sequence[Mapping[str, Any]], lines: Mapping[str, str], step: str) -> bool:
    """Draw metrics by name, each with its label; return whether the rows have any of them."""
    drawn = False
    for (key, label), colour in zip(lines.items(), itertools.cycle(LINE_COLOURS), strict=False):
        known = [row for row in rows if step in row and isinstance(row.get(key), int | float)]
        points = [(row[step], row[key]) for row in known]
        if points:
            dot = "o" if len(points) == 1 else ""  # one point alone makes no line
            ax.plot(*zip(*points, strict=True), color=colour, linewidth=1.2, marker=dot, markersize=3, gid=label)
            drawn = True
    return drawn
