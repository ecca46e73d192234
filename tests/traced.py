"""A world model's functions as the loop jits them, and how often each was traced."""

import jax

from polygrad_jax.types import Policy


def counted(model, policy_apply):
    """``(update, imagine, traces)``; ``imagine`` takes the policy's parameters in place of the policy."""
    traces = {"update": 0, "imagine": 0}

    def update(*args):
        traces["update"] += 1
        return model.update(*args)

    def imagine(state, policy_params, context, normaliser, key):
        traces["imagine"] += 1
        return model.imagine(state, Policy(policy_params, policy_apply), context, normaliser, key)

    return jax.jit(update), jax.jit(imagine), traces
