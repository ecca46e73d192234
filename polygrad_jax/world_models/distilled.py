"""Autoregressive diffusion distilled: the end of each step's reverse diffusion, in one or a few network calls.

A consistency model (Song et al. 2023, arXiv 2303.01469) learns beside autoregressive diffusion, its teacher: at every
noise level it gives the clean transition at which the teacher's deterministic reverse diffusion (DDIM, eta = 0) from
there ends. Where the teacher is asked once it says the mean of all that may follow; the student says one of it, which
the noise chooses.

The policy is asked for an action at every predicted state, so that the actions are its own at any entropy, and no
guidance is needed. ``step`` is differentiable in states and actions at the price of those few calls.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax

from polygrad_jax.config import Config, DenoiserOutput, EnvSpec
from polygrad_jax.data.normaliser import executed
from polygrad_jax.diffusion.denoising_loss import Denoise, clean_from_output, set_initial_state, with_terminal_std
from polygrad_jax.diffusion.schedule import Coefficients, add_noise, coefficients, posterior_mean, strided_steps
from polygrad_jax.optimising import stepped
from polygrad_jax.types import Array, Metrics, Normaliser, Params, Prediction, Segment, WorldModel
from polygrad_jax.world_models import terminal_classifier
from polygrad_jax.world_models.autoregressive import (
    WINDOW,
    AutoregressiveState,
    Condition,
    condition_of,
    lesson_of,
    prediction_of,
)
from polygrad_jax.world_models.polygrad import average, init_denoising, make_denoise, make_gradient_step
from polygrad_jax.world_models.rollout import imagine_by


@flax.struct.dataclass
class DistilledState:
    """Everything that teacher and student learn."""

    teacher: AutoregressiveState
    params: Params
    ema_params: Params  # what imagines, and what the student's targets are taken from
    adam: Any


class Distilling(NamedTuple):
    """What is fixed in learning and asking the student."""

    denoise: Denoise
    path: Coefficients  # [K] of the teacher's deterministic reverse diffusion, ascending
    prediction: DenoiserOutput


def levels_of_calls(calls: int, steps: int) -> np.ndarray:
    """Return the steps ``[calls]`` of K at which the student is asked: from the noisiest evenly down, each once."""
    return np.round(steps * (1.0 - np.arange(calls) / calls)).astype(np.int64) - 1


def coefficients_at(path: Coefficients, level: Array) -> Coefficients:
    """Return the coefficients ``[B, 1, 1]`` of the steps ``level [B]``."""
    return jax.tree.map(lambda x: x[level][:, None, None], path)


def clean_at(d: Distilling, params: Params, noisy: Array, given: Condition, level: Array, teaches: bool) -> Array:
    """Return the clean transition ``[B, 2, O+2]`` that a network gives for ``noisy`` at ``level`` (0 to K - 1).

    Args:
      level: ``[B]``, or ``[1]`` for all.
      teaches: whether the network is the teacher. It was shown actions scaled like the clean transition, of which
        nothing is left where all is noise: asked there, it gives the mean over all actions. The student is shown them
        as they are.
    """
    c = coefficients_at(d.path, level)
    noisy = set_initial_state(noisy, given.initial)
    actions = c.sqrt_alpha_bar * given.actions if teaches else given.actions
    output = d.denoise(params, noisy, actions, d.path.step[level])
    return set_initial_state(clean_from_output(output, noisy, given.initial, c, d.prediction), given.initial)


def distillation_targets(
    d: Distilling, teacher: Params, student: Params, noisy: Array, given: Condition, level: Array
) -> Array:
    """Return what the student is to say at ``noisy [B, 2, O+2]``: what it says one step of the teacher's further on.

    At the last step (``level`` 0) it is what the teacher says. No gradient passes.
    """
    clean = clean_at(d, teacher, noisy, given, level, True)
    c = coefficients_at(d.path, level)
    nearer = posterior_mean(clean, set_initial_state(noisy, given.initial), c)  # eta = 0: the whole step
    further = clean_at(d, student, nearer, given, jnp.maximum(level - 1, 0), False)
    return jax.lax.stop_gradient(jnp.where(level[:, None, None] == 0, clean, further))


def leap(d: Distilling, params: Params, condition: Condition, levels: np.ndarray, noise: Array) -> Array:
    """Return clean transitions ``[B, 2, O+2]`` by a call at each of ``levels``; ``noise [calls, B, 2, O+2]``.

    Every call but the first begins from the last one's answer, made noisy again (arXiv 2303.01469, Algorithm 1).
    """
    clean = jnp.zeros_like(noise[0])
    for call, (level, draw) in enumerate(zip(levels, noise, strict=True)):
        c = jax.tree.map(lambda x, level=level: x[level], d.path)
        noisy = draw if call == 0 else add_noise(clean, draw, c)
        clean = clean_at(d, params, noisy, condition, jnp.full(1, level, jnp.int32), False)
    return clean


def make_distilled(config: Config, spec: EnvSpec) -> WorldModel:
    """Distilled diffusion behind the protocol of :class:`WorldModel`.

    ``config.denoiser`` is the network of both, and their training; ``config.diffusion`` has N,
    ``config.autoregressive.tau`` the schedule, ``config.distilled`` the K steps that are distilled and the network
    calls. Training windows are ``[B, 2]``; ValueError of any other length.
    """
    diffusion = dataclasses.replace(config.diffusion, tau=config.autoregressive.tau)
    steps = strided_steps(diffusion.num_steps, config.distilled.steps)
    levels = levels_of_calls(config.distilled.calls, len(steps))
    path = coefficients(diffusion.num_steps, steps, diffusion.tau, eta=0.0)
    distilling = Distilling(make_denoise(config, WINDOW), path, diffusion.prediction)
    teach = make_gradient_step(config, WINDOW, diffusion)
    adam = optax.adam(config.denoiser.learning_rate)
    how = config.env.actions

    def init(key: Array) -> DistilledState:
        teacher = AutoregressiveState(**init_denoising(config, spec, WINDOW, key))
        student = jax.tree.map(jnp.copy, (teacher.params, teacher.ema_params, teacher.adam))
        return DistilledState(teacher, *student)

    def update(
        state: DistilledState, segment: Segment, normaliser: Normaliser, key: Array
    ) -> tuple[DistilledState, Metrics]:
        normaliser = with_terminal_std(normaliser, diffusion.terminal_std)
        choice_key, teacher_key, level_key, noise_key = jax.random.split(key, 4)
        taken, normed_traj, actions = lesson_of(segment, normaliser, choice_key, how)
        teacher, metrics = teach(state.teacher, (normed_traj, actions), taken, normaliser, teacher_key)
        level = jax.random.randint(level_key, normed_traj.shape[:1], 0, len(steps), jnp.int32)
        noise = jax.random.normal(noise_key, normed_traj.shape)
        noisy = add_noise(normed_traj, noise, coefficients_at(path, level))
        asked = (noisy, Condition(normed_traj[:, 0, :-2], actions), level)
        targets = distillation_targets(distilling, state.teacher.ema_params, state.ema_params, *asked)

        def loss(params: Params) -> Array:
            return jnp.square(clean_at(distilling, params, *asked, False) - targets).mean()

        value, gradients = jax.value_and_grad(loss)(state.params)
        params, adam_state = stepped(adam, gradients, state.params, state.adam)
        ema_params = average(state.ema_params, params, state.teacher.updates, config.denoiser.ema_decay)
        return DistilledState(teacher, params, ema_params, adam_state), metrics | {
            "world_model/distillation_loss": value
        }

    def step(
        state: DistilledState, raw_obs: Array, raw_actions: Array, normaliser: Normaliser, key: Array
    ) -> Prediction:
        normaliser, actions = with_terminal_std(normaliser, diffusion.terminal_std), executed(raw_actions, how)
        condition = condition_of(raw_obs, actions, normaliser)
        noise = jax.random.normal(key, (len(levels), raw_obs.shape[0], WINDOW, raw_obs.shape[1] + 2))
        traj = leap(distilling, state.ema_params, condition, levels, noise)
        prediction = prediction_of(traj, condition, normaliser)
        if state.teacher.classifier is None:
            return prediction
        classifier = state.teacher.classifier.params
        ends = terminal_classifier.probability(classifier, raw_obs, raw_actions, normaliser, how)
        return prediction._replace(terminals=ends)

    return WorldModel(init, update, imagine_by(step, config.horizon), step=step, window=WINDOW)
