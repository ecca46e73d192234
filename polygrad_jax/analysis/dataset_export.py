"""From a run folder to a Minari dataset: all transitions, simulator states, the final policy, config and versions."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from polygrad_jax import config as configs
from polygrad_jax.agents.agent_table import make_agent
from polygrad_jax.analysis.opened_run import OpenedRun, open_run, raw_policy, require_raw_policy
from polygrad_jax.analysis.recoverable_spec import recoverable_spec
from polygrad_jax.config import Config, ConfigError, EnvSpec, Execution
from polygrad_jax.data import minari_dataset
from polygrad_jax.data.minari_dataset import RecordedEpisode
from polygrad_jax.data.transition_log import TransitionRecord
from polygrad_jax.envs import mujoco_state, tasks
from polygrad_jax.envs.collector import Collector, EnvRestartError, EnvStepError
from polygrad_jax.envs.prediction_error import stored_difference, stored_steps, why_not_replayed
from polygrad_jax.runs import physics
from polygrad_jax.runs.checkpoints import npz_bytes
from polygrad_jax.runs.console import announce
from polygrad_jax.runs.recorded_data import POLICY_FILE
from polygrad_jax.runs.run_folder import CONFIG_FILE, ENVIRONMENT_FILE, RunFolder, one_line_on_disk_trouble
from polygrad_jax.world_models.model_table import make_world_model_for_agent

NAMESPACE = "polygrad"
DESCRIPTION = (
    "Every transition of a training run, from the random prefill to the last policy. Actions are those executed, in "
    "[-1, 1] (rescaled where the task has other bounds); infos/sampled_actions are those sampled, "
    "infos/simulator_states MuJoCo's before each step and after the last."
)

STEPPED = "the last step of each episode was taken again from the simulator's state: exact"
ROUNDED = "the last step of each episode was taken again from the simulator's state: right to rounding (other hardware)"
FROM_SEEDS = "the run was gone through again from the seeds of its episodes: exact"
REPEATED = "the last observation of each episode is repeated: what its last step led to is not known"


class Ends(NamedTuple):
    """What the last step of each of E episodes led to, which the log of transitions does not have."""

    observations: np.ndarray  # [E, O] float32
    simulator_states: np.ndarray  # [E, S] float64
    how: str


def episode_bounds(t: TransitionRecord) -> list[tuple[int, int]]:
    """First row and the row behind the last of every episode; the recording may stop within the last one."""
    ends = np.flatnonzero(t.terminals | t.truncations) + 1
    if len(ends) == 0 or ends[-1] < len(t):
        ends = np.append(ends, len(t))
    return list(zip([0, *ends[:-1].tolist()], ends.tolist(), strict=True))


def ends_of(t: TransitionRecord, config: Config) -> Ends:
    """Where simulator states are the task's, by taking the last steps again; elsewhere by going through whole episodes.
    """
    reason = why_not_replayed(config.env, t)
    if reason is None:
        last = np.array([end - 1 for _, end in episode_bounds(t)])
        reason = stored_difference(config.env, t.simulator_states[last], stored_steps(t, last))
    if reason is not None:
        announce(f"{mujoco_state.no_simulator_states(config.env, reason)}; the dataset has none")
        return _ends_from_seeds(t, config)
    after = mujoco_state.step_copies(config.env, t.simulator_states[last], t.actions[last])
    exact = np.array_equal(after.rewards.astype(np.float32), t.rewards[last])
    return Ends(after.observations.astype(np.float32), after.states, STEPPED if exact else ROUNDED)


def _ends_from_seeds(t: TransitionRecord, config: Config) -> Ends:
    try:
        found, how = _gone_through_again(t, config), FROM_SEEDS
    except (EnvRestartError, EnvStepError) as error:
        announce(f"warning: final observations are repeated ones: {error}")
        found, how = [t.observations[end - 1] for _, end in episode_bounds(t)], REPEATED
    return Ends(np.stack(found), np.empty((len(found), 0)), how)


def _gone_through_again(t: TransitionRecord, config: Config) -> list[np.ndarray]:
    """Take all steps of a run again, from its first: what the task remembers is then what it remembered.

    Returns:
      the observations ``[O]`` behind the last steps of the episodes.

    Raises:
      EnvRestartError: a step did otherwise than what was stored.
    """
    ends, found = {end - 1 for _, end in episode_bounds(t)}, []
    truncations = t.truncations & ~t.terminals
    with contextlib.closing(Collector(config.env, config.seed)) as collector:
        for row in range(len(t)):
            step = collector.step(t.actions[row])
            stored = (t.rewards[row], t.terminals[row], truncations[row], *t.observations[row])
            again = (np.float32(step.reward), step.terminal, step.truncated and not step.terminal, *step.observation)
            if again != stored:
                raise EnvRestartError(f"step {row} of the run, taken again, gave another reward, end or observation")
            if row in ends:
                found.append(step.next_observation)
    return found


def recorded_episodes(t: TransitionRecord, ends: Ends, how: Execution) -> Iterator[RecordedEpisode]:
    """The episodes with what they led to; one within which the recording stops counts as truncated.

    They have simulator states where ``ends`` has.
    """
    for number, (first, end) in enumerate(episode_bounds(t)):
        part = t[first:end]
        states = part.simulator_states[:, : ends.simulator_states.shape[1]]
        yield RecordedEpisode(
            observations=np.concatenate([part.observations, ends.observations[number][None]]),
            actions=tasks.executed(part.actions, how),
            sampled_actions=part.actions,
            rewards=part.rewards,
            terminated=bool(part.terminals[-1]),
            truncated=not part.terminals[-1],
            simulator_states=np.concatenate([states, ends.simulator_states[number][None]]),
        )


def dataset_id(config: Config) -> str:
    """``polygrad/<task>/<preset>-seed<seed>-v0``, in the letters that Minari takes."""
    task, preset = (re.sub(r"[^\w-]", "_", name) for name in (config.env.name, config.preset))
    return f"{NAMESPACE}/{task}/{preset}-seed{config.seed}-v0"


def check_before_training(config: Config, spec: EnvSpec, root: Path) -> None:
    """Refuse a run of hours of which :func:`export` would refuse to write a dataset.

    Raises:
      ConfigError: the dataset exists, ``root`` is a file, or the agent's policy reads latents.
    """
    _check_is_new(config, root)
    world_model = make_world_model_for_agent(config, spec)
    agent = make_agent(config, spec, world_model)
    raw_policy(agent.evaluated_policy(jax.eval_shape(agent.init, jax.random.key(0))), config)


def _check_is_new(config: Config, root: Path) -> None:
    """Refuse to write a dataset where there is one of its name, or a file in place of the folder of all."""
    if root.exists() and not root.is_dir():
        raise ConfigError(f"out is {root}, which is a file; allowed: a folder")
    target = root / dataset_id(config)
    if target.exists():
        raise ConfigError(f"dataset {target} exists already; allowed: another --out, or remove it first")


def export(folder: Path, root: Path) -> Path:
    """Writes the dataset of a run below ``root``; its folder.

    Beside Minari's ``data``: ``policy.npz`` (the policy that acted last, ``actor/...``), ``config.json`` and
    ``environment.json`` of the run.

    Raises:
      ConfigError: minari is not installed, the folder is not a run's or has nothing saved, the dataset exists, or it
        cannot be written.
    """
    minari_dataset.require_minari()
    _check_is_new(configs.from_dict(RunFolder(folder).saved_config()), root)
    run = open_run(folder)
    require_raw_policy(run)
    acting = run.agent.policy(run.agent_state)
    config, t = run.config, run.transitions
    _say_what(run)
    ends = ends_of(t, config)
    announce(f"final observations: {ends.how}")
    env_spec, missing = recoverable_spec(config.env)
    if missing is not None:
        announce(f"the dataset names no environment to recover: {missing}")
    env = tasks.make(config.env)
    environment = RunFolder(folder).saved_environment()
    packages = environment.get("packages", {})
    with one_line_on_disk_trouble(root):
        written = minari_dataset.write(
            root,
            dataset_id(config),
            recorded_episodes(t, ends, config.env.actions),
            env_spec,
            (env.observation_space, env.action_space),
            {
                "algorithm_name": f"PolyGRAD's loop with world model {config.world_model}",
                "description": DESCRIPTION,
                "requirements": [f"{name}=={packages[name]}" for name in ("mujoco", "gymnasium") if packages.get(name)],
                "final_observations": ends.how,
                "mujoco": physics.version_of_run(environment),
                **({} if missing is None else {"no_environment": missing}),
                "polygrad_config": json.dumps(configs.to_dict(config)),
                "polygrad_environment": json.dumps(environment),
                "policy": f"{POLICY_FILE}: parameters of the policy after {run.env_steps} environment steps",
            },
            {
                POLICY_FILE: npz_bytes({"actor": acting.params}),
                CONFIG_FILE: configs.to_json(config).encode(),
                ENVIRONMENT_FILE: (json.dumps(environment, indent=2) + "\n").encode(),
            },
        )
    env.close()
    return written


def _say_what(run: OpenedRun) -> None:
    t, total = run.transitions, run.config.loop.total_env_steps
    unfinished = "" if run.env_steps >= total else f", unfinished: {run.env_steps:,} of {total:,} steps"
    count = len(episode_bounds(t))
    episodes = f"{count:,} episode{'s' * (count != 1)}"
    announce(f"run {run.folder}{unfinished}: {len(t):,} transitions in {episodes}")
