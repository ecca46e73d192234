"""The configuration: frozen nested dataclasses, their presets and what they refuse.

Nothing here imports jax, so that a mistake on the command line is reported at once.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any, Literal, get_args, get_origin, get_type_hints

from polygrad_jax.noise_levels import noise_std

GuidanceRule = Literal[
    "score",
    "random_actions",
    "policy_sampling",
    "no_clipping",
    "state_update",
    "noisy_states",
    "posterior_mean",
    "preconditioned",
    "correlated",
]


INSERT_CHUNK = 256
"""Transitions that reach the replay in one call while it is filled; a replay must hold as many."""


class ConfigError(ValueError):
    """A configuration that cannot be run; the message is one line naming field, value and what is allowed."""


@dataclass(frozen=True)
class EnvSpec:
    """What the learners need to know of an environment (floor 1, so that no one needs the environment)."""

    observation_size: int
    action_size: int


@dataclass(frozen=True)
class EnvConfig:
    """Which task."""

    name: str = "hopper"
    """hopper, walker2d, halfcheetah, inverted_pendulum, or any installed Gymnasium id."""
    version: int = 5
    """Version of the four named MuJoCo tasks (4 or 5); ignored for a full Gymnasium id."""
    hide_velocities: bool = False
    """Whether observations end before the velocities, which makes the task non-Markovian; the four named tasks only."""


@dataclass(frozen=True)
class DiffusionConfig:
    """Noise schedule and sampling (paper, Table 4)."""

    num_steps: int = 128
    """N, steps of the noise schedule."""
    sampling_steps: int = 128
    """K, steps sampled (a subset of the N; K = N is the paper's)."""
    sampling_tau: float = 0.0
    """Which K: 0 spreads them evenly over the N; otherwise they are spread evenly over a cosine schedule with this
    exponent, which below tau puts more of them where little noise is left."""
    sampling_floor: float = 0.0
    """With sampling_tau: steps with a noise std below this are not sampled; the clean trajectory predicted in the least
    noisy one that is ends the run. guidance.state_change_clip_below goes on counting all N."""
    tau: float = 1.0
    """Exponent of the cosine schedule (Chen 2023, Algorithm 1)."""
    eta: float = 1.0
    """Share of the posterior's noise that sampling adds to the states: 1 is the paper's (DDPM), 0 none (DDIM)."""
    terminals: Literal["diffused", "classified"] = "diffused"
    """Where imagined terminals come from: a channel of the diffused trajectory (the paper's), or a classifier of single
    steps that learns beside the denoiser."""
    terminal_std: float = 0.0
    """Raw terminals are divided by this in the trajectory that is diffused; 0: by their std over the replay (official
    code), which makes a rare terminal the loudest channel."""
    prediction: Literal["clean", "noise"] = "clean"
    """What the network puts out: the clean trajectory (official code) or the noise (paper's equations)."""


@dataclass(frozen=True)
class GuidanceConfig:
    """How actions are led to the policy (Algorithm 2, lines 9 to 12) and how delta is tuned (Eq. 10)."""

    rule: GuidanceRule = "score"
    """score is the paper's; preconditioned and correlated are other ways of following the policy; the rest are the
    paper's ablations (Section 5.4)."""
    rho: float = 1.0
    """Rule correlated: correlation of an action's draw with the one of the diffusion step before; 1 keeps one draw for
    the whole run."""
    relaxation: float = 1.0
    """Rule correlated: share of the way to the policy's action that a diffusion step goes, but for the last, which goes
    all of it. Below 1 the actions wait for the states to settle."""
    clip_std: float = 3.0
    """Actions are clipped to the policy's mean plus or minus this many standard deviations (Eq. 11)."""
    initial_delta: float = 0.005
    """Action update scale before any tuning, in squared raw action units (rule preconditioned: in variances)."""
    delta_lr: float = 3e-3
    """Learning rate of log delta (Eq. 10)."""
    max_delta_over_variance: float = 1.0
    """delta never exceeds this times the smallest variance of the policy: beyond, a larger delta no longer narrows."""
    state_change_clip: float = 0.25
    """Largest change of a normalised channel in one of the last steps; 0 turns the clip off."""
    state_change_clip_below: int = 11
    """The clip holds for diffusion steps t < this (t = 0 is the last)."""


@dataclass(frozen=True)
class DenoiserConfig:
    """The denoising network and its training (paper, Tables 2 and 3)."""

    kind: Literal["mlp", "transformer"] = "mlp"
    """Residual MLP or causal transformer."""
    width: int = 1024
    """Width of the residual MLP."""
    num_blocks: int = 6
    """Residual blocks, or transformer blocks."""
    embed_dim: int = 128
    """Least width of the residual MLP's embedding."""
    token_dim: int = 312
    """Width of the transformer's tokens."""
    num_heads: int = 4
    """Attention heads of the transformer."""
    context_length: int = 1
    """World model polygrad: C, the observed states that the diffused trajectory begins with, for tasks whose next state
    does not follow from the last observation alone; 1 is the paper's."""
    learning_rate: float = 3e-4
    """Adam's learning rate."""
    batch_size: int = 256
    """Segments per gradient step."""
    recent_share: float = 0.0
    """Share of each batch that is drawn from the newest windows only (0: the paper's uniform replay)."""
    recent_windows: int = 5_000
    """How many windows count as the newest."""
    padded_actions: Literal["repeated", "drawn"] = "repeated"
    """Actions behind the end of an episode in the windows learnt from: the last one again, or others from the replay,
    which do not tell a denoiser that sees all actions when the episode ends."""
    shown_actions: Literal["sampled", "executed"] = "sampled"
    """World model polygrad: the actions that the denoiser sees, as the policy sampled them (official code), or clipped
    to what the environment executes of them."""
    ema_decay: float = 0.99
    """Decay of the averaged parameters used for imagination."""
    ema_every_updates: int = 10
    """Gradient steps between two updates of the average."""
    ema_start_updates: int = 2000
    """Before this many gradient steps the average is a plain copy."""


@dataclass(frozen=True)
class AutoregressiveConfig:
    """World model autoregressive: one-step diffusion (paper, Appendix C.2); the rest as ``diffusion`` and ``denoiser``
    say."""

    tau: float = 1.0
    """Exponent of the cosine schedule for single steps, in place of diffusion.tau."""


@dataclass(frozen=True)
class TransformerConfig:
    """World model transformer: the next step from the last ones (paper, Appendix C.2 and Table 3)."""

    context_length: int = 15
    """State-action pairs it sees at most."""
    token_dim: int = 312
    """Width of the tokens."""
    num_heads: int = 4
    """Attention heads."""
    num_blocks: int = 6
    """Transformer blocks."""
    learning_rate: float = 1e-4
    """Adam's learning rate."""
    batch_size: int = 1024
    """Segments per gradient step (official code)."""


@dataclass(frozen=True)
class EnsembleConfig:
    """The probabilistic MLP ensemble and its training (paper, Appendix C.2; MBPO, Janner et al. 2019)."""

    members: int = 7
    """Networks."""
    elites: int = 5
    """Networks that imagine: those of the lowest held-out loss."""
    hidden_size: int = 200
    """Width of the hidden layers."""
    hidden_layers: int = 4
    """Hidden layers."""
    learning_rate: float = 1e-3
    """Adam's learning rate."""
    weight_decay: float = 1e-4
    """Decay of the heads' weights; hidden layers have 1/4, 1/2, 3/4, 3/4, ... of it."""
    batch_size: int = 256
    """Transitions per gradient step, of which every member draws its bootstrap."""
    heldout_share: float = 0.1
    """Share of all transitions that never train."""
    heldout_decay: float = 0.99
    """Decay per gradient step of the held-out losses' running average."""


@dataclass(frozen=True)
class DreamerConfig:
    """The world model of Dreamer-v3 (arXiv 2301.04104v1; sizes of the code's ``dmc_proprio``, the paper's S)."""

    deter: int = 512
    """Size of the recurrent state."""
    latents: int = 32
    """Categorical variables of a latent state."""
    classes: int = 32
    """Classes of each of them."""
    units: int = 512
    """Width of the layers around the recurrent state and of the reward and continue heads."""
    layers: int = 2
    """Hidden layers of the reward and continue heads."""
    coder_units: int = 1024
    """Width of encoder and decoder; the paper's table says 512, the code that made its figures 1,024."""
    coder_layers: int = 5
    """Hidden layers of encoder and decoder; the paper's table says 2, the code that made its figures 5."""
    bins: int = 255
    """Bins of the two-hot reward."""
    unimix: float = 0.01
    """Share of the uniform distribution in every categorical one."""
    free_nats: float = 1.0
    """Both KL losses are no smaller than this, in nats per step."""
    dynamics_scale: float = 0.5
    """Weight of the KL loss that trains the prior."""
    representation_scale: float = 0.1
    """Weight of the KL loss that trains the posterior."""
    learning_rate: float = 1e-4
    """Adam's learning rate."""
    adam_eps: float = 1e-8
    """Adam's epsilon."""
    grad_clip: float = 1000.0
    """Largest gradient norm."""
    window: int = 64
    """Steps per training segment."""
    batch_size: int = 16
    """Segments per gradient step."""
    context_length: int = 5
    """Observed states before imagination begins (PolyGRAD's Appendix C.2)."""


@dataclass(frozen=True)
class LatentPolicyConfig:
    """Learner latent: Dreamer-v3's actor-critic in latent space (arXiv 2301.04104v1; sizes of ``dmc_proprio``)."""

    horizon: int = 15
    """Steps imagined from every latent state of a batch."""
    units: int = 512
    """Width of actor and critic."""
    layers: int = 2
    """Hidden layers of actor and critic."""
    gamma: float = 0.997
    """Discount factor."""
    return_lambda: float = 0.95
    """Lambda of the returns."""
    gradient: Literal["reinforce", "backprop"] = "reinforce"
    """How the actor's gradient is estimated: from log-probabilities (the revision of 2024), or through the learnt
    dynamics (code of January 2023 for continuous actions, and the PolyGRAD paper's baseline)."""
    entropy_weight: float = 3e-4
    """Weight of the entropy bonus."""
    min_std: float = 0.1
    """Least standard deviation of the policy, raw action units."""
    max_std: float = 1.0
    """Largest standard deviation of the policy, raw action units."""
    bins: int = 255
    """Bins of the critic's two-hot value."""
    learning_rate: float = 3e-5
    """Adam's learning rate of actor and critic."""
    adam_eps: float = 1e-5
    """Adam's epsilon of actor and critic."""
    grad_clip: float = 100.0
    """Largest gradient norm of actor and critic, separately."""
    slow_critic_rate: float = 0.02
    """How fast the averaged critic follows."""
    slow_critic_weight: float = 1.0
    """Weight of the critic's loss towards its average."""
    return_decay: float = 0.99
    """Decay of the averaged percentiles of returns."""
    low_percentile: float = 5.0
    """Returns are scaled by the distance of this percentile ..."""
    high_percentile: float = 95.0
    """... to this one, averaged over updates."""
    least_scale: float = 1.0
    """Returns are never divided by less."""


@dataclass(frozen=True)
class A2CConfig:
    """Learning the policy from imagined trajectories (paper, Table 1 and Appendix A)."""

    trajectories: int = 1024
    """Imagined trajectories per policy update."""
    hidden_size: int = 256
    """Width of the two hidden layers of actor and critic."""
    gamma: float = 0.99
    """Discount factor."""
    gae_lambda: float = 0.9
    """Lambda of generalised advantage estimation."""
    entropy_weight: float = 1e-5
    """Weight of the entropy bonus."""
    critic_lr: float = 3e-4
    """AdamW's learning rate of the critic."""
    critic_updates: int = 1
    """Gradient steps of the critic on each imagined batch (1 is the paper's)."""
    max_actor_lr: float = 3e-5
    """Largest learning rate of the actor, and the first one tried."""
    weight_decay: float = 0.01
    """AdamW's weight decay of actor, critic and log-std."""
    grad_clip: float = 0.1
    """Largest gradient norm of the actor's network and of the critic, separately."""
    target_change: float = 0.01
    """Mean absolute change of the joint log-probability that one policy update aims at."""
    final_target_change: float = 0.0
    """What target_change has become, along a straight line, when the run ends; 0 is the paper's: it stays. A run
    that is lengthened (loop.total_env_steps) goes on along the new line."""
    search: bool = True
    """Whether the line search towards target_change is done at all."""
    search_tolerance: float = 0.2
    """Relative tolerance on target_change."""
    search_ratio: float = 0.8
    """Factor between two learning rates tried."""
    search_max_retries: int = 50
    """Retries after which the search keeps its last step."""
    log_lr_step: float = 3e-4
    """AdamW's learning rate on the logarithm of the actor's learning rate."""
    target_critic_ema: float = 0.995
    """Decay of the target critic."""
    actor_ema: float = 0.0
    """Decay of an average of the policy that is evaluated and shown in its place (it neither acts nor imagines); 0 is
    the paper's, the policy itself."""
    initial_std: float = 1.0
    """Standard deviation of the policy at the start, raw action units."""
    min_std: float = 0.1
    """Least standard deviation of the policy, raw action units."""
    normalise_advantages: bool = True
    """Standardise advantages over the batch."""
    train_terminal_transitions: bool = False
    """Whether the transition into a terminal state is itself trained on (the official code gives it weight 0)."""


@dataclass(frozen=True)
class LoopConfig:
    """Algorithm 3: rhythm, budget, and what is written when. Environment steps include the random prefill."""

    total_env_steps: int = 1_005_000
    """The run ends here."""
    prefill_env_steps: int = 5_000
    """At least this many uniform random steps first, in whole episodes."""
    denoiser_warmup_env_steps: int = 1_000
    """After the prefill, steps in which only the denoiser learns."""
    env_steps_per_policy_update: int = 4
    """Environment steps per policy update."""
    denoiser_updates_per_env_step: float = 1.0
    """Gradient steps of the denoiser per environment step."""
    env_steps_per_iteration: int = 4
    """Environment steps per device call; a multiple of env_steps_per_policy_update."""
    side_by_side: bool = False
    """Improve the policy and the world model at the same time, each on a core of its own, where one policy update is an
    iteration: for small networks on a CPU. Same numbers but for rounding."""
    overlap: bool = False
    """Collect while the device learns, with a fixed lag of exactly one iteration."""
    replay_capacity: int = 2_000_000
    """Transitions kept."""
    eval_every_env_steps: int = 10_000
    """Environment steps between two evaluations."""
    eval_episodes: int = 20
    """Episodes per evaluation, with the policy's mean action."""
    error_trajectories: int = 100
    """Imagined trajectories compared with the simulator at every evaluation; 0 turns it off."""
    log_every_env_steps: int = 1_000
    """Environment steps between two rows of metrics."""
    checkpoint_every_env_steps: int = 10_000
    """Environment steps between two checkpoints."""


@dataclass(frozen=True)
class Config:
    """A whole run."""

    preset: str = "paper"
    """The preset that this config started from; kept for the record."""
    seed: int = 0
    """Everything random follows from it."""
    horizon: int = 10
    """H, states per trajectory."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Operands of matrix products; accumulation, parameters and statistics stay in float32."""
    world_model: Literal["polygrad", "autoregressive", "transformer", "ensemble", "dreamer", "simulator"] = "polygrad"
    """What imagines; simulator is MuJoCo itself, a perfect model that learns nothing."""
    learner: Literal["a2c", "latent"] = "a2c"
    """What learns the policy: A2C from imagined observations (the paper's), or Dreamer-v3's actor-critic from imagined
    latents, with world model dreamer only."""
    preallocate_gpu_memory: bool = False
    """Whether JAX takes most of the accelerator's memory at start."""
    env: EnvConfig = field(default_factory=EnvConfig)
    diffusion: DiffusionConfig = field(default_factory=DiffusionConfig)
    guidance: GuidanceConfig = field(default_factory=GuidanceConfig)
    denoiser: DenoiserConfig = field(default_factory=DenoiserConfig)
    autoregressive: AutoregressiveConfig = field(default_factory=AutoregressiveConfig)
    transformer: TransformerConfig = field(default_factory=TransformerConfig)
    ensemble: EnsembleConfig = field(default_factory=EnsembleConfig)
    dreamer: DreamerConfig = field(default_factory=DreamerConfig)
    a2c: A2CConfig = field(default_factory=A2CConfig)
    latent_policy: LatentPolicyConfig = field(default_factory=LatentPolicyConfig)
    loop: LoopConfig = field(default_factory=LoopConfig)


# --- what is allowed -------------------------------------------------------------------------------------------------

_POSITIVE = (lambda x: x > 0, "greater than 0")
_AT_LEAST_0 = (lambda x: x >= 0, "0 or greater")
_AT_LEAST_1 = (lambda x: x >= 1, "1 or greater")
_UNIT = (lambda x: 0 <= x <= 1, "from 0 to 1")
_BELOW_1 = (lambda x: 0 <= x < 1, "from 0 to below 1")

_RANGES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "seed": (lambda x: 0 <= x < 2**32, "from 0 to 4294967295"),
    "horizon": (lambda x: x >= 2, "2 or greater"),
    "env.version": (lambda x: x in (4, 5), "4 or 5"),
    "diffusion.num_steps": _AT_LEAST_1,
    "diffusion.sampling_steps": _AT_LEAST_1,
    "diffusion.tau": _POSITIVE,
    "diffusion.eta": _UNIT,
    "diffusion.sampling_tau": _AT_LEAST_0,
    "diffusion.sampling_floor": _BELOW_1,
    "diffusion.terminal_std": _AT_LEAST_0,
    "guidance.rho": _UNIT,
    "guidance.relaxation": (lambda x: 0 < x <= 1, "greater than 0, at most 1"),
    "guidance.clip_std": _POSITIVE,
    "guidance.initial_delta": _POSITIVE,
    "guidance.delta_lr": _AT_LEAST_0,
    "guidance.max_delta_over_variance": _POSITIVE,
    "guidance.state_change_clip": _AT_LEAST_0,
    "guidance.state_change_clip_below": _AT_LEAST_0,
    "denoiser.width": _AT_LEAST_1,
    "denoiser.num_blocks": _AT_LEAST_1,
    "denoiser.embed_dim": _AT_LEAST_1,
    "denoiser.token_dim": (lambda x: x >= 4, "4 or greater"),
    "denoiser.num_heads": _AT_LEAST_1,
    "denoiser.context_length": _AT_LEAST_1,
    "denoiser.learning_rate": _POSITIVE,
    "denoiser.batch_size": _AT_LEAST_1,
    "denoiser.recent_share": _UNIT,
    "denoiser.recent_windows": _AT_LEAST_1,
    "denoiser.ema_decay": _BELOW_1,
    "denoiser.ema_every_updates": _AT_LEAST_1,
    "denoiser.ema_start_updates": _AT_LEAST_0,
    "autoregressive.tau": _POSITIVE,
    "transformer.context_length": _AT_LEAST_1,
    "transformer.token_dim": _AT_LEAST_1,
    "transformer.num_heads": _AT_LEAST_1,
    "transformer.num_blocks": _AT_LEAST_1,
    "transformer.learning_rate": _POSITIVE,
    "transformer.batch_size": _AT_LEAST_1,
    "ensemble.members": _AT_LEAST_1,
    "ensemble.elites": _AT_LEAST_1,
    "ensemble.hidden_size": _AT_LEAST_1,
    "ensemble.hidden_layers": _AT_LEAST_1,
    "ensemble.learning_rate": _POSITIVE,
    "ensemble.weight_decay": _AT_LEAST_0,
    "ensemble.batch_size": _AT_LEAST_1,
    "ensemble.heldout_share": (lambda x: 0 < x < 1, "between 0 and 1"),
    "ensemble.heldout_decay": _BELOW_1,
    "dreamer.deter": _AT_LEAST_1,
    "dreamer.latents": _AT_LEAST_1,
    "dreamer.classes": (lambda x: x >= 2, "2 or greater"),
    "dreamer.units": _AT_LEAST_1,
    "dreamer.layers": _AT_LEAST_1,
    "dreamer.coder_units": _AT_LEAST_1,
    "dreamer.coder_layers": _AT_LEAST_1,
    "dreamer.bins": (lambda x: x >= 3 and x % 2 == 1, "an odd number, 3 or greater"),
    "dreamer.unimix": (lambda x: 0 < x < 1, "between 0 and 1"),
    "dreamer.free_nats": _AT_LEAST_0,
    "dreamer.dynamics_scale": _AT_LEAST_0,
    "dreamer.representation_scale": _AT_LEAST_0,
    "dreamer.learning_rate": _POSITIVE,
    "dreamer.adam_eps": _POSITIVE,
    "dreamer.grad_clip": _POSITIVE,
    "dreamer.window": (lambda x: x >= 2, "2 or greater"),
    "dreamer.batch_size": _AT_LEAST_1,
    "dreamer.context_length": _AT_LEAST_1,
    "a2c.trajectories": (lambda x: x >= 2, "2 or greater"),
    "a2c.hidden_size": _AT_LEAST_1,
    "a2c.gamma": _UNIT,
    "a2c.gae_lambda": _UNIT,
    "a2c.entropy_weight": _AT_LEAST_0,
    "a2c.critic_lr": _POSITIVE,
    "a2c.critic_updates": _AT_LEAST_1,
    "a2c.max_actor_lr": _POSITIVE,
    "a2c.weight_decay": _AT_LEAST_0,
    "a2c.grad_clip": _POSITIVE,
    "a2c.target_change": _POSITIVE,
    "a2c.final_target_change": _AT_LEAST_0,
    "a2c.search_tolerance": (lambda x: 0 < x < 1, "between 0 and 1"),
    "a2c.search_ratio": (lambda x: 0 < x < 1, "between 0 and 1"),
    "a2c.search_max_retries": _AT_LEAST_0,
    "a2c.log_lr_step": _AT_LEAST_0,
    "a2c.target_critic_ema": _BELOW_1,
    "a2c.actor_ema": _BELOW_1,
    "a2c.initial_std": _POSITIVE,
    "a2c.min_std": _POSITIVE,
    "latent_policy.horizon": _AT_LEAST_1,
    "latent_policy.units": _AT_LEAST_1,
    "latent_policy.layers": _AT_LEAST_1,
    "latent_policy.gamma": _UNIT,
    "latent_policy.return_lambda": _UNIT,
    "latent_policy.entropy_weight": _AT_LEAST_0,
    "latent_policy.min_std": _POSITIVE,
    "latent_policy.max_std": _POSITIVE,
    "latent_policy.bins": (lambda x: x >= 3 and x % 2 == 1, "an odd number, 3 or greater"),
    "latent_policy.learning_rate": _POSITIVE,
    "latent_policy.adam_eps": _POSITIVE,
    "latent_policy.grad_clip": _POSITIVE,
    "latent_policy.slow_critic_rate": (lambda x: 0 < x <= 1, "greater than 0, at most 1"),
    "latent_policy.slow_critic_weight": _AT_LEAST_0,
    "latent_policy.return_decay": _BELOW_1,
    "latent_policy.low_percentile": (lambda x: 0 <= x <= 100, "from 0 to 100"),
    "latent_policy.high_percentile": (lambda x: 0 <= x <= 100, "from 0 to 100"),
    "latent_policy.least_scale": _POSITIVE,
    "loop.total_env_steps": _AT_LEAST_1,
    "loop.prefill_env_steps": _AT_LEAST_1,
    "loop.denoiser_warmup_env_steps": _AT_LEAST_0,
    "loop.env_steps_per_policy_update": _AT_LEAST_1,
    "loop.denoiser_updates_per_env_step": _AT_LEAST_0,
    "loop.env_steps_per_iteration": _AT_LEAST_1,
    "loop.replay_capacity": _AT_LEAST_1,
    "loop.eval_every_env_steps": _AT_LEAST_1,
    "loop.eval_episodes": _AT_LEAST_1,
    "loop.error_trajectories": _AT_LEAST_0,
    "loop.log_every_env_steps": _AT_LEAST_1,
    "loop.checkpoint_every_env_steps": _AT_LEAST_1,
}


def flatten(config: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """``(dotted name, value)`` of every leaf field of a nested config."""
    for f in dataclasses.fields(config):
        value = getattr(config, f.name)
        if dataclasses.is_dataclass(value):
            yield from flatten(value, f"{prefix}{f.name}.")
        else:
            yield f"{prefix}{f.name}", value


def _choices(kind: type, prefix: str = "") -> dict[str, tuple[str, ...]]:
    """What fields of a few values may be, by their dotted name."""
    found = {}
    for name, hint in get_type_hints(kind).items():
        if dataclasses.is_dataclass(hint):
            found |= _choices(hint, f"{prefix}{name}.")
        elif get_origin(hint) is Literal:
            found[f"{prefix}{name}"] = get_args(hint)
    return found


def planned_policy_updates(config: Config) -> int:
    """Policy updates of the whole run, at least 1; a few more than there will be, since the prefill ends an episode."""
    loop = config.loop
    learning = loop.total_env_steps - loop.prefill_env_steps - loop.denoiser_warmup_env_steps
    return max(learning // loop.env_steps_per_policy_update, 1)


def denoiser_updates_per_policy_update(config: Config) -> int:
    """Gradient steps of the denoiser that follow one policy update (an integer, see :func:`validate`)."""
    return round(config.loop.denoiser_updates_per_env_step * config.loop.env_steps_per_policy_update)


def validate(config: Config) -> Config:
    """The config itself.

    Raises:
      ConfigError: a value out of range, or two fields that contradict each other; one line.
    """
    choices = _choices(Config)
    del choices["world_model"]  # the registry knows: there may be others
    for name, value in flatten(config):
        if isinstance(value, float) and not math.isfinite(value):
            raise ConfigError(f"{name} is {value}; allowed: a finite number")
        if name in _RANGES and not _RANGES[name][0](value):
            raise ConfigError(f"{name} is {value}; allowed: {_RANGES[name][1]}")
        if name in choices and value not in choices[name]:
            raise ConfigError(f"{name} is {value}; allowed: {', '.join(choices[name])}")
    d, loop, a2c, latent = config.diffusion, config.loop, config.a2c, config.latent_policy
    least_capacity = max(loop.prefill_env_steps + 10 * config.horizon, loop.env_steps_per_iteration, INSERT_CHUNK)
    tau = config.autoregressive.tau if config.world_model == "autoregressive" else d.tau
    highest_floor = noise_std(d.num_steps, tau)[-min(d.sampling_steps, d.num_steps)] if d.sampling_floor else 1.0
    contradictions = [
        (
            d.sampling_steps > d.num_steps,
            f"diffusion.sampling_steps is {d.sampling_steps}; allowed: at most diffusion.num_steps ({d.num_steps})",
        ),
        (
            d.sampling_tau > 0 and d.sampling_steps >= d.num_steps,
            f"diffusion.sampling_tau is {d.sampling_tau} with all {d.num_steps} steps sampled; allowed: 0, or fewer "
            "diffusion.sampling_steps than diffusion.num_steps",
        ),
        (
            d.sampling_floor > 0 and d.sampling_tau == 0,
            f"diffusion.sampling_floor is {d.sampling_floor} with diffusion.sampling_tau 0; allowed: 0",
        ),
        (
            d.sampling_floor > highest_floor,
            f"diffusion.sampling_floor is {d.sampling_floor}; allowed: at most {highest_floor:.4f}, so that "
            f"{d.sampling_steps} steps (diffusion.sampling_steps) have that much noise",
        ),
        (
            d.sampling_floor > 0 and config.guidance.rule == "state_update",
            f"diffusion.sampling_floor is {d.sampling_floor} under guidance.rule state_update, which needs the last "
            "step; allowed: 0",
        ),
        (
            config.denoiser.token_dim % config.denoiser.num_heads != 0,
            f"denoiser.token_dim is {config.denoiser.token_dim}; allowed: a multiple of denoiser.num_heads "
            f"({config.denoiser.num_heads})",
        ),
        (
            config.denoiser.token_dim % 2 != 0,
            f"denoiser.token_dim is {config.denoiser.token_dim}; allowed: an even number",
        ),
        (
            config.transformer.token_dim % config.transformer.num_heads != 0,
            f"transformer.token_dim is {config.transformer.token_dim}; allowed: a multiple of transformer.num_heads "
            f"({config.transformer.num_heads})",
        ),
        (
            config.ensemble.elites > config.ensemble.members,
            f"ensemble.elites is {config.ensemble.elites}; allowed: at most ensemble.members "
            f"({config.ensemble.members})",
        ),
        (
            a2c.initial_std <= a2c.min_std,
            f"a2c.initial_std is {a2c.initial_std}; allowed: greater than a2c.min_std ({a2c.min_std})",
        ),
        (
            loop.env_steps_per_iteration % loop.env_steps_per_policy_update != 0,
            f"loop.env_steps_per_iteration is {loop.env_steps_per_iteration}; allowed: a multiple of "
            f"loop.env_steps_per_policy_update ({loop.env_steps_per_policy_update})",
        ),
        (
            loop.side_by_side and loop.env_steps_per_iteration != loop.env_steps_per_policy_update,
            f"loop.env_steps_per_iteration is {loop.env_steps_per_iteration} with loop.side_by_side; allowed: "
            f"loop.env_steps_per_policy_update ({loop.env_steps_per_policy_update})",
        ),
        (
            not float(loop.denoiser_updates_per_env_step * loop.env_steps_per_policy_update).is_integer(),
            f"loop.denoiser_updates_per_env_step is {loop.denoiser_updates_per_env_step}; allowed: a whole number of "
            f"updates per loop.env_steps_per_policy_update ({loop.env_steps_per_policy_update}) steps",
        ),
        (
            loop.total_env_steps <= loop.prefill_env_steps,
            f"loop.total_env_steps is {loop.total_env_steps}; allowed: more than loop.prefill_env_steps "
            f"({loop.prefill_env_steps})",
        ),
        (
            loop.replay_capacity < least_capacity,
            f"loop.replay_capacity is {loop.replay_capacity}; allowed: at least {least_capacity} "
            f"(loop.prefill_env_steps plus ten horizons, loop.env_steps_per_iteration, {INSERT_CHUNK})",
        ),
        (
            config.world_model == "dreamer" and config.dreamer.window > loop.replay_capacity,
            f"dreamer.window is {config.dreamer.window}; allowed: at most loop.replay_capacity "
            f"({loop.replay_capacity})",
        ),
        (
            config.learner == "latent" and config.world_model != "dreamer",
            f"learner is latent with world_model {config.world_model}; allowed: a2c, or world_model dreamer",
        ),
        (
            latent.max_std <= latent.min_std,
            f"latent_policy.max_std is {latent.max_std}; allowed: greater than latent_policy.min_std "
            f"({latent.min_std})",
        ),
        (
            latent.high_percentile <= latent.low_percentile,
            f"latent_policy.high_percentile is {latent.high_percentile}; allowed: greater than "
            f"latent_policy.low_percentile ({latent.low_percentile})",
        ),
    ]
    for wrong, line in contradictions:
        if wrong:
            raise ConfigError(line)
    return config


# --- to and from JSON ------------------------------------------------------------------------------------------------


def to_dict(config: Config) -> dict[str, Any]:
    """The config as nested plain dictionaries."""
    return dataclasses.asdict(config)


def from_dict(saved: dict[str, Any], kind: type = Config) -> Any:
    """The inverse of :func:`to_dict`. A field that an older version did not write has its default: what it did then.

    Raises:
      ConfigError: a field that this version does not know, or a value in place of fields.
    """
    if not isinstance(saved, dict):
        raise ConfigError(f"saved configuration: {saved!r} in place of {kind.__name__}; allowed: its fields by name")
    hints = get_type_hints(kind)
    unknown = sorted(set(saved) - set(hints))
    if unknown:
        raise ConfigError(
            f"saved configuration of {kind.__name__}: unknown fields {unknown}; allowed: a run folder written by this "
            "version or an older one"
        )
    values = {
        name: from_dict(saved[name], hint) if dataclasses.is_dataclass(hint) else saved[name]
        for name, hint in hints.items()
        if name in saved
    }
    return kind(**values)


def to_json(config: Config) -> str:
    """The config as indented JSON."""
    return json.dumps(to_dict(config), indent=2) + "\n"


# --- presets ---------------------------------------------------------------------------------------------------------


def task_of(env: str) -> str:
    """The task by which a preset is looked up: ``InvertedPendulum-v5`` is ``inverted_pendulum``."""
    name, _, version = env.rpartition("-v")
    bare = (name if version.isdigit() else env).lower()
    return {"invertedpendulum": "inverted_pendulum"}.get(bare, bare)


def paper(env: str) -> Config:
    """Tables 1 to 4 of the paper at full size: 1,024 rollouts of 10 states, N = 128, width 1,024.

    Reproduces: the PolyGRAD curves of Figure 6. Command: ``make train ENV=hopper PRESET=paper``.
    Expected: the paper's own curves, which are on the v3 environments; never run at full length by us. Wall time: the
    paper names 54 hours on an RTX 3090 for one million steps.
    """
    task = task_of(env)
    steps = 1_500_000 if task in ("walker2d", "halfcheetah") else 1_000_000
    return Config(
        preset="paper",
        env=EnvConfig(name=env),
        # Paper, Table 4: Hopper with the residual MLP has tau 0.1, everything else 1.
        diffusion=DiffusionConfig(tau=0.1 if task == "hopper" else 1.0),
        # DEVIATION: the paper does not count the prefill in its budget; we do.
        loop=LoopConfig(total_env_steps=steps + 5_000),
    )


def cpu(env: str) -> Config:
    """Sized for two cores: a small denoiser, sixteen diffusion steps, small networks, a critic that keeps up.

    Command: ``make train ENV=hopper PRESET=cpu``. Found by measuring; what was tried is in ``results/cpu_search``, what
    to expect in ``results/``. Against the paper's settings for Hopper: tau is 1 and the small denoiser learns faster
    (only both together predict well after few updates, ``results/denoiser_settings.csv``), half of its batches are of
    the newest windows, the change of a state is not clipped, terminals come from a classifier of single steps (diffused
    ones come late, and the advantages with them, ``results/terminals.csv``), the critic learns four times per batch and
    its target follows faster, delta follows the policy's shrinking std faster, the transition into a terminal state is
    trained on, the policy begins narrower, moves in fewer, larger steps that become ten times smaller towards the end
    (steps of constant size walk away from what they found), is evaluated as an average of its last thousand updates,
    and its least std is larger. The pendulum has settings of its own. On processors that multiply
    bfloat16 (AMX) ``--precision bfloat16`` is faster; on others it is slower.
    """
    base = paper(env)
    found = replace(
        base,
        preset="cpu",
        diffusion=replace(
            base.diffusion, num_steps=16, sampling_steps=16, tau=1.0, terminals="classified", terminal_std=0.5
        ),
        guidance=replace(base.guidance, delta_lr=3e-2, state_change_clip=0.0),
        denoiser=replace(
            base.denoiser, width=256, learning_rate=4e-3, batch_size=128, recent_share=0.5, padded_actions="drawn"
        ),
        transformer=TransformerConfig(token_dim=64, num_blocks=2, learning_rate=1e-3, batch_size=128),
        # A gradient step then costs two thirds of the small denoiser's, an imagination a fifth (two cores).
        ensemble=replace(base.ensemble, members=5, elites=3, hidden_size=100, batch_size=128),
        # Small enough for two cores; not searched.
        dreamer=replace(
            base.dreamer,
            deter=128,
            latents=16,
            classes=16,
            units=128,
            layers=1,
            coder_units=128,
            coder_layers=2,
            learning_rate=3e-4,
            window=32,
        ),
        latent_policy=LatentPolicyConfig(units=128, layers=1, learning_rate=1e-4),
        a2c=replace(
            base.a2c,
            trajectories=128,
            hidden_size=128,
            gae_lambda=0.95,
            critic_lr=1e-3,
            critic_updates=4,
            max_actor_lr=3e-4,
            target_change=0.03,
            final_target_change=0.003,
            actor_ema=0.999,
            initial_std=0.5,
            min_std=0.2,
            target_critic_ema=0.98,
            train_terminal_transitions=True,
        ),
        loop=replace(
            base.loop,
            total_env_steps=100_000,
            env_steps_per_policy_update=8,
            env_steps_per_iteration=8,
            side_by_side=True,
            replay_capacity=200_000,
            eval_every_env_steps=5_000,
        ),
    )
    return _cpu_pendulum(found) if task_of(env) == "inverted_pendulum" else found


def _cpu_pendulum(hopper: Config) -> Config:
    """Hopper's settings do not learn the pendulum, nor the pendulum's the Hopper (``results/cpu_search``)."""
    return replace(
        hopper,
        diffusion=replace(hopper.diffusion, tau=0.1, terminals="diffused", terminal_std=0.0),
        guidance=replace(hopper.guidance, state_change_clip=0.25, state_change_clip_below=2),
        denoiser=replace(
            hopper.denoiser, learning_rate=3e-4, batch_size=256, recent_share=0.0, padded_actions="repeated"
        ),
        a2c=replace(
            hopper.a2c, max_actor_lr=3e-3, final_target_change=0.0, actor_ema=0.0, initial_std=1.0, min_std=0.1
        ),
        loop=replace(
            hopper.loop, total_env_steps=20_000, env_steps_per_policy_update=4, env_steps_per_iteration=4
        ),
    )


def smoke(env: str) -> Config:
    """Ends in seconds: every part runs at a tiny size. Proves that the installation works, teaches nothing."""
    base = cpu(env)
    return replace(
        base,
        preset="smoke",
        diffusion=replace(base.diffusion, num_steps=8, sampling_steps=8, tau=0.1),
        denoiser=replace(base.denoiser, width=64, num_blocks=2, batch_size=32),
        transformer=replace(base.transformer, token_dim=32, batch_size=32),
        ensemble=replace(base.ensemble, members=3, elites=2, hidden_size=16, hidden_layers=2, batch_size=32),
        dreamer=replace(
            base.dreamer, deter=16, latents=4, classes=4, units=16, coder_units=16, coder_layers=1, window=8
        ),
        a2c=replace(base.a2c, trajectories=16, hidden_size=32, final_target_change=0.0),
        latent_policy=replace(base.latent_policy, horizon=5, units=16),
        loop=replace(
            base.loop,
            total_env_steps=2_400,
            prefill_env_steps=1_000,
            denoiser_warmup_env_steps=200,
            env_steps_per_policy_update=4,
            env_steps_per_iteration=4,
            replay_capacity=10_000,
            eval_every_env_steps=800,
            eval_episodes=2,
            error_trajectories=8,
            log_every_env_steps=100,
            checkpoint_every_env_steps=800,
        ),
    )


def paper_transformer(env: str) -> Config:
    """The paper's transformer denoiser (Table 3) in place of the residual MLP: slower, better at long horizons.

    Reproduces: the PolyGRAD curves of Figures 5 and 8 use this denoiser. Command: ``make train ENV=hopper
    PRESET=paper_transformer``. Not run at full size by us.
    """
    base = paper(env)
    return replace(
        base,
        preset="paper_transformer",
        diffusion=replace(base.diffusion, tau=1.0),
        denoiser=replace(base.denoiser, kind="transformer", learning_rate=1e-4),
    )


def _ablation(rule: GuidanceRule) -> Callable[[str], Config]:
    def ablation(env: str) -> Config:
        base = paper(env)
        return replace(base, preset=f"paper_{rule}", guidance=replace(base.guidance, rule=rule))

    whose = "The official code's variant" if rule == "posterior_mean" else "The paper's ablation"
    ablation.__doc__ = f"{whose} '{rule}' (Section 5.4, Figure 7): preset paper under that guidance rule."
    return ablation


NOT_THE_PAPERS: tuple[GuidanceRule, ...] = ("preconditioned", "correlated")
ABLATIONS: tuple[GuidanceRule, ...] = tuple(
    rule for rule in get_args(GuidanceRule) if rule not in ("score", *NOT_THE_PAPERS)
)

PRESETS: dict[str, Callable[[str], Config]] = {
    "paper": paper,
    "cpu": cpu,
    "smoke": smoke,
    "paper_transformer": paper_transformer,
    **{f"paper_{rule}": _ablation(rule) for rule in ABLATIONS},
}


def preset(name: str, env: str) -> Config:
    """The preset ``name`` for the environment ``env``.

    Raises:
      ConfigError: no such preset.
    """
    if name not in PRESETS:
        raise ConfigError(f"preset is {name}; allowed: {', '.join(PRESETS)}")
    return PRESETS[name](env)
