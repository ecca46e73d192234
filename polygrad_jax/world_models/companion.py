"""A world model that imagines, and a small differentiable one that learns beside it from the same windows.

Decoupled first-order gradients (DMO, arXiv 2509.00215): the trajectories come from a large model without a
differentiable step of its own (PolyGRAD), the derivatives from a small ensemble.
"""

from __future__ import annotations

from typing import Any

import flax.struct
import jax

from polygrad_jax.types import Array, Metrics, Normaliser, Policy, Prediction, Segment, WorldModel

CHUNK = 2
"""States of each training window in one gradient step of the companion: windows of ten give it five steps."""


@flax.struct.dataclass
class CompanionState:
    """What both models learn."""

    imagining: Any
    companion: Any


def imagining_state(state: Any) -> Any:
    """Return the state of what imagines, whether or not it has a companion."""
    return state.imagining if isinstance(state, CompanionState) else state


def with_companion(model: WorldModel, companion: WorldModel) -> WorldModel:
    """Return ``model`` with the ``step`` of ``companion``; both learn from every batch."""

    def init(key: Array) -> CompanionState:
        model_key, companion_key = jax.random.split(key)
        return CompanionState(model.init(model_key), companion.init(companion_key))

    def update(
        state: CompanionState, segment: Segment, normaliser: Normaliser, key: Array
    ) -> tuple[CompanionState, Metrics]:
        model_key, companion_key = jax.random.split(key)
        imagining, metrics = model.update(state.imagining, segment, normaliser, model_key)
        window = jax.tree.map(lambda x: x[:, model.history :], segment)
        learnt, beside = companion.update(state.companion, window, normaliser, companion_key)
        beside = {name.replace("world_model/", "companion/"): x for name, x in beside.items()}
        return CompanionState(imagining, learnt), metrics | beside

    def imagine(
        state: CompanionState, policy: Policy, context: Segment, normaliser: Normaliser, key: Array
    ) -> tuple[Segment, Metrics]:
        return model.imagine(state.imagining, policy, context, normaliser, key)

    def adapt(state: CompanionState, aux: Metrics) -> CompanionState:
        return state.replace(imagining=model.adapt(state.imagining, aux))

    def step(
        state: CompanionState, raw_obs: Array, raw_actions: Array, normaliser: Normaliser, key: Array
    ) -> Prediction:
        return companion.step(state.companion, raw_obs, raw_actions, normaliser, key)

    return model._replace(init=init, update=update, imagine=imagine, adapt=adapt, step=step)
