#!/usr/bin/env bash
# optax 0.2.8 with jax 0.10.2 on CPU.
#
# Expected: optax.adam on bfloat16 parameters does what it does on float32 ones, to two digits.
#
# Behaviour: the mean of the squared gradients is kept in the parameters' type, and 0.999 in bfloat16 is 1. So the
# "mean" never falls: it grows until a new square is less than half a unit of its last place. When gradients shrink a
# hundredfold the step shrinks with them for good, where in float32 it is back at the learning rate after some thousand
# updates. mu_dtype concerns the other mean alone, and there is no setting for this one.
#
# Who is hurt: models and policies trained in bfloat16 throughout: the learning rate falls by itself after a phase of
# large gradients, as at the start of training or where a reward is found. Parameters in float32, computed in bfloat16,
# are not affected.
#
# Seen: float32: step 1.0000 of 1, mean of squares 0.0001 (true 0.0001); bfloat16: step 0.0140 of 1, mean of squares
# 0.5000 (true 0.0001)
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet "jax[cpu]==0.10.2" "optax==0.2.8"
JAX_PLATFORMS=cpu "$folder/venv/bin/python" - <<'PYTHON'
import jax
import jax.numpy as jnp
import optax


def last_step(dtype):
    """Return the last step of a rate of 1, and the mean of squares, after 1,000 gradients of 1 and 20,000 of 0.01."""
    optimiser = optax.adam(1.0)

    def update(state, gradient):
        step, state = optimiser.update(gradient, state)
        return state, step

    gradients = jnp.concatenate([jnp.ones((1_000, 1)), jnp.full((20_000, 1), 0.01)]).astype(dtype)
    state, steps = jax.lax.scan(update, optimiser.init(jnp.zeros(1, dtype)), gradients)
    step, squares = -float(steps[-1, 0]), float(state[0].nu[0])
    print(f"{dtype.__name__}: step {step:.4f} of 1, mean of squares {squares:.4f} (true 0.0001)")
    return step, squares


(step, squares), (coarse_step, coarse_squares) = last_step(jnp.float32), last_step(jnp.bfloat16)
assert step > 0.99 and squares < 0.0002 and coarse_step < 0.02 and coarse_squares == 0.5, "this has changed"
PYTHON
