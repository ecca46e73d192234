"""A world model's functions as the loop jits them, and how often each was traced."""

import jax


def counted(model, policy_apply, horizon):
    """``(update, imagine, traces)``; ``imagine`` takes everything but the policy's function and the horizon."""
    traces = {"update": 0, "imagine": 0}

    def update(*args):
        traces["update"] += 1
        return model.update(*args)

    def imagine(state, policy_params, context, normaliser, key):
        traces["imagine"] += 1
        return model.imagine(state, policy_apply, policy_params, context, normaliser, key, horizon)

    return jax.jit(update), jax.jit(imagine), traces
