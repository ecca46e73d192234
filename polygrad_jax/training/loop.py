"""Algorithm 3, the host's side, from top to bottom: open, fill, then collect, learn, look and save until the end.

All learning is one call (``step.py``). What happens at an environment step depends on the configuration and the seed
only, never on how fast the machine is, so that a resumed run is the uninterrupted one.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import jax
import jax.numpy as jnp
import numpy as np

from polygrad_jax import config as configs
from polygrad_jax.agents.agent_table import make_agent
from polygrad_jax.config import INSERT_CHUNK, Config, ConfigError, EnvSpec
from polygrad_jax.data import normaliser as normalisers
from polygrad_jax.data.simulator_log import SimulatorLog
from polygrad_jax.data.transition_log import TransitionLog, TransitionLogError, TransitionRecord, checksum_of
from polygrad_jax.envs.collector import Collector
from polygrad_jax.envs.mujoco_state import no_simulator_states
from polygrad_jax.envs.random_steps import repeatable_warnings
from polygrad_jax.runs import physics
from polygrad_jax.runs.checkpoints import Checkpoints, export_npz, why_standardised_otherwise
from polygrad_jax.runs.console import Progress, announce
from polygrad_jax.runs.metrics_log import Histogram, MetricsLog
from polygrad_jax.runs.run_folder import RunFolder, describe_environment, one_line_on_disk_trouble
from polygrad_jax.runs.stop_signals import StopOnSignal
from polygrad_jax.runs.tensorboard_page import hyperparameters
from polygrad_jax.training.collecting import Collecting, empty_chunk, make_decide, on_the_host
from polygrad_jax.training.evaluating import (
    Against,
    beats,
    errors_of_imagination,
    evaluate_policy,
    evaluation_row,
    evaluation_seed,
    make_against,
)
from polygrad_jax.training.step import (
    FINITE_OUTPUTS,
    FINITE_STATES,
    Compiled,
    NonFiniteError,
    Step,
    Steps,
    compile_init,
    compile_learn,
    compile_warmup,
    make_steps,
)
from polygrad_jax.training.train_state import Counters, TrainState, with_rows, without_optimisers, without_rows
from polygrad_jax.training.units import say_units
from polygrad_jax.training.windows import (
    Window,
    limit_warnings,
    require_windows,
    say_uncovered,
    uncovered_share,
    window_of,
)
from polygrad_jax.types import Agent, Transitions, WorldModel
from polygrad_jax.world_models.model_table import make_world_model_for_agent

HISTOGRAMS = {"guidance/standardised_histogram": ("guidance/standardised_actions", np.linspace(-4.0, 4.0, 41))}
"""Counts that a step makes: the name under which they are logged, and the edges of their bins."""


@dataclass
class Interval:
    """The metrics since the last row: sums over the steps that had them, and counts of histograms."""

    sums: dict[str, list[float]] = field(default_factory=dict)  # [sum, number of steps] by name
    counts: dict[str, list[int]] = field(default_factory=dict)

    def add(self, sums: Mapping[str, float], steps: int = 1, counts: Mapping[str, Any] | None = None) -> None:
        """Count the metrics of some steps, summed over them."""
        for name, value in sums.items():
            entry = self.sums.setdefault(name, [0.0, 0])
            entry[0] += value
            entry[1] += steps
        for name, new in (counts or {}).items():
            self.counts[name] = (np.asarray(new, np.int64) + self.counts.get(name, 0)).tolist()

    def take(self) -> tuple[dict[str, float], dict[str, Histogram]]:
        """Return means and histograms, and begin the next interval."""
        means = {name: total / steps for name, (total, steps) in self.sums.items()}
        histograms = {}
        for name, counts in self.counts.items():
            logged, edges = HISTOGRAMS[name]
            histograms[logged] = Histogram(edges, np.asarray(counts))
        self.sums, self.counts = {}, {}
        return means, histograms


@dataclass
class Run:
    """The parts of one run on the host."""

    lock: IO[bytes]
    config: Config
    spec: EnvSpec
    folder: Path
    environment: dict[str, Any]
    """Of this session, for ``environment.json``."""
    world_model: WorldModel
    agent: Agent
    collecting: Collecting
    checkpoints: Checkpoints
    metrics: MetricsLog
    interval: Interval = field(default_factory=Interval)

    @property
    def window(self) -> Window:
        """What a training window is."""
        return window_of(self.config, self.world_model)

    @property
    def at(self) -> Counters:
        """Where the run is."""
        return self.collecting.at

    def close(self) -> None:
        """Close files and environment and let another process train here."""
        self.metrics.close()
        self.collecting.collector.close()
        self.lock.close()


@dataclass(frozen=True)
class Result:
    """How a run ended."""

    env_steps: int
    stopped_by: str | None
    """The name of the signal that stopped it, or None."""
    last_return: float | None
    folder: Path


def train(config: Config, folder: Path | str, mixed_physics: bool = False) -> Result:
    """Run Algorithm 3 from wherever the run folder is to ``config.loop.total_env_steps``.

    Args:
      mixed_physics: resumes a run that another version of MuJoCo simulated.

    Raises:
      ConfigError: see :func:`begin`.
      NonFiniteError: learning diverged; the last good checkpoint is kept.
      EnvStepError: the environment failed; the message names the episode's seed and step.
    """
    run = begin(config, Path(folder), mixed_physics)
    try:
        steps = make_steps(config, run.spec, run.world_model, run.agent)
        state = compile_init(steps)
        programs = Programs(steps, config, state, run.spec)
        with StopOnSignal() as stop, contextlib.closing(programs):
            insert = compile_insert(steps, state, run.spec)
            restored = restore(run, state, insert)
            RunFolder(run.folder).record(config, run.environment)
            if restored is None:
                state = run.collecting.prefill(state, insert, lambda: stop.requested)
                require_windows(state.replay, run.window)
                save(run, state)
            else:
                state = restored
            say_uncovered(state.replay, run.window)
            say_units(config, normalisers.to_normaliser(state.replay.moments))
            return learn(run, steps, programs, state, stop)
    finally:
        run.close()


def begin(config: Config, folder: Path, mixed_physics: bool = False) -> Run:
    """Open or create the run folder and everything the host needs.

    Raises:
      ConfigError: an unknown environment, a folder with another configuration or physics, a foreign folder.
    """
    configs.validate(config)
    warnings = repeatable_warnings(config.env)  # closes its copies: a task may allow one
    collector = Collector(config.env, config.seed)
    spec = collector.spec
    run_folder = RunFolder(folder)
    environment = describe_environment() | {physics.COLUMN: physics.todays_mujoco(config.env, collector.env)}
    run_folder.check_has_policy()
    for warning in (*run_folder.check(config, environment, mixed_physics), *warnings):
        announce(warning)
    if collector.why_no_simulator_states is not None:
        announce(no_simulator_states(config.env, collector.why_no_simulator_states))
    simulator_log = SimulatorLog(config.loop.replay_capacity, collector.simulator_state_size)
    world_model = make_world_model_for_agent(config, spec, simulator_log.get)
    agent = make_agent(config, spec, world_model)
    for warning in limit_warnings(collector.env.name, collector.env.time_limit, window_of(config, world_model)):
        announce(warning)
    lock = run_folder.lock()
    if not run_folder.holds_a_run():  # a folder that turns out to be damaged stays as it is
        run_folder.record(config, environment)
    with one_line_on_disk_trouble(folder / "replay"):
        transitions = TransitionLog(folder / "replay")
    decide = make_decide(agent)
    collecting = Collecting(config, spec, collector, transitions, simulator_log, agent, decide, Counters())
    checkpoints = Checkpoints(folder / "checkpoints")
    metrics = MetricsLog(folder, hyperparameters=hyperparameters(config))
    return Run(lock, config, spec, folder, environment, world_model, agent, collecting, checkpoints, metrics)


# --- compiling -------------------------------------------------------------------------------------------------------


class Programs:
    """The compiled steps. Another thread compiles them while this one fills the replay or reads it from the disk."""

    def __init__(self, steps: Steps, config: Config, state: TrainState, spec: EnvSpec):
        """Begin to compile; only shapes and dtypes of ``state`` matter."""
        like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, weak_type=x.weak_type), state)
        chunk = empty_chunk(config.loop.env_steps_per_policy_update, spec)
        self._began = self._ended = time.perf_counter()
        # One thread: XLA compiles one program at a time on a CPU, and what is needed first comes first.
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="compiling")
        side_by_side = config.loop.side_by_side
        self._warmup: Future | None = None
        if side_by_side or config.model_training.warmup_env_steps > 0:
            self._warmup = self._pool.submit(self._timed, compile_warmup, steps, like, chunk, side_by_side)
        self._learn = self._pool.submit(self._timed, self._compile_learn, steps, like, chunk, side_by_side)

    def _compile_learn(self, steps: Steps, like: TrainState, chunk: Transitions, side_by_side: bool) -> Compiled:
        return compile_learn(steps, like, chunk, side_by_side, self._warmup and self._warmup.result())

    def _timed(self, compile_step: Callable[..., Any], *given: Any) -> Any:
        program = compile_step(*given)
        self._ended = time.perf_counter()
        return program

    def ready(self, warming_up: bool, interrupted: Callable[[], bool]) -> Step | None:
        """Return the next step once it is compiled; None if ``interrupted`` said so while it was waited for."""
        program = self._warmup if warming_up else self._learn
        if not program.done():
            announce("waiting for the compiler ...")
        while not program.done() and not interrupted():
            concurrent.futures.wait([program], timeout=0.2)
        return program.result().step if program.done() else None

    @property
    def seconds(self) -> float:
        """Seconds from the beginning to the end of the compilation so far."""
        return self._ended - self._began

    def close(self) -> None:
        """Give up what has not begun to compile."""
        self._pool.shutdown(wait=False, cancel_futures=True)


def compile_insert(steps: Steps, state: TrainState, spec: EnvSpec) -> Callable[[TrainState, Transitions], TrainState]:
    """Compile what fills the replay; the state is donated."""
    return jax.jit(steps.insert, donate_argnums=0).lower(state, empty_chunk(INSERT_CHUNK, spec)).compile()


# --- saving and resuming ---------------------------------------------------------------------------------------------


def save(run: Run, state: TrainState) -> None:
    """Save a checkpoint of everything: what learns, counters, environment, and the transitions so far."""
    with one_line_on_disk_trouble(run.folder / "replay"):
        run.collecting.transitions.flush()
    host = {
        "counters": dataclasses.asdict(run.at),
        "collecting": run.collecting.snapshot(),
        "interval": dataclasses.asdict(run.interval),
        "transitions": run.collecting.transitions.checksum,
        "config": configs.to_dict(run.config),
    }
    run.checkpoints.save(run.at.env_steps, {"train_state": jax.device_get(without_rows(state))}, host)


def restore(
    run: Run, state: TrainState, insert: Callable[[TrainState, Transitions], TrainState]
) -> TrainState | None:
    """Resume from the newest good checkpoint; None if there is none. The order: arrays, replay, environment, logs.

    Transitions and logs are cut back to the checkpoint at the end: a folder that is refused stays as it is.

    Raises:
      ConfigError: an older version standardised otherwise what was stored.
      TransitionLogError: the stored transitions are not those of the checkpoint.
    """
    found = run.checkpoints.restore({"train_state": without_rows(state)})
    if found is None:
        run.collecting.transitions.truncate(0)
        run.metrics.truncate(-1)
        return None
    env_steps, arrays, host = found
    saved: TrainState = arrays["train_state"]
    if (reason := why_standardised_otherwise(run.folder, saved.replay.moments)) is not None:
        raise ConfigError(f"{reason}; allowed: a new run")
    run.collecting.at = Counters.from_json(host["counters"])
    run.interval = Interval(**host["interval"])
    stored = run.collecting.transitions.load(env_steps)
    learnt_from = checksum_of(stored)
    if host.get("transitions") not in (None, learnt_from):  # None: saved by an older version
        raise TransitionLogError(
            f"{run.folder / 'replay'} does not belong to the checkpoint at step {env_steps}: its transitions are not "
            "those that were learnt from; restore the folder, or resume from an earlier checkpoint"
        )
    refilled = run.collecting.refill(state, insert, stored)
    counters = ("total", "head", "tail", "open_length")
    more = int(refilled.replay.tail) - int(saved.replay.tail)
    if more > 0 and more == first_ends(run.collecting.transitions.load(env_steps)):
        counters = ("total", "open_length")  # saved by a version in which these episodes had no window
    for counter in counters:
        have, want = int(getattr(refilled.replay, counter)), int(getattr(saved.replay, counter))
        if have != want:
            raise TransitionLogError(
                f"{run.folder / 'replay'} does not belong to the checkpoint at step {env_steps}: its {counter} is "
                f"{have}, the checkpoint's {want}; restore the folder, or resume from an earlier checkpoint"
            )
    run.collecting.restore(host["collecting"])
    run.metrics.truncate(env_steps)
    run.collecting.transitions.truncate(env_steps)
    run.collecting.transitions.checksum = learnt_from
    return with_rows(saved, refilled)


def first_ends(transitions: TransitionRecord) -> int:
    """Count the episodes that ended at their first step."""
    ended = transitions.terminals | transitions.truncations
    begins = np.concatenate([[True], ended[:-1]])
    return int((transitions.terminals & begins).sum())


# --- looking ---------------------------------------------------------------------------------------------------------


def check_finite(finite: Any, names: tuple[str, ...], env_step: int, folder: Path) -> None:
    """Stop the run where a component is not finite.

    Raises:
      NonFiniteError: naming the component, the environment step, and what remains.
    """
    finite = np.asarray(finite)
    if not finite.all():
        bad = ", ".join(name for name, good in zip(names, finite, strict=True) if not good)
        raise NonFiniteError(
            f"not finite at environment step {env_step}: {bad}; the last good checkpoint is in {folder / 'checkpoints'}"
        )


def evaluate(run: Run, state: TrainState, against: Against | None) -> dict[str, Any]:
    """Evaluate the policy (20 episodes, mean action; a row of ``eval.csv``) and return the errors of imagination.

    Raises:
      ConfigError: the world model is the simulator, which has turned out not to be the task.
    """
    began = time.perf_counter()
    at, config, agent = run.at, run.config, run.agent
    params = jax.device_get(agent.evaluated(state.agent, state.world_model))
    seed, episodes = evaluation_seed(config.seed, at.env_steps), config.loop.eval_episodes
    known = {"spare": run.collecting.collector.lent, "most_steps": at.longest_episode}
    row = evaluation_row(evaluate_policy(config.env, agent, run.collecting.decide, params, episodes, seed, **known))
    at.last_return = row["return_mean"]
    if beats(at.last_return, at.best_return):
        at.best_return = at.last_return
        export_npz(run.folder / "best.npz", learnt(state) | {"env_steps": np.int64(at.env_steps)})
    run.metrics.write_evaluation(at.env_steps, row, {physics.COLUMN: physics.todays_mujoco(config.env)})
    errors = {} if against is None else errors_of_imagination(against, run.collecting, state)
    at.clock.evaluating += time.perf_counter() - began
    return errors


def learnt(state: TrainState) -> dict[str, Any]:
    """Return what it takes to look at a run without resuming it: agent, world model and statistics, on the host."""
    return jax.device_get(
        {
            "agent": without_optimisers(state.agent),
            "world_model": without_optimisers(state.world_model),
            "moments": state.replay.moments,
        }
    )


def log_row(run: Run, looks: dict[str, Any], steps_per_second: float) -> dict[str, Any]:
    """Write one row of metrics: means over the interval, the episodes that ended in it, evaluation, time, memory."""
    at = run.at
    row, histograms = run.interval.take()
    episodes = run.collecting.finished_episodes
    if episodes:
        for name in episodes[0]:
            mean = float(np.mean([e[name] for e in episodes]))
            if np.isfinite(mean):  # a task that reports no position has no distance
                row[f"episode/{name}"] = mean
        episodes.clear()
    row |= {f"seconds/{name}": value for name, value in dataclasses.asdict(at.clock).items()}
    row["env_steps/without_prefill"] = at.env_steps - at.prefill_env_steps
    row["env_steps/per_second"] = steps_per_second
    row |= memory_in_use() | looks
    run.metrics.write(at.env_steps, row, histograms)
    return row


def memory_in_use() -> dict[str, float]:
    """Return the bytes in use on the device, where the backend says so."""
    stats = jax.local_devices()[0].memory_stats() or {}
    names = {"bytes_in_use": "memory/device_bytes", "peak_bytes_in_use": "memory/device_peak_bytes"}
    return {name: float(stats[key]) for key, name in names.items() if key in stats}


# --- the loop --------------------------------------------------------------------------------------------------------


def crossed(before: int, after: int, every: int) -> bool:
    """Whether a multiple of ``every`` lies in ``(before, after]``."""
    return before // every < after // every


def learn(run: Run, steps: Steps, programs: Programs, state: TrainState, stop: StopOnSignal) -> Result:
    """Collect, learn, look and save until the budget is spent or a signal asks to stop."""
    config, at, loop, folder = run.config, run.at, run.config.loop, run.folder
    finite = jax.jit(steps.finite)
    against = make_against(run.collecting, run.world_model)
    copied = jax.jit(lambda tree: jax.tree.map(jnp.copy, tree))
    acting = copied(run.agent.acting(state.agent, state.world_model))
    session_began, session_first_step, saved_at = time.perf_counter(), at.env_steps, at.env_steps
    compiled_before = at.clock.compiling
    with contextlib.closing(Progress(total=loop.total_env_steps, initial=at.env_steps)) as progress:
        while at.env_steps < loop.total_env_steps and not stop.requested:
            before = at.env_steps
            warming_up = before - at.prefill_env_steps < config.model_training.warmup_env_steps
            step = programs.ready(warming_up, lambda: stop.requested)
            if step is None:
                break
            # Algorithm 3, lines 4 and 5: act, store
            began = time.perf_counter()
            chunk = run.collecting.collect(on_the_host(acting))
            collected = time.perf_counter()
            # lines 6 to 9: learn
            state, output = step(state, chunk)
            acting = jax.block_until_ready(output.acting)
            check_finite(output.finite, FINITE_OUTPUTS, at.env_steps, folder)
            run.interval.add(output.metrics.by_name(), counts=output.metrics.counts)
            at.clock.collecting += collected - began
            at.clock.training += time.perf_counter() - collected
            at.clock.compiling = compiled_before + programs.seconds
            if not warming_up:
                progress.learnt(at.env_steps)

            over = at.env_steps >= loop.total_env_steps
            evaluate_now, log_now, save_now = (
                over or crossed(before, at.env_steps, every)
                for every in (loop.eval_every_env_steps, loop.log_every_env_steps, loop.checkpoint_every_env_steps)
            )
            if evaluate_now or log_now or save_now:
                require_windows(state.replay, run.window)  # a small replay may have lost what it had
                check_finite(finite(state), FINITE_STATES, at.env_steps, folder)
            looks = evaluate(run, state, against) if evaluate_now else {}
            if log_now or evaluate_now:
                looks |= uncovered_share(state.replay, run.window)
                seconds = time.perf_counter() - session_began
                row = log_row(run, looks, (at.env_steps - session_first_step) / seconds)
                progress.update(at.env_steps, at.last_return, row.get("guidance/delta"), row.get("guidance/sigma"))
            if save_now:
                save(run, state)
                saved_at = at.env_steps
            progress.update(at.env_steps)
        if saved_at != at.env_steps:
            check_finite(finite(state), FINITE_STATES, at.env_steps, folder)
            save(run, state)
    # A signal during the last evaluation stopped nothing.
    stopped_by = stop.signal_name if at.env_steps < loop.total_env_steps else None
    return Result(at.env_steps, stopped_by, at.last_return, folder)
