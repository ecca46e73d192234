"""Measure a trained world model against MuJoCo, step by step ahead: the columns of the studies on recorded data."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.harness.gradient_error import absorbing
from polygrad_jax.agents.agent_table import make_policy_apply
from polygrad_jax.config import Config, EnvConfig
from polygrad_jax.data import replay as replays
from polygrad_jax.data.normaliser import to_normaliser
from polygrad_jax.envs import tasks
from polygrad_jax.envs.mujoco_state import replay_actions
from polygrad_jax.envs.prediction_error import before_ends, mean_where, squared_errors, staying_still
from polygrad_jax.runs.recorded_data import RecordedData
from polygrad_jax.training.fitting import settle
from polygrad_jax.types import Array, Normaliser, Params, Policy, PolicyApply, Segment, WorldModel
from polygrad_jax.world_models.model_table import make_world_model
from polygrad_jax.world_models.polygrad import imagine_given_actions

CONTEXTS = 500
SETTLING = 64


def ends_found(imagined: np.ndarray, real: np.ndarray) -> dict[str, float]:
    """Return shares of trajectories that end, precision and recall of when, of terminals ``[B, T]``; NaN where none is.

    Only first ends within a step of one another are the same end: behind an imagined one the states
    are in no data, and actions chosen there end MuJoCo's episode before long, too.
    """
    said, true = (absorbing(x).sum(axis=1) for x in (imagined, real))  # how many steps from the first end on
    right = ((said > 0) & (true > 0) & (np.abs(said - true) <= 1)).sum()
    return {
        "ends_imagined": float((said > 0).mean()),
        "ends_real": float((true > 0).mean()),
        "terminal_precision": float(right / (said > 0).sum()) if said.any() else float("nan"),
        "terminal_recall": float(right / (true > 0).sum()) if true.any() else float("nan"),
    }


def positions(task: EnvConfig) -> int:
    """Return how many observations are no velocities; all of them where a task does not say."""
    env = tasks.make(dataclasses.replace(task, hide_velocities=task.name in tasks.NAMED_TASKS))
    size = tasks.spec_of(env).observation_size
    env.close()
    return size


def with_std(apply: PolicyApply) -> PolicyApply:
    """Return the policy of ``(parameters, std)``, with this standard deviation everywhere; as it is where that is 0.

    The std is a number among the parameters, so that no other one is compiled for.
    """

    def given(params: tuple[Params, Array], raw_obs: Array) -> tuple[Array, Array]:
        actor, std = params
        mean, own = apply(actor, raw_obs)
        return mean, jnp.where(std > 0, std, own)

    return given


@dataclasses.dataclass
class Measuring:
    """Hold what every measure of one dataset shares, and the statistics that the model learnt with."""

    data: RecordedData
    held_out: RecordedData
    normaliser: Normaliser
    seed: int

    @functools.cached_property
    def apply(self) -> PolicyApply:
        """The policy of the dataset's actor and a std."""
        return with_std(make_policy_apply(self.data.collector, self.data.spec))

    @functools.cached_property
    def _models(self) -> dict[Config, tuple[WorldModel, Any]]:
        return {}

    def model_of(self, config: Config) -> tuple[WorldModel, Any]:
        """Return the world model and its ``imagine``, jitted: the same for every state and std."""
        if config not in self._models:
            model = make_world_model(config, self.data.spec)
            self._models[config] = model, jax.jit(model.imagine)
        return self._models[config]

    def imagined(self, config: Config, state: Any, told: bool = False, std: float | None = None) -> Segment:
        """Imagine trajectories ``[CONTEXTS, H]`` under the dataset's policy, delta settled where there is one.

        ``told``: what PolyGRAD's denoiser makes of the same actions, given all of them from the start. ``std``: the
        policy's, raw, in place of its own.
        """
        data = self.data
        model, imagine = self.model_of(config)
        actor = jax.tree.map(jnp.asarray, data.actor), jnp.float32(std or 0.0)
        policy = Policy(actor, self.apply)
        context_key, settle_key, key = jax.random.split(jax.random.key(self.seed), 3)
        contexts = jax.jit(replays.sample_contexts, static_argnums=(2, 3))(
            self.held_out.replay(2), context_key, CONTEXTS, model.context_length
        )
        few = jax.tree.map(lambda x: x[:SETTLING], contexts)
        if config.world_model == "polygrad":
            state = settle(model, state, policy, few, self.normaliser, settle_key)
        segment, _ = imagine(state, policy, contexts, self.normaliser, key)
        if told:
            follow = jax.jit(imagine_given_actions, static_argnums=0)
            segment = follow(config, state, segment.actions, contexts, self.normaliser, jax.random.fold_in(key, 1))
        return jax.device_get(segment.replace(rows=contexts.rows[:, -1:], observed=None))

    def rows(
        self, config: Config, state: Any, told: bool = False, std: float | None = None
    ) -> Iterator[dict[str, float]]:
        """Yield one row per step ahead; one alone where what is imagined is not finite."""
        segment = self.imagined(config, state, told, std)
        if not all(np.isfinite(x).all() for x in (segment.observations, segment.actions, segment.rewards)):
            yield {"finite": 0}
            return
        states = self.held_out.transitions.simulator_states[np.asarray(segment.rows)[:, 0]]
        real, rewards, terminals = replay_actions(self.data.env, states, segment.actions[:, :-1])
        # Of all of the data, however few were learnt from: errors of different sizes have the same unit.
        unit = np.asarray(to_normaliser(self.data.replay(2).moments).observations.std, np.float64)
        alive = before_ends(terminals)
        taken = np.concatenate([np.ones_like(alive[:, :1]), alive[:, :-1]], axis=1)
        raw = squared_errors(segment.observations, real)
        scaled = squared_errors(segment.observations / unit, real / unit)
        shown = slice(positions(self.data.env))
        seen = squared_errors((segment.observations / unit)[..., shown], (real / unit)[..., shown])
        still = squared_errors(staying_still(real / unit), real / unit)
        reward = np.square(segment.rewards[:, :-1] - rewards)
        ends = ends_found(segment.terminals[:, :-1], terminals.astype(np.float32))
        means = {"mse_raw": raw, "mse": scaled, "mse_positions": seen, "still": still}
        means = {name: mean_where(values, alive) for name, values in means.items()}
        means |= {"reward_mse": mean_where(reward, taken), "mse_raw_past_ends": raw.mean(0), "alive": alive.mean(0)}
        for h in range(raw.shape[1]):
            living = scaled[alive[:, h], h]
            ranks = np.percentile(living, (50, 95, 100)) if living.size else np.full(3, np.nan)
            row = {name: values[h] for name, values in means.items()}
            row |= dict(zip(("median", "percentile_95", "worst"), ranks, strict=True))
            yield {"finite": 1, "step": h + 1} | row | ends
