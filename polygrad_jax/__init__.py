"""PolyGRAD: policy-guided trajectory diffusion world models, in JAX and Flax.

The public names below are imported when they are first used, so that importing the package imports no jax.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from polygrad_jax.agents.agent_table import make_agent
    from polygrad_jax.analysis.opened_run import open_pretrained, open_run
    from polygrad_jax.config import Config, EnvSpec, preset
    from polygrad_jax.data.recordings import Episode
    from polygrad_jax.training.fitting import fit
    from polygrad_jax.training.loop import train, train_seeds
    from polygrad_jax.types import Agent, Policy, Segment, WorldModel
    from polygrad_jax.world_models.model_table import make_world_model

__version__ = "0.1.0"
__all__ = [
    "Agent",
    "Config",
    "EnvSpec",
    "Episode",
    "Policy",
    "Segment",
    "WorldModel",
    "fit",
    "make_agent",
    "make_world_model",
    "open_pretrained",
    "open_run",
    "preset",
    "train",
    "train_seeds",
]

_MODULES = {
    "Agent": "types",
    "Config": "config",
    "EnvSpec": "config",
    "Episode": "data.recordings",
    "Policy": "types",
    "Segment": "types",
    "WorldModel": "types",
    "fit": "training.fitting",
    "make_agent": "agents.agent_table",
    "make_world_model": "world_models.model_table",
    "open_pretrained": "analysis.opened_run",
    "open_run": "analysis.opened_run",
    "preset": "config",
    "train": "training.loop",
    "train_seeds": "training.loop",
}


def __getattr__(name: str) -> Any:
    """Import a public name (PEP 562)."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """All names, also those not imported yet."""
    return sorted({*globals(), *__all__})
