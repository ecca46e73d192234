"""The causal transformer denoiser (paper, Appendix A and Table 3)."""

from __future__ import annotations

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from polygrad_jax.networks.dense import Dense
from polygrad_jax.networks.layer_norm import LayerNorm
from polygrad_jax.networks.parts import in_parts
from polygrad_jax.networks.step_embedding import SinusoidalEmbedding
from polygrad_jax.types import Array

_INITS = {"kernel_init": nn.initializers.normal(0.02), "bias_init": nn.initializers.zeros_init()}


def _causal_attention(q: Array, k: Array, v: Array) -> Array:
    """``q, k, v [B, heads, H, d] -> [B, heads, H, d]``: state k attends to states 0 to k.

    Always float32: less than one percent of the arithmetic, and the softmax wants it.
    """
    product = functools.partial(jnp.matmul, precision=lax.Precision.HIGHEST)
    scores = product(q, jnp.swapaxes(k, -1, -2)) * q.shape[-1] ** -0.5
    past = jnp.tril(jnp.ones((1, 1, *scores.shape[-2:]), bool))
    weights = jax.nn.softmax(jnp.where(past, scores, -jnp.inf), axis=-1)
    return product(weights, v)


def _exact_gelu(x: Array) -> Array:
    """``x Phi(x)``; with erf as PyTorch, which on a CPU takes two thirds of the time of jax.nn.gelu's erfc."""
    return 0.5 * x * (1.0 + lax.erf(x * 0.5**0.5))


class _Block(nn.Module):
    """Pre-LayerNorm block on tokens ``[B, H, E]``: attention, then a GELU MLP four times as wide."""

    num_heads: int
    residual_std: float
    precision: str

    @nn.compact
    def __call__(self, x: Array) -> Array:
        batch, horizon, embed_dim = x.shape
        residual = {"kernel_init": nn.initializers.normal(self.residual_std), "bias_init": _INITS["bias_init"]}
        qkv = Dense(3 * embed_dim, self.precision, name="qkv", **_INITS)(LayerNorm(name="attention_norm")(x))
        heads = (batch, horizon, self.num_heads, embed_dim // self.num_heads)
        # Heads before time: XLA's batched products on a CPU are three times as fast as with time before heads.
        q, k, v = (part.reshape(heads).swapaxes(1, 2) for part in jnp.split(qkv, 3, axis=-1))
        y = _causal_attention(q, k, v).swapaxes(1, 2).reshape(x.shape)
        x = x + Dense(embed_dim, self.precision, name="attention_output", **residual)(y)
        y = Dense(4 * embed_dim, self.precision, name="mlp_hidden", **_INITS)(LayerNorm(name="mlp_norm")(x))
        return x + Dense(embed_dim, self.precision, name="mlp_output", **residual)(_exact_gelu(y))


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
    """Set by the module itself where it calls itself on a part of the batch."""

    @nn.compact
    def __call__(self, normed_traj: Array, normed_actions: Array, step: Array) -> Array:
        """One denoiser call; arguments and result as of ``ResidualMLPDenoiser``."""
        horizon = normed_traj.shape[1]
        if horizon > self.horizon:
            raise ValueError(f"horizon = {horizon}: this transformer has {self.horizon} positions")
        if not self.is_initializing() and step.shape[0] == 1 and not self.is_part:
            # All at once, the activations of a long batch do not even fit in memory that is quickly reached.
            part = self.clone(parent=None, is_part=True)
            return in_parts(lambda t, a: part.apply(self.variables, t, a, step), horizon, normed_traj, normed_actions)
        tokens = jnp.concatenate([normed_traj, normed_actions], axis=-1)
        x = Dense(self.embed_dim, self.precision, name="embedding", **_INITS)(tokens)
        positions = self.param("positions", nn.initializers.normal(0.02), (self.horizon, self.embed_dim))
        embedding = SinusoidalEmbedding(self.embed_dim, name="step_embedding", **_INITS)(step)
        x = x + positions[None, :horizon] + embedding[:, None, :]
        residual_std = 0.02 / (2 * self.num_blocks) ** 0.5
        for i in range(self.num_blocks):
            x = _Block(self.num_heads, residual_std, self.precision, name=f"block_{i}")(x)
        return Dense(normed_traj.shape[-1], self.precision, name="output", **_INITS)(x)
