"""The extras: packages that only some verbs need, imported there, and one line where one is missing."""

from __future__ import annotations

import importlib
from types import ModuleType

from polygrad_jax.config.schema import ConfigError

EXTRAS = {
    "figures": ("matplotlib",),
    "films": ("imageio", "imageio_ffmpeg"),
    "tensorboard": ("tensorboard",),
    "minari": ("minari", "h5py"),
}
"""Extras of ``setup.cfg`` and the modules that each brings."""


def require_extra(extra: str, what: str) -> ModuleType:
    """Import what an extra brings and return its first module.

    Args:
      extra: one of `EXTRAS`.
      what: needs it, e.g. ``polygrad plot``.

    Raises:
      ConfigError: a module is missing or does not import; says how to install the extra.
    """
    modules = EXTRAS[extra]
    try:
        return [importlib.import_module(name) for name in modules][0]
    except ImportError as error:
        raise ConfigError(
            f"{what} needs {' and '.join(modules)} ({error}); allowed: pip install 'polygrad_jax[{extra}]'"
        ) from None
