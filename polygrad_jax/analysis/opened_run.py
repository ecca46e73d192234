"""A run opened for looking at it: what it learnt, what it stored, and imagining with both.

Nothing on the disk is changed, so that a run that is still going on can be looked at too.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from polygrad_jax import config as configs
from polygrad_jax.config import Config, ConfigError, EnvSpec
from polygrad_jax.data import normaliser as normalisers
from polygrad_jax.data import replay as replays
from polygrad_jax.data.normaliser import unnormalise
from polygrad_jax.data.transition_log import TransitionLog, TransitionLogError, TransitionRecord
from polygrad_jax.diffusion.sampler import draw, sample
from polygrad_jax.diffusion.schedule import sampling_coefficients
from polygrad_jax.envs import tasks as registry
from polygrad_jax.agents import a2c
from polygrad_jax.runs.checkpoints import Checkpoints, export_npz, flatten_named, load_npz
from polygrad_jax.training.step import make_iterations
from polygrad_jax.training.learners import acting_params
from polygrad_jax.training.loop import OPTIMISERS, policy_and_model, without_optimisers, without_rows
from polygrad_jax.runs.console import announce
from polygrad_jax.runs.run_folder import RunFolder
from polygrad_jax.training.simulator_host import host_for
from polygrad_jax.types import Array, Normaliser, Params, PolicyApply, Segment, Transitions, WorldModel
from polygrad_jax.data.recordings import replay_of
from polygrad_jax.world_models.polygrad import PolyGRADState, diffused_length, given_context, make_sampler
from polygrad_jax.world_models.model_table import known_world_models, make_world_model

Which = Literal["newest", "best"]


@dataclass(frozen=True)
class FinishedRun:
    """What a run learnt. Arrays are as they were in training.

    ``policy_apply(actor, raw_obs)`` is the policy, of learner a2c only; see :func:`require_raw_policy`.
    """

    folder: Path
    config: Config
    spec: EnvSpec
    which: Which
    env_steps: int
    """Environment steps after which these were the parameters, the prefill included."""
    actor: Params
    """The policy that was evaluated: the average of ``learner.actor`` where ``a2c.actor_ema`` asks for one."""
    learner: Any
    """Actor, critics and their optimisers; None of a best evaluation, which keeps the actor alone."""
    policy_apply: PolicyApply
    world_model: WorldModel
    model_state: Any
    normaliser: Normaliser
    jitted_imagine: Callable[..., tuple[Any, Segment, Any]]
    """``world_model.imagine``, compiled once per number of trajectories."""

    @property
    def acting(self) -> Params:
        """What :func:`evaluation.make_behaviour` acts with."""
        return acting_params(self.config, self.actor, self.model_state)

    @functools.cached_property
    def transitions(self) -> TransitionRecord:
        """Every stored transition, ``[T, ...]`` raw, on the host.

        Raises:
          ConfigError: they are missing or damaged.
        """
        try:
            log = TransitionLog(self.folder / "replay", read_only=True)
            return log.load(log.flushed_rows)
        except TransitionLogError as error:
            raise ConfigError(f"{error}; allowed: the folder of a run with its replay") from error

    @functools.cached_property
    def replay(self) -> replays.ReplayState:
        """The replay made from the stored transitions; a row of it is an index into ``transitions``."""
        stored = self.transitions
        rows = Transitions(
            observations=stored.observations,
            actions=stored.actions,
            rewards=stored.rewards,
            terminals=stored.terminals.astype(np.float32),
            truncations=stored.truncations.astype(np.float32),
            valid=np.ones(len(stored), bool),
        )
        window = self.world_model.window or self.config.horizon
        return replay_of(rows, window, self.config.loop.replay_capacity)

    @property
    def has_simulator_states(self) -> bool:
        """Whether the simulator's state of every transition was stored (MuJoCo)."""
        return self.transitions.simulator_states.shape[1] > 0

    def contexts(self, count: int, key: Array) -> Segment:
        """``count`` (B) contexts ``[B, C]`` drawn as in training; ``rows`` index ``transitions``."""
        return replays.sample_contexts(self.replay, key, count, self.world_model.context_length)

    def simulator_states(self, contexts: Segment) -> np.ndarray:
        """The simulator's states ``[B, S]`` float64 at the last states of contexts, where imagining begins."""
        return self.transitions.simulator_states[np.asarray(contexts.rows)[:, -1]]


def open_finished(folder: Path | str, which: Which = "newest") -> FinishedRun:
    """Opens a run folder: its newest checkpoint, or the parameters of its best evaluation.

    Raises:
      ConfigError: the folder is not a run's, has nothing saved yet, or is of another version.
    """
    folder = Path(folder)
    RunFolder(folder).check_has_policy()
    config = configs.validate(configs.from_dict(RunFolder(folder).saved_config()))
    if config.world_model not in known_world_models():
        raise ConfigError(f"world_model is {config.world_model}; allowed: {', '.join(known_world_models())}")
    env = registry.make(config.env)
    spec = registry.spec_of(env)
    env.close()
    readers: dict[str, Callable[..., tuple[int, dict[str, Any]]]] = {"newest": _read_newest, "best": _read_best}
    if which not in readers:
        raise ConfigError(f"which is {which}; allowed: {', '.join(readers)}")
    env_steps, learnt = readers[which](folder, config, spec)
    # The rows of the contexts are those of the run that is opened here.
    host = host_for(config, lambda rows: run.transitions.simulator_states[rows])
    world_model = make_world_model(config, spec, host)
    run = FinishedRun(
        folder=folder,
        config=config,
        spec=spec,
        which=which,
        env_steps=env_steps,
        actor=learnt["actor"],
        learner=learnt.get("learner"),
        policy_apply=a2c.make_policy_apply(spec, config.a2c, config.precision),
        world_model=world_model,
        model_state=learnt["world_model"],
        normaliser=normalisers.to_normaliser(learnt["moments"]),
        jitted_imagine=jax.jit(world_model.imagine, static_argnums=(1, 6)),
    )
    return run


# --- reading without writing -----------------------------------------------------------------------------------------


def _shape_of_state(config: Config, spec: EnvSpec) -> Any:
    """Shapes of a run's train state without the replay's rows; nothing is computed."""
    return jax.eval_shape(lambda: without_rows(make_iterations(config, spec, host_for(config)).init(config.seed)))


def _read_newest(folder: Path, config: Config, spec: EnvSpec) -> tuple[int, dict[str, Any]]:
    shape = _shape_of_state(config, spec)
    actor = acting_params(config, shape.learner.actor, shape.world_model)
    if not (folder / "checkpoints").is_dir():
        raise ConfigError(f"run folder {folder} has no checkpoint yet; allowed: a run that has saved one")
    checkpoints = Checkpoints(folder / "checkpoints", say=announce, read_only=True)
    try:
        found = checkpoints.restore({"train_state": shape, "acting_actor": actor, "next_actor": actor})
    finally:
        checkpoints.close()
    if found is None:
        raise ConfigError(f"run folder {folder} has no checkpoint yet; allowed: a run that has saved one")
    env_steps, arrays, _ = found
    state = arrays["train_state"]
    return env_steps, policy_and_model(state) | {"learner": state.learner}


def _read_best(folder: Path, config: Config, spec: EnvSpec) -> tuple[int, dict[str, Any]]:
    path = folder / "best.npz"
    if not path.is_file():
        raise ConfigError(f"run folder {folder} has no best.npz yet; allowed: --which newest, or a run evaluated once")
    shape = _shape_of_state(config, spec)
    model = without_optimisers(shape.world_model)
    wanted = {"actor": shape.learner.actor, "world_model": model, "moments": shape.replay.moments}
    tree = load_npz(path)
    env_steps = int(tree.pop("env_steps", 0))
    # Older versions kept the optimisers too.
    stored = {name: x for name, x in flatten_named(tree).items() if not {*OPTIMISERS} & {*name.split("/")}}
    named = flatten_named(wanted)
    shapes = [{name: (np.shape(x), x.dtype) for name, x in arrays.items()} for arrays in (stored, named)]
    if different := sorted(n for n in stored.keys() | named.keys() if shapes[0].get(n) != shapes[1].get(n)):
        raise ConfigError(f"{path} has other arrays: {', '.join(different[:3])}; allowed: those of this version")
    leaves = [jnp.asarray(stored[name]) for name in named]
    return env_steps, jax.tree.unflatten(jax.tree.structure(wanted), leaves)


def read_evaluations(folder: Path | str) -> dict[str, np.ndarray]:
    """The columns of ``eval.csv``, ``[rows]`` float64 each, NaN where a cell is empty; no columns without the file."""
    path = Path(folder) / "eval.csv"
    lines = path.read_text().splitlines() if path.is_file() else []
    if not lines:
        return {}
    names = lines[0].split(",")
    cells = [line.split(",") for line in lines[1:]]
    table = np.array([[float(c) if c else np.nan for c in row] for row in cells if len(row) == len(names)])
    return dict(zip(names, table.reshape(-1, len(names)).T, strict=True))


# --- imagining -------------------------------------------------------------------------------------------------------


def require_raw_policy(run: FinishedRun) -> None:
    """Raises ConfigError where the run's policy does not read raw observations, so that no world model is asked of it.
    """
    if run.config.learner != "a2c":
        raise ConfigError(f"learner is {run.config.learner}, whose policy reads latents; allowed: a run of learner a2c")


def imagine(run: FinishedRun, contexts: Segment, key: Array, model_state: Any = None) -> Segment:
    """Trajectories ``[B, H]`` that the run's model imagines from ``contexts [B, C]`` under the run's policy, raw.

    ``rows [B, 1]`` are those of the first states. ``model_state`` takes the place of the run's, e.g. an untrained one.
    """
    require_raw_policy(run)
    state = run.model_state if model_state is None else model_state
    _, segment, _ = run.jitted_imagine(
        state, run.policy_apply, run.actor, contexts, run.normaliser, key, run.config.horizon
    )
    return segment.replace(rows=contexts.rows[:, -1:])


def untrained_state(run: FinishedRun, key: Array) -> Any:
    """The state of a world model like the run's that has seen nothing: what a measure must tell from a trained one."""
    return jax.jit(run.world_model.init)(key)


def export_segment(path: Path | str, segment: Segment, **more: np.ndarray) -> None:
    """Writes trajectories as plain arrays, ``[B, H, ...]`` by name; readable with ``numpy.load`` alone."""
    arrays = {name: getattr(segment, name) for name in ("observations", "actions", "rewards", "terminals")}
    rows = {} if segment.rows is None else {"rows": segment.rows}
    export_npz(path, arrays | rows | more)


class Diffusion(NamedTuple):
    """Trajectories after every diffusion step, raw, in the order of the run; entry 0 is the random start."""

    steps: np.ndarray  # [K + 1] t of the step before which the trajectory was like this; -1 for the result
    observations: np.ndarray  # [K + 1, B, H, O]
    actions: np.ndarray  # [K + 1, B, H, A]


def shows_diffusion(run: FinishedRun) -> bool:
    """Whether the run's model diffuses trajectories, so that :func:`diffuse` can show how."""
    return isinstance(run.model_state, PolyGRADState)


def diffuse(run: FinishedRun, contexts: Segment, key: Array) -> Diffusion:
    """What :func:`imagine` does with the same key, with everything it goes through (Algorithm 2).

    Raises:
      ConfigError: the run's world model is another than PolyGRAD.
    """
    if not shows_diffusion(run):
        raise ConfigError(f"world_model is {run.config.world_model}; allowed for the diffusion strip: polygrad")
    schedule = sampling_coefficients(run.config.diffusion)
    sampler = make_sampler(run.config, run.policy_apply)

    @jax.jit
    def every_step(state: PolyGRADState, actor: Params, normaliser: Normaliser, contexts: Segment, key: Array):
        given = given_context(state, actor, normaliser, contexts, run.config.denoiser.context_length)
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
        every_step(run.model_state, run.actor, run.normaliser, contexts.replace(rows=None), key)
    )
    return Diffusion(np.append(np.asarray(schedule.step)[::-1], -1), observations, actions)
