"""Three A2C updates in a row equal the official code's (tests/parity/README.md), and slips would show.

The tolerance on parameters is absolute, 1e-6, with no relative term: anything looser lets a missing weight decay
or a wrong order of the target critic's average through.
"""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from polygrad_jax.agents import a2c
from polygrad_jax.agents.gae import gae
from polygrad_jax.config import A2CConfig, EnvSpec, smoke
from polygrad_jax.networks import official_weights
from polygrad_jax.training.step import make_steps
from polygrad_jax.types import Segment, WorldModel

PARITY = Path(__file__).parent
SPEC = EnvSpec(observation_size=11, action_size=3)
UPDATES = 3
CONFIGS = {
    "default": A2CConfig(hidden_size=32, initial_std=0.8, max_actor_lr=3e-5),
    "no_linesearch": A2CConfig(hidden_size=32, initial_std=0.8, max_actor_lr=1e-3, search=False),
}
METRICS = {  # ours -> official
    "agent/actor_loss": "loss_actor",
    "agent/critic_loss": "loss_critic",
    "agent/entropy": "policy_entropy",
    "agent/std": "policy_std",
    "agent/value_first": "policy_value",
    "agent/value_mean": "policy_value_im",
    "agent/change_first": "update_delta_logprob_initial",
    "agent/change_final": "update_delta_logprob_final",
    "agent/search_steps": "update_linesearch_steps",
    "agent/standardised_action_mean": "act_mean",
    "agent/standardised_action_std": "act_std",
    "agent/actor_gradient_norm": "gradients/actor_grad_norm",
    "agent/critic_gradient_norm": "gradients/critic_grad_norm",
}


def recorded(name: str) -> dict:
    return dict(np.load(PARITY / f"a2c_{name}.npz"))


@pytest.fixture(scope="module", params=sorted(CONFIGS))
def run(request):
    return request.param, recorded(request.param)


@pytest.fixture(scope="module")
def history(run):
    """Our state and metrics after each recorded update."""
    return updates(*run)


def of(data: dict, prefix: str) -> dict:
    return {name.removeprefix(prefix): array for name, array in data.items() if name.startswith(prefix)}


def networks(weights: dict) -> dict:
    return {
        "actor": official_weights.actor_params(weights),
        "critic": official_weights.critic_params(weights),
        "target_critic": official_weights.critic_params(weights, "critic_target"),
    }


def segment_of(data: dict, step: int) -> Segment:
    """The recorded segment in raw units (states, actions and rewards are recorded normalised)."""

    def raw(name: str, group: str) -> jax.Array:
        return jnp.asarray(data[f"step{step}/{name}"] * data[f"norm/{group}/std"] + data[f"norm/{group}/mean"])

    return Segment(
        observations=raw("states", "observations"),
        actions=raw("actions", "actions"),
        rewards=raw("rewards", "rewards"),
        terminals=jnp.asarray(data[f"step{step}/terminals"]),
    )


def start(config: A2CConfig, data: dict) -> a2c.A2CState:
    return a2c.init(jax.random.key(0), SPEC, config).replace(**networks(of(data, "before/")))


def jit_update(config: A2CConfig):
    return jax.jit(lambda state, segment: a2c.update(state, segment, config, SPEC))


def updates(name: str, data: dict) -> list[tuple[a2c.A2CState, dict]]:
    state, update = start(CONFIGS[name], data), jit_update(CONFIGS[name])
    history = []
    for step in range(UPDATES):
        state, metrics = update(state, segment_of(data, step))
        history.append((state, metrics))
    assert update._cache_size() == 1  # traced once
    return history


def worst_difference(state: a2c.A2CState, data: dict, step: int, part: str) -> float:
    theirs = networks(of(data, f"step{step}/after/"))[part]
    differences = jax.tree.map(lambda a, b: float(jnp.max(jnp.abs(a - b))), getattr(state, part), theirs)
    return max(jax.tree.leaves(differences))


@pytest.mark.parametrize("part", ["actor", "critic", "target_critic"])
def test_parameters_after_every_update(run, history, part):
    _, data = run
    for step, (state, _) in enumerate(history):
        assert worst_difference(state, data, step, part) < 1e-6, f"{part} after update {step}"


def test_metrics_and_learning_rate_of_every_update(run, history):
    _, data = run
    for step, (state, metrics) in enumerate(history):
        theirs = of(data, f"step{step}/metric/")
        for our, its in METRICS.items():
            if its in theirs:
                np.testing.assert_allclose(metrics[our], theirs[its], rtol=1e-4, atol=1e-6, err_msg=f"{our}, {step}")
        np.testing.assert_allclose(state.log_actor_lr, data[f"step{step}/log_actor_lr"], rtol=0, atol=1e-6)


def test_the_reward_that_training_logs_is_that_of_every_update(run):
    name, data = run
    config = dataclasses.replace(smoke("hopper"), a2c=CONFIGS[name])

    @jax.jit
    def logged(segment: Segment) -> jax.Array:
        world_model = WorldModel(init=lambda key: (), update=None, imagine=lambda *_: (segment, {}))
        steps = make_steps(config, SPEC, world_model, a2c.make_a2c(config, SPEC, world_model))
        return steps.improve_policy(steps.init()).metrics["imagination/reward_mean"]

    for step in range(UPDATES):
        theirs = data[f"step{step}/metric/policy_reward"]
        np.testing.assert_allclose(logged(segment_of(data, step)), theirs, rtol=1e-4, atol=1e-6, err_msg=f"{step}")


def test_every_recorded_array_is_compared(run):
    _, data = run
    compared = networks(of(data, "step0/after/"))
    assert len(jax.tree.leaves(compared)) == len(of(data, "step0/after/"))


def assert_differs(name: str, data: dict, part: str):
    state, _ = updates(name, data)[-1]
    assert worst_difference(state, data, UPDATES - 1, part) > 1e-6


def test_mutant_weight_decay_dropped(run, monkeypatch):
    name, data = run
    step = a2c.adamw_step
    monkeypatch.setattr(a2c, "adamw_step", lambda params, direction, rate, decay: step(params, direction, rate, 0.0))
    assert_differs(name, data, "critic")


def test_mutant_weight_decay_spares_vectors(monkeypatch):
    """Biases, LayerNorm and log-std decay too."""
    data = recorded("no_linesearch")

    def decay_matrices(params, direction, rate, decay):
        return jax.tree.map(lambda p, d: p * (1.0 - rate * decay * float(p.ndim > 1)) - rate * d, params, direction)

    monkeypatch.setattr(a2c, "adamw_step", decay_matrices)
    assert_differs("no_linesearch", data, "critic")
    assert_differs("no_linesearch", data, "actor")


def test_mutant_target_critic_follows_after_the_update(run, monkeypatch):
    """The average takes the critic of before this update; with the one after it, every array would be ahead."""
    name, data = run
    monkeypatch.setattr(a2c, "exponential_average", lambda target, source, decay: target)  # not before ...
    state, update = start(CONFIGS[name], data), jit_update(CONFIGS[name])
    for step in range(UPDATES):
        state, _ = update(state, segment_of(data, step))
        late = jax.tree.map(lambda t, c: 0.995 * t + 0.005 * c, state.target_critic, state.critic)
        state = state.replace(target_critic=late)  # ... but after
    assert worst_difference(state, data, UPDATES - 1, "target_critic") > 1e-6


def test_mutant_target_critic_without_its_average_is_used(run, monkeypatch):
    name, data = run
    monkeypatch.setattr(a2c, "exponential_average", lambda target, source, decay: target)
    assert_differs(name, data, "critic")


def test_mutant_log_std_clipped_with_the_network(monkeypatch):
    data = recorded("no_linesearch")
    grad = jax.value_and_grad

    def clip_everything(function, **kwargs):
        def value_and_gradients(params, *rest):
            value, gradients = grad(function, **kwargs)(params, *rest)
            return value, a2c.clip_by_norm(gradients, 0.1)[0] if "log_std" in gradients else gradients

        return value_and_gradients

    monkeypatch.setattr(jax, "value_and_grad", clip_everything)
    assert_differs("no_linesearch", data, "actor")


def gradient_through_data(through: str) -> dict:
    """Gradient of the actor's loss where the actions or the advantages were made from the very parameters."""
    policy_apply = a2c.make_policy_apply(EnvSpec(2, 2), A2CConfig(hidden_size=8))
    params = a2c.init(jax.random.key(1), EnvSpec(2, 2), A2CConfig(hidden_size=8)).actor
    raw_obs = jax.random.normal(jax.random.key(2), (3, 4, 2))
    data = {"actions": jax.random.normal(jax.random.key(3), (3, 4, 2)), "advantages": jnp.ones((3, 4))}

    def loss(params):
        mean, _ = policy_apply(params, raw_obs)
        made = dict(data)
        if through == "actions":
            made["actions"] = data["actions"] + mean - jax.lax.stop_gradient(mean)
        if through == "advantages":
            made["advantages"] = data["advantages"] + jnp.sum(mean - jax.lax.stop_gradient(mean), axis=-1)
        return a2c.actor_loss(params, policy_apply, raw_obs, **made, weights=jnp.ones((3, 4)), entropy_weight=0.0)[0]

    return jax.jit(jax.grad(loss))(params)


def largest_difference(a, b) -> float:
    return max(jax.tree.leaves(jax.tree.map(lambda x, y: float(jnp.max(jnp.abs(x - y))), a, b)))


@pytest.mark.parametrize("through", ["actions", "advantages"])
def test_mutant_gradient_flows_through_imagined_data(through, monkeypatch):
    plain = gradient_through_data("nothing")
    assert largest_difference(gradient_through_data(through), plain) < 1e-6
    monkeypatch.setattr(a2c, "lax", _LaxWithoutStop)
    assert largest_difference(gradient_through_data(through), plain) > 1e-3


class _LaxWithoutStop:
    stop_gradient = staticmethod(lambda x: x)


def test_reality_weights_by_hand():
    terminals = jnp.array([[0.0, 1.0, 0.0], [0.0, 0.0, 0.0], [0.25, 0.0, 1.0]])
    # running product of (1 - terminal), the terminal step included
    np.testing.assert_allclose(a2c.reality_weights(terminals, False), [[1, 0, 0], [1, 1, 1], [0.75, 0.75, 0]])
    # the same one step later: the transition into the terminal state is trained on, what follows it is not
    np.testing.assert_allclose(a2c.reality_weights(terminals, True), [[1, 1, 0], [1, 1, 1], [1, 0.75, 0.75]])


def test_clip_by_norm_by_hand():
    # norm of (3, 4) is 5; a limit of 1 leaves (3, 4) / (5 + 1e-6); a limit of 10 leaves it alone
    clipped, norm = a2c.clip_by_norm({"a": jnp.array([3.0]), "b": jnp.array([4.0])}, 1.0)
    np.testing.assert_allclose([norm, clipped["a"][0], clipped["b"][0]], [5.0, 0.6, 0.8], rtol=1e-6)
    same, _ = a2c.clip_by_norm({"a": jnp.array([3.0]), "b": jnp.array([4.0])}, 10.0)
    assert same["a"][0] == 3.0


def test_more_critic_updates_fit_the_same_targets_better():
    data = recorded("default")
    segment = segment_of(data, 0)
    states, losses = [], []
    for critic_updates in (1, 5):
        config = A2CConfig(hidden_size=32, initial_std=0.8, critic_updates=critic_updates, target_critic_ema=1.0)
        update = jit_update(config)
        state, _ = update(start(config, data), segment)
        _, metrics = update(state, segment)  # same target critic: the loss left over
        states.append(state)
        losses.append(float(metrics["agent/critic_loss"]))
    assert losses[1] < losses[0]
    assert largest_difference(states[0].actor, states[1].actor) < 1e-7  # the actor does not see the critic's steps


def test_advantages_not_normalised_enter_the_loss_as_they_are(monkeypatch):
    monkeypatch.setattr(a2c, "standardise", lambda advantages: advantages)
    data = recorded("default")
    config = A2CConfig(hidden_size=32, initial_std=0.8)
    state, segment = start(config, data), segment_of(data, 0)
    _, metrics = jit_update(config)(state, segment)
    target = a2c.exponential_average(state.target_critic, state.critic, config.target_critic_ema)
    values = a2c.make_value_apply(config)(target, segment.observations)
    advantages, _ = gae(segment.rewards, values, segment.terminals, config.gamma, config.gae_lambda)
    mean, std = a2c.make_policy_apply(SPEC, config)(state.actor, segment.observations[:, :-1])
    z = (np.asarray(segment.actions[:, :-1]) - mean) / std
    log_prob = (-0.5 * np.square(z) - np.log(std) - 0.5 * np.log(2 * np.pi)).sum(-1)
    entropy = (np.log(std) + 0.5 * np.log(2 * np.pi * np.e)).sum(-1)
    alive = np.cumprod(1.0 - np.asarray(segment.terminals[:, :-1]), axis=1)
    expected = np.mean(alive * (-log_prob * np.asarray(advantages) - config.entropy_weight * entropy))
    assert math.isclose(float(metrics["agent/actor_loss"]), expected, rel_tol=1e-4)
    assert not math.isclose(expected, float(data["step0/metric/loss_actor"]), rel_tol=1e-2)  # they do make a difference


def test_the_average_of_the_actor_by_hand_and_that_it_changes_nothing_else(run, history):
    """0.75 of the average, 0.25 of the newest, from the first parameters on; learning does not see it."""
    name, data = run
    config = dataclasses.replace(CONFIGS[name], actor_ema=0.75)
    state, update = start(config, data), jit_update(config)
    average = state.averaged_actor
    assert start(CONFIGS[name], data).averaged_actor is None
    for step, (plain, _) in enumerate(history):
        state, _ = update(state, segment_of(data, step))
        average = jax.tree.map(lambda a, b: 0.75 * a + 0.25 * b, average, state.actor)
        assert largest_difference(state.averaged_actor, average) < 5e-7
        assert largest_difference(state.actor, plain.actor) < 1e-7
        assert a2c.evaluated_actor(state) is state.averaged_actor
        assert a2c.evaluated_actor(plain) is plain.actor
    assert largest_difference(state.averaged_actor, state.actor) > 1e-5
