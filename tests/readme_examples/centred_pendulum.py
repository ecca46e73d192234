import gymnasium as gym

from polygrad_jax import preset, train
from polygrad_jax.config import override


class Centred(gym.Wrapper):
    """Take the cart's distance from the middle of its track, in metres, off the reward."""

    def step(self, action):
        observation, reward, terminated, truncated, info = self.env.step(action)
        return observation, reward - abs(observation[0]), terminated, truncated, info


def make(**given):  # Gymnasium passes render_mode
    return Centred(gym.make("InvertedPendulum-v5", **given))


if "CentredPendulum-v0" not in gym.registry:  # run as a program, this file is imported by its name, too
    gym.register("CentredPendulum-v0", entry_point="centred_pendulum:make")

if __name__ == "__main__":
    config = override(preset("smoke", "centred_pendulum:CentredPendulum-v0"), {"loop.total_env_steps": 2_000})
    result = train(config, "runs/centred")
    print("last evaluation return:", result.last_return)
