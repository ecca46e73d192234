"""Learn a policy from gradients of values through a few steps of a differentiable model (SVG, Heess et al. 2015).

One gradient step draws start states, rolls the policy out from them for ``path_length`` steps of the model, and ends in
the Q functions' value:

    V(s_0) = sum_t gamma^t alive_t (r_t - temperature log pi(a_t | s_t)) + gamma^T alive_T (Q(s_T, a_T) - ...)

The actor climbs V, through the states; the Q functions learn their target at (s_0, a_0) from the same roll-out (model
value expansion, Feinberg et al. 2018; SAC's soft values, Haarnoja et al. 2018; the least of a random pair of target
networks, Chen et al. 2021). The scheme is that of DHMBPO (Kubo et al. 2025), which showed that start states must be
on-policy; PolyGRAD makes such states. Unlike there, values begin at 0 and their bounds hold 0, ends are learnt and
weigh by their probability (along imagined trajectories an end is what was imagined, without a gradient), and the model
learns a little at every step.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import optax
from jax import lax

from polygrad_jax.agents import gaussian
from polygrad_jax.agents.a2c import evaluated_actor
from polygrad_jax.config import Config, ConfigError, EnvSpec, Execution, ValueGradientConfig
from polygrad_jax.data.normaliser import executed, normalise_for_policy
from polygrad_jax.data.segment_masks import happened
from polygrad_jax.networks.state_gaussian_and_q import QFunction, StateGaussian
from polygrad_jax.optimising import exponential_average, stepped
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
    Prediction,
    Segment,
    WorldModel,
)

BOUND_RATE = 3e-4
"""Rate of the running averages of the least and the largest value that a state may have (DHMBPO)."""
REWARD_QUANTILES = (0.01, 0.99)
"""Of the soft rewards along a path; over ``1 - gamma`` they bound the values (DHMBPO)."""
INITIAL_TEMPERATURE = 0.1
"""Weight of the entropy at the start (DHMBPO)."""
LARGEST_NOISE = 3.0
"""Standard deviations within which an imagined action counts as drawn by the policy (the paper's clip, Eq. 11)."""
MIN_STD = 1e-5
"""Least std of the policy, raw action units."""
DISCOUNT_GROWS = (20_000, 40_000)
"""Gradient steps between which the discount factor grows from ``gamma`` to ``final_gamma``."""
PAIR = 2
"""Target networks of which a target takes the least."""
MAX_STD = 1.0
"""Of a Gaussian whose actions are clipped: its entropy grows with the std without bound, while the clipped actions stay
at the bounds. The entropy of squashed actions has a maximum, so that they need none."""


@flax.struct.dataclass
class ValueGradientState:
    """Everything that the agent keeps from one update to the next."""

    actor: Params  # {"network": ..., "observations": {"mean": [O], "std": [O]} of the replay}
    critic: Params  # every leaf [E, ...]
    target_critic: Params
    log_temperature: Array  # scalar
    value_bounds: Array  # [2] raw reward: the least and the largest value that a state may have
    updates: Array  # int32, gradient steps taken
    actor_adam: Any
    critic_adam: Any
    temperature_adam: Any
    averaged_actor: Params | None = None  # exponential average of ``actor``, where ``actor_ema`` asks for one


Step = Callable[[Array, Array, Array], Prediction]
"""``(raw_obs [B, O], raw actions [B, A], key) -> Prediction``: the differentiable model as it is now."""


class Path(NamedTuple):
    """A roll-out of T steps of the policy, the axis of time in front."""

    observations: Array  # [T + 1, B, O] raw
    actions: Array  # [T + 1, B, A] as executed
    log_probs: Array  # [T + 1, B]
    rewards: Array  # [T, B] raw
    alive: Array  # [T + 1, B] 1 until the episode has ended


def make_value_gradient(config: Config, spec: EnvSpec, world_model: WorldModel) -> Agent:
    """Make the agent behind the protocol of :class:`Agent`.

    Raises:
      ConfigError: the world model has no differentiable step, and the path needs one.
    """
    settings = config.value_gradient
    if world_model.step is None:
        raise ConfigError(f"agent is value_gradient with world_model {config.world_model}; allowed: one with a step")
    how = config.env.actions
    policy_apply = make_policy_apply(spec, settings, config.precision, how)
    acting_apply = make_policy_apply(spec, settings, "float32", how)
    imagines = settings.starts == "imagined"
    stored = settings.trajectories * (config.horizon if settings.starts == "replay" else 1)

    def imagine(
        state: ValueGradientState, model_state: Any, context: Segment, normaliser: Normaliser, key: Array
    ) -> tuple[Segment, Metrics]:
        return world_model.imagine(model_state, Policy(state.actor, policy_apply), context, normaliser, key)

    def learn(
        state: ValueGradientState, model_state: Any, experience: Experience, key: Array
    ) -> tuple[ValueGradientState, Metrics]:
        normaliser = experience.normaliser
        newest = normaliser.observations
        state = state.replace(actor=state.actor | {"observations": {"mean": newest.mean, "std": newest.std}})

        def step(raw_obs: Array, actions: Array, key: Array) -> Prediction:
            return world_model.step(lax.stop_gradient(model_state), raw_obs, actions, normaliser, key)

        start_key, update_key = jax.random.split(key)
        policy = Policy(state.actor, policy_apply)
        starts, weights = start_states(experience, policy, step, settings, config.horizon, start_key)
        lesson = Lesson(starts, weights, None)
        if settings.path == "imagined":
            lesson = along_imagined(lesson, lax.stop_gradient(experience.imagined), settings.path_length)
        critic = _critic(settings, config.precision)
        setting = Setting(step, settings, policy_apply, critic, spec.action_size, how)
        descend = functools.partial(update, lesson=lesson, setting=setting)
        state, history = lax.scan(descend, state, jax.random.split(update_key, settings.updates))
        metrics = jax.tree.map(lambda x: jnp.mean(x, axis=0), history)
        return state, metrics | {"agent/start_states": lesson.weights.sum()}

    def decide(params: Params, memory: Memory, raw_obs: Array, key: Array) -> tuple[Array, Array, Memory]:
        del memory, key
        return *acting_apply(params, raw_obs), None

    return Agent(
        init=lambda key: init(key, spec, settings),
        imagine=imagine,
        update=learn,
        policy=lambda state: Policy(state.actor, policy_apply),
        evaluated_policy=lambda state: Policy(evaluated_actor(state), policy_apply),
        acting=lambda state, model_state: state.actor,
        evaluated=lambda state, model_state: evaluated_actor(state),
        decide=decide,
        remember=lambda memory, actions: None,
        trajectories=settings.trajectories if imagines else 0,
        windows=None if imagines else (stored, 1),
    )


# --- the networks ----------------------------------------------------------------------------------------------------


def init(key: Array, spec: EnvSpec, config: ValueGradientConfig, precision: str = "float32") -> ValueGradientState:
    """Make the state before the first update; the target networks start as the Q functions."""
    actor_key, critic_key = jax.random.split(key)
    obs, actions = jnp.zeros((1, spec.observation_size)), jnp.zeros((1, spec.action_size))
    # Either way of executing actions has the same parameters.
    actor = _actor(spec, config, precision, "clipped").init(actor_key, obs)["params"]
    keys = jax.random.split(critic_key, config.critics)
    critic = jax.vmap(lambda key: _critic(config, precision).init(key, obs, actions)["params"])(keys)
    log_temperature = jnp.log(jnp.float32(INITIAL_TEMPERATURE))
    adam = optax.adam(config.learning_rate)
    identity = {"mean": jnp.zeros(spec.observation_size), "std": jnp.ones(spec.observation_size)}
    params = {"network": actor, "observations": identity}
    # Copies: a state whose buffers are shared cannot be donated.
    averaged = jax.tree.map(jnp.copy, params) if config.actor_ema > 0 else None
    return ValueGradientState(
        actor=params,
        averaged_actor=averaged,
        critic=critic,
        target_critic=jax.tree.map(jnp.copy, critic),
        log_temperature=log_temperature,
        value_bounds=jnp.zeros(2),
        updates=jnp.int32(0),
        actor_adam=adam.init(actor),
        critic_adam=adam.init(critic),
        temperature_adam=adam.init(log_temperature),
    )


@functools.lru_cache
def make_policy_apply(
    spec: EnvSpec, config: ValueGradientConfig, precision: str = "float32", actions: Execution = "clipped"
) -> PolicyApply:
    """Make ``(state.actor, raw_obs [..., O]) -> (mean [..., A], std [..., A])``; equal arguments give one object."""
    actor = _actor(spec, config, precision, actions)

    def apply(params: Params, raw_obs: Array) -> tuple[Array, Array]:
        normed_obs = normalise_for_policy(raw_obs, MeanStd(**params["observations"]))
        location, std = actor.apply({"params": params["network"]}, normed_obs)
        return mean_of(location, actions), std

    return apply


def _actor(spec: EnvSpec, config: ValueGradientConfig, precision: str, actions: Execution) -> StateGaussian:
    max_std = MAX_STD if actions == "clipped" else None
    return StateGaussian(spec.action_size, config.hidden_size, config.hidden_layers, MIN_STD, max_std, precision)


def _critic(config: ValueGradientConfig, precision: str) -> QFunction:
    return QFunction(config.hidden_size, config.hidden_layers, precision)


def mean_of(location: Array, how: Execution) -> Array:
    """Return the mean of the Gaussian over raw actions: within the bounds where actions are clipped."""
    return location if how == "squashed" else jnp.tanh(location)


def log_density(mean: Array, std: Array, raw_actions: Array, how: Execution) -> Array:
    """Return the log-density ``[...]`` of squashed actions ``[..., A]`` as executed, of clipped ones as sampled."""
    log_prob = gaussian.log_prob(mean, std, raw_actions)
    if how == "clipped":  # as executed they have no density: a share of them lies on the bounds
        return log_prob
    # log d tanh(u) / du = log(1 - tanh(u)^2), in a form that is finite for every u.
    slope = 2.0 * (jnp.log(2.0) - raw_actions - jax.nn.softplus(-2.0 * raw_actions))
    return log_prob - slope.sum(axis=-1)


# --- where paths begin -----------------------------------------------------------------------------------------------


class Lesson(NamedTuple):
    """What the gradient steps of one update draw from."""

    starts: Array  # [S, O] raw
    weights: Array  # [S] probability that the policy reaches the state
    imagined: Segment | None  # [S, T + 1], where paths go along imagined trajectories


def along_imagined(lesson: Lesson, imagined: Segment, length: int) -> Lesson:
    """Let paths follow the pieces of imagined trajectories ``[B, H]`` whose states the lesson has."""
    cut = pieces(imagined, length)
    weights = lesson.weights.reshape(imagined.terminals.shape)[:, :-length].reshape(-1)
    return Lesson(cut.observations[:, 0], weights, cut)


def start_states(
    experience: Experience, policy: Policy, step: Step, config: ValueGradientConfig, horizon: int, key: Array
) -> tuple[Array, Array]:
    """Return the states from which paths begin ``[S, O]`` raw, and the probability that each is reached ``[S]``.

    ``step`` and ``horizon`` are for the roll-out where ``config.starts`` is ``model``.
    """
    if config.starts == "imagined":
        observations, terminals = experience.imagined.observations, experience.imagined.terminals
        return lax.stop_gradient(observations).reshape(-1, observations.shape[-1]), happened(terminals).reshape(-1)
    raw_obs = experience.windows.observations[:, 0]
    alive = jnp.ones(raw_obs.shape[0])
    if config.starts == "replay":
        return raw_obs, alive

    def go(carry: tuple[Array, Array], key: Array) -> tuple[tuple[Array, Array], tuple[Array, Array]]:
        raw_obs, alive = carry
        action_key, step_key = jax.random.split(key)
        mean, std = policy(raw_obs)
        following = step(raw_obs, mean + std * jax.random.normal(action_key, mean.shape), step_key)
        return (following.observations, alive * (1.0 - following.terminals)), carry

    _, (observations, reached) = lax.scan(go, (raw_obs, alive), jax.random.split(key, horizon))
    return lax.stop_gradient(observations).reshape(-1, raw_obs.shape[-1]), reached.reshape(-1)


def draw(weights: Array, key: Array, size: int) -> Array:
    """Draw ``[size]`` indices in proportion to ``weights``, with replacement."""
    ranks = jnp.cumsum(weights)
    drawn = jnp.searchsorted(ranks, jax.random.uniform(key, (size,)) * ranks[-1], side="right")
    return jnp.minimum(drawn, weights.shape[0] - 1)  # a product that was rounded up lies behind the last


# --- the path --------------------------------------------------------------------------------------------------------


def choose(actor: Params, raw_obs: Array, key: Array, setting: Setting) -> tuple[Array, Array]:
    """Draw raw actions ``[B, A]``, differentiably, and their log-densities ``[B]``."""
    return draw_actions(*setting.policy_apply(actor, raw_obs), key, setting.how)


def draw_actions(mean: Array, std: Array, key: Array, how: Execution) -> tuple[Array, Array]:
    """Draw raw actions ``[B, A]`` of these Gaussians, differentiably, and their log-densities ``[B]``."""
    raw = mean + std * jax.random.normal(key, mean.shape)
    return raw, log_density(mean, std, raw, how)


def walk_along(actor: Params, imagined: Segment, key: Array, setting: Setting) -> Path:
    """Follow imagined trajectories ``[B, T + 1]`` under their own actions: their values, the model's derivatives.

    The action that was imagined fixes the noise that the policy would have drawn for it; what the model says of a state
    and action is moved to what was imagined, by a constant (DMO, arXiv 2509.00215). Log-densities are those of actions
    drawn anew: the policy leaves the imagined actions behind while it learns, until they are so improbable under it
    that their surprise, taken for entropy, would be worth more than any reward.
    """

    def go(raw_obs: Array, given: tuple[Array, Array, Array, Array]):
        action, following, reward, key = given
        step_key, entropy_key = jax.random.split(key)
        mean, std = setting.policy_apply(actor, raw_obs)
        noise = jnp.clip((action - mean) / std, -LARGEST_NOISE, LARGEST_NOISE)
        raw = shifted(mean + std * lax.stop_gradient(noise), action)
        predicted = setting.step(raw_obs, raw, step_key)
        _, log_prob = draw_actions(mean, std, entropy_key, setting.how)
        outcome = (raw_obs, executed(raw, setting.how), log_prob, shifted(predicted.rewards, reward))
        return shifted(predicted.observations, following), outcome

    by_time = jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1), Segment(*imagined_arrays(imagined)))
    length = by_time.rewards.shape[0] - 1
    *keys, last_key = jax.random.split(key, length + 1)
    given = (by_time.actions[:-1], by_time.observations[1:], by_time.rewards[:-1], jnp.stack(keys))
    end, (observations, actions, log_probs, rewards) = lax.scan(go, by_time.observations[0], given, unroll=True)
    raw, log_prob = choose(actor, end, last_key, setting)
    return Path(
        observations=jnp.concatenate([observations, end[None]]),
        actions=jnp.concatenate([actions, executed(raw, setting.how)[None]]),
        log_probs=jnp.concatenate([log_probs, log_prob[None]]),
        rewards=rewards,
        alive=happened(imagined.terminals).T,
    )


def shifted(predicted: Array, imagined: Array) -> Array:
    """Return ``imagined`` with the derivatives of ``predicted``."""
    return predicted + lax.stop_gradient(imagined - predicted)


def imagined_arrays(imagined: Segment) -> tuple[Array, Array, Array, Array]:
    """Return observations ``[B, H, O]``, actions, rewards and terminals, without the rows of the replay."""
    return imagined.observations, imagined.actions, imagined.rewards, imagined.terminals


def pieces(imagined: Segment, length: int) -> Segment:
    """Cut trajectories ``[B, H]`` into all their pieces of ``length`` steps: ``[B * (H - length), length + 1]``."""
    starts = imagined.terminals.shape[1] - length

    def cut(x: Array) -> Array:
        cuts = jnp.stack([x[:, t : t + length + 1] for t in range(starts)], axis=1)
        return cuts.reshape(-1, *cuts.shape[2:])

    return Segment(*(cut(x) for x in imagined_arrays(imagined)))


def walk(actor: Params, raw_obs: Array, key: Array, length: int, setting: Setting) -> Path:
    """Roll the policy out from ``raw_obs [B, O]`` for ``length`` steps, differentiably."""

    def go(carry: tuple[Array, Array], key: Array):
        raw_obs, alive = carry
        action_key, step_key = jax.random.split(key)
        raw, log_prob = choose(actor, raw_obs, action_key, setting)
        following = setting.step(raw_obs, raw, step_key)
        carry = (following.observations, alive * (1.0 - following.terminals))
        return carry, (raw_obs, executed(raw, setting.how), log_prob, following.rewards, alive)

    *keys, last_key = jax.random.split(key, length + 1)
    alive = jnp.ones(raw_obs.shape[0])
    (end, end_alive), steps = lax.scan(go, (raw_obs, alive), jnp.stack(keys), unroll=True)
    raw, log_prob = choose(actor, end, last_key, setting)
    observations, actions, log_probs, rewards, alive = steps
    return Path(
        observations=jnp.concatenate([observations, end[None]]),
        actions=jnp.concatenate([actions, executed(raw, setting.how)[None]]),
        log_probs=jnp.concatenate([log_probs, log_prob[None]]),
        rewards=rewards,
        alive=jnp.concatenate([alive, end_alive[None]]),
    )


def path_value(
    path: Path, last_value: Array, temperature: Array, gamma: Array | float, first_entropy: bool
) -> Array:
    """Sum the discounted soft rewards of a path and the value of its last state and action, ``[B]``."""
    length = path.rewards.shape[0]
    soft = jnp.concatenate([path.rewards, last_value[None]])
    bonus = -temperature * path.log_probs
    if not first_entropy:
        bonus = bonus.at[0].set(0.0)
    discounts = (gamma ** jnp.arange(length + 1, dtype=jnp.float32))[:, None]
    return (discounts * path.alive * (soft + bonus)).sum(0)


# --- one gradient step -----------------------------------------------------------------------------------------------


class Setting(NamedTuple):
    """What a gradient step is made under: all of it the same in every step of an update."""

    step: Step
    config: ValueGradientConfig
    policy_apply: PolicyApply
    critic: QFunction
    action_size: int
    how: Execution


def update(
    state: ValueGradientState, key: Array, lesson: Lesson, setting: Setting
) -> tuple[ValueGradientState, Metrics]:
    """Take one gradient step of the actor, the Q functions and the temperature."""
    config = setting.config
    start_key, actor_key, pair_key = jax.random.split(key, 3)
    drawn = draw(lesson.weights, start_key, config.batch_size)
    grad = jax.value_and_grad(actor_loss, has_aux=True)
    (loss, (path, bounds)), gradients = grad(state.actor["network"], state, lesson, drawn, actor_key, setting)
    path, temperature = lax.stop_gradient(path), jnp.exp(state.log_temperature)

    target = target_values(state, path, bounds, pair_key, setting)
    grad = jax.value_and_grad(critic_loss, has_aux=True)
    (q_loss, values), q_gradients = grad(state.critic, path, target, state.actor["observations"], bounds, setting)
    entropy = -path.log_probs[0].mean()
    temperature_gradient = temperature * (entropy - config.target_entropy * setting.action_size)

    adam = optax.adam(config.learning_rate)
    network, actor_adam = stepped(adam, gradients, state.actor["network"], state.actor_adam)
    actor = state.actor | {"network": network}
    critic, critic_adam = stepped(adam, q_gradients, state.critic, state.critic_adam)
    log_temperature, temperature_adam = stepped(
        adam, temperature_gradient, state.log_temperature, state.temperature_adam
    )
    averaged = state.averaged_actor
    if averaged is not None:  # the statistics of observations are the newest: they are no parameters
        averaged = actor | {"network": exponential_average(averaged["network"], actor["network"], config.actor_ema)}
    learnt = state.replace(
        actor=actor,
        averaged_actor=averaged,
        critic=critic,
        target_critic=exponential_average(state.target_critic, critic, 1.0 - config.target_rate),
        log_temperature=log_temperature,
        value_bounds=bounds,
        updates=state.updates + 1,
        actor_adam=actor_adam,
        critic_adam=critic_adam,
        temperature_adam=temperature_adam,
    )
    return learnt, {
        "agent/actor_loss": loss,
        "agent/actor_gradient_norm": optax.tree.norm(gradients),
        "agent/critic_loss": q_loss / config.critics,
        "agent/discount": discount(state.updates, config),
        "agent/critic_gradient_norm": optax.tree.norm(q_gradients),
        "agent/value_mean": values.mean(),
        "agent/value_spread": values.std(0).mean(),
        "agent/value_low": bounds[0],
        "agent/value_high": bounds[1],
        "agent/entropy": entropy,
        "agent/temperature": temperature,
        "agent/std": setting.policy_apply(state.actor, path.observations[0])[1].mean(),
        "agent/path_alive": path.alive[-1].mean(),
        "agent/path_reward": (path.rewards * path.alive[:-1]).sum() / path.alive[:-1].sum(),
    }


def actor_loss(
    network: Params, state: ValueGradientState, lesson: Lesson, drawn: Array, key: Array, setting: Setting
) -> tuple[Array, tuple[Path, Array]]:
    """Return minus the mean value of the paths from the ``drawn [B]`` starts; also the paths and the values' bounds."""
    config, temperature = setting.config, jnp.exp(state.log_temperature)
    gamma = discount(state.updates, config)
    actor = state.actor | {"network": network}
    path_key, value_key = jax.random.split(key)
    if config.path_length == 0:  # the Q functions' targets still go one step through the model
        path = walk(lax.stop_gradient(actor), lesson.starts[drawn], path_key, 1, setting)
    elif lesson.imagined is None:
        path = walk(actor, lesson.starts[drawn], path_key, config.path_length, setting)
    else:
        path = walk_along(actor, jax.tree.map(lambda x: x[drawn], lesson.imagined), path_key, setting)
    bounds = bounds_of(state, lax.stop_gradient(path.rewards - temperature * path.log_probs[:-1]), config)
    statistics = state.actor["observations"]
    if config.path_length == 0:
        raw_obs = lesson.starts[drawn]
        raw, log_prob = choose(actor, raw_obs, value_key, setting)
        value = q_values(state.critic, raw_obs, executed(raw, setting.how), statistics, bounds, setting).mean(0)
        return -(value - temperature * log_prob).mean(), (path, bounds)
    last = q_values(state.critic, path.observations[-1], path.actions[-1], statistics, bounds, setting).mean(0)
    return -path_value(path, last, temperature, gamma, first_entropy=True).mean(), (path, bounds)


def discount(updates: Array, config: ValueGradientConfig) -> Array:
    """Return the discount factor of gradient step ``updates``; it grows, as in Francois-Lavet et al. (2015).

    A short horizon is learnt fast, and Hopper does not stand still for it. It does not tell a gait that falls once in
    several horizons from one that never does; a long one does. Between DISCOUNT_GROWS the horizon grows linearly.
    """
    if config.final_gamma == 0:
        return jnp.float32(config.gamma)
    first, last = 1.0 / (1.0 - config.gamma), 1.0 / (1.0 - config.final_gamma)
    begin, end = DISCOUNT_GROWS
    share = jnp.clip((updates.astype(jnp.float32) - begin) / (end - begin), 0.0, 1.0)
    return 1.0 - 1.0 / (first + share * (last - first))


def bounds_of(state: ValueGradientState, soft_rewards: Array, config: ValueGradientConfig) -> Array:
    """Return the running bounds ``[2]`` of values, given soft rewards ``[T, B]``; 0 is within: an episode may end."""
    gamma, before = discount(state.updates, config), discount(state.updates - 1, config)
    low, high = jnp.quantile(soft_rewards, jnp.array(REWARD_QUANTILES)) / (1.0 - gamma)
    seen = jnp.stack([jnp.minimum(low, 0.0), jnp.maximum(high, 0.0)])
    known = state.value_bounds if config.final_gamma == 0 else state.value_bounds * (1.0 - before) / (1.0 - gamma)
    return jnp.where(state.updates == 0, seen, known + BOUND_RATE * (seen - known))


def q_values(
    params: Params, raw_obs: Array, actions: Array, statistics: Params, bounds: Array, setting: Setting
) -> Array:
    """Return what every Q function says of executed actions ``[B, A]`` in ``raw_obs [B, O]``: ``[E, B]``, raw reward.

    The networks answer in units of the distance between the bounds.
    """
    normed_obs = normalise_for_policy(raw_obs, MeanStd(**statistics))
    values = jax.vmap(lambda p: setting.critic.apply({"params": p}, normed_obs, actions))(params)
    return (bounds[1] - bounds[0]) * values


def target_values(state: ValueGradientState, path: Path, bounds: Array, key: Array, setting: Setting) -> Array:
    """Return the targets ``[B]`` of the Q functions at the paths' first states and actions."""
    config = setting.config
    pair = jax.random.permutation(key, config.critics)[:PAIR]
    params = jax.tree.map(lambda x: x[pair], state.target_critic)
    given = path.observations[-1], path.actions[-1], state.actor["observations"]
    last = jnp.clip(q_values(params, *given, bounds, setting).min(0), bounds[0], bounds[1])
    gamma = discount(state.updates, config)
    return path_value(path, last, jnp.exp(state.log_temperature), gamma, first_entropy=False)


def critic_loss(
    params: Params, path: Path, target: Array, statistics: Params, bounds: Array, setting: Setting
) -> tuple[Array, Array]:
    """Return the squared errors to ``target [B]``, summed over the Q functions, and the values ``[E, B]``."""
    values = q_values(params, path.observations[0], path.actions[0], statistics, bounds, setting)
    return jnp.square(values - target[None]).mean(1).sum(), values
