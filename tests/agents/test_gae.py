"""GAE against numbers worked by hand; gamma = 0.5, lambda = 0.5, so gamma * lambda = 0.25."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from polygrad_jax.agents.gae import gae

REWARDS = [1.0, 2.0, 4.0, 100.0]  # the last one belongs to no transition of the segment
VALUES = [2.0, 4.0, 8.0, 16.0]


def advantages_and_targets(terminals: list[float]) -> tuple[jax.Array, jax.Array]:
    return gae(jnp.array([REWARDS]), jnp.array([VALUES]), jnp.array([terminals]), 0.5, 0.5)


def test_truncation_bootstraps_from_the_last_state():
    # No terminal: the horizon, or a time limit, cuts the trajectory.
    # errors: k = 2:  4 + 0.5 * 16 - 8 = 4
    #         k = 1:  2 + 0.5 * 8  - 4 = 2
    #         k = 0:  1 + 0.5 * 4  - 2 = 1
    # advantages: 4;  2 + 0.25 * 4 = 3;  1 + 0.25 * 3 = 1.75
    # targets:    4 + 8 = 12;  3 + 4 = 7;  1.75 + 2 = 3.75
    advantages, targets = advantages_and_targets([0.0, 0.0, 0.0, 0.0])
    np.testing.assert_array_equal(advantages, [[1.75, 3.0, 4.0]])
    np.testing.assert_array_equal(targets, [[3.75, 7.0, 12.0]])


def test_terminal_neither_bootstraps_nor_hears_of_what_follows():
    # The transition k = 1 ends the episode.
    # errors: k = 2:  4 (as above; padding, reality weight 0)
    #         k = 1:  2 + 0 - 4 = -2
    #         k = 0:  1 + 0.5 * 4 - 2 = 1
    # advantages: 4;  -2 + 0 * 4 = -2;  1 + 0.25 * -2 = 0.5
    # targets:    12;  -2 + 4 = 2;  0.5 + 2 = 2.5
    advantages, targets = advantages_and_targets([0.0, 1.0, 0.0, 0.0])
    np.testing.assert_array_equal(advantages, [[0.5, -2.0, 4.0]])
    np.testing.assert_array_equal(targets, [[2.5, 2.0, 12.0]])


def test_the_last_states_terminal_and_reward_are_not_used():
    for terminal in (0.0, 1.0):
        advantages, _ = advantages_and_targets([0.0, 0.0, 0.0, terminal])
        np.testing.assert_array_equal(advantages, [[1.75, 3.0, 4.0]])


def test_lambda_one_is_the_discounted_return():
    # targets: k = 2:  4 + 0.5 * 16 = 12;  k = 1:  2 + 0.5 * 12 = 8;  k = 0:  1 + 0.5 * 8 = 5
    zeros = jnp.zeros((1, 4))
    _, targets = gae(jnp.array([REWARDS]), jnp.array([VALUES]), zeros, 0.5, 1.0)
    np.testing.assert_array_equal(targets, [[5.0, 8.0, 12.0]])


def test_lambda_zero_is_the_one_step_target():
    # targets: r + 0.5 V': 1 + 2 = 3;  2 + 4 = 6;  4 + 8 = 12
    _, targets = gae(jnp.array([REWARDS]), jnp.array([VALUES]), jnp.zeros((1, 4)), 0.5, 0.0)
    np.testing.assert_array_equal(targets, [[3.0, 6.0, 12.0]])


def test_trajectories_do_not_mix():
    keys = jax.random.split(jax.random.key(0), 2)
    rewards, values = (jax.random.normal(key, (5, 6)) for key in keys)
    terminals = jnp.zeros((5, 6)).at[2, 3].set(1.0)
    together, _ = gae(rewards, values, terminals, 0.99, 0.9)
    for b in range(5):
        alone, _ = gae(rewards[b : b + 1], values[b : b + 1], terminals[b : b + 1], 0.99, 0.9)
        np.testing.assert_allclose(together[b], alone[0], rtol=1e-6)
