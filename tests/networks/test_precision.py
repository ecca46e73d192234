"""bfloat16 rounds the operands of matrix products and nothing else: sums and results stay in float32.

A product of k terms with operands rounded to 8 bits has a relative error (against the root of the summed squares) of
about 2^-9 * sqrt(2) = 0.3 %, whatever k. Sums kept in bfloat16 would stop growing after a few hundred terms, and
results rounded to bfloat16 would have at most 8 significant bits.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from polygrad_jax.networks.denoisers import ResidualMLPDenoiser, TransformerDenoiser
from polygrad_jax.networks.dense import Dense, matrix_product

K = 4096


def product(x, kernel, precision):
    return jax.jit(matrix_product, static_argnums=2)(x, kernel, precision)


def relative_error(a, b) -> float:
    return float(jnp.linalg.norm(a - b) / jnp.linalg.norm(b))


def is_rounded_to_bfloat16(x) -> bool:
    return bool(jnp.all(x == x.astype(jnp.bfloat16).astype(jnp.float32)))


def test_sums_are_accumulated_in_float32():
    # 4096 ones: exact in float32; a bfloat16 sum stops at 256, where the spacing is 2
    ones = jnp.ones((1, K))
    assert float(product(ones, jnp.ones((K, 1)), "bfloat16")[0, 0]) == K
    # ... and the result is not rounded: 257 needs 9 bits
    x = jnp.concatenate([jnp.ones((1, 257)), jnp.zeros((1, K - 257))], axis=1)
    assert float(product(x, jnp.ones((K, 1)), "bfloat16")[0, 0]) == 257.0


def test_bound_on_the_product_and_the_mutant_accumulation_in_bfloat16():
    x = jax.random.uniform(jax.random.key(0), (64, K))
    kernel = jax.random.uniform(jax.random.key(1), (K, 64))
    exact = np.asarray(x, np.float64) @ np.asarray(kernel, np.float64)
    exact = jnp.asarray(exact, jnp.float32)
    assert relative_error(product(x, kernel, "float32"), exact) < 1e-6
    ours = product(x, kernel, "bfloat16")
    # 4096 positive terms: the 0.3 % of single terms averages out by sqrt(4096) = 64
    assert 1e-6 < relative_error(ours, exact) < 2e-4
    assert not is_rounded_to_bfloat16(ours)

    def add(total, k):
        term = x[:, k, None].astype(jnp.bfloat16) * kernel[None, k].astype(jnp.bfloat16)
        return total + term, None

    mutant, _ = jax.lax.scan(add, jnp.zeros((64, 64), jnp.bfloat16), jnp.arange(K))
    assert relative_error(mutant.astype(jnp.float32), exact) > 0.1
    rounded = exact.astype(jnp.bfloat16).astype(jnp.float32)
    assert relative_error(rounded, exact) > 1e-3  # nor would a result rounded to bfloat16 pass


@pytest.mark.parametrize("wrt", ["x", "kernel"])
def test_gradients_are_bfloat16_products_with_float32_sums(wrt):
    argument = ["x", "kernel"].index(wrt)
    rows, columns = (64, K) if wrt == "x" else (K, 64)  # the gradient sums over the other one's, K terms
    shapes = [(rows, 64), (64, columns), (rows, columns)]
    x, kernel, weight = (jax.random.uniform(jax.random.key(i), shape) for i, shape in enumerate(shapes))

    def loss(x, kernel, precision):
        return jnp.sum(matrix_product(x, kernel, precision) * weight)

    exact, ours = (jax.jit(jax.grad(loss, argument), static_argnums=2)(x, kernel, p) for p in ("float32", "bfloat16"))
    assert ours.dtype == jnp.float32
    assert 1e-6 < relative_error(ours, exact) < 2e-4
    assert not is_rounded_to_bfloat16(ours)


def test_backward_products_have_bfloat16_operands():
    jaxpr = str(jax.make_jaxpr(jax.grad(lambda x, k: jnp.sum(matrix_product(x, k, "bfloat16") ** 2), (0, 1)))(
        jnp.ones((8, 4)), jnp.ones((4, 2))
    ))
    products = [line for line in jaxpr.splitlines() if "= dot_general[" in line]
    assert len(products) == 3
    assert jaxpr.count("preferred_element_type=float32") == 3
    assert jaxpr.count("new_dtype=bfloat16") == 3  # x, kernel, cotangent: each rounded once


@pytest.mark.parametrize("leading", [(), (5,), (2, 5)])
def test_leading_axes(leading):
    x, kernel = jax.random.normal(jax.random.key(0), (*leading, 3)), jax.random.normal(jax.random.key(1), (3, 4))
    for precision, tolerance in (("float32", 1e-6), ("bfloat16", 2e-2)):
        expected = np.asarray(x) @ np.asarray(kernel)
        np.testing.assert_allclose(product(x, kernel, precision), expected, rtol=1e-6, atol=tolerance * 4)


def test_unknown_precision():
    with pytest.raises(ValueError, match="precision = 'float16'"):
        matrix_product(jnp.ones((1, 1)), jnp.ones((1, 1)), "float16")


def test_parameters_stay_in_float32():
    params = Dense(4, "bfloat16").init(jax.random.key(0), jnp.ones((2, 3)))
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}


@pytest.mark.parametrize(
    ("make", "gradient_bound"),
    [
        # rounding an operand flips a few ReLUs, which switches their gradients on or off altogether
        (lambda p: ResidualMLPDenoiser(256, 6, 128, p), 8e-2),
        (lambda p: TransformerDenoiser(64, 4, 3, 10, p), 2e-2),
    ],
    ids=["mlp", "transformer"],
)
def test_denoisers_agree_between_precisions(make, gradient_bound):
    traj, act = jax.random.normal(jax.random.key(0), (32, 10, 13)), jax.random.normal(jax.random.key(1), (32, 10, 3))
    step = jnp.arange(32, dtype=jnp.int32)
    params = jax.jit(make("float32").init)(jax.random.key(2), traj, act, step)

    def output_and_gradient(module):
        def loss(params):
            out = module.apply(params, traj, act, step)
            return jnp.mean(jnp.square(out - traj)), out

        return jax.jit(jax.grad(loss, has_aux=True))(params)

    (exact_gradient, exact), (gradient, out) = (output_and_gradient(make(p)) for p in ("float32", "bfloat16"))
    assert 1e-5 < relative_error(out, exact) < 1e-2
    flat = lambda tree: jnp.concatenate([leaf.ravel() for leaf in jax.tree.leaves(tree)])  # noqa: E731
    assert relative_error(flat(gradient), flat(exact_gradient)) < gradient_bound
