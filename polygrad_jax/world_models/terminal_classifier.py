"""Does this action in this state end the episode? A small network beside the denoiser, asked about imagined steps.

DEVIATION from the paper, which reads terminals from a channel of the diffused trajectory. On Hopper, with the small
denoiser of the ``cpu_a2c`` preset, such terminals come late, early or not at all: the policy gradient under them
pointed away from the gradient under MuJoCo's terminals for the same actions (``results/archive/terminals.csv``).
"""

from __future__ import annotations

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax

from polygrad_jax.config import EnvSpec, Execution
from polygrad_jax.data.normaliser import executed, normalise
from polygrad_jax.data.segment_masks import happened
from polygrad_jax.networks.actor_critic import MLP
from polygrad_jax.optimising import stepped
from polygrad_jax.types import Array, Metrics, Normaliser, Params, Segment

HIDDEN_SIZE = 64
LEARNING_RATE = 1e-3

_NETWORK = MLP(1, HIDDEN_SIZE)
_ADAM = optax.adam(LEARNING_RATE)


@flax.struct.dataclass
class ClassifierState:
    """The network's parameters and Adam's moments."""

    params: Params
    adam: Any


def init(key: Array, spec: EnvSpec) -> ClassifierState:
    """A network that has learnt nothing."""
    params = _NETWORK.init(key, jnp.zeros((1, spec.observation_size + spec.action_size)))["params"]
    return ClassifierState(params, _ADAM.init(params))


def logits(params: Params, segment: Segment, normaliser: Normaliser, how: Execution) -> Array:
    """``[B, H]``: log-odds that the step ends the episode. The segment's raw actions count as they are executed."""
    observations = normalise(segment.observations, normaliser.observations)
    x = jnp.concatenate([observations, executed(segment.actions, how)], axis=-1)
    return _NETWORK.apply({"params": params}, x)[..., 0]


def loss(params: Params, segment: Segment, normaliser: Normaliser, how: Execution) -> Array:
    """Cross-entropy, in nats per step, over the steps that were taken."""
    weights = happened(segment.terminals)
    entropy = optax.sigmoid_binary_cross_entropy(logits(params, segment, normaliser, how), segment.terminals)
    return (weights * entropy).sum() / weights.sum()


def update(
    state: ClassifierState, segment: Segment, normaliser: Normaliser, how: Execution
) -> tuple[ClassifierState, Metrics]:
    """One gradient step of Adam on real windows ``[B, H]``, raw units."""
    value, gradients = jax.value_and_grad(loss)(state.params, segment, normaliser, how)
    learnt = ClassifierState(*stepped(_ADAM, gradients, state.params, state.adam))
    return learnt, {"world_model/classifier_loss": value}


def classify(params: Params, segment: Segment, normaliser: Normaliser, how: Execution) -> Array:
    """``[B, H]``: 1 from the first step on that is more likely than not to end the episode."""
    ends = (logits(params, segment, normaliser, how) > 0).astype(jnp.float32)
    return jax.lax.cummax(ends, axis=1)


def probability(
    params: Params, observations: Array, actions: Array, normaliser: Normaliser, how: Execution
) -> Array:
    """Return ``[B]``: how likely raw actions ``[B, A]`` in raw observations ``[B, O]`` are to end the episode."""
    nothing = jnp.zeros((observations.shape[0], 1))
    step = Segment(observations[:, None], actions[:, None], rewards=nothing, terminals=nothing)
    return jax.nn.sigmoid(logits(params, step, normaliser, how)[:, 0])


def ends(params: Params, observations: Array, actions: Array, normaliser: Normaliser, how: Execution) -> Array:
    """Return ``[B]``: 1 where raw actions ``[B, A]`` in raw observations ``[B, O]`` more likely than not end it."""
    return (probability(params, observations, actions, normaliser, how) > 0.5).astype(jnp.float32)
