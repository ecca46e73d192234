"""Algorithm 3, the host's side, from top to bottom: open, fill, then collect, learn, look and save until the end.

All learning is one call (``step.py``), for one seed or for several at once (``seeds.py``). What happens at an
environment step depends on the configuration and the seed only, never on how fast the machine is, so that a resumed
run is the uninterrupted one.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import functools
import math
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import IO, Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from polygrad_jax import config as configs
from polygrad_jax.agents.agent_table import make_agent
from polygrad_jax.config import INSERT_CHUNK, Config, ConfigError, EnvConfig, EnvSpec
from polygrad_jax.data import normaliser as normalisers
from polygrad_jax.data.simulator_log import SimulatorLog
from polygrad_jax.data.transition_log import TransitionLog, TransitionLogError, TransitionRecord, checksum_of
from polygrad_jax.envs.collector import Collector
from polygrad_jax.envs.mujoco_state import no_simulator_states
from polygrad_jax.envs.random_steps import repeatable_warnings, why_not_side_by_side
from polygrad_jax.envs.rendering import why_no_pictures
from polygrad_jax.runs import physics
from polygrad_jax.runs.checkpoints import Checkpoints, export_npz, load_npz, why_standardised_otherwise
from polygrad_jax.runs.compilation_cache import use_compilation_cache
from polygrad_jax.runs.console import Progress, announce
from polygrad_jax.runs.evaluation_film import EvaluationFilm
from polygrad_jax.runs.metrics_log import Histogram, MetricsLog
from polygrad_jax.runs.run_folder import BEST_FILE, RunFolder, describe_environment, one_line_on_disk_trouble
from polygrad_jax.runs.seed_folders import check_folder_of_seeds, seed_folder
from polygrad_jax.runs.stop_signals import StopOnSignal
from polygrad_jax.runs.tensorboard_page import hyperparameters
from polygrad_jax.training import hosts
from polygrad_jax.training.collecting import Collecting, empty_chunk, make_decide, on_the_host
from polygrad_jax.training.devices import make_mesh, place_state, sharding_of_state
from polygrad_jax.training.evaluating import (
    Against,
    beats,
    errors_of_imagination,
    evaluate_policy,
    evaluation_row,
    evaluation_seed,
    make_against,
)
from polygrad_jax.training.seeds import of_each_seed, of_seed, over_seeds, resumed_together, stacked
from polygrad_jax.training.step import (
    FINITE_OUTPUTS,
    FINITE_STATES,
    Compiled,
    NonFiniteError,
    Output,
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
    require_capacity,
    require_windows,
    say_uncovered,
    uncovered_share,
    window_of,
)
from polygrad_jax.types import Agent, Transitions, WorldModel
from polygrad_jax.world_models.model_table import SIMULATOR, make_world_model_for_agent

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
    """The parts of one run, of one seed, on the host."""

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
    saved_at: int | None = None
    """Environment steps of the checkpoint that this session saved last, or goes on from."""
    learnt_from: list[int] | None = None
    """Checksum of the transitions of the checkpoint that this session goes on from."""

    @property
    def window(self) -> Window:
        """What a training window is."""
        return window_of(self.config, self.world_model)

    @property
    def at(self) -> Counters:
        """Where the run is."""
        return self.collecting.at

    @property
    def learning_env_steps(self) -> int:
        """The environment steps without the random prefill, of which all seeds that learn together have as many."""
        return self.at.env_steps - self.at.prefill_env_steps

    @property
    def over(self) -> bool:
        """Whether the run has spent its environment steps."""
        return self.at.env_steps >= self.config.loop.total_env_steps

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


def train(config: Config, folder: Path | str, mixed_physics: bool = False, devices: int = 1) -> Result:
    """Run Algorithm 3 from wherever the run folder is to ``config.loop.total_env_steps``.

    Args:
      mixed_physics: resumes a run that another version of MuJoCo simulated.
      devices: of this host, among which trajectories and batches are shared out. Where ``jax.distributed`` has joined
        several hosts, all call this, all devices of all of them take part, and the first host alone needs the folder.

    Raises:
      ConfigError: see :func:`begin`; the world model is the simulator, and there are several hosts.
      NonFiniteError: learning diverged; the last good checkpoint is kept.
      EnvStepError: the environment failed; the message names the episode's seed and step.
    """
    return train_together([(config, Path(folder))], mixed_physics, devices)[0]


def train_seeds(
    config: Config, seeds: Sequence[int], folder: Path | str, mixed_physics: bool = False, devices: int = 1
) -> list[Result]:
    """Run Algorithm 3 for several seeds as one program, each as :func:`train` would in ``FOLDER/seedS``.

    The results are those of runs apart within rounding. Each folder is a run's: it can be looked at, and gone on with
    alone.

    Raises:
      ConfigError: see :func:`begin`; no seeds, or one twice; a folder of something else; the world model is the
        simulator, whose states the host keeps for one run; copies of the task disturb each other.
      NonFiniteError, EnvStepError: see :func:`train`; one seed's failure stops all.
    """
    if not seeds or len(set(seeds)) < len(seeds):
        raise ConfigError(f"seeds are {list(seeds)}; allowed: one or more, each once")
    if len(seeds) > 1 and config.world_model == SIMULATOR:
        raise ConfigError(f"world_model is simulator, and there are {len(seeds)} seeds; allowed: one")
    if len(seeds) > 1 and (why_not := why_not_side_by_side(config.env)) is not None:
        raise ConfigError(f"{config.env.name}: {why_not}, and there are {len(seeds)} seeds; allowed: one in a program")
    check_folder_of_seeds(Path(folder), seeds)
    wanted = [(dataclasses.replace(config, seed=seed), seed_folder(Path(folder), seed)) for seed in seeds]
    return train_together(wanted, mixed_physics, devices)


def train_together(wanted: Sequence[tuple[Config, Path]], mixed_physics: bool, devices: int) -> list[Result]:
    """Train in the folders that are wanted, with configurations that differ in the seed only, until all are over."""
    mesh = make_mesh(devices, len(wanted))
    if hosts.lends():
        follow()
        return [Result(0, None, None, folder) for _, folder in wanted]
    # Entries of ``environment.json`` where they are not 1: sums are rounded otherwise.
    used = devices if mesh is None else mesh.size
    how_many = {name: n for name, n in (("seeds_together", len(wanted)), ("devices_used", used)) if n > 1}
    with contextlib.ExitStack() as opened:
        opened.callback(hosts.let_go)
        if hosts.several() and wanted[0][0].world_model == SIMULATOR:
            raise ConfigError("world_model is simulator on several hosts; allowed: one host, which steps it")
        runs: list[Run] = []
        said: set[str] = set()
        for config, folder in wanted:
            runs.append(begin(config, folder, mixed_physics, said, how_many))
            opened.callback(runs[-1].close)
        first, seeds = runs[0], len(runs)
        hosts.share_run(first.config, first.spec)
        steps = make_steps(first.config, first.spec, first.world_model, first.agent)
        states = compile_init(steps, [run.config.seed for run in runs])
        together = over_seeds(make_steps(first.config, first.spec, first.world_model, first.agent, mesh), seeds, mesh)
        programs = Programs(together, first.config, states[0], first.spec, seeds, mesh)
        with StopOnSignal() as stop, contextlib.closing(programs):
            insert = compile_insert(steps, states[0], first.spec)
            states = restore_or_prefill(runs, states, insert, stop)
            say_units(first.config, normalisers.to_normaliser(states[0].replay.moments))
            state = stacked(states)
            del states  # all replays once more
            hosts.share_state(state)
            if mesh is not None:
                state = place_state(state, mesh, seeds)
            return learn(runs, together, programs, state, stop)


def follow() -> None:
    """Take the steps of the run that another host leads, until it ends; nothing is written here."""
    mesh = make_mesh(1, 1)
    with hosts.no_signals(), contextlib.ExitStack() as opened:
        programs: Programs | None = None
        like = chunk = state = None
        while (message := hosts.receive())[0] != hosts.END:
            kind, bits = message
            if kind == hosts.BEGIN:
                config, spec = hosts.told(bits)
                use_compilation_cache(config)
                world_model = make_world_model_for_agent(config, spec)
                steps = make_steps(config, spec, world_model, make_agent(config, spec, world_model), mesh)
                like = jax.eval_shape(steps.init, np.uint32(0))
                chunk = empty_chunk(config.loop.env_steps_per_policy_update, spec)
                programs = opened.enter_context(contextlib.closing(Programs(steps, config, like, spec, 1, mesh)))
            elif kind == hosts.STATE:
                state = place_state(hosts.unpacked(bits, like), mesh, 1)
            else:
                step = programs.ready(kind == hosts.WARM_UP, lambda: False)
                state, output = step(state, hosts.unpacked(bits, chunk))
                jax.block_until_ready(output)


def restore_or_prefill(
    runs: Sequence[Run],
    states: Sequence[TrainState],
    insert: Callable[[TrainState, Transitions], TrainState],
    stop: StopOnSignal,
) -> list[TrainState]:
    """Bring each run to where it resumes, or to the end of its random prefill; ``states`` are donated."""
    resumed: list[int | None] = [None]
    if len(runs) > 1:
        over = [RunFolder(run.folder).newest_step() >= run.config.loop.total_env_steps for run in runs]
        resumed = resumed_together([run.folder for run in runs], [saved_moments(run) for run in runs], over)
    restored = [
        restore(run, state, insert, env_steps) for run, state, env_steps in zip(runs, states, resumed, strict=True)
    ]
    for run in runs:  # all were accepted
        cut_back(run)
        RunFolder(run.folder).record(run.config, run.environment)
    begun = []
    for run, state, found in zip(runs, states, restored, strict=True):
        if found is None:
            found = run.collecting.prefill(state, insert, lambda: stop.requested)
            require_windows(found.replay, run.window)
        begun.append(found)
    for run, state in zip(runs, begun, strict=True):
        if run.saved_at is None:
            save(run, state)
        say_uncovered(state.replay, run.window)
    return begun


def begin(
    config: Config,
    folder: Path,
    mixed_physics: bool = False,
    said: set[str] | None = None,
    how_many: Mapping[str, int] | None = None,
) -> Run:
    """Open or create the run folder and everything the host needs.

    Args:
      said: warnings that need no saying again, to which its own are added.
      how_many: seeds and devices, for ``environment.json``.

    Raises:
      ConfigError: an unknown environment, a folder with another configuration or physics, a foreign folder.
    """
    configs.validate(config)
    said = set() if said is None else said
    warnings = repeatable_warnings(config.env)  # closes its copies: a task may allow one
    with contextlib.ExitStack() as opened:
        collector = Collector(config.env, config.seed)
        opened.callback(collector.close)
        spec = collector.spec
        run_folder = RunFolder(folder)
        simulated_by = {physics.COLUMN: physics.todays_mujoco(config.env, collector.env)}
        environment = describe_environment() | dict(how_many or {}) | simulated_by
        run_folder.check_has_policy()
        for warning in (*run_folder.check(config, environment, mixed_physics), *warnings):
            announce_new(warning, said)
        if collector.why_no_simulator_states is not None:
            announce_new(no_simulator_states(config.env, collector.why_no_simulator_states), said)
        simulator_log = SimulatorLog(config.loop.replay_capacity, collector.simulator_state_size)
        world_model = make_world_model_for_agent(config, spec, simulator_log.get)
        agent = make_agent(config, spec, world_model)
        window = window_of(config, world_model)
        require_capacity(config.loop.replay_capacity, window)
        for warning in limit_warnings(collector.env.name, collector.env.time_limit, window):
            announce_new(warning, said)
        for warning in config_warnings(config):
            announce_new(warning, said)
        lock = opened.enter_context(run_folder.lock())
        if not run_folder.holds_a_run():  # a folder that turns out to be damaged stays as it is
            run_folder.record(config, environment)
        with one_line_on_disk_trouble(folder / "replay"):
            transitions = TransitionLog(folder / "replay")
        decide = make_decide(agent)
        collecting = Collecting(config, spec, collector, transitions, simulator_log, agent, decide, Counters())
        checkpoints = Checkpoints(folder / "checkpoints")
        metrics = MetricsLog(folder, hyperparameters=hyperparameters(config))
        opened.pop_all()  # from here on they are the run's to close
        return Run(lock, config, spec, folder, environment, world_model, agent, collecting, checkpoints, metrics)


def config_warnings(config: Config) -> list[str]:
    """Return a line for each part that learns, or would, for nothing, and for a mean action far from the bounds."""
    lines, loop = [], config.loop
    before_policy = loop.prefill_env_steps + config.model_training.warmup_env_steps
    if loop.total_env_steps <= before_policy:
        lines.append(
            f"warning: loop.total_env_steps is {loop.total_env_steps}: the policy learns nothing before step "
            f"{before_policy}, after loop.prefill_env_steps and model_training.warmup_env_steps"
        )
    starts = config.value_gradient.starts
    if config.agent == "value_gradient" and config.world_model == "polygrad" and starts != "imagined":
        lines.append(
            f"warning: value_gradient.starts is {starts}: polygrad learns, and nothing is learnt from it; world_model "
            "ensemble does the same without it"
        )
    if config.env.actions == "squashed" and config.agent != "value_gradient":
        lines.append(
            f"warning: env.actions is squashed, and the mean of agent {config.agent} is already a tanh: its mean "
            f"action stays within {math.tanh(1.0):.2f} of 0; clipped reaches 1"
        )
    return lines


def announce_new(line: str, said: set[str]) -> None:
    """Say a line that was not said yet."""
    if line not in said:
        said.add(line)
        announce(line)


# --- compiling -------------------------------------------------------------------------------------------------------


class Programs:
    """The compiled steps. Another thread compiles them while this one fills the replay or reads it from the disk."""

    def __init__(
        self, steps: Steps, config: Config, state: TrainState, spec: EnvSpec, seeds: int, mesh: Mesh | None = None
    ):
        """Begin to compile; only shapes and dtypes of ``state``, that of one seed, matter."""
        axis = () if seeds == 1 else (seeds,)
        where = None if mesh is None else sharding_of_state(mesh, seeds)
        like = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(axis + x.shape, x.dtype, weak_type=x.weak_type, sharding=where), state
        )
        chunk = stacked([empty_chunk(config.loop.env_steps_per_policy_update, spec)] * seeds)
        self._began = self._ended = time.perf_counter()
        # One thread: XLA compiles one program at a time on a CPU, and what is needed first comes first.
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="compiling")
        side_by_side = config.loop.side_by_side and mesh is None  # the cores of one device
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
    run.saved_at = run.at.env_steps


def saved_moments(run: Run) -> dict[int, int]:
    """Return the environment steps of each checkpoint by those without the prefill; unreadable ones are left out."""
    moments = {}
    for env_steps, host in run.checkpoints.hosts().items():
        with contextlib.suppress(KeyError, TypeError):  # another version, or damaged
            moments[env_steps - host["counters"]["prefill_env_steps"]] = env_steps
    return moments


def restore(
    run: Run,
    state: TrainState,
    insert: Callable[[TrainState, Transitions], TrainState],
    at_most: int | None = None,
) -> TrainState | None:
    """Resume from the newest good checkpoint; None if there is none. The order: arrays, replay, environment.

    The folder stays as it is, so that it may still be refused; :func:`cut_back` is for when it was not.

    Args:
      at_most: environment steps of the checkpoint that is wanted. None: the newest.

    Raises:
      ConfigError: an older version standardised otherwise what was stored.
      TransitionLogError: the stored transitions are not those of the checkpoint.
    """
    found = run.checkpoints.restore({"train_state": without_rows(state)}, at_most)
    if found is None:
        return None
    env_steps, arrays, host = found
    if at_most not in (None, env_steps):
        raise ConfigError(
            f"checkpoint {run.checkpoints.folder / str(at_most)}, at which the other seeds are, cannot be read; "
            f"allowed: go on with each seed alone, as in --run {run.folder}"
        )
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
    if run.world_model.streamed or (more > 0 and more == first_ends(stored)):
        # Saved by a version in which episodes of one step had no window, or in which a streamed model read windows.
        counters = ("total", "open_length")
    for counter in counters:
        have, want = int(getattr(refilled.replay, counter)), int(getattr(saved.replay, counter))
        if have != want:
            raise TransitionLogError(
                f"{run.folder / 'replay'} does not belong to the checkpoint at step {env_steps}: its {counter} is "
                f"{have}, the checkpoint's {want}; restore the folder, or resume from an earlier checkpoint"
            )
    run.collecting.restore(host["collecting"])
    run.saved_at, run.learnt_from = env_steps, learnt_from
    return with_rows(saved, refilled)


def cut_back(run: Run) -> None:
    """Remove from a folder what came after the checkpoint that is gone on from: all, where there is none."""
    if run.saved_at is None:
        run.collecting.transitions.truncate(0)
        run.metrics.truncate(-1)
        return
    run.checkpoints.remove_after(run.saved_at)
    best = run.folder / BEST_FILE
    if best.exists() and load_npz(best)["env_steps"] > run.saved_at:
        best.unlink()
        run.collecting.at.best_return = None  # of a policy that is gone: the next evaluation is the best that there is
    run.metrics.truncate(run.saved_at)
    run.collecting.transitions.truncate(run.saved_at)
    run.collecting.transitions.checksum = run.learnt_from


def first_ends(transitions: TransitionRecord) -> int:
    """Count the episodes that ended at their first step."""
    ended = transitions.terminals | transitions.truncations
    begins = np.concatenate([[True], ended[:-1]])
    return int((transitions.terminals & begins).sum())


# --- looking ---------------------------------------------------------------------------------------------------------


def evaluate(run: Run, state: TrainState, against: Against | None, filmed: bool = False) -> dict[str, Any]:
    """Evaluate the policy (``eval_episodes``, mean action; a row of ``eval.csv``); return the errors of imagination.

    With ``filmed``, write the beginning of its first episode to TensorBoard.

    Raises:
      ConfigError: the world model is the simulator, which has turned out not to be the task.
    """
    began = time.perf_counter()
    at, config, agent = run.at, run.config, run.agent
    params = jax.device_get(agent.evaluated(state.agent, state.world_model))
    seed, episodes = evaluation_seed(config.seed, at.env_steps), config.loop.eval_episodes
    film = EvaluationFilm() if filmed and can_be_filmed(config.env) else None
    watch = None if film is None else film.watch
    known = {"watch": watch, "spare": run.collecting.collector.lent, "most_steps": at.longest_episode}
    row = evaluation_row(evaluate_policy(config.env, agent, run.collecting.decide, params, episodes, seed, **known))
    at.last_return = row["return_mean"]
    if beats(at.last_return, at.best_return):
        at.best_return = at.last_return
        export_npz(run.folder / BEST_FILE, learnt(state) | {"env_steps": np.int64(at.env_steps)})
    run.metrics.write_evaluation(at.env_steps, row, {physics.COLUMN: physics.todays_mujoco(config.env)})
    if film is not None:
        keep_film(run, film)
    errors = {} if against is None else errors_of_imagination(against, run.collecting, state)
    at.clock.evaluating += time.perf_counter() - began
    return errors


@functools.cache
def can_be_filmed(config: EnvConfig) -> bool:
    """Return whether a task can be drawn here; where it cannot, say so, once."""
    why_not = why_no_pictures(config)
    if why_not is not None:
        announce(f"no films of evaluations in TensorBoard: {why_not}")
    return why_not is None


def keep_film(run: Run, film: EvaluationFilm) -> None:
    """Write the film of an evaluation, and announce why it is short."""
    gif = film.gif()
    if gif is not None:
        run.metrics.write_film(run.at.env_steps, "evaluation/first_episode", gif, film.size())
    if film.trouble is not None:
        short = "no film" if gif is None else "a short film"
        announce(f"{short} of the evaluation at environment step {run.at.env_steps:,}: {film.trouble}")


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
    row["env_steps/without_prefill"] = run.learning_env_steps
    row["env_steps/per_second"] = steps_per_second
    row |= memory_in_use() | looks
    run.metrics.write(at.env_steps, row, histograms)
    return row


def memory_in_use() -> dict[str, float]:
    """Return the bytes in use on the device, where the backend says so."""
    stats = jax.local_devices()[0].memory_stats() or {}
    names = {"bytes_in_use": "memory/device_bytes", "peak_bytes_in_use": "memory/device_peak_bytes"}
    return {name: float(stats[key]) for key, name in names.items() if key in stats}


@dataclass(frozen=True)
class Session:
    """What one run needs of this session alone."""

    began: float
    first_step: int
    compiled_before: float  # seconds, in earlier sessions
    against: Against | None

    @classmethod
    def of(cls, run: Run) -> Session:
        """Return the session that begins now."""
        against = make_against(run.collecting, run.world_model)
        return cls(time.perf_counter(), run.at.env_steps, run.at.clock.compiling, against)


def is_filmed(run: Run) -> bool:
    """Return whether an evaluation now is the first one since a checkpoint was due."""
    loop, now = run.config.loop, run.at.env_steps
    since = crossed(now - loop.eval_every_env_steps, now, loop.checkpoint_every_env_steps)
    return loop.film_checkpoints and (since or run.over)


def look(run: Run, session: Session, state: TrainState, evaluate_now: bool) -> dict[str, Any]:
    """Evaluate the policy if asked to, and log a row, which is returned."""
    looks = evaluate(run, state, session.against, is_filmed(run)) if evaluate_now else {}
    looks |= uncovered_share(state.replay, run.window)
    seconds = time.perf_counter() - session.began
    return log_row(run, looks, (run.at.env_steps - session.first_step) / seconds)


# --- the loop --------------------------------------------------------------------------------------------------------


def crossed(before: int, after: int, every: int) -> bool:
    """Whether a multiple of ``every`` lies in ``(before, after]``."""
    return before // every < after // every


class Due(NamedTuple):
    """What is to be done after a step."""

    evaluate: bool
    log: bool
    save: bool

    @classmethod
    def after(cls, run: Run, before: int) -> Due:
        """Return what a run has come to since it had taken ``before`` environment steps."""
        loop = run.config.loop
        everies = (loop.eval_every_env_steps, loop.log_every_env_steps, loop.checkpoint_every_env_steps)
        return cls(*(run.over or crossed(before, run.at.env_steps, every) for every in everies))


def require_finite(
    runs: Sequence[Run], learning: Sequence[int], finite: Any, names: tuple[str, ...], rescue: Callable[[int], bool]
) -> None:
    """Stop where a component of a run that learns is not finite (``finite [S, names]``); first ``rescue`` the others.

    Raises:
      NonFiniteError: naming components, environment steps, what remains, and which runs could be rescued.
    """
    good = np.asarray(finite).reshape(len(runs), -1)
    bad = [i for i in learning if not good[i].all()]
    if not bad:
        return
    lines = []
    for i in bad:
        run, components = runs[i], ", ".join(name for name, fine in zip(names, good[i], strict=True) if not fine)
        lines.append(
            f"not finite at environment step {run.at.env_steps}: {components}; "
            f"the last good checkpoint is in {run.folder / 'checkpoints'}"
        )
    saved = [runs[i].folder.name for i in learning if i not in bad and rescue(i)]
    if len(runs) > 1:
        lines.append(f"saved at this step: {', '.join(saved) or 'none'}; each can go on alone (--run FOLDER)")
    raise NonFiniteError("; ".join(lines))


def learn(
    runs: Sequence[Run], steps: Steps, programs: Programs, state: TrainState, stop: StopOnSignal
) -> list[Result]:
    """Collect, learn, look and save until the budget is spent or a signal asks to stop.

    Several runs are at one iteration, and ``state`` has an axis for them. They come to their ends one after another,
    because their random prefills differ in length: one that is over waits for the others, and what it goes on to learn
    is not kept.
    """
    loop, warmup, seeds = runs[0].config.loop, runs[0].config.model_training.warmup_env_steps, len(runs)
    finite = jax.jit(steps.finite)
    view = hosts.here(state)  # as this host has it
    acting = of_each_seed(jax.jit(steps.acting)(view), seeds)
    sessions = [Session.of(run) for run in runs]
    no_steps = empty_chunk(loop.env_steps_per_policy_update, runs[0].spec)
    began_together = [i for i, run in enumerate(runs) if not run.over]

    def save_one(i: int) -> None:
        save(runs[i], of_seed(view, i, seeds))

    def count(i: int, outputs: Sequence[Output], took: tuple[float, float]) -> None:
        clock, metrics = runs[i].at.clock, outputs[i].metrics
        runs[i].interval.add(metrics.by_name(), counts=metrics.counts)
        clock.collecting += took[0]
        clock.training += took[1]
        clock.compiling = sessions[i].compiled_before + programs.seconds

    def look_where_due(i: int, due: Due) -> None:
        if due.evaluate or due.log:
            row = look(runs[i], sessions[i], of_seed(view, i, seeds), due.evaluate)
            delta, sigma = (row.get(f"guidance/{name}") for name in ("delta", "sigma"))
            progress.update(least_steps(runs), mean_last_return(runs), delta, sigma)

    def rescue(i: int, due: Mapping[int, Due], finish: Callable[[int], None] = lambda i: None) -> bool:
        """Finish the step of a run that is sound and save it (what is due now is due at no later step); say whether."""
        sound = bool(np.asarray(finite(view)).reshape(seeds, -1)[i].all())
        if sound:
            finish(i)
            look_where_due(i, due.get(i, Due(False, False, False)))
            save_one(i)
        return sound

    with contextlib.closing(Progress(total=loop.total_env_steps, initial=least_steps(runs))) as progress:
        while (learning := [i for i, run in enumerate(runs) if not run.over]) and not stop.requested:
            before = [run.at.env_steps for run in runs]
            warming_up = runs[learning[0]].learning_env_steps < warmup
            step = programs.ready(warming_up, lambda: stop.requested)
            if step is None:
                break
            # Algorithm 3, lines 4 and 5: act, store
            began = time.perf_counter()
            chunks = [
                runs[i].collecting.collect(on_the_host(acting[i])) if i in learning else no_steps for i in range(seeds)
            ]
            collected = time.perf_counter()
            # lines 6 to 9: learn
            chunk = stacked(chunks)
            hosts.share_step(warming_up, chunk)
            view = None  # what is donated may have no other holder
            state, output = step(state, chunk)
            view, output = hosts.here(state), hosts.here(jax.block_until_ready(output))
            outputs = of_each_seed(output, seeds)
            acting = [each.acting for each in outputs]
            took = collected - began, time.perf_counter() - collected
            due = {i: Due.after(runs[i], before[i]) for i in learning}
            sound = [each.finite for each in outputs]
            finish = partial(count, outputs=outputs, took=took)
            require_finite(runs, learning, sound, FINITE_OUTPUTS, partial(rescue, due=due, finish=finish))
            for i in learning:
                finish(i)
            if not warming_up:
                progress.learnt(least_steps(runs))

            if any(map(any, due.values())):
                for i in learning:  # a small replay may have lost what it had
                    require_windows(of_seed(view.replay, i, seeds), runs[i].window)
                require_finite(runs, learning, finite(view), FINITE_STATES, partial(rescue, due=due))
            for i in learning:
                look_where_due(i, due[i])
            for i in to_save(runs, learning, began_together, due[learning[0]].save):
                save_one(i)
            progress.update(least_steps(runs))
        unsaved = [i for i, run in enumerate(runs) if run.saved_at != run.at.env_steps]
        if unsaved:
            require_finite(runs, unsaved, finite(view), FINITE_STATES, partial(rescue, due={}))
            for i in unsaved:
                save_one(i)
    return [result_of(run, stop) for run in runs]


def to_save(runs: Sequence[Run], learning: Sequence[int], began_together: Sequence[int], due: bool) -> Sequence[int]:
    """Return which runs are saved now: all at once, for they can go on together from one moment only.

    They are where ``due`` says so, and where the first is over. From then on each is saved at its own end alone: a
    folder keeps two checkpoints, and one of them has to be of the last moment that all have.
    """
    over = [i for i in learning if runs[i].over]
    if len(learning) == len(began_together):
        return learning if due or over else []
    return over


def least_steps(runs: Sequence[Run]) -> int:
    """Return the environment steps of the run that has taken the fewest."""
    return min(run.at.env_steps for run in runs)


def mean_last_return(runs: Sequence[Run]) -> float | None:
    """Return the mean of the last evaluations so far, a run each; None before the first."""
    known = [run.at.last_return for run in runs if run.at.last_return is not None]
    return float(np.mean(known)) if known else None


def result_of(run: Run, stop: StopOnSignal) -> Result:
    """Return how a run ended; a signal during the last evaluation stopped nothing."""
    return Result(run.at.env_steps, None if run.over else stop.signal_name, run.at.last_return, run.folder)
