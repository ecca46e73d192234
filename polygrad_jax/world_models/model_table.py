"""The world models by name, an open table: to add one, put its function there (see ``docs/world_models.md``)."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from polygrad_jax.config import Config, ConfigError, EnvSpec
from polygrad_jax.types import WorldModel
from polygrad_jax.world_models.autoregressive import make_autoregressive
from polygrad_jax.world_models.companion import CHUNK, with_companion
from polygrad_jax.world_models.distilled import make_distilled
from polygrad_jax.world_models.dreamer import make_dreamer
from polygrad_jax.world_models.ensemble import make_ensemble
from polygrad_jax.world_models.polygrad import make_polygrad
from polygrad_jax.world_models.simulator import host_for, make_simulator
from polygrad_jax.world_models.transformer import make_transformer

WORLD_MODELS: dict[str, Callable[[Config, EnvSpec], WorldModel]] = {
    "polygrad": make_polygrad,
    "autoregressive": make_autoregressive,
    "distilled": make_distilled,
    "transformer": make_transformer,
    "ensemble": make_ensemble,
    "dreamer": make_dreamer,
}

SIMULATOR = "simulator"
"""Not in the table: it is made of a task and its states, not of config and sizes alone."""


def make_world_model(
    config: Config, spec: EnvSpec, states_at: Callable[[np.ndarray], np.ndarray] | None = None
) -> WorldModel:
    """Make the world model that ``config.world_model`` names.

    Args:
      states_at: for the simulator: rows ``[B]`` of contexts to its states ``[B, S]`` (without it every row is a fresh
        episode's first); the models that learn need none.

    Raises:
      ConfigError: no such model, or the simulator of a task without MuJoCo state.
    """
    if config.world_model == SIMULATOR:
        return make_simulator(config, spec, host_for(config.env, states_at))
    if config.world_model not in WORLD_MODELS:
        allowed = ", ".join((*WORLD_MODELS, SIMULATOR))
        raise ConfigError(f"world_model is {config.world_model}; allowed: {allowed}")
    return WORLD_MODELS[config.world_model](config, spec)


def make_world_model_for_agent(
    config: Config, spec: EnvSpec, states_at: Callable[[np.ndarray], np.ndarray] | None = None
) -> WorldModel:
    """Make the world model of a run: that of :func:`make_world_model`, with a companion where the agent needs one.

    Value gradients need a differentiable step, which most world models do not have.
    """
    model = make_world_model(config, spec, states_at)
    if config.agent == "value_gradient" and model.step is None:
        return with_companion(model, make_ensemble(config, spec, CHUNK))
    return model
