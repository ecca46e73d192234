"""Learn a policy from imagined trajectories by advantage actor-critic (paper, Algorithm 3, line 8; Appendix A).

The log-probability of the imagined actions is weighted by normalised advantages (GAE under an averaged target
critic). A line search picks the learning rate of each update so that the policy changes by a set amount.
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

from polygrad_jax.agents import gaussian
from polygrad_jax.agents.gae import gae
from polygrad_jax.agents.line_search import search
from polygrad_jax.config import A2CConfig, Config, EnvSpec
from polygrad_jax.networks.actor_critic import Actor, Critic
from polygrad_jax.types import (
    Agent,
    Array,
    Experience,
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

    actor: Params  # {"network": ..., "log_std": [A]}
    critic: Params
    target_critic: Params
    actor_adam: Any
    critic_adam: Any
    log_actor_lr: Array  # scalar: log of the learning rate that the next search starts from
    log_actor_lr_adam: Any
    averaged_actor: Params | None = None  # exponential average of ``actor``, where ``actor_ema`` asks for one


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
        del model_state, key
        # In float32 whatever the precision: the search measures changes of the log-probability of about 0.01.
        target = target_change_at(config.a2c, experience.progress)
        return update(state, lax.stop_gradient(experience.imagined), config.a2c, spec, target_change=target)

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
    log_actor_lr = jnp.log(jnp.float32(config.max_actor_lr))
    return A2CState(
        actor=actor,
        critic=critic,
        target_critic=jax.tree.map(jnp.copy, critic),  # a copy: a state whose buffers are shared cannot be donated
        actor_adam=_ADAM.init(actor),
        critic_adam=_ADAM.init(critic),
        log_actor_lr=log_actor_lr,
        log_actor_lr_adam=_ADAM.init(log_actor_lr),
        averaged_actor=jax.tree.map(jnp.copy, actor) if config.actor_ema > 0 else None,
    )


@functools.lru_cache
def make_policy_apply(spec: EnvSpec, config: A2CConfig, precision: str = "float32") -> PolicyApply:
    """Make ``(state.actor, raw_obs [..., O]) -> (mean [..., A], std [..., A])``; equal arguments give one object."""
    actor = _actor(spec, config, precision)
    return lambda params, raw_obs: actor.apply({"params": params}, raw_obs)


@functools.lru_cache
def make_value_apply(config: A2CConfig, precision: str = "float32") -> ValueApply:
    """Make ``(state.critic, raw_obs [..., O]) -> value [...]``, in raw reward; equal arguments give one object."""
    critic = Critic(config.hidden_size, precision)
    return lambda params, raw_obs: critic.apply({"params": params}, raw_obs)


def update(
    state: A2CState,
    segment: Segment,
    config: A2CConfig,
    spec: EnvSpec,
    precision: str = "float32",
    target_change: Array | float | None = None,
) -> tuple[A2CState, Metrics]:
    """Make one policy update on ``segment [B, H]`` in raw units (paper, Algorithm 3, line 8).

    ``config``, ``spec`` and ``precision`` are static. The order is: target critic, advantages, critic, actor with its
    line search, and the learning rate from which the next search starts. ``target_change`` replaces the config's
    (:func:`target_change_at`).
    """
    chex.assert_shape(segment.observations, (None, None, spec.observation_size), custom_message="observations")
    shape = segment.observations.shape[:2]
    chex.assert_shape(segment.actions, (*shape, spec.action_size), custom_message="actions")
    chex.assert_shape([segment.rewards, segment.terminals], shape, custom_message="rewards, terminals")
    target = config.target_change if target_change is None else target_change
    policy_apply = make_policy_apply(spec, config, precision)
    value_apply = make_value_apply(config, precision)
    raw_obs, actions = segment.observations[:, :-1], segment.actions[:, :-1]

    target_critic = follow(state.target_critic, state.critic, config.target_critic_ema)
    values = value_apply(target_critic, segment.observations)
    advantages, targets = gae(segment.rewards, values, segment.terminals, config.gamma, config.gae_lambda)
    weights = reality_weights(segment.terminals[:, :-1], config.train_terminal_transitions)
    scaled = standardise(advantages)

    critic, critic_adam, critic_metrics = _update_critic(state, value_apply, raw_obs, targets, weights, config)
    actor, actor_adam, first_change, actor_metrics = _update_actor(
        state, policy_apply, raw_obs, actions, scaled, weights, config, target
    )
    log_actor_lr, log_actor_lr_adam = _adapt_learning_rate(state, first_change, config, target)

    metrics = critic_metrics | actor_metrics
    metrics["agent/advantage_std"] = jnp.std(advantages, ddof=1)
    new_state = A2CState(
        actor=actor,
        critic=critic,
        target_critic=target_critic,
        actor_adam=actor_adam,
        critic_adam=critic_adam,
        log_actor_lr=log_actor_lr,
        log_actor_lr_adam=log_actor_lr_adam,
        averaged_actor=follow(state.averaged_actor, actor, config.actor_ema) if config.actor_ema > 0 else None,
    )
    return new_state, metrics


def target_change_at(config: A2CConfig, progress: Array) -> Array | float:
    """Interpolate linearly from ``target_change`` to ``final_target_change`` at ``progress`` (0 to 1, clipped).

    DEVIATION from paper and official code, whose target is constant: where the gradient is mostly noise, steps of
    constant size carry a policy away from a good solution.
    """
    if config.final_target_change == 0:
        return config.target_change
    progress = jnp.clip(progress, 0.0, 1.0)
    return config.target_change + progress * (config.final_target_change - config.target_change)


def follow(target: Params, source: Params, decay: float) -> Params:
    """Return the exponential average ``decay * target + (1 - decay) * source``."""
    return jax.tree.map(lambda t, s: decay * t + (1.0 - decay) * s, target, source)


def reality_weights(terminals: Array, train_terminal_transitions: bool) -> Array:
    """Weight transitions ``[B, H - 1] -> [B, H - 1]`` by the running product of ``1 - terminal``.

    The terminal transition itself has weight 0, as in the official code. With ``train_terminal_transitions`` only the
    transitions behind it have.
    """
    alive = jnp.cumprod(1.0 - terminals, axis=1)
    if train_terminal_transitions:
        return jnp.concatenate([jnp.ones_like(alive[:, :1]), alive[:, :-1]], axis=1)
    return alive


def standardise(advantages: Array) -> Array:
    """Standardise to mean 0 and unbiased standard deviation 1 over all entries, including those of weight 0."""
    return (advantages - jnp.mean(advantages)) / (jnp.std(advantages, ddof=1) + 1e-8)


def actor_loss(
    params: Params,
    policy_apply: PolicyApply,
    raw_obs: Array,
    actions: Array,
    advantages: Array,
    weights: Array,
    entropy_weight: float,
) -> tuple[Array, tuple[Array, Array, Array]]:
    """Compute the policy-gradient loss with entropy bonus, averaged over all B * (H - 1) transitions.

    ``raw_obs [B, H - 1, O]``, ``actions [B, H - 1, A]`` raw, ``advantages`` and ``weights [B, H - 1]``. The average
    counts transitions of weight 0 too. Actions and advantages are data: no gradient flows through them. Returns the
    loss and ``(mean, std, log-probability)`` of the policy.
    """
    actions, advantages = lax.stop_gradient((actions, advantages))
    mean, std = policy_apply(params, raw_obs)
    # Of actions as sampled. Squashing them (env.actions) would subtract a term that does not depend on the parameters:
    # it changes neither this gradient nor a ratio of probabilities.
    log_prob = gaussian.log_prob(mean, std, actions)
    losses = -log_prob * advantages - entropy_weight * gaussian.entropy(std)
    return jnp.mean(losses * weights), (mean, std, log_prob)


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


def _update_critic(
    state: A2CState, value_apply: ValueApply, raw_obs: Array, targets: Array, weights: Array, config: A2CConfig
) -> tuple[Params, Any, Metrics]:
    """Take ``critic_updates`` AdamW steps on the same targets; the metrics are of the critic before the first step."""

    def step(carry: tuple[Params, Any], _: None) -> tuple[tuple[Params, Any], tuple[Array, Array, Array]]:
        params, adam = carry
        grad = jax.value_and_grad(critic_loss, has_aux=True)
        (loss, values), gradients = grad(params, value_apply, raw_obs, targets, weights)
        gradients, norm = clip_by_norm(gradients, config.grad_clip)
        direction, adam = adam_direction(gradients, adam)
        return (adamw_step(params, direction, config.critic_lr, config.weight_decay), adam), (loss, values, norm)

    start = (state.critic, state.critic_adam)
    (critic, adam), history = lax.scan(step, start, None, length=config.critic_updates)
    loss, values, norm = jax.tree.map(lambda x: x[0], history)
    metrics = {
        "agent/critic_loss": loss,
        "agent/critic_gradient_norm": norm,
        "agent/explained_variance": _explained_variance(targets, values, weights),
        "agent/value_first": jnp.mean(values[:, 0]),
        "agent/value_mean": jnp.mean(values),
    }
    return critic, adam, metrics


def _update_actor(
    state: A2CState,
    policy_apply: PolicyApply,
    raw_obs: Array,
    actions: Array,
    advantages: Array,
    weights: Array,
    config: A2CConfig,
    target_change: Array | float,
) -> tuple[Params, Any, Array, Metrics]:
    """Take one AdamW step of searched length; return actor, Adam's state, the change of the first try, metrics."""
    grad = jax.value_and_grad(actor_loss, has_aux=True)
    (loss, (mean, std, log_prob)), gradients = grad(
        state.actor, policy_apply, raw_obs, actions, advantages, weights, config.entropy_weight
    )
    network_gradients, norm = clip_by_norm(gradients["network"], config.grad_clip)
    gradients = {"network": network_gradients, "log_std": gradients["log_std"]}  # the log-std's is not clipped
    # DEVIATION from the official code, where every retry advances Adam's moments again and starts from the log-std of
    # the last try: Adam's direction is computed once, and the search moves all parameters along it.
    direction, adam = adam_direction(gradients, state.actor_adam)

    def step_to(learning_rate: Array) -> Params:
        return adamw_step(state.actor, direction, learning_rate, config.weight_decay)

    def change_at(learning_rate: Array) -> Array:
        new_mean, new_std = policy_apply(step_to(learning_rate), raw_obs)
        return jnp.mean(jnp.abs(log_prob - gaussian.log_prob(new_mean, new_std, actions)))

    searched = search(change_at, jnp.exp(state.log_actor_lr), config, target_change)
    standardised = (actions - mean) / std
    metrics = {
        "agent/actor_loss": loss,
        "agent/actor_gradient_norm": norm,
        "agent/entropy": jnp.mean(gaussian.entropy(std)),
        "agent/std": jnp.mean(std),
        "agent/change_first": searched.first_change,
        "agent/change_final": searched.change,
        "agent/search_steps": searched.retries + 1,
        "agent/learning_rate": searched.learning_rate,
        "agent/standardised_action_mean": jnp.mean(standardised),
        "agent/standardised_action_std": jnp.mean(jnp.std(standardised, axis=(0, 1), ddof=1)),
    }
    return step_to(searched.learning_rate), adam, searched.first_change, metrics


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
