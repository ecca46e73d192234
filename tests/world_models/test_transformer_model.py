"""The transformer as a world model: what it sees, what it is taught, and that a cache changes nothing."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import traced

from polygrad_jax.config import Config, ConfigError, DiffusionConfig, EnvSpec, TransformerConfig, paper, validate
from polygrad_jax.types import MeanStd, Normaliser, Policy, Segment
from polygrad_jax.world_models import terminal_classifier
from polygrad_jax.world_models.transformer import make_network, make_transformer, pair, prediction_loss

B, O, A, C, H = 4, 3, 2, 15, 30  # noqa: E741  (the letters of the docstrings)
SPEC = EnvSpec(O, A)
SIZE = TransformerConfig(token_dim=16, num_heads=2, num_blocks=2, learning_rate=1e-2, batch_size=B)
CONFIG = Config(horizon=H, transformer=SIZE)
NORMALISER = Normaliser(
    observations=MeanStd(jnp.array([1.0, -2.0, 0.5]), jnp.array([2.0, 0.5, 3.0])),
    actions=MeanStd(jnp.array([0.1, -0.3]), jnp.array([0.6, 0.8])),
    rewards=MeanStd(jnp.array([1.5]), jnp.array([0.4])),
    terminals=MeanStd(jnp.array([0.01]), jnp.array([0.1])),
)


def policy_apply(params, raw_obs):
    """Bounded, of the state, wide enough that actions leave [-1, 1]."""
    mean = jnp.broadcast_to(params, (*raw_obs.shape[:-1], A)) * jnp.tanh(raw_obs[..., :A])
    return mean, jnp.full_like(mean, 0.8)


def segment(key: int, length: int) -> Segment:
    keys = jax.random.split(jax.random.key(key), 3)
    return Segment(
        observations=jax.random.normal(keys[0], (B, length, O)),
        actions=jax.random.normal(keys[1], (B, length, A)),
        rewards=jax.random.normal(keys[2], (B, length)),
        terminals=jnp.zeros((B, length)),
    )


def all_equal(a, b) -> bool:
    return all(jax.tree.leaves(jax.tree.map(lambda x, y: bool(jnp.array_equal(x, y)), a, b)))


@pytest.fixture(scope="module")
def counted():
    """The model's functions as a loop would jit them, and how often each was traced."""
    model = make_transformer(CONFIG, SPEC)
    update, imagine, traces = traced.counted(model, policy_apply)
    return model, update, lambda *given: imagine(*given)[0], traces


@pytest.fixture(scope="module")
def state(counted):
    """Parameters ten times as large as at the start, so that every token weighs and positions matter."""
    start = jax.jit(counted[0].init)(jax.random.key(0))
    return start.replace(params=jax.tree.map(lambda x: 10.0 * x if x.ndim == 2 else x, start.params))


# --- what it sees ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def network():
    module = make_network(SIZE, SPEC, "float32")
    return jax.jit(lambda params, pairs: module.apply({"params": params}, pairs)[0])


def test_later_pairs_do_not_matter(network, state):
    pairs = jax.random.normal(jax.random.key(3), (B, C, O + A))
    for channel in (0, O):  # of the state, of the action
        before, after = (network(state.params, x) for x in (pairs, pairs.at[:, 9, channel].add(1.0)))
        change = np.abs(np.asarray(after - before)).max(axis=(0, 2))
        assert (change[:9] == 0.0).all() and (change[9:] > 1e-4).all()


def test_more_pairs_than_positions_are_refused():
    module = make_network(SIZE, SPEC, "float32")
    with pytest.raises(ValueError, match="16 state-action pairs: this transformer has 15 positions"):
        module.init(jax.random.key(0), jnp.zeros((1, 16, O + A)))


def recomputed(network, state, context: Segment, imagined: Segment, observed) -> Segment:
    """The roll-out's own states and actions, every one of which is predicted anew from its last 15 pairs.

    No cache, no mask and no sliding: each history is cut out on the host and begins at the first position; what fills
    the 15 up stands behind it, where the causal network does not look.
    """

    def both(name):
        return np.concatenate([getattr(context, name)[:, :-1], getattr(imagined, name)], axis=1)

    pairs = np.asarray(pair(both("observations"), both("actions"), NORMALISER, "clipped"))
    past = context.terminals.shape[1] - 1
    histories, lengths = np.full((H, B, C, O + A), 99.0, np.float32), np.zeros((H, B), int)
    for t in range(H):
        for b in range(B):
            begin = max(past + 1 - observed[b], past + t + 1 - C)
            lengths[t, b] = past + t + 1 - begin
            histories[t, b, : lengths[t, b]] = pairs[b, begin : past + t + 1]
    outputs = np.asarray(jax.lax.map(lambda x: network(state.params, x), jnp.asarray(histories)))
    outputs = np.take_along_axis(outputs, lengths[..., None, None] - 1, axis=2)[:, :, 0].swapaxes(0, 1)
    stats = NORMALISER
    return Segment(
        observations=outputs[..., :O] * np.asarray(stats.observations.std) + np.asarray(stats.observations.mean),
        actions=imagined.actions,
        rewards=outputs[..., O] * 0.4 + 1.5,
        terminals=(outputs[..., O + 1] * 0.1 + 0.01 > 0.5).astype(np.float32),
    )


@pytest.mark.parametrize("length", [1, 6, 15])
def test_with_cache_and_without_are_equal_beyond_the_context(counted, state, network, length):
    """30 steps, histories of 1 to 15 pairs and then the last 15; trajectories of one batch know differently much."""
    _, _, imagine, _ = counted
    observed = np.minimum([1, 3, 11, 15], length)
    mask = np.arange(length)[None, :] >= length - observed[:, None]
    context = segment(length, length).replace(observed=jnp.asarray(mask))
    imagined = imagine(state, jnp.ones(A), context, NORMALISER, jax.random.key(0))
    expected = recomputed(network, state, context, imagined, observed)
    ended = np.maximum.accumulate(expected.terminals, axis=1)
    np.testing.assert_array_equal(imagined.terminals, ended)
    before = np.concatenate([np.zeros((B, 1)), ended[:, :-1]], axis=1)
    assert before[:, :3].mean() < 0.9  # there are rewards to compare
    np.testing.assert_allclose(imagined.observations[:, 1:], expected.observations[:, :-1], rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(imagined.rewards, (1 - before) * expected.rewards, rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(imagined.observations[:, 0], context.observations[:, -1])
    assert np.abs(imagined.actions).max() > 1.5  # it was shown them clipped

    # what stands where nothing was observed changes no bit, and what was observed does
    def changed(keep):
        return context.replace(
            observations=np.where(keep[..., None], context.observations, np.float32(1e6)),
            actions=np.where(keep[..., None], context.actions, np.float32(np.nan)),
            rewards=np.full(keep.shape, np.nan, np.float32),
        )

    poisoned = imagine(state, jnp.ones(A), changed(mask), NORMALISER, jax.random.key(0))
    assert all_equal(poisoned, imagined)


def test_the_policy_is_asked_at_the_predicted_states(counted, state):
    """Its actions, standardised by its mean and deviation at the imagined states, are 240 standard normal draws."""
    _, _, imagine, _ = counted
    context = segment(0, 1).replace(observed=jnp.ones((B, 1), bool))
    imagined = imagine(state, jnp.full(A, 2.0), context, NORMALISER, jax.random.key(1))
    mean, std = policy_apply(jnp.full(A, 2.0), imagined.observations)
    z = np.asarray((imagined.actions - mean) / std)
    assert abs(z.mean()) < 4 / np.sqrt(z.size) and abs(z.std() - 1) < 4 / np.sqrt(2 * z.size)


def test_a_new_policy_and_a_new_normaliser_do_not_trace_again(counted, state):
    _, update, imagine, traces = counted
    context = segment(0, 15).replace(observed=jnp.ones((B, 15), bool))
    other = NORMALISER.replace(rewards=MeanStd(jnp.zeros(1), jnp.ones(1)))
    imagine(state, jnp.ones(A), context, NORMALISER, jax.random.key(0))
    known = traces["imagine"]
    context = context.replace(observed=context.observed.at[:, :9].set(False))
    imagined = imagine(state, jnp.zeros(A), context, other, jax.random.key(1))
    assert traces["imagine"] == known
    assert jax.tree.map(jnp.shape, imagined) == Segment((B, H, O), (B, H, A), (B, H), (B, H))
    state, _ = update(state, segment(1, C + 1), NORMALISER, jax.random.key(0))
    update(state, segment(2, C + 1), other, jax.random.key(1))
    assert traces["update"] == 1


def test_terminals_are_those_of_the_classifier_where_the_config_says_so():
    config = dataclasses.replace(
        CONFIG,
        horizon=3,
        diffusion=DiffusionConfig(terminals="classified"),
        transformer=dataclasses.replace(SIZE, context_length=1, num_blocks=1),
    )
    model = make_transformer(config, SPEC)
    observations = jnp.asarray(8.0 * np.random.default_rng(0).standard_normal((64, 1, O)), jnp.float32)
    context = Segment(observations, jnp.zeros((64, 1, A)), jnp.zeros((64, 1)), jnp.zeros((64, 1)))
    batch = segment(3, 2)

    @jax.jit
    def run():
        state = model.init(jax.random.key(1))
        policy = Policy(jnp.ones(A), policy_apply)
        imagined, _ = model.imagine(state, policy, context, NORMALISER, jax.random.key(0))
        expected = terminal_classifier.classify(state.classifier.params, imagined, NORMALISER, "clipped")
        after, metrics = model.update(state, batch, NORMALISER, jax.random.key(0))
        learnt = terminal_classifier.update(state.classifier, batch, NORMALISER, "clipped")[0]
        return imagined.terminals, expected, after.classifier, learnt, metrics

    terminals, expected, ours, learnt, metrics = run()
    np.testing.assert_array_equal(terminals, expected)
    assert 0.0 < expected[:, 0].mean() < 1.0
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-7), ours, learnt)
    assert "world_model/classifier_loss" in metrics


# --- what it is taught -----------------------------------------------------------------------------------------------


def test_the_loss_by_hand():
    """One channel of observation, outputs all 0, everything normalised by mean 0 and std 1; four states, three steps.

    Without an end: observations 2, 3, 4 (of the next states) give 29, rewards 1, 1, 1 give 3, terminals 0: 32 / 9.
    With a terminal at step 1: of step 0 2^2 + 1^2 + 0, of step 1 its reward and terminal, 1 + 1, nothing of step 2:
    7 in 5 entries; observation 4 / 1, reward 2 / 2, terminal 1 / 2.
    """
    unit = MeanStd(jnp.zeros(1), jnp.ones(1))
    normaliser = Normaliser(unit, unit, unit, unit)
    raw = Segment(jnp.arange(1.0, 5.0)[None, :, None], jnp.zeros((1, 4, 1)), jnp.ones((1, 4)), jnp.zeros((1, 4)))
    loss_of = jax.jit(lambda segment: prediction_loss(jnp.zeros((1, 3, 3)), segment, normaliser))
    loss, metrics = loss_of(raw)
    np.testing.assert_allclose(loss, 32 / 9, rtol=1e-6)
    ended = raw.replace(terminals=jnp.array([[0.0, 1.0, 1.0, 1.0]]))
    loss, metrics = loss_of(ended)
    names = ("observation", "reward", "terminal")
    np.testing.assert_allclose(loss, 7 / 5, rtol=1e-6)
    np.testing.assert_allclose([metrics[f"world_model/{x}_loss"] for x in names], [4.0, 1.0, 0.5], rtol=1e-6)


def test_padding_teaches_nothing(counted, state):
    """Other states, actions and rewards behind the terminal of step 7: every parameter equal to the last bit."""
    _, update, _, _ = counted
    terminals = jnp.zeros((B, C + 1)).at[:2, 7:].set(1.0)
    batch = segment(4, C + 1).replace(terminals=terminals)
    behind = jnp.cumsum(terminals, axis=1) > 1
    poisoned = batch.replace(
        observations=jnp.where(behind[..., None], 1e3, batch.observations),
        actions=jnp.where(behind[..., None], -0.9, batch.actions),
        rewards=jnp.where(behind, -1e3, batch.rewards),
    )
    plain, other = (update(state, x, NORMALISER, jax.random.key(0))[0] for x in (batch, poisoned))
    assert all_equal(plain, other)
    felt = batch.replace(rewards=batch.rewards.at[0, 7].add(0.1))  # the terminal step's own reward is learnt
    assert not all_equal(plain, update(state, felt, NORMALISER, jax.random.key(0))[0])


def test_the_paper_size():
    """Per block 2 LayerNorms (2 E each), qkv 3 E (E + 1), output E (E + 1), MLP 8 E^2 + 5 E: 12 E^2 + 13 E.

    E = 312, six blocks: 7,033,104; embedding 15 E, with 11 + 3 inputs; positions 15 E; output 13 (E + 1).
    """
    config = paper("hopper")
    model = make_transformer(config, EnvSpec(11, 3))
    shapes = jax.eval_shape(model.init, jax.random.key(0)).params
    assert sum(x.size for x in jax.tree.leaves(shapes)) == 7_033_104 + 30 * 312 + 13 * 313
    assert (model.window, model.batch_size, model.context_length) == (16, 1024, 15)


def test_heads_that_do_not_divide_the_width_are_refused():
    config = dataclasses.replace(paper("hopper"), transformer=TransformerConfig(token_dim=30))
    with pytest.raises(ConfigError, match="transformer.token_dim is 30; allowed: a multiple of transformer.num_heads"):
        validate(config)


# --- a known system --------------------------------------------------------------------------------------------------

FIT = Config(horizon=2, transformer=TransformerConfig(3, 32, 2, 2, learning_rate=3e-3, batch_size=64))
UNIT = MeanStd(jnp.zeros(1), jnp.ones(1))


def series(key, batch: int, length: int) -> Segment:
    """``s_{k+1} = 1.2 s_k - 0.6 s_{k-1} + 0.5 clip(a_k) + 0.3 w``, ``r_k = s_k - a_k``: a state alone does not tell."""
    keys = jax.random.split(key, 3)
    actions = jax.random.uniform(keys[0], (length, batch), minval=-1.5, maxval=1.5)
    noise = 0.3 * jax.random.normal(keys[1], (length, batch))

    def step(now, drawn):
        s, before = now
        following = 1.2 * s - 0.6 * before + 0.5 * jnp.clip(drawn[0], -1.0, 1.0) + drawn[1]
        return (following, s), s

    _, states = jax.lax.scan(step, tuple(jax.random.normal(keys[2], (2, batch))), (actions, noise))
    states, actions = states.T, actions.T
    zeros = jnp.zeros_like(states)
    return Segment(states[..., None], actions[..., None], states - jnp.clip(actions, -1.0, 1.0), zeros)


@pytest.mark.slow
def test_the_mean_of_a_known_system_is_recovered_from_its_history():
    """Root mean squared error of the predicted mean, relative to the change that there is to predict.

    With its history below 0.2; from the last state alone it cannot be below what the hidden part makes of it; before
    training it is about 1 or more.
    """
    model = make_transformer(FIT, EnvSpec(1, 1))
    normaliser = Normaliser(UNIT, UNIT, UNIT, UNIT)
    start = jax.jit(model.init)(jax.random.key(0))

    @jax.jit
    def learn(state):
        def step(state, key):
            return model.update(state, series(key, 64, 4), normaliser, key)[0], None

        return jax.lax.scan(step, state, jax.random.split(jax.random.key(1), 1500))[0]

    def policy(params, raw_obs):
        return jnp.full_like(raw_obs, params), jnp.zeros_like(raw_obs)

    fresh = series(jax.random.key(99), 256, 3)

    @jax.jit
    def imagine(state, observed):
        context = fresh.replace(observed=observed)
        return model.imagine(state, Policy(jnp.float32(0.7), policy), context, normaliser, jax.random.key(0))[0]

    s, before = fresh.observations[:, 2, 0], fresh.observations[:, 1, 0]
    change = 0.2 * s - 0.6 * before + 0.35

    def error(state, known: int) -> float:
        imagined = imagine(state, jnp.broadcast_to(jnp.arange(3) >= 3 - known, (256, 3)))
        wrong = imagined.observations[:, 1, 0] - (s + change)
        return float(jnp.sqrt(jnp.square(wrong).mean() / jnp.square(change).mean()))

    fitted = learn(start)
    errors = {known: error(fitted, known) for known in (1, 2, 3)}
    print("errors by pairs known:", errors, "untrained:", error(start, 3))
    assert errors[3] < 0.2 and errors[2] < 0.2 and errors[1] > 0.35
    assert error(start, 3) > 0.8
    rewards = imagine(fitted, jnp.ones((256, 3), bool)).rewards[:, 0]
    assert float(jnp.sqrt(jnp.square(rewards - (s - 0.7)).mean())) < 0.15
