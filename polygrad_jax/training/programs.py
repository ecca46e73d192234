"""How the learning of an iteration is compiled: as one program, or as two that run at the same time.

Small matrix products do not fill several cores: sharing each among them costs more than it saves, and XLA runs the
independent loops of one program one after another. So on a CPU the policy's update and the world model's, which begin
from one state and do not need each other, become two programs, each on a core of its own.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import jax

from polygrad_jax.config import Config
from polygrad_jax.training.step import Iteration, Iterations, Output, TrainState
from polygrad_jax.types import Transitions


class Learning(NamedTuple):
    """``learn`` compiled; ``programs`` are the executables behind it, for measuring them."""

    learn: Iteration
    programs: list[Any]


def compile_learning(iterations: Iterations, config: Config, state: TrainState, chunk: Transitions) -> Learning:
    """``iterations.learn`` as ``config.loop.side_by_side`` asks; ``state`` is donated whenever it is called.

    Only shapes and dtypes of ``state`` and ``chunk`` matter here. Side by side, the numbers are those of the one
    program but for rounding.
    """
    if config.loop.side_by_side:
        return _side_by_side(iterations, state, chunk)
    learn = jax.jit(iterations.learn, donate_argnums=0).lower(state, chunk).compile()
    return Learning(learn, [learn])


def _side_by_side(iterations: Iterations, state: TrainState, chunk: Transitions) -> Learning:
    parts = iterations.parts

    def compiled(function: Callable[..., Any], *example: Any, donated: tuple[int, ...] = ()) -> tuple[Any, Any]:
        lowered = jax.jit(function, donate_argnums=donated).lower(*example)
        return lowered.compile(compiler_options=_one_core_each()), lowered.out_info

    insert, _ = compiled(iterations.insert, state, chunk, donated=(0,))
    improve_policy, policy_like = compiled(parts.improve_policy, state)
    improve_model, model_like = compiled(parts.improve_model, state)
    acting_like = iterations.acting(parts.join(state, policy_like, model_like))
    metrics_like = policy_like.metrics | model_like.metrics
    report, _ = compiled(parts.report, acting_like, metrics_like, policy_like.finite)
    # What one thread dispatches runs one after another on a CPU.
    other_thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="policy")

    def learn(state: TrainState, chunk: Transitions) -> tuple[TrainState, Output]:
        state = insert(state, chunk)
        future = other_thread.submit(lambda: jax.block_until_ready(improve_policy(state)))
        model = improve_model(state)
        policy = future.result()
        state = parts.join(state, policy, model)
        return state, report(iterations.acting(state), policy.metrics | model.metrics, policy.finite)

    return Learning(learn, [insert, improve_policy, improve_model, report])


def _one_core_each() -> dict[str, Any]:
    """Options of the compiler under which a program does not share its matrix products among the cores."""
    return {"xla_cpu_multi_thread_eigen": False} if jax.default_backend() == "cpu" else {}
