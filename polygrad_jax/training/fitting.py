"""Training a world model alone on recorded transitions: the library's ``fit``, and ``polygrad fit`` to the best
prediction five steps ahead (paper, Appendix C.1).

Resumes bit for bit: what an update draws follows from its number alone. Only how many there are depends on the machine,
and only where the budget is in seconds.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from polygrad_jax import config as configs
from polygrad_jax.agents.agent_table import make_policy_apply
from polygrad_jax.config import LARGEST_COUNT, Config, ConfigError, Execution
from polygrad_jax.data import normaliser as normalisers
from polygrad_jax.data import replay as replays
from polygrad_jax.data.recordings import Episode, replay_of, transitions_of
from polygrad_jax.envs import tasks
from polygrad_jax.envs.prediction_error import simulator_errors
from polygrad_jax.runs import physics
from polygrad_jax.runs.checkpoints import Checkpoints, export_npz, why_standardised_otherwise
from polygrad_jax.runs.console import Progress, announce, announced, clock_time
from polygrad_jax.runs.metrics_log import MetricsLog
from polygrad_jax.runs.recorded_data import RecordedData
from polygrad_jax.runs.run_folder import (
    BEST_FILE,
    CONFIG_FILE,
    DATA_FILE,
    ENVIRONMENT_FILE,
    RunFolder,
    describe_environment,
    read_json,
    write_text_atomically,
)
from polygrad_jax.runs.stop_signals import StopOnSignal
from polygrad_jax.runs.tensorboard_page import hyperparameters
from polygrad_jax.training.evaluating import beats
from polygrad_jax.training.loop import crossed
from polygrad_jax.training.step import NonFiniteError, all_finite, make_model_update
from polygrad_jax.training.windows import require_windows, say_uncovered, uncovered_share, window_of
from polygrad_jax.types import Array, Metrics, Normaliser, Policy, Segment, WorldModel
from polygrad_jax.world_models.model_table import SIMULATOR, make_world_model

REPORT_EVERY_UPDATES = 100
JUDGED_HORIZON = 5
"""Steps ahead at which the error decides (paper, Appendix C.1)."""
PAPER_UPDATES = 1_000_000
ROUNDING = 1e-5
"""How far beyond 1 an executed action may be: rescaling rounds."""
SETTLING_CONTEXTS = 64
FIRST_SETTLING_ROUNDS, SETTLING_ROUNDS = 300, 30
"""Imaginations in which what a model adapts to the policy (PolyGRAD's delta) settles before it is judged."""
STREAMS = {"init": 0, "updates": 1, "contexts": 2, "imagine": 3, "settle": 4}


# --- the library's ---------------------------------------------------------------------------------------------------


def fit(
    world_model: WorldModel,
    episodes: Sequence[Episode],
    config: Config,
    key: Array,
    updates: int,
    report: Callable[[int, dict[str, float]], None] | None = None,
) -> tuple[Any, Normaliser]:
    """Return ``(state, normaliser)`` of a world model after ``updates`` gradient steps on windows of the episodes.

    What a batch is, the model and ``config.model_training`` say. ``report(updates so far, metrics)`` is called every
    hundred updates with the means since the last call.

    Raises:
      ConfigError: episodes that do not fit together, hold numbers that are not finite, or are all too short; actions
        beyond [-1, 1] where ``env.actions`` is ``squashed`` (else a warning).
      NonFiniteError: learning diverged.
    """
    if updates < 1:
        raise ConfigError(f"updates is {updates}; allowed: 1 or greater")
    window = window_of(config, world_model)
    rows = transitions_of(episodes)
    _look_at_actions(rows.actions, config.env.actions)
    rows = rows.replace(actions=tasks.raw_of(rows.actions, config.env.actions))
    replay = replay_of(rows, window.of_episode)
    require_windows(replay, window)
    normaliser = normalisers.to_normaliser(replay.moments)
    init_key, update_key = jax.random.split(key)
    state = jax.jit(world_model.init)(init_key)
    several, finite = jax.jit(make_model_updates(world_model, config), donate_argnums=0), jax.jit(all_finite)
    zeros = zero_sums(world_model, config, state, replay, normaliser)
    for first in range(0, updates, REPORT_EVERY_UPDATES):
        end = min(first + REPORT_EVERY_UPDATES, updates)
        state, sums = several(state, zeros, replay, normaliser, update_key, jnp.int32(first), jnp.int32(end))
        if not finite((state, sums)):
            raise NonFiniteError(f"not finite after update {end}: world model")
        if report is not None:
            report(end, {name: x / (end - first) for name, x in scalars_of(sums).items()})
    return state, normaliser


def _look_at_actions(actions: np.ndarray, how: Execution) -> None:
    """Say where actions ``[T, A]`` are beyond what the task executes, as in a recording in other units.

    Raises:
      ConfigError: no squashed action can be as large.
    """
    largest = float(np.abs(actions).max())
    if largest <= 1.0 + ROUNDING:
        return
    found, rescaled = f"actions are up to {largest:.4g}", "polygrad_jax.data.minari_dataset.to_unit rescales"
    if how == "squashed":
        raise ConfigError(f"episodes: {found}; allowed where env.actions is squashed: from -1 to 1 ({rescaled})")
    announce(f"warning: {found}; what lies beyond -1 and 1 counts as these bounds ({rescaled} from other bounds)")


def make_model_updates(world_model: WorldModel, config: Config) -> Callable[..., tuple[Any, Metrics]]:
    """Make ``(state, sums, replay, normaliser, key, first, end) -> (state, sums of the metrics)``, to be jitted.

    Makes updates number ``first`` to ``end`` (int32, exclusive). An update's draws follow from its number alone, and
    the sums go on from those given, so that neither depends on how many updates one call makes.
    """
    update_model = make_model_update(world_model, config)

    def several(state, sums, replay, normaliser, key, first, end):
        def body(counter: Array, carry: tuple[Any, Metrics]) -> tuple[Any, Metrics]:
            batch_key, update_key = jax.random.split(jax.random.fold_in(key, counter))
            state, metrics = update_model(carry[0], replay, normaliser, batch_key, update_key)
            return state, jax.tree.map(jnp.add, carry[1], metrics)

        return jax.lax.fori_loop(first, end, body, (state, sums))

    return several


def zero_sums(
    world_model: WorldModel, config: Config, state: Any, replay: replays.ReplayState, normaliser: Normaliser
) -> Metrics:
    """Return zeros of the shapes of one update's metrics."""
    key = jax.random.key(0)
    _, shapes = jax.eval_shape(make_model_update(world_model, config), state, replay, normaliser, key, key)
    return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)


def scalars_of(sums: Metrics) -> dict[str, float]:
    """Return the scalars among summed metrics, on the host."""
    return {name: float(x) for name, x in jax.device_get(sums).items() if np.ndim(x) == 0}


def settle(
    world_model: WorldModel,
    state: Any,
    policy: Policy,
    context: Segment,
    normaliser: Normaliser,
    key: Array,
    rounds: int = FIRST_SETTLING_ROUNDS,
) -> Any:
    """Return the state after ``rounds`` imaginations that are thrown away.

    What a model adapts to a policy has then settled: PolyGRAD's delta, until the imagined actions spread around the
    policy's mean as the policy says. Models that adapt nothing come back as they were.
    """
    return jax.jit(make_settle(world_model))(state, policy, context, normaliser, key, jnp.int32(rounds))


def make_settle(world_model: WorldModel) -> Callable[..., Any]:
    """Make :func:`settle` as ``(state, policy, context, normaliser, key, rounds [] int32) -> state``, to be jitted."""

    def settle_for(
        state: Any, policy: Policy, context: Segment, normaliser: Normaliser, key: Array, rounds: Array
    ) -> Any:
        def once(counter: Array, state: Any) -> Any:
            aux = world_model.imagine(state, policy, context, normaliser, jax.random.fold_in(key, counter))[1]
            return world_model.adapt(state, aux)

        return jax.lax.fori_loop(jnp.int32(0), rounds, once, state)

    return settle_for


# --- judging ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Judged:
    """What a model predicts under the data's policy, against MuJoCo under the same actions; raw units."""

    five_step_error: float
    errors: dict[str, float]
    """By the names of :func:`simulator_errors`, horizons 1 to 5."""


class CannotBeJudgedError(ConfigError):
    """No error five steps ahead can be measured; ``reason`` says why, and what there is instead."""

    def __init__(self, reason: str, allowed: str):
        super().__init__(f"{reason}; allowed: {allowed}")
        self.reason = reason


class Judge:
    """The error of imagined trajectories from the same stored states, whatever the model, with the same draws.

    A trajectory counts until MuJoCo ends it: what comes behind is in no data, and no model can know it.

    Raises:
      CannotBeJudgedError: the data lack what it takes, or the horizon is too short.
    """

    def __init__(self, data: RecordedData, config: Config, model: WorldModel, contexts: int):
        if (reason := data.why_not_judged()) is not None:
            raise CannotBeJudgedError(
                f"dataset {data.name} cannot be judged five steps ahead: {reason}",
                "--no-early-stopping, or a dataset made by polygrad dataset from a MuJoCo task",
            )
        if config.horizon <= JUDGED_HORIZON:
            raise CannotBeJudgedError(
                f"horizon is {config.horizon}",
                f"more than {JUDGED_HORIZON} with early stopping, which judges five steps ahead",
            )
        assert data.collector is not None and data.actor is not None  # why_not_judged says so
        self._data, self.env = data, data.collector.env
        apply = make_policy_apply(data.collector, data.spec)
        self._policy = Policy(jax.tree.map(jnp.asarray, data.actor), apply)
        key = jax.random.key(config.seed)
        draw = jax.jit(replays.sample_contexts, static_argnums=(2, 3))
        context_key = jax.random.fold_in(key, STREAMS["contexts"])
        # Not from the replay that is learnt from: which states begin a window of it depends on the model.
        self._contexts = draw(data.replay(2), context_key, contexts, model.context_length)
        self._few = jax.tree.map(lambda x: x[:SETTLING_CONTEXTS], self._contexts)
        self._imagine_key, self._settle_key = (jax.random.fold_in(key, STREAMS[n]) for n in ("imagine", "settle"))
        self._imagine = jax.jit(_make_judged_imagination(model))
        self._settle = jax.jit(make_settle(model))
        self._adapts: bool | None = None

    def __call__(self, model_state: Any, normaliser: Normaliser, first: bool) -> tuple[Any, Judged]:
        """The state with what it adapts settled (all else untouched), and what was measured."""
        given = (self._policy, self._contexts, normaliser, self._imagine_key)
        after, segment = self._imagine(model_state, *given)
        if self._adapts is None:
            pairs = zip(jax.tree.leaves(model_state), jax.tree.leaves(after), strict=True)
            self._adapts = not all(np.array_equal(before, now) for before, now in pairs)
        if self._adapts:
            rounds = jnp.int32(FIRST_SETTLING_ROUNDS if first else SETTLING_ROUNDS)
            model_state = self._settle(model_state, self._policy, self._few, normaliser, self._settle_key, rounds)
            _, segment = self._imagine(model_state, *given)
        segment = jax.device_get(segment)
        if not all(np.isfinite(x).all() for x in jax.tree.leaves(segment)):
            raise NonFiniteError("not finite: imagined trajectory")
        states = self._data.transitions.simulator_states[np.asarray(self._contexts.rows)[:, -1]]
        errors = simulator_errors(self.env, segment, states, past_ends=False)
        judged = errors[f"error/observation_mse_{JUDGED_HORIZON:03d}"]
        if np.isnan(judged):
            raise CannotBeJudgedError(
                f"dataset {self._data.name} cannot be judged five steps ahead: in MuJoCo no trajectory lives so long",
                "--no-early-stopping",
            )
        return model_state, Judged(judged, errors)


def _make_judged_imagination(model: WorldModel) -> Callable[..., tuple[Any, Segment]]:
    """Make ``(state, policy, contexts, normaliser, key) -> (the state adapted once, the judged part of a segment)``."""

    def imagine(state: Any, policy: Policy, contexts: Segment, normaliser: Normaliser, key: Array):
        segment, aux = model.imagine(state, policy, contexts, normaliser, key)
        judged = jax.tree.map(lambda x: x[:, : JUDGED_HORIZON + 1], segment.replace(rows=None, observed=None))
        return model.adapt(state, aux), judged

    return imagine


# --- training --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Schedule:
    """How long, and what is looked at when."""

    updates: int | None = None
    """Gradient steps at most; without this and ``seconds`` the paper's million."""
    seconds: float | None = None
    """Seconds of gradient steps at most; compiling, judging and saving are not counted."""
    early_stopping: bool = True
    """Stop when the five-step error has not got better for ``patience`` evaluations."""
    patience: int = 10
    evaluate_every_updates: int = 5_000
    contexts: int = 500
    """Initial states of the error (paper, Appendix C.1)."""
    log_every_updates: int = 500
    checkpoint_every_seconds: float = 300.0

    def checked(self) -> Schedule:
        """Itself.

        Raises:
          ConfigError: a number that is not positive.
        """
        for field in fields(self):
            value = getattr(self, field.name)
            if value is not None and not isinstance(value, bool) and not 0 < value <= LARGEST_COUNT:
                allowed = "greater than 0" + (f", up to {LARGEST_COUNT}" if value > 0 else "")
                raise ConfigError(f"{field.name.replace('_', '-')} is {value}; allowed: {allowed}")
        budget = PAPER_UPDATES if self.updates is None and self.seconds is None else self.updates
        return dataclasses.replace(self, updates=budget)


@dataclass
class Progressing:
    """Where the training is, over all sessions; saved in every checkpoint."""

    updates: int = 0
    training_seconds: float = 0.0
    """Of gradient steps alone."""
    compiling_seconds: float = 0.0
    judging_seconds: float = 0.0
    judged_updates: int | None = None
    best_error: float | None = None
    best_updates: int | None = None
    judged_since_best: int = 0


@dataclass(frozen=True)
class Outcome:
    """How it ended."""

    at: Progressing
    why: str
    """``updates``, ``seconds``, ``early stopping``, or the name of a signal."""
    stopped_by: str | None


class Training:
    """A world model, its data, and the folder that it is trained in."""

    def __init__(
        self,
        data: RecordedData,
        config: Config,
        folder: Path,
        schedule: Schedule,
        judged_from: RecordedData | None = None,
    ):
        """Checks everything, and opens the folder; writes nothing before all is accepted.

        ``judged_from``: whose states the five-step error begins in, where those of ``data`` are too few to do without
        others: what a model has learnt by heart it predicts best.

        Raises:
          ConfigError: the simulator (it learns nothing), data without a window, a folder with something else in it.
        """
        self.config, self.schedule, self.folder = configs.validate(config), schedule.checked(), Path(folder)
        if config.world_model == SIMULATOR:
            raise ConfigError("world_model is simulator, which learns nothing; allowed: one that learns")
        data = data.executed_as(config.env.actions)
        judged_from = None if judged_from is None else judged_from.executed_as(config.env.actions)
        self.model = make_world_model(config, data.spec)
        window = window_of(config, self.model)
        self.replay = data.replay(window.of_episode)
        require_windows(self.replay, window)
        say_uncovered(self.replay, window)
        self.uncovered = uncovered_share(self.replay, window)
        self.normaliser = jax.jit(normalisers.to_normaliser)(self.replay.moments)
        self.judge: Judge | None = None
        try:
            self.judge = Judge(judged_from or data, config, self.model, schedule.contexts)
        except CannotBeJudgedError as error:
            self._do_without_judge(error)
        self._open_folder(data, judged_from)
        self.at, self.sums, self.summed = Progressing(), {}, 0
        self.key = jax.random.fold_in(jax.random.key(config.seed), STREAMS["updates"])
        self._finite = jax.jit(lambda tree: all_finite(tree))

    def _do_without_judge(self, error: CannotBeJudgedError) -> None:
        """Go on without the error five steps ahead, unless it is what stops the training."""
        if self.schedule.early_stopping:
            raise error
        announce(f"no error five steps ahead, no best.npz: {error.reason}")
        self.judge = None

    def _open_folder(self, data: RecordedData, judged_from: RecordedData | None) -> None:
        run_folder, environment = RunFolder(self.folder), describe_environment()
        for warning in run_folder.check(self.config, environment):
            announce(warning)
        told = {"dataset": data.name, **data.fingerprint()}
        told |= {name: getattr(self.schedule, name) for name in ("evaluate_every_updates", "contexts")}
        told["judged_from"] = None if judged_from is None else judged_from.fingerprint()
        self._check_told(told)
        self.lock, self.environment = run_folder.lock(), environment
        if not run_folder.holds_a_run():  # a folder that turns out to be damaged stays as it is
            run_folder.record(self.config, environment)
        write_text_atomically(self.folder / DATA_FILE, json.dumps(told, indent=2) + "\n")
        self.checkpoints = Checkpoints(self.folder / "checkpoints")
        self.metrics = MetricsLog(self.folder, step="updates", hyperparameters=hyperparameters(self.config))

    def _check_told(self, told: dict[str, Any]) -> None:
        """Refuses a folder where another dataset was learnt from, or a run of the loop is."""
        file = self.folder / DATA_FILE
        if not RunFolder(self.folder).holds_a_run():
            return
        there = {path.name for path in self.folder.iterdir() if not path.name.startswith(".")}
        if there <= {CONFIG_FILE, ENVIRONMENT_FILE}:  # killed before it could write the third
            return
        try:
            before = read_json(file)
        except (FileNotFoundError, ConfigError):
            raise ConfigError(f"run folder {self.folder} has no {DATA_FILE}; allowed: of a world model alone") from None
        for name, value in told.items():
            if name != "dataset" and before.get(name) != value:  # it may have been moved
                raise ConfigError(
                    f"run folder {self.folder} was begun with {name} {before.get(name)}, now {value}; allowed: the same"
                    ", or another folder"
                )

    def _compile(self, state: Any) -> Callable[..., tuple[Any, Any]]:
        began = time.perf_counter()
        several = jax.jit(make_model_updates(self.model, self.config), donate_argnums=0)
        with announced("compiling the world model's update"):
            self.zeros = zero_sums(self.model, self.config, state, self.replay, self.normaliser)
            given = (state, self.zeros, self.replay, self.normaliser, self.key, jnp.int32(0), jnp.int32(1))
            compiled = several.lower(*given).compile()
        self.at.compiling_seconds += time.perf_counter() - began
        return compiled

    def run(self) -> Outcome:
        """Trains from wherever the folder is to the end of the budget.

        Raises:
          ConfigError: an older version standardised the data otherwise.
          NonFiniteError: learning diverged; the last good checkpoint is kept.
        """
        try:
            init_key = jax.random.fold_in(jax.random.key(self.config.seed), STREAMS["init"])
            state = self._restored(jax.jit(self.model.init)(init_key))
            RunFolder(self.folder).record(self.config, self.environment)
            several = self._compile(state)
            with StopOnSignal() as stop:
                return self._learn(several, state, stop)
        finally:
            self.metrics.close()
            self.checkpoints.close()
            self.lock.close()

    def _restored(self, state: Any) -> Any:
        found = self.checkpoints.restore({"world_model": state})
        if found is None:
            self.metrics.truncate(-1)
            return state
        if (reason := why_standardised_otherwise(self.folder, self.replay.moments)) is not None:
            raise ConfigError(f"{reason}; allowed: another folder")
        updates, arrays, host = found
        self.at, self.summed = Progressing(**host["progress"]), host["summed"]
        self.sums = {name: jnp.float32(total) for name, total in host["sums"].items()}
        self.metrics.truncate(updates)
        announce(f"going on from update {updates:,} after {clock_time(self.at.training_seconds)} of training")
        return arrays["world_model"]

    def _why_over(self) -> str | None:
        at, schedule = self.at, self.schedule
        if schedule.updates is not None and at.updates >= schedule.updates:
            return "updates"
        if schedule.seconds is not None and at.training_seconds >= schedule.seconds:
            return "seconds"
        if schedule.early_stopping and at.judged_since_best >= schedule.patience:
            return "early stopping"
        return None

    def _learn(self, several: Callable[..., tuple[Any, Any]], state: Any, stop: StopOnSignal) -> Outcome:
        at, schedule = self.at, self.schedule
        chunks, saved_at, saved = _Chunks(schedule), at.updates, time.monotonic()
        watched = ("loss", "five-step error", "best")
        progress = Progress(schedule.updates, at.updates, unit="updates", watched=watched)
        with contextlib.closing(progress):
            while (why := self._why_over()) is None and not stop.requested:
                first, end = at.updates, chunks.end(at)
                began = time.perf_counter()
                given = (self.replay, self.normaliser, self.key, jnp.int32(first), jnp.int32(end))
                state, self.sums = jax.block_until_ready(several(state, self.sums or self.zeros, *given))
                self.summed += end - first
                seconds = time.perf_counter() - began
                at.updates, at.training_seconds = end, at.training_seconds + seconds
                chunks.took(end - first, seconds)
                over = self._why_over() is not None
                due = self.judge is not None and (over or crossed(first, end, schedule.evaluate_every_updates))
                looks: dict[str, float] = {}
                if due or over or crossed(first, end, schedule.log_every_updates):
                    self._check_finite(state)
                    if due:
                        state, looks = self._look(state)
                    row = self._log(looks, seconds / (end - first))
                    values = {"loss": row.get("world_model/loss")}
                    values |= {"five-step error": looks.get("error/five_step"), "best": at.best_error}
                    progress.show(end, values, self._seconds_left())
                progress.show(end, {}, self._seconds_left())
                if due or over or time.monotonic() - saved >= schedule.checkpoint_every_seconds:
                    self._save(state)
                    saved_at, saved = at.updates, time.monotonic()
            if saved_at != at.updates:
                self._save(state)
        return Outcome(at, why or str(stop.signal_name), None if why else stop.signal_name)

    def _seconds_left(self) -> float | None:
        budget = self.schedule.seconds
        return None if budget is None else max(budget - self.at.training_seconds, 0.0)

    def _look(self, state: Any) -> tuple[Any, dict[str, float]]:
        """Judges the state; keeps it as the best where it is."""
        assert self.judge is not None
        at, began = self.at, time.perf_counter()
        try:
            state, judged = self.judge(state, self.normaliser, first=at.judged_updates is None)
        except NonFiniteError as error:
            raise NonFiniteError(f"{error} after update {at.updates}; {self._last_good()}") from None
        except CannotBeJudgedError as error:
            self._do_without_judge(error)
            return state, {}
        better = beats(-judged.five_step_error, None if at.best_error is None else -at.best_error)
        at.judged_updates, at.judged_since_best = at.updates, 0 if better else at.judged_since_best + 1
        if better:
            at.best_error, at.best_updates = judged.five_step_error, at.updates
            best = {"world_model": state, "moments": self.replay.moments, "updates": np.int64(at.updates)}
            export_npz(self.folder / BEST_FILE, best | {"five_step_error": np.float64(judged.five_step_error)})
        at.judging_seconds += time.perf_counter() - began
        row = {"five_step_error": judged.five_step_error, "reward_mse": judged.errors["error/reward_mse"]}
        labels = {physics.COLUMN: physics.todays_mujoco(self.judge.env)}
        self.metrics.write_evaluation(at.updates, row | {"training_seconds": at.training_seconds}, labels)
        return state, {"error/five_step": judged.five_step_error} | judged.errors

    def _log(self, looks: dict[str, float], seconds_per_update: float) -> dict[str, float]:
        row = {name: x / self.summed for name, x in scalars_of(self.sums).items()} | looks
        self.sums, self.summed = {}, 0
        times = {n.removesuffix("_seconds"): x for n, x in dataclasses.asdict(self.at).items() if "_seconds" in n}
        clock = {f"seconds/{name}": value for name, value in times.items()}
        rate = {"fit/updates_per_second": 1.0 / seconds_per_update}
        self.metrics.write(self.at.updates, row | clock | rate | self.uncovered)
        return row

    def _check_finite(self, state: Any) -> None:
        if not self._finite((state, self.sums)):
            raise NonFiniteError(f"not finite after update {self.at.updates}: world model; {self._last_good()}")

    def _last_good(self) -> str:
        if not self.checkpoints.steps():
            return "no checkpoint was saved before"
        return f"the last good checkpoint is in {self.folder / 'checkpoints'}"

    def _save(self, state: Any) -> None:
        self._check_finite(state)
        sums = {"sums": scalars_of(self.sums), "summed": self.summed}  # of the metrics since the last row
        host = {"progress": dataclasses.asdict(self.at)} | sums
        self.checkpoints.save(self.at.updates, {"world_model": state}, host)


class _Chunks:
    """How many updates go to the device at once: about a second's worth, and never past what is due."""

    def __init__(self, schedule: Schedule):
        self._schedule, self._size, self._rate = schedule, 1, None

    def end(self, at: Progressing) -> int:
        """The update to stop before."""
        s, size = self._schedule, self._size
        if s.seconds is not None and self._rate is not None:
            size = min(size, max(int((s.seconds - at.training_seconds) * self._rate), 1))
        ends = [at.updates + size] + [(at.updates // every + 1) * every for every in self._stops()]
        return min(ends if s.updates is None else [*ends, s.updates])

    def _stops(self) -> Iterator[int]:
        yield self._schedule.evaluate_every_updates
        yield self._schedule.log_every_updates

    def took(self, updates: int, seconds: float) -> None:
        """What the last ones took."""
        self._rate = updates / max(seconds, 1e-6)
        self._size = int(np.clip(self._rate, 1, 10 * self._size))
