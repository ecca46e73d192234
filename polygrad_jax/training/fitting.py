"""Training a world model alone on recorded transitions, to the best prediction five steps ahead (paper, Appendix C.1).

Resumes bit for bit: what an update draws follows from its number alone. Only how many there are depends on the machine,
and only where the budget is in seconds.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import time
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from polygrad_jax import config as configs
from polygrad_jax.config import Config, ConfigError, EnvConfig, EnvSpec
from polygrad_jax.data import minari_dataset, official_npy
from polygrad_jax.data import normaliser as normalisers
from polygrad_jax.data import replay as replays
from polygrad_jax.data.transition_log import TransitionRecord
from polygrad_jax.envs import mujoco_state as simulator, tasks as registry
from polygrad_jax.agents import a2c
from polygrad_jax.runs.checkpoints import Checkpoints, export_npz, flatten_named, load_npz
from polygrad_jax.analysis.dataset_export import POLICY_FILE
from polygrad_jax.training.evaluating import simulator_errors
from polygrad_jax.analysis.opened_run import open_finished
from polygrad_jax.training.step import all_finite
from polygrad_jax.training.loop import NonFiniteError, crossed
from polygrad_jax.runs.metrics_log import MetricsLog
from polygrad_jax.runs.console import Progress, announce, announced, clock_time
from polygrad_jax.runs.run_folder import (
    CONFIG_FILE,
    DATA_FILE,
    RunFolder,
    describe_environment,
    write_text_atomically,
)
from polygrad_jax.runs.stop_signals import StopOnSignal
from polygrad_jax.types import Array, Normaliser, Params, PolicyApply, Segment, Transitions, WorldModel
from polygrad_jax.data import recordings as fitting
from polygrad_jax.world_models.model_table import SIMULATOR, make_world_model

BEST_FILE = "best.npz"
JUDGED_HORIZON = 5
"""Steps ahead at which the error decides (paper, Appendix C.1)."""
PAPER_UPDATES = 1_000_000
SETTLING_CONTEXTS = 64
FIRST_SETTLING_ROUNDS, SETTLING_ROUNDS = 300, 30
"""Imaginations in which what a model adapts to the policy (PolyGRAD's delta) settles before it is judged."""
STREAMS = {"init": 0, "updates": 1, "contexts": 2, "imagine": 3, "settle": 4}


# --- the data --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class FixedData:
    """Recorded transitions, and what is known of where they come from."""

    name: str
    transitions: TransitionRecord
    env: EnvConfig | None
    collector: Config | None
    """Config of the run that collected; None of data that is not ours."""
    actor: Params | None
    """The policy of the error: that run's last one."""

    @property
    def spec(self) -> EnvSpec:
        """Sizes O and A."""
        return EnvSpec(self.transitions.observations.shape[1], self.transitions.actions.shape[1])

    def fingerprint(self) -> dict[str, Any]:
        """What a resumed training must find again."""
        crc = 0
        for field in fields(TransitionRecord):
            flat = np.ascontiguousarray(getattr(self.transitions, field.name)).reshape(-1)
            crc = zlib.crc32(flat.view(np.uint8), crc)
        return {"transitions": len(self.transitions), "checksum": crc}

    def replay(self, window: int) -> replays.ReplayState:
        """All of it on the device, for windows of so many states; row t is transition t."""
        t = self.transitions
        terminals, truncations = t.terminals.astype(np.float32), (t.truncations & ~t.terminals).astype(np.float32)
        everything = np.ones(len(t), bool)
        rows = Transitions(t.observations, t.actions, t.rewards, terminals, truncations, everything)
        return fitting.replay_of(rows, window)

    def why_not_judged(self) -> str | None:
        """Why the error five steps ahead cannot be measured; None where it can."""
        if self.transitions.simulator_states.shape[1] == 0:
            return "it has no simulator states to replay imagined actions from"
        if self.actor is None or self.collector is None:
            return f"it has no policy of raw observations ({POLICY_FILE}, {CONFIG_FILE} beside it) to imagine under"
        return None


def open_data(where: str) -> FixedData:
    """A dataset by the folder of a run or of a Minari dataset, the id of a local one, or the official code's file.

    Raises:
      ConfigError: there is none, or it cannot be read.
    """
    path = Path(where)
    if minari_dataset.is_minari_dataset(path):
        return _open_minari(path)
    if RunFolder(path).holds_a_run():
        return _open_run(path)
    if path.suffix in (".npz", ".npy"):
        return FixedData(path.name, official_npy.read(path), None, None, None)
    if not path.exists():
        with contextlib.suppress(ConfigError, ValueError):
            minari_dataset.require_minari()
            from minari.storage import get_dataset_path

            if minari_dataset.is_minari_dataset(local := Path(get_dataset_path(where))):
                return _open_minari(local)
    raise ConfigError(
        f"dataset {where} is not there; allowed: the folder of a run or of a Minari dataset, the id of a local Minari "
        "dataset, or the official code's .npy (or the same arrays as .npz)"
    )


def _open_run(folder: Path) -> FixedData:
    run = open_finished(folder)
    # A policy that reads latents cannot act in another world model.
    actor = jax.device_get(run.learner.actor) if run.config.learner == "a2c" else None
    return FixedData(folder.name, run.transitions, run.config.env, run.config, actor)


def _open_minari(folder: Path) -> FixedData:
    transitions, env_id = minari_dataset.read(folder)
    env = None if env_id is None else EnvConfig(name=env_id)
    collector, actor = None, None
    if (folder / CONFIG_FILE).is_file() and (folder / POLICY_FILE).is_file():
        collector = configs.validate(configs.from_dict(RunFolder(folder).saved_config()))
        env, actor = collector.env, load_npz(folder / POLICY_FILE).get("actor")
    # The folder's own name is but the last part of the id, without the task.
    metadata = json.loads((folder / "data" / "metadata.json").read_text())
    name = str(metadata.get("dataset_id", folder.name)).replace("/", "-")
    return FixedData(name, transitions, env, collector, actor)


# --- judging ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Judged:
    """What a model predicts under the data's policy, against MuJoCo under the same actions; raw units."""

    five_step_error: float
    errors: dict[str, float]
    """By the names of :func:`simulator_errors`, horizons 1 to 5."""


class Judge:
    """The error of imagined trajectories from the same stored states, whatever the model, with the same draws.

    A trajectory counts until MuJoCo ends it: what comes behind is in no data, and a model that foresees ends (and
    stands still there) would be taken for a worse one.

    Raises:
      ConfigError: the data lack what it takes, or the horizon is too short.
    """

    def __init__(self, data: FixedData, config: Config, model: WorldModel, contexts: int):
        if (reason := data.why_not_judged()) is not None:
            raise ConfigError(
                f"dataset {data.name} cannot be judged five steps ahead: {reason}; allowed: --no-early-stopping, or a "
                "dataset made by polygrad dataset from a MuJoCo task"
            )
        if config.horizon <= JUDGED_HORIZON:
            raise ConfigError(
                f"horizon is {config.horizon}; allowed: more than {JUDGED_HORIZON} with early stopping, which judges "
                "five steps ahead"
            )
        assert data.collector is not None and data.actor is not None  # why_not_judged says so
        env = registry.make(data.collector.env)
        size, found = simulator.state_size(env), data.transitions.simulator_states.shape[1]
        env.close()
        if found != size:
            raise ConfigError(f"dataset {data.name} has simulator states of {found} numbers; allowed: {size}")
        self._data, self._env = data, data.collector.env
        policy = a2c.make_policy_apply(data.spec, data.collector.a2c, data.collector.precision)
        self._actor = jax.tree.map(jnp.asarray, data.actor)
        key = jax.random.key(config.seed)
        draw = jax.jit(replays.sample_contexts, static_argnums=(2, 3))
        context_key = jax.random.fold_in(key, STREAMS["contexts"])
        # Not from the replay that is learnt from: which states begin a window of it depends on the model.
        self._contexts = draw(data.replay(2), context_key, contexts, model.context_length)
        self._few = jax.tree.map(lambda x: x[:SETTLING_CONTEXTS], self._contexts)
        self._imagine_key, self._settle_key = (jax.random.fold_in(key, STREAMS[n]) for n in ("imagine", "settle"))
        self._imagine = jax.jit(_imagine_with(model, policy, config.horizon))
        self._settle = jax.jit(_settle_with(model, policy, config.horizon))
        self._adapts: bool | None = None

    def __call__(self, model_state: Any, normaliser: Normaliser, first: bool) -> tuple[Any, Judged]:
        """The state with what it adapts settled (all else untouched), and what was measured."""
        given = (self._actor, self._contexts, normaliser, self._imagine_key)
        after, segment = self._imagine(model_state, *given)
        if self._adapts is None:
            pairs = zip(jax.tree.leaves(model_state), jax.tree.leaves(after), strict=True)
            self._adapts = not all(np.array_equal(before, now) for before, now in pairs)
        if self._adapts:
            rounds = jnp.int32(FIRST_SETTLING_ROUNDS if first else SETTLING_ROUNDS)
            model_state = self._settle(model_state, self._actor, self._few, normaliser, self._settle_key, rounds)
            _, segment = self._imagine(model_state, *given)
        segment = jax.device_get(segment)
        if not all(np.isfinite(x).all() for x in jax.tree.leaves(segment)):
            raise NonFiniteError("not finite: imagined trajectory")
        states = self._data.transitions.simulator_states[np.asarray(self._contexts.rows)[:, -1]]
        errors = simulator_errors(self._env, segment, states, past_ends=False)
        judged = errors[f"error/observation_mse_{JUDGED_HORIZON:03d}"]
        if np.isnan(judged):
            raise ConfigError(
                f"dataset {self._data.name} cannot be judged five steps ahead: in MuJoCo no trajectory lives so long; "
                "allowed: --no-early-stopping"
            )
        return model_state, Judged(judged, errors)


def _imagine_with(model: WorldModel, policy: PolicyApply, horizon: int) -> Callable[..., tuple[Any, Segment]]:
    def imagine(state: Any, actor: Params, contexts: Segment, normaliser: Normaliser, key: Array):
        state, segment, _ = model.imagine(state, policy, actor, contexts, normaliser, key, horizon)
        return state, jax.tree.map(lambda x: x[:, : JUDGED_HORIZON + 1], segment.replace(rows=None, observed=None))

    return imagine


def _settle_with(model: WorldModel, policy: PolicyApply, horizon: int) -> Callable[..., Any]:
    """As :func:`fitting.settle`, compiled once for any number of rounds."""

    def settle(state: Any, actor: Params, contexts: Segment, normaliser: Normaliser, key: Array, rounds: Array):
        def once(counter: Array, state: Any) -> Any:
            key_now = jax.random.fold_in(key, counter)
            return model.imagine(state, policy, actor, contexts, normaliser, key_now, horizon)[0]

        return jax.lax.fori_loop(jnp.int32(0), rounds, once, state)

    return settle


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
            if value is not None and not isinstance(value, bool) and not value > 0:
                raise ConfigError(f"{field.name.replace('_', '-')} is {value}; allowed: greater than 0")
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
        data: FixedData,
        config: Config,
        folder: Path,
        schedule: Schedule,
        judged_from: FixedData | None = None,
    ):
        """Checks everything and compiles; writes nothing before all is accepted.

        ``judged_from``: whose states the five-step error begins in, where those of ``data`` are too few to do without
        others: what a model has learnt by heart it predicts best.

        Raises:
          ConfigError: the simulator (it learns nothing), data without a window, a folder with something else in it.
        """
        self.config, self.schedule, self.folder = configs.validate(config), schedule.checked(), Path(folder)
        if config.world_model == SIMULATOR:
            raise ConfigError("world_model is simulator, which learns nothing; allowed: one that learns")
        self.model = make_world_model(config, data.spec)
        window = self.model.window or config.horizon
        self.replay = data.replay(window)
        fitting.require_windows(self.replay, window)
        self.normaliser = jax.jit(normalisers.to_normaliser)(self.replay.moments)
        judged = schedule.early_stopping or data.why_not_judged() is None
        self.judge = Judge(judged_from or data, config, self.model, schedule.contexts) if judged else None
        if self.judge is None:
            announce(f"no error five steps ahead, no best.npz: dataset {data.name}: {data.why_not_judged()}")
        self._open_folder(data, judged_from)
        self.at = Progressing()
        self.key = jax.random.fold_in(jax.random.key(config.seed), STREAMS["updates"])
        self._finite = jax.jit(lambda tree: all_finite(tree))

    def _open_folder(self, data: FixedData, judged_from: FixedData | None) -> None:
        run_folder, environment = RunFolder(self.folder), describe_environment()
        for warning in run_folder.check(self.config, environment):
            announce(warning)
        told = {"dataset": data.name, **data.fingerprint()}
        told |= {name: getattr(self.schedule, name) for name in ("evaluate_every_updates", "contexts")}
        told["judged_from"] = None if judged_from is None else judged_from.fingerprint()
        self._check_told(told)
        self.lock = run_folder.lock()
        run_folder.record(self.config, environment)
        write_text_atomically(self.folder / DATA_FILE, json.dumps(told, indent=2) + "\n")
        self.checkpoints = Checkpoints(self.folder / "checkpoints")
        self.metrics = MetricsLog(self.folder, step="updates")

    def _check_told(self, told: dict[str, Any]) -> None:
        """Refuses a folder where another dataset was learnt from, or a run of the loop is."""
        file = self.folder / DATA_FILE
        if not RunFolder(self.folder).holds_a_run():
            return
        try:
            before = json.loads(file.read_text())
        except (OSError, ValueError):
            raise ConfigError(f"run folder {self.folder} has no {DATA_FILE}; allowed: of a world model alone") from None
        for name, value in told.items():
            if name != "dataset" and before.get(name) != value:  # it may have been moved
                raise ConfigError(
                    f"run folder {self.folder} was begun with {name} {before.get(name)}, now {value}; allowed: the same"
                    ", or another folder"
                )

    def _compile(self, state: Any) -> Callable[..., tuple[Any, Any]]:
        began = time.perf_counter()
        several = jax.jit(fitting.make_several_updates(self.model, self.config), donate_argnums=0)
        with announced("compiling the world model's update"):
            given = (state, self.replay, self.normaliser, self.key, jnp.int32(0), jnp.int32(1))
            compiled = several.lower(*given).compile()
        self.at.compiling_seconds += time.perf_counter() - began
        return compiled

    def run(self) -> Outcome:
        """Trains from wherever the folder is to the end of the budget.

        Raises:
          NonFiniteError: learning diverged; the last good checkpoint is kept.
        """
        try:
            init_key = jax.random.fold_in(jax.random.key(self.config.seed), STREAMS["init"])
            state = self._restored(jax.jit(self.model.init)(init_key))
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
        updates, arrays, host = found
        self.at = Progressing(**host["progress"])
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
                state, metrics = jax.block_until_ready(several(state, *given))
                seconds = time.perf_counter() - began
                at.updates, at.training_seconds = end, at.training_seconds + seconds
                chunks.took(end - first, seconds)
                over = self._why_over() is not None
                due = self.judge is not None and (over or crossed(first, end, schedule.evaluate_every_updates))
                looks: dict[str, float] = {}
                if due or over or crossed(first, end, schedule.log_every_updates):
                    self._check_finite(state, metrics)
                    if due:
                        state, looks = self._look(state)
                    row = self._log(metrics, looks, seconds / (end - first))
                    values = {"loss": whole_loss(row, self.config.world_model)}
                    values |= {"five-step error": looks.get("error/five_step"), "best": at.best_error}
                    progress.show(end, values, self._seconds_left())
                progress.show(end, {}, self._seconds_left())
                if due or over or time.monotonic() - saved >= schedule.checkpoint_every_seconds:
                    self._save(state, metrics)
                    saved_at, saved = at.updates, time.monotonic()
            if saved_at != at.updates:
                self._save(state, metrics)
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
        better = at.best_error is None or judged.five_step_error < at.best_error
        at.judged_updates, at.judged_since_best = at.updates, 0 if better else at.judged_since_best + 1
        if better:
            at.best_error, at.best_updates = judged.five_step_error, at.updates
            best = {"world_model": state, "moments": self.replay.moments, "updates": np.int64(at.updates)}
            export_npz(self.folder / BEST_FILE, best | {"five_step_error": np.float64(judged.five_step_error)})
        at.judging_seconds += time.perf_counter() - began
        row = {"five_step_error": judged.five_step_error, "reward_mse": judged.errors["error/reward_mse"]}
        self.metrics.write_evaluation(at.updates, row | {"training_seconds": at.training_seconds})
        return state, {"error/five_step": judged.five_step_error} | judged.errors

    def _log(self, metrics: Any, looks: dict[str, float], seconds_per_update: float) -> dict[str, float]:
        row = {name: float(x) for name, x in jax.device_get(metrics).items() if np.ndim(x) == 0} | looks
        times = {n.removesuffix("_seconds"): x for n, x in dataclasses.asdict(self.at).items() if "_seconds" in n}
        clock = {f"seconds/{name}": value for name, value in times.items()}
        self.metrics.write(self.at.updates, row | clock | {"updates_per_second": 1.0 / seconds_per_update})
        return row

    def _check_finite(self, state: Any, metrics: Any) -> None:
        floats = [x for x in jax.tree.leaves((state, metrics)) if jnp.issubdtype(x.dtype, jnp.floating)]
        if not self._finite(floats):
            raise NonFiniteError(f"not finite after update {self.at.updates}: world model; {self._last_good()}")

    def _last_good(self) -> str:
        return f"the last good checkpoint is in {self.folder / 'checkpoints'}"

    def _save(self, state: Any, metrics: Any) -> None:
        self._check_finite(state, metrics)
        self.checkpoints.save(self.at.updates, {"world_model": state}, {"progress": dataclasses.asdict(self.at)})


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


def whole_loss(row: dict[str, float], world_model: str) -> float | None:
    """The loss that a model descends, of all that it logs; of a model that is not ours, the first that says so."""
    for name in (f"{world_model}/loss", f"loss/{world_model}", "denoiser/loss"):
        if name in row:
            return row[name]
    return next((x for name, x in row.items() if "loss" in name), None)


# --- opening it again ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TrainedModel:
    """A world model that was trained alone, at its best five-step error (or at its newest checkpoint)."""

    config: Config
    spec: EnvSpec
    model: WorldModel
    state: Any
    normaliser: Normaliser
    updates: int


def open_trained(folder: Path | str, data: FixedData, newest: bool = False) -> TrainedModel:
    """What :class:`Training` left in a folder for the data that it was trained on: the best judged, or the newest.

    The newest where none was judged, or where ``newest`` asks for it.

    Raises:
      ConfigError: the folder is not of such a training, or has nothing saved yet.
    """
    folder = Path(folder)
    config = configs.validate(configs.from_dict(RunFolder(folder).saved_config()))
    model = make_world_model(config, data.spec)
    shape = jax.eval_shape(model.init, jax.random.key(0))
    moments = jax.eval_shape(lambda: normalisers.init(data.spec))
    if not newest and (folder / BEST_FILE).is_file():
        tree, wanted = load_npz(folder / BEST_FILE), {"world_model": shape, "moments": moments}
        updates = int(tree.pop("updates"))
        tree.pop("five_step_error")
        stored, named = flatten_named(tree), flatten_named(wanted)
        if {n: np.shape(x) for n, x in stored.items()} != {n: x.shape for n, x in named.items()}:
            raise ConfigError(f"{folder / BEST_FILE} has other arrays; allowed: those of this version and this data")
        leaves = [jnp.asarray(stored[name]) for name in named]
        learnt = jax.tree.unflatten(jax.tree.structure(wanted), leaves)
        normaliser = normalisers.to_normaliser(learnt["moments"])
        return TrainedModel(config, data.spec, model, learnt["world_model"], normaliser, updates)
    checkpoints = Checkpoints(folder / "checkpoints", say=announce, read_only=True)
    try:
        found = checkpoints.restore({"world_model": shape}) if (folder / "checkpoints").is_dir() else None
    finally:
        checkpoints.close()
    if found is None:
        raise ConfigError(f"run folder {folder} has no checkpoint yet; allowed: a training that has saved one")
    normaliser = normalisers.to_normaliser(data.replay(model.window or config.horizon).moments)
    return TrainedModel(config, data.spec, model, found[1]["world_model"], normaliser, found[0])
