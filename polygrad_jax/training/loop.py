"""Algorithm 3, the host's side: acting, evaluating, writing; all learning is one call (``iteration.py``).

What happens at an environment step depends on the configuration and the seed only, never on how fast the machine
is, so that a resumed run is the uninterrupted one.
"""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import jax
import jax.numpy as jnp
import numpy as np

from polygrad_jax import config as configs
from polygrad_jax.config import INSERT_CHUNK, Config, ConfigError, EnvSpec
from polygrad_jax.data import replay as replays
from polygrad_jax.data.simulator_log import SimulatorLog
from polygrad_jax.data.transition_log import TransitionLog, TransitionLogError
from polygrad_jax.envs.mujoco_state import has_simulator_state
from polygrad_jax.envs.collector import Collector, uniform_action
from polygrad_jax.training import evaluating as evaluation
from polygrad_jax.runs.checkpoints import Checkpoints, save_best
from polygrad_jax.training.step import (
    FINITE_OUTPUTS,
    FINITE_STATES,
    Iterations,
    Output,
    TrainState,
    make_iterations,
)
from polygrad_jax.training.learners import shown_actor
from polygrad_jax.runs.metrics_log import Histogram, MetricsLog
from polygrad_jax.training.programs import compile_learning
from polygrad_jax.runs.console import Progress, announce, announced
from polygrad_jax.runs.run_folder import RunFolder, describe_environment, one_line_on_disk_trouble
from polygrad_jax.runs.stop_signals import StopOnSignal
from polygrad_jax.training.simulator_host import MuJoCoHost, host_for
from polygrad_jax.types import Params, Transitions

EXPLORATION_STREAM = 1
EVALUATION_STREAM = 2
HISTOGRAM_EDGES = np.linspace(-4.0, 4.0, 41)
"""Of the standardised actions, as ``diffusion/guidance.py`` counts them."""


class NonFiniteError(RuntimeError):
    """Learning produced a number that is not finite; the message names the component and the environment step."""


@dataclass
class Clock:
    """Seconds spent so far, over all sessions of the run."""

    collecting: float = 0.0
    training: float = 0.0
    evaluating: float = 0.0
    compiling: float = 0.0


@dataclass
class Progressing:
    """Where the run is: everything the host must remember beside the train state. Saved in every checkpoint."""

    env_steps: int = 0
    prefill_env_steps: int = 0
    last_return: float | None = None
    best_return: float | None = None
    clock: Clock = field(default_factory=Clock)


@dataclass
class Run:
    """The parts of one run on the host."""

    lock: IO[bytes]
    config: Config
    spec: EnvSpec
    folder: Path
    collector: Collector
    transitions: TransitionLog
    simulator_log: SimulatorLog
    host: MuJoCoHost | None
    """Where the world model is the simulator itself."""
    checkpoints: Checkpoints
    metrics: MetricsLog
    behaviour: evaluation.Behaviour
    at: Progressing
    memory: evaluation.Memory = None
    """What the policy knows of the episode that is going on."""
    finished_episodes: list[dict[str, float]] = field(default_factory=list)


@dataclass(frozen=True)
class Result:
    """How a run ended."""

    env_steps: int
    stopped_by: str | None
    """The name of the signal that stopped it, or None."""
    last_return: float | None
    folder: Path


def crossed(before: int, after: int, every: int) -> bool:
    """Whether a multiple of ``every`` lies in ``(before, after]``."""
    return before // every < after // every


# --- acting (Algorithm 3, lines 4 and 5) -----------------------------------------------------------------------------


def exploration_noise(seed: int, env_step: int, shape: tuple[int, ...]) -> np.ndarray:
    """Standard normal draws of the policy's actions from environment step ``env_step`` on."""
    key = np.random.SeedSequence([seed, EXPLORATION_STREAM, env_step])
    return np.random.Generator(np.random.Philox(key)).standard_normal(shape, dtype=np.float32)


def evaluation_seed(seed: int, env_step: int) -> int:
    """The seed of the evaluation at ``env_step``; different episodes every time, the same in a resumed run."""
    return int(np.random.SeedSequence([seed, EVALUATION_STREAM, env_step]).generate_state(1)[0])


def empty_chunk(length: int, spec: EnvSpec) -> Transitions:
    """Room for ``length`` transitions, none of them valid yet."""
    return Transitions(
        observations=np.zeros((length, spec.observation_size), np.float32),
        actions=np.zeros((length, spec.action_size), np.float32),
        rewards=np.zeros(length, np.float32),
        terminals=np.zeros(length, np.float32),
        truncations=np.zeros(length, np.float32),
        valid=np.zeros(length, bool),
    )


@dataclass
class Chunk:
    """Transitions being collected, with the simulator's states before each (empty without MuJoCo)."""

    transitions: Transitions
    simulator_states: np.ndarray  # [T, S]
    length: int = 0


def new_chunk(run: Run, length: int) -> Chunk:
    """An empty chunk with room for ``length`` transitions."""
    return Chunk(empty_chunk(length, run.spec), np.zeros((length, run.collector.simulator_state_size)))


def take_step(run: Run, chunk: Chunk, action: np.ndarray) -> bool:
    """Steps the environment and writes the transition to ``chunk``; whether an episode ended."""
    step = run.collector.step(action)
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
    run.at.env_steps += 1
    if step.episode is not None:
        e = step.episode
        run.finished_episodes.append({"return": e.episode_return, "length": e.length, "distance": e.distance})
    return step.episode is not None


def record(run: Run, chunk: Chunk) -> Transitions:
    """Puts a chunk on the host's records; what is to be sent to the device."""
    rows, n = chunk.transitions, chunk.length
    run.simulator_log.append(chunk.simulator_states[:n])
    run.transitions.append(
        rows.observations[:n],
        rows.actions[:n],
        rows.rewards[:n],
        rows.terminals[:n] > 0,
        rows.truncations[:n] > 0,
        chunk.simulator_states[:n],
    )
    return rows


def collect(run: Run, actor_params: Params) -> Transitions:
    """One iteration's environment steps under the Gaussian policy; actions are stored as sampled."""
    length = run.config.loop.env_steps_per_iteration
    noise = exploration_noise(run.config.seed, run.at.env_steps, (length, run.spec.action_size))
    chunk = new_chunk(run, length)
    for row in range(length):
        draw = (run.config.seed, run.at.env_steps)
        mean, std, seen = run.behaviour.decide(actor_params, run.memory, run.collector.observation, draw)
        action = mean + std * noise[row]
        ended = take_step(run, chunk, action)
        run.memory = None if ended else run.behaviour.took(seen, action)
    return record(run, chunk)


def prefill(
    run: Run, state: TrainState, insert: Callable[..., TrainState], stop: StopOnSignal | None = None
) -> TrainState:
    """Uniform random actions in whole episodes until there are enough (not counted in the paper's budget).

    Raises:
      ConfigError: whole episodes took as many steps as the run may have.
      KeyboardInterrupt: ``stop`` was requested; there is nothing worth saving yet.
    """
    chunk, ended = new_chunk(run, INSERT_CHUNK), False
    loop = run.config.loop
    while not (ended and run.at.env_steps >= loop.prefill_env_steps) and run.at.env_steps < loop.total_env_steps:
        if stop is not None and stop.requested:
            raise KeyboardInterrupt
        ended = take_step(run, chunk, uniform_action(run.config.seed, run.at.env_steps, run.spec.action_size))
        if chunk.length == INSERT_CHUNK:
            state, chunk = insert(state, record(run, chunk)), new_chunk(run, INSERT_CHUNK)
    run.at.prefill_env_steps = run.at.env_steps
    if run.at.env_steps >= loop.total_env_steps:
        took = f"{run.at.env_steps}, which the prefill took in whole episodes"
        unended = f"the prefill takes in whole episodes; one has not ended at step {run.at.env_steps}"
        raise ConfigError(
            f"loop.total_env_steps is {loop.total_env_steps}; allowed: more than {took if ended else unended}"
        )
    return insert(state, record(run, chunk)) if chunk.length else state


def require_windows(run: Run, state: TrainState) -> None:
    """Refuses to learn where the replay holds nothing to learn from.

    Raises:
      ConfigError: no stored stretch of steps is as long as the horizon.
    """
    if int(replays.num_windows(state.replay)) == 0:
        raise ConfigError(
            f"horizon is {run.config.horizon}, and none of the {run.at.env_steps} stored steps begins a window of that "
            "length; allowed: a shorter horizon, a larger loop.replay_capacity or loop.prefill_env_steps"
        )


# --- saving and going on ---------------------------------------------------------------------------------------------


def without_rows(state: TrainState) -> TrainState:
    """The train state without the replay's rows, which the transition log has; its statistics stay."""
    replay = state.replay
    return state.replace(
        replay=replay.replace(
            observations=replay.observations[:0],
            actions=replay.actions[:0],
            rewards=replay.rewards[:0],
            terminals=replay.terminals[:0],
            steps=None,
            starts=replay.starts[:0],
        )
    )


@dataclass(frozen=True)
class Actors:
    """The policies that matter to the host: who acts next, and (with overlap) who acts after that."""

    acting: Params
    next: Params

    def after(self, newest: Params, overlap: bool) -> Actors:
        """With overlap the environment is stepped by the policy of one iteration earlier, while the device learns."""
        return Actors(self.next, newest) if overlap else Actors(newest, newest)


def save(run: Run, state: TrainState, actors: Actors) -> None:
    """A checkpoint of everything: learner, model, counters, normaliser, environment, and the transitions so far."""
    with one_line_on_disk_trouble(run.folder / "replay"):
        run.transitions.flush()
    arrays = jax.device_get(
        {"train_state": without_rows(state), "acting_actor": actors.acting, "next_actor": actors.next}
    )
    host = {
        "progress": dataclasses.asdict(run.at),
        "collector": {name: np.asarray(value).tolist() for name, value in run.collector.snapshot().items()},
        "config": configs.to_dict(run.config),
        "finished_episodes": run.finished_episodes,
        "memory": None if run.memory is None else {name: x.tolist() for name, x in run.memory.items()},
    }
    run.checkpoints.save(run.at.env_steps, arrays, host)


def restore(
    run: Run, state: TrainState, insert: Callable[..., TrainState], actor: Params
) -> tuple[TrainState, Actors] | None:
    """The newest good checkpoint, put back in the order: arrays, replay, environment, logs; None if there is none.

    ``actor`` is what the host acts with, of whatever numbers.
    """
    template = {"train_state": without_rows(state), "acting_actor": actor, "next_actor": actor}
    found = run.checkpoints.restore(template)
    if found is None:
        run.transitions.truncate(0)
        run.metrics.truncate(-1)
        return None
    env_steps, arrays, host = found
    progress = host["progress"]
    run.at = Progressing(**(progress | {"clock": Clock(**progress["clock"])}))
    run.finished_episodes = host["finished_episodes"]
    memory = host.get("memory")  # checkpoints of older versions have none
    run.memory = None if memory is None else {name: np.asarray(x, np.float32) for name, x in memory.items()}
    run.transitions.truncate(env_steps)
    run.metrics.truncate(env_steps)
    state = refill(run, state, insert)
    saved = arrays["train_state"]
    for counter in ("total", "head", "tail", "open_length"):
        have, want = int(getattr(state.replay, counter)), int(getattr(saved.replay, counter))
        if have != want:
            raise TransitionLogError(
                f"{run.folder / 'replay'} does not belong to the checkpoint at step {env_steps}: its {counter} is "
                f"{have}, the checkpoint's {want}; restore the folder, or resume from an earlier checkpoint"
            )
    names = ("observations", "actions", "rewards", "terminals", "steps", "starts")
    rows = {name: getattr(state.replay, name) for name in names}
    snapshot = host["collector"]
    run.collector.restore(
        {
            "episode_index": snapshot["episode_index"],
            "executed_actions": np.asarray(snapshot["executed_actions"], np.float32).reshape(-1, run.spec.action_size),
            "observation": np.asarray(snapshot["observation"], np.float32),
        }
    )
    state = saved.replace(replay=saved.replay.replace(**rows))
    return state, Actors(arrays["acting_actor"], arrays["next_actor"])


def refill(run: Run, state: TrainState, insert: Callable[..., TrainState]) -> TrainState:
    """The replay and the simulator's states built again from the logged transitions."""
    stored = run.transitions.load(run.at.env_steps)
    for start in range(0, run.at.env_steps, INSERT_CHUNK):
        part = stored[start : start + INSERT_CHUNK]
        chunk = empty_chunk(INSERT_CHUNK, run.spec)
        for name in ("observations", "actions", "rewards", "terminals", "truncations"):
            getattr(chunk, name)[: len(part)] = getattr(part, name)
        chunk.valid[: len(part)] = True
        run.simulator_log.append(part.simulator_states)
        state = insert(state, chunk)
    return state


# --- looking ---------------------------------------------------------------------------------------------------------


def check_finite(finite: Any, names: tuple[str, ...], env_step: int, folder: Path) -> None:
    """Stops the run where a component is not finite.

    Raises:
      NonFiniteError: naming the component, the environment step, and what remains.
    """
    finite = np.asarray(finite)
    if not finite.all():
        bad = ", ".join(name for name, good in zip(names, finite, strict=True) if not good)
        raise NonFiniteError(
            f"not finite at environment step {env_step}: {bad}; the last good checkpoint is in {folder / 'checkpoints'}"
        )


def evaluate(
    run: Run,
    state: TrainState,
    evaluated: Callable[[TrainState], Params],
    imagine_from_replay: evaluation.ImagineFromReplay | None,
) -> dict[str, Any]:
    """Evaluation returns (20 episodes, mean action) and the error of imagined trajectories; one row of ``eval.csv``."""
    began = time.perf_counter()
    at, config = run.at, run.config
    actor = jax.device_get(evaluated(state))
    seed = evaluation_seed(config.seed, at.env_steps)
    episodes = evaluation.evaluate_policy(config.env, run.behaviour, actor, config.loop.eval_episodes, seed)
    row = {
        "return_mean": float(episodes.returns.mean()),
        "return_std": float(episodes.returns.std()),
        "length_mean": float(episodes.lengths.mean()),
    }
    if np.isfinite(episodes.distances).all():
        row["distance_mean"] = float(episodes.distances.mean())
        row["distance_std"] = float(episodes.distances.std())
    at.last_return = row["return_mean"]
    if at.best_return is None or at.last_return > at.best_return:
        at.best_return = at.last_return
        best = policy_and_model(state)
        best["world_model"] = without_optimisers(best["world_model"])
        save_best(run.folder / "best.npz", best | {"env_steps": np.int64(at.env_steps)})
    run.metrics.write_evaluation(at.env_steps, row)
    errors = {}
    if imagine_from_replay is not None:
        segment = jax.device_get(imagine_from_replay(state, jnp.int32(at.env_steps)))
        errors = evaluation.simulator_errors(config.env, segment, run.simulator_log.get(segment.rows[:, 0]))
    at.clock.evaluating += time.perf_counter() - began
    return errors


OPTIMISERS = ("adam", "optimiser")
"""Fields of world models' states that only learning needs."""


def without_optimisers(tree: Any) -> Any:
    """A world model's state with None for every field in OPTIMISERS: what imagining needs, and a third of the size."""
    if not dataclasses.is_dataclass(tree):
        return tree
    fields = {f.name: without_optimisers(getattr(tree, f.name)) for f in dataclasses.fields(tree)}
    return dataclasses.replace(tree, **fields | {name: None for name in OPTIMISERS if name in fields})


def policy_and_model(state: TrainState) -> dict[str, Any]:
    """What is needed to look at a run without going on with it: policy, world model (whole state), statistics."""
    actor = shown_actor(state.learner)
    return jax.device_get({"actor": actor, "world_model": state.world_model, "moments": state.replay.moments})


def log_row(run: Run, output: Output, looks: dict[str, Any], steps_per_second: float) -> dict[str, Any]:
    """One row of metrics: learning, the episodes that ended since the last row, evaluation, time, memory."""
    at = run.at
    row: dict[str, Any] = jax.device_get(output.metrics)
    counts = row.pop("guidance/standardised_histogram", None)
    histograms = {} if counts is None else {"guidance/standardised_actions": Histogram(HISTOGRAM_EDGES, counts)}
    if run.finished_episodes:
        for name in run.finished_episodes[0]:
            mean = float(np.mean([e[name] for e in run.finished_episodes]))
            if np.isfinite(mean):  # a task that reports no position has no distance
                row[f"episode/{name}"] = mean
        run.finished_episodes.clear()
    row |= {f"seconds/{name}": value for name, value in dataclasses.asdict(at.clock).items()}
    row["env_steps/without_prefill"] = at.env_steps - at.prefill_env_steps
    row["env_steps/per_second"] = steps_per_second
    row |= memory_in_use() | looks
    run.metrics.write(at.env_steps, row, histograms)
    return row


def memory_in_use() -> dict[str, float]:
    """Bytes in use on the device, where the backend says so."""
    stats = jax.local_devices()[0].memory_stats() or {}
    names = {"bytes_in_use": "memory/device_bytes", "peak_bytes_in_use": "memory/device_peak_bytes"}
    return {name: float(stats[key]) for key, name in names.items() if key in stats}


# --- the loop --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Compiled:
    """The device functions, each compiled exactly once."""

    insert: Callable[[TrainState, Transitions], TrainState]
    warmup: Callable[[TrainState, Transitions], tuple[TrainState, Output]]
    learn: Callable[[TrainState, Transitions], tuple[TrainState, Output]]
    finite: Callable[[TrainState], Any]
    evaluated: Callable[[TrainState], Params]


def compile_iterations(iterations: Iterations, state: TrainState, config: Config, spec: EnvSpec) -> Compiled:
    """Ahead-of-time compilation with the state donated; says what it does and how long it took."""
    chunk = empty_chunk(config.loop.env_steps_per_iteration, spec)

    def compiled(name: str, function: Callable[..., Any], example: Transitions) -> Callable[..., Any]:
        with announced(f"compiling {name}"):
            return jax.jit(function, donate_argnums=0).lower(state, example).compile()

    with announced("compiling the whole iteration"):
        learn = compile_learning(iterations, config, state, chunk).learn
    return Compiled(
        insert=compiled("the replay", iterations.insert, empty_chunk(INSERT_CHUNK, spec)),
        warmup=compiled("the denoiser's update", iterations.warmup, chunk),
        learn=learn,
        finite=jax.jit(iterations.finite),
        evaluated=iterations.evaluated,
    )


def open_run(config: Config, folder: Path) -> Run:
    """Opens or creates the run folder and everything the host needs.

    Raises:
      ConfigError: an unknown environment, a folder with another configuration, a foreign folder.
    """
    configs.validate(config)
    collector = Collector(config.env, config.seed)
    spec = collector.spec
    run_folder, environment = RunFolder(folder), describe_environment()
    run_folder.check_has_policy()
    for warning in run_folder.check(config, environment):
        announce(warning)
    # With overlap a chunk is added while the device still asks for states that it displaces.
    kept = config.loop.replay_capacity + config.loop.env_steps_per_iteration
    simulator_log = SimulatorLog(kept, collector.simulator_state_size)
    host = host_for(config, simulator_log.get)
    lock = run_folder.lock()
    run_folder.record(config, environment)
    return Run(
        lock=lock,
        config=config,
        spec=spec,
        folder=folder,
        collector=collector,
        transitions=TransitionLog(folder / "replay"),
        simulator_log=simulator_log,
        host=host,
        checkpoints=Checkpoints(folder / "checkpoints"),
        metrics=MetricsLog(folder),
        behaviour=evaluation.make_behaviour(config, spec),
        at=Progressing(),
    )


def train(config: Config, folder: Path) -> Result:
    """Algorithm 3 from wherever the run folder is to ``config.loop.total_env_steps``.

    Raises:
      ConfigError: see :func:`open_run`.
      NonFiniteError: learning diverged; the last good checkpoint is kept.
      EnvStepError: the environment failed; the message names the episode's seed and step.
    """
    run = open_run(config, folder)
    try:
        iterations = make_iterations(config, run.spec, run.host)
        state = jax.jit(iterations.init, static_argnums=0)(config.seed)
        began = time.perf_counter()
        compiled = compile_iterations(iterations, state, config, run.spec)
        compile_seconds = time.perf_counter() - began
        restored = restore(run, state, compiled.insert, iterations.acting(state))
        run.at.clock.compiling += compile_seconds
        with StopOnSignal() as stop:
            if restored is None:
                state = prefill(run, state, compiled.insert, stop)
                require_windows(run, state)
                actors = Actors(*(jax.tree.map(jnp.copy, iterations.acting(state)) for _ in range(2)))
                save(run, state, actors)
            else:
                state, actors = restored
            return _learn(run, compiled, state, actors, stop)
    finally:
        run.metrics.close()
        run.collector.close()
        run.lock.close()


def _learn(run: Run, compiled: Compiled, state: TrainState, actors: Actors, stop: StopOnSignal) -> Result:
    config, at, loop = run.config, run.at, run.config.loop
    look = has_simulator_state(run.collector.env) and loop.error_trajectories > 0
    imagine = evaluation.make_imagine_from_replay(config, run.spec, loop.error_trajectories, run.host) if look else None
    cpu = jax.local_devices(backend="cpu")[0]
    session_began, session_first_step, saved_at = time.perf_counter(), at.env_steps, at.env_steps
    previous: Output | None = None
    with contextlib.closing(Progress(total=loop.total_env_steps, initial=at.env_steps)) as progress:
        while at.env_steps < loop.total_env_steps and not stop.requested:
            began, before = time.perf_counter(), at.env_steps
            chunk = collect(run, jax.device_put(actors.acting, cpu))
            collected = time.perf_counter()
            learning = before - at.prefill_env_steps >= loop.denoiser_warmup_env_steps
            state, output = (compiled.learn if learning else compiled.warmup)(state, chunk)
            actors = actors.after(output.actor_params, loop.overlap)
            # Without overlap the next action needs this iteration's policy; waiting here keeps the clock honest.
            jax.block_until_ready(actors.acting)
            # Never act with a policy whose own update was not looked at: with overlap that is the previous one.
            looked_at = previous if loop.overlap else output
            if looked_at is not None:
                check_finite(looked_at.finite, FINITE_OUTPUTS, at.env_steps, run.folder)
            previous = output
            at.clock.collecting += collected - began
            at.clock.training += time.perf_counter() - collected

            over = at.env_steps >= loop.total_env_steps
            due = {
                what: over or crossed(before, at.env_steps, every)
                for what, every in (
                    ("evaluate", loop.eval_every_env_steps),
                    ("log", loop.log_every_env_steps),
                    ("save", loop.checkpoint_every_env_steps),
                )
            }
            if any(due.values()):
                require_windows(run, state)  # a small replay may have lost what it had
                check_finite(output.finite, FINITE_OUTPUTS, at.env_steps, run.folder)
                check_finite(compiled.finite(state), FINITE_STATES, at.env_steps, run.folder)
            looks = evaluate(run, state, compiled.evaluated, imagine) if due["evaluate"] else {}
            if due["log"] or looks:
                seconds = time.perf_counter() - session_began
                row = log_row(run, output, looks, (at.env_steps - session_first_step) / seconds)
                delta, sigma = row.get("guidance/delta"), row.get("guidance/sigma")
                progress.update(at.env_steps, at.last_return, delta, sigma)
            if due["save"]:
                save(run, state, actors)
                saved_at = at.env_steps
            progress.update(at.env_steps)
        if saved_at != at.env_steps:
            check_finite(output.finite, FINITE_OUTPUTS, at.env_steps, run.folder)
            check_finite(compiled.finite(state), FINITE_STATES, at.env_steps, run.folder)
            save(run, state, actors)
    return Result(at.env_steps, stop.signal_name, at.last_return, run.folder)
