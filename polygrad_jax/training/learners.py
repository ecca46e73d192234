"""What learns a policy from a world model, as an iteration sees it; the learning itself is in ``rl/``.

A2C learns from imagined observations, whatever imagines them (the paper's). Dreamer-v3's actor-critic learns from
imagined latents, which only Dreamer's world model has, and acts by what it has seen of the episode.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from polygrad_jax.config import Config, EnvSpec
from polygrad_jax.data import normaliser as normalisers
from polygrad_jax.data import replay as replays
from polygrad_jax.agents import a2c
from polygrad_jax.agents import dreamer_actor_critic as dreamer
from polygrad_jax.types import Array, Metrics, Normaliser, Params, Segment, WorldModel
from polygrad_jax.world_models.dreamer import make_latent_model


class Keys(NamedTuple):
    """Of one policy update: where imagining begins, and what it draws."""

    context: Array
    imagine: Array


class Learner(NamedTuple):
    """Pure functions; ``learner`` is what this kind of learner carries from update to update.

    ``init(key) -> learner``
    ``improve(learner, model_state, replay, keys, progress) -> (learner, model_state, metrics, segment)``: one update
    from newly imagined trajectories; ``segment`` is what must be finite of them. ``progress`` is the share of the run's
    policy updates that have been made.
    ``imagine(learner, model_state, context [B, C], normaliser, key) -> Segment [B, H]``: under the present policy.
    """

    init: Callable[[Array], Any]
    improve: Callable[..., tuple[Any, Any, Metrics, Any]]
    imagine: Callable[[Any, Any, Segment, Normaliser, Array], Segment]


def make_learner(config: Config, spec: EnvSpec, world_model: WorldModel) -> Learner:
    """The learner that ``config.learner`` names."""
    return {"a2c": _make_a2c, "latent": _make_latent}[config.learner](config, spec, world_model)


def acting_params(config: Config, actor: Params, model_state: Any) -> Params:
    """All that the host needs to act with ``actor``; a policy that reads latents needs the model that sees them."""
    return actor if config.learner == "a2c" else {"actor": actor, "model": model_state.params}


def shown_actor(learner: Any) -> Params:
    """The parameters of the policy that evaluations and finished runs show, of either learner's state."""
    return a2c.evaluated_actor(learner) if isinstance(learner, a2c.A2CState) else learner.actor


def _make_a2c(config: Config, spec: EnvSpec, world_model: WorldModel) -> Learner:
    policy_apply = a2c.make_policy_apply(spec, config.a2c, config.precision)

    def improve(
        learner: a2c.A2CState, model: Any, replay: replays.ReplayState, keys: Keys, progress: Array
    ) -> tuple[a2c.A2CState, Any, Metrics, Segment]:
        normaliser = normalisers.to_normaliser(replay.moments)
        context = replays.sample_contexts(replay, keys.context, config.a2c.trajectories, world_model.context_length)
        # 7 (Algorithm 2) and 9 (delta; it was measured under the policy that guided, and is used from the next run on)
        model, segment, metrics = world_model.imagine(
            model, policy_apply, learner.actor, context, normaliser, keys.imagine, config.horizon
        )
        segment = jax.lax.stop_gradient(segment)
        # In float32 whatever the precision: the search measures changes of the log-probability of about 0.01.
        target = a2c.target_change_at(config.a2c, progress)
        learner, policy_metrics = a2c.update(learner, segment, config.a2c, spec, target_change=target)  # 8
        return learner, model, metrics | policy_metrics, segment

    def imagine(learner: a2c.A2CState, model: Any, context: Segment, normaliser: Normaliser, key: Array) -> Segment:
        given = (policy_apply, learner.actor, context, normaliser, key, config.horizon)
        return world_model.imagine(model, *given)[1]

    return Learner(
        init=lambda key: a2c.init(key, spec, config.a2c),
        improve=improve,
        imagine=imagine,
    )


def _make_latent(config: Config, spec: EnvSpec, world_model: WorldModel) -> Learner:
    del world_model  # Dreamer's, see ``config.validate``; what is asked of it is more than the protocol has
    latent, settings, d = make_latent_model(config, spec), config.latent_policy, config.dreamer
    policy = dreamer.make_policy(spec.action_size, settings, config.precision)

    def improve(
        learner: dreamer.LatentPolicyState, model: Any, replay: replays.ReplayState, keys: Keys, progress: Array
    ) -> tuple[dreamer.LatentPolicyState, Any, Metrics, Metrics]:
        # DEVIATION: windows of its own draw; the published agent imagines from those that its model just learnt from.
        windows = replays.sample(replay, keys.context, d.batch_size, d.window)
        observe_key, imagine_key = jax.random.split(keys.imagine)
        latents, real = latent.observe(model.params, windows, observe_key)
        starts = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), latents)
        step = functools.partial(latent.step, model.params)
        given = (starts, real.reshape(-1), step, latent.features, settings, spec.action_size, imagine_key)
        learner, metrics = dreamer.update(learner, *given, config.precision)
        return learner, model, metrics, metrics

    def imagine(
        learner: dreamer.LatentPolicyState, model: Any, context: Segment, normaliser: Normaliser, key: Array
    ) -> Segment:
        def choose(seen: Any, raw_obs: Array) -> tuple[Array, Array]:
            return policy(learner.actor, latent.features(seen))

        return latent.roll(model.params, choose, context, key, config.horizon)

    return Learner(
        init=lambda key: dreamer.init(key, latent.feature_size, spec.action_size, settings),
        improve=improve,
        imagine=imagine,
    )
