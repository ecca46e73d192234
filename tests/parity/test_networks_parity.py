"""Our networks with the official weights give the official outputs (tests/parity/README.md)."""

from __future__ import annotations

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from polygrad_jax.agents import a2c
from polygrad_jax.config import A2CConfig, DenoiserConfig, EnvSpec
from polygrad_jax.networks import official_weights
from polygrad_jax.networks.denoisers import make_denoiser

PARITY = Path(__file__).parent
CONFIGS = {
    "mlp": DenoiserConfig(kind="mlp", width=48, num_blocks=6),
    "transformer": DenoiserConfig(kind="transformer", token_dim=48, num_heads=4, num_blocks=3),
}


def recorded(name: str) -> tuple[dict, dict]:
    """(parameters under official names, all other arrays) of a recorded file."""
    arrays = dict(np.load(PARITY / f"{name}.npz"))
    params = {key.removeprefix("param/"): arrays.pop(key) for key in list(arrays) if key.startswith("param/")}
    return params, arrays


def assert_close(actual, desired):
    np.testing.assert_allclose(actual, desired, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["mlp", "transformer"])
def test_denoiser_equals_the_official_one(kind):
    weights, data = recorded(f"{kind}_denoiser")
    module = make_denoiser(CONFIGS[kind], horizon=10, precision="float32")
    params = official_weights.denoiser_params(weights, kind)
    step = jnp.asarray(data["diffusion_step"], jnp.int32)
    out = jax.jit(module.apply)({"params": params}, jnp.asarray(data["traj"]), jnp.asarray(data["act"]), step)
    assert_close(out, data["out"])


@pytest.mark.parametrize("kind", ["mlp", "transformer"])
def test_one_step_for_the_whole_batch_may_be_passed_once(kind):
    weights, data = recorded(f"{kind}_denoiser")
    module = make_denoiser(CONFIGS[kind], horizon=10, precision="float32")
    params = {"params": official_weights.denoiser_params(weights, kind)}
    traj, act = jnp.asarray(data["traj"]), jnp.asarray(data["act"])
    once = module.apply(params, traj, act, jnp.array([7], jnp.int32))
    each = module.apply(params, traj, act, jnp.full((traj.shape[0],), 7, jnp.int32))
    assert once.shape == traj.shape
    np.testing.assert_allclose(once, each, rtol=1e-5, atol=1e-6)


def test_mutant_step_index_off_by_one():
    weights, data = recorded("mlp_denoiser")
    module = make_denoiser(CONFIGS["mlp"], horizon=10, precision="float32")
    params = {"params": official_weights.denoiser_params(weights, "mlp")}
    step = jnp.asarray(data["diffusion_step"], jnp.int32) + 1
    out = module.apply(params, jnp.asarray(data["traj"]), jnp.asarray(data["act"]), step)
    with pytest.raises(AssertionError):
        assert_close(out, data["out"])


def test_actor_and_critic_equal_the_official_ones():
    weights, data = recorded("actor_critic")
    config = A2CConfig(hidden_size=32, initial_std=0.8, min_std=0.1)
    states = jnp.asarray(data["states"])
    mean, std = a2c.make_policy_apply(EnvSpec(11, 3), config)(official_weights.actor_params(weights), states)
    assert_close(mean, data["mean"])
    assert_close(std, data["std"])
    value = a2c.make_value_apply(config)(official_weights.critic_params(weights), states)
    assert_close(value, data["value"])
