"""Sample guided trajectories with a fitted denoiser, any guidance, any subset of steps, and any std of the policy."""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.harness.opened_runs import Fitted
from polygrad_jax.config import Config
from polygrad_jax.data.normaliser import normalise
from polygrad_jax.diffusion.denoising_loss import unpack
from polygrad_jax.diffusion.guidance import RULES, Gaussian, largest_delta, sigma_of, standardise, update_log_delta
from polygrad_jax.diffusion.sampler import Given, sample, sample_given_actions
from polygrad_jax.diffusion.schedule import Coefficients
from polygrad_jax.types import Array, Params, Policy, PolicyApply, Segment
from polygrad_jax.world_models.polygrad import make_sampler

SETTLING_ACTIONS, ROUNDS = 2560, 80
"""Imagined actions in each of the rounds in which delta settles before anything is measured."""
DELTA_LR = 0.3
"""Of log delta while it settles."""
FIRST_DELTA = 0.05
"""In variances of the policy."""


def with_std(policy_apply: PolicyApply) -> PolicyApply:
    """Replace the std of a policy: parameters become ``(actor, std)``, a scalar or ``[A]``."""

    def apply(params: tuple[Params, Array], raw_obs: Array) -> tuple[Array, Array]:
        mean, _ = policy_apply(params[0], raw_obs)
        return mean, jnp.broadcast_to(params[1], mean.shape)

    return apply


class Imagined(NamedTuple):
    """What Algorithm 2 returned, normalised."""

    traj: Array  # [B, H, O + 2]
    actions: Array  # [B, H, A]
    before: Array  # [B, H, A]: the actions before the last step


class GuidedSampler:
    """Algorithm 2 with one fitted denoiser under one rule and schedule, compiled once for any std of the policy."""

    def __init__(self, fitted: Fitted, config: Config, schedule: Coefficients):
        self.fitted, self.config = fitted, config
        self._policy_apply = with_std(fitted.policy.apply)
        self._sampler, self._schedule = make_sampler(config), schedule
        self.imagine = jax.jit(self._imagine, static_argnums=2)
        self.told = jax.jit(self._told)
        self.settle = jax.jit(partial(self._settle, rounds=ROUNDS))

    def given(self, raw_obs: np.ndarray | Array, std: float | np.ndarray | Array, log_delta: Array) -> Given:
        """Return what one run of Algorithm 2 is given, from raw observations ``[B, O]``."""
        fitted = self.fitted
        initial = normalise(jnp.asarray(raw_obs), fitted.normaliser.observations)
        policy = Policy((fitted.policy.params, jnp.asarray(std, jnp.float32)), self._policy_apply)
        return Given(fitted.state.ema_params, policy, fitted.normaliser, initial, jnp.exp(log_delta))

    def _imagine(self, given: Given, key: Array, keep: bool = False, residual: Array | None = None) -> Imagined:
        horizon, size = self.config.horizon, self.fitted.run.spec.action_size
        traj, actions, steps = sample(
            self._sampler, given, self._schedule, key, horizon, size, keep_steps=keep, residual=residual
        )
        # only what the last step did is asked for: with K = 1 it moved the actions from nowhere we know
        before = steps[1][-2] if keep and self._schedule.step.shape[0] > 1 else actions
        return Imagined(traj, actions, before)

    def round(self, log_delta: Array, given: Given, key: Array) -> Array:
        """Return log delta after one imagined batch and one step of its controller (Eq. 10)."""
        imagined = self._imagine(given._replace(delta=jnp.exp(log_delta)), key)
        segment = unpack(imagined.traj, imagined.actions, given.normaliser)
        policy = Gaussian(*given.policy(segment.observations[:, :-1]))
        sigma = sigma_of(standardise(segment.actions[:, :-1], policy))
        return update_log_delta(log_delta, sigma, largest_delta(policy), self.config.guidance)

    def _settle(self, given: Given, key: Array, rounds: int) -> Array:
        keys = jax.random.split(key, rounds)
        return jax.lax.scan(lambda d, key: (self.round(d, given, key), None), jnp.log(given.delta), keys)[0]

    def settled(self, raw_obs: np.ndarray, std: float | np.ndarray) -> tuple[Array, float]:
        """Return ``(log delta, 1 if it sits at its bound)``; rules that do not tune delta keep the initial one."""
        variance = np.square(std).min()
        log_delta = jnp.log(jnp.float32(FIRST_DELTA * variance))
        if not RULES[self.config.guidance.rule].tunes_delta:
            return log_delta, 0.0
        few = raw_obs[: SETTLING_ACTIONS // self.config.horizon]
        log_delta = self.settle(self.given(few, std, log_delta), jax.random.key(1))
        return log_delta, float(log_delta > np.log(0.97 * variance))

    def _told(self, given: Given, normed_actions: Array, key: Array) -> Array:
        observations = self.fitted.run.spec.observation_size
        shape = (self._schedule.step.shape[0] + 1, *normed_actions.shape[:2], observations + 2)
        noise = jax.random.normal(key, shape)
        return sample_given_actions(self._sampler, given, self._schedule, normed_actions, noise)

    def raw(self, imagined: Imagined) -> Segment:
        """Return what was imagined in raw units, on the host."""
        return jax.device_get(unpack(imagined.traj, imagined.actions, self.fitted.normaliser))
