"""Dreamer-v3's networks for vector observations: the recurrent state-space model, its encoder, decoder and heads.

Follows arXiv 2301.04104v1 (January 2023) and the code published with it: LayerNorm and SiLU (the revision of 2024 has
RMSNorm and a block-diagonal GRU). A latent is a recurrent state of the past and a draw of L categorical variables of K
classes each. Letters beside those of ``types.py``: ``D`` recurrent state, ``L`` variables, ``K`` classes.
"""

from __future__ import annotations

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp

from polygrad_jax.config import DreamerConfig, Execution
from polygrad_jax.networks.silu_mlp import NormedLinear, SiluHead, SiluMLP, linear
from polygrad_jax.networks.symlog import BINS, symlog
from polygrad_jax.types import Array

UNIMIX = 0.01
"""Share of the uniform distribution in every categorical distribution (published)."""


@flax.struct.dataclass
class Latent:
    """The latent state at one time."""

    deter: Array  # [..., D] recurrent state of the past
    stoch: Array  # [..., L, K] one-hot, drawn


def features(latent: Latent) -> Array:
    """Concatenate the latent to ``[..., D + L * K]``, the input of decoder, heads, actor and critic."""
    return jnp.concatenate([latent.deter, latent.stoch.reshape(*latent.deter.shape[:-1], -1)], axis=-1)


def unimix(logits: Array, share: float) -> Array:
    """Return log-probabilities ``[..., K]`` of the softmax mixed with ``share`` uniform: no class ever has none."""
    probabilities = (1.0 - share) * jax.nn.softmax(logits) + share / logits.shape[-1]
    return jnp.log(probabilities)


def draw(key: Array, log_probs: Array) -> Array:
    """Draw one-hot ``[..., L, K]`` with the derivative of the probabilities (straight-through)."""
    classes = jax.random.categorical(key, log_probs)
    probabilities = jnp.exp(log_probs)
    one_hot = jax.nn.one_hot(classes, log_probs.shape[-1], dtype=jnp.float32)
    return one_hot + (probabilities - jax.lax.stop_gradient(probabilities))


def executed_action(action: Array, how: Execution) -> Array:
    """Return the action as executed, in [-1, 1]: clipped with a derivative that never vanishes (published code), or
    squashed."""
    if how == "squashed":
        return jnp.tanh(action)
    return action * jax.lax.stop_gradient(1.0 / jnp.maximum(jnp.abs(action), 1.0))


class DreamerNetwork(nn.Module):
    """All of the world model's networks; call one by its name, ``apply(..., method="decode")``."""

    observation_size: int
    config: DreamerConfig
    precision: str = "float32"
    actions: Execution = "clipped"

    def setup(self) -> None:
        c, precision = self.config, self.precision
        size = c.latents * c.classes
        self.encoder = SiluMLP(c.coder_layers, c.coder_units, precision)
        self.decoder = SiluHead(self.observation_size, c.coder_layers, c.coder_units, precision=precision)
        self.reward_head = SiluHead(BINS, c.layers, c.units, zero=True, precision=precision)
        self.continue_head = SiluHead(1, c.layers, c.units, precision=precision)
        self.initial_deter = self.param("initial_deter", nn.initializers.zeros_init(), (c.deter,))
        self.gru_input = SiluMLP(1, c.units, precision)
        self.gru = NormedLinear(3 * c.deter, precision)
        self.prior_hidden = SiluMLP(1, c.units, precision)
        self.prior_output = linear(size, precision)
        self.posterior_hidden = SiluMLP(1, c.units, precision)
        self.posterior_output = linear(size, precision)

    def __call__(self, raw_obs: Array, action: Array) -> tuple[Array, ...]:
        """Call every network once, from ``raw_obs [B, O]`` and ``action [B, A]``: for initialisation only."""
        start = self.initial(raw_obs.shape[0])
        deter = self.advance(start, action)
        read = features(Latent(deter, start.stoch))
        return self.posterior(deter, self.embed(raw_obs)), self.decode(read), self.reward(read), self.goes_on(read)

    def embed(self, raw_obs: Array) -> Array:
        """Encode ``raw_obs [..., O] -> [..., E]``."""
        return self.encoder(symlog(raw_obs))

    def initial(self, batch: int) -> Latent:
        """Return the latent ``[B]`` before any observation: learnt, with the likeliest classes of the prior."""
        deter = jnp.broadcast_to(jnp.tanh(self.initial_deter)[None], (batch, self.config.deter))
        classes = jnp.argmax(self.prior(deter), axis=-1)
        return Latent(deter, jax.nn.one_hot(classes, self.config.classes, dtype=jnp.float32))

    def advance(self, latent: Latent, action: Array) -> Array:
        """Advance the recurrent state ``[..., D]`` by ``action [..., A]``, as executed (a GRU)."""
        stoch = latent.stoch.reshape(*latent.deter.shape[:-1], -1)
        x = self.gru_input(jnp.concatenate([stoch, executed_action(action, self.actions)], axis=-1))
        reset, candidate, update = jnp.split(self.gru(jnp.concatenate([latent.deter, x], axis=-1)), 3, axis=-1)
        candidate = jnp.tanh(jax.nn.sigmoid(reset) * candidate)
        update = jax.nn.sigmoid(update - 1.0)
        return update * candidate + (1.0 - update) * latent.deter

    def prior(self, deter: Array) -> Array:
        """Return log-probabilities ``[..., L, K]`` of the variables before the observation is seen."""
        return self._log_probs(self.prior_output(self.prior_hidden(deter)))

    def posterior(self, deter: Array, embedded: Array) -> Array:
        """Return log-probabilities ``[..., L, K]`` after the observation, ``embedded [..., E]``, is seen."""
        both = jnp.concatenate([deter, embedded], axis=-1)
        return self._log_probs(self.posterior_output(self.posterior_hidden(both)))

    def decode(self, read: Array) -> Array:
        """Map ``features [..., F] -> [..., O]``, symlog of the raw observation."""
        return self.decoder(read)

    def reward(self, read: Array) -> Array:
        """Map ``features [..., F] -> [..., bins]``: logits of the two-hot reward of the step into this latent."""
        return self.reward_head(read)

    def goes_on(self, read: Array) -> Array:
        """Map ``features [..., F] -> [...]``: log-odds that the step into this latent did not end the episode."""
        return self.continue_head(read)[..., 0]

    def _log_probs(self, x: Array) -> Array:
        c = self.config
        return unimix(x.reshape(*x.shape[:-1], c.latents, c.classes), UNIMIX)
