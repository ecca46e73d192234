import numpy as np
from stable_baselines3 import PPO

# or model = PPO.load("your_model.zip")
model = PPO("MlpPolicy", "Hopper-v5", policy_kwargs={"log_std_init": -1.0}, seed=0, device="cpu")
model.learn(10_000)
weights = {name: x.numpy() for name, x in model.policy.state_dict().items() if "value" not in name}
np.savez("ppo_hopper.npz", **weights)
