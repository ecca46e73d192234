"""A run folder with a prefill and a checkpoint, made without compiling what learns."""

import dataclasses

import jax

from polygrad_jax import config as configs
from polygrad_jax.training import loop
from polygrad_jax.training.step import make_iterations
from polygrad_jax.training.loop import Actors


def config_of(env, steps):
    """A tiny config whose prefill has at least so many steps."""
    base = configs.smoke(env)
    parts = {
        "a2c": dataclasses.replace(base.a2c, hidden_size=8),
        "denoiser": dataclasses.replace(base.denoiser, width=16, num_blocks=1),
        "loop": dataclasses.replace(base.loop, prefill_env_steps=steps),
    }
    return configs.validate(dataclasses.replace(base, horizon=8, **parts))


def record(folder, env="inverted_pendulum", steps=300, open_steps=2):
    """Random episodes, a policy that has learnt nothing, and ``open_steps`` steps of an episode that has not ended."""
    config = config_of(env, steps)
    run = loop.open_run(config, folder)
    iterations = make_iterations(config, run.spec)
    insert = jax.jit(iterations.insert)
    state = loop.prefill(run, jax.jit(iterations.init, static_argnums=0)(0), insert)
    chunk = loop.new_chunk(run, loop.INSERT_CHUNK)
    for k in range(open_steps):
        loop.take_step(run, chunk, loop.uniform_action(1, k, run.spec.action_size))
    state = insert(state, loop.record(run, chunk))
    loop.save(run, state, Actors(state.learner.actor, state.learner.actor))
    for part in (run.metrics, run.collector, run.lock, run.checkpoints):
        part.close()
    return folder
