"""The linear layer of every network here, in float32 or with bfloat16 operands."""

from __future__ import annotations

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from polygrad_jax.types import Array

Initializer = Callable[..., Array]

THIN = 16
"""A layer of at most this many inputs or outputs (an observation's or an action's size) multiplies in float32: such
layers are a hundredth of the arithmetic, and on a CPU they take two to three times as long in bfloat16."""

_COLUMNS_OF_BOTH = (((1,), (1,)), ((), ()))  # a [m, k], b [n, k] -> a b^T [m, n]


def uniform_by_fan_in(fan_in: int) -> Initializer:
    """Make PyTorch's default initialiser of a linear layer: ``U(-1/sqrt(fan_in), 1/sqrt(fan_in))``."""
    bound = fan_in**-0.5

    def init(key: Array, shape: tuple[int, ...], dtype=jnp.float32) -> Array:
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init


@jax.custom_vjp
def _product_bf16(x: Array, kernel: Array) -> Array:
    """Compute ``x [M, in] @ kernel [in, out]`` with bfloat16 operands, float32 sums and a float32 result.

    The derivative is written out because automatic differentiation would multiply the float32 cotangent
    with a bfloat16 operand, which no accelerator does at full speed.
    """
    return lax.dot(x.astype(jnp.bfloat16), kernel.astype(jnp.bfloat16), preferred_element_type=jnp.float32)


def _product_bf16_forward(x: Array, kernel: Array) -> tuple[Array, tuple[Array, Array]]:
    x, kernel = x.astype(jnp.bfloat16), kernel.astype(jnp.bfloat16)
    return lax.dot(x, kernel, preferred_element_type=jnp.float32), (x, kernel)


def _product_bf16_backward(operands: tuple[Array, Array], cotangent: Array) -> tuple[Array, Array]:
    x, kernel = operands
    g = cotangent.astype(jnp.bfloat16)
    dx = lax.dot_general(g, kernel, _COLUMNS_OF_BOTH, preferred_element_type=jnp.float32)
    # The leading axis of size 1 changes nothing but the speed: XLA's CPU backend (jax 0.10.2) computes
    # x^T g as written here on the bfloat16 units (650 GFLOP/s on two cores at M = 256) and without the axis
    # in float32 (280 GFLOP/s).
    dkernel = jnp.einsum("bmk,bmn->kn", x[None], g[None], preferred_element_type=jnp.float32)
    return dx, dkernel


_product_bf16.defvjp(_product_bf16_forward, _product_bf16_backward)


def matrix_product(x: Array, kernel: Array, precision: str) -> Array:
    """Compute ``x [..., in] @ kernel [in, out] -> [..., out]`` in float32.

    ``precision``: "float32", or "bfloat16" for bfloat16 operands with float32 accumulation, forward and
    backward. In float32 an accelerator must not fall back to its reduced formats (TF32).
    """
    rows = x.reshape(-1, x.shape[-1])
    if precision == "bfloat16":
        out = _product_bf16(rows, kernel)
    elif precision == "float32":
        out = lax.dot(rows, kernel, precision=lax.Precision.HIGHEST)
    else:
        raise ValueError(f"precision = {precision!r}: must be 'float32' or 'bfloat16'")
    return out.reshape(*x.shape[:-1], kernel.shape[-1])


class Dense(nn.Module):
    """``x [..., in] -> x @ kernel + bias [..., features]``; parameters float32, kernel ``[in, features]``.

    Without initialisers, PyTorch's default (see ``uniform_by_fan_in``), which the official code uses.
    """

    features: int
    precision: str = "float32"
    kernel_init: Initializer | None = None
    bias_init: Initializer | None = None

    @nn.compact
    def __call__(self, x: Array) -> Array:
        fan_in = x.shape[-1]
        default = uniform_by_fan_in(fan_in)
        kernel = self.param("kernel", self.kernel_init or default, (fan_in, self.features))
        bias = self.param("bias", self.bias_init or default, (self.features,))
        precision = "float32" if min(fan_in, self.features) <= THIN else self.precision
        return matrix_product(x, kernel, precision) + jnp.expand_dims(bias, tuple(range(x.ndim - 1)))
