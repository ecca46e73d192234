"""Choose the denoising network."""

from __future__ import annotations

import flax.linen as nn

from polygrad_jax.config import DenoiserConfig
from polygrad_jax.networks.causal_transformer import TransformerDenoiser
from polygrad_jax.networks.residual_mlp import ResidualMLPDenoiser

EMBED_DIM = 128
"""Least width of the residual MLP's embedding (paper, Table 2)."""

__all__ = ["ResidualMLPDenoiser", "TransformerDenoiser", "make_denoiser"]


def make_denoiser(config: DenoiserConfig, horizon: int, precision: str) -> nn.Module:
    """Make the network of ``config`` for trajectories of ``horizon`` states.

    ``apply({"params": p}, normed_traj [B, H, O + 2], normed_actions [B, H, A], step [B] or [1]) -> [B, H, O + 2]``.
    """
    if config.kind == "mlp":
        return ResidualMLPDenoiser(config.width, config.num_blocks, EMBED_DIM, precision)
    return TransformerDenoiser(config.token_dim, config.num_heads, config.num_blocks, horizon, precision)
