"""Stepping the one environment that training collects from, with an exact restart. Host only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np

from polygrad_jax.config import EnvConfig, EnvSpec
from polygrad_jax.envs import mujoco_state as simulator
from polygrad_jax.envs import tasks as registry

TRAINING_STREAM = 1
EVALUATION_STREAM = 2
PREFILL_STREAM = 3


class EnvStepError(RuntimeError):
    """The environment failed, or gave something that is not finite; names the episode's seed and the step."""


class EnvRestartError(RuntimeError):
    """Replaying an episode from its seed did not lead to the observation it was left at."""


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
    """Metres travelled; NaN where the environment does not tell."""


@dataclass(frozen=True)
class Step:
    """One transition as it is stored, and what came with it."""

    observation: np.ndarray  # [O] float32 raw, before the step
    action: np.ndarray  # [A] float32 raw, as sampled
    reward: float
    terminal: bool  # the environment ended the episode
    truncated: bool  # the time limit ended the episode
    simulator_state: np.ndarray | None  # [S] float64, before the step; None without MuJoCo
    next_observation: np.ndarray  # [O] float32 raw, after the step (never that of the next episode)
    info: dict[str, Any]  # Gymnasium's
    episode: Episode | None  # of the episode that this step ended


def episode_seed(run_seed: int, stream: int, episode: int) -> int:
    """The seed (31 bits, which every environment takes) of one episode of one stream of a run."""
    sequence = np.random.SeedSequence(entropy=run_seed, spawn_key=(stream, episode))
    return int(sequence.generate_state(1, np.uint32)[0] >> 1)


def uniform_action(run_seed: int, env_step: int, action_size: int) -> np.ndarray:
    """An action ``[A]`` float32, uniform over [-1, 1), for step ``env_step`` of the prefill.

    A counter-based generator: the draw of a step depends on no other, so a resumed run draws the same.
    """
    bits = np.random.Philox(key=[run_seed, PREFILL_STREAM], counter=[0, 0, 0, env_step])
    return np.random.Generator(bits).uniform(-1.0, 1.0, action_size).astype(np.float32)


class Collector:
    """Owns one environment, resets it by itself, and can be put back exactly where it was.

    ``observation`` ``[O]`` float32 is what the next action is to be chosen for. Each episode is reset with its own
    seed, which follows from the run's seed and the episode's number.
    """

    def __init__(self, env_config: EnvConfig, run_seed: int):
        """Builds the environment and resets it.

        Raises:
            ConfigError: see `registry.make`.
        """
        self._env = registry.make(env_config)
        self._run_seed = run_seed
        self._has_state = simulator.has_simulator_state(self._env)
        self._begin_episode(0)

    @property
    def env(self) -> gym.Env:
        """The environment; do not step it."""
        return self._env

    @property
    def spec(self) -> EnvSpec:
        """Sizes O and A."""
        return registry.spec_of(self._env)

    @property
    def simulator_state_size(self) -> int:
        """S; 0 without MuJoCo."""
        return simulator.state_size(self._env)

    def step(self, action: np.ndarray) -> Step:
        """Takes one step with an action ``[A]`` and resets if it ended the episode.

        Raises:
            EnvStepError: the environment raised, or action, observation or reward are not finite.
        """
        action = np.array(action, np.float32)
        if not np.all(np.isfinite(action)):  # MuJoCo would take it for zero and go on
            raise EnvStepError(f"{self._where()} was given action {action}; it must be finite")
        # DEVIATION: the paper does not say. Like the official code, clip an action to the action space only when it is
        # executed, and store it as sampled, so that its density under the policy stays right.
        executed = np.clip(action, -1.0, 1.0)
        before = self.observation
        state = simulator.read_state(self._env) if self._has_state else None
        reward, terminal, truncated, info = self._execute(executed)
        after = self.observation
        episode = None
        if terminal or truncated:
            episode = self._summary(info)
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
        """What `restore` needs: episode number, the actions ``[n, A]`` executed in it so far, and the observation."""
        actions = np.asarray(self._executed, np.float32).reshape(-1, self.spec.action_size)
        return {
            "episode_index": np.asarray(self._episode_index, np.int64),
            "executed_actions": actions,
            "observation": self.observation.copy(),
        }

    def restore(self, snapshot: dict[str, np.ndarray]) -> None:
        """Goes back to where a snapshot was taken.

        Raises:
            EnvRestartError: the environment is not where it was, bit for bit (another version of MuJoCo or
                Gymnasium, another machine, or an environment that its seed does not determine).
        """
        # Seed and actions determine an episode, whatever the environment keeps inside (the simulator's warm start,
        # a wrapper's counter), so going through it again is exact where copying the known parts might not be.
        self._begin_episode(int(snapshot["episode_index"]))
        for action in snapshot["executed_actions"]:
            _, terminal, truncated, _ = self._execute(action)
            if terminal or truncated:
                raise EnvRestartError(f"{self._where()} ended while it was replayed; it was still open when saved")
        if not np.array_equal(self.observation, snapshot["observation"], equal_nan=True):
            worst = np.max(np.abs(self.observation - snapshot["observation"]))
            raise EnvRestartError(f"{self._where()}: replayed and saved observation differ by up to {worst:.3g}")

    def close(self) -> None:
        """Frees the environment."""
        self._env.close()

    def _begin_episode(self, index: int) -> None:
        self._episode_index = index
        self._seed = episode_seed(self._run_seed, TRAINING_STREAM, index)
        self._executed: list[np.ndarray] = []
        self._return = 0.0
        observation, info = self._env.reset(seed=self._seed)
        self.observation = np.array(observation, np.float32)  # a copy: the environment may go on writing to its own
        self._start = registry.start_of(info)

    def _execute(self, action: np.ndarray) -> tuple[float, bool, bool, dict[str, Any]]:
        try:
            observation, reward, terminal, truncated, info = self._env.step(action)
        except Exception as error:
            raise EnvStepError(f"{self._where()} failed: {type(error).__name__}: {error}") from error
        observation = np.array(observation, np.float32)
        if not (np.isfinite(reward) and np.all(np.isfinite(observation))):
            found = " ".join(f"reward {reward} and observation {observation}".split())
            raise EnvStepError(f"{self._where()} gave {found}; both must be finite")
        self.observation = observation
        self._executed.append(action)
        self._return += float(reward)
        return float(reward), bool(terminal), bool(truncated), info

    def _summary(self, info: dict[str, Any]) -> Episode:
        return Episode(
            index=self._episode_index,
            episode_return=self._return,
            length=len(self._executed),
            distance=registry.distance(info) - self._start,
        )

    def _where(self) -> str:
        return f"{self._env.spec.id} episode {self._episode_index} (seed {self._seed}), step {len(self._executed)}"
