"""Check a configuration, convert it to and from JSON, and account for the fields that were removed or renamed."""

from __future__ import annotations

import dataclasses
import json
import math
import numbers
from collections.abc import Iterator
from typing import Any, Literal, NamedTuple, get_args, get_origin, get_type_hints

from polygrad_jax.config.schema import INSERT_CHUNK, LARGEST_COUNT, LARGEST_FLOAT, Config, ConfigError, Range

OPEN_TABLES = {"world_model": "WORLD_MODELS", "agent": "AGENTS", "guidance.rule": "RULES"}
"""Fields whose value is a key of a table that a user's program may extend: any name passes here."""

_KINDS: dict[Any, tuple[type, str]] = {
    int: (numbers.Integral, "a whole number"),
    float: (numbers.Real, "a number"),
    str: (str, "a text"),
}


class Field(NamedTuple):
    """One leaf field of the configuration, as declared."""

    kind: Any  # int, float, bool, str or a Literal
    default: Any
    doc: str
    range: Range | None


def flatten(config: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """``(dotted name, value)`` of every leaf field of a nested config."""
    for f in dataclasses.fields(config):
        value = getattr(config, f.name)
        if dataclasses.is_dataclass(value):
            yield from flatten(value, f"{prefix}{f.name}.")
        else:
            yield f"{prefix}{f.name}", value


def declared_fields(kind: type = Config, prefix: str = "") -> dict[str, Field]:
    """Every leaf field by its dotted name."""
    hints = get_type_hints(kind)
    declared: dict[str, Field] = {}
    for f in dataclasses.fields(kind):
        hint = hints[f.name]
        if dataclasses.is_dataclass(hint):
            declared |= declared_fields(hint, f"{prefix}{f.name}.")
        else:
            declared[f"{prefix}{f.name}"] = Field(hint, f.default, f.metadata["doc"], f.metadata["range"])
    return declared


def validate(config: Config) -> Config:
    """Return the config unchanged.

    Raises:
      ConfigError: a value of the wrong type or out of range, or two fields that contradict each other; one line.
    """
    declared = declared_fields()
    for name, value in flatten(config):
        allowed = _forbids(name, declared[name], value)
        if allowed:
            raise ConfigError(f"{name} is {value}; allowed: {allowed}")
    for line in _contradictions(config):
        raise ConfigError(line)
    return config


def _forbids(name: str, declared: Field, value: Any) -> str | None:
    """Say what is allowed where ``value`` is not; None where it is."""
    if declared.kind is bool:
        return None if isinstance(value, bool) else "True or False"
    if get_origin(declared.kind) is Literal:
        choices = get_args(declared.kind)
        return None if value in choices or (name in OPEN_TABLES and isinstance(value, str)) else ", ".join(choices)
    kind, words = _KINDS[declared.kind]
    if not isinstance(value, kind) or isinstance(value, bool):
        return words
    if declared.kind is float and not abs(value) <= LARGEST_FLOAT:  # nor is NaN; comparing takes any whole number
        return "a finite number" + (f" up to {LARGEST_FLOAT:.1e}" if math.inf > abs(value) else "")
    if declared.range is not None and not declared.range.holds(value):
        return declared.range.words
    if declared.kind is int and name != "seed" and abs(value) > LARGEST_COUNT:
        return f"at most {LARGEST_COUNT}"
    return None


def _contradictions(config: Config) -> Iterator[str]:
    """One line for each pair of fields that cannot go together."""
    diffusion, denoiser, transformer, ensemble = config.diffusion, config.denoiser, config.transformer, config.ensemble
    training, a2c, loop = config.model_training, config.a2c, config.loop
    if diffusion.sampling_steps > diffusion.num_steps:
        yield (
            f"diffusion.sampling_steps is {diffusion.sampling_steps}; allowed: at most diffusion.num_steps "
            f"({diffusion.num_steps})"
        )
    if denoiser.token_dim % denoiser.num_heads != 0:
        yield (
            f"denoiser.token_dim is {denoiser.token_dim}; allowed: a multiple of denoiser.num_heads "
            f"({denoiser.num_heads})"
        )
    if denoiser.token_dim % 2 != 0:
        yield f"denoiser.token_dim is {denoiser.token_dim}; allowed: an even number"
    if transformer.token_dim % transformer.num_heads != 0:
        yield (
            f"transformer.token_dim is {transformer.token_dim}; allowed: a multiple of transformer.num_heads "
            f"({transformer.num_heads})"
        )
    if ensemble.elites > ensemble.members:
        yield f"ensemble.elites is {ensemble.elites}; allowed: at most ensemble.members ({ensemble.members})"
    if a2c.initial_std <= a2c.min_std:
        yield f"a2c.initial_std is {a2c.initial_std}; allowed: greater than a2c.min_std ({a2c.min_std})"
    yield from _contradictions_of_distilling(config)
    yield from _contradictions_of_passes(config)
    yield from _contradictions_of_paths(config)
    updates = training.updates_per_env_step * loop.env_steps_per_policy_update
    if not math.isclose(updates, round(updates), abs_tol=1e-9):  # 100 times 0.07 is not 7 in binary
        yield (
            f"model_training.updates_per_env_step is {training.updates_per_env_step}; allowed: a whole number of "
            f"updates per loop.env_steps_per_policy_update ({loop.env_steps_per_policy_update}) steps"
        )
    if loop.total_env_steps <= loop.prefill_env_steps:
        yield (
            f"loop.total_env_steps is {loop.total_env_steps}; allowed: more than loop.prefill_env_steps "
            f"({loop.prefill_env_steps})"
        )
    least_capacity = max(loop.prefill_env_steps + 10 * config.horizon, loop.env_steps_per_policy_update, INSERT_CHUNK)
    if loop.replay_capacity < least_capacity:
        yield (
            f"loop.replay_capacity is {loop.replay_capacity}; allowed: at least {least_capacity} (the largest of "
            f"loop.prefill_env_steps plus ten horizons, loop.env_steps_per_policy_update and {INSERT_CHUNK})"
        )
    without_latents = {*get_args(declared_fields()["world_model"].kind)} - {"dreamer"}
    if config.agent == "dreamer" and config.world_model in without_latents:
        allowed = "a2c, value_gradient, or world_model dreamer"
        yield f"agent is dreamer with world_model {config.world_model}; allowed: {allowed}"


def _contradictions_of_distilling(config: Config) -> Iterator[str]:
    """One line for each pair of fields of the world model distilled that cannot go together."""
    distilled, diffusion = config.distilled, config.diffusion
    if config.world_model != "distilled":
        return
    if distilled.calls > distilled.steps:
        yield f"distilled.calls is {distilled.calls}; allowed: at most distilled.steps ({distilled.steps})"
    if distilled.steps > diffusion.num_steps:
        yield f"distilled.steps is {distilled.steps}; allowed: at most diffusion.num_steps ({diffusion.num_steps})"
    if diffusion.prediction == "noise":  # which says little of what is clean where almost all is noise
        yield "diffusion.prediction is noise with world_model distilled; allowed: clean, change"


def _contradictions_of_paths(config: Config) -> Iterator[str]:
    """One line for each pair of fields of value gradients that cannot go together."""
    settings = config.value_gradient
    if settings.path == "imagined" and not 0 < settings.path_length < config.horizon:
        yield (
            f"value_gradient.path_length is {settings.path_length} with value_gradient.path imagined; allowed: from 1 "
            f"to below horizon ({config.horizon})"
        )
    if settings.path == "imagined" and settings.starts != "imagined":
        yield f"value_gradient.starts is {settings.starts} with value_gradient.path imagined; allowed: imagined"
    guided = config.agent == "value_gradient" and settings.starts == "imagined" and config.world_model == "polygrad"
    if guided and settings.trajectories * (config.horizon - 1) < 2:
        yield (
            f"value_gradient.trajectories is {settings.trajectories} with horizon {config.horizon}; allowed: 2 or "
            "more, since one transition has no standard deviation to tune guidance by"
        )
    if 0 < settings.final_gamma < settings.gamma:
        yield (
            f"value_gradient.final_gamma is {settings.final_gamma}; allowed: 0, or at least value_gradient.gamma "
            f"({settings.gamma})"
        )


def _contradictions_of_passes(config: Config) -> Iterator[str]:
    """One line for each pair of fields of A2C's passes that cannot go together."""
    a2c = config.a2c
    if a2c.learning_rates != "adapted" and a2c.search:
        yield f"a2c.learning_rates is {a2c.learning_rates}; allowed: adapted, or any with a2c.search False"
    paper = {"epochs": 1, "minibatches": 1, "clip_ratio": 0.0}
    for name, value in paper.items():
        if getattr(a2c, name) != value and a2c.learning_rates == "adapted":
            yield (
                f"a2c.{name} is {getattr(a2c, name)}; allowed: {value} with a2c.learning_rates adapted; others with "
                "constant or falling, and a2c.search False"
            )
    if a2c.clip_ratio > 0 and a2c.epochs == a2c.minibatches == 1:
        yield (
            f"a2c.clip_ratio is {a2c.clip_ratio}; allowed: 0.0 with a2c.epochs 1 and a2c.minibatches 1, where the only "
            "step begins at the ratio 1"
        )
    if a2c.learning_rates != "adapted" and a2c.epochs > 1 and a2c.clip_ratio == 0:
        yield (
            f"a2c.epochs is {a2c.epochs} with a2c.clip_ratio 0.0, so that nothing bounds how improbable later passes "
            "make an action; allowed: 1, or a2c.clip_ratio above 0"
        )
    transitions = a2c.trajectories * (config.horizon - 1)
    if transitions % a2c.minibatches != 0 or transitions < 2 * a2c.minibatches:
        yield (
            f"a2c.minibatches is {a2c.minibatches}; allowed: a number of equal parts, of two or more each, of "
            f"a2c.trajectories times horizon - 1 ({transitions})"
        )


# --- fields that were removed or renamed ------------------------------------------------------------------------------

RENAMED: dict[str, str] = {
    "learner": "agent",
    **{
        f"denoiser.{name}": f"model_training.{name}"
        for name in ("batch_size", "recent_share", "recent_windows", "padded_actions")
    },
    "loop.denoiser_warmup_env_steps": "model_training.warmup_env_steps",
    "loop.denoiser_updates_per_env_step": "model_training.updates_per_env_step",
    **{
        f"latent_policy.{name}": f"dreamer_agent.{name}"
        for name in ("horizon", "units", "layers", "gamma", "gradient", "entropy_weight", "learning_rate")
    },
}
"""Old dotted name -> new one."""

RENAMED_VALUES: dict[tuple[str, Any], Any] = {("learner", "latent"): "dreamer"}
"""(old dotted name, old value) -> the value under the new name."""


class Removed(NamedTuple):
    """A field that is no more: the value that holds now, and what replaced the choice."""

    constant: Any
    instead: str = ""

    def words(self) -> str:
        return self.instead or f"always {self.constant}"


_OWN_SCHEDULE = "pass make_polygrad a schedule of your own"
REMOVED: dict[str, Removed] = {
    "diffusion.sampling_tau": Removed(0.0, f"the sampled steps are evenly spaced; for others {_OWN_SCHEDULE}"),
    "diffusion.sampling_floor": Removed(0.0, f"sampling ends at the last step; to end before it {_OWN_SCHEDULE}"),
    "diffusion.eta": Removed(1.0, f"sampling adds the full posterior noise (DDPM); for less {_OWN_SCHEDULE}"),
    "guidance.rho": Removed(1.0, "rule correlated keeps one draw per run; for another register a rule in RULES"),
    "guidance.max_delta_over_variance": Removed(1.0, "delta is at most the policy's smallest variance"),
    "denoiser.embed_dim": Removed(128),
    "denoiser.ema_every_updates": Removed(10),
    "denoiser.ema_start_updates": Removed(2000),
    "ensemble.batch_size": Removed(256, "model_training.batch_size"),
    "ensemble.heldout_share": Removed(0.1),
    "ensemble.heldout_decay": Removed(0.99),
    "dreamer.bins": Removed(255),
    "dreamer.unimix": Removed(0.01),
    "dreamer.free_nats": Removed(1.0),
    "dreamer.dynamics_scale": Removed(0.5),
    "dreamer.representation_scale": Removed(0.1),
    "dreamer.adam_eps": Removed(1e-8),
    "dreamer.grad_clip": Removed(1000.0),
    "latent_policy.return_lambda": Removed(0.95),
    "latent_policy.min_std": Removed(0.1),
    "latent_policy.max_std": Removed(1.0),
    "latent_policy.bins": Removed(255),
    "latent_policy.adam_eps": Removed(1e-5),
    "latent_policy.grad_clip": Removed(100.0),
    "latent_policy.slow_critic_rate": Removed(0.02),
    "latent_policy.slow_critic_weight": Removed(1.0),
    "latent_policy.return_decay": Removed(0.99),
    "latent_policy.low_percentile": Removed(5.0),
    "latent_policy.high_percentile": Removed(95.0),
    "latent_policy.least_scale": Removed(1.0),
    "a2c.search_tolerance": Removed(0.2),
    "a2c.search_ratio": Removed(0.8),
    "a2c.search_max_retries": Removed(50),
    "a2c.log_lr_step": Removed(3e-4),
    "a2c.normalise_advantages": Removed(True),
    "loop.overlap": Removed(False, "each iteration collects, then learns"),
    "loop.env_steps_per_iteration": Removed(4, "loop.env_steps_per_policy_update"),
}
"""Old dotted name -> the constant in its place. A saved value other than the constant is refused."""


def removed_field(name: str) -> str | None:
    """Say in one line what replaced a removed or renamed field; None for any other name.

    Args:
      name: a dotted name, or an option as typed (``--loop.no-overlap``).
    """
    group, _, last = name.lstrip("-").split("=")[0].replace("-", "_").rpartition(".")
    for dotted in (f"{group}.{last}".lstrip("."), f"{group}.{last.removeprefix('no_')}".lstrip(".")):
        if dotted in RENAMED:
            values = [f"{old} is now {new}" for (field, old), new in RENAMED_VALUES.items() if field == dotted]
            return f"{dotted} was renamed; allowed: {RENAMED[dotted]}" + "".join(f" ({words})" for words in values)
        if dotted in REMOVED:
            return f"{dotted} was removed; instead: {REMOVED[dotted].words()}"
    return None


def _upgrade(saved: dict[str, Any]) -> dict[str, Any]:
    """Carry a configuration of the revision before ``model_training`` over to today's fields.

    Raises:
      ConfigError: a removed field is not at the constant that replaced it; one line names all such fields.
    """
    old = {
        f"{group}.{name}" if isinstance(values, dict) else group: value
        for group, values in saved.items()
        for name, value in (values.items() if isinstance(values, dict) else [("", values)])
    }
    refused: list[str] = []
    new: dict[str, Any] = {}
    for name, value in old.items():
        if name in RENAMED:
            known = isinstance(value, str)
            new[RENAMED[name]] = RENAMED_VALUES.get((name, value), value) if known else value
        elif name not in REMOVED:
            new[name] = value
        elif name == "ensemble.batch_size":
            continue
        else:
            constant, instead = REMOVED[name]
            if name == "loop.env_steps_per_iteration":
                constant = old.get("loop.env_steps_per_policy_update", constant)
            if value != constant:
                refused.append(f"{name} is {value}; allowed: {constant}" + (f" ({instead})" if instead else ""))
    if old.get("world_model") == "ensemble" and "ensemble.batch_size" in old:
        new["model_training.batch_size"] = old["ensemble.batch_size"]  # what its gradient steps were of
    if old.get("guidance.rule") == "preconditioned":
        refused.append("guidance.rule is preconditioned, which was removed; allowed: a rule registered in RULES")
    if refused:
        raise ConfigError("saved configuration: " + "; ".join(refused))
    nested: dict[str, Any] = {}
    for name, value in new.items():
        group, _, last = name.rpartition(".")
        fields = nested.setdefault(group, {}) if group else nested
        if not isinstance(fields, dict):
            raise ConfigError(f"saved configuration: {group} is {fields!r}; allowed: its fields by name")
        fields[last] = value
    return nested


# --- to and from JSON ------------------------------------------------------------------------------------------------


def to_dict(config: Config) -> dict[str, Any]:
    """The config as nested plain dictionaries of Python's own numbers: JSON knows none of NumPy's."""
    return dataclasses.asdict(config, dict_factory=lambda items: {name: _python_number(x) for name, x in items})


def _python_number(value: Any) -> Any:
    if isinstance(value, numbers.Real) and not isinstance(value, bool):
        return int(value) if isinstance(value, numbers.Integral) else float(value)
    return value


def from_dict(saved: dict[str, Any]) -> Config:
    """The inverse of :func:`to_dict`; reads configurations of the revision before too.

    A field that an older revision did not write takes its default, which is what that revision did (it made no films).

    Raises:
      ConfigError: an unknown field, a removed field at a value that is no longer possible, or a value in place of
        fields.
    """
    if isinstance(saved, dict) and "model_training" not in saved:
        saved = _upgrade(saved)
    return _build(Config, saved)


def _build(kind: type, saved: Any) -> Any:
    if not isinstance(saved, dict):
        raise ConfigError(f"saved configuration: {saved!r} in place of {kind.__name__}; allowed: its fields by name")
    hints = get_type_hints(kind)
    unknown = sorted(set(saved) - set(hints))
    if unknown:
        raise ConfigError(
            f"saved configuration of {kind.__name__}: unknown fields {unknown}; allowed: a run folder written by this "
            "version or an older one"
        )
    values = {
        name: _build(hint, saved[name]) if dataclasses.is_dataclass(hint) else saved[name]
        for name, hint in hints.items()
        if name in saved
    }
    return kind(**values)


def to_json(config: Config) -> str:
    """The config as indented JSON."""
    return json.dumps(to_dict(config), indent=2) + "\n"
