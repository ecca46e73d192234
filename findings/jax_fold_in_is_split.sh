#!/usr/bin/env bash
# jax 0.10.2 with its default random numbers (threefry2x32, jax_threefry_partitionable), CPU.
#
# Behaviour: fold_in(key, i) is split(key)[i], bit for bit (made so on purpose by jax's pull request 13341), and
# split(key, 2) is the beginning of split(key, 5). A program that splits a key for one purpose and folds a number into the
# same key for another has one key twice: both draw the same numbers. With jax_threefry_partitionable off, the default
# before jax 0.5.0, none of these keys are equal, so the same program was right then.
#
# Who is hurt: a training step that splits its key into noise and batch and gives an auxiliary model fold_in(key, 1); a
# library that folds counters into the key it is given while its caller splits that key.
#
# Seen: fold_in(key, i) equals split(key, 4)[i] for i from 0 to 3; normal numbers of both correlate at 1.000; split(key, 2)
# equals split(key, 5)[:2]. With the flag off: no key equal, correlation within 0.01 of 0.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet "jax==0.10.2" "jaxlib==0.10.2" "numpy==2.4.6"
cat > "$folder/keys.py" <<'PYTHON'
import sys

import jax
import numpy as np

partitionable = sys.argv[1] == "on"
jax.config.update("jax_threefry_partitionable", partitionable)


def numbers(keys):
    return np.asarray(jax.random.key_data(keys))


key = jax.random.key(7)
parts = jax.random.split(key, 4)
equal = [bool((numbers(parts[i]) == numbers(jax.random.fold_in(key, i))).all()) for i in range(4)]
beginning = bool((numbers(jax.random.split(key, 2)) == numbers(jax.random.split(key, 5))[:2]).all())
noise, other = (np.asarray(jax.random.normal(k, (100_000,))) for k in (parts[1], jax.random.fold_in(key, 1)))
correlation = float(np.corrcoef(noise, other)[0, 1])
print(f"jax {jax.__version__}, jax_threefry_partitionable {sys.argv[1]}: fold_in(key, i) is split(key, 4)[i]: {equal};")
print(f"    split(key, 2) begins split(key, 5): {beginning}; correlation of what both draw: {correlation:.3f}")
assert equal == [partitionable] * 4, "the keys are otherwise now"
assert beginning == partitionable and (correlation > 0.999) == partitionable and (partitionable or abs(correlation) < 0.01)
PYTHON
for setting in on off; do JAX_PLATFORMS=cpu "$folder/venv/bin/python" "$folder/keys.py" "$setting"; done
