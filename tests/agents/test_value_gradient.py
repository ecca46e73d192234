"""Value gradients against closed forms: a linear model with a quadratic reward, whose value and gradients are known."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from polygrad_jax.agents import value_gradient as vg
from polygrad_jax.agents.agent_table import make_policy_apply
from polygrad_jax.config import ConfigError, EnvConfig, EnvSpec, ValueGradientConfig, cpu, override
from polygrad_jax.data.normaliser import executed
from polygrad_jax.runs.checkpoints import load_npz, npz_bytes
from polygrad_jax.types import Experience, MeanStd, Normaliser, Prediction, Segment, WorldModel

SPEC = EnvSpec(2, 1)
SETTINGS = ValueGradientConfig(hidden_size=8, hidden_layers=2, critics=3, batch_size=16, trajectories=8, updates=2)
IDENTITY = Normaliser(*(MeanStd(jnp.zeros(n), jnp.ones(n)) for n in (2, 1, 1, 1)))
GAIN, DECAY, PUSH = 0.3, 0.9, 0.5


def linear_step(raw_obs, raw_actions, key):
    """``s' = DECAY s + PUSH a`` in both channels, ``r = -s_0^2``; the episode ends where ``s_1 > 5``."""
    following = DECAY * raw_obs + PUSH * raw_actions
    return Prediction(following, -jnp.square(raw_obs[:, 0]), (raw_obs[:, 1] > 5.0).astype(jnp.float32))


def linear_policy(gain, raw_obs):
    """The mean leans on the first channel; the deviation is too small to matter."""
    mean = gain * raw_obs[..., :1]
    return mean, jnp.full_like(mean, 1e-6)


LINEAR = vg.Setting(linear_step, SETTINGS, linear_policy, critic=None, action_size=1, how="clipped")


def value_by_hand(gain: float, start: float, steps: int, gamma: float) -> float:
    """The discounted sum of ``-s_0^2`` where the closed loop is ``s_0' = (DECAY + PUSH gain) s_0``."""
    rate = DECAY + PUSH * gain
    return sum(-((gamma * rate**2) ** k) * start**2 for k in range(steps))


def states(seed: int, size: int = 16):
    return jnp.asarray(np.random.default_rng(seed).uniform(-1, 1, (size, 2)), jnp.float32)


def test_the_value_of_a_path_and_its_gradient_are_those_of_the_linear_system():
    start, gamma, steps = states(0), 0.9, 4

    def value(gain):
        path = vg.walk(gain, start, jax.random.key(0), steps, LINEAR)
        return vg.path_value(path, jnp.zeros(16), jnp.float32(0.0), gamma, first_entropy=True).mean()

    def by_hand(gain):
        return np.mean([value_by_hand(gain, float(s), steps, gamma) for s in start[:, 0]])

    np.testing.assert_allclose(value(jnp.float32(GAIN)), by_hand(GAIN), rtol=1e-4)
    slope = (by_hand(GAIN + 1e-4) - by_hand(GAIN - 1e-4)) / 2e-4
    np.testing.assert_allclose(jax.grad(value)(jnp.float32(GAIN)), slope, rtol=1e-3)


def test_along_imagined_trajectories_values_are_the_imagined_and_gradients_the_models():
    """The trajectory comes from a system with another constant push; on it, rewards are its own, derivatives ours."""
    gain, steps = jnp.float32(GAIN), 3
    rng = np.random.default_rng(1)
    observations = jnp.asarray(rng.standard_normal((5, steps + 1, 2)), jnp.float32)
    actions = gain * observations[..., :1]
    rewards = jnp.asarray(rng.standard_normal((5, steps + 1)), jnp.float32)
    terminals = jnp.zeros((5, steps + 1)).at[0, 1:].set(1.0)
    imagined = Segment(observations, actions, rewards, terminals)

    def value(gain):
        path = vg.walk_along(gain, imagined, jax.random.key(0), LINEAR)
        return vg.path_value(path, jnp.zeros(5), jnp.float32(0.0), 1.0, first_entropy=True), path

    values, path = jax.jit(value)(gain)
    np.testing.assert_allclose(path.observations.swapaxes(0, 1), observations, atol=1e-6)
    np.testing.assert_allclose(path.alive.swapaxes(0, 1), 1.0 - np.pad(terminals, ((0, 0), (1, 0)))[:, :-1])
    np.testing.assert_allclose(values[1:], rewards[1:, :steps].sum(1), rtol=1e-5)
    np.testing.assert_allclose(values[0], rewards[0, :2].sum(), rtol=1e-5)
    # By the chain rule along the imagined states: dr_t = -2 s_t ds_t, ds_{t+1} = DECAY ds_t + PUSH (s_t + gain ds_t).
    changes, expected = np.zeros(5), np.zeros(5)
    for t in range(steps):
        expected += -2 * np.asarray(observations[:, t, 0]) * changes * np.asarray(path.alive[t])
        changes = DECAY * changes + PUSH * (np.asarray(observations[:, t, 0]) + GAIN * changes)
    slopes = jax.jit(jax.jacobian(lambda g: value(g)[0]))(gain)
    np.testing.assert_allclose(slopes, expected, rtol=1e-4, atol=1e-5)


def test_imagined_actions_that_the_policy_has_left_behind_earn_no_entropy_and_no_steeper_slope():
    """What is imagined stays what it is; its log-density, -1e11 here, would drown every reward."""
    observations, actions = states(2, 8).reshape(2, 4, 2), jnp.full((2, 4, 1), 0.5)
    imagined = Segment(observations, actions, jnp.zeros((2, 4)), jnp.zeros((2, 4)))

    def narrow(log_std, raw_obs):
        return jnp.zeros_like(raw_obs[..., :1]), jnp.exp(log_std) * jnp.ones_like(raw_obs[..., :1])

    def walked(log_std):
        return vg.walk_along(log_std, imagined, jax.random.key(0), LINEAR._replace(policy_apply=narrow))

    log_std = jnp.log(jnp.float32(1e-6))
    path, slopes = jax.jit(lambda x: (walked(x), jax.jacfwd(lambda y: walked(y).actions)(x)))(log_std)
    np.testing.assert_array_equal(path.actions[:3], 0.5)
    entropy = 0.5 * np.log(2 * np.pi * np.e) + np.log(1e-6)
    assert np.abs(-path.log_probs - entropy).max() < 10.0  # that of single draws
    np.testing.assert_allclose(slopes[:3], 3e-6, rtol=1e-5)  # std times the largest noise, not 0.5


def test_a_path_counts_nothing_behind_its_end():
    start = jnp.array([[0.0, 6.0], [0.0, 1.0]])
    path = vg.walk(jnp.float32(0.0), start, jax.random.key(0), 3, LINEAR)
    np.testing.assert_array_equal(path.alive, [[1, 1], [0, 1], [0, 1], [0, 1]])
    ones = path._replace(rewards=jnp.ones((3, 2)), log_probs=jnp.ones((4, 2)))
    with_bonus = vg.path_value(ones, jnp.full(2, 10.0), jnp.float32(0.5), 0.5, first_entropy=True)
    np.testing.assert_allclose(with_bonus, [0.5, 0.5 * (1 + 0.5 + 0.25) + 9.5 / 8])
    without_first = vg.path_value(ones, jnp.full(2, 10.0), jnp.float32(0.5), 0.5, first_entropy=False)
    np.testing.assert_allclose(without_first, with_bonus + 0.5)


def test_the_discounts_horizon_grows_evenly_and_the_bounds_of_values_with_it():
    growing = dataclasses.replace(SETTINGS, gamma=0.99, final_gamma=0.9975)
    begin, end = vg.DISCOUNT_GROWS
    steps = jnp.array([0, begin, (begin + end) // 2, end, 3 * end])
    np.testing.assert_allclose(1 / (1 - vg.discount(steps, growing)), [100, 100, 250, 400, 400], rtol=1e-3)
    constant = dataclasses.replace(SETTINGS, gamma=0.99)
    np.testing.assert_array_equal(vg.discount(steps[2], constant), np.float32(0.99))
    # Rewards of 1 bound values by the horizon, at every step of its growth.
    state = jax.jit(vg.init, static_argnums=(1, 2))(jax.random.key(0), SPEC, growing)
    for updates in (0, 1, begin + 1, begin + 1_000, end):
        state = state.replace(updates=jnp.int32(updates))
        before = vg.discount(state.updates - 1, growing)
        state = state.replace(value_bounds=jnp.array([0.0, 1.0]) / (1 - before))
        bounds = vg.bounds_of(state, jnp.ones((3, 4)), growing)
        np.testing.assert_allclose(bounds, [0, 1 / (1 - vg.discount(state.updates, growing))], rtol=1e-5)


def test_starts_are_drawn_evenly_from_the_states_that_were_reached():
    weights = jnp.array([0.0, 1.0, 0.0, 1.0, 1.0, 0.0])
    drawn = vg.draw(weights, jax.random.key(0), 3_000)
    counts = np.bincount(drawn, minlength=6)
    assert counts[[0, 2, 5]].sum() == 0
    np.testing.assert_allclose(counts[[1, 3, 4]] / 1_000, 1.0, atol=0.1)


def test_pieces_are_all_windows_of_the_imagined_trajectories():
    observations = jnp.arange(2 * 5 * 2, dtype=jnp.float32).reshape(2, 5, 2)
    flat = observations[..., 0]
    cut = vg.pieces(Segment(observations, observations[..., :1], flat, flat), 2)
    expected = [[0, 2, 4], [2, 4, 6], [4, 6, 8], [10, 12, 14], [12, 14, 16], [14, 16, 18]]
    np.testing.assert_array_equal(cut.rewards, expected)


def world_model(step) -> WorldModel:
    """A world model of which the agent uses the step alone."""
    return WorldModel(
        init=lambda key: (),
        update=lambda *_: None,
        imagine=lambda *_: None,
        step=lambda state, raw_obs, actions, normaliser, key: step(raw_obs, actions, key),
    )


@functools.cache
def learner(step, actions: str, **fields):
    """``(agent, its first state, its compiled update)`` for start states of the replay."""
    groups = {f"value_gradient.{name}": value for name, value in fields.items()}
    sizes = {"value_gradient.hidden_size": 16, "value_gradient.hidden_layers": 2, "value_gradient.critics": 2}
    sizes |= {"agent": "value_gradient", "value_gradient.starts": "replay", "env.actions": actions}
    sizes |= {"value_gradient.actor_ema": 0.0, "value_gradient.path_length": 2}
    config = override(cpu("hopper"), sizes | groups)
    agent = vg.make_value_gradient(config, SPEC, world_model(step))
    return agent, jax.jit(agent.init)(jax.random.key(0)), jax.jit(agent.update)


def learnt(step, updates: int = 1, actions: str = "clipped", **fields):
    """The agent, its state after some updates from states of the replay, and the metrics of the last."""
    agent, state, update = learner(step, actions, **fields)
    for k in range(updates):
        size, length = agent.windows
        raw_obs = states(k, size)[:, None]
        zeros = jnp.zeros((size, length))
        windows = Segment(raw_obs, zeros[..., None], zeros, zeros)
        state, metrics = update(state, (), Experience(None, windows, IDENTITY, jnp.float32(0.0)), jax.random.key(k))
    return agent, state, metrics


def test_without_a_path_no_gradient_flows_through_the_model():
    @jax.custom_vjp
    def torn(raw_obs):
        return raw_obs

    torn.defvjp(lambda x: (x, None), lambda _, g: (jnp.full_like(g, jnp.nan),))

    def step(raw_obs, raw_actions, key):
        return linear_step(torn(raw_obs), torn(raw_actions), key)

    _, state, metrics = learnt(step, path_length=0)
    assert np.isfinite(metrics["agent/actor_gradient_norm"])
    _, _, metrics = learnt(step, path_length=1)
    assert np.isnan(metrics["agent/actor_gradient_norm"])


@pytest.mark.parametrize(("length", "how"), [(0, "clipped"), (2, "squashed")])
def test_it_learns_to_steer_a_linear_system(length, how, monkeypatch):
    """The reward is minus the squared distance to the target 0.4; pushes of -1 to 1 act at once, so the best is known.

    The target is not near a bound: under a clip a wide policy does best with its mean beyond such a target.
    """

    def step(raw_obs, raw_actions, key):
        following = executed(raw_actions, how) * jnp.ones_like(raw_obs)
        reward = -jnp.square(following[:, 0] - 0.4)
        return Prediction(following, reward, jnp.zeros(raw_obs.shape[0]))

    monkeypatch.setattr(vg, "INITIAL_TEMPERATURE", 1e-3)  # rewards below 1 are small beside the usual
    agent, state, metrics = learnt(
        step, updates=60, path_length=length, gamma=0.5, learning_rate=3e-3, target_rate=0.05, batch_size=64,
        actions=how,
    )
    mean, std = agent.policy(state)(states(100))
    np.testing.assert_allclose(executed(mean, how), 0.4, atol=0.1)
    untrained, _ = agent.policy(jax.jit(agent.init)(jax.random.key(0)))(states(100))
    assert np.abs(np.asarray(untrained) - 0.4).mean() > 0.2


def test_the_policy_reads_observations_in_the_replays_units():
    agent, state, _ = learnt(linear_step)
    moved = state.replace(actor=state.actor | {"observations": {"mean": jnp.full(2, 3.0), "std": jnp.full(2, 2.0)}})
    raw_obs = states(3)
    np.testing.assert_allclose(agent.policy(moved)(2.0 * raw_obs + 3.0)[0], agent.policy(state)(raw_obs)[0], rtol=1e-4)


@pytest.mark.parametrize("actions", ["clipped", "squashed"])
def test_a_policy_read_from_a_file_acts_as_it_did(tmp_path, actions):
    state = jax.jit(vg.init, static_argnums=(1, 2))(jax.random.key(0), SPEC, SETTINGS)
    (tmp_path / "policy.npz").write_bytes(npz_bytes({"actor": state.actor}))
    config = dataclasses.replace(cpu("hopper"), value_gradient=SETTINGS, env=EnvConfig(actions=actions))
    read = make_policy_apply(config, SPEC)(load_npz(tmp_path / "policy.npz")["actor"], states(9))
    ours = vg.make_policy_apply(SPEC, SETTINGS, actions=actions)(state.actor, states(9))
    np.testing.assert_array_equal(read, ours)


def test_no_policy_over_observations_is_made_of_dreamers():
    config = dataclasses.replace(cpu("hopper"), agent="dreamer", world_model="dreamer")
    with pytest.raises(ConfigError, match="agent is dreamer; allowed: a2c, value_gradient"):
        make_policy_apply(config, SPEC)


def test_an_averaged_policy_is_evaluated_and_the_newest_acts():
    agent, state, _ = learnt(linear_step, actor_ema=0.9)
    begun = jax.jit(agent.init)(jax.random.key(0))
    first, newest, averaged = (
        jax.tree.leaves(x["network"]) for x in (begun.actor, state.actor, state.averaged_actor)
    )
    for a, b, c in zip(first, newest, averaged, strict=True):
        moved, followed = np.abs(b - a).max(), np.abs(c - a).max()
        assert 0.1 * moved < followed < 0.6 * moved, "eight steps at a decay of 0.9 make up to 1 - 0.9^8 of the way"
    assert tiny.all_equal(agent.acting(state, None), state.actor)
    assert tiny.all_equal(agent.evaluated(state, None), state.averaged_actor)
    assert tiny.all_equal(agent.evaluated_policy(state).params, state.averaged_actor)
    assert tiny.all_equal(state.averaged_actor["observations"], state.actor["observations"])
    _, alone, _ = learnt(linear_step)
    assert alone.averaged_actor is None
    for a, b in zip(jax.tree.leaves(alone.actor), jax.tree.leaves(state.actor), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6, err_msg="the average changed the actor")


def test_values_keep_within_what_the_rewards_allow():
    _, state, metrics = learnt(linear_step, updates=3)
    low, high = state.value_bounds
    assert low < high and low <= metrics["agent/value_mean"] <= high


def test_a_world_model_without_a_step_is_refused():
    with pytest.raises(ConfigError, match="agent is value_gradient with world_model"):
        vg.make_value_gradient(cpu("hopper"), SPEC, world_model(linear_step)._replace(step=None))


def test_policies_of_equal_settings_are_one_object():
    assert vg.make_policy_apply(SPEC, SETTINGS) is vg.make_policy_apply(SPEC, SETTINGS)
    other = vg.make_policy_apply(SPEC, SETTINGS, actions="squashed")
    assert other is not vg.make_policy_apply(SPEC, SETTINGS, actions="clipped")


@pytest.mark.parametrize(("mean", "std"), [(0.0, 0.3), (0.9, 1.2), (-2.0, 0.5)])
def test_the_density_of_squashed_actions_is_one_over_executed_actions(mean, std):
    """The integral over (-1, 1), by 20,000 midpoints; and by hand: at u = 0 the slope of tanh is 1."""
    raw = np.linspace(-9, 9, 20_001)
    middle = jnp.asarray((raw[1:] + raw[:-1]) / 2, jnp.float32)[:, None]
    given = jnp.full_like(middle, mean), jnp.full_like(middle, std)
    density = np.exp(np.asarray(vg.log_density(*given, middle, "squashed"), np.float64))
    np.testing.assert_allclose((density * np.diff(np.tanh(raw))).sum(), 1.0, rtol=1e-4)
    far = vg.log_density(jnp.full(1, 50.0), jnp.ones(1), jnp.full(1, 50.0), "squashed")
    # At u = 50, 1 - tanh(u)^2 = 4 exp(-100): log-density 100 - log 4 - log(2 pi) / 2.
    np.testing.assert_allclose(far, 100 - np.log(4) - 0.5 * np.log(2 * np.pi), rtol=1e-6)
    at_zero = jnp.full(2, mean), jnp.full(2, std), jnp.zeros(2)
    np.testing.assert_allclose(vg.log_density(*at_zero, "squashed"), vg.log_density(*at_zero, "clipped"), rtol=1e-5)


def test_the_std_and_the_mean_have_bounds_where_actions_are_clipped():
    """The network says location c and spread b in every state. Clipped: tanh(c), and from min_std to 1 by a sigmoid of
    b; squashed: c, and min_std + log(1 + exp(b))."""
    actor = jax.jit(vg.init, static_argnums=(1, 2))(jax.random.key(0), SPEC, SETTINGS).actor
    for c, b in [(1.5, -0.5), (-2.0, 100.0), (0.0, -100.0)]:
        output = {"kernel": 0.0 * actor["network"]["output"]["kernel"], "bias": jnp.array([c, b])}
        saying = actor | {"network": actor["network"] | {"output": output}}
        low = vg.MIN_STD
        by_hand = {
            "clipped": (np.tanh(c), low + (1.0 - low) / (1.0 + np.exp(-b))),
            "squashed": (c, low + np.logaddexp(0.0, b)),
        }
        for how, expected in by_hand.items():
            said = jax.jit(vg.make_policy_apply(SPEC, SETTINGS, actions=how))(saying, states(0))
            for ours, wanted in zip(said, expected, strict=True):
                np.testing.assert_allclose(ours, np.full((16, 1), wanted), rtol=1e-5)
