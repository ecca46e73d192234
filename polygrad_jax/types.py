"""The arrays that travel between the rooms of this package, the legend of their axes, and the two protocols.

Letters used in every docstring: ``B`` batch, ``H`` states per trajectory (so ``H - 1`` transitions),
``O`` observation size, ``A`` action size, ``N`` steps of the noise schedule, ``K`` steps sampled,
``C`` states of context. *Raw* means simulator units, *normalised* means standardised by the
statistics of the replay; a normalised array is called so (``normed_obs``).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.struct
import jax

Array = jax.Array
Params = Any
"""A pytree of network parameters."""

Metrics = dict[str, Array]
"""Scalars, and counts of histograms ``[bins]``, by the name under which they are logged (``docs/metrics.md``)."""

PolicyApply = Callable[[Params, Array], tuple[Array, Array]]
"""``(params, raw_obs [..., O]) -> (mean [..., A], std [..., A])`` of a Gaussian over raw actions."""


@flax.struct.dataclass
class Policy:
    """A Gaussian policy over raw actions, as one pytree: other parameters never retrace, another ``apply`` does."""

    params: Params
    apply: PolicyApply = flax.struct.field(pytree_node=False)

    def __call__(self, raw_obs: Array) -> tuple[Array, Array]:
        """Return mean and std ``[..., A]`` at raw observations ``[..., O]``."""
        return self.apply(self.params, raw_obs)


@flax.struct.dataclass
class Segment:
    """Trajectories in raw units: what the replay hands out and what every world model imagines.

    ``actions[:, k]`` is taken in ``observations[:, k]``; ``rewards[:, k]`` and ``terminals[:, k]`` belong
    to that transition. ``terminals`` is 1 where the environment ended the episode (never a time limit)
    and on the padding behind such an end.
    """

    observations: Array  # [B, H, O] raw
    actions: Array  # [B, H, A] raw
    rewards: Array  # [B, H] raw
    terminals: Array  # [B, H] 0 or 1
    rows: Array | None = None  # [B, H] int32: the transition's number since the start of the run
    observed: Array | None = None  # [B, C] bool, of contexts: False for what pads one before its episode's start
    begins: Array | None = None  # [B, H] bool, of streams: nothing of what is before this step belongs to its episode


@flax.struct.dataclass
class Transitions:
    """A chunk of consecutive transitions on its way from the host to the replay.

    ``valid`` marks the rows that count (a chunk has a fixed length so that nothing is traced twice);
    the valid rows come first.
    """

    observations: Array  # [T, O] raw, before the step
    actions: Array  # [T, A] raw, as sampled (neither clipped nor squashed)
    rewards: Array  # [T] raw
    terminals: Array  # [T] 0 or 1: the environment ended the episode
    truncations: Array  # [T] 0 or 1: the time limit ended the episode
    valid: Array  # [T] bool


@flax.struct.dataclass
class MeanStd:
    """Mean and standard deviation of one channel group, ``[D]`` each (``D = 1`` for scalars)."""

    mean: Array
    std: Array


@flax.struct.dataclass
class Normaliser:
    """What is needed to move between raw and normalised units; made from the replay's moments."""

    observations: MeanStd  # [O]
    actions: MeanStd  # [A]
    rewards: MeanStd  # [1]
    terminals: MeanStd  # [1]


class Prediction(NamedTuple):
    """What follows from actions in states: one step of a model, raw units."""

    observations: Array  # [B, O] of the next states
    rewards: Array  # [B]
    terminals: Array  # [B] probability that the environment ends the episode here; in a roll-out decided, 0 or 1


# --- the protocols ---------------------------------------------------------------------------------------------------


def _unchanged(state: Any, aux: Metrics) -> Any:
    del aux
    return state


class WorldModel(NamedTuple):
    """Everything that imagines: pure functions of a state of its own (see ``world_models/``).

    ``init(key) -> state``
    ``update(state, segment [B, window], normaliser, key) -> (state, metrics)``: take one gradient step.
    ``imagine(state, policy, context [B, C], normaliser, key) -> (Segment [B, H], aux)``: read the state, never change
    it. H is ``config.horizon``. The first imagined observation is the context's last one; the context's other steps are
    those that were taken. Steps before the episode's start repeat its first state with ``observed`` False. Imagined
    terminals are absorbing: 1 from the first one on. ``aux`` holds the metrics of this imagination.
    ``adapt(state, aux) -> state``: adapt to the policy by what ``imagine`` measured; the identity unless the model has
    such a parameter (PolyGRAD: delta).
    ``step(state, raw_obs [B, O], raw_actions [B, A], normaliser, key) -> Prediction``: predict one transition, as
    differentiable as the model is; None where the last observation alone does not determine a prediction.

    Attributes:
      window: states per training segment; None for ``config.horizon``.
      streamed: training segments run on over the ends of episodes and have ``begins`` (``data.replay.sample_stream``).
      batch_size: training segments per gradient step; None for ``config.model_training.batch_size``.
      context_length: C, the observed states that ``imagine`` wants.
      history: observed steps before a training segment's first that ``update`` wants in front of it.
      latent: what an agent that learns from latent states asks of the model; None where there are none.
    """

    init: Callable[[Array], Any]
    update: Callable[[Any, Segment, Normaliser, Array], tuple[Any, Metrics]]
    imagine: Callable[[Any, Policy, Segment, Normaliser, Array], tuple[Segment, Metrics]]
    adapt: Callable[[Any, Metrics], Any] = _unchanged
    step: Callable[[Any, Array, Array, Normaliser, Array], Prediction] | None = None
    window: int | None = None
    streamed: bool = False
    batch_size: int | None = None
    context_length: int = 1
    history: int = 0
    latent: LatentModel | None = None

    def states_of_episode(self, horizon: int) -> int:
        """Return how many states an episode must have to be learnt from; ``horizon`` is the config's."""
        return 2 if self.streamed else self.window or horizon


class LatentModel(NamedTuple):
    """A world model with latent states, as an agent that learns from them needs it. Latents are pytrees ``[B, ...]``.

    ``observe(params, segment [B, H], key) -> (latents [B, H], [B, H])``: infer the latents of real windows or streams;
    1 where the step was taken, 0 for padding.
    ``step(params, latent, raw_actions [B, A], key) -> (latent, rewards [B] raw, continues [B] 0 or 1)``: predict.
    ``see(params, (latent, raw_actions [B, A]) or None, raw_obs [B, O], key) -> latent``: infer the latent of an
    observation from the last latent and the action taken in it; None at an episode's start.
    ``imagine(params, choose, context [B, C], key) -> Segment [B, H]``: infer along the context, then predict under
    ``choose(latent, decoded raw_obs [B, O]) -> (mean, std) [B, A]``.
    ``features(latent) -> [B, F]``; F is ``feature_size``. ``params_of(state) -> params``.
    ``pack(latent) -> dict of arrays`` and ``unpack``: the latent as the host remembers it between steps.
    """

    observe: Callable[..., tuple[Any, Array]]
    step: Callable[..., tuple[Any, Array, Array]]
    see: Callable[..., Any]
    imagine: Callable[..., Segment]
    features: Callable[[Any], Array]
    feature_size: int
    params_of: Callable[[Any], Params]
    pack: Callable[[Any], dict[str, Array]]
    unpack: Callable[[dict[str, Array]], Any]


@flax.struct.dataclass
class Experience:
    """What one update of an agent learns from."""

    imagined: Segment | None  # [trajectories, H], where the agent asks for trajectories
    windows: Segment | None  # real ones [size, length], where it asks for windows; streams where the model reads them
    normaliser: Normaliser
    progress: Array  # [] share of the run's policy updates that have been made, 0 to 1


Memory = dict[str, Array] | None
"""What an agent remembers of an episode, ``[B, ...]`` each; None before its first step."""


class Agent(NamedTuple):
    """Everything that learns and acts: pure functions of a state of its own (see ``agents/``).

    ``init(key) -> state``
    ``imagine(state, model_state, context [B, C], normaliser, key) -> (Segment [B, H], aux)``: have the world model
    imagine under the policy that acts.
    ``update(state, model_state, experience, key) -> (state, metrics)``: make one policy update.
    ``policy(state) -> Policy`` of raw observations that acts and imagines; None where the policy reads latents.
    ``evaluated_policy(state)``: the one that evaluations show.
    ``acting(state, model_state) -> params``, ``evaluated(state, model_state) -> params``: all that ``decide`` needs.
    ``decide(params, memory, raw_obs [B, O], key) -> (mean, std, memory)``: choose, ``[B, A]``; ``key`` is for what the
    agent draws of its own latents, never for the action.
    ``remember(memory, raw_actions [B, A]) -> memory``: be told the actions as sampled, before the next ``decide``.

    Attributes:
      trajectories: how many one update wants imagined; 0 for an agent that imagines for itself, or learns from others.
      windows: ``(size, length)`` of the real windows that one update wants; None for none.
    """

    init: Callable[[Array], Any]
    imagine: Callable[[Any, Any, Segment, Normaliser, Array], tuple[Segment, Metrics]]
    update: Callable[[Any, Any, Experience, Array], tuple[Any, Metrics]]
    policy: Callable[[Any], Policy | None]
    evaluated_policy: Callable[[Any], Policy | None]
    acting: Callable[[Any, Any], Params]
    evaluated: Callable[[Any, Any], Params]
    decide: Callable[[Params, Memory, Array, Array], tuple[Array, Array, Memory]]
    remember: Callable[[Memory, Array], Memory]
    trajectories: int
    windows: tuple[int, int] | None = None
