#!/usr/bin/env bash
# jax 0.10.2 and 0.9.2 on a CPU (Linux), float32.
#
# Expected: how many threads a compiled function uses follows from the cores that the process may use, its affinity, as
# the issue that asks for a limit says (jax-ml/jax#1539).
#
# Behaviour: XLA starts as many threads as the environment variable NPROC says, more or fewer than there are cores,
# without a word. Build systems and batch scripts export that variable for their own use. The bits of a sum follow from
# the number of threads, so that one machine, one version and one seed give two results.
#
# Who is hurt: those who resume a run in another shell and expect the same bits, and those who find one core of many busy.
#
# Seen (both versions): NPROC=1: 1 thread; NPROC=2: 2 threads; NPROC=5: 5 threads; other bits with 1 than with 2
set -euo pipefail
unset PJRT_NPROC # goes before NPROC in jax 0.10.2
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
cat > "$folder/threads.py" <<'PYTHON'
import hashlib
import pathlib

import jax
import jax.numpy as jnp
import numpy as np

x = jax.random.normal(jax.random.key(0), (2_000, 700))
found = jax.jit(lambda x: (x.sum(), x.sum(axis=0), x.T @ x))(x)
names = [(task / "comm").read_text().strip() for task in pathlib.Path("/proc/self/task").iterdir()]
print(names.count("tf_XLAEigen"), hashlib.md5(b"".join(np.asarray(a).tobytes() for a in found)).hexdigest())
PYTHON
for version in 0.9.2 0.10.2; do
  "$folder/venv/bin/pip" install --quiet "jax==$version" "jaxlib==$version" "numpy==2.4.6"
  for told in 1 2 5; do
    read -r threads bits < <(NPROC=$told JAX_PLATFORMS=cpu "$folder/venv/bin/python" "$folder/threads.py")
    echo "jax $version, NPROC=$told: $threads threads, sums $bits"
    [ "$threads" = "$told" ] || { echo "this has changed"; exit 1; }
    case $told in
      1) alone=$bits ;;
      *) [ "$bits" != "$alone" ] || { echo "this has changed"; exit 1; } ;;
    esac
  done
done
