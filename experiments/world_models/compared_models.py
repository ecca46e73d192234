"""The world models that the studies on recorded data compare: their fields, their guidance, their colours."""

from __future__ import annotations

from typing import Any

from experiments.harness.study import TOLD, Fields

MODELS: dict[str, Fields] = {
    "PolyGRAD MLP": ("--world-model", "polygrad", "--denoiser.learning-rate", "3e-3"),
    "PolyGRAD transformer": (
        *("--world-model", "polygrad", "--denoiser.kind", "transformer"),
        *("--denoiser.token-dim", "64", "--denoiser.num-blocks", "3", "--denoiser.learning-rate", "3e-3"),
    ),
    "autoregressive diffusion": ("--world-model", "autoregressive", "--denoiser.learning-rate", "3e-3"),
    "transformer": ("--world-model", "transformer", "--transformer.learning-rate", "3e-3"),
    "ensemble": ("--world-model", "ensemble", "--ensemble.learning-rate", "3e-3"),
    "Dreamer-v3": ("--world-model", "dreamer", "--dreamer.learning-rate", "1e-3"),
}
"""With the learning rates of ``results/world_models/learning_rates``."""
EXECUTED: Fields = ("--denoiser.shown-actions", "executed")
"""Of PolyGRAD, where it is to be shown what all other models are shown; neither here nor in the official code it is."""
SCORE: dict[str, dict[str, Any]] = {"score": {"rule": "score"}}
RULES = SCORE | {"relaxed": {"rule": "correlated", "relaxation": 0.5}}
VARIANTS = RULES | {TOLD: RULES["relaxed"]}
COLOURS: dict[tuple[str, str], str] = dict(
    zip(
        [(name, variant) for name in list(MODELS)[:2] for variant in VARIANTS]
        + [(name, "") for name in list(MODELS)[2:]],
        ["#0072B2", "#56B4E9", "#56B4E9", "#004060", "#7FB8D8", "#7FB8D8", "#D55E00", "#009E73", "#CC79A7", "#E69F00"],
        strict=True,
    )
)
"""By model and variant."""


def colour_of(model: str) -> str:
    """Return the colour of a model where variants are not told apart."""
    return next(colour for (name, _), colour in COLOURS.items() if name == model)
