from dataclasses import replace

import gymnasium as gym
import jax
import minari
import numpy as np

from polygrad_jax import EnvSpec, Episode, fit, make_world_model, preset
from polygrad_jax.data.minari_dataset import to_unit

env = minari.DataCollector(gym.make("Pendulum-v1"))  # a dataset to begin with: 30 episodes of random actions
env.action_space.seed(0)
for seed in range(30):
    env.reset(seed=seed)
    for _ in range(200):
        env.step(env.action_space.sample())
env.create_dataset("pendulum/random-v0")

dataset = minari.load_dataset("pendulum/random-v0")
bounds = dataset.action_space.low, dataset.action_space.high
episodes = [
    Episode(e.observations[:-1], to_unit(e.actions, *bounds), e.rewards, bool(e.terminations[-1]))
    for e in dataset.iterate_episodes()
]
config = replace(preset("smoke", "Pendulum-v1"), world_model="ensemble")
model = make_world_model(config, EnvSpec(observation_size=3, action_size=1))
state, normaliser = fit(model, episodes[1:], config, jax.random.key(0), updates=1500)

before, actions, after = episodes[0].observations[:-1], episodes[0].actions[:-1], episodes[0].observations[1:]
predicted = jax.jit(model.step)(state, before, actions, normaliser, jax.random.key(1)).observations
print("squared error one step ahead:", np.square(predicted - after).mean())
print("of predicting that nothing moves:", np.square(before - after).mean())
