"""Estimate advantages by GAE (Schulman et al. 2016, Eq. 16)."""

from __future__ import annotations

import chex
import jax.numpy as jnp
from jax import lax

from polygrad_jax.types import Array


def gae(rewards: Array, values: Array, terminals: Array, gamma: float, lam: float) -> tuple[Array, Array]:
    """Compute advantages and value targets of the H - 1 transitions; the last state only bootstraps.

        error_k     = r_k + gamma (1 - terminal_k) V_{k+1} - V_k
        advantage_k = error_k + gamma lam (1 - terminal_k) advantage_{k+1}
        target_k    = advantage_k + V_k

    A trajectory that stops without a terminal (a time limit, the end of the horizon) bootstraps from its last value.

    Args:
      rewards: ``[B, H]`` raw.
      values: ``[B, H]`` raw.
      terminals: ``[B, H]`` 0 or 1.

    Returns:
      advantages ``[B, H - 1]``, targets ``[B, H - 1]``.
    """
    chex.assert_rank(rewards, 2, custom_message="rewards")
    chex.assert_shape([values, terminals], rewards.shape, custom_message="values, terminals")
    alive = 1.0 - terminals[:, :-1]
    errors = rewards[:, :-1] + gamma * alive * values[:, 1:] - values[:, :-1]

    def backwards(later: Array, step: tuple[Array, Array]) -> tuple[Array, Array]:
        error, discount = step
        advantage = error + discount * later
        return advantage, advantage

    start = jnp.zeros_like(errors[:, 0])
    _, advantages = lax.scan(backwards, start, (errors.T, (gamma * lam * alive).T), reverse=True)
    return advantages.T, advantages.T + values[:, :-1]
