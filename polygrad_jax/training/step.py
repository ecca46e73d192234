"""Algorithm 3 on the device: one jitted call does all learning of one iteration.

The numbers in the comments are the lines of Algorithm 3. Line 4 (acting in the environment) is the host's, in
``loop.py``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp

from polygrad_jax.config import Config, EnvSpec, denoiser_updates_per_policy_update, planned_policy_updates
from polygrad_jax.data import normaliser as normalisers
from polygrad_jax.data import replay as replays
from polygrad_jax.training.learners import Keys, acting_params, make_learner, shown_actor
from polygrad_jax.types import Array, Metrics, Params, Transitions
from polygrad_jax.world_models.model_table import make_world_model
from polygrad_jax.world_models.simulator import SimulatorHost

# Every use of randomness on the device is fold_in(fold_in(root, stream), counter).
STREAMS = {"world_model_init": 0, "policy_init": 1, "context": 2, "imagine": 3, "batch": 4, "denoise": 5, "errors": 6}


# The run stops, naming it, when one of these is not finite: the first three after every iteration; the state, whose
# damage shows in the next loss, whenever the host looks at the run, and so before every checkpoint.
FINITE_OUTPUTS = ("loss", "imagined trajectory", "policy")
FINITE_STATES = ("world model", "actor and critic")


@flax.struct.dataclass
class TrainState:
    """Everything that learning changes; donated to every iteration."""

    root_key: Array  # uint32 key data
    policy_updates: Array  # int32
    model_updates: Array  # int32
    replay: replays.ReplayState
    world_model: Any
    learner: Any


@flax.struct.dataclass
class Output:
    """What an iteration hands to the host; small, and never donated."""

    actor_params: Params  # what the host acts with
    metrics: Metrics
    finite: Array  # bool, one per name in FINITE_OUTPUTS


@flax.struct.dataclass
class PolicyPart:
    """What a policy update changes, and tells."""

    learner: Any
    world_model: Any  # as imagining leaves it
    policy_updates: Array  # int32
    metrics: Metrics
    finite: Array  # bool, of the imagined trajectories


@flax.struct.dataclass
class ModelPart:
    """What the world model's updates change, and tell."""

    world_model: Any
    model_updates: Array  # int32
    metrics: Metrics


Iteration = Callable[[TrainState, Transitions], tuple[TrainState, Output]]


class Parts(NamedTuple):
    """A policy update and the world model's updates beside it: both begin from one state, neither needs the other."""

    improve_policy: Callable[[TrainState], PolicyPart]
    improve_model: Callable[[TrainState], ModelPart]
    join: Callable[[TrainState, PolicyPart, ModelPart], TrainState]  # rearranges, computes nothing
    report: Callable[[Params, Metrics, Array], Output]  # of what the host acts with, metrics, imagined finite


class Iterations(NamedTuple):
    """The device's functions of one run. Each is a pure function of its arguments; the loop jits each once."""

    init: Callable[[int], TrainState]
    insert: Callable[[TrainState, Transitions], TrainState]
    warmup: Iteration  # only the denoiser learns
    learn: Iteration
    finite: Callable[[TrainState], Array]  # bool, one per name in FINITE_STATES
    acting: Callable[[TrainState], Params]  # what the host acts with
    evaluated: Callable[[TrainState], Params]  # ... and with which it is evaluated
    parts: Parts  # of ``learn``, which is insert, parts, report


def key_for(root_key: Array, stream: str, counter: Array) -> Array:
    """The key of one use: the same in a resumed run as in the uninterrupted one."""
    root = jax.random.wrap_key_data(root_key)
    return jax.random.fold_in(jax.random.fold_in(root, STREAMS[stream]), counter)


def all_finite(tree: Any) -> Array:
    """Whether every entry of every array is finite; true of no arrays at all."""
    return jnp.stack([jnp.bool_(True), *(jnp.isfinite(x).all() for x in jax.tree.leaves(tree))]).all()


def make_iterations(config: Config, spec: EnvSpec, host: SimulatorHost | None = None) -> Iterations:
    """The pure functions that the loop compiles for ``config``; ``host`` as for :func:`make_world_model`."""
    world_model = make_world_model(config, spec, host)
    learner = make_learner(config, spec, world_model)
    groups = config.loop.env_steps_per_iteration // config.loop.env_steps_per_policy_update
    model_updates = denoiser_updates_per_policy_update(config)
    window, size = world_model.window or config.horizon, world_model.batch_size or config.denoiser.batch_size
    recent = round(config.denoiser.recent_share * size)

    def init(seed: int) -> TrainState:
        root_key = jax.random.key_data(jax.random.key(seed))
        return TrainState(
            root_key=root_key,
            policy_updates=jnp.int32(0),
            model_updates=jnp.int32(0),
            replay=replays.init(spec, config.loop.replay_capacity, window),
            world_model=world_model.init(key_for(root_key, "world_model_init", jnp.int32(0))),
            learner=learner.init(key_for(root_key, "policy_init", jnp.int32(0))),
        )

    def insert(state: TrainState, chunk: Transitions) -> TrainState:
        return state.replace(replay=replays.add(state.replay, chunk, window))

    def improve_policy(state: TrainState) -> PolicyPart:
        keys = Keys(*(key_for(state.root_key, stream, state.policy_updates) for stream in ("context", "imagine")))
        progress = state.policy_updates.astype(jnp.float32) / planned_policy_updates(config)
        learnt, model, metrics, imagined = learner.improve(
            state.learner, state.world_model, state.replay, keys, progress
        )
        return PolicyPart(learnt, model, state.policy_updates + 1, metrics, all_finite(imagined))

    def update_model(state: TrainState, _: None) -> tuple[TrainState, Metrics]:
        normaliser = normalisers.to_normaliser(state.replay.moments)
        batch_key = key_for(state.root_key, "batch", state.model_updates)
        batch = replays.sample(
            state.replay, batch_key, size, window, recent, config.denoiser.recent_windows, world_model.history
        )
        if config.denoiser.padded_actions == "drawn":
            batch = replays.draw_padded_actions(state.replay, jax.random.fold_in(batch_key, 1), batch)
        update_key = key_for(state.root_key, "denoise", state.model_updates)
        model, metrics = world_model.update(state.world_model, batch, normaliser, update_key)  # 6 (Algorithm 1)
        return state.replace(world_model=model, model_updates=state.model_updates + 1), metrics

    def improve_model(state: TrainState, count: int = model_updates) -> ModelPart:
        metrics: Metrics = {}
        if count > 0:
            state, every = jax.lax.scan(update_model, state, None, length=count)
            metrics = jax.tree.map(lambda x: x[-1], every)
        return ModelPart(state.world_model, state.model_updates, metrics)

    def join(state: TrainState, policy: PolicyPart, model: ModelPart) -> TrainState:
        return state.replace(
            learner=policy.learner,
            policy_updates=policy.policy_updates,
            model_updates=model.model_updates,
            world_model=world_model.merge(model.world_model, policy.world_model),
        )

    def acting(state: TrainState) -> Params:
        return acting_params(config, state.learner.actor, state.world_model)

    def evaluated(state: TrainState) -> Params:
        return acting_params(config, shown_actor(state.learner), state.world_model)

    def report(actor: Params, metrics: Metrics, imagined_finite: Array) -> Output:
        losses = [x for name, x in metrics.items() if "loss" in name]
        # Copies: the state's own buffers are donated to the next iteration.
        actor = jax.tree.map(jnp.copy, actor)
        finite = jnp.stack([all_finite(losses), imagined_finite, all_finite(actor)])
        return Output(actor_params=actor, metrics=metrics, finite=finite)

    def warmup(state: TrainState, chunk: Transitions) -> tuple[TrainState, Output]:
        state = insert(state, chunk)
        model = improve_model(state, groups * model_updates)
        state = state.replace(world_model=model.world_model, model_updates=model.model_updates)
        return state, report(acting(state), model.metrics, jnp.bool_(True))

    def learn(state: TrainState, chunk: Transitions) -> tuple[TrainState, Output]:
        state = insert(state, chunk)  # 5

        def group(state: TrainState, _: None) -> tuple[TrainState, tuple[Metrics, Array]]:
            # DEVIATION from Algorithm 3, as the official code: the policy learns from the model before its updates.
            policy, model = improve_policy(state), improve_model(state)
            return join(state, policy, model), (policy.metrics | model.metrics, policy.finite)

        state, (metrics, finite) = jax.lax.scan(group, state, None, length=groups)
        return state, report(acting(state), jax.tree.map(lambda x: x[-1], metrics), finite.all())

    def finite(state: TrainState) -> Array:
        return jnp.stack([all_finite(_floats(state.world_model)), all_finite(_floats(state.learner))])

    parts = Parts(improve_policy, improve_model, join, report)
    return Iterations(init, insert, warmup, learn, finite, acting, evaluated, parts)


def _floats(tree: Any) -> list[Array]:
    return [x for x in jax.tree.leaves(tree) if jnp.issubdtype(x.dtype, jnp.floating)]
