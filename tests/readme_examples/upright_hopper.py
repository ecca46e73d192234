import gymnasium as gym

from polygrad_jax import preset, train
from polygrad_jax.config import override


class Upright(gym.Wrapper):
    """Take the angle of the torso, in radians, off the reward."""

    def step(self, action):
        observation, reward, terminated, truncated, info = self.env.step(action)
        return observation, reward - abs(observation[1]), terminated, truncated, info


def make(**given):  # Gymnasium passes render_mode
    return Upright(gym.make("Hopper-v5", **given))


if "UprightHopper-v0" not in gym.registry:  # run as a program, this file is imported by its name, too
    gym.register("UprightHopper-v0", entry_point="upright_hopper:make")

if __name__ == "__main__":
    config = override(preset("smoke", "upright_hopper:UprightHopper-v0"), {"loop.total_env_steps": 1_500})
    result = train(config, "runs/upright")
    print("last evaluation return:", result.last_return)
