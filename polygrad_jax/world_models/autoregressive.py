"""Autoregressive diffusion: every step of a roll-out is a diffusion run of its own (paper, Appendix C.2).

The denoiser of PolyGRAD, trained by the same Algorithm 1 on two states and asked about one given action. Of the second
state only its observation is predicted: its action is not chosen yet, so that its action, reward and terminal stand at
zero (normalised), in training as in imagination.

DEVIATION from the paper, which takes SynthER's network (Lu et al. 2023) with the action as an extra input: with
PolyGRAD's own denoiser and schedule, one pass is compared with many passes, not one network with another.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp

from polygrad_jax.config import Config, EnvSpec, Execution
from polygrad_jax.data.normaliser import executed, normalise, unnormalise
from polygrad_jax.data.segment_masks import happened
from polygrad_jax.diffusion.denoising_loss import pack, with_terminal_std
from polygrad_jax.diffusion.sampler import Given, Sampler, sample_given_actions
from polygrad_jax.diffusion.schedule import Coefficients, sampling_coefficients
from polygrad_jax.types import Array, Metrics, Normaliser, Params, Prediction, Segment, WorldModel
from polygrad_jax.world_models import terminal_classifier
from polygrad_jax.world_models.polygrad import init_denoising, make_denoise, make_gradient_step
from polygrad_jax.world_models.rollout import imagine_by
from polygrad_jax.world_models.terminal_classifier import ClassifierState

WINDOW = 2


@flax.struct.dataclass
class AutoregressiveState:
    """Everything the one-step model learns."""

    params: Params
    ema_params: Params  # what imagines
    adam: Any
    updates: Array  # gradient steps taken
    classifier: ClassifierState | None  # of terminals, where they are classified


def single_steps(windows: Segment, key: Array) -> Segment:
    """``[B, 2]`` to ``[B, 2]``: B of the transitions that the windows hold, each as the beginning of a window.

    DEVIATION from the official code, whose windows never begin with a terminal step, so that a one-step model cannot
    learn when episodes end. Here a second step that ended its episode joins the first steps, padded as the replay pads
    (as it pads an episode of one step), and every transition of an episode is drawn with the same probability.
    """
    batch = windows.terminals.shape[0]
    padded = jax.tree.map(lambda x: x[:, [1, 1]], windows)
    padded = padded.replace(rewards=padded.rewards.at[:, 1].set(0.0))
    ended = happened(windows.terminals)[:, 1] * windows.terminals[:, 1]
    there = jnp.concatenate([jnp.ones(batch), ended])
    _, chosen = jax.lax.top_k(there + jax.random.uniform(key, there.shape), batch)
    return jax.tree.map(lambda a, b: jnp.concatenate([a, b])[chosen], windows, padded)


def without_what_follows(normed_traj: Array, normed_actions: Array) -> tuple[Array, Array]:
    """``[B, 2, O+2]`` and ``[B, 2, A]`` with zeros for the second state's reward, terminal and action.

    DEVIATION from the official code, which shows the second action in training and a zero in imagination: an action
    reveals the state that the policy chose it in.
    """
    return normed_traj.at[:, 1, -2:].set(0.0), normed_actions.at[:, 1].set(0.0)


class Condition(NamedTuple):
    """What the second of two states is predicted from, normalised."""

    initial: Array  # [B, O]
    actions: Array  # [B, 2, A], of which the second is not chosen yet


def lesson_of(segment: Segment, normaliser: Normaliser, key: Array, how: Execution) -> tuple[Segment, Array, Array]:
    """Return transitions ``[B, 2]`` of windows, raw, and what a denoiser learns of them (:func:`pack`).

    DEVIATION from the official code, which shows actions as sampled: ours sees those executed.

    Raises:
      ValueError: windows of another length.
    """
    if segment.terminals.shape[1] != WINDOW:
        raise ValueError(f"a training window has {segment.terminals.shape[1]} states; allowed: {WINDOW}")
    steps = single_steps(segment, key)
    packed = pack(steps.replace(actions=executed(steps.actions, how)), normaliser)
    return steps, *without_what_follows(*packed)


def condition_of(raw_obs: Array, executed_actions: Array, normaliser: Normaliser) -> Condition:
    """Condition on raw observations ``[B, O]`` and executed actions ``[B, A]``."""
    actions = normalise(executed_actions, normaliser.actions)[:, None]
    actions = jnp.concatenate([actions, jnp.zeros_like(actions)], axis=1)
    return Condition(normalise(raw_obs, normaliser.observations), actions)


def prediction_of(traj: Array, condition: Condition, normaliser: Normaliser) -> Prediction:
    """Return what a clean ``traj [B, 2, O+2]`` says of the transition; the terminal as it is, for its derivative."""
    following = unnormalise(traj[:, 1, :-2], normaliser.observations)
    reward, terminal = traj[:, 0, -2:-1], traj[:, 0, -1:]
    return Prediction(
        following,
        unnormalise(reward, normaliser.rewards)[:, 0],
        jnp.clip(unnormalise(terminal, normaliser.terminals)[:, 0], 0.0, 1.0),
    )


def diffuse_step(
    sampler: Sampler,
    params: Params,
    normaliser: Normaliser,
    schedule: Coefficients,
    raw_obs: Array,
    executed_actions: Array,
    noise: Array,
) -> Prediction:
    """The reverse diffusion of one step from raw observations ``[B, O]`` under executed actions ``[B, A]``.

    ``noise [K + 1, B, 2, O+2]`` are its draws, as of :func:`sample_given_actions`.
    """
    condition = condition_of(raw_obs, executed_actions, normaliser)
    given = Given(params, policy=None, normaliser=normaliser, initial=condition.initial, delta=jnp.float32(0.0))
    traj = sample_given_actions(sampler, given, schedule, condition.actions, noise)
    return prediction_of(traj, condition, normaliser)


def make_autoregressive(config: Config, spec: EnvSpec) -> WorldModel:
    """Autoregressive diffusion behind the protocol of :class:`WorldModel`.

    ``config.denoiser`` is the network and its training, ``config.diffusion`` N, K and the terminals, and
    ``config.autoregressive.tau`` the schedule. Training windows are ``[B, 2]``; ValueError of any other length.
    """
    diffusion = dataclasses.replace(config.diffusion, tau=config.autoregressive.tau)
    schedule = sampling_coefficients(diffusion)
    draws, how = schedule.step.shape[0] + 1, config.env.actions
    gradient_step = make_gradient_step(config, WINDOW, diffusion)
    sampler = Sampler(make_denoise(config, WINDOW), config.guidance, diffusion.prediction)

    def init(key: Array) -> AutoregressiveState:
        return AutoregressiveState(**init_denoising(config, spec, WINDOW, key))

    def update(
        state: AutoregressiveState, segment: Segment, normaliser: Normaliser, key: Array
    ) -> tuple[AutoregressiveState, Metrics]:
        normaliser = with_terminal_std(normaliser, diffusion.terminal_std)
        choice_key, noise_key = jax.random.split(key)
        steps, *packed = lesson_of(segment, normaliser, choice_key, how)
        return gradient_step(state, tuple(packed), steps, normaliser, noise_key)

    def step(
        state: AutoregressiveState, raw_obs: Array, raw_actions: Array, normaliser: Normaliser, key: Array
    ) -> Prediction:
        normaliser, actions = with_terminal_std(normaliser, diffusion.terminal_std), executed(raw_actions, how)
        noise = jax.random.normal(key, (draws, raw_obs.shape[0], WINDOW, raw_obs.shape[1] + 2))
        prediction = diffuse_step(sampler, state.ema_params, normaliser, schedule, raw_obs, actions, noise)
        if state.classifier is None:
            return prediction
        ends = terminal_classifier.probability(state.classifier.params, raw_obs, raw_actions, normaliser, how)
        return prediction._replace(terminals=ends)

    return WorldModel(init, update, imagine_by(step, config.horizon), step=step, window=WINDOW)
