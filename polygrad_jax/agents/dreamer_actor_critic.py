"""Learn a policy in latent space as Dreamer-v3 does (Hafner et al. 2023, arXiv 2301.04104v1, 'Actor Critic Learning').

The actor-critic knows two functions of the world model: one takes an imagined step, the other turns a latent state into
features. The critic learns from lambda returns of imagined trajectories. The actor learns from the same returns,
divided by a running distance between two of their percentiles.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax
from jax import lax

from polygrad_jax.agents import gaussian
from polygrad_jax.config import Config, ConfigError, DreamerAgentConfig, EnvSpec
from polygrad_jax.networks.latent_actor_critic import LatentActor
from polygrad_jax.networks.silu_mlp import SiluHead
from polygrad_jax.networks.symlog import BINS, two_hot, two_hot_mean
from polygrad_jax.optimising import exponential_average, stepped
from polygrad_jax.types import Agent, Array, Experience, Memory, Metrics, Normaliser, Params, Segment, WorldModel

RETURN_LAMBDA = 0.95
"""Lambda of the returns (published, as all constants here)."""
MIN_STD, MAX_STD = 0.1, 1.0
"""Standard deviations of the policy, raw action units."""
ADAM_EPS = 1e-5
GRADIENT_CLIP = 100.0
"""Largest gradient norm of actor and critic, separately."""
SLOW_CRITIC_RATE = 0.02
"""Rate of the exponential average of the critic, per update."""
SLOW_CRITIC_WEIGHT = 1.0
"""Weight of the critic's loss towards the averaged critic."""
LOW_PERCENTILE, HIGH_PERCENTILE = 5.0, 95.0
"""Advantages are divided by the distance between these percentiles of the returns, averaged over updates."""
RETURN_DECAY = 0.99
"""Decay of the averaged percentiles."""
LEAST_SCALE = 1.0
"""Least divisor of the advantages."""

ImagineStep = Callable[[Any, Array, Array], tuple[Any, Array, Array]]
"""``(latents [B], actions [B, A], key) -> (next latents [B], rewards [B] raw, continues [B])``; actions as sampled."""

Features = Callable[[Any], Array]
"""``latents [...] -> [..., F]``."""


@flax.struct.dataclass
class LatentPolicyState:
    """Everything that the agent keeps from one update to the next."""

    actor: Params
    critic: Params
    slow_critic: Params
    actor_optimiser: Any
    critic_optimiser: Any
    low_return: Array  # scalar: average of the low percentile of returns
    high_return: Array  # scalar: average of the high one


@flax.struct.dataclass
class Imagined:
    """Trajectories of T steps, the axis of time in front."""

    features: Array  # [T + 1, B, F]
    actions: Array  # [T, B, A] raw, as sampled
    rewards: Array  # [T, B] raw, of the step from t to t + 1
    continues: Array  # [T, B] 0 or 1: that step did not end the episode


def make_dreamer_agent(config: Config, spec: EnvSpec, world_model: WorldModel) -> Agent:
    """Make Dreamer-v3's actor-critic, which learns and acts in latent states, behind the protocol of :class:`Agent`.

    Raises:
      ConfigError: the world model has no latent states.
    """
    latent, settings = world_model.latent, config.dreamer_agent
    if latent is None:
        raise ConfigError(f"agent is dreamer with world_model {config.world_model}; allowed: world_model dreamer")
    choose_action = make_policy(spec.action_size, settings, config.precision)

    def imagine_segment(
        state: LatentPolicyState, model_state: Any, context: Segment, normaliser: Normaliser, key: Array
    ) -> tuple[Segment, Metrics]:
        def choose(seen: Any, raw_obs: Array) -> tuple[Array, Array]:
            return choose_action(state.actor, latent.features(seen))

        return latent.imagine(latent.params_of(model_state), choose, context, key), {}

    def learn(
        state: LatentPolicyState, model_state: Any, experience: Experience, key: Array
    ) -> tuple[LatentPolicyState, Metrics]:
        # DEVIATION from Dreamer-v3, which imagines from the streams that its model has just learnt from: own streams.
        params = latent.params_of(model_state)
        observe_key, imagine_key = jax.random.split(key)
        latents, real = latent.observe(params, experience.windows, observe_key)
        starts = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), latents)
        step = functools.partial(latent.step, params)
        arguments = (starts, real.reshape(-1), step, latent.features, settings, spec.action_size, imagine_key)
        return update(state, *arguments, config.precision)

    def acting(state: LatentPolicyState, model_state: Any) -> Params:
        return {"actor": state.actor, "model": latent.params_of(model_state)}

    def decide(params: Params, memory: Memory, raw_obs: Array, key: Array) -> tuple[Array, Array, Memory]:
        before = None if memory is None else (latent.unpack(memory), memory["action"])
        seen = latent.see(params["model"], before, raw_obs, key)
        return *choose_action(params["actor"], latent.features(seen)), latent.pack(seen)

    return Agent(
        init=lambda key: init(key, latent.feature_size, spec.action_size, settings),
        imagine=imagine_segment,
        update=learn,
        policy=lambda state: None,
        evaluated_policy=lambda state: None,
        acting=acting,
        evaluated=acting,
        decide=decide,
        remember=lambda memory, actions: memory | {"action": actions},
        trajectories=0,
        windows=(config.dreamer.batch_size, config.dreamer.window),
    )


@functools.lru_cache
def make_policy(action_size: int, config: DreamerAgentConfig, precision: str = "float32"):
    """Make ``(state.actor, features [..., F]) -> (mean [..., A], std [..., A])``; equal arguments give one object."""
    actor = LatentActor(action_size, config.layers, config.units, MIN_STD, MAX_STD, precision)
    return lambda params, read: actor.apply({"params": params}, read)


@functools.lru_cache
def make_critic(config: DreamerAgentConfig, precision: str = "float32"):
    """Make ``(state.critic, features [..., F]) -> logits [..., bins]`` of a two-hot value (see ``two_hot_mean``)."""
    critic = _critic(config, precision)
    return lambda params, read: critic.apply({"params": params}, read)


def init(
    key: Array, feature_size: int, action_size: int, config: DreamerAgentConfig, precision: str = "float32"
) -> LatentPolicyState:
    """Make the state before the first update: the critic outputs 0 everywhere, and so does its average."""
    actor_key, critic_key = jax.random.split(key)
    read = jnp.zeros((1, feature_size))
    module = LatentActor(action_size, config.layers, config.units, MIN_STD, MAX_STD, precision)
    actor = module.init(actor_key, read)["params"]
    critic = _critic(config, precision).init(critic_key, read)["params"]
    optimiser = _optimiser(config)
    return LatentPolicyState(
        actor=actor,
        critic=critic,
        slow_critic=jax.tree.map(jnp.copy, critic),
        actor_optimiser=optimiser.init(actor),
        critic_optimiser=optimiser.init(critic),
        low_return=jnp.float32(0.0),
        high_return=jnp.float32(0.0),
    )


def update(
    state: LatentPolicyState,
    starts: Any,
    real: Array,
    imagine_step: ImagineStep,
    features: Features,
    config: DreamerAgentConfig,
    action_size: int,
    key: Array,
    precision: str = "float32",
) -> tuple[LatentPolicyState, Metrics]:
    """Take one gradient step of actor and critic on trajectories imagined from ``starts [B]``.

    ``real [B]`` is 0 for starts that do not count (padding behind a terminal), else 1. All arguments but ``state``,
    ``starts``, ``real`` and ``key`` are static; ``imagine_step`` may close over traced parameters of the world model.
    """
    policy, critic = make_policy(action_size, config, precision), make_critic(config, precision)

    def actor_loss(actor: Params) -> tuple[Array, tuple[Any, ...]]:
        through_dynamics = config.gradient == "backprop"
        acting = actor if through_dynamics else lax.stop_gradient(actor)
        imagined = imagine(policy, acting, starts, imagine_step, features, config.horizon, key)
        values = two_hot_mean(critic(state.critic, imagined.features))
        returns = lambda_returns(
            imagined.rewards, values, imagined.continues, config.gamma, RETURN_LAMBDA
        )
        weights = step_weights(real, imagined.continues, config.gamma)
        low, high = average_percentiles(state, returns, real)
        advantages = (returns - values[:-1]) / jnp.maximum(high - low, LEAST_SCALE)

        imagined_only = lax.stop_gradient(imagined)
        mean, std = policy(actor, imagined_only.features[:-1])
        entropy = gaussian.entropy(std)
        log_prob = gaussian.log_prob(mean, std, imagined_only.actions)
        gain = advantages if through_dynamics else log_prob * lax.stop_gradient(advantages)
        by_step = -gain - config.entropy_weight * entropy
        loss = weighted_mean(by_step, weights, real)
        entropy_mean = jnp.sum(weights * entropy) / jnp.sum(weights)
        return loss, (imagined_only, lax.stop_gradient(returns), weights, low, high, entropy_mean)

    grad = jax.value_and_grad(actor_loss, has_aux=True)
    (loss, (imagined, returns, weights, low, high, entropy)), gradients = grad(state.actor)
    actor, actor_optimiser, actor_norm = _step(gradients, state.actor, state.actor_optimiser, config)

    def loss_of_critic(params: Params) -> Array:
        return critic_loss(params, state.slow_critic, critic, imagined.features[:-1], returns, weights, real)

    value, gradients = jax.value_and_grad(loss_of_critic)(state.critic)
    new_critic, critic_optimiser, critic_norm = _step(gradients, state.critic, state.critic_optimiser, config)
    alive = step_weights(real, imagined.continues, 1.0)
    metrics = {
        "agent/actor_loss": loss,
        "agent/critic_loss": value,
        "agent/actor_gradient_norm": actor_norm,
        "agent/critic_gradient_norm": critic_norm,
        "agent/entropy": entropy,
        "agent/return_mean": jnp.sum(alive * returns) / jnp.sum(alive),
        "agent/return_scale": jnp.maximum(high - low, LEAST_SCALE),
    }
    return LatentPolicyState(
        actor=actor,
        critic=new_critic,
        slow_critic=exponential_average(state.slow_critic, new_critic, 1.0 - SLOW_CRITIC_RATE),
        actor_optimiser=actor_optimiser,
        critic_optimiser=critic_optimiser,
        low_return=low,
        high_return=high,
    ), metrics


def imagine(
    policy: Callable[..., tuple[Array, Array]],
    actor: Params,
    starts: Any,
    imagine_step: ImagineStep,
    features: Features,
    horizon: int,
    key: Array,
) -> Imagined:
    """Imagine ``horizon`` (T) steps from latents ``starts [B]``; no gradient flows through the actor's input."""

    def step(latent: Any, key: Array) -> tuple[Any, tuple[Array, ...]]:
        action_key, step_key = jax.random.split(key)
        read = features(latent)
        mean, std = policy(actor, lax.stop_gradient(read))
        action = mean + std * jax.random.normal(action_key, mean.shape)
        latent, reward, continues = imagine_step(latent, action, step_key)
        return latent, (read, action, reward, continues)

    last, (read, actions, rewards, continues) = lax.scan(step, starts, jax.random.split(key, horizon))
    return Imagined(jnp.concatenate([read, features(last)[None]]), actions, rewards, continues)


def lambda_returns(rewards: Array, values: Array, continues: Array, gamma: float, lam: float) -> Array:
    """Compute the returns ``[T, B]`` of ``rewards, continues [T, B]`` and ``values [T + 1, B]``.

    return_t = r_t + gamma c_t ((1 - lam) V_{t+1} + lam return_{t+1}), with return_T = V_T.
    """
    discounts = gamma * continues

    def backwards(later: Array, step: tuple[Array, Array, Array]) -> tuple[Array, Array]:
        reward, discount, value = step
        lambda_return = reward + discount * ((1.0 - lam) * value + lam * later)
        return lambda_return, lambda_return

    return lax.scan(backwards, values[-1], (rewards, discounts, values[1:]), reverse=True)[1]


def step_weights(real: Array, continues: Array, gamma: float) -> Array:
    """Weight step t by gamma^t while the imagined episode lasts: ``[T, B]``, from ``real [B]`` starts."""
    before = jnp.cumprod(gamma * continues[:-1], axis=0)
    return lax.stop_gradient(real[None] * jnp.concatenate([jnp.ones_like(continues[:1]), before]))


def weighted_mean(x: Array, weights: Array, real: Array) -> Array:
    """Average ``weights * x [T, B]`` over all steps of all starts that count."""
    return jnp.sum(weights * x) / (x.shape[0] * real.sum())


def percentile(x: Array, counts: Array, percent: float) -> Array:
    """Return the percentile, linearly interpolated, of the entries of ``x [M]`` where ``counts [M]`` is 1."""
    ordered = jnp.sort(jnp.where(counts > 0, x, jnp.inf))
    last = jnp.maximum(counts.sum() - 1.0, 0.0)
    place = percent / 100.0 * last
    below = jnp.floor(place)
    low, high = ordered[below.astype(jnp.int32)], ordered[jnp.minimum(below + 1.0, last).astype(jnp.int32)]
    return low + (place - below) * (high - low)


def average_percentiles(state: LatentPolicyState, returns: Array, real: Array) -> tuple[Array, Array]:
    """Update the averages of the low and high percentile by ``returns [T, B]``; both start at 0, uncorrected."""
    returns = lax.stop_gradient(returns)
    counts = jnp.broadcast_to(real[None], returns.shape).reshape(-1)

    def follow_percentile(average: Array, percent: float) -> Array:
        new = percentile(returns.reshape(-1), counts, percent)
        return RETURN_DECAY * average + (1.0 - RETURN_DECAY) * new

    low = follow_percentile(state.low_return, LOW_PERCENTILE)
    return low, follow_percentile(state.high_return, HIGH_PERCENTILE)


def critic_loss(
    params: Params,
    slow_params: Params,
    critic: Callable[[Params, Array], Array],
    read: Array,
    returns: Array,
    weights: Array,
    real: Array,
) -> Array:
    """Compute the cross-entropy towards two-hot ``returns [T, B]`` and towards the values of the averaged critic."""
    log_probs = jax.nn.log_softmax(critic(params, read))
    slow = two_hot_mean(critic(slow_params, read))
    target = two_hot(returns, BINS) + SLOW_CRITIC_WEIGHT * two_hot(slow, BINS)
    return weighted_mean(-jnp.sum(lax.stop_gradient(target) * log_probs, axis=-1), weights, real)


def _critic(config: DreamerAgentConfig, precision: str) -> SiluHead:
    return SiluHead(BINS, config.layers, config.units, zero=True, precision=precision)


def _optimiser(config: DreamerAgentConfig) -> optax.GradientTransformation:
    adam = optax.adam(config.learning_rate, eps=ADAM_EPS)
    return optax.chain(optax.clip_by_global_norm(GRADIENT_CLIP), adam)


def _step(gradients: Params, params: Params, optimiser: Any, config: DreamerAgentConfig) -> tuple[Params, Any, Array]:
    """Take one clipped step of Adam: parameters, optimiser's state, and the gradients' norm before clipping."""
    return *stepped(_optimiser(config), gradients, params, optimiser), optax.tree.norm(gradients)
