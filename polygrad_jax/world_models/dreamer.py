"""Dreamer-v3 (Hafner et al. 2023, arXiv 2301.04104v1) as a world model of vector observations.

A sequential variational autoencoder: it is trained to reconstruct observations, rewards and ends of episodes from
latents that its own prior must foresee. The published one does not standardise what it sees, it squashes (symlog), and
neither does this one: the normaliser of the protocol is not read.

Rewards and ends belong to arriving in Dreamer: those of moment t are read from the latent of moment t. In a
``Segment`` they belong to the transition taken in ``observations[:, k]``, so that those of step k are read here from
the latent of moment k + 1, the *successor*. Replay does not store the state that an episode's last step leads to, and
none is read behind a stream's last step: there the successor has no posterior.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax

from polygrad_jax.config import Config, EnvSpec
from polygrad_jax.data.segment_masks import happened
from polygrad_jax.networks.rssm import DreamerNetwork, Latent, draw, features
from polygrad_jax.networks.symlog import BINS, symexp, symlog, two_hot, two_hot_mean
from polygrad_jax.optimising import stepped
from polygrad_jax.types import Array, LatentModel, Metrics, Normaliser, Params, Policy, Prediction, Segment, WorldModel
from polygrad_jax.world_models.rollout import Choose, begin, roll_out, under

Ask = Callable[..., Any]
"""``(params, method name, *arguments)`` of :class:`DreamerNetwork`."""


FREE_NATS = 1.0
"""Both KL losses are no smaller than this, in nats per step (published, as all constants here)."""
SCALES = {"dynamics": 0.5, "representation": 0.1}
"""Weights of the KL losses that train the prior and the posterior; every other loss has weight 1."""
ADAM_EPS = 1e-8
GRADIENT_CLIP = 1000.0


@flax.struct.dataclass
class DreamerState:
    """Everything that the world model learns."""

    params: Params
    optimiser: Any


def make_ask(config: Config, spec: EnvSpec) -> Ask:
    """The networks of ``config`` as a pure function (see :data:`Ask`)."""
    network = DreamerNetwork(spec.observation_size, config.dreamer, config.precision, config.env.actions)

    def ask(params: Params, method: str, *arguments: Any) -> Any:
        return network.apply({"params": params}, *arguments, method=method)

    return ask


def kl_divergence(log_p: Array, log_q: Array) -> Array:
    """``KL(p || q)``, nats, of L independent categorical variables: log-probabilities ``[..., L, K] -> [...]``."""
    return jnp.sum(jnp.exp(log_p) * (log_p - log_q), axis=(-2, -1))


def kl_losses(posterior: Array, prior: Array, free_nats: float) -> tuple[Array, Array]:
    """The dynamics and the representation loss: log-probabilities ``[..., L, K] -> [...]`` each, in nats.

    Their values are equal; the first trains the prior, the second the posterior, and neither where it is free.
    """
    dynamics = kl_divergence(jax.lax.stop_gradient(posterior), prior)
    representation = kl_divergence(posterior, jax.lax.stop_gradient(prior))
    return jnp.maximum(dynamics, free_nats), jnp.maximum(representation, free_nats)


def observe(
    ask: Ask, params: Params, raw_obs: Array, actions: Array, first: Array, key: Array
) -> tuple[Latent, Array, Array]:
    """Posterior latents along real steps: ``(Latent [B, T], log-probabilities [B, T, L, K], following [B, T, D])``.

    ``following[:, t]`` is the recurrent state that step t leads to, also where the next step begins anew.

    Args:
      raw_obs, actions: ``[B, T, O]`` and ``[B, T, A]``, raw; ``actions[:, t]`` is taken in ``raw_obs[:, t]``.
      first: ``[B, T]`` bool: nothing of what came before step t is known.
    """
    embedded = ask(params, "embed", raw_obs)
    fresh = ask(params, "advance", ask(params, "initial", raw_obs.shape[0]), jnp.zeros_like(actions[:, 0]))

    def step(deter: Array, inputs: tuple[Array, ...]) -> tuple[Array, tuple[Latent, Array, Array]]:
        embedded, action, first, key = inputs
        deter = jnp.where(first[:, None], fresh, deter)
        log_probs = ask(params, "posterior", deter, embedded)
        latent = Latent(deter, draw(key, log_probs))
        following = ask(params, "advance", latent, action)
        return following, (latent, log_probs, following)

    by_time = jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1), (embedded, actions, first))
    _, outputs = jax.lax.scan(step, fresh, (*by_time, jax.random.split(key, raw_obs.shape[1])))
    return jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1), outputs)


def without_padding(segment: Segment) -> tuple[Segment, Array]:
    """A stream or window ``[B, H]`` with ``begins``, and 1 for the steps that were taken.

    A stream has taken all of them. A window begins at its first state, whatever was before; behind its terminal it gets
    zeros.
    """
    if segment.begins is not None:
        return segment, jnp.ones_like(segment.terminals)
    real = happened(segment.terminals)
    blank = jax.tree.map(
        lambda x: jnp.where(_as_wide(real > 0, x), x, 0.0), (segment.observations, segment.actions, segment.rewards)
    )
    begins = jnp.zeros(segment.terminals.shape, bool).at[:, 0].set(True)
    return Segment(*blank, segment.terminals, begins=begins), real


def losses(
    ask: Ask, params: Params, segment: Segment, key: Array
) -> tuple[dict[str, Array], Array]:
    """Every loss per step of real streams or windows ``[B, H]``, unscaled, and the weight ``[B, H]`` of the step.

    DEVIATION from the published model, which reads rewards and ends from posterior latents only: its replay has the
    state that follows a terminal step, ours has not. The reward of step k is read from the successor's
    posterior where one exists, else from a draw of its prior. The end is read from a draw of the prior at every step:
    if the head read posteriors where they exist, the ending steps would be those without one, and the head could learn
    to tell draws of the two apart, while in imagination all come from the prior. No loss reaches the prior through its
    draws; the KL trains it, as published.
    """
    posterior_key, prior_key = jax.random.split(key)
    segment, real = without_padding(segment)
    latents, posterior, deter = observe(
        ask, params, segment.observations, segment.actions, segment.begins, posterior_key
    )
    foreseen = ask(params, "prior", deter)
    at_begins = ask(params, "prior", latents.deter[:, :1])  # the same wherever something begins
    prior = jnp.where(_as_wide(segment.begins, foreseen), at_begins, jnp.roll(foreseen, 1, axis=1))
    decoded = ask(params, "decode", features(latents))
    dynamics, representation = kl_losses(posterior, prior, FREE_NATS)

    drawn = jax.lax.stop_gradient(draw(prior_key, foreseen))
    seen = jnp.roll(latents.stoch, -1, axis=1)
    goes_on = (real[:, 1:] > 0) & ~segment.begins[:, 1:]
    has_posterior = jnp.concatenate([goes_on, jnp.zeros_like(goes_on[:, :1])], axis=1)
    successor = Latent(deter, jnp.where(_as_wide(has_posterior, seen), seen, drawn))

    reward_logits = ask(params, "reward", features(successor))
    reward = -jnp.sum(two_hot(segment.rewards, BINS) * jax.nn.log_softmax(reward_logits), axis=-1)
    continues = ask(params, "goes_on", features(Latent(deter, drawn)))
    return {
        # Summed over the observation and without the paper's factor 1/2, as in the published code.
        "decoder": jnp.sum(jnp.square(decoded - symlog(segment.observations)), axis=-1),
        "reward": reward,
        "continue": optax.sigmoid_binary_cross_entropy(continues, 1.0 - segment.terminals),
        "dynamics": dynamics,
        "representation": representation,
    }, real


def make_latent_model(config: Config, spec: EnvSpec) -> LatentModel:
    """What a learner in latent space asks of this model."""
    ask = make_ask(config, spec)

    def observe_real(params: Params, segment: Segment, key: Array) -> tuple[Latent, Array]:
        segment, real = without_padding(segment)
        return observe(ask, params, segment.observations, segment.actions, segment.begins, key)[0], real

    def step(params: Params, latent: Latent, action: Array, key: Array) -> tuple[Latent, Array, Array]:
        deter = ask(params, "advance", latent, action)
        latent = Latent(deter, draw(key, ask(params, "prior", deter)))
        read = features(latent)
        continues = (ask(params, "goes_on", read) >= 0.0).astype(jnp.float32)
        return latent, two_hot_mean(ask(params, "reward", read)), continues

    def see(params: Params, before: tuple[Latent, Array] | None, raw_obs: Array, key: Array) -> Latent:
        nothing = (ask(params, "initial", raw_obs.shape[0]), jnp.zeros((raw_obs.shape[0], spec.action_size)))
        deter = ask(params, "advance", *(nothing if before is None else before))
        return Latent(deter, draw(key, ask(params, "posterior", deter, ask(params, "embed", raw_obs))))

    def imagine_latents(params: Params, choose: Choose, context: Segment, key: Array) -> Segment:
        context_key, roll_key = jax.random.split(key)

        def predict(
            latent: Latent, raw_obs: Array, actions: Array, key: Array
        ) -> tuple[Latent, Prediction, Metrics]:
            latent, rewards, continues = step(params, latent, actions, key)
            decoded = symexp(ask(params, "decode", features(latent)))
            return latent, Prediction(decoded, rewards, 1.0 - continues), {}

        start = begin(context, _latent_after(ask, params, context, context_key))
        _, segment, _ = roll_out(predict, start, choose, jax.random.split(roll_key, config.horizon))
        return segment

    d = config.dreamer
    return LatentModel(
        observe=observe_real,
        step=step,
        see=see,
        imagine=imagine_latents,
        features=features,
        feature_size=d.deter + d.latents * d.classes,
        params_of=lambda state: state.params,
        pack=lambda latent: {"deter": latent.deter, "stoch": latent.stoch},
        unpack=lambda memory: Latent(memory["deter"], memory["stoch"]),
    )


def make_dreamer(config: Config, spec: EnvSpec) -> WorldModel:
    """Dreamer-v3's world model behind the protocol of :class:`WorldModel`.

    ``imagine`` runs the posterior along the observed steps of the context and the prior from there, under a policy that
    is asked about decoded observations.
    """
    ask, latent_model = make_ask(config, spec), make_latent_model(config, spec)
    d = config.dreamer
    adam = optax.adam(d.learning_rate, eps=ADAM_EPS)
    optimiser = optax.chain(optax.clip_by_global_norm(GRADIENT_CLIP), adam)

    def init(key: Array) -> DreamerState:
        network = DreamerNetwork(spec.observation_size, d, config.precision, config.env.actions)
        params = network.init(key, jnp.zeros((1, spec.observation_size)), jnp.zeros((1, spec.action_size)))["params"]
        return DreamerState(params, optimiser.init(params))

    def update(
        state: DreamerState, segment: Segment, normaliser: Normaliser, key: Array
    ) -> tuple[DreamerState, Metrics]:
        del normaliser  # what is seen is squashed, not standardised

        def loss(params: Params) -> tuple[Array, Metrics]:
            by_step, weights = losses(ask, params, segment, key)
            means = {name: (weights * x).sum() / weights.sum() for name, x in by_step.items()}
            total = sum(SCALES.get(name, 1.0) * x for name, x in means.items())
            return total, {f"world_model/{name}_loss": x for name, x in means.items()}

        (total, metrics), gradients = jax.value_and_grad(loss, has_aux=True)(state.params)
        learnt = DreamerState(*stepped(optimiser, gradients, state.params, state.optimiser))
        metrics |= {"world_model/loss": total, "world_model/gradient_norm": optax.tree.norm(gradients)}
        return learnt, metrics

    def imagine(
        state: DreamerState, policy: Policy, context: Segment, normaliser: Normaliser, key: Array
    ) -> tuple[Segment, Metrics]:
        del normaliser
        return latent_model.imagine(state.params, under(policy), context, key), {}

    return WorldModel(
        init,
        update,
        imagine,
        window=d.window,
        streamed=True,
        batch_size=d.batch_size,
        context_length=d.context_length,
        latent=latent_model,
    )


def _latent_after(ask: Ask, params: Params, context: Segment, key: Array) -> Latent:
    """The latent ``[B]`` of the last state of a context ``[B, C]``; what pads it in front is not looked at."""
    observed = jnp.ones(context.rewards.shape, bool) if context.observed is None else context.observed
    # A step before which nothing was observed begins anew: what an unobserved one left behind is thrown away.
    first = jnp.concatenate([jnp.ones_like(observed[:, :1]), ~observed[:, :-1]], axis=1)
    raw_obs, actions = (
        jnp.where(_as_wide(observed, x), x, 0.0) for x in (context.observations, context.actions)
    )
    latents, *_ = observe(ask, params, raw_obs, actions, first, key)
    return jax.tree.map(lambda x: x[:, -1], latents)


def _as_wide(mask: Array, x: Array) -> Array:
    """The mask with axes of size 1 behind, as many axes as ``x`` has."""
    return mask.reshape(*mask.shape, *(1,) * (x.ndim - mask.ndim))
