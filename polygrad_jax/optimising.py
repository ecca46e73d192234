"""Steps along gradients and averages over steps: what every learner does with its parameters."""

from __future__ import annotations

from typing import Any

import jax
import optax

from polygrad_jax.types import Params


def stepped(
    optimiser: optax.GradientTransformation, gradients: Params, params: Params, moments: Any
) -> tuple[Params, Any]:
    """Step ``params`` against ``gradients``; return them and the optimiser's next state."""
    # optax raises its decay rates to an integer power, which the strict dtype promotion of our tests forbids.
    with jax.numpy_dtype_promotion("standard"):
        changes, moments = optimiser.update(gradients, moments)
    return optax.apply_updates(params, changes), moments


def exponential_average(target: Params, source: Params, decay: float) -> Params:
    """Return the exponential average ``decay * target + (1 - decay) * source``."""
    return jax.tree.map(lambda t, s: decay * t + (1.0 - decay) * s, target, source)
