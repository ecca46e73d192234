"""Open a run to look at it: restore what it learnt, and imagine with it.

Nothing on the disk is changed, so a run that is still being trained can be looked at too.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from polygrad_jax.agents.agent_table import make_agent
from polygrad_jax.config import Config, ConfigError, EnvSpec
from polygrad_jax.data import normaliser as normalisers
from polygrad_jax.data import replay as replays
from polygrad_jax.data.normaliser import RunningMoments, unnormalise
from polygrad_jax.data.recordings import replay_of, transitions_of_record
from polygrad_jax.data.transition_log import TransitionRecord
from polygrad_jax.diffusion.sampler import draw, sample
from polygrad_jax.diffusion.schedule import sampling_coefficients
from polygrad_jax.envs import tasks
from polygrad_jax.envs.mujoco_state import no_simulator_states
from polygrad_jax.envs.prediction_error import why_not_replayed
from polygrad_jax.runs import pretrained
from polygrad_jax.runs.checkpoints import export_npz, flatten_named, restored, why_standardised_otherwise
from polygrad_jax.runs.console import announce
from polygrad_jax.runs.recorded_data import RecordedData
from polygrad_jax.runs.run_folder import BEST_FILE, RunFolder
from polygrad_jax.runs.saved_run import SavedRun, Which, read_saved
from polygrad_jax.training.fitting import settle
from polygrad_jax.training.train_state import without_optimisers
from polygrad_jax.types import Agent, Array, Metrics, Normaliser, Params, Policy, Segment, WorldModel
from polygrad_jax.world_models.companion import imagining_state
from polygrad_jax.world_models.model_table import SIMULATOR, make_world_model, make_world_model_for_agent
from polygrad_jax.world_models.polygrad import PolyGRADState, diffused_length, given_context, make_sampler


@dataclass(frozen=True)
class OpenedRun:
    """What a run learnt, with the functions that use it. Arrays are as they were in training."""

    saved: SavedRun
    spec: EnvSpec
    agent: Agent
    agent_state: Any
    """The whole state; of a best evaluation without its optimisers."""
    world_model: WorldModel
    model_state: Any
    """The whole state; of a best evaluation without its optimisers."""
    normaliser: Normaliser

    @property
    def folder(self) -> Path:
        """The run's folder."""
        return self.saved.folder

    @property
    def config(self) -> Config:
        """The run's configuration."""
        return self.saved.config

    @property
    def which(self) -> Which:
        """``newest`` checkpoint or ``best`` evaluation."""
        return self.saved.which

    @property
    def env_steps(self) -> int:
        """Environment steps after which these were the parameters, the prefill included."""
        return self.saved.env_steps

    @functools.cached_property
    def policy(self) -> Policy | None:
        """The policy that evaluations show; None where it reads latents, not observations."""
        return self.agent.evaluated_policy(self.agent_state)

    @property
    def acting(self) -> Params:
        """Parameters of ``agent.decide`` for the policy that evaluations show."""
        return self.agent.evaluated(self.agent_state, self.model_state)

    @property
    def transitions(self) -> TransitionRecord:
        """Every stored transition, ``[T, ...]`` raw, on the host.

        Raises:
          ConfigError: they are missing, damaged, or of another task.
        """
        stored = self.saved.transitions
        sizes = stored.observations.shape[1], stored.actions.shape[1]
        if sizes != dataclasses.astuple(self.spec):
            allowed = f"{dataclasses.astuple(self.spec)}, those of its task"
            raise ConfigError(f"run folder {self.folder} has transitions of sizes {sizes}; allowed: {allowed}")
        return stored

    @functools.cached_property
    def replay(self) -> replays.ReplayState:
        """The replay made from the stored transitions; a row of it is an index into ``transitions``."""
        rows = transitions_of_record(self.transitions)
        least = self.world_model.states_of_episode(self.config.horizon)
        return replay_of(rows, least, self.config.loop.replay_capacity)

    @functools.cached_property
    def why_not_replayed(self) -> str | None:
        """Why actions cannot be replayed from the simulator states of stored transitions; None where they can."""
        return why_not_replayed(self.config.env, self.transitions)

    @property
    def has_simulator_states(self) -> bool:
        """Whether the simulator's state of every transition was stored, and is the task's."""
        return self.why_not_replayed is None

    def contexts(self, count: int, key: Array) -> Segment:
        """Draw ``count`` (B) contexts ``[B, C]`` as training does; ``rows`` index ``transitions``."""
        draw_contexts = jax.jit(replays.sample_contexts, static_argnums=(2, 3))
        return draw_contexts(self.replay, key, count, self.world_model.context_length)

    def simulator_states(self, contexts: Segment) -> np.ndarray:
        """Look up the simulator's states ``[B, S]`` float64 at the last states of contexts, where imagining begins.

        Raises:
          ConfigError: there are none, or they are not the task's.
        """
        return self.simulator_states_at(np.asarray(contexts.rows)[:, -1])

    def simulator_states_at(self, rows: np.ndarray) -> np.ndarray:
        """Look up the simulator's states ``[B, S]`` float64 before the transitions ``rows [B]``.

        Raises:
          ConfigError: there are none, or they are not the task's.
        """
        if self.why_not_replayed is not None:
            line = no_simulator_states(self.config.env, self.why_not_replayed)
            raise ConfigError(f"run folder {self.folder}: {line}; allowed: a run with simulator states")
        return self.transitions.simulator_states[rows]

    def imagine(
        self, contexts: Segment, key: Array, model_state: Any = None, policy: Policy | None = None
    ) -> Segment:
        """Imagine trajectories ``[B, H]`` from ``contexts [B, C]``, raw, under the run's policy or another one.

        ``rows [B, 1]`` are those of the first states. ``model_state`` takes the place of the run's, e.g. an untrained
        one, or one that :meth:`settled` made for ``policy``.
        """
        state = self.model_state if model_state is None else model_state
        policy = self.policy if policy is None else policy
        if policy is None:
            segment, _ = self._imagine_in_latents(self.agent_state, state, contexts, self.normaliser, key)
        else:
            segment, _ = self._imagine(state, policy, contexts, self.normaliser, key)
        return segment.replace(rows=contexts.rows[:, -1:])

    def settled(self, policy: Policy, contexts: Segment, key: Array) -> Any:
        """Return the state of the world model adapted to another policy (PolyGRAD: delta); the run's is kept.

        Imagines 300 times from ``contexts [B, C]``. A model that adapts nothing returns its state unchanged.
        """
        return settle(self.world_model, self.model_state, policy, contexts, self.normaliser, key)

    @functools.cached_property
    def _imagine(self) -> Callable[..., tuple[Segment, Metrics]]:
        return jax.jit(self.world_model.imagine)

    @functools.cached_property
    def _imagine_in_latents(self) -> Callable[..., tuple[Segment, Metrics]]:
        return jax.jit(self.agent.imagine)

    def untrained_state(self, key: Array) -> Any:
        """Initialise a world model like the run's: a measure must tell it from a trained one."""
        return jax.jit(self.world_model.init)(key)


def open_run(folder: Path | str, which: Which = "newest") -> OpenedRun:
    """Open a run folder: its newest checkpoint, or the parameters of its best evaluation.

    Raises:
      ConfigError: the folder is not a run's, has nothing saved yet, or is of another version.
    """
    folder = Path(folder)
    RunFolder(folder).check_has_policy()
    saved = read_saved(folder, which)
    config = saved.config
    if config.world_model == SIMULATOR and (reason := why_not_replayed(config.env, saved.transitions)) is not None:
        line = no_simulator_states(config.env, reason)
        raise ConfigError(f"run folder {folder}: world_model is simulator; {line}; allowed: another world model's run")
    env = tasks.make(config.env)
    spec = tasks.spec_of(env)
    env.close()
    world_model = make_world_model_for_agent(config, spec, lambda rows: saved.transitions.simulator_states[rows])
    agent = make_agent(config, spec, world_model)
    arrays, where = saved.arrays, _where(saved)
    key = jax.random.key(0)
    model_like, agent_like = jax.eval_shape(world_model.init, key), jax.eval_shape(agent.init, key)
    if which == "best":
        model_like, agent_like = without_optimisers(model_like), without_optimisers(agent_like)
    if arrays["agent"].keys() == {"actor"}:
        agent_like = _policy_alone(agent_like)
    return OpenedRun(
        saved=saved,
        spec=spec,
        agent=agent,
        agent_state=restored(agent_like, flatten_named(arrays["agent"]), where),
        world_model=world_model,
        model_state=restored(model_like, flatten_named(arrays["world_model"]), where),
        normaliser=_normaliser(saved, spec),
    )


def open_pretrained(name: str) -> OpenedRun:
    """Open a run that comes with the package: ``open_pretrained("hopper")``, at its best evaluation.

    Raises:
      ConfigError: there is none of that name.
    """
    return open_run(pretrained.find(name), "best")


def _where(saved: SavedRun) -> str:
    """Name the file that arrays were read from."""
    return str(saved.folder / BEST_FILE) if saved.which == "best" else f"run folder {saved.folder}"


def _policy_alone(agent_like: Any) -> Any:
    """An agent's state without all but ``actor``, which is all that format version 1 kept of a best evaluation."""
    others = {field.name: None for field in dataclasses.fields(agent_like) if field.name != "actor"}
    return dataclasses.replace(agent_like, **others)


def _normaliser(saved: SavedRun, spec: EnvSpec) -> Normaliser:
    """Return the normaliser of the statistics that were saved."""
    like = jax.eval_shape(lambda: normalisers.init(spec))
    return _normaliser_of(saved, restored(like, flatten_named(saved.arrays["moments"]), _where(saved)))


def _normaliser_of(saved: SavedRun, moments: RunningMoments) -> Normaliser:
    """Return the normaliser of statistics; say where it is not the one that the model learnt with."""
    if (reason := why_standardised_otherwise(saved.folder, moments)) is not None:
        announce(f"warning: {reason}; its world model imagines wrongly")
    return jax.jit(normalisers.to_normaliser)(moments)


# --- a world model alone ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TrainedModel:
    """A world model that ``polygrad fit`` trained, at its least five-step error or at its newest checkpoint."""

    config: Config
    spec: EnvSpec
    model: WorldModel
    state: Any
    normaliser: Normaliser
    updates: int


def open_trained(folder: Path | str, data: RecordedData, newest: bool = False) -> TrainedModel:
    """Open the folder of ``polygrad fit`` for the data that the model was trained on: the best judged, or the newest.

    The newest where none was judged, or where ``newest`` asks for it.

    Raises:
      ConfigError: the folder is not of such a training, or has nothing saved yet.
    """
    folder = Path(folder)
    which: Which = "newest" if newest or not (folder / BEST_FILE).is_file() else "best"
    saved = read_saved(folder, which)
    config, arrays, where = saved.config, saved.arrays, _where(saved)
    data = data.executed_as(config.env.actions)
    model = make_world_model(config, data.spec)
    like = jax.eval_shape(model.init, jax.random.key(0))
    if which == "best":
        normaliser = _normaliser(saved, data.spec)
    else:
        normaliser = _normaliser_of(saved, data.replay(model.states_of_episode(config.horizon)).moments)
    state = restored(like, flatten_named(arrays["world_model"]), where)
    return TrainedModel(config, data.spec, model, state, normaliser, saved.env_steps)


# --- looking at what is imagined -------------------------------------------------------------------------------------


def require_raw_policy(run: OpenedRun) -> Policy:
    """The run's policy of raw observations.

    Raises:
      ConfigError: the run's policy reads latents, so no other world model can be asked about it.
    """
    return raw_policy(run.policy, run.config)


def raw_policy(policy: Policy | None, config: Config) -> Policy:
    """The policy that ``agent.evaluated_policy`` gave.

    Raises:
      ConfigError: it gave none, because the agent's policy reads latents.
    """
    if policy is None:
        allowed = "a run of agent a2c or value_gradient"
        raise ConfigError(f"agent is {config.agent}, whose policy reads latents; allowed: {allowed}")
    return policy


def export_segment(path: Path | str, segment: Segment, **more: np.ndarray) -> None:
    """Write trajectories as plain arrays, ``[B, H, ...]`` by name; readable with ``numpy.load`` alone."""
    arrays = {name: getattr(segment, name) for name in ("observations", "actions", "rewards", "terminals")}
    rows = {} if segment.rows is None else {"rows": segment.rows}
    export_npz(path, arrays | rows | more)


class Diffusion(NamedTuple):
    """Trajectories after every diffusion step, raw, in the order of sampling; entry 0 is the random start."""

    steps: np.ndarray  # [K + 1] t of the step before which the trajectory was like this; -1 for the result
    observations: np.ndarray  # [K + 1, B, H, O]
    actions: np.ndarray  # [K + 1, B, H, A]


def shows_diffusion(run: OpenedRun) -> bool:
    """Whether the run's model diffuses trajectories, so that :func:`diffuse` can show the steps."""
    return isinstance(imagining_state(run.model_state), PolyGRADState)


def diffuse(run: OpenedRun, contexts: Segment, key: Array) -> Diffusion:
    """Repeat :meth:`OpenedRun.imagine` with the same key, and keep every diffusion step (Algorithm 2).

    Raises:
      ConfigError: the run's world model is another than PolyGRAD, or its policy reads latents.
    """
    if not shows_diffusion(run):
        raise ConfigError(f"world_model is {run.config.world_model}; allowed for the diffusion strip: polygrad")
    policy = require_raw_policy(run)
    schedule = sampling_coefficients(run.config.diffusion)
    sampler = make_sampler(run.config)

    @jax.jit
    def every_step(state: PolyGRADState, policy: Policy, normaliser: Normaliser, contexts: Segment, key: Array):
        given = given_context(state, policy, normaliser, contexts, run.config.denoiser.context_length)
        length, action_size = diffused_length(run.config), run.spec.action_size
        shape = (given.initial.shape[0], length, run.spec.observation_size + 2)
        start = draw(jax.random.fold_in(key, run.config.diffusion.sampling_steps), shape, action_size)
        _, _, kept = sample(sampler, given, schedule, key, length, action_size, keep_steps=True)
        both = jax.tree.map(lambda a, b: jnp.concatenate([a[None], b]), tuple(start), kept)
        normed_traj, normed_actions = jax.tree.map(lambda x: x[:, :, -run.config.horizon :], both)
        return (
            unnormalise(normed_traj[..., :-2], normaliser.observations),
            unnormalise(normed_actions, normaliser.actions),
        )

    observations, actions = jax.device_get(
        every_step(imagining_state(run.model_state), policy, run.normaliser, contexts.replace(rows=None), key)
    )
    return Diffusion(np.append(np.asarray(schedule.step)[::-1], -1), observations, actions)
