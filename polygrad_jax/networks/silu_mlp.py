"""The multilayer perceptron of all parts of Dreamer-v3 (arXiv 2301.04104v1, Appendix): LayerNorm and SiLU."""

from __future__ import annotations

import flax.linen as nn
import jax

from polygrad_jax.networks.dense import THIN, Dense, matrix_product
from polygrad_jax.networks.layer_norm import LayerNorm
from polygrad_jax.types import Array

_INIT = nn.initializers.variance_scaling(1.0, "fan_avg", "truncated_normal")


class NormedLinear(nn.Module):
    """``x [..., in] -> layer_norm(x @ kernel) [..., features]``: no bias but the norm's, eps 1e-3.

    As published. In the first layer the norm removes the length of a large input: to the encoder an observation and its
    double look almost the same.
    """

    features: int
    precision: str = "float32"

    @nn.compact
    def __call__(self, x: Array) -> Array:
        kernel = self.param("kernel", _INIT, (x.shape[-1], self.features))
        precision = "float32" if min(kernel.shape) <= THIN else self.precision
        return LayerNorm(eps=1e-3, name="norm")(matrix_product(x, kernel, precision))


class SiluMLP(nn.Module):
    """``[..., in] -> [..., units]``: hidden layers of Linear, LayerNorm and SiLU, without an output layer."""

    layers: int
    units: int
    precision: str = "float32"

    @nn.compact
    def __call__(self, x: Array) -> Array:
        for i in range(self.layers):
            x = jax.nn.silu(NormedLinear(self.units, self.precision, name=f"hidden_{i}")(x))
        return x


class SiluHead(nn.Module):
    """``[..., in] -> [..., features]``: a :class:`SiluMLP` and a linear layer, whose first output ``zero`` makes 0."""

    features: int
    layers: int
    units: int
    zero: bool = False
    precision: str = "float32"

    @nn.compact
    def __call__(self, x: Array) -> Array:
        x = SiluMLP(self.layers, self.units, self.precision, name="hidden")(x)
        return linear(self.features, self.precision, self.zero, name="output")(x)


def linear(features: int, precision: str, zero: bool = False, name: str | None = None) -> Dense:
    """Make a linear layer with bias, initialised as in Dreamer-v3."""
    zeros = nn.initializers.zeros_init()
    return Dense(features, precision, kernel_init=zeros if zero else _INIT, bias_init=zeros, name=name)
