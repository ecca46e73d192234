"""The units of stored observations and rewards: which of them an agent reads raw, and whether it can learn so."""

from __future__ import annotations

import jax
import numpy as np

from polygrad_jax.config import Config
from polygrad_jax.data.normaliser import IN_ANY_UNIT
from polygrad_jax.runs.console import announce
from polygrad_jax.types import Normaliser

ORDINARY_SIZES = (1e-3, 200.0)
"""Raw observations and rewards whose mean and standard deviation add up to this are learnt from as they are."""


def read_raw(config: Config) -> dict[str, str]:
    """Return which of observations and rewards the agent learns from in raw units, and what standardises them.

    World models standardise both (Dreamer-v3 squashes them, as published).
    """
    if config.agent == "a2c":
        a2c = config.a2c
        fields = {
            "observations": "" if a2c.normalise_observations else "--a2c.normalise-observations",
            "rewards": "--a2c.value-scale running" if a2c.value_scale == "raw" else "",
        }
        return {name: f"allowed: {field}" for name, field in fields.items() if field}
    wrappers = {"rewards": "TransformReward"}  # of value gradients: rewards against the entropy
    if config.agent != "value_gradient":
        wrappers = {"observations": "TransformObservation"} | wrappers
    scaling = "allowed: a wrapper that scales them (gymnasium.wrappers.{})"
    return {name: scaling.format(wrapper) for name, wrapper in wrappers.items()}


def say_units(config: Config, normaliser: Normaliser) -> None:
    """Say where stored observations or rewards are in units in which the agent hardly learns from them."""
    for line in unit_warnings(config, normaliser):
        announce(line)


def unit_warnings(config: Config, normaliser: Normaliser) -> list[str]:
    """Return a line for observations and one for rewards, where the agent hardly learns in their units."""
    lines = []
    for name, remedy in read_raw(config).items():
        statistics = jax.device_get(getattr(normaliser, name))
        sizes = np.abs(statistics.mean) + statistics.std
        channel = int(np.argmax(sizes))
        nothing_yet = not statistics.mean.any() and sizes[channel] <= IN_ANY_UNIT.absolute
        if not (nothing_yet or ORDINARY_SIZES[0] <= sizes[channel] <= ORDINARY_SIZES[1]):
            mean, std = statistics.mean[channel], statistics.std[channel]
            lines.append(
                f"warning: {name} are around {mean:.3g} with a standard deviation of {std:.3g}, and the agent "
                f"{config.agent} reads them in raw units, in which it may hardly learn; {remedy}"
            )
    return lines
