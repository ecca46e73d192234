"""One page on a task, before anything is learnt: what it is, what it gives, what is known of it, how long a run takes.
"""

from __future__ import annotations

import contextlib
import textwrap

import jax
import jax.numpy as jnp
import numpy as np
from gymnasium.spaces import Box

from polygrad_jax.config import Config
from polygrad_jax.envs import mujoco_state, random_steps, tasks
from polygrad_jax.envs.checked_task import CheckedTask
from polygrad_jax.envs.random_steps import RandomSteps
from polygrad_jax.runs import physics
from polygrad_jax.runs.first_screen import matrix_gflops
from polygrad_jax.training import units, windows
from polygrad_jax.types import MeanStd, Normaliser

MEASURED_MS, MEASURED_GFLOPS = 41.0, 134.0
"""Of a step of preset ``cpu`` on Hopper, and of the matrix products, of two cores of an AMD EPYC. On a Zen 4
this says a quarter more than ``results/training_speed`` measured (19.9 ms at 222), on a Xeon a fifth less."""
WIDTH, INDENT = 100, 14


def describe(config: Config, why: str) -> list[str]:
    """Step the task for some seconds and return the lines of its page; warnings come last.

    Args:
      config: of the run that would be trained.
      why: why this preset.

    Raises:
      ConfigError: the task cannot be trained on.
      EnvStepError: the task failed, or gave what cannot be used.
    """
    with contextlib.closing(tasks.make(config.env)) as env:
        seen = random_steps.take(env)
        repeats = random_steps.why_not_repeatable(config.env, env)
        no_states = mujoco_state.why_no_simulator_states(config.env, env)
        mujoco = physics.in_words(physics.todays_mujoco(config.env, env)) or "without MuJoCo"
        budget = f"{config.loop.total_env_steps:,} environment steps, {_time(config, seen)}"
        entries = {
            "task": f"{tasks.gymnasium_id(config.env)}, {mujoco}",
            "observations": _observations(env, seen),
            "actions": _actions(env, config),
            "rewards": _rewards(seen),
            "episodes": _episodes(env, seen),
            "repeatable": f"no: {repeats}" if repeats else "yes: seed and actions determine an episode",
            "simulator": f"no states: {no_states}" if no_states else "exact: a copy in the same state is the task",
            "speed": f"{seen.steps_per_second:,.0f} steps per second with random actions",
            "preset": f"{config.preset} ({why}): {budget}",
        }
        warnings = _warnings(env, seen, config, repeats)
    return [_entry(name, text) for name, text in entries.items()] + warnings


def _entry(name: str, text: str) -> str:
    return textwrap.fill(f"{name:<{INDENT}}{text}", WIDTH, subsequent_indent=" " * INDENT, break_on_hyphens=False)


def _observations(env: CheckedTask, seen: RandomSteps) -> str:
    stds = _std(seen.observations)
    text = f"{_box(env.observation_space)}; seen {seen.observations.min():.3g} to {seen.observations.max():.3g}"
    text += f", standard deviations {stds.min():.2g} to {stds.max():.2g}"
    still = np.flatnonzero(stds == 0.0)
    return text + (f"; {len(still)} never moved (number {still[0]} first)" if len(still) else "")


def _actions(env: CheckedTask, config: Config) -> str:
    how = "squashed by tanh" if config.env.actions == "squashed" else "clipped"
    return f"{_box(env.env.action_space)}; what a policy draws is {how}, and spans these bounds"


def _box(box: Box) -> str:
    low, high = (np.unique(np.asarray(end)) for end in (box.low, box.high))
    count = f"{box.shape[0]} number{'s' if box.shape[0] > 1 else ''} ({box.dtype})"
    if not np.isfinite(low).any() and not np.isfinite(high).any():
        return f"{count} without bounds"
    return f"{count} between {_ends(low)} and {_ends(high)}"


def _ends(values: np.ndarray) -> str:
    return f"{values[0]:.4g}" if len(values) == 1 else f"({values[0]:.4g} to {values[-1]:.4g})"


def _rewards(seen: RandomSteps) -> str:
    text = f"{seen.rewards.min():.3g} to {seen.rewards.max():.3g} per step, {seen.rewards.mean():.3g} in the mean"
    if len(seen.returns) == 0:
        return text
    return f"{text}; {seen.returns.mean():.4g} per episode (standard deviation {seen.returns.std():.3g})"


def _episodes(env: CheckedTask, seen: RandomSteps) -> str:
    limit = "no time limit" if env.time_limit is None else f"time limit {env.time_limit:,} steps"
    if len(seen.lengths) == 0:
        return f"none ended in {len(seen.rewards):,} steps; {limit}"
    shortest, longest = seen.lengths.min(), seen.lengths.max()
    spread = f"{shortest:,} to {longest:,} steps, {seen.lengths.mean():,.0f} in the mean"
    spread = f"{longest:,} steps" if shortest == longest else spread
    truncated = len(seen.lengths) - seen.terminated
    return f"{len(seen.lengths)} of {spread}; {seen.terminated} terminated, {truncated} truncated; {limit}"


def _time(config: Config, seen: RandomSteps) -> str:
    """Estimate how long a run takes where one was measured, by how fast matrix products are here and there."""
    if config.preset not in ("cpu", "cpu_long") or jax.default_backend() != "cpu":
        return "the time they take is shown after the first 20 iterations of polygrad train"
    per_step = 1e-3 * MEASURED_MS * MEASURED_GFLOPS / matrix_gflops() + 1.0 / seen.steps_per_second
    minutes = config.loop.total_env_steps * per_step / 60.0
    return f"about {minutes:,.0f} minutes (estimated)"


def _warnings(env: CheckedTask, seen: RandomSteps, config: Config, repeats: str | None) -> list[str]:
    """Collect what a run of this task would be warned of at its start."""
    lines = []
    if repeats:
        lines.append(random_steps.not_repeatable(env.name, repeats))
    lines += windows.limit_warnings(env.name, env.time_limit, windows.Window(config.horizon))
    lines += units.unit_warnings(config, _statistics(seen))
    return lines


def _statistics(seen: RandomSteps) -> Normaliser:
    """Return mean and std of what was seen, as a run has them; of the rest the identity."""
    columns = (seen.observations, seen.rewards[:, None])
    found = [MeanStd(jnp.asarray(x.mean(axis=0, dtype=np.float64)), jnp.asarray(_std(x))) for x in columns]
    identity = MeanStd(jnp.zeros(1), jnp.ones(1))
    return Normaliser(observations=found[0], actions=identity, rewards=found[1], terminals=identity)


def _std(columns: np.ndarray) -> np.ndarray:
    """Return the standard deviations ``[D]`` of ``[N, D]``, exactly 0 of a column that is constant.

    In float32 the sum of 3,000 numbers has lost digits: a constant 0.1 seems to move, and 1e6 by twenty.
    """
    stds = columns.std(axis=0, dtype=np.float64)
    return np.where(np.ptp(columns, axis=0) == 0.0, 0.0, stds)
