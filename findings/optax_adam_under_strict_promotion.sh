#!/usr/bin/env bash
# optax 0.2.8 with jax 0.10.2.
#
# Behaviour: with jax_numpy_dtype_promotion set to "strict" (JAX's own check against silent promotion), optax.adam and
# optax.adamw raise TypePromotionError in their first update of float32 parameters with float32 gradients. Bias
# correction raises a float to the power of the int32 step counter. optax.sgd, optax.rmsprop and optax.lion do not
# raise. So a program that checks its own arithmetic has to switch the check off around the optimiser.
#
# Seen: adam: TypePromotionError, adamw: TypePromotionError, sgd: fine, rmsprop: fine, lion: fine
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet "jax[cpu]==0.10.2" "optax==0.2.8"
"$folder/venv/bin/python" - <<'PYTHON'
import jax
import jax.numpy as jnp
import optax

jax.config.update("jax_numpy_dtype_promotion", "strict")


def outcome(optimiser):
    """What one update of float32 parameters does."""
    params = jnp.ones(3, jnp.float32)
    try:
        optimiser.update(jnp.ones(3, jnp.float32), optimiser.init(params), params)
    except Exception as error:  # noqa: BLE001  its name is what is looked at
        return type(error).__name__
    return "fine"


seen = {name: outcome(getattr(optax, name)(1e-3)) for name in ("adam", "adamw", "sgd", "rmsprop", "lion")}
print(", ".join(f"{name}: {what}" for name, what in seen.items()))
raising = [name for name, what in seen.items() if what == "TypePromotionError"]
assert raising == ["adam", "adamw"] and set(seen.values()) == {"TypePromotionError", "fine"}, "this has changed"
PYTHON
