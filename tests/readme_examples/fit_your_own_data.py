from dataclasses import replace

import jax
import numpy as np

from polygrad_jax import EnvSpec, Episode, Policy, fit, make_world_model, preset
from polygrad_jax.config import GuidanceConfig
from polygrad_jax.data.recordings import contexts_at

random = np.random.default_rng(0)  # a spinning point that is pushed: 100 episodes of 50 steps
x, pushes = random.normal(size=(100, 50, 2)), random.uniform(-1, 1, (100, 50, 1))
for k in range(49):
    x[:, k + 1] = x[:, k] @ np.array([[0.95, -0.3], [0.3, 0.95]]) + pushes[:, k] @ np.array([[0.0, 0.3]])
episodes = [Episode(x[e], pushes[e], rewards=-np.square(x[e]).sum(axis=1)) for e in range(100)]

config = replace(preset("smoke", "my own system"), guidance=GuidanceConfig(delta_lr=0.03))
spec = EnvSpec(observation_size=2, action_size=1)
model = make_world_model(config, spec)
state, normaliser = fit(model, episodes, config, jax.random.key(0), updates=2500)

policy = Policy(0.5, lambda gain, obs: (-gain * obs[..., 1:], 0.3 + 0 * obs[..., 1:]))  # any function to mean and std
contexts = contexts_at(x[:, 0], spec)


@jax.jit
def imagine(state, key):
    imagined, measured = model.imagine(state, policy, contexts, normaliser, key)
    return model.adapt(state, measured), imagined, measured["guidance/sigma"]


for key in jax.random.split(jax.random.key(1), 300):  # delta adapts to this policy
    state, imagined, sigma = imagine(state, key)
print(imagined.observations.shape, "std of standardised actions:", sigma)
