from dataclasses import replace

import jax
import numpy as np

from polygrad_jax.config import EnvSpec, GuidanceConfig, smoke
from polygrad_jax.data.recordings import Episode, contexts_at, fit, settle
from polygrad_jax.world_models.model_table import make_world_model

random = np.random.default_rng(0)  # a spinning point that is pushed: 100 episodes of 50 steps
x, pushes = random.normal(size=(100, 50, 2)), random.uniform(-1, 1, (100, 50, 1))
for k in range(49):
    x[:, k + 1] = x[:, k] @ np.array([[0.95, -0.3], [0.3, 0.95]]) + pushes[:, k] @ np.array([[0.0, 0.3]])
episodes = [Episode(x[e], pushes[e], rewards=-np.square(x[e]).sum(axis=1)) for e in range(100)]
config = replace(smoke("my own system"), guidance=GuidanceConfig(delta_lr=0.03))
spec = EnvSpec(observation_size=2, action_size=1)
model = make_world_model(config, spec)
state, normaliser = fit(model, episodes, config, jax.random.key(0), updates=2500)
policy = jax.jit(lambda gain, obs: (-gain * obs[..., 1:], 0.3 + 0 * obs[..., 1:]))  # any function to mean and std
given = (policy, 0.5, contexts_at(x[:, 0], spec), normaliser, jax.random.key(1), config.horizon)
_, imagined, metrics = model.imagine(settle(model, state, *given), *given)
print(imagined.observations.shape, "std of standardised actions:", metrics["guidance/sigma"])
