"""What every world model promises by the protocol of ``WorldModel``, whichever it is."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
import traced
from tiny import A, B, H, O

from polygrad_jax.types import MeanStd, Prediction, Segment
from polygrad_jax.world_models.model_table import SIMULATOR

LEARNING = tuple(name for name in tiny.EVERY_MODEL if name != SIMULATOR)
DIFFERENTIABLE = {"ensemble", "autoregressive", "distilled"}
"""Models whose last observation determines a prediction: they have a ``step``."""


class Tried:
    """A model with its functions jitted and their traces counted."""

    def __init__(self, name: str):
        self.name, self.config = name, tiny.config_of(name)
        self.model = tiny.model_of(self.config)
        self.update, self._imagine, self.traces = traced.counted(self.model, tiny.policy_apply)
        self.state = jax.jit(self.model.init)(jax.random.key(0))

    def imagine(self, state=None, gain=0.5, contexts=0, normaliser=tiny.NORMALISER, key=0):
        state = self.state if state is None else state
        given = (tiny.policy(gain).params, tiny.contexts_for(self.model, contexts), normaliser, jax.random.key(key))
        return self._imagine(state, *given)

    def learn(self, state=None, batch=0, normaliser=tiny.NORMALISER, key=0):
        state = self.state if state is None else state
        return self.update(state, tiny.batch_for(self.model, batch), normaliser, jax.random.key(key))


@pytest.fixture(scope="module", params=tiny.EVERY_MODEL)
def tried(request):
    return Tried(request.param)


def test_the_state_keeps_its_shapes_so_that_updates_can_be_scanned(tried):
    """Also: an update of a model that learns changes its state."""
    after, _ = tried.learn()
    assert tiny.same_shapes(tried.state, after)
    assert tiny.all_finite(after)
    assert tiny.all_equal(tried.state, after) == (tried.name == SIMULATOR)


def test_a_segment_has_the_shapes_and_dtypes_of_the_protocol(tried):
    segment, aux = tried.imagine()
    assert isinstance(segment, Segment) and isinstance(aux, dict)
    assert jax.tree.map(jnp.shape, segment) == Segment((B, H, O), (B, H, A), (B, H), (B, H))
    assert all(x.dtype == jnp.float32 for x in jax.tree.leaves(segment))
    assert tiny.all_finite(segment)


def test_it_begins_in_the_last_observation_of_the_context(tried):
    segment, _ = tried.imagine(contexts=3)
    given = tiny.contexts_for(tried.model, 3)
    assert given.terminals.shape == (B, tried.model.context_length)
    np.testing.assert_allclose(segment.observations[:, 0], given.observations[:, -1], rtol=1e-5, atol=1e-5)
    moved = np.abs(segment.observations[:, 1:] - segment.observations[:, :-1])
    assert moved.max() > 1e-3, "nothing moves"


def test_actions_are_the_policys(tried):
    """Two policies, the same draws: actions differ as the means do."""
    low, high = (tried.imagine(gain=gain)[0] for gain in (-1.0, 1.0))
    lean = np.tanh(np.asarray(low.observations[:, 0, :A]))
    # PolyGRAD follows its policy by a small delta only, all others are asked for each action.
    apart = (np.asarray(high.actions)[:, 0] - np.asarray(low.actions)[:, 0]) * np.sign(lean)
    assert apart.mean() > (0.0 if tried.name == "polygrad" else 0.9 * 2 * np.abs(lean).mean())


def test_it_is_a_function_of_its_key_and_of_nothing_else(tried):
    """The same to the last bit again, after others came between; another key gives something else."""
    first = tried.imagine(key=1)
    other, _ = tried.imagine(key=2)
    tried.learn(key=3)
    assert tiny.all_equal(first, tried.imagine(key=1))
    assert not np.array_equal(first[0].actions, other.actions)
    if tried.name != SIMULATOR:
        once, again, another = (tried.learn(key=key)[0] for key in (1, 1, 2))
        assert tiny.all_equal(once, again)
        # The transformer's update draws nothing.
        assert tiny.all_equal(once, another) == (tried.name == "transformer")


def test_terminals_are_absorbing(tried):
    """0 or 1, and 1 from the first one on. Some trajectories end here, and some do not end at once."""
    terminals = np.concatenate([np.asarray(tried.imagine(contexts=k, key=k)[0].terminals) for k in range(8)])
    assert set(np.unique(terminals)) == {0.0, 1.0}
    assert np.all(np.diff(terminals, axis=1) >= 0)
    assert np.any(np.diff(terminals, axis=1) > 0), "no trajectory ended on its way"


def test_ends_at_the_first_step_are_learnt(tried):
    """Where every episode ends at its first step, that is what is imagined; an untrained model imagines fewer ends."""
    if tried.name == SIMULATOR:
        pytest.skip("the simulator learns nothing")

    # An output of 0 is no end: what is untrained says small numbers.
    normaliser = tiny.NORMALISER.replace(terminals=MeanStd(jnp.full(1, 0.1), jnp.full(1, 0.3)))

    def share_of_first_ends(state) -> float:
        contexts = tiny.contexts_for(tried.model, 7, tiny.replay_of_first_ends)
        given = (tiny.policy(0.5).params, contexts, normaliser, jax.random.key(7))
        return float(np.mean(tried._imagine(state, *given)[0].terminals[:, 0]))

    state = tried.state
    for k in range(60):
        batch = tiny.batch_for(tried.model, k, tiny.replay_of_first_ends)
        state, _ = tried.update(state, batch, normaliser, jax.random.key(k))
    assert tiny.all_finite(state)
    assert share_of_first_ends(state) >= 0.9 > share_of_first_ends(tried.state)


def test_nothing_is_rewarded_behind_an_end(tried):
    """DEVIATION of PolyGRAD, as the official code: its rewards behind an end are those that were diffused. What learns
    from a segment weighs them with 0."""
    rewarded = []
    for k in range(8):
        segment = jax.device_get(tried.imagine(contexts=k, key=k)[0])
        behind = np.pad(segment.terminals[:, :-1], ((0, 0), (1, 0))) > 0
        rewarded.append(segment.rewards[behind])
    rewarded = np.concatenate(rewarded)
    assert rewarded.size > 0
    assert np.any(rewarded != 0) == (tried.name == "polygrad")


def test_adapting_keeps_the_state_but_for_what_follows_the_policy(tried):
    """PolyGRAD's delta, and nothing else of any model."""
    _, aux = tried.imagine()
    after = jax.jit(tried.model.adapt)(tried.state, aux)
    assert tiny.same_shapes(tried.state, after)
    if tried.name == "polygrad":
        assert after.log_delta != tried.state.log_delta
        after = after.replace(log_delta=tried.state.log_delta)
    assert tiny.all_equal(after, tried.state)


def test_metrics_are_finite_and_named_by_room_and_quantity(tried):
    _, aux = tried.imagine()
    _, losses = tried.learn()
    assert tiny.all_finite((aux, losses))
    for name, value in losses.items():
        assert re.fullmatch(r"world_model/[a-z][a-z_]*", name) and value.shape == (), name
    for name, value in aux.items():
        assert re.fullmatch(r"(imagination|guidance)/[a-z][a-z_]*", name), name
        assert value.shape == () or name.endswith("histogram"), name
    assert ("world_model/loss" in losses) == (tried.name != SIMULATOR)


def test_a_loss_falls_on_a_batch_that_is_seen_again_and_again(tried):
    """Against the untrained state under the same draws, and against how much other draws change that."""
    if tried.name == SIMULATOR:
        pytest.skip("the simulator learns nothing")

    def losses(state) -> np.ndarray:
        return np.array([float(tried.learn(state, key=100 + k)[1]["world_model/loss"]) for k in range(8)])

    state = tried.state
    for k in range(60):
        state, _ = tried.learn(state, key=k)
    before, after = losses(tried.state), losses(state)
    print(tried.name, "loss before and after:", before.mean(), after.mean(), "by other draws:", before.std())
    assert np.all(after < before)
    assert before.mean() - after.mean() > 0.2 * np.abs(before.mean())


@pytest.mark.parametrize("name", LEARNING)
def test_which_models_have_a_step(name):
    assert (tiny.model_of(tiny.config_of(name)).step is not None) == (name in DIFFERENTIABLE)


def test_a_step_is_differentiable(tried):
    """Next observations and rewards in observations and actions; terminals are 0 or 1."""
    if tried.model.step is None:
        pytest.skip("predicts from more than the last observation, or not by a function of JAX")
    rng = np.random.default_rng(0)
    raw_obs = jnp.asarray(rng.standard_normal((B, O)), jnp.float32)
    actions = jnp.asarray(rng.uniform(-0.9, 0.9, (B, A)), jnp.float32)

    @jax.jit
    def both(raw_obs, actions):
        def step(raw_obs, actions):
            return tried.model.step(tried.state, raw_obs, actions, tiny.NORMALISER, jax.random.key(0))

        def total(raw_obs, actions, name):
            return getattr(step(raw_obs, actions), name).sum()

        slopes = {
            name: jax.grad(lambda x, u, name=name: total(x, u, name), argnums=(0, 1))(raw_obs, actions)
            for name in ("observations", "rewards")
        }
        return step(raw_obs, actions), slopes

    prediction, slopes = both(raw_obs, actions)
    assert isinstance(prediction, Prediction)
    assert jax.tree.map(jnp.shape, prediction) == Prediction((B, O), (B,), (B,))
    assert all(x.dtype == jnp.float32 for x in prediction)
    assert np.all((prediction.terminals >= 0) & (prediction.terminals <= 1))
    for name, (in_obs, in_actions) in slopes.items():
        assert tiny.all_finite((in_obs, in_actions)), name
        assert np.any(in_obs != 0) and np.any(in_actions != 0), name


def test_traced_once(tried):
    """Another policy, state, context, normaliser and key: nothing is compiled again."""
    state = tried.state
    for k, normaliser in enumerate((tiny.NORMALISER, tiny.OTHER_NORMALISER)):
        tried.imagine(state, 0.1 * k, k, normaliser, k)
        state, _ = tried.learn(state, k, normaliser, k)
    assert tried.traces == {"update": 1, "imagine": 1}
