"""PolyGRAD: one diffusion run imagines a whole on-policy trajectory.

Algorithm 1 is ``diffusion/denoising_loss.py``, Algorithm 2 ``diffusion/sampler.py``; this file makes them a world
model with a state of its own: the denoiser, its average, its optimiser, and delta.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax

from polygrad_jax.config import Config, ConfigError, DiffusionConfig, EnvSpec
from polygrad_jax.data.normaliser import executed, normalise
from polygrad_jax.diffusion.denoising_loss import (
    Denoise,
    denoising_loss,
    draw_steps_and_noise,
    pack,
    unpack,
    with_padding_rewards,
    with_terminal_std,
)
from polygrad_jax.diffusion.guidance import (
    RULES,
    Gaussian,
    action_metrics,
    largest_delta,
    standardise,
    update_log_delta,
)
from polygrad_jax.diffusion.sampler import Given, Sampler, sample, sample_given_actions
from polygrad_jax.diffusion.schedule import Coefficients, sampling_coefficients, training_coefficients
from polygrad_jax.networks.denoisers import make_denoiser
from polygrad_jax.optimising import stepped
from polygrad_jax.types import Array, Metrics, Normaliser, Params, Policy, Segment, WorldModel
from polygrad_jax.world_models import terminal_classifier
from polygrad_jax.world_models.terminal_classifier import ClassifierState

EMA_EVERY_UPDATES = 10
"""Gradient steps between two updates of the averaged parameters (official code)."""
EMA_START_UPDATES = 2_000
"""Before this many gradient steps the average is a plain copy (official code)."""


@flax.struct.dataclass
class PolyGRADState:
    """Everything PolyGRAD learns."""

    params: Params
    ema_params: Params  # what imagines
    adam: Any
    updates: Array  # gradient steps taken
    log_delta: Array
    classifier: ClassifierState | None  # of terminals, where they are classified


def diffused_length(config: Config) -> int:
    """States of the trajectory that is diffused: the history's and the horizon's."""
    return config.denoiser.context_length - 1 + config.horizon


def make_denoise(config: Config, window: int) -> Denoise:
    """The denoiser of ``config`` for trajectories of ``window`` states as a pure function (see :data:`Denoise`)."""
    module = make_denoiser(config.denoiser, window, config.precision)

    def denoise(params: Params, normed_traj: Array, normed_actions: Array, step: Array) -> Array:
        return module.apply({"params": params}, normed_traj, normed_actions, step)

    return denoise


def make_sampler(config: Config) -> Sampler:
    """Algorithm 2 with this configuration's denoiser and guidance.

    Raises:
      ConfigError: there is no such guidance rule.
    """
    if config.guidance.rule not in RULES:
        raise ConfigError(f"guidance.rule is {config.guidance.rule}; allowed: {', '.join(RULES)}")
    denoise = make_denoise(config, diffused_length(config))
    shown_actions = config.denoiser.shown_actions
    return Sampler(denoise, config.guidance, config.diffusion.prediction, shown_actions, config.env.actions)


def given_context(
    state: PolyGRADState, policy: Policy | None, normaliser: Normaliser, context: Segment, context_length: int
) -> Given:
    """What Algorithm 2 is given where imagining begins behind ``context [B, C', ...]``, raw.

    A context shorter than ``context_length`` is padded in front as replay pads them: by its first state, with actions
    of 0 (raw). Of a longer one the last states count.
    """
    context = Segment(context.observations, context.actions, context.rewards, context.terminals)
    context = jax.tree.map(lambda x: x[:, -context_length:], context)
    missing = context_length - context.terminals.shape[1]
    before = jax.tree.map(lambda x: jnp.repeat(x[:, :1], missing, axis=1), context)
    before = before.replace(actions=jnp.zeros_like(before.actions))
    normed_traj, normed_actions = pack(
        jax.tree.map(lambda a, b: jnp.concatenate([a, b], axis=1), before, context), normaliser
    )
    return Given(
        state.ema_params,
        policy,
        normaliser,
        initial=normed_traj[..., :-2],
        delta=jnp.exp(state.log_delta),
        past_actions=normed_actions[:, :-1] if context_length > 1 else None,
    )


def average(ema_params: Params, params: Params, updates: Array, ema_decay: float) -> Params:
    """Return the averaged parameters after gradient step number ``updates`` (counted from 0).

    Every EMA_EVERY_UPDATES steps: a plain copy before EMA_START_UPDATES, an exponential average after.
    """
    decay = jnp.where(updates < EMA_START_UPDATES, 0.0, ema_decay)
    return jax.lax.cond(
        updates % EMA_EVERY_UPDATES == 0,
        lambda: jax.tree.map(lambda e, p: e + (1.0 - decay) * (p - e), ema_params, params),
        lambda: ema_params,
    )


def init_denoising(config: Config, spec: EnvSpec, window: int, key: Array) -> dict[str, Any]:
    """The fields of a state that :func:`make_gradient_step` moves, before anything was learnt."""
    module = make_denoiser(config.denoiser, window, config.precision)
    traj = jnp.zeros((1, window, spec.observation_size + 2))
    actions = jnp.zeros((1, window, spec.action_size))
    params = module.init(key, traj, actions, jnp.zeros(1, jnp.int32))["params"]
    classifies = config.diffusion.terminals == "classified"
    return {
        "params": params,
        "ema_params": jax.tree.map(jnp.copy, params),
        "adam": optax.adam(config.denoiser.learning_rate).init(params),
        "updates": jnp.int32(0),
        "classifier": terminal_classifier.init(jax.random.fold_in(key, 1), spec) if classifies else None,
    }


GradientStep = Callable[[Any, tuple[Array, Array], Segment, Normaliser, Array], tuple[Any, Metrics]]


def make_gradient_step(
    config: Config, window: int, diffusion: DiffusionConfig, context_length: int = 1
) -> GradientStep:
    """Algorithm 1, lines 4 to 6, with its average, and the classifier's step where terminals are classified.

    ``(state, (normed_traj [B, H, O+2], normed_actions [B, H, A]), segment, normaliser, key) -> (state, metrics)``, for
    any state with the fields of :func:`init_denoising`; H is ``window``, of which the first ``context_length`` states
    are given. The classifier learns from ``segment``, raw.
    """
    denoise = make_denoise(config, window)
    schedule = training_coefficients(diffusion)

    def gradient_step(
        state: Any, packed: tuple[Array, Array], segment: Segment, normaliser: Normaliser, key: Array
    ) -> tuple[Any, Metrics]:
        normed_traj, normed_actions = packed
        steps, noise = draw_steps_and_noise(key, normed_traj.shape, diffusion.num_steps)

        def loss(params: Params) -> tuple[Array, Metrics]:
            draws, prediction = (steps, noise), diffusion.prediction
            return denoising_loss(
                denoise, params, normed_traj, normed_actions, *draws, schedule, prediction, context_length
            )

        return descend(config, loss, state, segment, normaliser)

    return gradient_step


def descend(
    config: Config,
    loss: Callable[[Params], tuple[Array, Metrics]],
    state: Any,
    segment: Segment,
    normaliser: Normaliser,
) -> tuple[Any, Metrics]:
    """Step down the gradient of ``loss``; the average follows, and the classifier where there is one (``segment`` raw).

    ``state`` has the fields of :func:`init_denoising`.
    """
    gradients, metrics = jax.grad(loss, has_aux=True)(state.params)
    params, adam_state = stepped(optax.adam(config.denoiser.learning_rate), gradients, state.params, state.adam)
    classifier = state.classifier
    if classifier is not None:
        classifier, more = terminal_classifier.update(classifier, segment, normaliser, config.env.actions)
        metrics |= more
    return state.replace(
        params=params,
        ema_params=average(state.ema_params, params, state.updates, config.denoiser.ema_decay),
        adam=adam_state,
        updates=state.updates + 1,
        classifier=classifier,
    ), metrics


def make_polygrad(config: Config, spec: EnvSpec, schedule: Coefficients | None = None) -> WorldModel:
    """PolyGRAD behind the protocol of :class:`WorldModel`.

    With ``config.denoiser.context_length`` above 1 (ours, not the paper's) the trajectory that is diffused begins with
    the last observed states and actions; they stay as they are, and only what follows the last state is returned.
    ``adapt`` tunes delta: sigma is measured on the trajectory just imagined, under the policy that guided it.
    ``schedule`` is sampled in place of the configured steps (an experiment's; those of training stay).
    """
    sampling_schedule = sampling_coefficients(config.diffusion) if schedule is None else schedule
    context_length = config.denoiser.context_length
    gradient_step = make_gradient_step(config, diffused_length(config), config.diffusion, context_length)
    sampler = make_sampler(config)
    rule = RULES[config.guidance.rule]

    def init(key: Array) -> PolyGRADState:
        return PolyGRADState(
            **init_denoising(config, spec, diffused_length(config), key),
            log_delta=jnp.log(jnp.float32(config.guidance.initial_delta)),
        )

    def update(
        state: PolyGRADState, segment: Segment, normaliser: Normaliser, key: Array
    ) -> tuple[PolyGRADState, Metrics]:
        normaliser = with_terminal_std(normaliser, config.diffusion.terminal_std)
        seen = _last(segment, config.horizon)  # what pads a history never happened
        if config.denoiser.shown_actions == "executed":
            segment = segment.replace(actions=executed(segment.actions, config.env.actions))
        return gradient_step(state, pack(segment, normaliser), seen, normaliser, key)

    def imagine(
        state: PolyGRADState, policy: Policy, context: Segment, normaliser: Normaliser, key: Array
    ) -> tuple[Segment, Metrics]:
        normaliser = with_terminal_std(normaliser, config.diffusion.terminal_std)
        given = given_context(state, policy, normaliser, context, context_length)
        traj, actions, _ = sample(sampler, given, sampling_schedule, key, diffused_length(config), spec.action_size)
        segment = with_ends(_last(unpack(traj, actions, normaliser), config.horizon), config, state, normaliser)

        # The last state only bootstraps: its action is not trained on and does not count here either.
        gaussian = Gaussian(*policy(segment.observations[:, :-1]))
        measured = action_metrics(standardise(segment.actions[:, :-1], gaussian))
        bound = {"guidance/largest_delta": largest_delta(gaussian)}
        return segment, {"guidance/delta": given.delta, **bound, **measured}

    def adapt(state: PolyGRADState, aux: Metrics) -> PolyGRADState:
        if not rule.tunes_delta:
            return state
        sigma, largest = aux["guidance/sigma"], aux["guidance/largest_delta"]
        return state.replace(log_delta=update_log_delta(state.log_delta, sigma, largest, config.guidance))

    return WorldModel(init, update, imagine, adapt, context_length=context_length, history=context_length - 1)


def with_ends(segment: Segment, config: Config, state: PolyGRADState, normaliser: Normaliser) -> Segment:
    """Let a diffused segment end where it does, for good, and write the rewards behind the end that are known."""
    if state.classifier is not None:
        params, how = state.classifier.params, config.env.actions
        terminals = terminal_classifier.classify(params, segment, normaliser, how)
    else:
        # DEVIATION from the official code, whose imagined terminals may return to 0: imagined terminals are absorbing.
        # What follows an end has weight 0 either way, but counts where advantages are standardised.
        terminals = jax.lax.cummax(segment.terminals, axis=1)
    return with_padding_rewards(segment.replace(terminals=terminals), normaliser)


def imagine_given_actions(
    config: Config, state: PolyGRADState, actions: Array, context: Segment, normaliser: Normaliser, key: Array
) -> Segment:
    """``[B, H]`` imagined steps behind ``context [B, C', ...]`` under raw ``actions [B, H, A]``, unguided.

    All of the actions are shown in every diffusion step, as in training: where a trajectory of Algorithm 2 is
    further from the environment than this one under the same actions, that is the doing of its guidance, and of
    clipped state changes where ``guidance.state_change_clip`` is on.
    """
    normaliser = with_terminal_std(normaliser, config.diffusion.terminal_std)
    given = given_context(state, None, normaliser, context, config.denoiser.context_length)
    normed_actions = normalise(actions, normaliser.actions)
    if given.past_actions is not None:
        normed_actions = jnp.concatenate([given.past_actions, normed_actions], axis=1)
    sampler = make_sampler(config)
    schedule = sampling_coefficients(config.diffusion)
    shape = (schedule.step.shape[0] + 1, *normed_actions.shape[:2], given.initial.shape[-1] + 2)
    traj = sample_given_actions(sampler, given, schedule, normed_actions, jax.random.normal(key, shape))
    return with_ends(_last(unpack(traj, normed_actions, normaliser), config.horizon), config, state, normaliser)


def _last(segment: Segment, horizon: int) -> Segment:
    """The last ``horizon`` steps."""
    return jax.tree.map(lambda x: x[:, -horizon:], segment)
