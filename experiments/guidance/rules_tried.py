"""The ways of guiding that the experiments try, and the rules and schedules that the package does not have."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import jax.numpy as jnp

from experiments.harness.guided_sampler import DELTA_LR
from experiments.harness.opened_runs import NUM_STEPS
from experiments.harness.schedules import Spacing, schedule_of
from polygrad_jax import config as configs
from polygrad_jax.config import Config
from polygrad_jax.diffusion.guidance import RULES, Gaussian, Guided, Rule, Strength, largest_delta, score
from polygrad_jax.diffusion.schedule import Coefficients
from polygrad_jax.types import Array

SIGMAS = {"1.0": (1.0,), "0.1": (0.1,), "0.02": (0.02,), "mixed": (0.1, 0.11, 0.93)}
"""Stds of the policy: one for all actions, or three in turn."""
EVERY = (4, 8, 16, 32, NUM_STEPS)
GENTLE = "-gentle"
EVEN, SPACED = Spacing(0.0, 0.0), Spacing(0.1, 0.08)
OF_SCORE = ", z of score"


def _follow_preconditioned_score(before: Guided, policy: Gaussian, strength: Strength, draws: Array) -> Guided:
    """Follow the score with a delta in proportion to each action's variance; that of the smallest is delta itself."""
    share = strength.delta / largest_delta(policy)
    return before._replace(actions=before.actions + share * jnp.square(policy.std) * score(before.actions, policy))


def correlated(rho: float) -> Rule:
    """Return ``correlated`` with a draw that is not kept but follows the last step's with the correlation ``rho``.

    ``z <- rho z + sqrt(1 - rho^2) xi`` and ``a = mu + sigma z``: N(mu, sigma) given the states, for any rho; in the
    last step without a fresh draw. With a relaxation w below 1, ``a <- (1 - w) a + w (mu + sigma z)``.
    """

    def move(before: Guided, policy: Gaussian, strength: Strength, draws: Array) -> Guided:
        kept = jnp.where(strength.is_last, jnp.ones_like(strength.relaxation), rho)
        residual = kept * before.residual + jnp.sqrt(1.0 - jnp.square(kept)) * draws
        target = policy.mean + policy.std * residual
        return Guided((1.0 - strength.relaxation) * before.actions + strength.relaxation * target, residual)

    return RULES["correlated"]._replace(move=move)


RULES["preconditioned"] = Rule(move=_follow_preconditioned_score)


class Tried(NamedTuple):
    """One way of guiding: fields of the config, and for which K and sigmas."""

    guidance: dict[str, Any]
    sampling_steps: tuple[int, ...]
    spacing: Spacing = EVEN
    sigmas: tuple[str, ...] = tuple(SIGMAS)
    z_of: str = ""  # a rule above whose standardised actions are kept, in place of normal draws
    cell: str = ""  # the end of the cell's name: what was thought of later has cells of its own


class Setting(NamedTuple):
    """One way of guiding with one K: its columns, its config, the steps that are sampled."""

    labels: dict[str, Any]
    config: Config
    schedule: Coefficients
    tried: Tried


def relaxed(share: float) -> dict[str, Any]:
    """Return the rule that goes this share of the way to the policy's action in every step but the last."""
    return {"rule": "correlated", "relaxation": share}


RELAXED = relaxed(0.5)
TRIED = {
    "score": Tried({"rule": "score"}, EVERY),
    "score, spaced": Tried({"rule": "score"}, (8, 16, 32), SPACED),
    # with one std for all actions it is score with another delta, which the controller finds too
    "preconditioned": Tried({"rule": "preconditioned"}, (16, 128), sigmas=("mixed",)),
    "correlated 1": Tried(relaxed(1.0), EVERY),
    "correlated 1, relaxed": Tried(RELAXED, EVERY),
    "correlated 1, relaxed, spaced": Tried(RELAXED, (8, 16, 32), SPACED),
    "correlated 1, relaxed, z of score": Tried(RELAXED, (16, 128), z_of="score"),
    "policy_sampling": Tried({"rule": "policy_sampling"}, (16,)),
    "correlated 1, relaxed 0.3": Tried(relaxed(0.3), (16, 32), cell=GENTLE),
    "correlated 1, relaxed 0.2": Tried(relaxed(0.2), (32, 128), cell=GENTLE),
    "correlated 1, relaxed 0.1": Tried(relaxed(0.1), (128,), cell=GENTLE),
}
RANDOM_ACTIONS = Tried({"rule": "random_actions"}, (16,))
COLOURS = {
    "score": ("#0072B2", "o-"),
    "score, spaced": ("#0072B2", "s--"),
    "preconditioned": ("#56B4E9", "o-"),
    "correlated 1": ("#D55E00", "o-"),
    "correlated 1, relaxed": ("#009E73", "o-"),
    "correlated 1, relaxed, spaced": ("#009E73", "s--"),
    "correlated 1, relaxed 0.3": ("#E69F00", "^:"),
    "correlated 1, relaxed 0.2": ("#E69F00", "v:"),
    "correlated 1, relaxed 0.1": ("#E69F00", "x:"),
    "policy_sampling": ("#CC79A7", "o-"),
}


def setting_of(config: Config, rule: str, tried: Tried, sampling_steps: int, eta: float = 1.0) -> Setting:
    """Return one way of guiding with K ``sampling_steps``, whatever way of guiding the config had."""
    guidance = replace(config.guidance, delta_lr=DELTA_LR, **tried.guidance)
    diffusion = replace(config.diffusion, sampling_steps=sampling_steps)
    config = configs.validate(replace(config, guidance=guidance, diffusion=diffusion))
    schedule = schedule_of(config.diffusion, tried.spacing, eta)
    return Setting({"rule": rule, "sampling_steps": sampling_steps}, config, schedule, tried)


def settings(
    config: Config, eta: float, cell: str = "", rules: Sequence[str] = (), only_steps: Sequence[int] = ()
) -> Iterator[Setting]:
    """Yield the rules and K (all, if none is named) of a cell.

    The sigmas are left to the caller: the policy's std needs no new compilation.
    """
    for rule, tried in ((name, t) for name, t in TRIED.items() if t.cell == cell and (not rules or name in rules)):
        for steps in (k for k in tried.sampling_steps if not only_steps or k in only_steps):
            setting = setting_of(config, rule, tried, steps, eta)
            yield setting._replace(labels=setting.labels | {"eta": eta} | tried.spacing.labels())
