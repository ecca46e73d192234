"""PolyGRAD: policy-guided trajectory diffusion world models, in JAX and Flax.

Nothing is imported here, so that the host's rooms (``config``, ``envs``) stay free of jax.
"""

__version__ = "0.1.0"
