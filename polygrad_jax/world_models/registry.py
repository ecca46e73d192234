"""The world models by name. To add one, write its file and its line here (see the README)."""

from __future__ import annotations

from collections.abc import Callable

from polygrad_jax.config import Config, EnvSpec
from polygrad_jax.types import WorldModel
from polygrad_jax.world_models.autoregressive import make_autoregressive
from polygrad_jax.world_models.polygrad import make_polygrad
from polygrad_jax.world_models.transformer import make_transformer

WORLD_MODELS: dict[str, Callable[[Config, EnvSpec], WorldModel]] = {
    "polygrad": make_polygrad,
    "autoregressive": make_autoregressive,
    "transformer": make_transformer,
}


def make_world_model(config: Config, spec: EnvSpec) -> WorldModel:
    """The world model that ``config.world_model`` names."""
    return WORLD_MODELS[config.world_model](config, spec)
