"""Every world model at a tiny size, with a replay and contexts to try it on: what the contract tests share."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from polygrad_jax.config import Config, EnvConfig, EnvSpec, override, smoke, validate
from polygrad_jax.data import replay as replays
from polygrad_jax.envs import mujoco_state, tasks
from polygrad_jax.envs.collector import uniform_action
from polygrad_jax.types import MeanStd, Normaliser, Policy, Segment, Transitions, WorldModel
from polygrad_jax.world_models.model_table import SIMULATOR, WORLD_MODELS, make_world_model_for_agent

TASK, SPEC = "inverted_pendulum", EnvSpec(4, 1)
B, H, O, A = 8, 5, 4, 1  # noqa: E741  (the letters of the docstrings)
EVERY_MODEL = (*WORLD_MODELS, SIMULATOR)

_FIELDS = {
    "horizon": H,
    "diffusion.num_steps": 4,
    "diffusion.sampling_steps": 4,
    "model_training.batch_size": B,
    "guidance.state_change_clip": 0.0,
    "denoiser.width": 16,
    "denoiser.num_blocks": 1,
    "denoiser.context_length": 2,
    "denoiser.learning_rate": 1e-2,
    "transformer.context_length": 3,
    "transformer.token_dim": 8,
    "transformer.num_heads": 2,
    "transformer.num_blocks": 1,
    "transformer.learning_rate": 1e-2,
    "transformer.batch_size": B,
    "ensemble.learning_rate": 1e-2,
    "dreamer.deter": 8,
    "dreamer.latents": 2,
    "dreamer.units": 8,
    "dreamer.coder_units": 8,
    "dreamer.window": 6,
    "dreamer.batch_size": B,
    "dreamer.context_length": 3,
    "dreamer.learning_rate": 1e-2,
    "dreamer_agent.horizon": 3,
    "dreamer_agent.units": 8,
    "a2c.trajectories": B,
    "a2c.hidden_size": 8,
    "a2c.actor_ema": 0.9,
    "value_gradient.trajectories": B,
    "value_gradient.updates": 2,
    "value_gradient.batch_size": B,
    "value_gradient.path_length": 2,
    "value_gradient.critics": 2,
    "value_gradient.hidden_size": 8,
    "value_gradient.hidden_layers": 2,
}

SHORT_PATH = {"value_gradient.path_length": 1, "value_gradient.hidden_layers": 1}
"""For tests that compile the step of value gradients again and ask nothing of its path."""

# With a mean of 0.5, untrained models that predict terminals imagine some, whatever small numbers they say.
NORMALISER = Normaliser(
    observations=MeanStd(jnp.array([0.1, 0.0, -0.1, 0.0]), jnp.array([1.0, 0.5, 2.0, 1.0])),
    actions=MeanStd(jnp.zeros(1), jnp.full(1, 0.6)),
    rewards=MeanStd(jnp.full(1, 0.5), jnp.full(1, 0.8)),
    terminals=MeanStd(jnp.full(1, 0.5), jnp.full(1, 0.4)),
)
OTHER_NORMALISER = jax.tree.map(lambda x: 1.1 * x, NORMALISER)


def config_of(world_model: str, agent: str = "a2c", fields: dict | None = None) -> Config:
    """The tiny configuration of a model and an agent, with other fields where there are some."""
    named = {"world_model": world_model, "agent": agent}
    return validate(override(smoke(TASK), _FIELDS | named | (fields or {})))


def model_of(config: Config) -> WorldModel:
    """The model of a tiny configuration; the simulator's begins in states that :func:`simulator_states` met."""
    return make_world_model_for_agent(config, SPEC, lambda rows: simulator_states()[rows % len(simulator_states())])


@functools.cache
def simulator_states() -> np.ndarray:
    """States that random actions lead to, some of them just before the pendulum falls."""
    env = tasks.make(EnvConfig(TASK))
    states, ended, k = [], True, 0
    while len(states) < 64:
        if ended:
            env.reset(seed=k)
        states.append(mujoco_state.read_state(env))
        ended = env.step(uniform_action(0, k, A))[2]
        k += 1
    env.close()
    return np.stack(states)


def policy_apply(params, raw_obs):
    """``params [2]``: how much the mean leans on the state, and the deviation."""
    mean = params[0] * jnp.tanh(raw_obs[..., :A])
    return mean, jnp.full_like(mean, params[1])


def policy(gain: float, std: float = 0.6) -> Policy:
    """A policy that reads its observations."""
    return Policy(jnp.array([gain, std], jnp.float32), policy_apply)


@functools.cache
def replay_for(window: int) -> replays.ReplayState:
    """Episodes of 12 steps of a linear system, every second of them terminated."""
    rng, count = np.random.default_rng(0), 240
    states, actions = np.zeros((count, O), np.float32), rng.uniform(-1, 1, (count, A)).astype(np.float32)
    for k in range(count):
        if k % 12 == 0:
            states[k] = rng.standard_normal(O)
        else:
            states[k] = 0.9 * states[k - 1] + 0.3 * actions[k - 1]
    last = np.arange(count) % 12 == 11
    terminal = last & (np.arange(count) % 24 > 11)
    rows = Transitions(
        observations=states,
        actions=actions,
        rewards=states[:, 0] + actions[:, 0],
        terminals=terminal.astype(np.float32),
        truncations=(last & ~terminal).astype(np.float32),
        valid=np.ones(count, bool),
    )
    return jax.jit(replays.add, static_argnums=2)(replays.init(SPEC, 256, window), rows, window)


@functools.cache
def replay_of_first_ends(window: int) -> replays.ReplayState:
    """64 episodes that end at their first step."""
    rng, count = np.random.default_rng(1), 64
    rows = Transitions(
        observations=rng.standard_normal((count, O)).astype(np.float32),
        actions=rng.uniform(-1, 1, (count, A)).astype(np.float32),
        rewards=np.ones(count, np.float32),
        terminals=np.ones(count, np.float32),
        truncations=np.zeros(count, np.float32),
        valid=np.ones(count, bool),
    )
    replay = jax.jit(replays.add, static_argnums=2)(replays.init(SPEC, 256, window), rows, window)
    assert int(replays.num_windows(replay)) == count  # of none, a draw is meaningless
    return replay


def batch_for(model: WorldModel, seed: int, replay_of=replay_for) -> Segment:
    """A training batch as the loop draws it."""
    replay, size, window = replay_of(model.states_of_episode(H)), model.batch_size or B, model.window or H
    if model.streamed:
        return jax.jit(replays.sample_stream, static_argnums=(2, 3))(replay, jax.random.key(seed), size, window)
    sample = jax.jit(replays.sample, static_argnums=(2, 3, 4, 5, 6))
    return sample(replay, jax.random.key(seed), size, window, 0, 1, model.history)


def contexts_for(model: WorldModel, seed: int, replay_of=replay_for) -> Segment:
    """Contexts as the loop draws them."""
    draw = jax.jit(replays.sample_contexts, static_argnums=(2, 3))
    return draw(replay_of(model.states_of_episode(H)), jax.random.key(seed), B, model.context_length)


def same_shapes(a, b) -> bool:
    """Whether two pytrees have one structure, shapes and dtypes: what a ``lax.scan`` can carry."""
    like = [jax.tree.map(lambda x: (x.shape, x.dtype), tree) for tree in (a, b)]
    return like[0] == like[1]


def all_equal(a, b) -> bool:
    """Whether two pytrees are equal to the last bit."""
    return all(jax.tree.leaves(jax.tree.map(np.array_equal, jax.device_get(a), jax.device_get(b))))


def all_finite(tree) -> bool:
    """Whether every number is finite."""
    return all(np.isfinite(x).all() for x in jax.tree.leaves(jax.device_get(tree)))
