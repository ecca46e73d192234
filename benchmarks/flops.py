"""Arithmetic of PolyGRAD, counted from shapes: matrix products only, a multiplication and an addition each.

Everything else (LayerNorm, activations, the sampler's own arithmetic) is below one percent at the paper's sizes.
``tests/diffusion/test_diffusion_identities.py`` holds these numbers against the compiler's own count.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from polygrad_jax.config import Config, EnvSpec
from polygrad_jax.networks.denoisers import EMBED_DIM

HOPPER = EnvSpec(observation_size=11, action_size=3)
"""What benchmarks without an environment are of."""


class Product(NamedTuple):
    """``count`` products ``[rows, inner] @ [inner, columns]`` of one forward pass."""

    count: int
    rows: int
    inner: int
    columns: int
    gradients: int = 2
    """Products of the same size in the backward pass: 2, or 1 where the first operand is data."""


def forward_flops(products: Iterable[Product]) -> int:
    """FLOPs of one forward pass."""
    return sum(2 * p.count * p.rows * p.inner * p.columns for p in products)


def gradient_flops(products: Iterable[Product]) -> int:
    """FLOPs of one forward and one backward pass."""
    return sum(2 * p.count * p.rows * p.inner * p.columns * (1 + p.gradients) for p in products)


def denoiser_flops(config: Config, spec: EnvSpec, batch: int, steps: int | None = None) -> int:
    """FLOPs of one denoiser call on ``batch`` trajectories.

    ``steps`` is how many diffusion steps are embedded: one per trajectory (as in training) unless told otherwise; the
    sampler embeds one for the whole batch, which saves 0.4 % of the paper's residual MLP.
    """
    return forward_flops(denoiser_products(config, spec, batch, batch if steps is None else steps))


def policy_flops(config: Config, spec: EnvSpec, batch: int) -> int:
    """FLOPs of asking the policy about all states of ``batch`` trajectories. Its score needs no further products."""
    return forward_flops(_policy(config, spec, batch))


def training_step_flops(config: Config, spec: EnvSpec, batch: int | None = None) -> int:
    """FLOPs of one gradient step of the denoiser (Algorithm 1) on ``batch`` segments, the config's unless given."""
    batch = config.model_training.batch_size if batch is None else batch
    return gradient_flops(denoiser_products(config, spec, batch, batch))


def imagination_flops(config: Config, spec: EnvSpec, batch: int | None = None) -> int:
    """FLOPs of one run of Algorithm 2 for ``batch`` trajectories, the config's unless given: all K steps."""
    batch = config.a2c.trajectories if batch is None else batch
    one_step = denoiser_flops(config, spec, batch, steps=1) + policy_flops(config, spec, batch)
    return config.diffusion.sampling_steps * one_step


def flops_per_env_step(config: Config, spec: EnvSpec) -> float:
    """FLOPs per environment step once the policy learns: imagination and denoiser updates.

    Learning the policy from what was imagined is not counted: some hundredths of it with A2C, most of all with
    value gradients.
    """
    imagination = imagination_flops(config, spec) / config.loop.env_steps_per_policy_update
    return imagination + config.model_training.updates_per_env_step * training_step_flops(config, spec)


def denoiser_products(config: Config, spec: EnvSpec, batch: int, steps: int) -> Iterator[Product]:
    """Every matrix product of one call of the denoiser; ``steps`` as in :func:`denoiser_flops`."""
    channels, actions, horizon = spec.observation_size + 2, spec.action_size, config.horizon
    width, blocks = config.denoiser.width, config.denoiser.num_blocks
    if config.denoiser.kind == "mlp":
        flat = horizon * (channels + actions)
        embed = max(flat, EMBED_DIM)
        yield Product(1, batch, flat, embed, gradients=1)
        yield Product(1, steps, 17, embed, gradients=1)  # t and 8 sines and cosines of it
        yield Product(1, steps, embed, embed)
        yield Product(1, batch, embed, width)
        yield Product(blocks, batch, width, width)
        yield Product(1, batch, width, horizon * channels)
        return
    embed, heads, tokens = config.denoiser.token_dim, config.denoiser.num_heads, batch * horizon
    yield Product(1, tokens, channels + actions, embed, gradients=1)
    yield Product(1, steps, embed, embed, gradients=1)
    yield Product(1, steps, embed, embed)
    for columns, inner in ((3 * embed, embed), (embed, embed), (4 * embed, embed), (embed, 4 * embed)):
        yield Product(blocks, tokens, inner, columns)
    # Attention's two products. The causal half is computed and masked, so it counts.
    yield Product(blocks * batch * heads, horizon, embed // heads, horizon)
    yield Product(blocks * batch * heads, horizon, horizon, embed // heads)
    yield Product(1, tokens, embed, channels)


def _policy(config: Config, spec: EnvSpec, batch: int) -> Iterator[Product]:
    rows, hidden = batch * config.horizon, config.a2c.hidden_size
    yield Product(1, rows, spec.observation_size, hidden, gradients=1)
    yield Product(1, rows, hidden, hidden)
    yield Product(1, rows, hidden, spec.action_size)
