"""Guide actions towards the policy during diffusion: the paper's rule, its ablations, ours, and the tuning of delta.

A rule declares at which states the policy is evaluated, how raw actions move, and what else changes. ``RULES`` is an
open table: an experiment adds rules of its own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from polygrad_jax.config import GuidanceConfig
from polygrad_jax.types import Array, Metrics

LEAST_DELTA_SHARE = 1e-6
"""Smallest delta, as a share of the largest."""
TAIL = 2.9
"""Standardised actions beyond this are counted: ``score`` clips to 3, and what it clips looks moderate to sigma."""


class States(NamedTuple):
    """Normalised states ``[B, H, O]`` of one diffusion step at which a policy could be evaluated."""

    noisy: Array  # of the trajectory before the step
    clean: Array  # of the predicted clean trajectory
    posterior_mean: Array  # of the posterior's mean, towards which the step goes


class Gaussian(NamedTuple):
    """The policy evaluated at states: mean and std ``[B, H, A]`` in raw action units."""

    mean: Array
    std: Array


class Guided(NamedTuple):
    """Actions of one diffusion step, ``[B, H, A]`` each."""

    actions: Array  # raw
    residual: Array  # standardised: the draw that a rule with ``keeps_residual`` keeps over all steps


class Strength(NamedTuple):
    """Strength of a rule in one step; scalars."""

    delta: Array  # in squared raw action units
    relaxation: Array  # fraction of the way to the policy's action
    is_last: Array  # bool: whether this is the last step of the run


Move = Callable[[Guided, Gaussian, Strength, Array], Guided]
"""``(actions before, policy at the states that the rule reads, strength, normal draws) -> actions after``."""


def log_prob(actions: Array, policy: Gaussian) -> Array:
    """Return the log-density ``[B, H]`` of raw actions, summed over action dimensions, without its constant."""
    return (-0.5 * jnp.square((actions - policy.mean) / policy.std) - jnp.log(policy.std)).sum(-1)


def score(actions: Array, policy: Gaussian) -> Array:
    """Return the gradient ``[B, H, A]`` of log pi(a | s) with respect to raw actions (Algorithm 2, line 10)."""
    return jax.grad(lambda a: log_prob(a, policy).sum())(actions)


def clip_to_policy(actions: Array, policy: Gaussian, clip_std: float) -> Array:
    """Clip raw actions to ``mean +- clip_std * std`` (Eq. 11)."""
    return jnp.clip(actions, policy.mean - clip_std * policy.std, policy.mean + clip_std * policy.std)


def _follow_score(before: Guided, policy: Gaussian, strength: Strength, draws: Array) -> Guided:
    return before._replace(actions=before.actions + strength.delta * score(before.actions, policy))


def _sample_policy(before: Guided, policy: Gaussian, strength: Strength, draws: Array) -> Guided:
    return before._replace(actions=policy.mean + policy.std * draws)


def _keep(before: Guided, policy: Gaussian, strength: Strength, draws: Array) -> Guided:
    return before


def _correlate(before: Guided, policy: Gaussian, strength: Strength, draws: Array) -> Guided:
    """Keep one draw z over all steps: ``a = mu + sigma z``, which is N(mu, sigma) given the states.

    With a relaxation w below 1, ``a <- (1 - w) a + w (mu + sigma z)``: the usual remedy for fixed-point iterations that
    overshoot, as a small delta is for the score. Ours; Horizon Imagination (arXiv 2602.08032) keeps one draw over all
    denoising steps in the same way, here for Gaussian actions.
    """
    target = policy.mean + policy.std * before.residual
    return before._replace(actions=(1.0 - strength.relaxation) * before.actions + strength.relaxation * target)


class Rule(NamedTuple):
    """One way of guiding actions.

    Attributes:
      move: the change of the raw actions in every step but the last, and in the last where ``keeps_residual``.
      reads: the states at which the policy is evaluated.
      adds_noise: whether the noise of the diffusion is added to the moved actions.
      clips: whether the last step clips actions to the policy.
      clips_while_moving: whether, where ``clips``, every earlier step clips actions before they move.
      moves_states: whether states follow the gradient of the log-density with respect to the states (Eq. 8).
      tunes_delta: whether delta is tuned (Eq. 10).
      keeps_residual: whether actions are the policy's mean plus its std times a draw kept from step to step. The last
        step then moves actions too, without a new draw, so that they are the policy's actions at the returned states.
    """

    move: Move = _follow_score
    reads: Callable[[States], Array] = lambda states: states.clean
    adds_noise: bool = True
    clips: bool = True
    clips_while_moving: bool = True
    moves_states: bool = False
    tunes_delta: bool = True
    keeps_residual: bool = False


RULES: dict[str, Rule] = {
    "score": Rule(),
    "random_actions": Rule(move=_keep, adds_noise=False, clips_while_moving=False, tunes_delta=False),
    "policy_sampling": Rule(move=_sample_policy, adds_noise=False, clips_while_moving=False, tunes_delta=False),
    "no_clipping": Rule(clips=False),
    "state_update": Rule(moves_states=True),
    "noisy_states": Rule(reads=lambda states: states.noisy),
    "posterior_mean": Rule(reads=lambda states: states.posterior_mean),
    "correlated": Rule(move=_correlate, adds_noise=False, clips=False, tunes_delta=False, keeps_residual=True),
}


def standardise(actions: Array, policy: Gaussian) -> Array:
    """Return ``(a - mu(s)) / sigma(s)`` (Eq. 9)."""
    return (actions - policy.mean) / policy.std


def sigma_of(standardised: Array) -> Array:
    """Return the standard deviation of Eq. 10: unbiased over batch and time per action dimension, then averaged."""
    return jnp.std(standardised, axis=(0, 1), ddof=1).mean()


def largest_delta(policy: Gaussian) -> Array:
    """Return the largest useful delta: the smallest variance over action dimensions, averaged over the states.

    One step multiplies the distance from the mean by ``1 - delta / sigma^2``: past 1 a larger delta widens the
    actions instead of narrowing them, and tuning would move delta in the wrong direction.
    """
    return jnp.square(policy.std).mean((0, 1)).min()


def update_log_delta(log_delta: Array, sigma: Array, largest: Array, config: GuidanceConfig) -> Array:
    """Return log delta after Eq. 10, ``log delta += lr * (sigma - 1)``, with delta between 1e-6 and 1 of ``largest``.

    DEVIATION from paper and official code, which leave delta unbounded.
    """
    return jnp.clip(
        log_delta + config.delta_lr * (sigma - 1.0), jnp.log(largest * LEAST_DELTA_SHARE), jnp.log(largest)
    )


def action_metrics(standardised: Array) -> Metrics:
    """Return the metrics of standardised actions ``[B, T, A]``: sigma, mean, excess kurtosis, tails and a histogram."""
    z = standardised - standardised.mean((0, 1), keepdims=True)
    variance = jnp.square(z).mean((0, 1))
    kurtosis = (jnp.square(jnp.square(z)).mean((0, 1)) / jnp.square(variance) - 3.0).mean()
    bins = jnp.clip(jnp.floor((standardised.ravel() + 4.0) * 5.0), 0, 39).astype(jnp.int32)
    return {
        "guidance/sigma": sigma_of(standardised),
        "guidance/standardised_mean": standardised.mean(),
        "guidance/excess_kurtosis": kurtosis,
        "guidance/tail_share": (jnp.abs(standardised) > TAIL).mean(),
        "guidance/standardised_histogram": jnp.zeros(40, jnp.int32).at[bins].add(1),
    }
