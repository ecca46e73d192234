"""The world models by name. To add one, write its file and its line here (see the README)."""

from __future__ import annotations

from collections.abc import Callable

from polygrad_jax.config import Config, EnvSpec
from polygrad_jax.types import WorldModel
from polygrad_jax.world_models.dreamer import make_dreamer
from polygrad_jax.world_models.polygrad import make_polygrad

WORLD_MODELS: dict[str, Callable[[Config, EnvSpec], WorldModel]] = {
    "polygrad": make_polygrad,
    "dreamer": make_dreamer,
}


def make_world_model(config: Config, spec: EnvSpec) -> WorldModel:
    """The world model that ``config.world_model`` names."""
    return WORLD_MODELS[config.world_model](config, spec)
