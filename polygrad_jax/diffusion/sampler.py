"""Sample trajectories by policy-guided diffusion (Algorithm 2).

:func:`diffusion_step` is one iteration, a pure function of its draws; :func:`sample` scans it over the schedule.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import chex
import jax
import jax.numpy as jnp

from polygrad_jax.config import DenoiserOutput, Execution, GuidanceConfig
from polygrad_jax.data.normaliser import executed, normalise, unnormalise
from polygrad_jax.diffusion.denoising_loss import Denoise, clean_from_output, set_initial_state
from polygrad_jax.diffusion.guidance import RULES, Gaussian, Guided, States, Strength, clip_to_policy, log_prob
from polygrad_jax.diffusion.schedule import Coefficients, posterior_mean
from polygrad_jax.networks.batch_parts import in_parts
from polygrad_jax.types import Array, Normaliser, Params, Policy


class Sampler(NamedTuple):
    """Everything that is static under jit: network and settings."""

    denoise: Denoise
    guidance: GuidanceConfig
    prediction: DenoiserOutput
    shown_actions: Literal["sampled", "executed"] = "sampled"
    execution: Execution = "clipped"


class Given(NamedTuple):
    """Everything that one run of Algorithm 2 is conditioned on, the same in all of its steps.

    ``initial`` is ``[B, O]`` normalised, ``delta`` a scalar in squared raw action units. Where the trajectory begins
    with a history of C states, ``initial`` is ``[B, C, O]`` and ``past_actions [B, C-1, A]`` are the normalised
    actions taken in the history's states but the last; guidance does not change past actions.
    """

    denoiser_params: Params
    policy: Policy | None  # None for :func:`sample_given_actions`
    normaliser: Normaliser
    initial: Array
    delta: Array
    past_actions: Array | None = None


class Diffusing(NamedTuple):
    """The state of a run between two diffusion steps."""

    traj: Array  # noisy normalised trajectory [B, H, O+2]
    actions: Array  # normalised [B, H, A]
    residual: Array  # standardised actions [B, H, A] that a rule with ``keeps_residual`` carries; else unused


class Draws(NamedTuple):
    """Standard normal draws of one step: ``traj [B, H, O+2]`` and ``actions [B, H, A]``."""

    traj: Array
    actions: Array


def shown(sampler: Sampler, given: Given, normed_actions: Array) -> Array:
    """Return the normalised actions ``[B, H, A]`` that the denoiser sees: as sampled, or as executed."""
    if sampler.shown_actions == "executed":
        raw_actions = unnormalise(normed_actions, given.normaliser.actions)
        return normalise(executed(raw_actions, sampler.execution), given.normaliser.actions)
    return normed_actions


def predict_clean(sampler: Sampler, given: Given, traj: Array, actions: Array, c: Coefficients) -> Array:
    """Predict the clean trajectory ``[B, H, O+2]`` and write the initial state into it (lines 7 and 9)."""
    seen = shown(sampler, given, actions)
    output = sampler.denoise(given.denoiser_params, traj, c.sqrt_alpha_bar * seen, c.step[None])
    clean = clean_from_output(output, traj, given.initial, c, sampler.prediction)
    return set_initial_state(clean, given.initial)


def set_past_actions(normed_actions: Array, given: Given) -> Array:
    """Overwrite the first of ``normed_actions [B, H, A]`` by the actions of the history, where a history is given."""
    if given.past_actions is None:
        return normed_actions
    return normed_actions.at[:, : given.past_actions.shape[1]].set(given.past_actions)


def clip_change(old: Array, new: Array, tolerance: Array) -> Array:
    """Clip every channel of ``new`` to within ``tolerance`` of ``old``."""
    return old + jnp.clip(new - old, -tolerance, tolerance)


def state_change_tolerance(step: Array, config: GuidanceConfig, last_step_only: bool) -> Array:
    """Return the largest change of a normalised channel in this step; infinite where the clip does not apply.

    DEVIATION from the paper, which has no such clip; the official code has it.
    """
    below = min(config.state_change_clip_below, 1) if last_step_only else config.state_change_clip_below
    if config.state_change_clip == 0:
        below = 0
    return jnp.where(step < below, jnp.float32(config.state_change_clip), jnp.float32(jnp.inf))


def policy_at(given: Given, normed_obs: Array) -> Gaussian:
    """Return the policy's Gaussian over raw actions at normalised states ``[B, H, O]``."""
    raw_obs = unnormalise(normed_obs, given.normaliser.observations)
    return Gaussian(*in_parts(given.policy, raw_obs.shape[1], raw_obs))


def diffusion_step(sampler: Sampler, given: Given, before: Diffusing, c: Coefficients, draws: Draws) -> Diffusing:
    """Take one step of Algorithm 2, lines 6 to 13, at the coefficients ``c`` (scalars) and ``draws``."""
    rule = RULES[sampler.guidance.rule]
    before = before._replace(actions=set_past_actions(before.actions, given))
    traj = set_initial_state(before.traj, given.initial)  # line 6
    clean = predict_clean(sampler, given, traj, before.actions, c)  # lines 7, 9
    mean = posterior_mean(clean, traj, c)
    tolerance = state_change_tolerance(c.step, sampler.guidance, last_step_only=rule.moves_states)
    mean = clip_change(traj, mean, tolerance)

    observations = given.initial.shape[-1]
    states = States(traj[..., :observations], clean[..., :observations], mean[..., :observations])
    policy = policy_at(given, rule.reads(states))
    raw = unnormalise(before.actions, given.normaliser.actions)
    clipped = clip_to_policy(raw, policy, sampler.guidance.clip_std) if rule.clips else raw
    # DEVIATION from Eq. 11, like the official code: the clip comes before the score step.
    guided = Guided(clipped if rule.clips_while_moving else raw, before.residual)
    strength = Strength(given.delta, jnp.where(c.is_last, 1.0, sampler.guidance.relaxation), c.is_last)
    moved = rule.move(guided, policy, strength, draws.actions)  # line 10

    if rule.moves_states:
        clean = _move_states(given, clean, moved.actions)
        # DEVIATION from the paper's intent, like the official code: this ablation loses the state-change clip.
        mean = jnp.where(c.is_last, mean, posterior_mean(clean, traj, c))

    # line 12. DEVIATION from the paper, like the official code: the last step still clips the actions.
    last = moved.actions if rule.keeps_residual else clipped
    actions = normalise(jnp.where(c.is_last, last, moved.actions), given.normaliser.actions)
    if rule.adds_noise:
        actions = actions + c.action_noise_std * draws.actions
    # line 13. DEVIATION from the paper, like the official code: the noise has the posterior std instead of
    # sqrt(beta), and the last step adds none.
    return Diffusing(mean + c.posterior_std * draws.traj, actions, moved.residual)


def _move_states(given: Given, clean: Array, raw_actions: Array) -> Array:
    """Move the clean trajectory along the gradient of log pi with respect to normalised states (Eq. 8)."""
    observations = given.initial.shape[-1]

    def total_log_prob(normed_obs: Array) -> Array:
        return log_prob(raw_actions, policy_at(given, normed_obs)).sum()

    gradient = jax.grad(total_log_prob)(clean[..., :observations])
    moved = clean.at[..., :observations].add(given.delta * gradient)
    return set_initial_state(moved, given.initial)


def draw(key: Array, traj_shape: tuple[int, ...], action_size: int) -> Draws:
    """Draw the noise of one step by one call of the generator (cheaper than two)."""
    batch, horizon, channels = traj_shape
    both = jax.random.normal(key, (batch, horizon, channels + action_size))
    return Draws(both[..., :channels], both[..., channels:])


def sample(
    sampler: Sampler,
    given: Given,
    schedule: Coefficients,
    key: Array,
    horizon: int,
    action_size: int,
    keep_steps: bool = False,
    residual: Array | None = None,
) -> tuple[Array, Array, tuple[Array, Array] | None]:
    """Run Algorithm 2: ``(normed_traj [B, H, O+2], normed_actions [B, H, A], steps)``.

    ``schedule`` holds the K steps to sample, ascending. With ``keep_steps`` the third result is the trajectory and
    the actions after every step, ``[K, B, H, ...]`` in the order of the run; otherwise None.
    The returned actions are those of the last step; the returned states were denoised under the actions of the step
    before. Under ``correlated`` the returned actions are the policy's mean at the returned states plus its std times
    the kept draw. ``residual [B, H, A]`` are standardised actions to keep in place of that draw.

    Raises:
      ValueError: a residual for a rule that keeps none.
    """
    if residual is not None and not RULES[sampler.guidance.rule].keeps_residual:
        raise ValueError(f"residual given to rule {sampler.guidance.rule!r}; allowed: to correlated, which keeps it")
    chex.assert_rank(given.initial, {2, 3}, custom_message="given.initial")
    batch, observations = given.initial.shape[0], given.initial.shape[-1]
    if residual is not None:
        chex.assert_shape(residual, (batch, horizon, action_size), custom_message="residual")
    shape = (batch, horizon, observations + 2)
    start = draw(jax.random.fold_in(key, schedule.step.shape[0]), shape, action_size)  # lines 2, 3

    def body(before: Diffusing, c_and_index: tuple[Coefficients, Array]):
        c, index = c_and_index
        after = diffusion_step(sampler, given, before, c, draw(jax.random.fold_in(key, index), shape, action_size))
        kept = _written(after, given) if keep_steps else None
        return after, kept

    indices = jnp.arange(schedule.step.shape[0])
    begin = Diffusing(start.traj, start.actions, residual=start.actions if residual is None else residual)
    end, steps = jax.lax.scan(body, begin, (schedule, indices), reverse=True)
    if keep_steps:
        steps = jax.tree.map(lambda x: x[::-1], steps)  # a reversed scan stacks in the order of its inputs
    return *_written(end, given), steps


def _written(after: Diffusing, given: Given) -> tuple[Array, Array]:
    """Write the known states and actions into trajectory and actions (line 14)."""
    return set_initial_state(after.traj, given.initial), set_past_actions(after.actions, given)


def sample_given_actions(
    sampler: Sampler, given: Given, schedule: Coefficients, normed_actions: Array, noise: Array
) -> Array:
    """Sample the states under fixed actions by plain conditional diffusion, at the draws ``noise``.

    Without policy and without clipping the change of the states, as an autoregressive diffusion model does.

    Args:
      normed_actions: ``[B, H, A]``.
      noise: ``[K + 1, B, H, O+2]``, the draws of every step and, last, of the initial trajectory.
    """
    chex.assert_rank(given.initial, {2, 3}, custom_message="given.initial")
    channels, batch = given.initial.shape[-1] + 2, given.initial.shape[0]
    chex.assert_shape(normed_actions, (batch, None, None), custom_message="normed_actions")
    draws = (schedule.step.shape[0] + 1, batch, normed_actions.shape[1], channels)
    chex.assert_shape(noise, draws, custom_message="noise")
    seen = shown(sampler, given, normed_actions)

    def body(traj: Array, c_and_noise: tuple[Coefficients, Array]):
        c, step_noise = c_and_noise
        traj = set_initial_state(traj, given.initial)
        output = sampler.denoise(given.denoiser_params, traj, c.sqrt_alpha_bar * seen, c.step[None])
        clean = clean_from_output(output, traj, given.initial, c, sampler.prediction)
        return posterior_mean(clean, traj, c) + c.posterior_std * step_noise, None

    traj, _ = jax.lax.scan(body, noise[-1], (schedule, noise[:-1]), reverse=True)
    return set_initial_state(traj, given.initial)
