"""List the agents by name in an open table: a new agent is one more entry (see ``CONTRIBUTING.md``)."""

from __future__ import annotations

from collections.abc import Callable

from polygrad_jax.agents import a2c, value_gradient
from polygrad_jax.agents.a2c import make_a2c
from polygrad_jax.agents.dreamer_actor_critic import make_dreamer_agent
from polygrad_jax.agents.value_gradient import make_value_gradient
from polygrad_jax.config import Config, ConfigError, EnvSpec
from polygrad_jax.types import Agent, PolicyApply, WorldModel

AGENTS: dict[str, Callable[[Config, EnvSpec, WorldModel], Agent]] = {
    "a2c": make_a2c,
    "value_gradient": make_value_gradient,
    "dreamer": make_dreamer_agent,
}


def make_agent(config: Config, spec: EnvSpec, world_model: WorldModel) -> Agent:
    """Make the agent that ``config.agent`` names, to learn in ``world_model``.

    Raises:
      ConfigError: no such agent, or the world model lacks the latent states that the agent needs.
    """
    if config.agent not in AGENTS:
        raise ConfigError(f"agent is {config.agent}; allowed: {', '.join(AGENTS)}")
    return AGENTS[config.agent](config, spec, world_model)


def make_policy_apply(config: Config, spec: EnvSpec) -> PolicyApply:
    """Make ``(actor, raw_obs [..., O]) -> (mean [..., A], std [..., A])`` of the agent that ``config.agent`` names.

    Raises:
      ConfigError: the agent is another than a2c and value_gradient, whose policies read observations.
    """
    if config.agent == "a2c":
        return a2c.make_policy_apply(spec, config.a2c, config.precision)
    if config.agent == "value_gradient":
        return value_gradient.make_policy_apply(spec, config.value_gradient, config.precision, config.env.actions)
    raise ConfigError(f"agent is {config.agent}; allowed: a2c, value_gradient, whose policies read observations")
