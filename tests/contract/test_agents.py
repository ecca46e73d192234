"""What every agent promises by the protocol of ``Agent``, in every world model that it can learn in."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from tiny import A, B, H, O

from polygrad_jax.agents.agent_table import AGENTS, make_agent
from polygrad_jax.config import ConfigError
from polygrad_jax.types import Experience, Policy, Segment
from polygrad_jax.world_models.model_table import SIMULATOR

WITH_LATENTS = ("dreamer",)
DIFFERENTIABLE = ("polygrad", "ensemble", "distilled")
"""What value gradients are tried in: a model with a companion, and two with a step of their own."""
PAIRS = [
    *(("a2c", name) for name in tiny.EVERY_MODEL),
    *(("value_gradient", name) for name in DIFFERENTIABLE),
    *(("dreamer", name) for name in WITH_LATENTS),
]
WITH_EVERY_OPTION = {
    "a2c.search": False,
    "a2c.learning_rates": "falling",
    "a2c.epochs": 2,
    "a2c.minibatches": 4,
    "a2c.clip_ratio": 0.2,
    "a2c.normalise_observations": True,
    "a2c.value_scale": "running",
}


class Tried:
    """An agent in a world model, its functions jitted and their traces counted."""

    def __init__(self, name: str, world_model: str, fields: dict | None = None):
        config = tiny.config_of(world_model, name, fields)
        self.name, self.config, self.model = name, config, tiny.model_of(config)
        self.agent = make_agent(config, tiny.SPEC, self.model)
        self.traces = {"imagine": 0, "update": 0, "decide": 0}
        self.imagine, self.update, self.decide = (self._counted(name) for name in self.traces)
        self.state = jax.jit(self.agent.init)(jax.random.key(1))
        self.model_state = jax.jit(self.model.init)(jax.random.key(0))

    def _counted(self, name: str):
        def function(*args):
            self.traces[name] += 1
            return getattr(self.agent, name)(*args)

        return jax.jit(function)

    def imagined(self, state=None, seed: int = 0):
        state = self.state if state is None else state
        contexts = tiny.contexts_for(self.model, seed)
        return self.imagine(state, self.model_state, contexts, tiny.NORMALISER, jax.random.key(seed))

    def experience(self, state=None, seed: int = 0) -> Experience:
        """What the agent asks for and no more."""
        imagined = self.imagined(state, seed)[0] if self.agent.trajectories else None
        windows = None
        if self.agent.windows is not None:
            size, length = self.agent.windows
            windows = tiny.batch_for(self.model, seed)
            assert windows.terminals.shape == (size, length)
        return Experience(imagined, windows, tiny.NORMALISER, jnp.float32(0.1 * seed))

    def learn(self, state=None, seed: int = 0):
        state = self.state if state is None else state
        return self.update(state, self.model_state, self.experience(state, seed), jax.random.key(seed))


@pytest.fixture(scope="module", params=[*PAIRS, "a2c_options"], ids=lambda x: x if isinstance(x, str) else "-".join(x))
def tried(request):
    if request.param == "a2c_options":
        return Tried("a2c", SIMULATOR, WITH_EVERY_OPTION)
    return Tried(*request.param)


def test_every_agent_is_tried():
    assert {name for name, _ in PAIRS} == set(AGENTS)
    for name in set(tiny.EVERY_MODEL) - set(WITH_LATENTS):
        config = tiny.config_of(name)
        with pytest.raises(ConfigError, match=f"agent is dreamer with world_model {name}"):
            AGENTS["dreamer"](config, tiny.SPEC, tiny.model_of(config))


def test_it_imagines_what_the_protocol_says(tried):
    segment, aux = tried.imagined()
    assert jax.tree.map(jnp.shape, segment) == Segment((B, H, O), (B, H, A), (B, H), (B, H))
    assert all(x.dtype == jnp.float32 for x in jax.tree.leaves(segment))
    assert tiny.all_finite((segment, aux))
    first = tiny.contexts_for(tried.model, 0).observations[:, -1]
    np.testing.assert_allclose(segment.observations[:, 0], first, rtol=1e-5, atol=1e-5)
    assert tiny.all_equal((segment, aux), tried.imagined())


def test_it_imagines_under_its_policy(tried):
    """The state's policy handed to the model gives the same to the last bit; another policy acts otherwise."""
    segment, _ = tried.imagined()
    other = jax.jit(tried.agent.init)(jax.random.key(5))
    assert not np.allclose(segment.actions, tried.imagined(other)[0].actions)
    policy = tried.agent.policy(tried.state)
    if policy is not None:
        given = (policy, tiny.contexts_for(tried.model, 0), tiny.NORMALISER, jax.random.key(0))
        directly, _ = jax.jit(tried.model.imagine)(tried.model_state, *given)
        np.testing.assert_array_equal(directly.actions, segment.actions)


def test_an_update_changes_the_policy_and_keeps_the_shapes(tried):
    after, _ = tried.learn()
    assert tiny.same_shapes(tried.state, after)
    assert tiny.all_finite(after)
    before, now = (tried.agent.acting(state, tried.model_state) for state in (tried.state, after))
    assert tiny.same_shapes(before, now) and not tiny.all_equal(before, now)
    assert not tiny.all_equal(*(tried.agent.evaluated(s, tried.model_state) for s in (tried.state, after)))
    assert tiny.all_equal(after, tried.learn()[0])


def test_metrics_are_finite_scalars_of_the_agent(tried):
    _, metrics = tried.learn()
    assert tiny.all_finite(metrics)
    for name, value in metrics.items():
        assert re.fullmatch(r"agent/[a-z][a-z_]*", name) and value.shape == (), name
    assert {"agent/actor_loss", "agent/critic_loss"} <= metrics.keys()


def test_the_policy_is_one_of_raw_observations_or_none(tried):
    raw_obs = jnp.asarray(np.random.default_rng(0).standard_normal((3, B, O)), jnp.float32)
    for policy in (tried.agent.policy(tried.state), tried.agent.evaluated_policy(tried.state)):
        assert (policy is None) == (tried.name == "dreamer")
        if policy is not None:
            assert isinstance(policy, Policy)
            mean, std = policy(raw_obs)
            assert mean.shape == std.shape == (3, B, A) and np.all(std > 0)


def test_what_acts_needs_no_more_than_its_parameters(tried):
    """An episode on copies that the host holds; the memory keeps its shapes, so that two traces are all there are."""
    after, _ = tried.learn()
    for choose in (tried.agent.acting, tried.agent.evaluated):
        params = jax.device_get(choose(after, tried.model_state))
        raw_obs, memories = np.random.default_rng(0).standard_normal((4, B, O)).astype(np.float32), []
        memory = None
        for k in range(4):
            mean, std, memory = tried.decide(params, memory, raw_obs[k], jax.random.key(k))
            assert mean.shape == std.shape == (B, A) and np.all(std > 0)
            assert tiny.all_finite((mean, std, memory))
            memory = tried.agent.remember(memory, mean + std)
            memories.append(memory)
        assert all(tiny.same_shapes(memories[0], later) for later in memories)
        assert all(x.shape[0] == B and x.dtype == jnp.float32 for x in jax.tree.leaves(memories))
    policy = tried.agent.policy(after)
    if policy is not None:
        params = tried.agent.acting(after, tried.model_state)
        decided, _, memory = tried.decide(params, None, raw_obs[0], jax.random.key(0))
        np.testing.assert_allclose(decided, policy(raw_obs[0])[0], rtol=1e-6, atol=1e-6)
        assert memory is None
    assert tried.traces["decide"] == (1 if memories[-1] is None else 2)


def test_what_is_remembered_is_of_the_episode(tried):
    """Where there is a memory, the action taken before changes what is chosen; without one nothing does."""
    params = tried.agent.acting(tried.state, tried.model_state)
    raw_obs, key = jnp.ones((B, O)), jax.random.key(0)
    _, _, memory = tried.decide(params, None, raw_obs, key)
    kept = [tried.agent.remember(memory, jnp.full((B, A), x)) for x in (-1.0, 1.0)]
    means = [tried.decide(params, x, raw_obs, key)[0] for x in kept]
    assert np.array_equal(*means) == (memory is None)


def test_traced_once(tried):
    state = tried.state
    for seed in range(2):
        state, _ = tried.learn(state, seed)
        tried.imagined(state, seed)
    assert tried.traces["imagine"] == tried.traces["update"] == 1
