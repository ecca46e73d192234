"""The door through which a user's own task enters: its spaces, what it gives, what it remembers, how it is started."""

import contextlib
import copy
import itertools
import sys
import warnings

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.spaces import Box

from polygrad_jax.config import ConfigError, EnvConfig
from polygrad_jax.data.minari_dataset import to_unit
from polygrad_jax.envs import episodes, tasks
from polygrad_jax.envs.checked_task import EnvStepError, rescaling_to
from polygrad_jax.envs.collector import EVALUATION_STREAM, TRAINING_STREAM, Collector, EnvRestartError, episode_seed

FLOATS = (np.float16, np.float32, np.float64)
_numbers = itertools.count()


class Brought(gym.Env):
    """A task of ten steps; what it declares, gives and raises is given by name."""

    observation_space = Box(-np.inf, np.inf, (2,), np.float64)
    action_space = Box(-2.0, 2.0, (1,), np.float32)
    length = 10

    def __init__(self, render_mode=None):
        self.received = []

    def observe(self):
        return np.array([self.start, float(self.count)])

    def inform(self):
        return {}

    def earn(self):
        return 1.0

    def end(self):
        return self.count >= self.length

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.count, self.start = 0, self.np_random.uniform()
        return self.observe(), self.inform()

    def step(self, action):
        self.received.append(np.array(action))
        self.count += 1
        return self.observe(), self.earn(), self.end(), False, self.inform()


def bring(entry_point=None, register=None, **parts) -> EnvConfig:
    """Register a task with other ``parts`` (methods and attributes)."""
    name = f"PolygradBrought{next(_numbers)}-v0"
    gym.register(name, entry_point=entry_point or type("Own", (Brought,), parts), **(register or {}))
    return EnvConfig(name)


def collect(config, steps=12, action=0.25):
    collector = Collector(config, run_seed=0)
    return [collector.step(np.full(collector.spec.action_size, action)) for _ in range(steps)]


def evaluate(config, count=3):
    env = tasks.make(config)
    size = tasks.spec_of(env).action_size
    env.close()
    return episodes.run_episodes(config, lambda o: np.full((len(o), size), 0.25), count, seed=0)


def assert_refused_alike(config, kind, *words):
    """Collecting and evaluating end with one line that has all the words."""
    for run in (collect, evaluate):
        with pytest.raises(kind) as caught:
            run(config)
        line = str(caught.value)
        assert "\n" not in line and len(line) < 500
        for word in words:
            assert word in line, line


# --- spaces ----------------------------------------------------------------------------------------------------------


def any_box(low, high, shape=(1,), dtype=np.float32) -> Box:
    """A box whose bounds nobody checked."""
    box = Box(-1, 1, shape, dtype)
    box.low, box.high = np.full(shape, low, dtype), np.full(shape, high, dtype)
    return box


@pytest.mark.parametrize(
    "space",
    [
        *(Box(0, 1, (2,), kind) for kind in (np.int8, np.int16, np.int32, np.int64, np.uint8, np.uint32, bool)),
        *(Box(-1.0, 1.0, shape, np.float32) for shape in ((0,), (), (2, 2), (1, 1))),
        *(Box(low, high, (1,), np.float32) for low, high in ((-np.inf, np.inf), (0, np.inf), (-np.inf, 0))),
        *(any_box(low, high) for low, high in ((2, 1), (np.nan, 1), (-1, np.nan), (np.inf, np.inf))),
        any_box(-1, 1, dtype=np.longdouble),
        gym.spaces.Discrete(3),
        gym.spaces.MultiDiscrete([2, 3]),
        gym.spaces.MultiBinary(3),
        gym.spaces.Dict(a=Box(-1.0, 1.0, (1,))),
        gym.spaces.Tuple([Box(-1.0, 1.0, (1,))]),
        gym.spaces.Text(3),
        None,
        "Box",
    ],
    ids=lambda space: " ".join(str(space).split())[:60],
)
def test_action_spaces_that_are_no_bounded_vector_of_floats_are_refused(space):
    assert_refused_alike(bring(action_space=space), ConfigError, "action space is", "allowed")


@pytest.mark.parametrize(
    "space",
    [
        *(Box(-1.0, 1.0, shape, np.float64) for shape in ((0,), (), (2, 2), (1, 2))),
        Box(0, 255, (2, 2, 3), np.uint8),
        gym.spaces.Discrete(2),
        gym.spaces.MultiBinary(2),
        gym.spaces.Dict(a=Box(-1.0, 1.0, (1,))),
        None,
    ],
    ids=lambda space: " ".join(str(space).split())[:60],
)
def test_observation_spaces_that_are_no_vector_are_refused(space):
    assert_refused_alike(bring(observation_space=space), ConfigError, "observation space is", "FlattenObservation")


@pytest.mark.parametrize("kind", [np.uint8, np.int32, np.int64, bool, np.float16, np.float32])
def test_observations_of_every_kind_of_number_are_observed_as_floats(kind):
    """FlattenObservation makes whole numbers of a Discrete or MultiBinary space, so that they must be taken."""
    config = bring(observation_space=Box(0, 1, (2,), kind), observe=lambda self: np.array([0, self.count % 2], kind))
    env = tasks.make(config)
    observation, _ = env.reset(seed=0)
    assert np.issubdtype(env.observation_space.dtype, np.floating) and env.observation_space.contains(observation)
    assert [step.next_observation.tolist() for step in collect(config, 2)] == [[0.0, 1.0], [0.0, 0.0]]
    assert collect(config, 1)[0].observation.dtype == np.float32


def test_what_flatten_observation_makes_is_taken():
    class Place(Brought):
        observation_space = gym.spaces.Discrete(4)

        def observe(self):
            return self.count % 4

    steps = collect(bring(lambda **given: gym.wrappers.FlattenObservation(Place())), 2)
    assert [step.observation.tolist() for step in steps] == [[1, 0, 0, 0], [0, 1, 0, 0]]


def test_spaces_that_a_task_cannot_tell_are_refused():
    def unknown(self):
        raise RuntimeError("not before\nreset")

    config = bring(observation_space=property(unknown))
    assert_refused_alike(config, ConfigError, "observation space is", "not before reset")
    assert_refused_alike(bring(action_space=property(unknown)), ConfigError, "action space is", "not before reset")


# --- rescaling -------------------------------------------------------------------------------------------------------


def random_boxes(count: int) -> list[Box]:
    """Boxes of ordinary, lopsided, huge, tiny, narrow, equal and mixed bounds, in every kind of float."""
    random, boxes = np.random.default_rng(0), []
    for number in range(count):
        kind = FLOATS[number % 3]
        most = np.log10(float(np.finfo(kind).max)) - 0.1
        size = int(random.integers(1, 5))
        magnitude = 10.0 ** random.uniform(-most, most, size)
        centre = random.choice([-1, 1], size) * 10.0 ** random.uniform(-3, min(6, most - 0.4), size)
        low, high = [
            (random.uniform(-9, 9, size), random.uniform(0, 9, size)),
            (np.round(random.uniform(-3, 3, size), 1), np.round(random.uniform(0, 5, size), 1)),
            (-magnitude * random.uniform(0, 1, size), magnitude * random.uniform(0, 1, size)),
            (centre, np.abs(centre) * 10.0 ** random.uniform(-8, 0, size)),
            (centre, np.zeros(size)),
            (np.full(size, -float(np.finfo(kind).max)), np.full(size, float(np.finfo(kind).max))),
        ][number // 3 % 6]
        if number // 3 % 6 in (0, 1, 3, 4):
            high = low + high
        if random.uniform() < 0.3:
            low[0], high[0] = -1, 1
        with np.errstate(over="ignore", under="ignore"):
            low, high = low.astype(kind), high.astype(kind)
        boxes.append(Box(low, high, dtype=kind))
    return boxes


def test_rescaled_actions_never_leave_the_bounds_and_reach_them_exactly():
    random = np.random.default_rng(1)
    for box in random_boxes(270):
        near_ends = 1.0 - 10.0 ** random.uniform(-8, 0, 20)
        inside = np.sort(np.concatenate([[-1.0, 1.0], random.uniform(-1, 1, 20), near_ends, -near_ends]))
        for kind in (np.float32, np.float64):
            given = np.repeat(inside[:, None], box.shape[0], axis=1).astype(kind)
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                actions = rescaling_to(box)(given)
            np.testing.assert_array_equal(actions[[0, -1]], [box.low, box.high])
            assert actions.dtype == box.dtype and box.contains(actions[30]), box
            assert (box.low <= actions).all() and (actions <= box.high).all(), box
            actions, low, high = (x.astype(np.longdouble) for x in (actions, box.low, box.high))
            assert (np.diff(actions, axis=0) >= 0).all(), box
            true = low + (given.astype(box.dtype).astype(np.longdouble) + 1) / 2 * (high - low)
            ulps = np.maximum(np.abs(low), np.abs(high)) * np.finfo(box.dtype).eps
            assert (np.abs(actions - true) <= 3 * ulps + np.finfo(box.dtype).smallest_subnormal).all(), box


def test_rescaling_is_that_of_before_where_that_was_right():
    """[-1, 1] leaves every bit, the zero's sign too; InvertedPendulum's and others equal RescaleAction's to the bit."""
    actions = np.random.default_rng(2).uniform(-1, 1, 10_000).astype(np.float32)
    actions[:4] = -1.0, 1.0, 0.0, -0.0
    unit = rescaling_to(Box(-1.0, 1.0, actions.shape, np.float32))
    assert unit(actions).tobytes() == actions.tobytes() and unit(actions).dtype == np.float32
    for bound in (3.0, 2.0, 0.4, 8.0):
        box = Box(-bound, bound, actions.shape, np.float32)
        theirs = gym.wrappers.RescaleAction(type("Own", (Brought,), {"action_space": box})(), -1.0, 1.0)
        assert rescaling_to(box)(actions).tobytes() == theirs.action(actions).tobytes()


@pytest.mark.parametrize("kind", FLOATS)
@pytest.mark.parametrize("action", [-1.0, 0.25, 1.0, 5.0])
def test_a_task_that_asserts_its_space_gets_what_is_in_it(kind, action):
    class Strict(Brought):
        action_space = Box(np.array([0.1, -1.0, 1.5], kind), np.array([2.5, 1.0, 1.5], kind), dtype=kind)

        def step(self, action):
            assert self.action_space.contains(action), action
            return super().step(action)

    config = bring(Strict)
    collector = Collector(config, 0)
    collector.step(np.full(3, action))
    [received] = collector.env.unwrapped.received
    assert received[2] == 1.5 and received.dtype == kind  # a dimension of one value has that value
    assert len(evaluate(config).returns) == 3


def test_the_ways_back_and_forth_agree():
    """A dataset's actions of a task are read as what the task would execute so; 0 where there is only one value."""
    for box in random_boxes(108):
        actions = np.random.default_rng(3).uniform(-1, 1, (5, *box.shape)).astype(box.dtype)
        with np.errstate(over="ignore"):
            executed = np.stack([rescaling_to(box)(action) for action in actions])
        back = to_unit(executed, np.asarray(box.low, np.float64), np.asarray(box.high, np.float64))
        assert np.isfinite(back).all() and (np.abs(back) <= 1 + 1e-6).all()
        again = np.stack([rescaling_to(box)(action) for action in back.astype(box.dtype)]).astype(np.longdouble)
        most = np.maximum(np.abs(box.low), np.abs(box.high)).astype(np.longdouble)
        wide = np.finfo(box.dtype)
        assert (np.abs(again - executed) <= 6 * most * wide.eps + wide.smallest_subnormal).all(), box
        assert (back[:, box.low == box.high] == 0).all()


def test_the_spec_makes_the_task_again():
    """Without this package where Gymnasium's own wrapper is exact; with the same actions everywhere."""
    for space, wrapper in (
        (Box(-1.0, 1.0, (1,), np.float32), None),
        (Box(-3.0, 3.0, (1,), np.float32), "RescaleAction"),
        (Box(0.1, 2.5, (1,), np.float32), "CheckedTask"),
        (Box(0.5, 0.5, (1,), np.float32), "CheckedTask"),
    ):
        env = tasks.make(bring(action_space=space))
        assert [w.name for w in env.spec.additional_wrappers] == ([] if wrapper is None else [wrapper])
        again = gym.make(copy.deepcopy(env.spec))
        for made in (env, again):
            made.reset(seed=0)
            for action in (-1.0, 0.3, 1.0):
                made.step(np.full(1, action, np.float32))
        assert again.unwrapped.received == env.unwrapped.received


@pytest.mark.parametrize(("task", "wrappers"), [("hopper", []), ("inverted_pendulum", ["RescaleAction"])])
def test_the_spec_of_a_named_task_goes_through_json(task, wrappers):
    env = tasks.make(EnvConfig(task))
    spec = gym.envs.registration.EnvSpec.from_json(env.spec.to_json())
    assert [w.name for w in spec.additional_wrappers] == wrappers
    assert gym.make(spec).action_space == env.action_space


# --- what reset and step give ----------------------------------------------------------------------------------------


def breaks(*_, **__):
    raise ZeroDivisionError("the motor\nis gone")


def first(part, given):
    """Give ``given`` at the reset, then what ``Brought`` gives."""
    return lambda self: given if self.count == 0 else getattr(Brought, part)(self)


def later(part, given):
    """Give ``given`` from the third step on."""
    return lambda self: given if self.count >= 3 else getattr(Brought, part)(self)


BAD_OBSERVATIONS = {
    "shape (1,)": np.zeros(1),
    "shape (3,)": np.zeros(3),
    "shape (2, 1)": np.zeros((2, 1)),
    "shape (1, 2)": [[0.0, 1.0]],
    "shape ()": 1.0,
    "of type NoneType": None,
    "of type dict": {"a": 1.0},
    "of type <U4": ["left", "right"][:1] * 2,
    "of type complex128": np.zeros(2, complex),
    "no array": [[1.0, 2.0], [3.0]],
    "nan": np.array([np.nan, 0.0]),
    "inf": np.array([0.0, np.inf]),
    "-inf": np.array([0.0, -np.inf], np.float32),
    "1.e+39": np.array([1e39, 0.0]),
    "1.e+16": np.array([1e16, 0.0]),  # finite in float32; its square, summed, is not
}


@pytest.mark.parametrize(("words", "given"), BAD_OBSERVATIONS.items(), ids=list(BAD_OBSERVATIONS))
def test_observations_that_are_not_as_declared_are_refused(words, given):
    assert_refused_alike(bring(observe=first("observe", given)), EnvStepError, "step 0: reset gave", words, "allowed")
    assert_refused_alike(bring(observe=later("observe", given)), EnvStepError, "step 2: step gave", words, "allowed")


@pytest.mark.parametrize(
    "given",
    [np.nan, np.inf, -np.inf, 1e39, -1e39, 1e16, -1e30, np.float32(np.inf), None, "1", 1j, [1.0, 2.0], np.zeros(2), {}],
)
def test_rewards_that_are_no_number_that_statistics_hold_are_refused(given):
    assert_refused_alike(bring(earn=lambda self: given), EnvStepError, "step 0: step gave reward", "allowed")


@pytest.mark.parametrize("given", [None, "no", 2, np.nan, np.array([True, False]), {}])
def test_ends_that_are_neither_true_nor_false_are_refused(given):
    assert_refused_alike(bring(end=lambda self: given), EnvStepError, "step 0: step gave terminated", "True or False")


@pytest.mark.parametrize("given", ["lost", 1, [], (1, 2)])
def test_infos_that_are_no_dict_are_refused(given):
    assert_refused_alike(bring(inform=lambda self: given), EnvStepError, "reset gave an info", "a dict")


OLD_OR_BROKEN = {
    "reset without an info": (
        {"reset": lambda self, seed=None, options=None: Brought.reset(self)[0]},
        ("reset gave", "observation, info"),
    ),
    "reset gives None": ({"reset": lambda self, seed=None, options=None: None}, ("reset gave", "NoneType")),
    "reset gives a list": ({"reset": lambda self, seed=None, options=None: [np.zeros(2), {}]}, ("reset gave", "list")),
    "reset without a seed": ({"reset": lambda self: Brought.reset(self)}, ("reset failed", "'seed'")),
    "reset breaks": ({"reset": breaks}, ("reset failed: ZeroDivisionError: the motor is gone",)),
    "step with one end": (
        {"step": lambda self, action: (np.zeros(2), 1.0, False, {})},
        ("step gave", "terminated, truncated, info"),
    ),
    "step gives None": ({"step": lambda self, action: None}, ("step",)),
    "step breaks": ({"step": breaks}, ("step failed: ZeroDivisionError: the motor is gone",)),
    "observing breaks": ({"observe": breaks}, ("reset failed: ZeroDivisionError: the motor is gone",)),
}


@pytest.mark.parametrize("limit", [{}, {"max_episode_steps": 7}], ids=["unlimited", "limited"])
@pytest.mark.parametrize(("parts", "words"), OLD_OR_BROKEN.values(), ids=list(OLD_OR_BROKEN))
def test_old_signatures_and_exceptions_are_one_line(parts, words, limit):
    """With Gymnasium's time limit around the task, it is the limit that takes the answer apart."""
    assert_refused_alike(bring(register=limit, **parts), EnvStepError, *words)


def test_the_message_names_task_seed_and_step():
    config = bring(observe=later("observe", np.zeros(1)))
    for run, stream in ((collect, TRAINING_STREAM), (evaluate, EVALUATION_STREAM)):
        seed = episode_seed(0, stream, 0)
        with pytest.raises(EnvStepError, match=rf"^{config.name} \(seed {seed}\), step 2: step gave"):
            run(config)


LIKE_PLAIN = {
    "arrays for scalars": {
        "earn": lambda self: np.array([1.0]),
        "end": lambda self: np.array([self.count >= 10]),
        "inform": lambda self: {"x_position": np.array([float(self.count)])},
    },
    "zero-dimensional arrays": {"earn": lambda self: np.array(1.0), "end": lambda self: np.array(self.count >= 10)},
    "NumPy's scalars": {"earn": lambda self: np.float32(1.0), "end": lambda self: np.bool_(self.count >= 10)},
    "whole numbers": {"earn": lambda self: 1, "end": lambda self: int(self.count >= 10)},
    "no info": {"inform": lambda self: None},
    "a list": {"observe": lambda self: [self.start, self.count]},
}


@pytest.mark.parametrize("parts", LIKE_PLAIN.values(), ids=list(LIKE_PLAIN))
def test_other_ways_to_say_the_same_are_the_same(parts):
    plain, other = collect(bring()), collect(bring(**parts))
    for a, b in zip(plain, other, strict=True):
        np.testing.assert_array_equal(a.observation, b.observation)
        assert (a.reward, a.terminal, a.truncated) == (b.reward, b.terminal, b.truncated)
        assert type(b.reward) is float and type(b.terminal) is bool and isinstance(b.info, dict)
    assert evaluate(bring(**parts)).returns.tolist() == [10.0] * 3


def test_an_evaluated_policy_that_is_not_finite_is_refused():
    with pytest.raises(EnvStepError, match="step 0: the evaluated policy's action is .*must be finite"):
        episodes.run_episodes(bring(), lambda o: np.full((len(o), 1), np.nan), 2, seed=0)


# --- positions -------------------------------------------------------------------------------------------------------


def at_position(known):
    """A body that starts at 250 m and walks 0.1 m per step; ``known(count)`` says at which steps it tells so."""
    return {"inform": lambda self: {"x_position": 250.0 + 0.1 * self.count} if known(self.count) else {}}


@pytest.mark.parametrize(
    ("known", "metres"),
    [
        (lambda count: True, 1.0),
        (lambda count: count > 0, 0.9),  # from the first position that is known
        (lambda count: count in (4, 10), 0.6),
        (lambda count: count < 10, np.nan),  # where it ended is not known
        (lambda count: False, np.nan),
    ],
)
def test_the_distance_is_from_the_first_known_position_to_the_last_step(known, metres):
    config = bring(**at_position(known))
    [episode] = [step.episode for step in collect(config) if step.episode]
    np.testing.assert_allclose(episode.distance, metres, rtol=1e-9)
    np.testing.assert_allclose(evaluate(config).distances, [metres] * 3, rtol=1e-9)


@pytest.mark.parametrize("value", [None, "left", [1.0, 2.0], {}, np.zeros(2), object()])
def test_a_position_that_is_no_number_is_none(value):
    assert np.isnan(evaluate(bring(inform=lambda self: {"x_position": value})).distances).all()


@pytest.mark.parametrize("task", ["hopper", "walker2d", "halfcheetah", "Swimmer-v4"])
def test_version_4_measures_from_where_it_starts(task):
    """Its reset tells no position. It is that of the simulator, as version 5 tells it."""
    env = tasks.make(EnvConfig(task, 4))
    for seed in range(3):
        _, info = env.reset(seed=seed)
        assert "x_position" not in info
        start = float(env.unwrapped.data.qpos[0])
        assert 0 < abs(start) <= 0.1
        *_, info = env.step(np.ones(env.action_space.shape, np.float32))
        assert env.distance == info["x_position"] - start


# --- copies ----------------------------------------------------------------------------------------------------------


def limited(most):
    """A task of which ``most`` copies may be open; the actions decide about its returns."""

    class Limited(Brought):
        opened = 0
        made = 0

        def __init__(self, render_mode=None):
            if Limited.opened == most:
                raise RuntimeError("the robot is\nconnected already")
            Limited.opened += 1
            Limited.made += 1
            super().__init__()

        def earn(self):
            return float(self.received[-1][0]) * self.start

        def end(self):
            return self.count >= 3 + int(7 * self.start)

        def close(self):
            Limited.opened -= 1

    return Limited


class Remembers:
    """Acts by how many steps it has seen, and by each episode's own observation."""

    def __init__(self):
        self.steps = 0

    def __call__(self, observations):
        assert observations.shape == (5, 2)  # so that a jitted policy is traced once
        self.steps += 1
        return np.sin(observations[:, :1] * 10 + self.steps)

    def restart(self):
        self.steps = 0


@pytest.mark.parametrize("most", [1, 2, 4])
def test_a_task_of_few_copies_is_evaluated_in_groups_to_the_same_numbers(most):
    whole, config, act = bring(limited(99)), bring(kind := limited(most)), Remembers()
    wanted = episodes.run_episodes(whole, Remembers(), 5, seed=3)
    got = episodes.run_episodes(config, act, 5, seed=3, restart=act.restart)
    for name in ("returns", "lengths", "distances"):
        np.testing.assert_array_equal(getattr(got, name), getattr(wanted, name))
    assert len(set(wanted.lengths.tolist())) > 1 and wanted.remarks == ()
    [remark] = got.remarks
    assert f"no more than {most} at once" in remark and "the robot is connected already" in remark
    assert "\n" not in remark and kind.opened == 0


def test_the_only_copy_is_lent_by_training_and_comes_back_where_it_was():
    config, act = bring(kind := limited(1)), Remembers()
    wanted = episodes.run_episodes(bring(limited(99)), Remembers(), 5, seed=3)
    collector, other = Collector(config, 0), Collector(bring(limited(99)), 0)
    for k in range(2):
        collector.step(np.full(1, 0.1 * k)), other.step(np.full(1, 0.1 * k))
    got = episodes.run_episodes(config, act, 5, seed=3, restart=act.restart, spare=collector.lent)
    np.testing.assert_array_equal(got.returns, wanted.returns)
    assert "the copy that training collects from" in got.remarks[0] and kind.made == 1
    for k in range(20):
        a, b = (c.step(np.full(1, 0.01 * k)) for c in (collector, other))
        np.testing.assert_array_equal(a.next_observation, b.next_observation)
        assert (a.reward, a.terminal, repr(a.episode)) == (b.reward, b.terminal, repr(b.episode))
    with pytest.raises(ConfigError, match="does not start: RuntimeError: the robot is connected already"):
        episodes.run_episodes(config, act, 5, seed=3)


class SharesAnArray(Brought):
    """Keeps its state in an array of the class, which all copies change."""

    state = np.zeros(2)

    def reset(self, *, seed=None, options=None):
        self.state[:] = np.random.default_rng(seed).uniform(size=2)
        return self.state.copy(), {}

    def step(self, action):
        self.state += 0.1 * action[0]
        return self.state.copy(), float(self.state[0]), bool(self.state[1] > 2.0), False, {}


class SharesAGenerator(SharesAnArray):
    """Seeds NumPy's own generator, from which all copies draw."""

    def reset(self, *, seed=None, options=None):
        np.random.seed(seed)  # noqa: NPY002
        self.state = np.random.uniform(size=2)  # noqa: NPY002
        return self.state.copy(), {}

    def step(self, action):
        self.state = self.state + np.random.uniform(0.0, 0.2)  # noqa: NPY002
        return super().step(action)


@pytest.mark.parametrize("kind", [SharesAnArray, SharesAGenerator])
def test_copies_that_disturb_each_other_are_evaluated_one_by_one(kind):
    config = bring(kind)

    def act(observations):
        return np.full((len(observations), 1), 0.5)

    env, alone = tasks.make(config), []
    for e in range(3):
        env.reset(seed=episode_seed(3, EVALUATION_STREAM, e))
        total, over = 0.0, False
        while not over:
            _, reward, over, _, _ = env.step(np.full(1, 0.5, np.float32))
            total += reward  # one by one: since Python 3.12 sum() makes up for rounding
        alone.append(total)
    assert len(set(alone)) == 3
    got = episodes.run_episodes(config, act, 3, seed=3)
    np.testing.assert_array_equal(got.returns, alone)
    [remark] = got.remarks
    assert "in turn" in remark and "of step 1 is another one while a copy of the task is stepped" in remark

    collector = Collector(config, 0)
    for _ in range(2):
        collector.step(np.full(1, 0.25))
    before = collector.snapshot()
    lent = episodes.run_episodes(config, act, 3, seed=3, spare=collector.lent)
    np.testing.assert_array_equal(lent.returns, alone)
    after = collector.step(np.full(1, 0.25))
    collector.restore(before)
    np.testing.assert_array_equal(after.next_observation, collector.step(np.full(1, 0.25)).next_observation)


def test_what_never_repeats_is_not_taken_for_disturbed():
    noisy = bring(observe=lambda self: np.random.default_rng().uniform(size=2))
    assert evaluate(noisy).remarks == ()


def test_a_task_that_exits_is_one_line():
    def leave(*_, **__):
        raise SystemExit(0)

    assert_refused_alike(bring(earn=leave), EnvStepError, "step failed: SystemExit: 0")
    assert_refused_alike(bring(observe=leave), EnvStepError, "reset failed: SystemExit: 0")
    assert_refused_alike(bring(__init__=leave), ConfigError, "does not start", "SystemExit: 0")


def test_copies_are_closed_whatever_happens():
    kind = limited(99)
    config = bring(type("Breaks", (kind,), {"step": breaks}))
    with pytest.raises(EnvStepError):
        evaluate(config)
    assert kind.opened == 0
    with pytest.raises(EnvStepError, match="close failed: ZeroDivisionError"):
        tasks.make(bring(close=breaks)).close()


# --- how a task is started -------------------------------------------------------------------------------------------


def test_constructors_with_and_without_a_render_mode():
    class Without(Brought):
        def __init__(self):
            super().__init__()

    class Needs(Brought):
        def __init__(self, render_mode):
            super().__init__()

    for kind in (Without, Needs):
        assert evaluate(bring(kind)).returns.tolist() == [10.0] * 3
    Without.metadata = {"render_modes": ["rgb_array"]}
    with pytest.raises(ConfigError, match="does not start: TypeError.*render_mode"):
        tasks.make(bring(Without), "rgb_array")


@pytest.mark.parametrize("error", [ZeroDivisionError, ValueError, TypeError, OSError, ImportError, AssertionError])
def test_what_a_constructor_raises_is_one_line(error):
    def broken(self, render_mode=None):
        raise error("no such\nport")

    assert_refused_alike(bring(__init__=broken), ConfigError, "does not start", "no such port")


def test_what_is_no_environment_is_one_line():
    assert_refused_alike(bring(lambda **given: object()), ConfigError, "does not start", "gymnasium.Env")
    config = EnvConfig("no_such_module:Thing-v0")
    assert_refused_alike(config, ConfigError, "No module named 'no_such_module'", "PYTHONPATH")


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A working directory that is not on the Python path, as for a console script."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p not in ("", str(tmp_path))])
    yield tmp_path
    for name in [name for name in sys.modules if name.startswith("polygrad_own")]:
        del sys.modules[name]


@pytest.mark.parametrize("module", ["polygrad_own", "polygrad_own_package.tasks"])
def test_a_module_in_the_working_directory_is_found(here, module):
    path = here / f"{module.replace('.', '/')}.py"
    path.parent.mkdir(exist_ok=True)
    path.write_text(
        "import gymnasium as gym\nimport polygrad_own_parts\n"
        f"gym.register('{module.replace('.', '')}-v0', entry_point='gymnasium.envs.classic_control:PendulumEnv')\n"
    )
    (here / "polygrad_own_parts.py").write_text("")
    assert tasks.spec_of(tasks.make(EnvConfig(f"{module}:{module.replace('.', '')}-v0"))).observation_size == 3
    assert sys.path[-1] == str(here), "nothing that is installed may be hidden"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("import polygrad_nowhere", ("No module named 'polygrad_nowhere'",)),
        ("1 / 0", ("ZeroDivisionError",)),
        ("def f(:", ("SyntaxError",)),
        ("", ("Own-v0",)),
    ],
)
def test_what_a_module_of_the_user_does_wrong_is_said(here, text, words):
    (here / "polygrad_own_bad.py").write_text(text)
    assert_refused_alike(EnvConfig("polygrad_own_bad:Own-v0"), ConfigError, "polygrad_own_bad:Own-v0", *words)
    assert "PYTHONPATH" not in words


# --- what a task remembers -------------------------------------------------------------------------------------------


class OwnStatistics(gym.ObservationWrapper):
    """A wrapper as people write it, with the statistics of another library."""

    def __init__(self, env):
        super().__init__(env)
        self.statistics = type("RunningMeanStd", (), {"mean": 0.0, "var": 1.0, "count": 0, "update": lambda *_: None})()

    def observation(self, observation):
        return observation


@pytest.mark.parametrize(
    ("wrapped", "name"),
    [
        (gym.wrappers.NormalizeObservation, "NormalizeObservation"),
        (gym.wrappers.NormalizeReward, "NormalizeReward"),
        (OwnStatistics, "OwnStatistics"),
        (lambda env: gym.wrappers.TransformReward(gym.wrappers.NormalizeObservation(env), lambda r: r), "NormalizeO"),
    ],
)
def test_running_statistics_are_refused(wrapped, name):
    assert_refused_alike(bring(lambda **given: wrapped(Brought())), ConfigError, name, "running statistics", "allowed")


def test_running_statistics_of_a_registered_wrapper_are_refused():
    wrapper = gym.wrappers.NormalizeObservation.wrapper_spec(epsilon=1e-8)
    assert_refused_alike(bring(register={"additional_wrappers": (wrapper,)}), ConfigError, "NormalizeObservation")


def test_statistics_that_stay_are_a_fixed_scale():
    def fixed(**given):
        env = gym.wrappers.NormalizeObservation(Brought())
        env.obs_rms.mean, env.obs_rms.var, env.update_running_mean = np.array([0.0, 2.0]), np.ones(2), False
        return env

    np.testing.assert_allclose(collect(bring(fixed), 1)[0].next_observation[1], -1.0, rtol=1e-6)


def test_a_task_that_remembers_earlier_episodes_is_told_what_to_do():
    class Remembering(Brought):
        resets = 0

        def observe(self):
            self.resets += self.count == 0
            return np.array([float(self.resets), 0.0])

    collector = Collector(bring(Remembering), 0)
    collector.step(np.zeros(1))
    with pytest.raises(EnvRestartError, match=r"differ by up to 1; .*reset\(seed=...\).*another folder") as caught:
        collector.restore(collector.snapshot())
    assert "\n" not in str(caught.value)


# --- limits ----------------------------------------------------------------------------------------------------------


def limit_inside(most):
    return lambda **given: gym.wrappers.TimeLimit(type("Endless", (Brought,), {"length": 10**9})(), most)


@pytest.mark.parametrize(
    ("config", "most_steps", "length", "said"),
    [
        (lambda: bring(register={"max_episode_steps": 31}, length=10**9), 0, 31, False),
        (lambda: bring(limit_inside(31)), 0, 31, False),
        (lambda: bring(length=31), 0, 20, True),  # the task ends itself, which nothing says
        (lambda: bring(length=31), 31, 31, False),  # but for an episode that ended so
        (lambda: bring(length=20), 0, 20, False),
        (lambda: bring(length=10**9), 0, 20, True),
    ],
)
def test_a_limit_is_honoured_and_only_a_task_without_one_is_cut(config, most_steps, length, said, monkeypatch):
    monkeypatch.setattr(episodes, "MOST_STEPS", 20)
    act = lambda o: np.zeros((len(o), 1))  # noqa: E731
    got = episodes.run_episodes(config(), act, 2, seed=0, most_steps=most_steps)
    assert got.lengths.tolist() == [length] * 2
    assert bool(got.remarks) == said
    for remark in got.remarks:
        assert "no time limit (max_episode_steps)" in remark and "cut after 20 steps" in remark


def test_what_says_how_long_an_episode_is():
    for config, limit in (
        (bring(), None),
        (bring(register={"max_episode_steps": 12_000}), 12_000),
        (bring(limit_inside(12_000)), 12_000),
        (EnvConfig("hopper"), 1_000),
    ):
        with contextlib.closing(tasks.make(config)) as env:
            assert env.time_limit == limit


def _forever(self, name):
    return getattr(self.inner, name)  # which is never set, so that this asks itself


def _refuses(self, name):
    raise ValueError(f"no {name}")


@pytest.mark.parametrize("answer", [_forever, _refuses])
def test_a_task_that_raises_at_a_question_for_an_attribute_is_collected_from_and_evaluated(answer):
    config = bring(__getattr__=answer)
    assert collect(config)[9].terminal
    assert np.allclose(evaluate(config).returns, Brought.length)
