"""The loader of official weights: what it refuses, and that it fills exactly our parameter trees."""

from __future__ import annotations

import builtins
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from polygrad_jax.agents import a2c
from polygrad_jax.config import A2CConfig, DenoiserConfig, EnvSpec
from polygrad_jax.networks import official_weights
from polygrad_jax.networks.denoisers import make_denoiser

PARITY = Path(__file__).parents[1] / "parity"
CONFIGS = {
    "mlp": DenoiserConfig(kind="mlp", width=48),
    "transformer": DenoiserConfig(kind="transformer", token_dim=48, num_blocks=3),
}


def weights_of(name: str) -> dict:
    arrays = np.load(PARITY / f"{name}.npz")
    return {key.removeprefix("param/"): arrays[key] for key in arrays.files if key.startswith("param/")}


def shapes(tree) -> dict:
    return {jax.tree_util.keystr(path): leaf.shape for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


@pytest.mark.parametrize("kind", ["mlp", "transformer"])
def test_denoiser_trees_agree_with_our_own(kind):
    module = make_denoiser(CONFIGS[kind], horizon=10, precision="float32")
    given = jnp.zeros((1, 10, 13)), jnp.zeros((1, 10, 3)), jnp.zeros(1, jnp.int32)
    own = jax.eval_shape(module.init, jax.random.key(0), *given)
    assert shapes(official_weights.denoiser_params(weights_of(f"{kind}_denoiser"), kind)) == shapes(own["params"])


def test_actor_and_critic_trees_agree_with_our_own():
    weights = weights_of("actor_critic")
    own = jax.eval_shape(lambda: a2c.init(jax.random.key(0), EnvSpec(11, 3), A2CConfig(hidden_size=32)))
    assert shapes(official_weights.actor_params(weights)) == shapes(own.actor)
    assert shapes(official_weights.critic_params(weights)) == shapes(own.critic)
    assert shapes(official_weights.critic_params(weights, "critic_target")) == shapes(own.target_critic)


def test_the_two_critics_are_not_confused():
    weights = weights_of("actor_critic")
    for prefix in ("critic", "critic_target"):
        params = official_weights.critic_params(weights, prefix)
        np.testing.assert_array_equal(params["network"]["output"]["bias"], weights[f"{prefix}.model.6.bias"])


def refused(call) -> str:
    with pytest.raises(ValueError) as error:
        call()
    message = str(error.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("mlp", "time_mlp.0.weights"),
        ("mlp", "residual_mlp.network.3.ln.bias"),
        ("mlp", "residual_mlp.network.3.linear.weight"),
        ("transformer", "transformer.wpe.weight"),
        ("transformer", "transformer.h.1.mlp.c_proj.bias"),
    ],
)
def test_missing_name(kind, name):
    weights = weights_of(f"{kind}_denoiser")
    del weights[name]
    message = refused(lambda: official_weights.denoiser_params(weights, kind))
    assert name in message or "residual blocks are numbered [1, 5" in message


@pytest.mark.parametrize("kind", ["mlp", "transformer"])
def test_unknown_name(kind):
    weights = weights_of(f"{kind}_denoiser") | {"model.surprise": np.zeros(1)}
    assert "model.surprise" in refused(lambda: official_weights.denoiser_params(weights, kind))


def test_unknown_and_missing_names_of_actor_and_critic():
    weights = weights_of("actor_critic")
    more = weights | {"surprise": np.zeros(1)}
    assert "surprise" in refused(lambda: official_weights.actor_params(more))
    assert "surprise" in refused(lambda: official_weights.critic_params(more))
    assert "actor.extra" in refused(lambda: official_weights.actor_params(weights | {"actor.extra": np.zeros(1)}))
    less = {name: array for name, array in weights.items() if name != "logstd._bias"}
    assert "logstd._bias" in refused(lambda: official_weights.actor_params(less))


@pytest.mark.parametrize(
    ("kind", "name", "shape"),
    [
        ("mlp", "residual_mlp.network.1.linear.weight", (48, 47)),
        ("mlp", "residual_mlp.network.0.weight", (48, 159)),
        ("mlp", "time_mlp.1.weight", (160, 16)),
        ("mlp", "residual_mlp.final_linear.weight", (130, 47)),
        ("transformer", "transformer.h.0.attn.c_attn.weight", (96, 48)),
        ("transformer", "output_head.weight", (13, 47)),
    ],
)
def test_shape_that_does_not_fit(kind, name, shape):
    weights = weights_of(f"{kind}_denoiser") | {name: np.zeros(shape, np.float32)}
    assert name in refused(lambda: official_weights.denoiser_params(weights, kind))


def test_unknown_kind():
    assert "kind = 'cnn'" in refused(lambda: official_weights.denoiser_params({}, "cnn"))


def test_load_pt_without_torch_names_the_extra(monkeypatch, tmp_path):
    real_import = builtins.__import__

    def without_torch(name, *args, **kwargs):
        if name == "torch":
            raise ImportError(name)
        return real_import(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without_torch)
    with pytest.raises(ImportError, match=r"polygrad_jax\[torch\]"):
        official_weights.load_pt(tmp_path / "checkpoint.pt")


def test_load_pt_round_trip(tmp_path):
    torch = pytest.importorskip("torch")
    weights = weights_of("mlp_denoiser")
    tensors = {name: torch.from_numpy(array) for name, array in weights.items()}
    torch.save({"model": tensors, "step": 3}, tmp_path / "x.pt")
    loaded = official_weights.load_pt(tmp_path / "x.pt")
    assert loaded["step"] == 3
    np.testing.assert_array_equal(loaded["model"]["proj.weight"], weights["proj.weight"])
