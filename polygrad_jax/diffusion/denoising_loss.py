"""Compute the training loss of the denoiser (Algorithm 1).

The diffused trajectory has ``O + 2`` channels: observation, reward and terminal, all normalised.
"""

from __future__ import annotations

from collections.abc import Callable

import chex
import jax
import jax.numpy as jnp

from polygrad_jax.config import DenoiserOutput
from polygrad_jax.data.normaliser import normalise, unnormalise
from polygrad_jax.data.segment_masks import happened
from polygrad_jax.diffusion.schedule import Coefficients, add_noise, clean_from_noise
from polygrad_jax.types import Array, MeanStd, Metrics, Normaliser, Params, Segment

Denoise = Callable[[Params, Array, Array, Array], Array]
"""``(params, normed_traj [B, H, O+2], normed_actions [B, H, A], step [B] or [1]) -> [B, H, O+2]``."""


FAR_PADDING = 5.0
"""Standard deviations from the mean reward beyond which the reward 0 of padding is not shown to the denoiser."""


def with_terminal_std(normaliser: Normaliser, terminal_std: float) -> Normaliser:
    """Return the normaliser with terminals divided by ``terminal_std`` (raw units); unchanged where that is 0.

    DEVIATION from paper and official code where it is not 0. Divided by its own std, a rare terminal is a channel about
    ten times as loud as the others. The end of an episode can then be read from almost pure noise, when the actions
    cannot, and sampling decides it before the actions that cause it.
    """
    if terminal_std == 0:
        return normaliser
    terminals = MeanStd(normaliser.terminals.mean, jnp.full_like(normaliser.terminals.std, terminal_std))
    return normaliser.replace(terminals=terminals)


def padding_is_far(normaliser: Normaliser) -> Array:
    """Return whether the reward 0 of padding lies beyond FAR_PADDING, ``[] bool``."""
    rewards = normaliser.rewards
    return jnp.abs(rewards.mean[0]) > FAR_PADDING * rewards.std[0]


def pack(segment: Segment, normaliser: Normaliser) -> tuple[Array, Array]:
    """Convert a raw segment to ``(normed_traj [B, H, O+2], normed_actions [B, H, A])``.

    DEVIATION from the official code where the reward 0 of padding lies far from the mean reward (:data:`FAR_PADDING`):
    normalised it would drown all else in the loss, at -1e6 where the reward is always the same. Padding stands at the
    mean there, 0 normalised; :func:`with_padding_rewards` writes the 0 that is known into what is imagined.
    """
    normed_rewards = normalise(segment.rewards[..., None], normaliser.rewards)
    padded = happened(segment.terminals) == 0
    if segment.observed is not None:
        padded = padded | ~segment.observed
    normed_rewards = jnp.where(padded[..., None] & padding_is_far(normaliser), 0.0, normed_rewards)
    normed_traj = jnp.concatenate(
        [
            normalise(segment.observations, normaliser.observations),
            normed_rewards,
            normalise(segment.terminals[..., None], normaliser.terminals),
        ],
        axis=-1,
    )
    return normed_traj, normalise(segment.actions, normaliser.actions)


def unpack(normed_traj: Array, normed_actions: Array, normaliser: Normaliser) -> Segment:
    """Invert :func:`pack`; an imagined terminal is 1 where its raw value exceeds 0.5."""
    terminals = unnormalise(normed_traj[..., -1:], normaliser.terminals)[..., 0]
    return Segment(
        observations=unnormalise(normed_traj[..., :-2], normaliser.observations),
        actions=unnormalise(normed_actions, normaliser.actions),
        rewards=unnormalise(normed_traj[..., -2:-1], normaliser.rewards)[..., 0],
        terminals=(terminals > 0.5).astype(jnp.float32),
    )


def with_padding_rewards(segment: Segment, normaliser: Normaliser) -> Segment:
    """Set rewards behind the ends of an imagined segment to 0 where :func:`pack` shows none; else they are diffused."""
    known = (happened(segment.terminals) == 0) & padding_is_far(normaliser)
    return segment.replace(rewards=jnp.where(known, 0.0, segment.rewards))


def set_initial_state(normed_traj: Array, normed_obs: Array) -> Array:
    """Overwrite the observation part of the first state (Algorithm 2, line 6): ``normed_obs [B, O]``.

    ``normed_obs [B, C, O]`` overwrites the first C states, for trajectories that begin with a history.
    """
    known = normed_obs.reshape(normed_obs.shape[0], -1, normed_obs.shape[-1])
    return normed_traj.at[:, : known.shape[1], : known.shape[2]].set(known)


def clean_from_output(
    output: Array, noisy: Array, normed_obs: Array, c: Coefficients, prediction: DenoiserOutput
) -> Array:
    """Return the clean trajectory ``[B, H, O+2]`` that the denoiser's ``output`` for ``noisy`` means.

    ``normed_obs`` are the known states as :func:`set_initial_state` takes them.

    DEVIATION from paper and official code where ``prediction`` is ``change``: the network need not copy the last known
    state, which it is shown, through its layers. On Hopper one-step errors become a fifth, and errors of nine steps
    three quarters (``results/archive/value_gradient_search``).
    """
    if prediction == "clean":
        return output
    if prediction == "noise":
        return clean_from_noise(noisy, output, c)
    last = normed_obs.reshape(normed_obs.shape[0], -1, normed_obs.shape[-1])[:, -1:]
    return output.at[..., :-2].add(last)


def draw_steps_and_noise(key: Array, shape: tuple[int, ...], num_steps: int) -> tuple[Array, Array]:
    """Draw ``(t [B] in 0..N-1, eps)`` for trajectories of ``shape`` ``[B, H, O+2]`` (Algorithm 1, lines 4 and 5)."""
    step_key, noise_key = jax.random.split(key)
    steps = jax.random.randint(step_key, shape[:1], 0, num_steps)
    return steps, jax.random.normal(noise_key, shape)


def denoising_loss(
    denoise: Denoise,
    params: Params,
    normed_traj: Array,
    normed_actions: Array,
    steps: Array,
    noise: Array,
    schedule: Coefficients,
    prediction: DenoiserOutput,
    context_length: int = 1,
) -> tuple[Array, Metrics]:
    """Compute the loss of Algorithm 1, line 6, at the draws ``steps`` and ``noise``.

    Args:
      normed_traj: ``[B, H, O+2]``; the network is conditioned on the first ``context_length`` observations.
      normed_actions: ``[B, H, A]``.
      steps: ``[B]``, 0-based.
      noise: ``[B, H, O+2]`` standard normal.
      schedule: coefficients of all N steps.

    Returns:
      The mean squared error over all ``B * H * (O+2)`` entries and its observation, reward and terminal parts.
    """
    chex.assert_rank([normed_traj, normed_actions], 3, custom_message="normed_traj, normed_actions")
    chex.assert_equal_shape_prefix([normed_traj, normed_actions], 2, custom_message="normed_traj, normed_actions")
    chex.assert_shape(steps, normed_traj.shape[:1], custom_message="steps")
    chex.assert_shape(noise, normed_traj.shape, custom_message="noise")
    c = jax.tree.map(lambda x: x[steps][:, None, None], schedule)
    initial = normed_traj[:, :context_length, :-2]
    noisy = set_initial_state(add_noise(normed_traj, noise, c), initial)
    # DEVIATION from the paper, like the official code: actions are scaled like the clean trajectory, without noise.
    output = denoise(params, noisy, c.sqrt_alpha_bar * normed_actions, steps)
    # DEVIATION from the paper, like the official code: the network predicts the clean trajectory (as it is, or its
    # change from the last known state) unless asked for the noise.
    if prediction == "noise":
        target = noise
    else:
        output, target = clean_from_output(output, noisy, initial, c, prediction), normed_traj
    # The initial state is known: the network's output for it adds nothing to the loss and has no gradient.
    output = set_initial_state(output, target[:, :context_length, :-2])
    error = jnp.square(output - target)
    parts = {
        "world_model/observation_loss": error[..., :-2].mean(),
        "world_model/reward_loss": error[..., -2].mean(),
        "world_model/terminal_loss": error[..., -1].mean(),
    }
    loss = error.mean()
    return loss, {"world_model/loss": loss, **parts}
