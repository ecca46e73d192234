"""Guidance rules that the package leaves to experiments, written as an experiment enters them into the open table."""

import jax.numpy as jnp
import pytest

from polygrad_jax.diffusion.guidance import RULES, Guided, Rule, score


def _follow_preconditioned_score(before, policy, strength, draws):
    """Follow the score times the policy's variance: delta counts in variances of the policy."""
    pull = strength.delta * jnp.square(policy.std) * score(before.actions, policy)
    return before._replace(actions=before.actions + pull)


def _correlate(rho):
    """``z <- rho z + sqrt(1 - rho^2) xi`` and ``a = mu + sigma z``; the last step draws nothing."""

    def move(before, policy, strength, draws):
        share = jnp.where(strength.is_last, 1.0, rho)
        residual = share * before.residual + jnp.sqrt(1.0 - jnp.square(share)) * draws
        target = policy.mean + policy.std * residual
        return Guided((1.0 - strength.relaxation) * before.actions + strength.relaxation * target, residual)

    return move


def correlated(rho: float) -> str:
    """The name of the rule that keeps the share ``rho`` of its draw from step to step; all of it is the package's."""
    return "correlated" if rho == 1.0 else f"correlated, rho {rho}"


OTHER_RULES = {"preconditioned": Rule(move=_follow_preconditioned_score)} | {
    correlated(rho): RULES["correlated"]._replace(move=_correlate(rho)) for rho in (0.0, 0.7, 0.8)
}


@pytest.fixture(autouse=True)
def other_rules(monkeypatch):
    """Enter the rules into the table for one test."""
    for name, rule in OTHER_RULES.items():
        monkeypatch.setitem(RULES, name, rule)
