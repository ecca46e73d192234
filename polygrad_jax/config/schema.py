"""Declare every field of the configuration: its type, default, description and allowed range.

The dataclasses are frozen. The metadata of a field hold its description under ``doc``, where ``docs/configuration.md``
reads it; its range under ``range``, where :func:`polygrad_jax.config.validate` reads it; and both in words under
``help``, where the command line (tyro) reads them. Nothing here imports jax, so a mistake on the command line is
reported at once.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

GuidanceRule = Literal[
    "score",
    "random_actions",
    "policy_sampling",
    "no_clipping",
    "state_update",
    "noisy_states",
    "posterior_mean",
    "correlated",
]

DenoiserOutput = Literal["clean", "noise", "change"]
Execution = Literal["clipped", "squashed"]
"""What an action as sampled becomes when it is executed, see ``env.actions``."""

INSERT_CHUNK = 256
"""Transitions per replay insertion while the replay is filled; a replay must hold at least one such chunk."""

LARGEST_STORED = 1e15
"""Largest size of a stored number: statistics are sums of squares in float32, which ends at 3e38."""

LARGEST_FLOAT = 3.4e38
LARGEST_COUNT = 2**31 - 1
"""Largest numbers of a configuration: the device computes in float32 and counts in int32."""


class ConfigError(ValueError):
    """A configuration that cannot be run; the message is one line naming field, value and what is allowed."""


@dataclass(frozen=True)
class EnvSpec:
    """Sizes of an environment: all that networks, replay and agents need to know of it."""

    observation_size: int
    action_size: int


class Range(NamedTuple):
    """Values that a field may take: ``holds(value)``, and the same in words for the error message."""

    holds: Callable[[Any], bool]
    words: str


def option(default: Any, doc: str, allowed: Range | None = None) -> Any:
    """Declare one field. ``help`` is the metadata key from which tyro takes the text of ``--help``."""
    shown = doc if allowed is None else f"{doc} Allowed: {allowed.words}."
    return field(default=default, metadata={"help": shown, "doc": doc, "range": allowed})


POSITIVE = Range(lambda x: x > 0, "greater than 0")
AT_LEAST_0 = Range(lambda x: x >= 0, "0 or greater")
AT_LEAST_1 = Range(lambda x: x >= 1, "1 or greater")
AT_LEAST_2 = Range(lambda x: x >= 2, "2 or greater")
UNIT = Range(lambda x: 0 <= x <= 1, "from 0 to 1")
BELOW_1 = Range(lambda x: 0 <= x < 1, "from 0 to below 1")
EXPONENT = Range(lambda x: 0 < x <= 10, "greater than 0, up to 10")
"""Of a noise schedule: far above it the last steps' shares of the signal are 0 in float64, and their ratios NaN."""


@dataclass(frozen=True)
class EnvConfig:
    """The task."""

    name: str = option(
        "hopper", "hopper, walker2d, halfcheetah, inverted_pendulum, or the id of any installed Gymnasium environment."
    )
    version: int = option(
        5,
        "Version of the four named MuJoCo tasks; ignored for a full Gymnasium id.",
        Range(lambda x: x in (4, 5), "4 or 5"),
    )
    hide_velocities: bool = option(
        False,
        "Remove the velocities from the observations, which makes the task partially observed; for the four named "
        "tasks only.",
    )
    actions: Execution = option(
        "clipped",
        "What an action as the policy sampled it becomes when it is executed: clipped to [-1, 1] (official code), or "
        "squashed into it by tanh.",
    )


@dataclass(frozen=True)
class DiffusionConfig:
    """Noise schedule, sampling and terminals (paper, Table 4) of the world models polygrad, autoregressive and
    distilled. The world model transformer reads the two fields on terminals."""

    num_steps: int = option(128, "N, the steps of the noise schedule.", AT_LEAST_1)
    sampling_steps: int = option(
        128, "K, the steps sampled: an evenly spaced subset of the N. The paper samples all N.", AT_LEAST_1
    )
    tau: float = option(
        1.0,
        "Exponent of the cosine schedule (Chen 2023, Algorithm 1). The paper uses 0.1 for Hopper with the MLP denoiser "
        "and 1 otherwise.",
        EXPONENT,
    )
    terminals: Literal["diffused", "classified"] = option(
        "diffused",
        "Source of imagined terminals: a channel of the diffused trajectory (the paper's), or a classifier of single "
        "transitions trained beside the world model. For the world model transformer diffused means its own output.",
    )
    terminal_std: float = option(
        0.0,
        "Divide raw terminals by this to normalise them. 0 divides by their standard deviation over the replay "
        "(official code), which makes a rare terminal the channel of the largest magnitude.",
        AT_LEAST_0,
    )
    prediction: DenoiserOutput = option(
        "clean",
        "Output of the denoiser: the clean trajectory (official code), the noise (the paper's equations), or the clean "
        "trajectory with the last observed state subtracted from its states.",
    )


@dataclass(frozen=True)
class GuidanceConfig:
    """Guidance of the actions by the policy (Algorithm 2, lines 9 to 12) and tuning of delta (Eq. 10)."""

    rule: GuidanceRule = option(
        "score",
        "score is the paper's rule. correlated makes each action the policy's mean plus its standard deviation times "
        "one draw kept over all diffusion steps. posterior_mean is the official code's variant; the others are the "
        "paper's ablations (Section 5.4).",
    )
    relaxation: float = option(
        1.0,
        "Rule correlated: fraction of the way to the policy's action taken in each diffusion step but the last, which "
        "always goes the whole way. Below 1 the actions wait for the states to settle.",
        Range(lambda x: 0 < x <= 1, "greater than 0, at most 1"),
    )
    clip_std: float = option(
        3.0, "Clip actions to the policy's mean plus or minus this many standard deviations (Eq. 11).", POSITIVE
    )
    initial_delta: float = option(
        0.005, "Scale of the action update before any tuning, in squared raw action units.", POSITIVE
    )
    delta_lr: float = option(3e-3, "Learning rate of log delta (Eq. 10). 0 turns the tuning off.", AT_LEAST_0)
    state_change_clip: float = option(
        0.25,
        "Largest change of a normalised channel within one of the last diffusion steps. 0 turns the clip off.",
        AT_LEAST_0,
    )
    state_change_clip_below: int = option(
        11, "Apply state_change_clip in diffusion steps t below this; t = 0 is the last step.", AT_LEAST_0
    )


@dataclass(frozen=True)
class ModelTrainingConfig:
    """Training of the world model, whichever it is: batches from the replay and how often a gradient step is taken."""

    batch_size: int = option(
        256,
        "Segments per gradient step. The world models transformer and dreamer have a batch_size of their own.",
        AT_LEAST_1,
    )
    recent_share: float = option(
        0.0, "Fraction of each batch drawn from the newest windows only. 0 is the paper's uniform replay.", UNIT
    )
    recent_windows: int = option(
        5_000, "Number of windows that recent_share counts as the newest; of dreamer, streams.", AT_LEAST_1
    )
    padded_actions: Literal["repeated", "drawn"] = option(
        "repeated",
        "Actions that pad a training window beyond the end of its episode: the last action repeated, or actions of "
        "other transitions. Repeated actions tell a denoiser, which sees all actions, when the episode ends. The other "
        "world models do not see them.",
    )
    updates_per_env_step: float = option(1.0, "Gradient steps of the world model per environment step.", AT_LEAST_0)
    warmup_env_steps: int = option(
        1_000, "Environment steps after the prefill during which only the world model is trained.", AT_LEAST_0
    )


@dataclass(frozen=True)
class DenoiserConfig:
    """The denoising network of polygrad, autoregressive and distilled, and its optimiser (paper, Tables 2 and 3)."""

    kind: Literal["mlp", "transformer"] = option("mlp", "Residual MLP or causal transformer.")
    width: int = option(1024, "Width of the residual MLP.", AT_LEAST_1)
    num_blocks: int = option(6, "Residual blocks, or transformer blocks.", AT_LEAST_1)
    token_dim: int = option(
        312,
        "Width of the transformer's tokens; even, and a multiple of num_heads.",
        Range(lambda x: x >= 4, "4 or greater"),
    )
    num_heads: int = option(4, "Attention heads of the transformer.", AT_LEAST_1)
    context_length: int = option(
        1,
        "World model polygrad: C, the observed states at the beginning of the diffused trajectory. 1 is the paper's; "
        "partially observed tasks need more.",
        AT_LEAST_1,
    )
    learning_rate: float = option(3e-4, "Learning rate of Adam.", POSITIVE)
    shown_actions: Literal["sampled", "executed"] = option(
        "sampled",
        "World model polygrad: show the denoiser the actions as the policy sampled them (official code), or as the "
        "environment executes them (env.actions).",
    )
    ema_decay: float = option(0.99, "Decay of the averaged parameters used for imagination.", BELOW_1)


@dataclass(frozen=True)
class AutoregressiveConfig:
    """World model autoregressive: one-step diffusion (paper, Appendix C.2). It also reads ``diffusion`` and
    ``denoiser``."""

    tau: float = option(
        1.0, "Exponent of the cosine schedule for single transitions, in place of diffusion.tau.", EXPONENT
    )


@dataclass(frozen=True)
class DistilledConfig:
    """World model distilled: one-step diffusion in few network calls. It also reads ``diffusion``, but for its
    sampling_steps, ``denoiser`` and ``autoregressive``."""

    calls: int = option(1, "Network calls per predicted transition, at most steps.", AT_LEAST_1)
    steps: int = option(
        4, "Steps of the one-step diffusion that are distilled. Few are learnt faster, and are enough.", AT_LEAST_2
    )


@dataclass(frozen=True)
class TransformerConfig:
    """World model transformer: predicts the next state from the last ones (paper, Appendix C.2 and Table 3)."""

    context_length: int = option(15, "Largest number of state-action pairs attended to.", AT_LEAST_1)
    token_dim: int = option(312, "Width of the tokens; a multiple of num_heads.", AT_LEAST_1)
    num_heads: int = option(4, "Attention heads.", AT_LEAST_1)
    num_blocks: int = option(6, "Transformer blocks.", AT_LEAST_1)
    learning_rate: float = option(1e-4, "Learning rate of Adam.", POSITIVE)
    batch_size: int = option(
        1024, "Segments per gradient step (official code), in place of model_training.batch_size.", AT_LEAST_1
    )


@dataclass(frozen=True)
class EnsembleConfig:
    """World model ensemble: probabilistic MLPs (paper, Appendix C.2; MBPO, Janner et al. 2019). Also the ensemble that
    learns beside world model polygrad and that value gradients flow through; it takes a gradient step for every two
    states of a training window where polygrad takes one."""

    members: int = option(7, "Number of networks.", AT_LEAST_1)
    elites: int = option(5, "Number of networks used for imagination: those of the lowest held-out loss.", AT_LEAST_1)
    hidden_size: int = option(200, "Width of the hidden layers.", AT_LEAST_1)
    hidden_layers: int = option(4, "Number of hidden layers.", AT_LEAST_1)
    learning_rate: float = option(1e-3, "Learning rate of Adam.", POSITIVE)
    weight_decay: float = option(
        1e-4,
        "Weight decay of the output layers; the hidden layers have 1/4, 1/2, 3/4, 3/4, ... of it.",
        AT_LEAST_0,
    )


@dataclass(frozen=True)
class DreamerConfig:
    """World model dreamer: Dreamer-v3 (arXiv 2301.04104v1; sizes of the code's ``dmc_proprio``, the paper's S)."""

    deter: int = option(512, "Size of the recurrent state.", AT_LEAST_1)
    latents: int = option(32, "Number of categorical variables in a latent state.", AT_LEAST_1)
    classes: int = option(32, "Number of classes of each categorical variable.", AT_LEAST_2)
    units: int = option(
        512, "Width of the layers around the recurrent state and of the reward and continue heads.", AT_LEAST_1
    )
    layers: int = option(2, "Hidden layers of the reward and continue heads.", AT_LEAST_1)
    coder_units: int = option(
        1024,
        "Width of encoder and decoder. The paper's table says 512; the code behind its figures uses 1,024.",
        AT_LEAST_1,
    )
    coder_layers: int = option(
        5,
        "Hidden layers of encoder and decoder. The paper's table says 2; the code behind its figures uses 5.",
        AT_LEAST_1,
    )
    learning_rate: float = option(1e-4, "Learning rate of Adam.", POSITIVE)
    window: int = option(64, "Steps per training segment.", AT_LEAST_2)
    batch_size: int = option(16, "Segments per gradient step, in place of model_training.batch_size.", AT_LEAST_1)
    context_length: int = option(5, "Observed states before imagination begins (PolyGRAD's Appendix C.2).", AT_LEAST_1)


@dataclass(frozen=True)
class DreamerAgentConfig:
    """Agent dreamer: Dreamer-v3's actor-critic on latent states (arXiv 2301.04104v1; sizes of ``dmc_proprio``)."""

    horizon: int = option(15, "Steps imagined from each latent state of a batch.", AT_LEAST_1)
    units: int = option(512, "Width of actor and critic.", AT_LEAST_1)
    layers: int = option(2, "Hidden layers of actor and critic.", AT_LEAST_1)
    gamma: float = option(0.997, "Discount factor.", UNIT)
    gradient: Literal["reinforce", "backprop"] = option(
        "reinforce",
        "Estimator of the actor's gradient: from log-probabilities (the 2024 revision of Dreamer-v3), or through the "
        "learnt dynamics (its code of January 2023 for continuous actions, and the PolyGRAD paper's baseline).",
    )
    entropy_weight: float = option(3e-4, "Weight of the entropy bonus.", AT_LEAST_0)
    learning_rate: float = option(3e-5, "Learning rate of Adam, for actor and critic.", POSITIVE)


@dataclass(frozen=True)
class A2CConfig:
    """Agent a2c: on-policy learning from imagined trajectories (paper, Table 1 and Appendix A)."""

    trajectories: int = option(1024, "Imagined trajectories per policy update.", AT_LEAST_2)
    hidden_size: int = option(256, "Width of the two hidden layers of actor and critic.", AT_LEAST_1)
    gamma: float = option(0.99, "Discount factor.", UNIT)
    gae_lambda: float = option(0.9, "Lambda of generalised advantage estimation.", UNIT)
    entropy_weight: float = option(1e-5, "Weight of the entropy bonus.", AT_LEAST_0)
    critic_lr: float = option(3e-4, "Learning rate of AdamW for the critic.", POSITIVE)
    critic_updates: int = option(
        1, "Gradient steps of the critic on each imagined batch, or on each minibatch. 1 is the paper's.", AT_LEAST_1
    )
    max_actor_lr: float = option(3e-5, "Largest learning rate of the actor; also the initial one.", POSITIVE)
    weight_decay: float = option(0.01, "Weight decay of AdamW for actor, critic and log-std.", AT_LEAST_0)
    grad_clip: float = option(
        0.1, "Largest gradient norm; the actor's network and the critic are clipped separately.", POSITIVE
    )
    target_change: float = option(
        0.01,
        "Mean absolute change of the joint log-probability at which an update aims, with learning_rates adapted.",
        POSITIVE,
    )
    final_target_change: float = option(
        0.0,
        "Value that target_change reaches, linearly, at the end of the run. 0 keeps target_change constant, as in the "
        "paper. A run extended by loop.total_env_steps continues along the new line. Read with learning_rates adapted.",
        AT_LEAST_0,
    )
    search: bool = option(
        True,
        "Search for the learning rate of the actor that meets target_change (line search). Without the search each "
        "update keeps the first one tried.",
    )
    learning_rates: Literal["adapted", "constant", "falling"] = option(
        "adapted",
        "adapted: the actor's follows target_change, the critic's is critic_lr (paper, Appendix A). constant: the "
        "actor's is max_actor_lr, the critic's critic_lr. falling: both fall from there to 0, linearly, at the end of "
        "the run. The search needs adapted.",
    )
    epochs: int = option(
        1, "Passes over each imagined batch, in another order each. 1 is the paper's; more exclude search.", AT_LEAST_1
    )
    minibatches: int = option(
        1,
        "Parts of equal size into which each pass splits the transitions of a batch; every part is a step of critic "
        "and actor. 1 is the paper's; more exclude the search.",
        AT_LEAST_1,
    )
    clip_ratio: float = option(
        0.0,
        "Bound of PPO: within one update nothing is gained by making an action more or less likely than by this "
        "fraction. 0 is the paper's loss, without a ratio.",
        AT_LEAST_0,
    )
    normalise_observations: bool = option(
        False,
        "Let actor and critic read observations standardised by the mean and standard deviation of the replay, in "
        "place of raw ones.",
    )
    value_scale: Literal["raw", "running"] = option(
        "raw",
        "Units of the critic's outputs and of its loss: raw reward, or running mean and standard deviation of its "
        "targets (PopArt), so that learning rates and gradient clip mean the same at returns of any size.",
    )
    target_critic_ema: float = option(0.995, "Decay of the target critic.", BELOW_1)
    actor_ema: float = option(
        0.0,
        "Decay of the averaged policy that is evaluated in place of the policy that acts and imagines. 0 evaluates the "
        "policy itself, as in the paper.",
        BELOW_1,
    )
    initial_std: float = option(1.0, "Initial standard deviation of the policy, in raw action units.", POSITIVE)
    min_std: float = option(0.1, "Smallest standard deviation of the policy, in raw action units.", POSITIVE)
    train_terminal_transitions: bool = option(
        False, "Train on the transition into a terminal state. The official code gives it weight 0."
    )


@dataclass(frozen=True)
class ValueGradientConfig:
    """Agent value_gradient: gradients of values through a few steps of a differentiable model (DHMBPO's sizes)."""

    starts: Literal["imagined", "model", "replay"] = option(
        "imagined",
        "States from which paths begin: those of the world model's imagined trajectories, those of a roll-out of the "
        "differentiable step, or stored ones. World model polygrad makes the first alone: with the others it is "
        "trained and not used.",
    )
    path: Literal["model", "imagined"] = option(
        "model",
        "What paths go through: steps of the differentiable model, or the imagined trajectories with the model's "
        "derivatives at their states.",
    )
    path_length: int = option(
        3, "Steps of the model through which the policy's gradient flows. 0 asks the Q functions at once.", AT_LEAST_0
    )
    trajectories: int = option(
        128, "Imagined trajectories, or roll-outs, per policy update; horizon times as many stored states.", AT_LEAST_1
    )
    updates: int = option(8, "Gradient steps per policy update.", AT_LEAST_1)
    batch_size: int = option(256, "Paths per gradient step.", AT_LEAST_1)
    critics: int = option(5, "Number of Q functions.", AT_LEAST_2)
    hidden_size: int = option(256, "Width of the hidden layers of policy and Q functions.", AT_LEAST_1)
    hidden_layers: int = option(3, "Number of hidden layers of policy and Q functions.", AT_LEAST_1)
    gamma: float = option(0.995, "Discount factor.", BELOW_1)
    final_gamma: float = option(
        0.0,
        "Discount factor from gradient step 40,000 on. It is gamma up to step 20,000; between them the horizon "
        "1 / (1 - gamma) grows linearly. 0 keeps gamma constant.",
        BELOW_1,
    )
    learning_rate: float = option(3e-4, "Learning rate of Adam.", POSITIVE)
    target_rate: float = option(0.005, "Rate at which the target networks follow the Q functions.", UNIT)
    actor_ema: float = option(
        0.0,
        "Decay, per gradient step, of the averaged policy that is evaluated in place of the policy that acts and "
        "imagines. 0 evaluates the policy itself.",
        BELOW_1,
    )
    target_entropy: float = option(
        -1.0,
        "Entropy per dimension of the action at which the temperature aims, in nats: as executed where actions are "
        "squashed, as sampled where they are clipped.",
        Range(lambda x: x < 0.69, "below 0.69, which a uniform action in [-1, 1] has"),
    )


@dataclass(frozen=True)
class LoopConfig:
    """Algorithm 3: budget, rhythm and output intervals. Environment steps include the random prefill."""

    total_env_steps: int = option(1_005_000, "Environment steps at which the run ends.", AT_LEAST_1)
    prefill_env_steps: int = option(
        5_000, "Uniformly random steps before learning begins, rounded up to whole episodes.", AT_LEAST_1
    )
    env_steps_per_policy_update: int = option(4, "Environment steps per policy update.", AT_LEAST_1)
    side_by_side: bool = option(
        False,
        "Update the policy and the world model at the same time, each on a core of its own: faster for small networks "
        "on a CPU. The numbers are the same up to rounding. Several devices or hosts learn in one program.",
    )
    replay_capacity: int = option(2_000_000, "Transitions kept in the replay.", AT_LEAST_1)
    eval_every_env_steps: int = option(10_000, "Environment steps between two evaluations.", AT_LEAST_1)
    eval_episodes: int = option(20, "Episodes per evaluation, under the policy's mean action.", AT_LEAST_1)
    film_checkpoints: bool = option(
        True,
        "Film the first ten seconds of the first evaluation after each checkpoint, and of the last, for TensorBoard, "
        "where pictures can be drawn.",
    )
    error_trajectories: int = option(
        100, "Imagined trajectories compared with the simulator at each evaluation. 0 skips the comparison.", AT_LEAST_0
    )
    log_every_env_steps: int = option(1_000, "Environment steps between two rows of metrics.", AT_LEAST_1)
    checkpoint_every_env_steps: int = option(10_000, "Environment steps between two checkpoints.", AT_LEAST_1)


@dataclass(frozen=True)
class Config:
    """A whole run."""

    preset: str = option("paper", "Preset from which this configuration was made; kept for the record.")
    seed: int = option(
        0, "Seed from which all randomness follows.", Range(lambda x: 0 <= x < 2**32, "from 0 to 4294967295")
    )
    horizon: int = option(10, "H, the states per imagined trajectory.", AT_LEAST_2)
    precision: Literal["float32", "bfloat16"] = option(
        "float32",
        "Precision of the operands of matrix products; accumulation, parameters and statistics stay in float32.",
    )
    world_model: Literal[
        "polygrad", "autoregressive", "distilled", "transformer", "ensemble", "dreamer", "simulator"
    ] = option("polygrad", "Model that imagines. simulator is MuJoCo itself: a perfect model without parameters.")
    agent: Literal["a2c", "value_gradient", "dreamer"] = option(
        "a2c",
        "Agent that learns and acts: A2C on imagined observations (the paper's), gradients of values through a "
        "differentiable model, or Dreamer-v3's actor-critic on imagined latent states, which needs world_model "
        "dreamer.",
    )
    preallocate_gpu_memory: bool = option(
        False, "Let JAX reserve most of the accelerator's memory at the start; set by the command line."
    )
    compilation_cache: bool = option(
        True,
        "Keep compiled programs in the user's cache directory, so that later runs of the same sizes start sooner; set "
        "by the command line.",
    )
    env: EnvConfig = EnvConfig()
    diffusion: DiffusionConfig = DiffusionConfig()
    guidance: GuidanceConfig = GuidanceConfig()
    model_training: ModelTrainingConfig = ModelTrainingConfig()
    denoiser: DenoiserConfig = DenoiserConfig()
    autoregressive: AutoregressiveConfig = AutoregressiveConfig()
    distilled: DistilledConfig = DistilledConfig()
    transformer: TransformerConfig = TransformerConfig()
    ensemble: EnsembleConfig = EnsembleConfig()
    dreamer: DreamerConfig = DreamerConfig()
    a2c: A2CConfig = A2CConfig()
    value_gradient: ValueGradientConfig = ValueGradientConfig()
    dreamer_agent: DreamerAgentConfig = DreamerAgentConfig()
    loop: LoopConfig = LoopConfig()


def planned_policy_updates(config: Config) -> int:
    """Policy updates that the whole run is planned to make, at least 1.

    It makes fewer where its prefill runs on to the end of an episode, and at most one more: its last iteration may go
    beyond the total.
    """
    loop = config.loop
    learning = loop.total_env_steps - loop.prefill_env_steps - config.model_training.warmup_env_steps
    return max(learning // loop.env_steps_per_policy_update, 1)


def model_updates_per_policy_update(config: Config) -> int:
    """Gradient steps of the world model per policy update (an integer, see :func:`polygrad_jax.config.validate`)."""
    return round(config.model_training.updates_per_env_step * config.loop.env_steps_per_policy_update)
