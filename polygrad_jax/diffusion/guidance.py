"""How actions follow the policy during diffusion: the paper's rule, its ablations, and the controller of delta.

A rule is a small strategy: which states the policy reads, how raw actions move, and what else it touches.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from polygrad_jax.config import GuidanceConfig
from polygrad_jax.types import Array, Metrics


class States(NamedTuple):
    """Normalised states ``[B, H, O]`` that a policy could be asked about in one diffusion step."""

    noisy: Array  # the trajectory as it is before the step
    clean: Array  # the predicted clean trajectory
    posterior_mean: Array  # where the step is going


class Gaussian(NamedTuple):
    """The policy at some states: mean and std ``[B, H, A]`` in raw action units."""

    mean: Array
    std: Array


Move = Callable[[Array, Gaussian, Array, Array], tuple[Array, bool]]
"""``(raw_actions, policy, delta, normal draws) -> (raw_actions, whether diffusion noise is added to them)``."""


def log_prob(actions: Array, policy: Gaussian) -> Array:
    """Log-density ``[B, H]`` of raw actions, summed over action dimensions, without its constant."""
    return (-0.5 * jnp.square((actions - policy.mean) / policy.std) - jnp.log(policy.std)).sum(-1)


def score(actions: Array, policy: Gaussian) -> Array:
    """Gradient of log pi(a | s) with respect to the raw actions (Algorithm 2, line 10); ``[B, H, A]``."""
    return jax.grad(lambda a: log_prob(a, policy).sum())(actions)


def clip_to_policy(actions: Array, policy: Gaussian, clip_std: float) -> Array:
    """Raw actions clipped to ``mean +- clip_std * std`` (Eq. 11)."""
    return jnp.clip(actions, policy.mean - clip_std * policy.std, policy.mean + clip_std * policy.std)


def _follow_score(actions: Array, policy: Gaussian, delta: Array, draws: Array) -> tuple[Array, bool]:
    return actions + delta * score(actions, policy), True


def _sample_policy(actions: Array, policy: Gaussian, delta: Array, draws: Array) -> tuple[Array, bool]:
    return policy.mean + policy.std * draws, False


def _keep(actions: Array, policy: Gaussian, delta: Array, draws: Array) -> tuple[Array, bool]:
    return actions, False


class Rule(NamedTuple):
    """One way of guiding actions.

    Attributes:
      move: what happens to the raw actions in every step but the last.
      reads: which states the policy is asked about.
      clips: whether the last step clips actions to the policy; it moves them under no rule.
      clips_while_moving: whether, where ``clips``, the steps before clip them too, before they move.
      moves_states: also follow the gradient of the log-density with respect to the states (Eq. 8).
      tunes_delta: whether the controller of delta (Eq. 10) runs.
    """

    move: Move = _follow_score
    reads: Callable[[States], Array] = lambda states: states.clean
    clips: bool = True
    clips_while_moving: bool = True
    moves_states: bool = False
    tunes_delta: bool = True


RULES: dict[str, Rule] = {
    "score": Rule(),
    "random_actions": Rule(move=_keep, clips_while_moving=False, tunes_delta=False),
    "policy_sampling": Rule(move=_sample_policy, clips_while_moving=False, tunes_delta=False),
    "no_clipping": Rule(clips=False),
    "state_update": Rule(moves_states=True),
    "noisy_states": Rule(reads=lambda states: states.noisy),
    "posterior_mean": Rule(reads=lambda states: states.posterior_mean),
}


def standardise(actions: Array, policy: Gaussian) -> Array:
    """``(a - mu(s)) / sigma(s)`` (Eq. 9)."""
    return (actions - policy.mean) / policy.std


def sigma_of(standardised: Array) -> Array:
    """The standard deviation of Eq. 10: unbiased over batch and time per action dimension, then averaged."""
    return jnp.std(standardised, axis=(0, 1), ddof=1).mean()


def delta_bounds(policy: Gaussian, config: GuidanceConfig) -> tuple[Array, Array]:
    """Least and largest delta for this policy, from its smallest mean variance over action dimensions.

    One step multiplies the distance from the mean by ``1 - delta / sigma^2``: past 1 a larger delta widens the
    actions instead of narrowing them, and the controller would push the wrong way.
    """
    variance = jnp.square(policy.std).mean((0, 1)).min()
    largest = config.max_delta_over_variance * variance
    return largest * 1e-6, largest


def update_log_delta(log_delta: Array, sigma: Array, policy: Gaussian, config: GuidanceConfig) -> Array:
    """Eq. 10 on log delta: ``log delta += lr * (sigma - 1)``, kept inside :func:`delta_bounds`.

    DEVIATION from paper and official code: both leave delta unbounded.
    """
    low, high = delta_bounds(policy, config)
    return jnp.clip(log_delta + config.delta_lr * (sigma - 1.0), jnp.log(low), jnp.log(high))


def action_metrics(standardised: Array) -> Metrics:
    """What is logged of standardised actions ``[B, T, A]``: sigma, mean, excess kurtosis and a histogram."""
    z = standardised - standardised.mean((0, 1), keepdims=True)
    variance = jnp.square(z).mean((0, 1))
    kurtosis = (jnp.square(jnp.square(z)).mean((0, 1)) / jnp.square(variance) - 3.0).mean()
    bins = jnp.clip(jnp.floor((standardised.ravel() + 4.0) * 5.0), 0, 39).astype(jnp.int32)
    return {
        "guidance/sigma": sigma_of(standardised),
        "guidance/standardised_mean": standardised.mean(),
        "guidance/excess_kurtosis": kurtosis,
        "guidance/standardised_histogram": jnp.zeros(40, jnp.int32).at[bins].add(1),
    }
