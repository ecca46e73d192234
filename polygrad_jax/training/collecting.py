"""Acting in the environment (Algorithm 3, lines 4 and 5): the random prefill, and steps under the policy.

What happens at an environment step depends on the seed and the step's number only, so that a resumed run collects what
the uninterrupted one would have collected.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np

from polygrad_jax.config import INSERT_CHUNK, Config, ConfigError, EnvSpec
from polygrad_jax.data.simulator_log import SimulatorLog
from polygrad_jax.data.transition_log import LEARNT_FROM, TransitionLog, TransitionRecord
from polygrad_jax.envs import mujoco_state, tasks
from polygrad_jax.envs.collector import Collector, uniform_action
from polygrad_jax.runs.console import announce
from polygrad_jax.training.train_state import Counters, TrainState
from polygrad_jax.types import Agent, Array, Params, Transitions
from polygrad_jax.world_models.model_table import SIMULATOR

EXPLORATION_STREAM = 1
UNENDED_STEPS, UNENDED_PREFILLS = 20_000, 10
"""A task without a time limit whose episode is longer than both, the second in prefills, is taken for one that never
ends: nothing is learnt from an episode before its end."""

HostMemory = dict[str, np.ndarray] | None
"""What the agent remembers of an episode, float32 ``[B, ...]`` each; None before its first step."""

Decide = Callable[[Params, HostMemory, np.ndarray, tuple[int, int]], tuple[np.ndarray, np.ndarray, HostMemory]]
"""``(acting params, memory, raw_obs [B, O], (seed, step)) -> (mean [B, A], std [B, A], memory)`` on the host; what the
agent draws of its own latents follows from the two numbers."""


def make_decide(agent: Agent) -> Decide:
    """Make the agent's decision as the host calls it; it runs where its parameters are (see :func:`on_the_host`)."""

    @jax.jit
    def decide_on_device(params: Params, memory: Any, raw_obs: Array, draw: Array) -> tuple[Array, Array, Any]:
        key = jax.random.fold_in(jax.random.key(draw[0]), draw[1])
        return agent.decide(params, memory, raw_obs, key)

    def decide(
        params: Params, memory: HostMemory, raw_obs: np.ndarray, draw: tuple[int, int]
    ) -> tuple[np.ndarray, np.ndarray, HostMemory]:
        given = memory, np.asarray(raw_obs, np.float32), np.asarray(draw, np.uint32)
        return jax.tree.map(np.asarray, decide_on_device(params, *given))

    return decide


def on_the_host(params: Params) -> Params:
    """Return parameters on the CPU, where the decisions that read them then run, whatever learns elsewhere."""
    return jax.device_put(params, jax.local_devices(backend="cpu")[0])


def exploration_noise(seed: int, env_step: int, shape: tuple[int, ...]) -> np.ndarray:
    """Draw the standard normal noise of the policy's actions from environment step ``env_step`` on."""
    key = np.random.SeedSequence([seed, EXPLORATION_STREAM, env_step])
    return np.random.Generator(np.random.Philox(key)).standard_normal(shape, dtype=np.float32)


@dataclass
class Chunk:
    """Transitions being collected, with the simulator's states before each (empty without MuJoCo)."""

    transitions: Transitions
    simulator_states: np.ndarray  # [T, S]
    length: int = 0


def empty_chunk(length: int, spec: EnvSpec) -> Transitions:
    """Make room for ``length`` transitions, none of them valid yet."""
    return Transitions(
        observations=np.zeros((length, spec.observation_size), np.float32),
        actions=np.zeros((length, spec.action_size), np.float32),
        rewards=np.zeros(length, np.float32),
        terminals=np.zeros(length, np.float32),
        truncations=np.zeros(length, np.float32),
        valid=np.zeros(length, bool),
    )


@dataclass
class Collecting:
    """The environment that a run collects from, and the host's records of what it gave."""

    config: Config
    spec: EnvSpec
    collector: Collector
    transitions: TransitionLog
    simulator_log: SimulatorLog
    agent: Agent
    decide: Decide
    at: Counters
    memory: HostMemory = None
    """What the agent remembers of the episode that is going on."""
    finished_episodes: list[dict[str, float]] = field(default_factory=list)
    """Return, length and distance of the episodes that ended since the last row of metrics."""

    def new_chunk(self, length: int) -> Chunk:
        """Make an empty chunk with room for ``length`` transitions."""
        return Chunk(empty_chunk(length, self.spec), np.zeros((length, self.collector.simulator_state_size)))

    def take_step(self, chunk: Chunk, action: np.ndarray) -> bool:
        """Step the environment and write the transition to ``chunk``; return whether an episode ended."""
        step = self.collector.step(action)
        row, rows = chunk.length, chunk.transitions
        rows.observations[row] = step.observation
        rows.actions[row] = step.action
        rows.rewards[row] = step.reward
        rows.terminals[row] = step.terminal
        rows.truncations[row] = step.truncated and not step.terminal
        rows.valid[row] = True
        if step.simulator_state is not None:
            chunk.simulator_states[row] = step.simulator_state
        chunk.length += 1
        self.at.env_steps += 1
        if step.episode is not None:
            e = step.episode
            self.at.longest_episode = max(self.at.longest_episode, e.length)
            self.finished_episodes.append({"return": e.episode_return, "length": e.length, "distance": e.distance})
        return step.episode is not None

    def record(self, chunk: Chunk) -> Transitions:
        """Put a chunk on the host's records; return what is to be sent to the device."""
        rows, n = chunk.transitions, chunk.length
        self.simulator_log.append(chunk.simulator_states[:n])
        self.transitions.append(
            rows.observations[:n],
            rows.actions[:n],
            rows.rewards[:n],
            rows.terminals[:n] > 0,
            rows.truncations[:n] > 0,
            chunk.simulator_states[:n],
        )
        return rows

    def collect(self, acting: Params) -> Transitions:
        """Take one step's environment steps under the Gaussian policy; actions are stored as sampled."""
        length = self.config.loop.env_steps_per_policy_update
        noise = exploration_noise(self.config.seed, self.at.env_steps, (length, self.spec.action_size))
        chunk, steps_before = self.new_chunk(length), self.collector.steps_of_episode
        for row in range(length):
            draw = (self.config.seed, self.at.env_steps)
            mean, std, memory = self.decide(acting, self.memory, self.collector.observation[None], draw)
            action = mean + std * noise[row]
            ended = self.take_step(chunk, action[0])
            self.memory = None if ended else self.agent.remember(memory, action)
        self._warn_of_no_end(steps_before)
        return self.record(chunk)

    def prefill(
        self,
        state: TrainState,
        insert: Callable[[TrainState, Transitions], TrainState],
        interrupted: Callable[[], bool] = lambda: False,
    ) -> TrainState:
        """Act uniformly at random in whole episodes until there are enough (not counted in the paper's budget).

        The actions that are executed are uniform; stored is the raw action that is executed so.

        Raises:
          ConfigError: whole episodes took as many steps as the run may have, or nothing ends an episode.
          KeyboardInterrupt: ``interrupted`` said so; there is nothing worth saving yet.
        """
        chunk, ended = self.new_chunk(INSERT_CHUNK), False
        loop, at = self.config.loop, self.at
        while not (ended and at.env_steps >= loop.prefill_env_steps) and at.env_steps < loop.total_env_steps:
            if interrupted():
                raise KeyboardInterrupt
            action = uniform_action(self.config.seed, at.env_steps, self.spec.action_size)
            ended = self.take_step(chunk, tasks.raw_of(action, self.config.env.actions))
            self._require_an_end(max(UNENDED_STEPS, UNENDED_PREFILLS * loop.prefill_env_steps))
            if chunk.length == INSERT_CHUNK:
                state, chunk = insert(state, self.record(chunk)), self.new_chunk(INSERT_CHUNK)
        at.prefill_env_steps = at.env_steps
        if at.env_steps >= loop.total_env_steps:
            if not ended:
                self._require_an_end(0)
            took = f"{at.env_steps}, which the prefill took in whole episodes"
            unended = f"the prefill takes in whole episodes; one has not ended at step {at.env_steps}"
            raise ConfigError(
                f"loop.total_env_steps is {loop.total_env_steps}; allowed: more than {took if ended else unended}"
            )
        return insert(state, self.record(chunk)) if chunk.length else state

    def _require_an_end(self, longest: int) -> None:
        """Refuse a task without a time limit whose open episode has more than ``longest`` steps."""
        steps, task = self.collector.steps_of_episode, self.collector.env
        if task.time_limit is None and steps > longest:
            raise ConfigError(
                f"env.name {task.name}: an episode of random actions has not ended after {steps:,} steps, and the task "
                "has no time limit; allowed: one with a limit, gymnasium.register(..., max_episode_steps=1000)"
            )

    def _warn_of_no_end(self, steps_before: int) -> None:
        """Say once of an episode that has become long that nothing of it is learnt from before it ends."""
        task = self.collector.env
        if task.time_limit is None and steps_before < UNENDED_STEPS <= self.collector.steps_of_episode:
            announce(
                f"warning: an episode of {task.name} has not ended after {UNENDED_STEPS:,} steps; nothing of it is "
                "learnt from before its end, and the task has no time limit (max_episode_steps)"
            )

    def refill(
        self, state: TrainState, insert: Callable[[TrainState, Transitions], TrainState], stored: TransitionRecord
    ) -> TrainState:
        """Build the replay and the simulator's states again from the stored transitions ``[T]`` up to a checkpoint.

        Raises:
          ConfigError: they are of another task, or the world model is the simulator and the states are not of today's
            size.
        """
        todays = (self.spec.observation_size, self.spec.action_size)
        if (sizes := (stored.observations.shape[1], stored.actions.shape[1])) != todays:
            raise ConfigError(f"stored transitions have sizes {sizes}; allowed: {todays}, those of the task")
        self._require_todays_states(stored)
        for start in range(0, len(stored), INSERT_CHUNK):
            part = stored[start : start + INSERT_CHUNK]
            chunk = empty_chunk(INSERT_CHUNK, self.spec)
            for name in LEARNT_FROM:
                getattr(chunk, name)[: len(part)] = getattr(part, name)
            chunk.valid[: len(part)] = True
            self.simulator_log.append(part.simulator_states[:, : self.collector.simulator_state_size])
            state = insert(state, chunk)
        return state

    def _require_todays_states(self, stored: TransitionRecord) -> None:
        """Do without simulator states, and say so, where those that were stored are not of today's size.

        Raises:
          ConfigError: the world model is the simulator, which begins in them.
        """
        size, todays = stored.simulator_states.shape[1], self.collector.simulator_state_size
        if size == todays:
            return
        reason = f"those stored have {size} numbers, the task's {todays}"
        line = mujoco_state.no_simulator_states(self.config.env, reason)
        if self.config.world_model == SIMULATOR:
            raise ConfigError(f"world_model is simulator; {line}; allowed: a new run")
        if todays:
            announce(line)
            self.collector.why_no_simulator_states = reason
        self.simulator_log = SimulatorLog(self.config.loop.replay_capacity, 0)

    def snapshot(self) -> dict[str, Any]:
        """Return what :meth:`restore` needs, as JSON takes it."""
        return {
            "collector": {name: np.asarray(value).tolist() for name, value in self.collector.snapshot().items()},
            "memory": None if self.memory is None else {name: x.tolist() for name, x in self.memory.items()},
            "finished_episodes": self.finished_episodes,
        }

    def restore(self, saved: dict[str, Any]) -> None:
        """Go back to where a snapshot was taken: environment, the agent's memory, episodes not yet logged."""
        snapshot, memory = saved["collector"], saved["memory"]
        self.memory = None if memory is None else {name: np.asarray(x, np.float32) for name, x in memory.items()}
        self.finished_episodes = saved["finished_episodes"]
        executed = np.asarray(snapshot["executed_actions"], np.float32).reshape(-1, self.spec.action_size)
        self.collector.restore(
            {
                "episode_index": snapshot["episode_index"],
                "executed_actions": executed,
                "observation": np.asarray(snapshot["observation"], np.float32),
            }
        )
