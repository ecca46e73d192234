"""What TensorBoard shows of a run beside single curves: a page of those that matter, and its configuration.

The tab Custom Scalars has the page, the tab HParams a line per run: what it is, the fields that differ from its preset,
and the newest evaluation.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from polygrad_jax import config as configs
from polygrad_jax.config import Config

NAMING = ("env.name", "preset", "seed", "world_model", "agent")
"""Fields by which a run is known: they are in the table whether or not the preset has them too."""
ERRORS = "error/observation_mse_"
"""Beginning of the names of errors by horizon."""
PAGE: dict[str, dict[str, tuple[str, ...]]] = {
    "Returns": {
        "return of evaluations (mean action)": ("evaluation/return_mean",),
        "return of training episodes": ("episode/return",),
        "metres per evaluated episode": ("evaluation/distance_mean",),
        "length of evaluated episodes": ("evaluation/length_mean",),
    },
    "Imagined against the simulator": {
        "squared error of observations, by steps ahead": (ERRORS,),
        "squared error of the first reward": ("error/reward_mse",),
        "share of imagined trajectories that end": ("imagination/terminal_rate",),
    },
    "Losses": {
        "world model": ("world_model/loss", "companion/loss"),
        "held-out error": ("world_model/heldout_loss", "companion/heldout_loss"),
        "critic": ("agent/critic_loss",),
    },
    "Guidance": {
        "std of standardised actions (1 is on-policy)": ("guidance/sigma",),
        "delta": ("guidance/delta",),
        "std and entropy of the policy": ("agent/std", "agent/entropy"),
    },
}
"""Charts by heading, and the names of ``docs/metrics.md`` in each; what a run does not log is not drawn."""
RESULTS = ("evaluation/return_mean", "evaluation/length_mean", "evaluation/distance_mean")
"""Numbers beside the fields, the newest of each."""


def hyperparameters(config: Config) -> dict[str, Any]:
    """Return the fields to be shown, by dotted name: all 120 would hide those that were set."""
    every = dict(configs.flatten(config))
    return {name: every[name] for name in NAMING} | configs.non_default(config)


def opening(hyperparameters: Mapping[str, Any], axis: str) -> list[Any]:
    """Return the summaries that begin the events of a run.

    Args:
      hyperparameters: fields by dotted name; one that is None is left out.
      axis: what stands behind every name in the events.
    """
    from tensorboardX import summary as tb_summary

    experiment, start, _ = tb_summary.hparams(dict(hyperparameters), dict.fromkeys(f"{n} {axis}" for n in RESULTS))
    charts = {
        heading: {title: ["Multiline", [_pattern(name, axis) for name in names]] for title, names in charts.items()}
        for heading, charts in PAGE.items()
    }
    return [tb_summary.custom_scalars(charts), experiment, start]


def _pattern(name: str, axis: str) -> str:
    """TensorBoard takes the names in a chart for regular expressions."""
    return re.escape(name) + (".*" if name == ERRORS else re.escape(f" {axis}") + "$")
