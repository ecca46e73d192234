"""Algorithm 3 on the device: one step of training, which is one policy update and the world model's updates beside it.

The numbers in the comments are the lines of Algorithm 3. Line 4 (acting in the environment) is the host's, in
``collecting.py``; ``loop.py`` calls what is made here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from polygrad_jax.config import Config, EnvSpec, model_updates_per_policy_update, planned_policy_updates
from polygrad_jax.data import normaliser as normalisers
from polygrad_jax.data import replay as replays
from polygrad_jax.training.devices import on_all, shared_out
from polygrad_jax.training.train_state import TrainState, key_for, make_init
from polygrad_jax.types import Agent, Array, Experience, Metrics, Normaliser, Params, Segment, Transitions, WorldModel

# The run stops, naming it, when one of these is not finite: the first three after every step; the state, whose damage
# shows in the next loss, whenever the host looks at the run, and so before every checkpoint.
FINITE_OUTPUTS = ("loss", "imagined trajectory", "policy")
FINITE_STATES = ("world model", "actor and critic")


class NonFiniteError(RuntimeError):
    """Learning produced a number that is not finite; the message names the component and the step."""


@flax.struct.dataclass
class Measured:
    """The metrics of one step: one array on its way to the host in place of one per name."""

    scalars: Array  # [M] float32
    counts: dict[str, Array]  # of histograms, [bins] int32 by name
    names: tuple[str, ...] = flax.struct.field(pytree_node=False)  # of the scalars

    def by_name(self) -> dict[str, float]:
        """Return the scalars on the host."""
        return dict(zip(self.names, np.asarray(self.scalars, np.float64).tolist(), strict=True))


@flax.struct.dataclass
class Output:
    """What a step hands to the host; small, and never donated."""

    acting: Params  # what the host acts with
    metrics: Measured
    finite: Array  # bool, one per name in FINITE_OUTPUTS


@flax.struct.dataclass
class PolicyPart:
    """What a policy update changes, and tells."""

    agent: Any
    aux: Metrics  # of the imagination, by which the world model adapts
    policy_updates: Array  # int32
    metrics: Metrics
    finite: Array  # bool, of the imagined trajectories


@flax.struct.dataclass
class ModelPart:
    """What the world model's updates change, and tell."""

    world_model: Any
    model_updates: Array  # int32
    metrics: Metrics


Step = Callable[[TrainState, Transitions], tuple[TrainState, Output]]

ModelUpdate = Callable[[Any, replays.ReplayState, Normaliser, Array, Array], tuple[Any, Metrics]]
"""``(model_state, replay, normaliser, batch_key, update_key) -> (model_state, metrics)``."""


class Steps(NamedTuple):
    """The device's functions of one run, pure; the loop compiles each once."""

    init: Callable[..., TrainState]  # of the run's seed, or of the one given
    acting: Callable[[TrainState], Params]  # copied: what the host acts with
    insert: Callable[[TrainState, Transitions], TrainState]
    improve_policy: Callable[[TrainState], PolicyPart]
    improve_model: Callable[[TrainState], ModelPart]
    finish: Callable[[Any, PolicyPart, Metrics], tuple[Any, Output]]  # (model_state, policy, metrics of the model)
    report_warmup: Callable[[TrainState, Metrics], Output]  # of a step in which the world model alone improves
    learn: Step  # insert, then both improve, then finish
    finite: Callable[[TrainState], Array]  # bool, one per name in FINITE_STATES


def all_finite(tree: Any) -> Array:
    """Whether every entry of every floating array is finite; true of no arrays at all."""
    floats = [x for x in jax.tree.leaves(tree) if jnp.issubdtype(x.dtype, jnp.floating)]
    return jnp.stack([jnp.bool_(True), *(jnp.isfinite(x).all() for x in floats)]).all()


def make_draw(world_model: WorldModel, config: Config) -> Callable[[replays.ReplayState, Array], Segment]:
    """Make the function that draws a batch for one update of a world model: windows, or streams."""
    training = config.model_training
    window, size = world_model.window or config.horizon, world_model.batch_size or training.batch_size
    recent = round(training.recent_share * size)

    def draw(replay: replays.ReplayState, key: Array) -> Segment:
        windows_key, padded_key = jax.random.split(key)
        if world_model.streamed:
            return replays.sample_stream(replay, windows_key, size, window, recent, training.recent_windows)
        batch = replays.sample(
            replay, windows_key, size, window, recent, training.recent_windows, world_model.history
        )
        if training.padded_actions == "drawn":
            batch = replays.draw_padded_actions(replay, padded_key, batch)
        return batch

    return draw


def make_model_update(world_model: WorldModel, config: Config, mesh: Mesh | None = None) -> ModelUpdate:
    """Make the one update of a world model from a replay (line 6): the loop, fixed data and the library call it.

    Args:
      mesh: the devices among which batches are shared out; None for one.
    """
    draw = make_draw(world_model, config)

    def update_model(
        model_state: Any, replay: replays.ReplayState, normaliser: Normaliser, batch_key: Array, update_key: Array
    ) -> tuple[Any, Metrics]:
        batch = draw(replay, batch_key)
        return world_model.update(model_state, shared_out(batch, mesh), normaliser, update_key)  # Algorithm 1

    return update_model


def make_steps(
    config: Config, spec: EnvSpec, world_model: WorldModel, agent: Agent, mesh: Mesh | None = None
) -> Steps:
    """Make the pure functions that the loop compiles.

    Args:
      mesh: the devices among which trajectories and batches are shared out; None for one.
    """
    window = world_model.states_of_episode(config.horizon)
    read = replays.sample_stream if world_model.streamed else replays.sample
    updates_per_step = model_updates_per_policy_update(config)
    update_model = make_model_update(world_model, config, mesh)

    def acting(state: TrainState) -> Params:
        return jax.tree.map(jnp.copy, agent.acting(state.agent, state.world_model))

    def insert(state: TrainState, chunk: Transitions) -> TrainState:
        return on_all(state.replace(replay=replays.add(state.replay, chunk, window)), mesh)

    def improve_policy(state: TrainState) -> PolicyPart:
        context_key, windows_key, imagine_key, learn_key = (
            key_for(state.root_key, stream, state.policy_updates)
            for stream in ("context", "windows", "imagine", "learn")
        )
        normaliser = normalisers.to_normaliser(state.replay.moments)
        imagined, windows, aux = None, None, {}
        if agent.trajectories:
            contexts = replays.sample_contexts(
                state.replay, context_key, agent.trajectories, world_model.context_length
            )
            contexts = shared_out(contexts, mesh)
            imagined, aux = agent.imagine(state.agent, state.world_model, contexts, normaliser, imagine_key)  # 7
        if agent.windows is not None:
            windows = shared_out(read(state.replay, windows_key, *agent.windows), mesh)
        progress = state.policy_updates.astype(jnp.float32) / planned_policy_updates(config)
        experience = Experience(imagined, windows, normaliser, progress)
        learnt, metrics = agent.update(state.agent, state.world_model, experience, learn_key)  # 8
        told = {name: x for name, x in aux.items() if name != "guidance/largest_delta"}
        if imagined is not None:
            told["imagination/reward_mean"] = jnp.mean(imagined.rewards)
            ends = jnp.any(imagined.terminals > 0.5, axis=1)
            told["imagination/terminal_rate"] = jnp.mean(ends.astype(jnp.float32))
        finite = all_finite(metrics if imagined is None else imagined)
        return on_all(PolicyPart(learnt, aux, state.policy_updates + 1, told | metrics, finite), mesh)

    def improve_model(state: TrainState) -> ModelPart:
        normaliser = normalisers.to_normaliser(state.replay.moments)

        def one(carry: tuple[Any, Array], _: None) -> tuple[tuple[Any, Array], Metrics]:
            model_state, updates = carry
            keys = (key_for(state.root_key, stream, updates) for stream in ("batch", "denoise"))
            model_state, metrics = update_model(model_state, state.replay, normaliser, *keys)
            return (model_state, updates + 1), metrics

        if updates_per_step == 0:
            return ModelPart(state.world_model, state.model_updates, {})
        start = (state.world_model, state.model_updates)
        (model_state, updates), every = jax.lax.scan(one, start, None, length=updates_per_step)  # 6
        return on_all(ModelPart(model_state, updates, jax.tree.map(lambda x: x.mean(axis=0), every)), mesh)

    def finish(model_state: Any, policy: PolicyPart, model_metrics: Metrics) -> tuple[Any, Output]:
        # 9: delta was measured under the policy that guided, and is used from the next imagination on.
        if agent.trajectories:  # an agent that imagines for itself measures nothing for the model
            model_state = world_model.adapt(model_state, policy.aux)
        acting = agent.acting(policy.agent, model_state)
        return model_state, _report(acting, policy.metrics | model_metrics, policy.finite)

    def report_warmup(state: TrainState, model_metrics: Metrics) -> Output:
        return _report(agent.acting(state.agent, state.world_model), model_metrics, jnp.bool_(True))

    def learn(state: TrainState, chunk: Transitions) -> tuple[TrainState, Output]:
        state = insert(state, chunk)  # 5
        # DEVIATION from Algorithm 3, like the official code: the policy learns from the model before its updates.
        policy, model = improve_policy(state), improve_model(state)
        model_state, output = finish(model.world_model, policy, model.metrics)
        return join(state, policy, model, model_state), output

    def finite(state: TrainState) -> Array:
        return jnp.stack([all_finite(state.world_model), all_finite(state.agent)])

    init = make_init(config, spec, world_model, agent)
    return Steps(init, acting, insert, improve_policy, improve_model, finish, report_warmup, learn, finite)


def join(state: TrainState, policy: PolicyPart, model: ModelPart, model_state: Any) -> TrainState:
    """Return the state after both parts; rearranges, computes nothing."""
    return state.replace(
        agent=policy.agent,
        policy_updates=policy.policy_updates,
        model_updates=model.model_updates,
        world_model=model_state,
    )


def _report(acting: Params, metrics: Metrics, imagined_finite: Array) -> Output:
    losses = [x for name, x in metrics.items() if "loss" in name]
    # Copies: the state's own buffers are donated to the next step.
    acting = jax.tree.map(jnp.copy, acting)
    finite = jnp.stack([all_finite(losses), imagined_finite, all_finite(acting)])
    scalars = {name: x for name, x in sorted(metrics.items()) if jnp.ndim(x) == 0}
    counts = {name: x for name, x in metrics.items() if name not in scalars}
    values = jnp.stack([x.astype(jnp.float32) for x in scalars.values()]) if scalars else jnp.zeros(0)
    return Output(acting, Measured(values, counts, tuple(scalars)), finite)


# --- compiling -------------------------------------------------------------------------------------------------------


class Compiled(NamedTuple):
    """A step as the loop calls it; ``programs`` are the executables behind it, for measuring them."""

    step: Step
    programs: list[Any]


class Warmup(NamedTuple):
    """The step in which the world model alone learns, and the parts of it that the whole step shares."""

    step: Step
    insert: Any
    improve_model: Any
    model_like: ModelPart  # shapes and dtypes


def compile_init(steps: Steps, seeds: Sequence[int]) -> list[TrainState]:
    """Make the states of runs that begin with ``seeds``.

    The program runs once for each, so that it is hardly optimised (10 s of compiling become 3).
    """
    options = {"xla_backend_optimization_level": 0} if jax.default_backend() == "cpu" else {}
    init = jax.jit(steps.init).lower(np.uint32(0)).compile(compiler_options=options)
    return [init(np.uint32(seed)) for seed in seeds]


def compile_warmup(steps: Steps, state: TrainState, chunk: Transitions, side_by_side: bool) -> Warmup:
    """Compile the step in which only the world model learns; ``state`` is donated whenever it is called.

    Only shapes and dtypes of ``state`` and ``chunk`` matter here. With ``side_by_side`` its parts are compiled for a
    core of their own, as :func:`compile_learn` wants them.
    """
    options = _one_core_each() if side_by_side else {}
    insert = jax.jit(steps.insert, donate_argnums=0).lower(state, chunk).compile(compiler_options=options)
    lowered = jax.jit(steps.improve_model).lower(state)
    improve_model, model_like = lowered.compile(compiler_options=options), lowered.out_info
    report = jax.jit(steps.report_warmup).lower(state, model_like.metrics).compile()

    def warmup(state: TrainState, chunk: Transitions) -> tuple[TrainState, Output]:
        state = insert(state, chunk)
        model = improve_model(state)
        state = state.replace(world_model=model.world_model, model_updates=model.model_updates)
        return state, report(state, model.metrics)

    return Warmup(warmup, insert, improve_model, model_like)


def compile_learn(
    steps: Steps, state: TrainState, chunk: Transitions, side_by_side: bool, warmup: Warmup | None = None
) -> Compiled:
    """Compile ``steps.learn`` as one program, or as two that run at the same time (``loop.side_by_side``).

    Side by side, the numbers are those of the one program but for rounding. ``warmup`` brings the parts that are
    compiled already.
    """
    if side_by_side:
        return _side_by_side(steps, state, warmup or compile_warmup(steps, state, chunk, side_by_side))
    learn = jax.jit(steps.learn, donate_argnums=0).lower(state, chunk).compile()
    return Compiled(learn, [learn])


def _side_by_side(steps: Steps, state: TrainState, warmup: Warmup) -> Compiled:
    """Compile the policy's update apart from the world model's, each for a core of its own.

    Small matrix products do not fill several cores: sharing each among them costs more than it saves, and XLA runs the
    independent loops of one program one after another. Both updates begin from one state and need nothing of each
    other.
    """
    insert, improve_model, model_like = warmup.insert, warmup.improve_model, warmup.model_like
    lowered = jax.jit(steps.improve_policy).lower(state)
    improve_policy, policy_like = lowered.compile(compiler_options=_one_core_each()), lowered.out_info
    finish = jax.jit(steps.finish, donate_argnums=0)
    finish = finish.lower(model_like.world_model, policy_like, model_like.metrics).compile()
    # What one thread dispatches runs one after another on a CPU.
    other_thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="policy")

    def learn(state: TrainState, chunk: Transitions) -> tuple[TrainState, Output]:
        state = insert(state, chunk)
        future = other_thread.submit(lambda: jax.block_until_ready(improve_policy(state)))
        model = improve_model(state)
        policy = future.result()
        model_state, output = finish(model.world_model, policy, model.metrics)
        return join(state, policy, model, model_state), output

    return Compiled(learn, [insert, improve_policy, improve_model, finish])


def _one_core_each() -> dict[str, Any]:
    """Options of the compiler under which a program does not share its matrix products among the cores."""
    return {"xla_cpu_multi_thread_eigen": False} if jax.default_backend() == "cpu" else {}
