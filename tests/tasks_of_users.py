"""Tasks as users bring them: MuJoCo tasks in wrappers, with a memory of their own, or not MuJoCo's at all."""

import math

import gymnasium as gym
import numpy as np
from gymnasium.envs.mujoco.inverted_pendulum_v5 import InvertedPendulumEnv
from gymnasium.wrappers import (
    Autoreset,
    DelayObservation,
    FlattenObservation,
    FrameStackObservation,
    StickyAction,
    TimeAwareObservation,
    TransformObservation,
    TransformReward,
)

ANYWHERE = gym.spaces.Box(-np.inf, np.inf, (4,), np.float64)


def register(entry_point, name=None, **kwargs):
    """Register a task once; its id."""
    name = f"Users{name or entry_point.__name__}-v0"
    if name not in gym.registry:
        gym.register(name, entry_point, **{"max_episode_steps": 1000} | kwargs)
    return name


def wrapped(name, wrapper, *args, **kwargs):
    """Register the pendulum in a wrapper."""

    def make(**given):
        return wrapper(gym.make("InvertedPendulum-v5", **given), *args, **kwargs)

    return register(make, name, max_episode_steps=None)


class Pendulum(InvertedPendulumEnv):
    """The pendulum; what the tasks below change."""

    def __init__(self, render_mode=None):
        super().__init__(render_mode=render_mode)


class Upright(Pendulum):
    """Never ends, so that its first episode is as long as its time limit."""

    def step(self, action):
        observation, reward, _, truncated, info = super().step(action)
        return observation, reward, False, truncated, info


class GoalPerEpisode(Pendulum):
    """Rewarded for being at a goal that an attribute keeps."""

    def reset_model(self):
        self.goal = self.np_random.uniform(-1, 1)
        return super().reset_model()

    def step(self, action):
        observation, _, *rest = super().step(action)
        return observation, -abs(observation[0] - self.goal), *rest


class GoalPerInstance(GoalPerEpisode):
    """Its goal is drawn where the task is made, from no seed."""

    def __init__(self, render_mode=None):
        self.goal = np.random.default_rng().uniform(-1, 1)
        super().__init__(render_mode=render_mode)

    def reset_model(self):
        return Pendulum.reset_model(self)


class MassPerEpisode(Pendulum):
    """Each episode has a pole of another mass."""

    def reset_model(self):
        self.model.body_mass[2] = self.np_random.uniform(2, 8)
        return super().reset_model()


class MassInSomeEpisodes(Pendulum):
    """Every third episode has a heavier pole."""

    episodes = 0

    def reset_model(self):
        self.episodes += 1
        self.model.body_mass[2] = 8.0 if self.episodes % 3 == 0 else 5.0
        return super().reset_model()


class RewardByStep(Pendulum):
    """Rewards fall with the steps of the episode."""

    def reset_model(self):
        self.steps = 0
        return super().reset_model()

    def step(self, action):
        self.steps += 1
        observation, reward, *rest = super().step(action)
        return observation, reward * 0.99**self.steps, *rest


class OtherFromStep50(Upright):
    """Its motor breaks two seconds after the start of an episode, at step 50, and nothing shows it before."""

    def reset_model(self):
        self.broken = False
        return super().reset_model()

    def step(self, action):
        self.broken = self.broken or self.data.time > 2.0
        return super().step(0.5 * action if self.broken else action)


class BonusAtTheEnd(Upright):
    """Counts its steps and pays at its own time limit."""

    def reset_model(self):
        self.steps = 0
        return super().reset_model()

    def step(self, action):
        self.steps += 1
        observation, reward, terminal, _, info = super().step(action)
        return observation, reward + 100 * (self.steps == 200), terminal, self.steps == 200, info


class EndsByPatience(Pendulum):
    """Terminal after 12 steps, which an attribute counts."""

    def reset_model(self):
        self.steps = 0
        return super().reset_model()

    def step(self, action):
        self.steps += 1
        observation, reward, _, truncated, info = super().step(action)
        return observation, reward, self.steps == 12, truncated, info


class NoisySensor(Pendulum):
    """Observations with noise."""

    def _get_obs(self):
        return super()._get_obs() + self.np_random.normal(0, 0.01, 4)


class SmoothedAction(Pendulum):
    """Executes a mean of the last two actions."""

    def reset_model(self):
        self.last = np.zeros(1)
        return super().reset_model()

    def step(self, action):
        self.last, action = action, 0.5 * (action + self.last)
        return super().step(action)


class StrictAboutItsEnd(Pendulum):
    """Refuses to be stepped behind its end."""

    ended = False

    def reset_model(self):
        self.ended = False
        return super().reset_model()

    def step(self, action):
        if self.ended:
            raise RuntimeError("reset me first")
        observation, reward, self.ended, *rest = super().step(action)
        return observation, reward, self.ended, *rest


class NoRewardBehindItsEnd(Pendulum):
    """Its reward is not defined where the pole has fallen far beyond its end."""

    def step(self, action):
        observation, _, *rest = super().step(action)
        return observation, math.sqrt(1.0 - abs(observation[1])), *rest


class OneInstance(Pendulum):
    """Allows one instance at a time."""

    made = 0

    def __init__(self, render_mode=None):
        if OneInstance.made:
            raise RuntimeError("the socket is in use")
        super().__init__(render_mode=render_mode)
        OneInstance.made += 1

    def close(self):
        OneInstance.made -= 1
        super().close()


class ScaledInStep(gym.Wrapper):
    """Scales observations without being an ObservationWrapper."""

    def reset(self, **kwargs):
        observation, info = self.env.reset(**kwargs)
        return 10 * observation, info

    def step(self, action):
        observation, *rest = self.env.step(action)
        return 10 * observation, *rest


class Centred(gym.ObservationWrapper):
    """Takes the mean of all observations so far off each, and looks like no running statistics that are known."""

    total, seen = 0.0, 0

    def observation(self, observation):
        self.total, self.seen = self.total + observation, self.seen + 1
        return observation - self.total / self.seen


class Later(Pendulum):
    """Its rewards halve after 700 steps of its life: later than the look at the start goes."""

    life, halves_at = 0, 700

    def step(self, action):
        self.life += 1
        observation, reward, *rest = super().step(action)
        return observation, reward * (0.5 if self.life > self.halves_at else 1.0), *rest


class Trading(gym.Env):
    """Has the attributes of a MuJoCo task, and is none."""

    observation_space = gym.spaces.Box(-np.inf, np.inf, (3,), np.float64)
    action_space = gym.spaces.Box(-1.0, 1.0, (1,), np.float32)

    def __init__(self, render_mode=None):
        self.model, self.data, self.render_mode = "ARIMA", np.random.default_rng(0).normal(size=(100, 3)), render_mode

    def _get_obs(self):
        return self.data[self.day]

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.day = 0
        return self._get_obs(), {}

    def step(self, action):
        self.day += 1
        return self._get_obs(), float(action[0] * self.data[self.day, 0]), False, self.day == 20, {}


def stacked(**given):
    """The last four observations as one."""
    return FlattenObservation(FrameStackObservation(gym.make("InvertedPendulum-v5", **given), 4))


EQUAL = {
    "ScaledObservations": lambda n: wrapped(n, TransformObservation, lambda x: 10 * x, ANYWHERE),
    "ScaledRewards": lambda n: wrapped(n, TransformReward, lambda r: r / 10),
    "TinyRewards": lambda n: wrapped(n, TransformReward, lambda r: r * 1e-7),
    "Subclass": lambda n: register(Pendulum, n),
}
"""Wrappers that are functions of the step: restored copies go through them and are the task."""

UNEQUAL = {
    "TimeAware": lambda n: wrapped(n, TimeAwareObservation),
    "Centred": lambda n: wrapped(n, Centred),
    "Sticky": lambda n: wrapped(n, StickyAction, 0.5),
    "Delayed": lambda n: wrapped(n, DelayObservation, 2),
    "Autoreset": lambda n: wrapped(n, Autoreset),
    "Stacked": lambda n: register(stacked, n, max_episode_steps=None),
    "ScaledInStep": lambda n: wrapped(n, ScaledInStep),
    "GoalPerEpisode": lambda n: register(GoalPerEpisode, n),
    "GoalPerInstance": lambda n: register(GoalPerInstance, n),
    "MassPerEpisode": lambda n: register(MassPerEpisode, n),
    "MassInSomeEpisodes": lambda n: register(MassInSomeEpisodes, n),
    "RewardByStep": lambda n: register(RewardByStep, n),
    "OtherFromStep50": lambda n: register(OtherFromStep50, n),
    "BonusAtTheEnd": lambda n: register(BonusAtTheEnd, n),
    "EndsByPatience": lambda n: register(EndsByPatience, n),
    "NoisySensor": lambda n: register(NoisySensor, n),
    "SmoothedAction": lambda n: register(SmoothedAction, n),
}
"""Tasks that MuJoCo's state does not determine."""


# --- tasks whose specs are hard to keep ------------------------------------------------------------------------------


class Scaled(gym.ObservationWrapper):
    """Records no constructor arguments."""

    def __init__(self, env, scale):
        super().__init__(env)
        self.scale = scale

    def observation(self, observation):
        return self.scale * observation


def unrecorded(**given):
    """The pendulum in a wrapper without recorded arguments."""
    return Scaled(gym.make("InvertedPendulum-v5", **given), 2.0)


def doubled(task):
    """A task in a wrapper that a function is an argument of."""
    return TransformObservation(task, lambda x: 2 * x, task.observation_space)


def doubled_pendulum(**given):
    """Actions are rescaled by a wrapper around it, which the registered function does not make."""
    return doubled(gym.make("InvertedPendulum-v5", **given))


def doubled_reacher(**given):
    """Actions span [-1, 1] by themselves: the registered function makes all of the task."""
    return doubled(gym.make("Reacher-v5", **given))


class Masses(Pendulum):
    """Takes an array, and what makes one."""

    def __init__(self, masses=None, render_mode=None):
        super().__init__(render_mode=render_mode)
        self.model.body_mass[1:] = np.asarray(masses)


class MassesAsArray(Pendulum):
    """Takes an array, and doubles it: of a list that is another thing."""

    def __init__(self, masses=None, render_mode=None):
        super().__init__(render_mode=render_mode)
        self.model.body_mass[1:] = (2 * masses)[:2]


class WithFunction(Pendulum):
    """Takes a function."""

    def __init__(self, shape=None, render_mode=None):
        super().__init__(render_mode=render_mode)


_MASSES = np.array([8.0, 4.0])
KEPT = {
    "ByClass": lambda n: register(Pendulum, n),
    "ByFunction": lambda n: register(doubled_reacher, n, max_episode_steps=None),
    "UnrecordedWrapper": lambda n: register(unrecorded, n, max_episode_steps=None),
    "ByName": lambda n: register("tasks_of_users:Pendulum", n),
    "NumPyNumber": lambda n: register(Pendulum.__mro__[1], n, kwargs={"reset_noise_scale": np.float32(0.02)}),
    "ArrayArgument": lambda n: register(Masses, n, kwargs={"masses": _MASSES}),
    "Nested": lambda n: register(Masses, n, kwargs={"masses": [np.float64(8.0), np.array(4.0)]}),
}
"""Tasks whose spec is kept once it is plain."""
LOST = {
    "ByLambda": (lambda n: register(lambda **given: Pendulum(**given), n), "entry_point of .* is <lambda>"),
    "WrapperOfFunction": (lambda n: register(doubled_pendulum, n, max_episode_steps=None), "argument func of"),
    "ArrayThatAListIsNot": (lambda n: register(MassesAsArray, n, kwargs={"masses": _MASSES}), "other observations"),
    "Function": (lambda n: register(WithFunction, n, kwargs={"shape": np.tanh}), "argument shape of .* is a ufunc"),
    "Object": (lambda n: register(WithFunction, n, kwargs={"shape": object()}), "argument shape of .* is a object"),
}
"""Tasks whose spec cannot be kept, and what is said."""
