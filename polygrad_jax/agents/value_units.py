"""Let a critic predict in running units of its targets (PopArt: van Hasselt et al. 2016, arXiv 1602.07714).

The units are the running mean and standard deviation of the targets. They travel in the critic's parameters, under
``values``, beside its network. When they move, the network's last layer is rescaled so that the values in raw reward
stay as they were (their Proposition 1).
"""

from __future__ import annotations

import jax.numpy as jnp

from polygrad_jax.types import Array, Params

Units = dict[str, Array]
"""``mean``, ``std`` and ``updates`` (int32, by which the units have moved so far); scalars."""

LEAST_RATE = 0.01
"""Share of the newest batch in the running mean and variance; all batches count the same until this is reached."""
LEAST_STD = 1e-4
"""Least standard deviation, raw reward (PopArt's)."""


def raw_units() -> Units:
    """Make the units of raw reward, in which a critic begins."""
    return {"mean": jnp.zeros(()), "std": jnp.ones(()), "updates": jnp.zeros((), jnp.int32)}


def to_raw(outputs: Array, units: Units) -> Array:
    """Convert the network's outputs ``[...]`` to values in raw reward."""
    return units["mean"] + units["std"] * outputs


def moved(units: Units, targets: Array, weights: Array) -> Units:
    """Move the units towards ``targets [...]``; ``weights [...]`` is 0 for targets that do not count.

    The first batch replaces the units. Mean and variance are those of the mixture of the past and the batch.
    """
    total = jnp.sum(weights)
    mean = jnp.sum(weights * targets) / jnp.maximum(total, 1e-8)
    variance = jnp.sum(weights * jnp.square(targets - mean)) / jnp.maximum(total, 1e-8)
    rate = jnp.maximum(LEAST_RATE, 1.0 / (units["updates"].astype(jnp.float32) + 1.0))
    rate = jnp.where(total > 0, rate, 0.0)
    step = mean - units["mean"]
    mixed = (1.0 - rate) * jnp.square(units["std"]) + rate * variance + rate * (1.0 - rate) * jnp.square(step)
    return {
        "mean": units["mean"] + rate * step,
        "std": jnp.maximum(jnp.sqrt(mixed), LEAST_STD),
        "updates": units["updates"] + 1,
    }


def in_units(params: Params, units: Units) -> Params:
    """Give a critic new units and keep its values in raw reward: rescale the last layer."""
    old, output = params["values"], params["network"]["output"]
    rescaled = {
        "kernel": output["kernel"] * (old["std"] / units["std"]),
        "bias": (old["std"] * output["bias"] + (old["mean"] - units["mean"])) / units["std"],
    }
    return params | {"network": params["network"] | {"output": rescaled}, "values": units}
