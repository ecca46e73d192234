"""The Gymnasium spec of a task as a dataset keeps it: JSON, from which another program makes the task again."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import importlib
import json
import warnings
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.envs.registration import EnvSpec

from polygrad_jax.config import EnvConfig
from polygrad_jax.envs import tasks

COMPARED_STEPS = 20


class _NoJSON(ValueError):
    """A part of a spec that JSON does not take; the message names it."""


def recoverable_spec(env_config: EnvConfig) -> tuple[EnvSpec | None, str | None]:
    """Return the spec of a task, from whose JSON the same task is made, or None and what is missing.

    Classes and functions become the names that they are imported by, arrays become lists. The task is made again from
    the JSON: its spaces and first steps must be those of the task. Where its wrappers are made by what the id
    registers, the registered spec without them is enough.
    """
    with contextlib.closing(tasks.make(env_config)) as env, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Gymnasium warns of what it cannot copy, and gives None
        spec, task = env.spec, _Behaviour.of(env)
    if spec is None:
        return None, "the task has no spec that can be copied"
    reasons = []
    for candidate in (spec, gym.registry.get(spec.id, spec)):
        try:
            plain = _plain(candidate)
            reason = _why_another(plain, task)
        except _NoJSON as error:
            reason = str(error)
        if reason is None:
            return plain, None
        reasons.append(reason)
    return None, reasons[0]


@dataclasses.dataclass(frozen=True)
class _Behaviour:
    """The spaces of a task, and its first steps."""

    observations: gym.Space
    actions: gym.Space
    steps: list[np.ndarray]

    @classmethod
    def of(cls, env: gym.Env) -> _Behaviour:
        random, (observation, _) = np.random.default_rng(0), env.reset(seed=0)
        steps = [np.array(observation, np.float64)]
        for _ in range(COMPARED_STEPS):
            action = random.uniform(-1.0, 1.0, env.action_space.shape).astype(env.action_space.dtype)
            observation, reward, terminal, truncated, _ = env.step(action)
            steps.append(np.append(np.array(observation, np.float64), [reward, terminal, truncated]))
            if terminal or truncated:
                break
        return cls(env.observation_space, env.action_space, steps)


def _why_another(spec: EnvSpec, task: _Behaviour) -> str | None:
    """Say in what the task that the JSON of ``spec`` makes is another; None where it is the same."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            with contextlib.closing(gym.make(EnvSpec.from_json(spec.to_json()), disable_env_checker=True)) as env:
                again = _Behaviour.of(env)
        except Exception as error:  # whatever its constructor makes of what JSON leaves
            words = " ".join(f"{type(error).__name__}: {error}".split())
            return f"{spec.id} cannot be made again from its spec ({words})"
    if (again.observations, again.actions) != (task.observations, task.actions):
        return f"{spec.id} made again from its spec has other spaces"
    same = len(again.steps) == len(task.steps) and all(map(np.array_equal, again.steps, task.steps))
    return None if same else f"{spec.id} made again from its spec gives other observations or rewards"


def _plain(spec: EnvSpec) -> EnvSpec:
    """Return a copy of a spec with nothing in it that JSON does not take.

    Raises:
      _NoJSON: there is something that has no form in JSON.
    """
    wrappers = tuple(
        dataclasses.replace(
            wrapper,
            entry_point=_import_name(wrapper.entry_point, wrapper.name),
            kwargs=None if wrapper.kwargs is None else _plain_arguments(wrapper.kwargs, wrapper.name),
        )
        for wrapper in spec.additional_wrappers
    )
    plain = copy.copy(spec)  # replace() would parse the id again
    plain.entry_point = _import_name(spec.entry_point, spec.id)
    plain.vector_entry_point = None if callable(spec.vector_entry_point) else spec.vector_entry_point
    plain.kwargs = _plain_arguments(spec.kwargs, spec.id)
    plain.additional_wrappers = wrappers
    return plain


def _import_name(entry_point: Any, owner: str) -> str:
    """Return ``module:name``, by which a class or function is imported."""
    if isinstance(entry_point, str):
        return entry_point
    module, name = getattr(entry_point, "__module__", "__main__"), getattr(entry_point, "__qualname__", "")
    with contextlib.suppress(ImportError):
        if module != "__main__" and getattr(importlib.import_module(module), name, None) is entry_point:
            return f"{module}:{name}"
    raise _NoJSON(f"entry_point of {owner} is {name or entry_point}, which no other program can import by name")


def _plain_arguments(arguments: dict[str, Any], owner: str) -> dict[str, Any]:
    """Return keyword arguments with lists for arrays and Python's numbers for NumPy's."""
    plain = {}
    for name, value in arguments.items():
        try:
            plain[name] = json.loads(json.dumps(value, default=_of_numpy))
        except (TypeError, ValueError):
            raise _NoJSON(f"argument {name} of {owner} is a {type(value).__name__}, which JSON does not take") from None
    return plain


def _of_numpy(value: Any) -> Any:
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    raise TypeError(type(value).__name__)
