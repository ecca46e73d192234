"""A transformer that predicts the next step from the last ones, by the squared error (paper, Appendix C.2).

Every training window ``[B, C + 1]`` is C predictions, one from each of its beginnings: the causal mask trains histories
of 1 to C state-action pairs at once. In imagination the same network sees the last C pairs, real or imagined.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import optax

from polygrad_jax.config import Config, EnvSpec, Execution, TransformerConfig
from polygrad_jax.data.normaliser import executed, normalise, unnormalise
from polygrad_jax.data.segment_masks import happened
from polygrad_jax.diffusion.denoising_loss import pack, with_terminal_std
from polygrad_jax.networks.batch_parts import in_parts
from polygrad_jax.networks.causal_transformer import KeysValues
from polygrad_jax.networks.transformer_dynamics import TransformerDynamics
from polygrad_jax.optimising import stepped
from polygrad_jax.types import Array, Metrics, Normaliser, Params, Policy, Prediction, Segment, WorldModel
from polygrad_jax.world_models import terminal_classifier
from polygrad_jax.world_models.rollout import Predict, begin, roll_out, under
from polygrad_jax.world_models.terminal_classifier import ClassifierState


@flax.struct.dataclass
class TransformerState:
    """Everything the transformer learns; it imagines with the newest parameters, not an average (official code)."""

    params: Params
    adam: Any
    updates: Array  # gradient steps taken
    classifier: ClassifierState | None  # of terminals, where they are classified


class History(NamedTuple):
    """The pairs that the next prediction sees beside its own."""

    pairs: Array  # [B, C, O+A] normalised; of a full history the first one is about to be forgotten
    first: Array  # [B] int32, the first slot that holds a pair that was observed or imagined
    cache: tuple[KeysValues, ...] | None  # of the blocks; None once the history is full
    slot: Array  # [] int32, where the next pair goes, up to C


def make_network(config: TransformerConfig, spec: EnvSpec, precision: str) -> TransformerDynamics:
    """The network of ``config``: its outputs are the next observation, the reward and the terminal, normalised."""
    return TransformerDynamics(
        spec.observation_size + 2,
        config.context_length,
        config.token_dim,
        config.num_heads,
        config.num_blocks,
        precision,
    )


def prediction_loss(outputs: Array, segment: Segment, normaliser: Normaliser) -> tuple[Array, Metrics]:
    """Mean squared error of ``outputs [B, T, O+2]``, what a network says of the first T of ``T + 1`` states.

    Behind a terminal nothing counts, of a terminal step its reward and terminal alone: the state after it is unknown.
    DEVIATION from the official code, which also learns from padding.
    """
    normed_traj, _ = pack(segment, normaliser)
    targets = jnp.concatenate([normed_traj[:, 1:, :-2], normed_traj[:, :-1, -2:]], axis=-1)
    taken = happened(segment.terminals)[..., None]
    observations = outputs.shape[-1] - 2
    weights = jnp.concatenate(
        [jnp.repeat(taken[:, 1:], observations, axis=-1), jnp.repeat(taken[:, :-1], 2, axis=-1)], axis=-1
    )
    errors = weights * jnp.square(outputs - targets)

    def mean(channels: slice) -> Array:
        return errors[..., channels].sum() / jnp.maximum(weights[..., channels].sum(), 1.0)

    loss = mean(slice(None))
    return loss, {
        "world_model/loss": loss,
        "world_model/observation_loss": mean(slice(-2)),
        "world_model/reward_loss": mean(slice(-2, -1)),
        "world_model/terminal_loss": mean(slice(-1, None)),
    }


def pair(raw_obs: Array, raw_actions: Array, normaliser: Normaliser, how: Execution) -> Array:
    """Tokens ``[..., O+A]`` of raw observations and actions, the latter as executed."""
    # DEVIATION from the official code, which shows actions as sampled: ours sees those executed.
    actions = normalise(executed(raw_actions, how), normaliser.actions)
    return jnp.concatenate([normalise(raw_obs, normaliser.observations), actions], axis=-1)


def remember(
    network: TransformerDynamics, params: Params, context: Segment, normaliser: Normaliser, how: Execution
) -> History:
    """The history of a context ``[B, 1 to C]``: its steps but the last, whose action is not chosen yet."""
    batch, length = context.terminals.shape
    slots = network.context_length
    observed = jnp.ones((batch, length), bool) if context.observed is None else context.observed
    pairs = pair(context.observations, context.actions, normaliser, how)[:, :-1]
    pairs = jnp.where(observed[:, :-1, None], pairs, jnp.float32(0.0))
    first = jnp.argmax(observed, axis=1).astype(jnp.int32)
    cache = network.empty_cache(batch)
    if length > 1:
        _, cache = network.apply({"params": params}, pairs, first, cache)
    pairs = jnp.pad(pairs, ((0, 0), (0, slots - length + 1), (0, 0)))
    return History(pairs, first, cache, jnp.int32(length - 1))


def with_cache(network: TransformerDynamics, params: Params, history: History, pairs: Array) -> tuple[History, Array]:
    """``(history, outputs [B, O+2])`` of the next pairs ``[B, O+A]`` while there are slots left."""
    outputs, cache = network.apply({"params": params}, pairs[:, None], history.first, history.cache, history.slot)
    known = jax.lax.dynamic_update_slice_in_dim(history.pairs, pairs[:, None], history.slot, axis=1)
    return History(known, history.first, cache, history.slot + 1), outputs[:, 0]


def sliding(network: TransformerDynamics, params: Params, history: History, pairs: Array) -> tuple[History, Array]:
    """As :func:`with_cache` of a full history: the first pair is forgotten and all others move to the slot before."""
    known = jnp.concatenate([history.pairs[:, 1:], pairs[:, None]], axis=1)
    first = jnp.maximum(history.first - 1, 0)

    def last_output(known: Array, first: Array) -> Array:
        return network.apply({"params": params}, known, first)[0][:, -1]

    outputs = in_parts(last_output, known.shape[1], known, first)
    return History(known, first, None, history.slot), outputs


Extend = Callable[[TransformerDynamics, Params, History, Array], tuple[History, Array]]
"""``(network, params, history, pairs [B, O+A]) -> (history, outputs [B, O+2])``."""


def make_transformer(config: Config, spec: EnvSpec) -> WorldModel:
    """The transformer behind the protocol of :class:`WorldModel`; ``imagine`` takes a context of any length.

    DEVIATION from caching throughout: keys and values are cached only while there are at most C pairs. When the window
    slides, the position of every pair changes, and the blocks above the first have mixed the dropped pair into their
    cached values of the others. A full window is therefore computed anew, as in training.
    """
    settings = config.transformer
    network = make_network(settings, spec, config.precision)
    context_length, outcome = settings.context_length, spec.observation_size
    adam = optax.adam(settings.learning_rate)
    classifies, how = config.diffusion.terminals == "classified", config.env.actions

    def init(key: Array) -> TransformerState:
        pairs = jnp.zeros((1, context_length, spec.observation_size + spec.action_size))
        params = network.init(key, pairs)["params"]
        classifier = terminal_classifier.init(jax.random.fold_in(key, 1), spec) if classifies else None
        return TransformerState(params, adam.init(params), jnp.int32(0), classifier)

    def update(
        state: TransformerState, segment: Segment, normaliser: Normaliser, key: Array
    ) -> tuple[TransformerState, Metrics]:
        normaliser = with_terminal_std(normaliser, config.diffusion.terminal_std)
        pairs = pair(segment.observations, segment.actions, normaliser, how)[:, :-1]

        def loss(params: Params) -> tuple[Array, Metrics]:
            outputs, _ = network.apply({"params": params}, pairs)
            return prediction_loss(outputs, segment, normaliser)

        gradients, metrics = jax.grad(loss, has_aux=True)(state.params)
        params, adam_state = stepped(adam, gradients, state.params, state.adam)
        classifier = state.classifier
        if classifies:
            classifier, more = terminal_classifier.update(classifier, segment, normaliser, how)
            metrics |= more
        return TransformerState(params, adam_state, state.updates + 1, classifier), metrics

    def imagine(
        state: TransformerState, policy: Policy, context: Segment, normaliser: Normaliser, key: Array
    ) -> tuple[Segment, Metrics]:
        normaliser = with_terminal_std(normaliser, config.diffusion.terminal_std)

        def predicting(extend: Extend) -> Predict:
            def predict(
                history: History, raw_obs: Array, actions: Array, _: Array
            ) -> tuple[History, Prediction, Metrics]:
                history, output = extend(network, state.params, history, pair(raw_obs, actions, normaliser, how))
                rewards = unnormalise(output[:, outcome : outcome + 1], normaliser.rewards)[:, 0]
                if classifies:
                    ends = terminal_classifier.ends(state.classifier.params, raw_obs, actions, normaliser, how)
                else:
                    terminals = unnormalise(output[:, outcome + 1 :], normaliser.terminals)[:, 0]
                    ends = (terminals > 0.5).astype(jnp.float32)
                return history, Prediction(unnormalise(output[:, :outcome], normaliser.observations), rewards, ends), {}

            return predict

        recent = jax.tree.map(lambda x: x[:, -context_length:], context)
        keys = jax.random.split(key, config.horizon)
        slots_left = context_length - recent.terminals.shape[1] + 1
        start = begin(recent, remember(network, state.params, recent, normaliser, how))
        middle, segment, _ = roll_out(predicting(with_cache), start, under(policy), keys[:slots_left])
        if config.horizon > slots_left:
            middle = middle._replace(memory=middle.memory._replace(cache=None))
            _, rest, _ = roll_out(predicting(sliding), middle, under(policy), keys[slots_left:])
            segment = jax.tree.map(lambda a, b: jnp.concatenate([a, b], axis=1), segment, rest)
        return segment, {}

    return WorldModel(
        init,
        update,
        imagine,
        window=context_length + 1,
        batch_size=settings.batch_size,
        context_length=context_length,
    )
