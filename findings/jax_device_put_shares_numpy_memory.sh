#!/usr/bin/env bash
# jax 0.10.2 on CPU.
#
# Expected: jax.device_put gives an array of its own: JAX arrays do not change.
#
# Behaviour: on CPU it takes over the memory of a NumPy array whose data starts at a multiple of 64 bytes, and copies
# any other. Writing to the NumPy array afterwards then changes the JAX array, or does not, by where the allocator
# happened to put it. may_alias=False, documented as "will be copied", changes nothing. jnp.asarray copies in both
# cases.
#
# Who is hurt: loops that fill one buffer of observations again and again (a replay sampler, a vector environment) and
# send it with device_put: batches change after the fact, on some runs.
#
# Seen: first value after writing 1 into the NumPy array: device_put aligned 1.0, unaligned 0.0;
#       device_put(may_alias=False) aligned 1.0, unaligned 0.0; jnp.asarray aligned 0.0, unaligned 0.0
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet "jax[cpu]==0.10.2" "numpy==2.4.6"
JAX_PLATFORMS=cpu "$folder/venv/bin/python" - <<'PYTHON'
import functools

import jax
import jax.numpy as jnp
import numpy as np


def zeros_at(offset):
    """A thousand float32 zeros whose memory starts `offset` bytes behind a multiple of 64."""
    memory = np.zeros(4000 + 128, np.uint8)
    start = -memory.ctypes.data % 64 + offset
    return memory[start : start + 4000].view(np.float32)


seen = {}
for name, convert in (
    ("device_put", jax.device_put),
    ("device_put(may_alias=False)", functools.partial(jax.device_put, may_alias=False)),
    ("jnp.asarray", jnp.asarray),
):
    for place, offset in (("aligned", 0), ("unaligned", 4)):
        ours = zeros_at(offset)
        theirs = jax.block_until_ready(convert(ours))
        ours[:] = 1.0
        seen[name, place] = float(theirs[0])
print("first value after writing 1 into the NumPy array:", seen)
changed = [which for which, value in seen.items() if value]
assert changed == [("device_put", "aligned"), ("device_put(may_alias=False)", "aligned")], "what is shared has changed"
PYTHON
