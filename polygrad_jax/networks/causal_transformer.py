"""The causal transformer and the denoiser built from it (paper, Appendix A and Table 3)."""

from __future__ import annotations

import functools
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from polygrad_jax.networks.batch_parts import in_parts
from polygrad_jax.networks.dense import Dense
from polygrad_jax.networks.layer_norm import LayerNorm
from polygrad_jax.networks.step_embedding import SinusoidalEmbedding
from polygrad_jax.types import Array

INITS = {"kernel_init": nn.initializers.normal(0.02), "bias_init": nn.initializers.zeros_init()}


class KeysValues(NamedTuple):
    """The keys and values of the tokens in a block's S slots: ``[B, heads, S, d]`` each."""

    keys: Array
    values: Array


def causal(horizon: int) -> Array:
    """Return the mask ``[1, 1, H, H]``: a token (third axis) attends to itself and to earlier tokens (last axis)."""
    return jnp.tril(jnp.ones((1, 1, horizon, horizon), bool))


def _attention(q: Array, k: Array, v: Array, visible: Array) -> Array:
    """Attend: ``q [B, heads, H, d]``, ``k, v [B, heads, S, d]``, ``visible [B or 1, 1, H, S]`` -> ``[B, heads, H, d]``.

    Always float32: attention is less than one percent of the arithmetic, and the softmax needs the digits.
    """
    product = functools.partial(jnp.matmul, precision=lax.Precision.HIGHEST)
    scores = product(q, jnp.swapaxes(k, -1, -2)) * q.shape[-1] ** -0.5
    weights = jax.nn.softmax(jnp.where(visible, scores, -jnp.inf), axis=-1)
    return product(weights, v)


def residual_std(num_blocks: int) -> float:
    """Return the initial std of the ``2 * num_blocks`` layers that add to the residual stream (GPT-2)."""
    return 0.02 / (2 * num_blocks) ** 0.5


def _exact_gelu(x: Array) -> Array:
    """Compute ``x Phi(x)`` by erf, as PyTorch; on a CPU erf takes two thirds of the time of jax.nn.gelu's erfc."""
    return 0.5 * x * (1.0 + lax.erf(x * 0.5**0.5))


class Block(nn.Module):
    """Pre-LayerNorm block on tokens ``[B, H, E]``: attention, then a GELU MLP four times as wide."""

    num_heads: int
    residual_std: float
    precision: str

    @nn.compact
    def __call__(
        self, x: Array, visible: Array, cache: KeysValues | None = None, slot: Array | None = None
    ) -> tuple[Array, KeysValues]:
        """Return the tokens after the block, and the keys and values to which the tokens attended.

        With a ``cache`` of S slots the keys and values of the H tokens are first written into the cache from ``slot``
        on, and every token attends to the cache; without a cache, to the H tokens. ``visible`` is
        ``[B or 1, 1, H, S]``.
        """
        batch, horizon, embed_dim = x.shape
        residual = {"kernel_init": nn.initializers.normal(self.residual_std), "bias_init": INITS["bias_init"]}
        qkv = Dense(3 * embed_dim, self.precision, name="qkv", **INITS)(LayerNorm(name="attention_norm")(x))
        heads = (batch, horizon, self.num_heads, embed_dim // self.num_heads)
        # Heads before time: XLA's batched products on a CPU are three times as fast as with time before heads.
        q, k, v = (part.reshape(heads).swapaxes(1, 2) for part in jnp.split(qkv, 3, axis=-1))
        if cache is not None:
            k = lax.dynamic_update_slice_in_dim(cache.keys, k, slot, axis=2)
            v = lax.dynamic_update_slice_in_dim(cache.values, v, slot, axis=2)
        y = _attention(q, k, v, visible).swapaxes(1, 2).reshape(x.shape)
        x = x + Dense(embed_dim, self.precision, name="attention_output", **residual)(y)
        y = Dense(4 * embed_dim, self.precision, name="mlp_hidden", **INITS)(LayerNorm(name="mlp_norm")(x))
        x = x + Dense(embed_dim, self.precision, name="mlp_output", **residual)(_exact_gelu(y))
        return x, KeysValues(k, v)


class TransformerDenoiser(nn.Module):
    """Denoises a trajectory token by token; the token of time k holds state, reward, terminal and action of k.

    ``horizon`` is the largest H; shorter trajectories use the first positions.
    """

    embed_dim: int = 312
    num_heads: int = 4
    num_blocks: int = 6
    horizon: int = 10
    precision: str = "float32"
    is_part: bool = False
    """Whether the module runs on a part of the batch, which only the module itself sets."""

    @nn.compact
    def __call__(self, normed_traj: Array, normed_actions: Array, step: Array) -> Array:
        """Denoise; arguments and result are those of ``ResidualMLPDenoiser``."""
        horizon = normed_traj.shape[1]
        if horizon > self.horizon:
            raise ValueError(f"horizon = {horizon}: this transformer has {self.horizon} positions")
        if not self.is_initializing() and step.shape[0] == 1 and not self.is_part:
            # The activations of a whole batch do not fit into the cache.
            part = self.clone(parent=None, is_part=True)
            return in_parts(lambda t, a: part.apply(self.variables, t, a, step), horizon, normed_traj, normed_actions)
        tokens = jnp.concatenate([normed_traj, normed_actions], axis=-1)
        x = Dense(self.embed_dim, self.precision, name="embedding", **INITS)(tokens)
        positions = self.param("positions", nn.initializers.normal(0.02), (self.horizon, self.embed_dim))
        embedding = SinusoidalEmbedding(self.embed_dim, name="step_embedding", **INITS)(step)
        x = x + positions[None, :horizon] + embedding[:, None, :]
        for i in range(self.num_blocks):
            x, _ = Block(self.num_heads, residual_std(self.num_blocks), self.precision, name=f"block_{i}")(
                x, causal(horizon)
            )
        return Dense(normed_traj.shape[-1], self.precision, name="output", **INITS)(x)
