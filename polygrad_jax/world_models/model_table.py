"""The world models by name. To add one, write its file and its line here (see the README)."""

from __future__ import annotations

from collections.abc import Callable

from polygrad_jax.config import Config, ConfigError, EnvSpec
from polygrad_jax.types import WorldModel
from polygrad_jax.world_models.autoregressive import make_autoregressive
from polygrad_jax.world_models.dreamer import make_dreamer
from polygrad_jax.world_models.ensemble import make_ensemble
from polygrad_jax.world_models.polygrad import make_polygrad
from polygrad_jax.world_models.simulator import SimulatorHost, make_simulator
from polygrad_jax.world_models.transformer import make_transformer

WORLD_MODELS: dict[str, Callable[[Config, EnvSpec], WorldModel]] = {
    "polygrad": make_polygrad,
    "autoregressive": make_autoregressive,
    "transformer": make_transformer,
    "ensemble": make_ensemble,
    "dreamer": make_dreamer,
}

SIMULATOR = "simulator"
"""Not in ``WORLD_MODELS``: it is not made of config and sizes alone."""


def known_world_models() -> tuple[str, ...]:
    """Every name that :func:`make_world_model` takes."""
    return (*WORLD_MODELS, SIMULATOR)


def make_world_model(config: Config, spec: EnvSpec, host: SimulatorHost | None = None) -> WorldModel:
    """The world model that ``config.world_model`` names; ``host`` is for the simulator, the others need none.

    Raises:
      ConfigError: the simulator is asked for where no one steps it.
    """
    if config.world_model != SIMULATOR:
        return WORLD_MODELS[config.world_model](config, spec)
    if host is None:
        raise ConfigError("world_model is simulator, which needs a task and its states; allowed here: one that learns")
    return make_simulator(config, spec, host)
