import gymnasium as gym
import numpy as np

from polygrad_jax import preset, train


class Point(gym.Env):
    """A point on a line: push it to the origin and keep it there."""

    observation_space = gym.spaces.Box(-np.inf, np.inf, (2,), np.float64)
    action_space = gym.spaces.Box(-2.0, 2.0, (1,), np.float32)

    def __init__(self, render_mode=None):  # Gymnasium passes it
        self.render_mode = render_mode

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.state = self.np_random.uniform(-1.0, 1.0, 2)
        return self.state.copy(), {}

    def step(self, action):
        position, velocity = self.state
        self.state = np.array([position + 0.1 * velocity, velocity + 0.1 * float(action[0])])
        terminated = bool(abs(position) > 3.0)  # the task itself ended the episode; the time limit is Gymnasium's
        return self.state.copy(), 1.0 - abs(position), terminated, False, {}


gym.register("Point-v0", entry_point=Point, max_episode_steps=100)
result = train(preset("smoke", "Point-v0"), "runs/point")
print("last evaluation return:", result.last_return)
