"""Step the one environment from which training collects, with an exact restart. Host only."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from polygrad_jax.config import EnvConfig, EnvSpec
from polygrad_jax.envs import mujoco_state, tasks
from polygrad_jax.envs.checked_task import CheckedTask, EnvStepError

TRAINING_STREAM = 1
EVALUATION_STREAM = 2
PREFILL_STREAM = 3


HOW_TO_GO_ON = (
    "seed and actions must determine an episode: let reset(seed=...) renew everything that the task remembers (random "
    "generators, counters, statistics), use the versions in environment.json, or begin anew in another folder"
)


class EnvRestartError(RuntimeError):
    """Replaying an episode from its seed did not end at the saved observation."""


@dataclass(frozen=True)
class Episode:
    """The sums of a finished episode."""

    index: int
    """Number since the start of the run."""
    episode_return: float
    """Sum of raw rewards."""
    length: int
    """Environment steps."""
    distance: float
    """Metres travelled; NaN where the environment has no ``x_position``."""


@dataclass(frozen=True)
class Step:
    """One transition as stored in the replay, with Gymnasium's info and the finished episode."""

    observation: np.ndarray  # [O] float32 raw, before the step
    action: np.ndarray  # [A] float32 raw, as sampled
    reward: float
    terminal: bool  # the environment ended the episode
    truncated: bool  # the time limit ended the episode
    simulator_state: np.ndarray | None  # [S] float64, before the step; None where there are no simulator states
    next_observation: np.ndarray  # [O] float32 raw, after the step (never of the next episode)
    info: dict[str, Any]  # Gymnasium's
    episode: Episode | None  # of the episode that this step ended


def episode_seed(run_seed: int, stream: int, episode: int) -> int:
    """Return the seed (31 bits, which every environment accepts) of one episode of one stream of a run."""
    sequence = np.random.SeedSequence(entropy=run_seed, spawn_key=(stream, episode))
    return int(sequence.generate_state(1, np.uint32)[0] >> 1)


def uniform_action(run_seed: int, env_step: int, action_size: int) -> np.ndarray:
    """Draw an executed action ``[A]`` float32, uniform over [-1, 1), for step ``env_step`` of the prefill.

    The generator is counter-based: the draw of a step depends on no other step, so that a resumed run draws the same.
    """
    bits = np.random.Philox(key=[run_seed, PREFILL_STREAM], counter=[0, 0, 0, env_step])
    return np.random.Generator(bits).uniform(-1.0, 1.0, action_size).astype(np.float32)


class Collector:
    """Owns one environment, resets it when an episode ends, and restores an earlier point of an episode exactly.

    ``observation`` ``[O]`` float32 is the one at which to choose the next action. Each episode has a seed of its own,
    which follows from the run's seed and the episode's number.
    """

    def __init__(self, env_config: EnvConfig, run_seed: int):
        """Make the environment and reset it.

        Raises:
            ConfigError: see `tasks.make`.
            EnvStepError: the reset failed, see `CheckedTask`.
        """
        self._env = tasks.make(env_config)
        self._execution = env_config.actions
        self._run_seed = run_seed
        self.why_no_simulator_states = mujoco_state.why_no_simulator_states(env_config, self._env)
        """Why transitions have no simulator state; None where a restored state is the task."""
        self._begin_episode(0)

    @property
    def env(self) -> CheckedTask:
        """Return the environment; do not step it."""
        return self._env

    @property
    def steps_of_episode(self) -> int:
        """Return the steps that the open episode has taken."""
        return len(self._executed)

    @property
    def spec(self) -> EnvSpec:
        """Return the sizes O and A."""
        return tasks.spec_of(self._env)

    @property
    def simulator_state_size(self) -> int:
        """Return S; 0 where there are no simulator states."""
        return 0 if self.why_no_simulator_states else mujoco_state.state_size(self._env)

    def step(self, action: np.ndarray) -> Step:
        """Take one step with a raw action ``[A]``; reset the environment if the step ended the episode.

        Raises:
            EnvStepError: the action is not finite, or the task's answer is refused, see `CheckedTask`.
        """
        action = np.array(action, np.float32)
        if not np.all(np.isfinite(action)):  # MuJoCo would take it for zero and go on
            raise EnvStepError(f"{self._where()} was given action {action}; it must be finite")
        # DEVIATION: the paper does not say. Like the official code, clip an action (or squash it, which is ours) only
        # when it is executed, and store it as sampled, so that its density under the policy stays right.
        executed = tasks.executed(action, self._execution)
        before = self.observation
        state = None if self.why_no_simulator_states else mujoco_state.read_state(self._env)
        reward, terminal, truncated, info = self._execute(executed)
        after = self.observation
        episode = None
        if terminal or truncated:
            episode = self._summary()
            self._begin_episode(self._episode_index + 1)
        return Step(
            observation=before,
            action=action,
            reward=reward,
            terminal=terminal,
            truncated=truncated,
            simulator_state=state,
            next_observation=after,
            info=info,
            episode=episode,
        )

    def snapshot(self) -> dict[str, np.ndarray]:
        """Return what `restore` needs: the episode's number, its executed actions ``[n, A]``, and the observation."""
        actions = np.asarray(self._executed, np.float32).reshape(-1, self.spec.action_size)
        return {
            "episode_index": np.asarray(self._episode_index, np.int64),
            "executed_actions": actions,
            "observation": self.observation.copy(),
        }

    def restore(self, snapshot: dict[str, np.ndarray]) -> None:
        """Go back to the point of an episode at which a snapshot was taken.

        Raises:
            EnvRestartError: the restored observation differs from the saved one (another version of MuJoCo or
                Gymnasium, another machine, or an environment that its seed does not determine).
        """
        # Seed and actions determine an episode, whatever state the environment has (the simulator's warm start, a
        # wrapper's counter). Replaying the episode is exact where copying the known parts of the state might not be.
        self._begin_episode(int(snapshot["episode_index"]))
        for action in snapshot["executed_actions"]:
            _, terminal, truncated, _ = self._execute(action)
            if terminal or truncated:
                was = "ended while it was replayed; it was still open when saved"
                raise EnvRestartError(f"{self._where()} {was}; {HOW_TO_GO_ON}")
        if not np.array_equal(self.observation, snapshot["observation"], equal_nan=True):
            worst = np.max(np.abs(self.observation - snapshot["observation"]))
            differ = f"replayed and saved observation differ by up to {worst:.3g}"
            raise EnvRestartError(f"{self._where()}: {differ}; {HOW_TO_GO_ON}")

    @contextlib.contextmanager
    def lent(self) -> Iterator[CheckedTask]:
        """Lend the environment for other episodes; afterwards it is where it was.

        Raises:
            EnvRestartError: see `restore`.
        """
        snapshot = self.snapshot()
        yield self._env
        self.restore(snapshot)

    def close(self) -> None:
        """Free the environment."""
        self._env.close()

    def _begin_episode(self, index: int) -> None:
        self._episode_index = index
        self._seed = episode_seed(self._run_seed, TRAINING_STREAM, index)
        self._executed: list[np.ndarray] = []
        self._return = 0.0
        observation, _ = self._env.reset(seed=self._seed)
        self.observation = np.array(observation, np.float32)  # a copy: the environment may go on writing to its own

    def _execute(self, action: np.ndarray) -> tuple[float, bool, bool, dict[str, Any]]:
        observation, reward, terminal, truncated, info = self._env.step(action)
        self.observation = np.array(observation, np.float32)
        self._executed.append(action)
        self._return += reward
        return reward, terminal, truncated, info

    def _summary(self) -> Episode:
        return Episode(
            index=self._episode_index,
            episode_return=self._return,
            length=len(self._executed),
            distance=self._env.distance,
        )

    def _where(self) -> str:
        return f"{self._env.name} episode {self._episode_index} (seed {self._seed}), step {len(self._executed)}"
