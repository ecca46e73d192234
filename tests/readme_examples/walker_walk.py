import gymnasium as gym
from gymnasium.wrappers import FlattenObservation


def make(**given):
    import shimmy  # noqa: F401  its import registers the tasks of dm_control

    return FlattenObservation(gym.make("dm_control/walker-walk-v0", **given))


gym.register("WalkerWalk-v0", entry_point="walker_walk:make", max_episode_steps=1000)
