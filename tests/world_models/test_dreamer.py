"""Dreamer-v3: the arithmetic of its parts, what its world model learns of a known system, and its learner."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import traced

from polygrad_jax.agents import dreamer_actor_critic as learner
from polygrad_jax.agents.gae import gae
from polygrad_jax.config import Config, DreamerAgentConfig, DreamerConfig, EnvSpec
from polygrad_jax.data.recordings import Episode
from polygrad_jax.networks import rssm
from polygrad_jax.networks.symlog import BINS, bin_centres, symexp, symlog, two_hot, two_hot_mean
from polygrad_jax.training.fitting import fit
from polygrad_jax.types import MeanStd, Normaliser, Segment
from polygrad_jax.world_models import dreamer
from polygrad_jax.world_models.dreamer import make_ask, make_dreamer, make_latent_model

# --- symlog and two-hot ----------------------------------------------------------------------------------------------


def test_symlog_by_numbers():
    """symlog(e - 1) = ln e = 1, symlog(-(e^2 - 1)) = -2; symexp is its inverse."""
    x = jnp.array([0.0, np.e - 1, -(np.e**2 - 1)])
    np.testing.assert_allclose(symlog(x), [0.0, 1.0, -2.0], atol=1e-6)
    np.testing.assert_allclose(symexp(jnp.array([0.0, 1.0, -2.0])), x, atol=1e-5)


def test_two_hot_by_numbers():
    """Five bins at -20, -10, 0, 10, 20. symlog value 2.5 is a quarter of the way from 0 to 10; -16 six tenths from -10
    to -20; 0 is a bin; beyond the last bin (symlog 25) counts as the last.
    """
    np.testing.assert_array_equal(bin_centres(5), [-20, -10, 0, 10, 20])
    raw = symexp(jnp.array([[2.5, -16.0], [0.0, 25.0]]))
    expected = [[[0, 0, 0.75, 0.25, 0], [0.6, 0.4, 0, 0, 0]], [[0, 0, 1, 0, 0], [0, 0, 0, 0, 1]]]
    np.testing.assert_allclose(two_hot(raw, 5), expected, atol=2e-6)


def test_two_hot_mean_is_the_inverse_of_two_hot():
    raw = jnp.array([0.0, 0.5, -3.0, 1000.0, -2e5])
    np.testing.assert_allclose(two_hot_mean(jnp.log(two_hot(raw, 255) + 1e-30)), raw, rtol=2e-4, atol=1e-5)
    # Half of the weight at symlog 0, half at 10: symexp(5) = e^5 - 1 = 147.4, not the mean of the raw values (11,013)
    halves = jnp.log(jnp.array([1e-30, 1e-30, 0.5, 0.5, 1e-30]))
    np.testing.assert_allclose(two_hot_mean(halves), np.exp(5.0) - 1, rtol=1e-5)


# --- categorical latents ---------------------------------------------------------------------------------------------


def test_unimix_by_numbers():
    """Softmax (0, 1): 1 % of (1/2, 1/2) and 99 % of it are (0.005, 0.995)."""
    probabilities = jnp.exp(rssm.unimix(jnp.array([-200.0, 200.0]), 0.01))
    np.testing.assert_allclose(probabilities, [0.005, 0.995], rtol=1e-6)


def test_draws_are_one_hot_as_frequent_as_said_and_straight_through():
    log_probs = jnp.log(jnp.array([0.2, 0.3, 0.5]))
    drawn = rssm.draw(jax.random.key(0), jnp.broadcast_to(log_probs[None], (20_000, 3)))
    assert set(np.unique(drawn)) == {0.0, 1.0}
    np.testing.assert_array_equal(drawn.sum(-1), 1.0)
    np.testing.assert_allclose(drawn.mean(0), [0.2, 0.3, 0.5], atol=0.015)  # std 0.0035
    # d sum(w p) / d log p = w p
    weights = jnp.array([1.0, -2.0, 4.0])
    slope = jax.grad(lambda x: (weights * rssm.draw(jax.random.key(0), x)).sum())(log_probs)
    np.testing.assert_allclose(slope, [0.2, -0.6, 2.0], rtol=1e-5)


def test_kl_balance_and_free_bits_by_numbers():
    """KL((3/4, 1/4) || (1/2, 1/2)) = 0.75 ln 1.5 + 0.25 ln 0.5 = 0.13081; two variables: 0.26162 nats.

    Below the free nat both losses are 1 and train nothing. Above: d dynamics / d log q = -p, d representation / d log p
    = p (log p - log q + 1); the other sides get nothing.
    """
    p = jnp.log(jnp.array([[0.75, 0.25], [0.75, 0.25]]))
    q = jnp.log(jnp.full((2, 2), 0.5))
    np.testing.assert_allclose(dreamer.kl_divergence(p, q), 0.26162, atol=1e-5)

    def gradients(free, which):
        return jax.grad(lambda p, q: dreamer.kl_losses(p, q, free)[which], argnums=(0, 1))(p, q)

    np.testing.assert_array_equal(dreamer.kl_losses(p, q, 1.0), [1.0, 1.0])
    for which in (0, 1):
        np.testing.assert_array_equal(gradients(1.0, which), np.zeros((2, 2, 2)))
    np.testing.assert_allclose(dreamer.kl_losses(p, q, 0.1), [0.26162, 0.26162], atol=1e-5)
    to_posterior, to_prior = gradients(0.1, 0)
    np.testing.assert_array_equal(to_posterior, np.zeros((2, 2)))
    np.testing.assert_allclose(to_prior, [[-0.75, -0.25]] * 2, rtol=1e-5)
    to_posterior, to_prior = gradients(0.1, 1)
    np.testing.assert_allclose(to_posterior, [[0.75 * (np.log(1.5) + 1), 0.25 * (np.log(0.5) + 1)]] * 2, rtol=1e-5)
    np.testing.assert_array_equal(to_prior, np.zeros((2, 2)))


def test_actions_count_as_executed_and_always_have_a_slope():
    action = jnp.array([0.5, -4.0])
    np.testing.assert_allclose(rssm.executed_action(action, "clipped"), [0.5, -1.0], rtol=1e-6)
    slopes = jax.grad(lambda a: rssm.executed_action(a, "clipped").sum())(action)
    np.testing.assert_allclose(slopes, [1.0, 0.25], rtol=1e-6)
    np.testing.assert_allclose(rssm.executed_action(action, "squashed"), np.tanh(action), rtol=1e-6)


# --- a known system --------------------------------------------------------------------------------------------------

# x' = A x + B u + noise of deviation 0.02; the reward is the action, and an action over 0.9 ends the episode. The
# second coordinate is always 1: the published encoder begins with a linear layer without bias under a LayerNorm, which
# sees the direction of an observation but hardly its length.
A = np.array([[0.8, 0.0], [0.0, 1.0]], np.float32)
B = np.array([[0.8], [0.0]], np.float32)
NOISE, ENDS_OVER = np.array([0.02, 0.0]), 0.9
SPEC = EnvSpec(2, 1)
CONFIG = Config(
    horizon=8,
    dreamer=DreamerConfig(
        deter=48,
        latents=8,
        classes=8,
        units=48,
        layers=1,
        coder_units=48,
        coder_layers=1,
        learning_rate=3e-3,
        window=8,
        batch_size=16,
    ),
)
CONTEXTS, COPIES = 16, 32
NORMALISER = Normaliser(*(MeanStd(jnp.full(n, jnp.nan), jnp.full(n, jnp.nan)) for n in (2, 1, 1, 1)))  # is not read


def follows(x, u, rng):
    return (x @ A.T + u @ B.T + NOISE * rng.standard_normal(x.shape)).astype(np.float32)


def begins(count, rng):
    return np.stack([rng.standard_normal(count), np.ones(count)], axis=-1).astype(np.float32)


def episodes(transitions: int) -> list[Episode]:
    """Uniform actions; episodes end by themselves, are cut after 40 steps, and have two steps at least."""
    rng, found, count = np.random.default_rng(0), [], 0
    while count < transitions:
        observations, actions = [begins(1, rng)[0]], [rng.uniform(-1, 0.8, 1)]
        while len(actions) < 40 and actions[-1] <= ENDS_OVER:
            observations.append(follows(observations[-1], actions[-1], rng))
            actions.append(rng.uniform(-1, 1, 1))
        actions = np.stack(actions)
        found.append(Episode(np.stack(observations), actions, actions[:, 0], bool(actions[-1] > ENDS_OVER)))
        count += len(actions)
    return found


def contexts() -> Segment:
    """``CONTEXTS`` different contexts of five real steps, ``COPIES`` of each one behind the other."""
    rng = np.random.default_rng(1)
    observations, actions = [begins(CONTEXTS, rng)], []
    for _ in range(5):
        actions.append(rng.uniform(-1, 0.8, (CONTEXTS, 1)).astype(np.float32))
        observations.append(follows(observations[-1], actions[-1], rng))
    observations, actions = np.stack(observations[:-1], 1), np.stack(actions, 1)
    steps = np.zeros((CONTEXTS, 5), np.float32)
    found = Segment(observations, actions, actions[..., 0], steps, observed=np.ones((CONTEXTS, 5), bool))
    return jax.tree.map(lambda x: jnp.repeat(jnp.asarray(x), COPIES, axis=0), found)


def policy_apply(params, raw_obs):
    """``params [2]``: mean and deviation, whatever the state."""
    shape = (raw_obs.shape[0], 1)
    return jnp.full(shape, params[0]), jnp.full(shape, params[1])


@pytest.fixture(scope="module")
def model():
    return make_dreamer(CONFIG, SPEC)


@pytest.fixture(scope="module")
def fitted(model):
    return fit(model, episodes(6_000), CONFIG, jax.random.key(0), updates=600)[0]


@pytest.fixture(scope="module")
def untrained(model):
    return jax.jit(model.init)(jax.random.key(0))


@pytest.fixture(scope="module")
def counted(model):
    return traced.counted(model, policy_apply)


def all_equal(a, b) -> bool:
    return all(jax.tree.leaves(jax.tree.map(lambda x, y: bool(jnp.array_equal(x, y)), a, b)))


def window(seed: int = 0) -> Segment:
    """Four windows of 16 steps: whole, ended at step 5, ended at step 14, ended at step 0; padded by NaN."""
    keys = jax.random.split(jax.random.key(seed), 3)
    terminals = jnp.stack([(jnp.arange(16) >= end).astype(jnp.float32) for end in (16, 5, 14, 0)])
    padding = jnp.cumsum(terminals, axis=1) > 1
    observations, actions = jax.random.normal(keys[0], (4, 16, 2)), jax.random.normal(keys[1], (4, 16, 1))
    return Segment(
        jnp.where(padding[..., None], jnp.nan, observations),
        jnp.where(padding[..., None], jnp.nan, actions),
        jnp.where(padding, jnp.nan, jax.random.normal(keys[2], (4, 16))),
        terminals,
    )


def test_the_protocol_says_what_it_wants(model):
    assert (model.window, model.batch_size, model.context_length) == (8, 16, 5)
    published = DreamerConfig()
    assert (published.window, published.batch_size, published.context_length) == (64, 16, 5)
    assert BINS == 255  # odd: one of them stands at 0


def test_one_step_ahead_it_says_what_the_system_does(counted, fitted, untrained):
    """After five observed steps, action -0.8: the mean of the decoded states is A x - 0.8 B."""
    _, imagine, _ = counted
    context = contexts()
    x = np.asarray(context.observations[::COPIES, -1])
    exact = x @ A.T - 0.8 * B.T

    def error(state):
        imagined = imagine(state, jnp.array([-0.8, 0.0]), context, NORMALISER, jax.random.key(5))[0]
        np.testing.assert_array_equal(imagined.observations[:, 0], context.observations[:, -1])
        mean = np.asarray(imagined.observations[:, 1]).reshape(CONTEXTS, COPIES, 2).mean(1)
        return np.sqrt(np.mean((mean - exact) ** 2, axis=0))

    nothing_moves = np.sqrt(np.mean((x - exact) ** 2, axis=0))
    errors = {"fitted": error(fitted), "untrained": error(untrained), "nothing moves": nothing_moves}
    print(errors)
    assert np.all(errors["fitted"] < 0.2), errors
    assert errors["untrained"][0] > 0.4 and nothing_moves[0] > 0.4, errors


def test_rewards_and_ends_are_those_of_the_step_they_stand_at(counted, fitted, untrained):
    """The reward of step k is the action of step k, and an action over 0.9 at step k ends the episode at step k."""
    _, imagine, _ = counted

    def imagined(state):
        return imagine(state, jnp.array([0.0, 0.6]), contexts(), NORMALISER, jax.random.key(6))[0]

    segment = jax.tree.map(np.asarray, imagined(fitted))
    executed = np.clip(segment.actions[..., 0], -1, 1)
    ended_before = np.concatenate([np.zeros_like(executed[:, :1]), segment.terminals[:, :-1]], axis=1) > 0

    def agreement(rewards, actions, alive):
        return np.corrcoef(rewards[alive], actions[alive])[0, 1]

    assert agreement(segment.rewards, executed, ~ended_before) > 0.97
    both_alive = ~ended_before[:, 1:]
    assert abs(agreement(segment.rewards[:, 1:], executed[:, :-1], both_alive)) < 0.2
    assert abs(agreement(segment.rewards[:, :-1], executed[:, 1:], both_alive)) < 0.2
    np.testing.assert_allclose(imagined(untrained).rewards, 0.0, atol=1e-5)  # the reward head starts at 0

    clear = ~ended_before & (np.abs(executed - ENDS_OVER) > 0.05)
    should, does = executed > ENDS_OVER, segment.terminals > 0
    print("ends seen and false:", does[clear & should].mean(), does[clear & ~should].mean())
    assert does[clear & should].mean() > 0.9 and does[clear & ~should].mean() < 0.03
    assert 100 < (clear & should).sum() < 1000

    # Behind an end: it stays, nothing is rewarded, and states go on being predicted.
    assert np.all(np.diff(segment.terminals, axis=1) >= 0) and set(np.unique(segment.terminals)) == {0.0, 1.0}
    assert not segment.rewards[ended_before].any()
    assert not (segment.observations[:, 1:] == segment.observations[:, :-1]).all(-1).any()
    # Actions are handed out as sampled, not as executed.
    assert np.abs(segment.actions).max() > 1.5


def test_padding_behind_a_terminal_is_not_looked_at(counted, untrained):
    """NaN in all of it, or anything else: the same step to the last bit. What happened does count."""
    update, _, _ = counted
    poisoned = window()
    key = jax.random.key(3)
    clean = jax.tree.map(lambda x: jnp.where(jnp.isnan(x), 7.0, x), poisoned)
    after = update(untrained, poisoned, NORMALISER, key)
    assert all_equal(after, update(untrained, clean, NORMALISER, key))
    assert all(jnp.isfinite(x).all() for x in jax.tree.leaves(after))
    # The terminal step's own action, reward and end count, also where it is the window's first.
    for name, changed in (
        ("actions", clean.actions.at[3, 0].add(0.1)),
        ("rewards", clean.rewards.at[3, 0].add(1.0)),
        ("observations", clean.observations.at[3, 0].add(0.1)),
    ):
        assert not all_equal(after[0], update(untrained, clean.replace(**{name: changed}), NORMALISER, key)[0]), name


# Parameters are an argument: as constants zeros give anything (findings/jax_log_softmax_of_a_zero_layer.sh).
LOSSES = jax.jit(lambda params, segment: dreamer.losses(make_ask(CONFIG, SPEC), params, segment, jax.random.key(1)))


@pytest.mark.parametrize("terminal", [0.0, 1.0])
def test_episodes_of_a_stream_do_not_know_of_each_other(untrained, terminal):
    """NaN in one of two changes no loss of the other, whether it was ended or cut off; in a single episode it does."""
    keys = jax.random.split(jax.random.key(0), 3)
    begins = jnp.zeros((2, 16), bool).at[:, (0, 6)].set(True)
    stream = Segment(
        jax.random.normal(keys[0], (2, 16, 2)),
        jax.random.normal(keys[1], (2, 16, 1)),
        jax.random.normal(keys[2], (2, 16)),
        jnp.zeros((2, 16)).at[:, 5].set(terminal),
        begins=begins,
    )
    losses = functools.partial(LOSSES, untrained.params)
    clean, weights = losses(stream)
    np.testing.assert_array_equal(weights, 1.0)
    for spoilt, kept in ((np.s_[:, :6], np.s_[:, 6:]), (np.s_[:, 6:], np.s_[:, :6])):
        hurt = {name: getattr(stream, name).at[spoilt].set(jnp.nan) for name in ("observations", "actions", "rewards")}
        by_step, _ = losses(stream.replace(**hurt))
        for name in by_step:
            np.testing.assert_array_equal(by_step[name][kept], clean[name][kept], err_msg=name)
            assert name == "continue" or not np.isfinite(by_step[name][spoilt]).any(), name
    one = stream.replace(begins=begins.at[:, 6].set(False))
    assert np.isnan(losses(one.replace(actions=one.actions.at[:, 5].set(jnp.nan)))[0]["decoder"][:, 6:]).all()


def test_a_stream_of_one_episode_is_a_window(untrained):
    whole = jax.tree.map(lambda x: x[:1], window())
    stream = whole.replace(begins=jnp.zeros((1, 16), bool).at[:, 0].set(True))
    assert all_equal(LOSSES(untrained.params, whole), LOSSES(untrained.params, stream))


def test_losses_by_hand_where_the_heads_say_nothing(untrained):
    """The reward head starts at 0: every reward costs ln 255, where the step was taken. And so do weights stand."""
    ask = make_ask(CONFIG, SPEC)
    losses = jax.jit(lambda params: dreamer.losses(ask, params, window(), jax.random.key(0)))
    by_step, weights = losses(untrained.params)
    np.testing.assert_allclose(by_step["reward"], np.log(255), rtol=1e-5)
    np.testing.assert_array_equal(weights.sum(1), [16, 6, 15, 1])
    assert float(by_step["dynamics"].min()) >= 1.0  # the free nat


def test_what_pads_a_context_is_not_looked_at(counted, fitted):
    """In front of an episode's start: NaN in all of it changes nothing, and it is not taken for observed."""
    _, imagine, _ = counted
    context = contexts()
    unobserved = jnp.arange(5) < 3
    padded = context.replace(observed=jnp.broadcast_to(~unobserved[None], context.observed.shape))
    poisoned = padded.replace(
        observations=jnp.where(unobserved[None, :, None], jnp.nan, padded.observations),
        actions=jnp.where(unobserved[None, :, None], jnp.nan, padded.actions),
        rewards=jnp.where(unobserved[None], jnp.nan, padded.rewards),
    )

    def imagined(context):
        return imagine(fitted, jnp.array([0.0, 0.3]), context, NORMALISER, jax.random.key(0))[0]

    there = imagined(poisoned)
    assert all_equal(there, imagined(padded)) and all(jnp.isfinite(x).all() for x in jax.tree.leaves(there))
    assert not all_equal(there, imagined(context))


def test_the_posterior_begins_anew_where_nothing_was_observed_before(fitted):
    """At the first observed step the recurrent state is that of the learnt initial latent and no action."""
    ask = make_ask(CONFIG, SPEC)
    context = jax.tree.map(lambda x: x[::COPIES], contexts())
    first = jnp.broadcast_to(jnp.array([True, False, True, False, False])[None], (CONTEXTS, 5))

    @jax.jit
    def both(params):
        latents, *_ = dreamer.observe(ask, params, context.observations, context.actions, first, jax.random.key(0))
        return latents, ask(params, "advance", ask(params, "initial", CONTEXTS), jnp.zeros((CONTEXTS, 1)))

    latents, fresh = both(fitted.params)
    for t in range(5):
        distance = float(jnp.abs(latents.deter[:, t] - fresh).max())
        assert distance < 1e-6 if t in (0, 2) else distance > 0.1, (t, distance)


def test_a_new_policy_model_batch_and_context_do_not_trace_again(counted, fitted, untrained):
    update, imagine, traces = counted
    for i, state in enumerate((fitted, untrained)):
        imagine(state, jnp.array([0.1 * i, 0.2]), contexts(), NORMALISER, jax.random.key(i))
        update(state, window(i), NORMALISER, jax.random.key(i))
    assert traces == {"update": 1, "imagine": 1}


# --- the learner -----------------------------------------------------------------------------------------------------

T, N = 6, 5


def trajectories():
    rng = np.random.default_rng(0)
    rewards, values = rng.standard_normal((T, N)), rng.standard_normal((T + 1, N))
    return (jnp.asarray(x, jnp.float32) for x in (rewards, values, rng.uniform(size=(T, N)) > 0.2))


def test_lambda_returns_are_the_recursion_and_those_of_gae():
    rewards, values, continues = trajectories()
    found = learner.lambda_returns(rewards, values, continues, 0.9, 0.8)
    later, expected = np.asarray(values[-1]), []
    for t in reversed(range(T)):
        later = rewards[t] + 0.9 * continues[t] * (0.2 * values[t + 1] + 0.8 * later)
        expected.insert(0, later)
    np.testing.assert_allclose(found, np.stack(expected), rtol=1e-5, atol=1e-6)
    # Advantage plus value of ``agents/gae.py``, whose last reward and terminal are not looked at.
    behind = jnp.zeros((1, N))
    terminals = jnp.concatenate([1.0 - continues, behind]).T
    advantages, _ = gae(jnp.concatenate([rewards, behind]).T, values.T, terminals, 0.9, 0.8)
    np.testing.assert_allclose(found, advantages.T + values[:-1], rtol=1e-5, atol=1e-6)


def test_step_weights_by_numbers():
    """gamma 1/2: 1, 1/2, 1/4; after an end nothing counts, the ending step itself does; padding never does."""
    continues = jnp.array([[1.0, 0.0, 1.0], [1.0, 1.0, 1.0], [1.0, 1.0, 1.0]])
    found = learner.step_weights(jnp.array([1.0, 1.0, 0.0]), continues, 0.5)
    np.testing.assert_array_equal(found, [[1, 1, 0], [0.5, 0, 0], [0.25, 0, 0]])
    # sum 2.75 of three steps of the two starts that count
    np.testing.assert_allclose(
        learner.weighted_mean(jnp.full((3, 3), 2.0), found, jnp.array([1.0, 1.0, 0.0])), 2 * 2.75 / 6
    )


@pytest.mark.parametrize("percent", [0.0, 5.0, 37.0, 95.0, 100.0])
def test_percentiles_are_those_of_what_counts(percent):
    x = np.random.default_rng(0).standard_normal(50).astype(np.float32)
    counts = (np.arange(50) % 3 > 0).astype(np.float32)
    np.testing.assert_allclose(
        learner.percentile(jnp.where(counts > 0, x, jnp.nan), jnp.asarray(counts), percent),
        np.percentile(x[counts > 0], percent),
        rtol=1e-5,
    )


def test_the_scale_of_returns_by_numbers():
    """Returns 0 to 100: percentiles 5 and 95. Averages from 0, decay 0.99: 0.05 and 0.95, then 0.0995 and 1.8905."""
    config = DreamerAgentConfig(units=4)
    state = learner.init(jax.random.key(0), 2, 1, config)
    returns = jnp.arange(101.0)[None]
    low, high = learner.average_percentiles(state, returns, jnp.ones(101))
    np.testing.assert_allclose([low, high], [0.05, 0.95], rtol=1e-5)
    state = state.replace(low_return=low, high_return=high)
    found = learner.average_percentiles(state, returns, jnp.ones(101))
    np.testing.assert_allclose(found, [0.0995, 1.8905], rtol=1e-5)


def test_the_critic_is_drawn_to_its_returns_and_to_its_average(monkeypatch):
    """Three bins; it says (1/2, 1/4, 1/4), its average the last bin. Return 0: -ln(1/2) - ln(1/4) = 3 ln 2."""
    monkeypatch.setattr(learner, "BINS", 3)
    says = {"now": jnp.log(jnp.array([0.25, 0.5, 0.25])), "slow": jnp.array([-1e3, -1e3, 1e3])}

    def critic(which, read):
        return jnp.broadcast_to(says[which][None, None], (*read.shape[:-1], 3))

    arguments = (critic, jnp.zeros((1, 2, 4)), jnp.zeros((1, 2)), jnp.ones((1, 2)), jnp.ones(2))
    np.testing.assert_allclose(learner.critic_loss("now", "slow", *arguments), 3 * np.log(2), rtol=1e-5)


def test_the_averaged_critic_follows():
    found = learner.exponential_average({"w": jnp.ones(2)}, {"w": jnp.full(2, 3.0)}, 0.98)
    np.testing.assert_allclose(found["w"], 1.04, rtol=1e-6)  # 1 + 0.02 * 2


# One number x, redrawn at every step; the reward is 2 - 4 (clip(a) - x)^2: best is a = x.
POLICY = DreamerAgentConfig(horizon=4, units=32, layers=1, gamma=0.8, learning_rate=3e-3)


def imagine_step(x, action, key):
    reward = 2.0 - 4.0 * jnp.square(rssm.executed_action(action, "clipped") - x)[:, 0]
    return jax.random.uniform(key, x.shape, minval=-0.9, maxval=0.9), reward, jnp.ones(x.shape[0])


def features(x):
    """With a constant beside it: see the system above."""
    return jnp.concatenate([x, jnp.ones_like(x)], axis=-1)


def learn(config: DreamerAgentConfig, updates: int):
    state = learner.init(jax.random.key(1), 2, 1, config)

    def once(state, key):
        keys = jax.random.split(key)
        starts = jax.random.uniform(keys[0], (64, 1), minval=-0.9, maxval=0.9)
        return learner.update(state, starts, jnp.ones(64), imagine_step, features, config, 1, keys[1])

    return state, *jax.jit(lambda s, k: jax.lax.scan(once, s, k))(state, jax.random.split(jax.random.key(2), updates))


@pytest.mark.parametrize("gradient", ["reinforce", "backprop"])
def test_a_task_with_a_known_optimum_is_learnt(gradient):
    """The mean of the best policy is x; the value is at most 2 / (1 - 0.8) = 10."""
    before, after, metrics = learn(dataclasses.replace(POLICY, gradient=gradient), 400)
    x = jnp.linspace(-0.8, 0.8, 9)[:, None]
    policy, critic = learner.make_policy(1, dataclasses.replace(POLICY, gradient=gradient)), learner.make_critic(POLICY)

    def error(state):
        return float(jnp.abs(policy(state.actor, features(x))[0] - x).max())

    values = two_hot_mean(critic(after.critic, features(x)))
    print(gradient, error(before), error(after), values, metrics["agent/entropy"][-1])
    assert error(after) < 0.2 < 0.6 < error(before)
    # Acting by 0 is worth less than (2 - 4 * 0.9^2 / 3) / (1 - 0.8) = 4.6; the critic is still on its way to 10.
    assert np.all(values > 7.0) and np.all(values < 10.5)
    np.testing.assert_allclose(two_hot_mean(critic(before.critic, features(x))), 0.0, atol=1e-5)


def test_starts_that_are_padding_do_not_count():
    """Whatever they are: the same step to the last bit."""
    state = learner.init(jax.random.key(1), 2, 1, POLICY)
    real = (jnp.arange(64) % 4 > 0).astype(jnp.float32)
    starts = jax.random.uniform(jax.random.key(3), (64, 1))

    @jax.jit
    def after(starts):
        return learner.update(state, starts, real, imagine_step, features, POLICY, 1, jax.random.key(4))

    other = jnp.where(real[:, None] > 0, starts, 100.0)
    assert all_equal(after(starts), after(other)) and not all_equal(after(starts), after(starts + 0.1))


@pytest.mark.parametrize(("gradient", "gain"), [("reinforce", 2.0), ("backprop", 0.5)])
def test_it_learns_in_the_latent_space_of_the_world_model(fitted, gradient, gain):
    """The system above pays the action, and ends over 0.9: the mean goes up from about 0, yet not over the edge.

    An end is predicted as happening or not (as published), which has no slope: backprop goes too far.
    """
    latent = make_latent_model(CONFIG, SPEC)
    config = dataclasses.replace(POLICY, horizon=5, gamma=0.9, gradient=gradient)
    before = learner.init(jax.random.key(1), latent.feature_size, 1, config)
    rng = np.random.default_rng(5)
    windows = Segment(
        jnp.asarray(rng.standard_normal((8, 8, 2)), jnp.float32),
        jnp.asarray(rng.uniform(-1, 1, (8, 8, 1)), jnp.float32),
        jnp.zeros((8, 8)),
        jnp.zeros((8, 8)).at[0, 3:].set(1.0),
    )

    @jax.jit
    def several(learnt, params, key):
        latents, real = latent.observe(params, windows, key)
        starts = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), latents)

        def step(*arguments):
            return latent.step(params, *arguments)

        def once(learnt, key):
            return learner.update(learnt, starts, real.reshape(-1), step, latent.features, config, 1, key)

        learnt, metrics = jax.lax.scan(once, learnt, jax.random.split(key, 150))
        return learnt, real, metrics

    after, real, metrics = several(before, fitted.params, jax.random.key(0))
    assert real.sum() == 7 * 8 + 4
    returns = np.asarray(metrics["agent/return_mean"])
    print("returns of the first update and of the last ten:", returns[0], returns[-10:].mean())
    assert returns[-10:].mean() > returns[0] + gain
    assert all(jnp.isfinite(x).all() for x in jax.tree.leaves(after))
