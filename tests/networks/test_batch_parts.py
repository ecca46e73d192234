"""A network asked part by part gives what it gives when asked at once, and a policy may be the network."""

import jax
import jax.numpy as jnp
import numpy as np

from polygrad_jax.networks.batch_parts import MIN_ROWS, in_parts, number_of_parts
from polygrad_jax.types import Policy

ROWS_EACH = 10


def linear(params, raw_obs):
    return raw_obs @ params["K"], jnp.exp(params["log_std"])[None, None] * jnp.ones_like(raw_obs[..., :2])


def test_a_policy_is_asked_in_parts():
    """500 trajectories of 10 states, as judging a world model imagines: six parts or so on a CPU, in one program."""
    batch = 500
    assert number_of_parts(batch, ROWS_EACH) > 1 and batch * ROWS_EACH >= 2 * MIN_ROWS
    raw_obs = jax.random.normal(jax.random.key(0), (batch, ROWS_EACH, 3))
    policy = Policy({"K": jnp.arange(6.0).reshape(3, 2), "log_std": jnp.zeros(2)}, linear)
    whole = policy(raw_obs)
    parts = jax.jit(lambda policy, raw_obs: in_parts(policy, ROWS_EACH, raw_obs))(policy, raw_obs)
    for one, other in zip(whole, parts, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)
