"""The configuration: its fields (``schema``), what is allowed (``validate``), and its presets (``presets``)."""

from polygrad_jax.config.schema import *  # noqa: F403
