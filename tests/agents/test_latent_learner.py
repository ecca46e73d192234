"""Dreamer-v3 as an agent in the loop: what it remembers of an episode, how it acts, what its updates touch."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from polygrad_jax import config as configs
from polygrad_jax.agents.agent_table import make_agent
from polygrad_jax.config import EnvSpec
from polygrad_jax.data import normaliser as normalisers
from polygrad_jax.data import replay as replays
from polygrad_jax.training.collecting import make_decide
from polygrad_jax.training.evaluating import mean_actions
from polygrad_jax.types import Experience, Transitions
from polygrad_jax.world_models.dreamer import make_ask, make_dreamer, make_latent_model, observe

SPEC = EnvSpec(3, 2)
CONFIG = configs.validate(
    dataclasses.replace(configs.smoke("hopper"), world_model="dreamer", agent="dreamer", horizon=5)
)


@pytest.fixture(scope="module")
def agent():
    return make_agent(CONFIG, SPEC, make_dreamer(CONFIG, SPEC))


@pytest.fixture(scope="module")
def learnt(agent):
    """``(agent's state, world model's state)``, just drawn."""
    model = jax.jit(make_dreamer(CONFIG, SPEC).init)(jax.random.key(0))
    return jax.jit(agent.init)(jax.random.key(1)), model


@pytest.fixture(scope="module")
def decide(agent):
    return make_decide(agent)


def test_seeing_step_by_step_is_observing_the_window(learnt):
    latent, params, key = make_latent_model(CONFIG, SPEC), learnt[1].params, jax.random.key(2)
    raw_obs, actions = jax.random.normal(key, (4, 6, 3)), jax.random.normal(jax.random.fold_in(key, 1), (4, 6, 2))
    first = jnp.zeros((4, 6), bool).at[:, 0].set(True)
    whole, *_ = jax.jit(lambda: observe(make_ask(CONFIG, SPEC), params, raw_obs, actions, first, key))()
    before, see = None, jax.jit(latent.see)
    for k, step_key in enumerate(jax.random.split(key, 6)):
        seen = see(params, before, raw_obs[:, k], step_key)
        np.testing.assert_array_equal(seen.stoch.argmax(-1), whole.stoch[:, k].argmax(-1))
        np.testing.assert_allclose(seen.deter, whole.deter[:, k], atol=1e-5)
        before = (seen, actions[:, k])


@pytest.fixture(scope="module")
def play(agent, decide):
    """The means along ``observations [T, B, O]``, taking each mean; and the memory at the end."""

    def along(params, observations, memory=None, start=0):
        means = []
        for k, raw_obs in enumerate(observations, start):
            mean, std, memory = decide(params, memory, raw_obs, (7, k))
            assert std.shape == mean.shape == (*raw_obs.shape[:-1], 2)
            means.append(mean)
            memory = agent.remember(memory, mean)
        return np.stack(means), memory

    return along


def test_what_is_remembered_survives_a_checkpoint_to_the_last_bit(play, agent, learnt):
    """As the loop stores it: lists of numbers in JSON."""
    params = agent.acting(*learnt)
    observations = np.random.default_rng(0).normal(size=(9, 1, 3)).astype(np.float32)
    whole, _ = play(params, observations)
    first, memory = play(params, observations[:4])
    stored = json.loads(json.dumps({name: x.tolist() for name, x in memory.items()}))
    memory = {name: np.asarray(x, np.float32) for name, x in stored.items()}
    rest, _ = play(params, observations[4:], memory, 4)
    np.testing.assert_array_equal(np.concatenate([first, rest]), whole)
    forgotten, _ = play(params, observations[4:], None, 4)
    assert not np.allclose(forgotten[0], rest[0])


def test_episodes_side_by_side_are_kept_apart(play, agent, decide, learnt):
    params = agent.acting(*learnt)
    random = np.random.default_rng(1)
    both = random.normal(size=(6, 2, 3)).astype(np.float32)
    other = np.stack([both[:, 0], random.normal(size=(6, 3)).astype(np.float32)], axis=1)
    np.testing.assert_array_equal(play(params, both)[0][:, 0], play(params, other)[0][:, 0])
    act = mean_actions(agent, decide, params, 7)
    np.testing.assert_array_equal(np.stack([act(x) for x in both]), play(params, both)[0])


def replay_of_noise() -> replays.ReplayState:
    random, count = np.random.default_rng(2), 200
    ends = np.arange(count) % 25 == 24
    rows = Transitions(
        random.normal(size=(count, 3)).astype(np.float32),
        random.uniform(-1, 1, (count, 2)).astype(np.float32),
        random.normal(size=count).astype(np.float32),
        ends.astype(np.float32),
        np.zeros(count, np.float32),
        np.ones(count, bool),
    )
    return replays.add(replays.init(SPEC, 256, CONFIG.dreamer.window), rows, CONFIG.dreamer.window)


def test_an_update_moves_actor_and_critic(agent, learnt):
    replay, before = replay_of_noise(), learnt[0]
    assert agent.trajectories == 0 and agent.windows == (CONFIG.dreamer.batch_size, CONFIG.dreamer.window)
    windows = replays.sample(replay, jax.random.key(3), *agent.windows)
    experience = Experience(None, windows, normalisers.to_normaliser(replay.moments), jnp.float32(0.5))
    update = jax.jit(agent.update)
    after, metrics = update(before, learnt[1], experience, jax.random.key(4))
    for part in ("actor", "critic", "slow_critic"):
        pairs = zip(jax.tree.leaves(getattr(before, part)), jax.tree.leaves(getattr(after, part)), strict=True)
        assert any(not np.array_equal(a, b) for a, b in pairs), part
    assert all(np.isfinite(x).all() for x in jax.tree.leaves((after, metrics)))
    broken = learnt[1].replace(params=jax.tree.map(lambda x: jnp.full_like(x, jnp.nan), learnt[1].params))
    _, found = update(before, broken, experience, jax.random.key(4))
    assert not np.isfinite(found["agent/critic_loss"])


def test_what_it_imagines_is_decoded_under_its_own_policy(agent, learnt):
    """Two policies, the same draws: other actions; and the first state is the context's last."""
    context = replays.sample_contexts(replay_of_noise(), jax.random.key(5), 16, CONFIG.dreamer.context_length)
    imagine = jax.jit(agent.imagine)
    segment, _ = imagine(*learnt, context, None, jax.random.key(6))
    assert jax.tree.map(jnp.shape, segment.observations) == (16, 5, 3)
    np.testing.assert_array_equal(segment.observations[:, 0], context.observations[:, -1])
    other = jax.jit(agent.init)(jax.random.key(9)).replace(critic=learnt[0].critic)
    elsewhere, _ = imagine(other, learnt[1], context, None, jax.random.key(6))
    assert not np.allclose(elsewhere.actions[:, 0], segment.actions[:, 0])


@pytest.mark.parametrize("ema", [0.0, 0.9])
def test_the_policy_that_is_evaluated_is_the_average_where_there_is_one(agent, learnt, ema):
    assert agent.evaluated(*learnt)["actor"] is learnt[0].actor
    config = configs.override(CONFIG, {"agent": "a2c", "a2c.actor_ema": ema})
    a2c = make_agent(config, SPEC, make_dreamer(config, SPEC))
    state = a2c.init(jax.random.key(0))
    shown = state.actor if ema == 0 else state.averaged_actor
    assert a2c.evaluated(state, None) is shown and a2c.evaluated_policy(state).params is shown
    assert a2c.acting(state, None) is state.actor and a2c.policy(state).params is state.actor
