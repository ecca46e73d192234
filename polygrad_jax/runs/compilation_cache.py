"""JAX's persistent compilation cache: what one run compiled, the next one reads from a file.

The key of an entry is the program with its compiler options, XLA's flags, the versions of jax and jaxlib, and the
fingerprint of the device, which on a CPU covers its instruction set: a home folder that several machines share never
hands a machine code that was compiled for another.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from polygrad_jax.config import Config
from polygrad_jax.runs.console import announce

USERS_VARIABLE = "JAX_COMPILATION_CACHE_DIR"
LEAST_COMPILE_SECONDS = 0.1
"""Programs that compile faster than this are not kept."""


def cache_folder() -> Path:
    """``polygrad_jax/xla`` in the user's cache directory.

    Raises:
      RuntimeError: the user has no home.
    """
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "polygrad_jax" / "xla"


def use_compilation_cache(config: Config) -> Path | None:
    """Turn the cache on for this process, before anything is compiled; its folder, or None without one.

    A folder that the user set for JAX (``JAX_COMPILATION_CACHE_DIR``) takes the place of ours. A folder that cannot be
    written costs one line of warning and the cache.

    Several hosts have none on CPUs: of jax 0.10.2 a program that was read from a file takes its sums over hosts in
    another order than one of the other hosts, and XLA ends both.
    """
    import jax

    if not config.compilation_cache or (jax.process_count() > 1 and jax.default_backend() == "cpu"):
        jax.config.update("jax_enable_compilation_cache", False)
        return None
    if users := os.environ.get(USERS_VARIABLE):
        return Path(users)
    try:
        folder = cache_folder()
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except (OSError, RuntimeError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        announce(f"warning: no compilation cache ({reason}); every start compiles anew (--no-compilation-cache)")
        return None
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", LEAST_COMPILE_SECONDS)
    return folder
