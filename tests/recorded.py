"""A run folder with a prefill and a checkpoint, made without compiling what learns."""

import jax

from polygrad_jax.config import INSERT_CHUNK, override, smoke, validate
from polygrad_jax.envs.collector import uniform_action
from polygrad_jax.training import loop
from polygrad_jax.training.step import make_steps


def config_of(env, steps, actions="clipped"):
    """A tiny config whose prefill has at least so many steps."""
    tiny = {"horizon": 8, "a2c.hidden_size": 8, "denoiser.width": 16, "denoiser.num_blocks": 1}
    return validate(override(smoke(env), tiny | {"loop.prefill_env_steps": steps, "env.actions": actions}))


def record(folder, env="inverted_pendulum", steps=300, open_steps=2, actions="clipped"):
    """Random episodes, a policy that has learnt nothing, and ``open_steps`` steps of an episode that has not ended."""
    run = loop.begin(config_of(env, steps, actions), folder)
    made = make_steps(run.config, run.spec, run.world_model, run.agent)
    insert = jax.jit(made.insert)
    state = run.collecting.prefill(jax.jit(made.init)(), insert)
    chunk = run.collecting.new_chunk(INSERT_CHUNK)
    for k in range(open_steps):
        run.collecting.take_step(chunk, uniform_action(1, k, run.spec.action_size))
    state = insert(state, run.collecting.record(chunk))
    loop.save(run, state)
    run.checkpoints.close()
    run.close()
    return folder
