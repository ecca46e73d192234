"""Learn a policy from imagined trajectories by advantage actor-critic (paper, Algorithm 3, line 8; Appendix A).

The log-probability of the imagined actions is weighted by normalised advantages (GAE under an averaged target
critic). A line search picks the learning rate of each update so that the policy changes by a set amount. Options of
the configuration, none of them the paper's, put several passes in minibatches under PPO's clipped ratio in place of
the searched step, and standardise what the networks read and predict.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import chex
import flax.struct
import jax
import jax.numpy as jnp
import optax
from jax import lax

from polygrad_jax.agents import gaussian, value_units
from polygrad_jax.agents.gae import gae
from polygrad_jax.agents.line_search import search
from polygrad_jax.agents.minibatches import shuffled_minibatches
from polygrad_jax.config import A2CConfig, Config, EnvSpec
from polygrad_jax.data.normaliser import normalise_for_policy
from polygrad_jax.data.segment_masks import happened
from polygrad_jax.networks.actor_critic import Actor, Critic
from polygrad_jax.optimising import exponential_average
from polygrad_jax.types import (
    Agent,
    Array,
    Experience,
    MeanStd,
    Memory,
    Metrics,
    Normaliser,
    Params,
    Policy,
    PolicyApply,
    Segment,
    WorldModel,
)

ValueApply = Callable[[Params, Array], Array]
"""``(params, raw_obs [..., O]) -> value [...]``."""

_ADAM = optax.scale_by_adam(b1=0.9, b2=0.999, eps=1e-8)
_LOG_LR_STEP = 3e-4  # AdamW's learning rate for the logarithm of the actor's learning rate (official code)
_LOG_LR_WEIGHT_DECAY = 0.01  # PyTorch's default for AdamW (official code)


@flax.struct.dataclass
class A2CState:
    """Everything that A2C keeps from one update to the next."""

    actor: Params  # {"network": ..., "log_std": [A]}, and "observations": {"mean": [O], "std": [O]} where asked for
    critic: Params  # {"network": ...}, "observations" as above, and "values" (value_units.py) where asked for
    target_critic: Params
    actor_adam: Any
    critic_adam: Any
    log_actor_lr: Array  # scalar: log of the learning rate that the next search starts from
    log_actor_lr_adam: Any
    averaged_actor: Params | None = None  # exponential average of ``actor``, where ``actor_ema`` asks for one


@flax.struct.dataclass
class Batch:
    """The transitions that an update learns from: ``[...]`` is ``[B, H - 1]``, or ``[M]`` in a minibatch."""

    observations: Array  # [..., O] raw
    actions: Array  # [..., A] raw
    advantages: Array  # [...] raw reward
    targets: Array  # [...] of the values, raw reward
    weights: Array  # [...] see :func:`reality_weights`


def evaluated_actor(state: A2CState) -> Params:
    """Return the actor to evaluate: the averaged one where ``actor_ema`` asks for it, else the newest."""
    return state.actor if state.averaged_actor is None else state.averaged_actor


def make_a2c(config: Config, spec: EnvSpec, world_model: WorldModel) -> Agent:
    """Make A2C, which learns from imagined observations of any world model, behind the protocol of :class:`Agent`."""
    policy_apply = make_policy_apply(spec, config.a2c, config.precision)
    acting_apply = make_policy_apply(spec, config.a2c, "float32")

    def imagine(
        state: A2CState, model_state: Any, context: Segment, normaliser: Normaliser, key: Array
    ) -> tuple[Segment, Metrics]:
        return world_model.imagine(model_state, policy(state), context, normaliser, key)

    def learn(state: A2CState, model_state: Any, experience: Experience, key: Array) -> tuple[A2CState, Metrics]:
        del model_state
        # In float32 whatever the precision: the search measures changes of the log-probability of about 0.01.
        imagined = lax.stop_gradient(experience.imagined)
        return update(
            state,
            imagined,
            config.a2c,
            spec,
            progress=experience.progress,
            normaliser=experience.normaliser,
            key=key,
        )

    def policy(state: A2CState) -> Policy:
        return Policy(state.actor, policy_apply)

    def decide(params: Params, memory: Memory, raw_obs: Array, key: Array) -> tuple[Array, Array, Memory]:
        del memory, key
        return *acting_apply(params, raw_obs), None

    return Agent(
        init=lambda key: init(key, spec, config.a2c),
        imagine=imagine,
        update=learn,
        policy=policy,
        evaluated_policy=lambda state: Policy(evaluated_actor(state), policy_apply),
        acting=lambda state, model_state: state.actor,
        evaluated=lambda state, model_state: evaluated_actor(state),
        decide=decide,
        remember=lambda memory, actions: None,
        trajectories=config.a2c.trajectories,
    )


def init(key: Array, spec: EnvSpec, config: A2CConfig, precision: str = "float32") -> A2CState:
    """Make the state before the first update; the target critic starts as the critic."""
    actor_key, critic_key = jax.random.split(key)
    raw_obs = jnp.zeros((1, spec.observation_size))
    actor = _actor(spec, config, precision).init(actor_key, raw_obs)["params"]
    critic = Critic(config.hidden_size, precision).init(critic_key, raw_obs)["params"]
    if config.normalise_observations:
        actor, critic = (params | {"observations": _no_statistics(spec)} for params in (actor, critic))
    if config.value_scale == "running":
        critic = critic | {"values": value_units.raw_units()}
    log_actor_lr = jnp.log(jnp.float32(config.max_actor_lr))
    return A2CState(
        actor=actor,
        critic=critic,
        target_critic=jax.tree.map(jnp.copy, critic),  # a copy: a state whose buffers are shared cannot be donated
        actor_adam=_ADAM.init(learnt(actor)),
        critic_adam=_ADAM.init(learnt(critic)),
        log_actor_lr=log_actor_lr,
        log_actor_lr_adam=_ADAM.init(log_actor_lr),
        averaged_actor=jax.tree.map(jnp.copy, actor) if config.actor_ema > 0 else None,
    )


@functools.lru_cache
def make_policy_apply(spec: EnvSpec, config: A2CConfig, precision: str = "float32") -> PolicyApply:
    """Make ``(state.actor, raw_obs [..., O]) -> (mean [..., A], std [..., A])``; equal arguments give one object."""
    actor = _actor(spec, config, precision)
    return lambda params, raw_obs: actor.apply({"params": learnt(params)}, _network_input(params, raw_obs))


@functools.lru_cache
def make_value_apply(config: A2CConfig, precision: str = "float32") -> ValueApply:
    """Make ``(state.critic, raw_obs [..., O]) -> value [...]``, in raw reward; equal arguments give one object."""
    critic = Critic(config.hidden_size, precision)

    def value_apply(params: Params, raw_obs: Array) -> Array:
        outputs = critic.apply({"params": learnt(params)}, _network_input(params, raw_obs))
        return value_units.to_raw(outputs, params["values"]) if "values" in params else outputs

    return value_apply


def learnt(params: Params) -> Params:
    """Select what gradients move: the network, and the actor's log-std. Statistics are the other entries."""
    return {name: params[name] for name in ("log_std", "network") if name in params}


def _network_input(params: Params, raw_obs: Array) -> Array:
    """Standardise ``raw_obs [..., O]`` by the statistics that travel in the parameters, where there are some."""
    if "observations" not in params:
        return raw_obs
    return normalise_for_policy(raw_obs, MeanStd(**params["observations"]))


def update(
    state: A2CState,
    segment: Segment,
    config: A2CConfig,
    spec: EnvSpec,
    precision: str = "float32",
    progress: Array | float = 0.0,
    normaliser: Normaliser | None = None,
    key: Array | None = None,
) -> tuple[A2CState, Metrics]:
    """Make one policy update on ``segment [B, H]`` in raw units (paper, Algorithm 3, line 8).

    ``config``, ``spec`` and ``precision`` are static. The order is: target critic, advantages, critic, actor with its
    line search, and the learning rate from which the next search starts; or, in place of the last three, passes in
    minibatches. ``progress`` is the share of the run's updates that have been made. ``normaliser``, the replay's, is
    read where ``normalise_observations`` asks for it, and ``key`` where minibatches are drawn.
    """
    chex.assert_shape(segment.observations, (None, None, spec.observation_size), custom_message="observations")
    shape = segment.observations.shape[:2]
    chex.assert_shape(segment.actions, (*shape, spec.action_size), custom_message="actions")
    chex.assert_shape([segment.rewards, segment.terminals], shape, custom_message="rewards, terminals")
    policy_apply = make_policy_apply(spec, config, precision)
    value_apply = make_value_apply(config, precision)

    target_critic = _average(state.target_critic, state.critic, config.target_critic_ema)
    values = value_apply(target_critic, segment.observations)
    advantages, targets = gae(segment.rewards, values, segment.terminals, config.gamma, config.gae_lambda)
    weights = reality_weights(segment.terminals[:, :-1], config.train_terminal_transitions)
    batch = Batch(segment.observations[:, :-1], segment.actions[:, :-1], advantages, targets, weights)
    state = state.replace(target_critic=target_critic)
    if config.value_scale == "running":
        state = _move_value_units(state, batch)

    if config.learning_rates == "adapted":
        state, metrics = _take_searched_step(state, batch, policy_apply, value_apply, config, progress)
    else:
        state, metrics = _take_passes(state, batch, policy_apply, value_apply, config, progress, key)
    metrics["agent/advantage_std"] = jnp.std(advantages, ddof=1)
    if config.actor_ema > 0:
        state = state.replace(averaged_actor=_average(state.averaged_actor, state.actor, config.actor_ema))
    if config.normalise_observations:
        state = _refresh_observation_statistics(state, normaliser)
    return state, metrics


def target_change_at(config: A2CConfig, progress: Array) -> Array | float:
    """Interpolate linearly from ``target_change`` to ``final_target_change`` at ``progress`` (0 to 1, clipped).

    DEVIATION from paper and official code, whose target is constant: where the gradient is mostly noise, steps of
    constant size carry a policy away from a good solution.
    """
    if config.final_target_change == 0:
        return config.target_change
    progress = jnp.clip(progress, 0.0, 1.0)
    return config.target_change + progress * (config.final_target_change - config.target_change)


def _average(averaged: Params, newest: Params, decay: float) -> Params:
    """Average what is learnt; statistics are the newest ones."""
    return newest | exponential_average(learnt(averaged), learnt(newest), decay)


def _no_statistics(spec: EnvSpec) -> dict[str, Array]:
    """Make the statistics that change no observation."""
    return {"mean": jnp.zeros(spec.observation_size), "std": jnp.ones(spec.observation_size)}


def _refresh_observation_statistics(state: A2CState, normaliser: Normaliser) -> A2CState:
    """Give every network the replay's newest statistics of observations.

    DEVIATION from paper and official code, whose networks read raw observations. The statistics move at the end of an
    update: the update itself is made under those that the trajectories were imagined under. What the networks make of
    an observation moves with them, the policy included, beyond any bound on the change of an update: little with a
    long replay, more when episodes of another kind come in.
    """
    newest = normaliser.observations

    def refreshed(params: Params) -> Params:
        return params | {"observations": {"mean": newest.mean, "std": newest.std}}

    return state.replace(
        actor=refreshed(state.actor),
        critic=refreshed(state.critic),
        target_critic=refreshed(state.target_critic),
        averaged_actor=None if state.averaged_actor is None else refreshed(state.averaged_actor),
    )


def reality_weights(terminals: Array, train_terminal_transitions: bool) -> Array:
    """Weight transitions ``[B, H - 1] -> [B, H - 1]`` by the running product of ``1 - terminal``.

    The terminal transition itself has weight 0, as in the official code. With ``train_terminal_transitions`` only the
    transitions behind it have.
    """
    taken = happened(terminals)
    return taken if train_terminal_transitions else taken * (1.0 - terminals)


def standardise(advantages: Array) -> Array:
    """Standardise to mean 0 and unbiased standard deviation 1 over all entries, including those of weight 0."""
    return (advantages - jnp.mean(advantages)) / (jnp.std(advantages, ddof=1) + 1e-8)


def standardise_what_counts(advantages: Array, weights: Array) -> Array:
    """Standardise to mean 0 and unbiased standard deviation 1 over the entries that count (weights 0 to 1).

    DEVIATION from paper and official code, which count every entry (:func:`standardise`). Behind an imagined end the
    advantage is minus the value of a state that nobody reaches: a few entries in a hundred, two thirds of the variance.
    """
    total = jnp.sum(weights)
    mean = jnp.sum(weights * advantages) / jnp.maximum(total, 1.0)
    variance = jnp.sum(weights * jnp.square(advantages - mean)) / jnp.maximum(total - 1.0, 1.0)
    return (advantages - mean) / (jnp.sqrt(variance) + 1e-8)


def standardise_as_learnt(advantages: Array, weights: Array, config: A2CConfig) -> Array:
    """Standardise over all entries, as the searched step does, or over those that count, as passes do."""
    if config.learning_rates == "adapted":
        return standardise(advantages)
    return standardise_what_counts(advantages, weights)


def actor_loss(
    params: Params,
    policy_apply: PolicyApply,
    raw_obs: Array,
    actions: Array,
    advantages: Array,
    weights: Array,
    entropy_weight: float,
    clip_ratio: float = 0.0,
    log_prob_before: Array | None = None,
) -> tuple[Array, tuple[Array, Array, Array]]:
    """Compute the policy-gradient loss with entropy bonus, averaged over all transitions ``[...]``.

    ``raw_obs [..., O]``, ``actions [..., A]`` raw, ``advantages`` and ``weights [...]``. The average counts transitions
    of weight 0 too. Actions and advantages are data: no gradient flows through them. With a ``clip_ratio`` the loss is
    PPO's, against ``log_prob_before [...]`` of the policy that acted. Returns the loss and ``(mean, std,
    log-probability)`` of the policy.
    """
    actions, advantages = lax.stop_gradient((actions, advantages))
    mean, std = policy_apply(params, raw_obs)
    # Of actions as sampled. Squashing them (env.actions) would subtract a term that does not depend on the parameters:
    # it changes neither this gradient nor a ratio of probabilities.
    log_prob = gaussian.log_prob(mean, std, actions)
    if clip_ratio > 0:
        gains = clipped_gains(log_prob, lax.stop_gradient(log_prob_before), advantages, clip_ratio)
    else:
        gains = log_prob * advantages
    losses = -gains - entropy_weight * gaussian.entropy(std)
    return jnp.mean(losses * weights), (mean, std, log_prob)


def clipped_gains(log_prob: Array, log_prob_before: Array, advantages: Array, clip_ratio: float) -> Array:
    """Compute PPO's clipped surrogate of every transition (Schulman et al. 2017, arXiv 1707.06347, Eq. 7).

    DEVIATION from paper and official code, which bound the change of an update by the line search alone.
    """
    ratio = jnp.exp(log_prob - log_prob_before)
    clipped = jnp.clip(ratio, 1.0 - clip_ratio, 1.0 + clip_ratio)
    return jnp.minimum(ratio * advantages, clipped * advantages)


def critic_loss(
    params: Params, value_apply: ValueApply, raw_obs: Array, targets: Array, weights: Array
) -> tuple[Array, Array]:
    """Compute half the squared error to ``targets [B, H - 1]``, averaged over all transitions; and the values."""
    values = value_apply(params, raw_obs)
    losses = 0.5 * jnp.square(lax.stop_gradient(targets) - values)
    return jnp.mean(losses * weights), values


def clip_by_norm(gradients: Params, max_norm: float) -> tuple[Params, Array]:
    """Scale gradients to a joint norm of at most ``max_norm``; also return their norm before."""
    norm = optax.tree.norm(gradients)
    scale = jnp.minimum(1.0, max_norm / (norm + 1e-6))  # 1e-6 as in PyTorch's clip_grad_norm_
    return jax.tree.map(lambda g: g * scale, gradients), norm


def adam_direction(gradients: Params, adam: Any) -> tuple[Params, Any]:
    """Return Adam's step for a learning rate of 1 (to be subtracted), and Adam's next state."""
    # optax raises its decay rates to an integer power, which the strict dtype promotion of our tests forbids.
    with jax.numpy_dtype_promotion("standard"):
        return _ADAM.update(gradients, adam)


def adamw_step(params: Params, direction: Params, learning_rate: Array | float, weight_decay: float) -> Params:
    """Step ``params`` along ``direction``; the decoupled weight decay scales with the learning rate too."""
    return jax.tree.map(lambda p, d: p * (1.0 - learning_rate * weight_decay) - learning_rate * d, params, direction)


def _actor(spec: EnvSpec, config: A2CConfig, precision: str) -> Actor:
    return Actor(spec.action_size, config.hidden_size, config.initial_std, config.min_std, precision)


def _move_value_units(state: A2CState, batch: Batch) -> A2CState:
    """Move the units of critic and target critic to the newest targets; the values of both stay.

    DEVIATION from paper and official code, whose critic predicts raw returns.
    """
    units = value_units.moved(state.critic["values"], batch.targets, batch.weights)
    return state.replace(
        critic=value_units.in_units(state.critic, units),
        target_critic=value_units.in_units(state.target_critic, units),
    )


def _take_searched_step(
    state: A2CState,
    batch: Batch,
    policy_apply: PolicyApply,
    value_apply: ValueApply,
    config: A2CConfig,
    progress: Array | float,
) -> tuple[A2CState, Metrics]:
    """Update the critic, take the actor's one step of searched length, and adapt the next search's first rate."""
    target = target_change_at(config, progress)
    critic, critic_adam, values, critic_metrics = _update_critic(state, value_apply, batch, config)
    actor, actor_adam, first_change, actor_metrics = _update_actor(state, policy_apply, batch, config, target)
    log_actor_lr, log_actor_lr_adam = _adapt_learning_rate(state, first_change, config, target)
    state = state.replace(
        actor=actor,
        critic=critic,
        actor_adam=actor_adam,
        critic_adam=critic_adam,
        log_actor_lr=log_actor_lr,
        log_actor_lr_adam=log_actor_lr_adam,
    )
    return state, critic_metrics | _value_metrics(values, batch) | actor_metrics


def _take_passes(
    state: A2CState,
    batch: Batch,
    policy_apply: PolicyApply,
    value_apply: ValueApply,
    config: A2CConfig,
    progress: Array | float,
    key: Array,
) -> tuple[A2CState, Metrics]:
    """Step critic and actor once for every minibatch of every pass, at learning rates that the policy does not change.

    DEVIATION from paper and official code, which take one step per update and search for its length. Advantages are
    computed once and standardised within each minibatch, as PPO implementations do (Stable-Baselines3, CleanRL), those
    behind an imagined end left out.
    """
    scale = 1.0 - jnp.clip(progress, 0.0, 1.0) if config.learning_rates == "falling" else 1.0
    mean, std = policy_apply(state.actor, batch.observations)
    log_prob = gaussian.log_prob(mean, std, batch.actions)
    values = value_apply(state.critic, batch.observations)
    flat, log_probs = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), (batch, log_prob))

    def step(state: A2CState, rows: Array) -> tuple[A2CState, Metrics]:
        part, before = jax.tree.map(lambda x: x[rows], (flat, log_probs))
        critic, critic_adam, _, critic_metrics = _update_critic(state, value_apply, part, config, scale)
        actor, actor_adam, actor_metrics = _step_actor(state, policy_apply, part, before, config, scale)
        state = state.replace(actor=actor, critic=critic, actor_adam=actor_adam, critic_adam=critic_adam)
        return state, critic_metrics | actor_metrics

    rows = shuffled_minibatches(key, log_probs.shape[0], config.epochs, config.minibatches)
    state, steps = lax.scan(step, state, rows)
    metrics = {name: jnp.mean(x) for name, x in steps.items()}
    metrics |= _value_metrics(values, batch) | _policy_metrics(mean, std, batch.actions)
    after = gaussian.log_prob(*policy_apply(state.actor, batch.observations), batch.actions)
    metrics["agent/change_final"] = jnp.mean(jnp.abs(log_prob - after))
    metrics["agent/learning_rate"] = jnp.float32(config.max_actor_lr) * scale
    return state, metrics


def _update_critic(
    state: A2CState, value_apply: ValueApply, batch: Batch, config: A2CConfig, scale: Array | float = 1.0
) -> tuple[Params, Any, Array, Metrics]:
    """Take ``critic_updates`` AdamW steps on the same targets; values and metrics are those before the first step."""

    def loss_of(params: Params) -> tuple[Array, tuple[Array, Array]]:
        critic = state.critic | params
        loss, values = critic_loss(critic, value_apply, batch.observations, batch.targets, batch.weights)
        if config.value_scale == "running":
            return loss / jnp.square(critic["values"]["std"]), (loss, values)
        return loss, (loss, values)

    def step(carry: tuple[Params, Any], _: None) -> tuple[tuple[Params, Any], tuple[Array, Array, Array]]:
        params, adam = carry
        (_, (loss, values)), gradients = jax.value_and_grad(loss_of, has_aux=True)(params)
        gradients, norm = clip_by_norm(gradients, config.grad_clip)
        direction, adam = adam_direction(gradients, adam)
        params = adamw_step(params, direction, config.critic_lr * scale, config.weight_decay)
        return (params, adam), (loss, values, norm)

    start = (learnt(state.critic), state.critic_adam)
    (critic, adam), history = lax.scan(step, start, None, length=config.critic_updates)
    loss, values, norm = jax.tree.map(lambda x: x[0], history)
    return state.critic | critic, adam, values, {"agent/critic_loss": loss, "agent/critic_gradient_norm": norm}


def _value_metrics(values: Array, batch: Batch) -> Metrics:
    return {
        "agent/explained_variance": _explained_variance(batch.targets, values, batch.weights),
        "agent/value_first": jnp.mean(values[:, 0]),
        "agent/value_mean": jnp.mean(values),
    }


def _actor_direction(
    state: A2CState,
    policy_apply: PolicyApply,
    batch: Batch,
    config: A2CConfig,
    log_prob_before: Array | None = None,
) -> tuple[Params, Any, tuple[Array, Array, Array], Metrics]:
    """Return Adam's direction and next state; mean, std and log-probability of the policy; loss and gradient norm."""
    advantages = standardise_as_learnt(batch.advantages, batch.weights, config)

    def loss_of(params: Params) -> tuple[Array, tuple[Array, Array, Array]]:
        data = (batch.observations, batch.actions, advantages, batch.weights)
        ratio = (config.clip_ratio, log_prob_before)
        return actor_loss(state.actor | params, policy_apply, *data, config.entropy_weight, *ratio)

    (loss, policy), gradients = jax.value_and_grad(loss_of, has_aux=True)(learnt(state.actor))
    network_gradients, norm = clip_by_norm(gradients["network"], config.grad_clip)
    gradients = {"network": network_gradients, "log_std": gradients["log_std"]}  # the log-std's is not clipped
    direction, adam = adam_direction(gradients, state.actor_adam)
    return direction, adam, policy, {"agent/actor_loss": loss, "agent/actor_gradient_norm": norm}


def _update_actor(
    state: A2CState, policy_apply: PolicyApply, batch: Batch, config: A2CConfig, target_change: Array | float
) -> tuple[Params, Any, Array, Metrics]:
    """Take one AdamW step of searched length; return actor, Adam's state, the change of the first try, metrics."""
    # DEVIATION from the official code, where every retry advances Adam's moments again and starts from the log-std of
    # the last try: Adam's direction is computed once, and the search moves all parameters along it.
    direction, adam, (mean, std, log_prob), metrics = _actor_direction(state, policy_apply, batch, config)

    def step_to(learning_rate: Array) -> Params:
        return state.actor | adamw_step(learnt(state.actor), direction, learning_rate, config.weight_decay)

    def change_at(learning_rate: Array) -> Array:
        new_mean, new_std = policy_apply(step_to(learning_rate), batch.observations)
        return jnp.mean(jnp.abs(log_prob - gaussian.log_prob(new_mean, new_std, batch.actions)))

    searched = search(change_at, jnp.exp(state.log_actor_lr), config, target_change)
    metrics |= _policy_metrics(mean, std, batch.actions)
    metrics |= {
        "agent/change_first": searched.first_change,
        "agent/change_final": searched.change,
        "agent/search_steps": searched.retries + 1,
        "agent/learning_rate": searched.learning_rate,
    }
    return step_to(searched.learning_rate), adam, searched.first_change, metrics


def _step_actor(
    state: A2CState,
    policy_apply: PolicyApply,
    batch: Batch,
    log_prob_before: Array,
    config: A2CConfig,
    scale: Array | float,
) -> tuple[Params, Any, Metrics]:
    """Take one AdamW step on a minibatch; ``log_prob_before [M]`` is of the policy that acted."""
    direction, adam, (_, _, log_prob), metrics = _actor_direction(state, policy_apply, batch, config, log_prob_before)
    actor = adamw_step(learnt(state.actor), direction, config.max_actor_lr * scale, config.weight_decay)
    if config.clip_ratio > 0:
        outside = jnp.abs(jnp.exp(log_prob - log_prob_before) - 1.0) > config.clip_ratio
        metrics["agent/clipped_share"] = jnp.mean(outside.astype(jnp.float32))
    return state.actor | actor, adam, metrics


def _policy_metrics(mean: Array, std: Array, actions: Array) -> Metrics:
    standardised = (actions - mean) / std
    return {
        "agent/entropy": jnp.mean(gaussian.entropy(std)),
        "agent/std": jnp.mean(std),
        "agent/standardised_action_mean": jnp.mean(standardised),
        "agent/standardised_action_std": jnp.mean(jnp.std(standardised, axis=(0, 1), ddof=1)),
    }


def _adapt_learning_rate(
    state: A2CState, first_change: Array, config: A2CConfig, target_change: Array | float
) -> tuple[Array, Any]:
    """Take one AdamW step on the log learning rate, down where the first try changed too much; at most the maximum."""
    direction, adam = adam_direction(first_change - target_change, state.log_actor_lr_adam)
    log_lr = adamw_step(state.log_actor_lr, direction, _LOG_LR_STEP, _LOG_LR_WEIGHT_DECAY)
    return jnp.minimum(log_lr, jnp.log(jnp.float32(config.max_actor_lr))), adam


def _explained_variance(targets: Array, values: Array, weights: Array) -> Array:
    """Return the share of the targets' weighted variance that the values explain; 1 is perfect."""

    def variance(x: Array) -> Array:
        total = jnp.maximum(jnp.sum(weights), 1e-8)
        mean = jnp.sum(weights * x) / total
        return jnp.sum(weights * jnp.square(x - mean)) / total

    return 1.0 - variance(targets - values) / jnp.maximum(variance(targets), 1e-8)
