"""Print, as JSON, what a step of training on simulated devices makes of some seeds, beside the step on one.

    python tests/training/on_simulated_devices.py AGENT SEEDS DEVICES

Another process than the tests', because JAX must know the number of devices when it starts; ``test_devices`` says it.
"""

import json
import re
import sys

import jax
import numpy as np
import tiny

from polygrad_jax.agents.agent_table import make_agent
from polygrad_jax.training.collecting import empty_chunk
from polygrad_jax.training.devices import make_mesh, sharding_of_state
from polygrad_jax.training.seeds import over_seeds, stacked
from polygrad_jax.training.step import make_steps
from polygrad_jax.world_models.model_table import make_world_model_for_agent

COLLECTIVES = ("all-gather", "all-reduce", "all-to-all", "collective-permute")


def elements(line: str) -> int:
    """The largest array of one instruction's result."""
    result = line.split("=", 1)[1].split("all-", 1)[0]
    shapes = [[int(n) for n in shape.split(",") if n] for shape in re.findall(r"\w+\[([\d,]*)\]", result)]
    return max(int(np.prod(shape)) for shape in shapes)


agent_name, seeds, devices = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
config = tiny.config_of("polygrad", agent_name, tiny.SHORT_PATH)
model = make_world_model_for_agent(config, tiny.SPEC)
agent = make_agent(config, tiny.SPEC, model)
alone = make_steps(config, tiny.SPEC, model, agent)
replay = jax.device_get(tiny.replay_for(tiny.H))
states = [jax.device_get(jax.jit(alone.init)(seed)).replace(replay=replay) for seed in range(seeds)]
chunk = empty_chunk(4, tiny.SPEC)
learn_alone = jax.jit(alone.learn)
expected = stacked([jax.device_get(learn_alone(state, chunk)) for state in states])

mesh = make_mesh(devices, seeds)
together = over_seeds(make_steps(config, tiny.SPEC, model, agent, mesh), seeds, mesh)
state, chunks = jax.device_put(stacked(states), sharding_of_state(mesh, seeds)), stacked([chunk] * seeds)
learn = jax.jit(together.learn, donate_argnums=0).lower(state, chunks).compile()
state, output = learn(state, chunks)

got, wanted = (jax.tree.leaves(jax.device_get(x)) for x in ((state, output), expected))
placed = jax.tree.map(lambda x: x.sharding, state)
learn(state, chunks)  # what a step returns lies where the next one takes it from
far = [~np.isclose(a, b, rtol=2e-3, atol=2e-4) for a, b in zip(got, wanted, strict=True)]
lines = learn.as_text().splitlines()
instructions = {name: [line for line in lines if re.search(rf"= .*\b{name}[-\w]*\(", line)] for name in COLLECTIVES}
print(
    json.dumps(
        {
            "mesh": dict(mesh.shape),
            "differ": sum(int(np.sum(x)) for x in far),
            "numbers": sum(np.size(x) for x in far),
            "counts": {name: len(found) for name, found in instructions.items()},
            "largest_gathered": max((elements(line) for line in instructions["all-gather"]), default=0),
            "devices_of_state": sorted({len(x.device_set) for x in jax.tree.leaves(placed)}),
            "whole_on_each": all(x.is_fully_replicated for x in jax.tree.leaves(placed)),
        }
    )
)
