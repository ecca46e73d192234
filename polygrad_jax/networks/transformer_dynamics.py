"""The causal transformer as a one-step model of what follows the last of several state-action pairs (Appendix C.2)."""

from __future__ import annotations

import flax.linen as nn
import jax.numpy as jnp

from polygrad_jax.networks.causal_transformer import INITS, Block, KeysValues, residual_std
from polygrad_jax.networks.dense import Dense
from polygrad_jax.types import Array


class TransformerDynamics(nn.Module):
    """The denoiser's transformer without the diffusion step; learnt positions count from the first pair seen.

    DEVIATION from the official code: the token of time k holds state and action of k and predicts the next state with
    the reward and the terminal of k. In the official code it also holds the reward and the terminal of k and predicts
    those of k + 1, whose action it has not seen.
    """

    outputs: int
    context_length: int = 15
    embed_dim: int = 312
    num_heads: int = 4
    num_blocks: int = 6
    precision: str = "float32"

    def empty_cache(self, batch: int) -> tuple[KeysValues, ...]:
        """Make an empty cache of ``context_length`` slots for every block."""
        shape = (batch, self.num_heads, self.context_length, self.embed_dim // self.num_heads)
        return tuple(KeysValues(jnp.zeros(shape), jnp.zeros(shape)) for _ in range(self.num_blocks))

    @nn.compact
    def __call__(
        self,
        normed_pairs: Array,
        first: Array | None = None,
        cache: tuple[KeysValues, ...] | None = None,
        slot: Array | int = 0,
    ) -> tuple[Array, tuple[KeysValues, ...]]:
        """Return ``(outputs [B, T, outputs], cache)`` of T tokens, each of which attends to itself and earlier ones.

        Args:
          normed_pairs: ``[B, T, O + A]`` normalised.
          first: ``[B]`` int32, the slot of the first real token; tokens before are padding, to which no other token
            attends. None where all tokens are real.
          cache: keys and values of the slots before ``slot``, from earlier calls with the same ``first``; the T tokens
            go to the slots from ``slot`` on. None where there are no tokens but the T.
          slot: see ``cache``.

        Raises:
          ValueError: more tokens than ``context_length``.
        """
        tokens = normed_pairs.shape[1]
        if tokens > self.context_length:
            raise ValueError(f"{tokens} state-action pairs: this transformer has {self.context_length} positions")
        table = self.param("positions", nn.initializers.normal(0.02), (self.context_length, self.embed_dim))
        queries = (slot + jnp.arange(tokens))[:, None]
        keys = jnp.arange(tokens if cache is None else self.context_length)[None, :]
        visible = (keys <= queries)[None, None]
        if first is None:
            positions = table[None, :tokens]
        else:
            begins = first[:, None, None, None]
            # A padding token attends to itself, since a softmax over nothing has no value.
            visible = visible & ((keys[None, None] >= begins) | (keys == queries)[None, None])
            positions = table[jnp.maximum(queries[None, :, 0] - first[:, None], 0)]
        x = Dense(self.embed_dim, self.precision, name="embedding", **INITS)(normed_pairs) + positions
        new_cache = []
        for i in range(self.num_blocks):
            block = Block(self.num_heads, residual_std(self.num_blocks), self.precision, name=f"block_{i}")
            x, keys_values = block(x, visible, None if cache is None else cache[i], slot)
            new_cache.append(keys_values)
        return Dense(self.outputs, self.precision, name="output", **INITS)(x), tuple(new_cache)
