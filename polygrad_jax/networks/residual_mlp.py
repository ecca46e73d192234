"""The residual MLP denoiser (paper, Appendix A and Table 2)."""

from __future__ import annotations

import flax.linen as nn
import jax.numpy as jnp

from polygrad_jax.networks.dense import Dense
from polygrad_jax.networks.layer_norm import LayerNorm
from polygrad_jax.networks.step_embedding import RandomFourierEmbedding
from polygrad_jax.types import Array


class ResidualMLPDenoiser(nn.Module):
    """Denoises a whole trajectory, flattened, with blocks ``x + linear(relu(layer_norm(x)))``.

    ``embed_dim`` is the least width of the embedding: E = max(H * (O + 2 + A), embed_dim).
    """

    width: int = 1024
    num_blocks: int = 6
    embed_dim: int = 128
    precision: str = "float32"

    @nn.compact
    def __call__(self, normed_traj: Array, normed_actions: Array, step: Array) -> Array:
        """Denoise; all arrays are normalised.

        Args:
          normed_traj: ``[B, H, O + 2]`` noisy observation, reward and terminal of every state.
          normed_actions: ``[B, H, A]`` conditioning actions.
          step: ``[B]`` 0-based diffusion step, or ``[1]`` for one step shared by the whole batch.

        Returns:
          ``[B, H, O + 2]`` what ``config.diffusion.prediction`` says.
        """
        x = jnp.concatenate([normed_traj, normed_actions], axis=-1).reshape(normed_traj.shape[0], -1)
        embed_dim = max(x.shape[-1], self.embed_dim)
        x = Dense(embed_dim, self.precision, name="embedding")(x)
        # DEVIATION from the paper, like the official code: the step embedding is added once, not at every layer.
        x = x + RandomFourierEmbedding(embed_dim, name="step_embedding")(step)
        x = Dense(self.width, self.precision, name="input")(x)
        for i in range(self.num_blocks):
            y = nn.relu(LayerNorm(name=f"norm_{i}")(x))
            x = x + Dense(self.width, self.precision, name=f"block_{i}")(y)
        x = nn.relu(LayerNorm(name="output_norm")(x))
        x = Dense(normed_traj.shape[1] * normed_traj.shape[2], self.precision, name="output")(x)
        return x.reshape(normed_traj.shape)
