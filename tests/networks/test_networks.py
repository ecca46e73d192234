"""Sizes, initial distributions, causality, and what an optimiser must leave alone."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from polygrad_jax.agents import a2c
from polygrad_jax.config import A2CConfig, DenoiserConfig, EnvSpec
from polygrad_jax.networks.batch_parts import MIN_ROWS, in_parts, number_of_parts
from polygrad_jax.networks.denoisers import make_denoiser
from polygrad_jax.types import Policy

B, H, O, A = 4, 10, 11, 3  # noqa: E741  (the letters of the docstrings)
CONFIGS = {"mlp": DenoiserConfig(kind="mlp"), "transformer": DenoiserConfig(kind="transformer", token_dim=312)}
SMALL = {
    "mlp": DenoiserConfig(kind="mlp", width=32, num_blocks=2),
    "transformer": DenoiserConfig(kind="transformer", token_dim=32, num_blocks=2),
}


def inputs(key: int = 0) -> tuple[jax.Array, jax.Array, jax.Array]:
    traj = jax.random.normal(jax.random.key(key), (B, H, O + 2))
    act = jax.random.normal(jax.random.key(key + 1), (B, H, A))
    return traj, act, jnp.arange(B, dtype=jnp.int32)


@functools.cache
def init(config: DenoiserConfig):
    """``(module, params, its compiled apply)``."""
    module = make_denoiser(config, H, "float32")
    return module, jax.jit(module.init)(jax.random.key(0), *inputs())["params"], jax.jit(module.apply)


@pytest.fixture(scope="module")
def full_size():
    return {kind: init.__wrapped__(config)[1] for kind, config in CONFIGS.items()}  # too large to keep


@pytest.mark.parametrize(("kind", "count"), [("mlp", 6_664_458), ("transformer", 7_240_909)])
def test_parameter_counts_on_hopper(full_size, kind, count):
    assert sum(leaf.size for leaf in jax.tree.leaves(full_size[kind])) == count


def assert_uniform(x: jax.Array, bound: float):
    x = np.asarray(x).ravel()
    assert np.abs(x).max() <= bound
    assert np.abs(x).max() > 0.9 * bound
    np.testing.assert_allclose(x.std(), bound / np.sqrt(3), rtol=0.1)
    assert abs(x.mean()) < 4 * bound / np.sqrt(3 * x.size)


def test_mlp_starts_as_pytorch_does(full_size):
    params = full_size["mlp"]
    for layer, fan_in in [("embedding", 160), ("input", 160), ("block_0", 1024), ("block_5", 1024), ("output", 1024)]:
        for leaf in ("kernel", "bias"):
            assert_uniform(params[layer][leaf], fan_in**-0.5)
    assert_uniform(params["step_embedding"]["hidden"]["kernel"], 17**-0.5)
    assert params["step_embedding"]["frequencies"].shape == (8,)
    assert params["embedding"]["kernel"].shape == (160, 160)  # E = max(10 * (11 + 2 + 3), 128)


def test_mlp_embedding_has_a_least_width():
    module = make_denoiser(SMALL["mlp"], 2, "float32")
    given = jnp.zeros((1, 2, 5)), jnp.zeros((1, 2, 1)), jnp.zeros(1, jnp.int32)
    params = jax.eval_shape(module.init, jax.random.key(0), *given)
    assert params["params"]["embedding"]["kernel"].shape == (12, 128)


def test_fixed_draws_are_standard_normal():
    module = make_denoiser(SMALL["mlp"], H, "float32")
    start = jax.vmap(lambda key: module.init(key, *inputs())["params"]["step_embedding"]["frequencies"])
    draws = np.ravel(jax.jit(start)(jax.random.split(jax.random.key(0), 100)))
    assert abs(draws.mean()) < 4 / np.sqrt(draws.size)
    np.testing.assert_allclose(draws.std(), 1.0, rtol=0.1)


def test_transformer_starts_as_gpt_does(full_size):
    params = full_size["transformer"]
    residual = 0.02 / np.sqrt(12)
    for block in range(6):
        stds = {"qkv": 0.02, "mlp_hidden": 0.02, "attention_output": residual, "mlp_output": residual}
        for layer, std in stds.items():
            np.testing.assert_allclose(params[f"block_{block}"][layer]["kernel"].std(), std, rtol=0.03)
            assert not params[f"block_{block}"][layer]["bias"].any()
    for kernel in (params["embedding"]["kernel"], params["output"]["kernel"], params["positions"]):
        np.testing.assert_allclose(kernel.std(), 0.02, rtol=0.05)


def test_actor_and_critic_start():
    config = A2CConfig()
    state = a2c.init(jax.random.key(0), EnvSpec(O, A), config)
    _, std = a2c.make_policy_apply(EnvSpec(O, A), config)(state.actor, jnp.zeros((B, H, O)))
    assert std.shape == (B, H, A)
    np.testing.assert_allclose(std, 1.0, rtol=1e-6)  # exp(log(1 - 0.1)) + 0.1
    assert_uniform(state.actor["network"]["hidden_1"]["kernel"], 1 / 16)
    assert_uniform(state.critic["network"]["hidden_0"]["kernel"], O**-0.5)
    assert state.critic["network"]["hidden_0"]["kernel"].unsafe_buffer_pointer() != (
        state.target_critic["network"]["hidden_0"]["kernel"].unsafe_buffer_pointer()
    )  # shared buffers could not be donated


def test_equal_settings_give_the_same_policy_function():
    make = a2c.make_policy_apply
    assert make(EnvSpec(O, A), A2CConfig(), "float32") is make(EnvSpec(O, A), A2CConfig(), "float32")


def test_a_policy_is_asked_about_a_large_batch_in_parts():
    """A policy holds its parameters as a dictionary, which has no hash, and is asked under jit with traced ones."""
    config, raw_obs = A2CConfig(hidden_size=8), jax.random.normal(jax.random.key(1), (2 * MIN_ROWS, 1, O))
    actor = jax.jit(a2c.init, static_argnums=(1, 2))(jax.random.key(0), EnvSpec(O, A), config).actor
    policy = Policy(actor, a2c.make_policy_apply(EnvSpec(O, A), config))
    assert number_of_parts(len(raw_obs), 1) == 2
    for ask in (in_parts, jax.jit(in_parts, static_argnums=1)):
        for parts, whole in zip(ask(policy, 1, raw_obs), policy(raw_obs), strict=True):
            np.testing.assert_allclose(parts, whole, rtol=1e-5, atol=1e-6)


def perturbed_at(time: int) -> dict[str, tuple[jax.Array, jax.Array]]:
    traj, act, _ = inputs()
    return {"state": (traj.at[:, time].add(1.0), act), "action": (traj, act.at[:, time].add(1.0))}


@pytest.mark.parametrize("what", ["state", "action"])
def test_transformer_is_causal(what):
    """A change at time 4 leaves the outputs of times 0 to 3 exactly as they are and alters all later ones."""
    _, params, apply = init(SMALL["transformer"])
    traj, act, step = inputs()
    before = apply({"params": params}, traj, act, step)
    after = apply({"params": params}, *perturbed_at(4)[what], step)
    change = np.abs(np.asarray(after - before)).max(axis=(0, 2))
    assert (change[:4] == 0.0).all()
    assert (change[4:] > 1e-6).all()


def test_mlp_sees_the_whole_trajectory():
    _, params, apply = init(SMALL["mlp"])
    _, _, step = inputs()
    before = apply({"params": params}, *inputs())
    after = apply({"params": params}, *perturbed_at(4)["action"], step)
    assert (np.abs(np.asarray(after - before)).max(axis=(0, 2)) > 1e-6).all()


@pytest.mark.parametrize("kind", ["mlp", "transformer"])
def test_trajectories_of_a_batch_do_not_mix(kind):
    _, params, apply = init(SMALL[kind])
    traj, act, step = inputs()
    together = apply({"params": params}, traj, act, step)
    alone = apply({"params": params}, traj[1:2], act[1:2], step[1:2])
    np.testing.assert_allclose(together[1:2], alone, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", ["mlp", "transformer"])
def test_the_step_matters(kind):
    _, params, apply = init(SMALL[kind])
    traj, act, step = inputs()
    a, b = (apply({"params": params}, traj, act, step + shift) for shift in (0, 1))
    assert float(jnp.max(jnp.abs(a - b))) > 1e-4


def test_transformer_refuses_a_longer_horizon():
    module, params, _ = init(SMALL["transformer"])
    with pytest.raises(ValueError, match="horizon = 11"):
        module.apply({"params": params}, jnp.zeros((1, 11, O + 2)), jnp.zeros((1, 11, A)), jnp.zeros(1, jnp.int32))


def test_adam_leaves_the_fixed_draws_alone():
    module, params, _ = init(SMALL["mlp"])
    traj, act, step = inputs()
    adam = optax.adam(1e-2)

    @jax.jit
    def train(params, moments):
        gradients = jax.grad(lambda p: jnp.mean(jnp.square(module.apply({"params": p}, traj, act, step))))(params)
        with jax.numpy_dtype_promotion("standard"):  # optax
            updates, moments = adam.update(gradients, moments)
        return optax.apply_updates(params, updates), moments

    trained, moments = params, adam.init(params)
    for _ in range(3):
        trained, moments = train(trained, moments)
    unchanged = jax.tree.map(np.array_equal, params, trained)
    assert unchanged["step_embedding"].pop("frequencies")
    assert not any(jax.tree.leaves(unchanged))
