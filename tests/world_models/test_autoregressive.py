"""One-step diffusion rolled out step by step, and what every such roll-out has in common."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import traced

from experiments.harness import linear_gaussian as oracle
from polygrad_jax.config import AutoregressiveConfig, Config, DenoiserConfig, DiffusionConfig, EnvSpec, GuidanceConfig
from polygrad_jax.data.normaliser import executed
from polygrad_jax.diffusion.sampler import Sampler
from polygrad_jax.diffusion.schedule import coefficients, strided_steps
from polygrad_jax.types import MeanStd, Normaliser, Policy, Prediction, Segment
from polygrad_jax.world_models import autoregressive, polygrad, terminal_classifier
from polygrad_jax.world_models.autoregressive import diffuse_step, make_autoregressive, single_steps
from polygrad_jax.world_models.rollout import Standing, roll_out, under

SYSTEM = oracle.two_state_system(1.5)
O, A, H = 2, 1, 3  # noqa: E741  (the letters of the docstrings)
SPEC = EnvSpec(O, A)
CONFIG = Config(
    horizon=H,
    # The schedule that a one-step model uses is its own: a tau of 0.001 here would hardly add noise.
    diffusion=DiffusionConfig(num_steps=16, sampling_steps=16, tau=0.001),
    autoregressive=AutoregressiveConfig(tau=1.0),
    denoiser=DenoiserConfig(width=64, num_blocks=2, learning_rate=3e-3, ema_decay=0.9),
)
NORMALISER = Normaliser(
    observations=MeanStd(jnp.array([2.0, -0.5]), jnp.array([2.0, 1.0])),
    actions=MeanStd(jnp.array([0.1]), jnp.array([0.6])),
    rewards=MeanStd(jnp.array([1.0]), jnp.array([1.2])),
    terminals=MeanStd(jnp.array([0.1]), jnp.array([0.3])),
)


@pytest.fixture(scope="module", autouse=True)
def averaged_from_the_start():
    """The 2,000 updates of a fit leave 1,500 to the average."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(polygrad, "EMA_START_UPDATES", 500)
        yield


def policy_apply(params, raw_obs):
    """Raw actions ``mean`` whatever the state, with deviation ``std``."""
    mean = jnp.broadcast_to(params["mean"], (*raw_obs.shape[:-1], A))
    return mean, jnp.broadcast_to(params["std"], mean.shape)


def always(action: float, std: float = 0.0):
    return {"mean": jnp.full(A, action), "std": jnp.full(A, std)}


def context_at(raw_obs) -> Segment:
    raw_obs = jnp.asarray(raw_obs, jnp.float32)
    zeros = jnp.zeros(raw_obs.shape[:1] + (1,))
    return Segment(raw_obs[:, None], jnp.zeros((*zeros.shape, A)), zeros, zeros)


def all_equal(a, b) -> bool:
    return all(jax.tree.leaves(jax.tree.map(lambda x, y: bool(jnp.array_equal(x, y)), a, b)))


# --- the true system -------------------------------------------------------------------------------------------------


def ends(s, a):
    """The rule by which an episode ends, in raw units."""
    return s[..., 0] - 2.0 + a[..., 0] > 1.0


@functools.partial(jax.jit, static_argnames="batch")
def windows(key, batch: int = 256) -> Segment:
    """Two consecutive steps ``[B, 2]`` of the system, the first of which did not end, as the replay hands them out."""
    keys = jax.random.split(key, 4)
    s = jnp.array([[2.0, -0.5]]) + jnp.array([[2.0, 1.0]]) * jax.random.normal(keys[0], (batch, O))
    a = jax.random.uniform(keys[1], (batch, 2, A), minval=-1.0, maxval=1.0)
    F, G, std, reward_state = (
        jnp.asarray(x, jnp.float32) for x in (SYSTEM.F, SYSTEM.G, SYSTEM.process_std, SYSTEM.reward_state)
    )
    # Mirrored at its mean, a state that would end the episode does not.
    first = jnp.where(ends(s, a[:, 0])[:, None], jnp.array([[4.0, -1.0]]) - s, s)
    a = a.at[:, 0].set(jnp.where(ends(s, a[:, 0])[:, None], -a[:, 0], a[:, 0]))
    second = first @ F.T + a[:, 0] @ G.T + std[None] * jax.random.normal(keys[2], (batch, O))
    states = jnp.stack([first, second], axis=1)
    rewards = states @ reward_state + 0.2 * a[..., 0]
    return Segment(states, a, rewards, ends(states, a).astype(jnp.float32))


def test_the_windows_are_those_of_the_replay():
    batch = windows(jax.random.key(0))
    assert not batch.terminals[:, 0].any() and 0.1 < batch.terminals[:, 1].mean() < 0.5


# --- the sampler of one step, exactly --------------------------------------------------------------------------------


def remaining(variance: np.ndarray, num_steps: int, kept: int) -> np.ndarray:
    """The share of a true variance, normalised, that the sampler with the optimal denoiser gives: a recursion.

    Along such a direction x_0 = m + sqrt(variance) u, and the optimal denoiser is m plus
    sqrt(ab) variance / (ab variance + 1 - ab) times (x_t - sqrt(ab) m): a step multiplies the deviation by clean times
    that plus noisy and adds noise, ``v <- g^2 v + std^2`` from v = 1.
    """
    known, v = oracle.cosine_schedule(num_steps, 1.0, kept), np.ones_like(variance)
    for t in reversed(range(kept)):
        ab = known.alpha_bar[t]
        gain = known.clean[t] * np.sqrt(ab) * variance / (ab * variance + 1 - ab) + known.noisy[t]
        v = gain**2 * v + known.std[t] ** 2
    return v / variance


@pytest.mark.parametrize(("num_steps", "kept", "error"), [(128, 128, 0.06), (32, 5, 0.65)])
def test_the_covariance_of_a_step_is_the_closed_form(num_steps, kept, error):
    """J J^T of the step in all its draws, under the optimal denoiser, is what :func:`remaining` says to rounding.

    What that lacks of the truth is a property of so many steps (first order in 1 / N), within ``error``.
    """
    with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"):
        normaliser = jax.tree.map(lambda x: x.astype(jnp.float64), NORMALISER)
        obs_mean, obs_std = (np.asarray(x) for x in (NORMALISER.observations.mean, NORMALISER.observations.std))
        alpha_bar = jnp.asarray(oracle.cosine_schedule(num_steps, 1.0).alpha_bar)
        cov = np.diag((SYSTEM.process_std / obs_std) ** 2)
        values, vectors = np.linalg.eigh(cov)

        def denoise(params, traj, actions, step):
            """Normalised; of the second state's action, reward and terminal nothing is known and zero expected."""
            ab = alpha_bar[step[0]]
            s = traj[:, 0, :O] * obs_std[None] + obs_mean[None]
            a = actions[:, 0] / jnp.sqrt(ab) * normaliser.actions.std[0] + normaliser.actions.mean[0]
            reward = (s @ SYSTEM.reward_state + a @ SYSTEM.reward_action - 1.0) / normaliser.rewards.std[0]
            mean = (s @ SYSTEM.F.T + a @ SYSTEM.G.T - obs_mean[None]) / obs_std[None]
            gain = vectors @ jnp.diag(jnp.sqrt(ab) * values / (ab * values + 1 - ab)) @ vectors.T
            following = mean + (traj[:, 1, :O] - jnp.sqrt(ab) * mean) @ gain.T
            nothing = jnp.zeros((traj.shape[0], 1))
            first = jnp.concatenate([traj[:, 0, :O], reward[:, None], nothing - 0.1 / 0.3], axis=-1)
            return jnp.stack([first, jnp.concatenate([following, nothing, nothing], axis=-1)], axis=1)

        sampler = Sampler(denoise, GuidanceConfig(), "clean")
        known = coefficients(num_steps, strided_steps(num_steps, kept), 1.0)
        schedule = jax.tree.map(lambda x: x.astype(jnp.float64) if x.dtype == jnp.float32 else x, known)
        s0, a0 = jnp.array([[1.0, 0.25]]), jnp.array([[0.7]])

        def step(noise):
            prediction = diffuse_step(sampler, None, normaliser, schedule, s0, a0, noise)
            return jnp.concatenate([prediction.observations[0], prediction.rewards])

        zero = jnp.zeros((kept + 1, 1, 2, O + 2))
        mean, jacobian = np.asarray(jax.jit(step)(zero)), np.asarray(jax.jit(jax.jacrev(step))(zero)).reshape(O + 1, -1)

    remains = remaining(values, num_steps, kept)
    expected = obs_std[:, None] * (vectors @ np.diag(remains * values) @ vectors.T) * obs_std
    np.testing.assert_allclose((jacobian @ jacobian.T)[:O, :O], expected, rtol=1e-5, atol=1e-9)
    np.testing.assert_allclose(jacobian[O], 0.0, atol=1e-6)  # the reward follows from state and action
    true_mean = SYSTEM.F @ [1.0, 0.25] + SYSTEM.G @ [0.7]
    np.testing.assert_allclose(mean, [*true_mean, SYSTEM.reward_state @ [1.0, 0.25] + 0.2 * 0.7], rtol=1e-5)
    print(f"N {num_steps}, K {kept}: {remains} of the true variances")
    assert np.abs(remains - 1.0).max() < error


# --- which steps are learnt from -------------------------------------------------------------------------------------


@jax.jit
def taken_in_2000(batch: Segment) -> Segment:
    return jax.vmap(lambda key: single_steps(batch, key))(jax.random.split(jax.random.key(0), 2000))


def test_steps_that_end_are_learnt_as_often_as_others():
    """Of 4 windows, one ends at its second step: 5 transitions, 4 are taken, so each is missing once in five times."""
    states = np.arange(8.0, dtype=np.float32).reshape(4, 2)
    terminals = np.zeros((4, 2), np.float32)
    terminals[2, 1] = 1.0
    taken = taken_in_2000(Segment(states[..., None], 10 * states[..., None], 100 + states, terminals))
    first = np.asarray(taken.observations[:, :, 0, 0])
    for state in (0.0, 2.0, 4.0, 5.0, 6.0):
        # 0.8 with a deviation of sqrt(0.16 / 2000) = 0.009
        np.testing.assert_allclose((first == state).any(axis=1).mean(), 0.8, atol=0.04)
        assert ((first == state).sum(axis=1) <= 1).all()
    one = jax.tree.map(lambda x: np.asarray(x).reshape(-1, *x.shape[2:])[first.ravel() == 5.0][0], taken)
    np.testing.assert_array_equal(one.observations[:, 0], [5.0, 5.0])
    np.testing.assert_array_equal(one.actions[:, 0], [50.0, 50.0])
    np.testing.assert_array_equal(one.rewards, [105.0, 0.0])
    np.testing.assert_array_equal(one.terminals, [1.0, 1.0])
    # windows that are padded already give no second step: the padding is none
    padded = np.ones((4, 2), np.float32)
    taken = taken_in_2000(Segment(states[..., None], 10 * states[..., None], 100 + states, padded))
    np.testing.assert_array_equal(np.unique(taken.observations[:, :, 0, 0]), [0.0, 2.0, 4.0, 6.0])


# --- the model -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def counted():
    """The model's functions as a loop would jit them, and how often each was traced."""
    model = make_autoregressive(CONFIG, SPEC)
    update, imagine, traces = traced.counted(model, policy_apply)
    return jax.jit(model.init)(jax.random.key(0)), update, lambda *given: imagine(*given)[0], traces


@pytest.fixture(scope="module")
def fitted(counted):
    start, update, _, _ = counted

    @jax.jit
    def learn(state):
        def step(state, key):
            return update(state, windows(key), NORMALISER, key)[0], None

        return jax.lax.scan(step, state, jax.random.split(jax.random.key(1), 2000))[0]

    return learn(start)


STARTS = np.array([[1.0, -0.5], [0.0, 0.5], [1.2, 0.0], [0.5, -1.5]])  # far from where episodes end
EACH = 512


def one_step_errors(imagine, state) -> tuple[float, float]:
    """Largest errors over four states and two actions, in true deviations: of the mean, and of the covariance."""
    deviation, errors = SYSTEM.process_std, []
    variance = np.square(deviation / np.asarray(NORMALISER.observations.std))
    expected = np.diag(remaining(variance, 16, 16))
    for i, action in enumerate((-0.8, 0.9)):
        context = context_at(np.repeat(STARTS, EACH, axis=0))
        imagined = imagine(state, always(action), context, NORMALISER, jax.random.key(i))
        following = np.asarray(imagined.observations[:, 1]).reshape(len(STARTS), EACH, O)
        mean = STARTS @ SYSTEM.F.T + action * SYSTEM.G[:, 0]
        centred = (following - following.mean(axis=1, keepdims=True)) / deviation
        cov = np.einsum("kbi,kbj->kij", centred, centred) / EACH
        errors.append([np.abs((following.mean(axis=1) - mean) / deviation).max(), np.abs(cov - expected).max()])
    return tuple(np.max(errors, axis=0))


def test_a_linear_gaussian_step_is_recovered(counted, fitted):
    """Mean and covariance in units of the process's deviations: the identity times what sixteen steps leave, 0.75.

    Of the errors some 0.1 is the 512 samples. Before training both are far off.
    """
    start, _, imagine, _ = counted
    errors, untrained = one_step_errors(imagine, fitted), one_step_errors(imagine, start)
    print("one-step errors:", errors, "untrained:", untrained)
    assert errors[0] < 0.4 and errors[1] < 0.3
    assert untrained[0] > 0.8 and untrained[1] > 0.6


def test_rewards_and_ends_belong_to_the_action_that_was_taken(counted, fitted):
    """r = 0.3 s_0 - s_1 + 0.2 a; an episode ends where s_0 - 2 + a > 1: never at 0.2, always at 1.8."""
    _, _, imagine, _ = counted
    states = np.repeat([[1.2, -0.5], [2.8, -0.5]], 2 * EACH, axis=0)
    low, high = (
        imagine(fitted, always(a), context_at(states), NORMALISER, jax.random.key(0)) for a in (-1.0, 1.0)
    )
    wanted = states @ SYSTEM.reward_state
    np.testing.assert_allclose(np.mean(high.rewards[:, 0] - wanted), 0.2, atol=0.1)
    np.testing.assert_allclose(np.mean(low.rewards[:, 0] - wanted), -0.2, atol=0.1)
    share = [float(x.terminals[half, 0].mean()) for x in (low, high) for half in (slice(0, 1024), slice(1024, None))]
    print("ends, at s_0 - 2 + a of -1.8, -0.2, 0.2, 1.8:", share)
    assert max(share[:3]) < 0.1 and share[3] > 0.9


def test_only_executed_actions_and_averaged_parameters_imagine(counted, fitted):
    _, _, imagine, _ = counted
    context = context_at(np.repeat(STARTS, EACH, axis=0))
    at_bound, beyond = (imagine(fitted, always(a), context, NORMALISER, jax.random.key(2)) for a in (1.0, 3.0))
    assert np.all(beyond.actions == 3.0) and np.all(at_bound.actions == 1.0)
    assert all_equal(beyond.replace(actions=at_bound.actions), at_bound)
    forgotten = fitted.replace(params=jax.tree.map(jnp.zeros_like, fitted.params))
    assert all_equal(imagine(forgotten, always(1.0), context, NORMALISER, jax.random.key(2)), at_bound)
    np.testing.assert_array_equal(at_bound.observations[:, 0], context.observations[:, 0])


def test_what_follows_a_step_does_not_teach(counted):
    """The second state's action and reward, and by how much an action is beyond the bound: equal to the last bit."""
    start, update, _, _ = counted
    batch = windows(jax.random.key(5))
    batch = batch.replace(terminals=jnp.zeros_like(batch.terminals), actions=batch.actions.at[:3, 0].set(1.0))
    other = batch.replace(
        actions=batch.actions.at[:, 1].set(7.0).at[:3, 0].set(9.0), rewards=batch.rewards.at[:, 1].set(1e3)
    )
    plain, poisoned = (update(start, x, NORMALISER, jax.random.key(0))[0] for x in (batch, other))
    assert all_equal(plain, poisoned)
    felt = update(start, batch.replace(rewards=batch.rewards.at[:, 0].add(0.1)), NORMALISER, jax.random.key(0))[0]
    assert not all_equal(plain, felt)


def test_traced_once(counted, fitted):
    _, update, imagine, traces = counted
    # the policy, the context, the normaliser and the state are new ones
    context = context_at(np.repeat(STARTS + 1.0, EACH, axis=0))
    other = NORMALISER.replace(rewards=MeanStd(jnp.zeros(1), jnp.ones(1)))
    imagined = imagine(fitted, always(0.3, std=0.5), context, other, jax.random.key(0))
    update(fitted, windows(jax.random.key(9)), other, jax.random.key(0))
    assert traces == {"update": 1, "imagine": 1}
    # and actions are the policy's: 6,144 draws
    z = (np.asarray(imagined.actions) - 0.3) / 0.5
    assert abs(z.mean()) < 0.06 and abs(z.std() - 1.0) < 0.05


def test_another_window_is_refused(counted):
    batch = jax.tree.map(lambda x: x[:, [0, 1, 1]], windows(jax.random.key(0)))
    with pytest.raises(ValueError, match="3 states; allowed: 2"):
        make_autoregressive(CONFIG, SPEC).update(counted[0], batch, NORMALISER, jax.random.key(0))


def test_its_own_tau_the_terminal_std_and_the_classifier_are_used(counted, monkeypatch):
    """tau: alpha_bar at the middle of 16 steps of the plain cosine is cos(pi / 4)^2 = 0.5, at tau 0.001 nearly 1."""
    asked = []

    def drift(*args):
        asked.append(args)
        raw_obs, raw_actions = args[4:6]
        return Prediction(raw_obs + raw_actions, raw_obs[:, 0], jnp.ones(raw_obs.shape[0]))

    monkeypatch.setattr(autoregressive, "diffuse_step", drift)
    diffusion = dataclasses.replace(CONFIG.diffusion, terminals="classified", terminal_std=0.5)
    model = make_autoregressive(dataclasses.replace(CONFIG, diffusion=diffusion), SPEC)
    state = counted[0].replace(classifier=terminal_classifier.init(jax.random.key(0), SPEC))
    context = context_at(3.0 * np.random.default_rng(0).standard_normal((64, O)))
    model.step(state, context.observations[:, 0], jnp.zeros((64, A)), NORMALISER, jax.random.key(1))
    policy = Policy(always(0.0, 1.0), policy_apply)
    imagined, _ = model.imagine(state, policy, context, NORMALISER, jax.random.key(1))
    _, _, normaliser, schedule, *_ = asked[0]
    np.testing.assert_allclose(schedule.sqrt_alpha_bar[7] ** 2, 0.5, rtol=1e-5)
    np.testing.assert_allclose(normaliser.terminals.std, 0.5)
    expected = terminal_classifier.classify(state.classifier.params, imagined, NORMALISER, "clipped")
    np.testing.assert_array_equal(imagined.terminals, expected)
    assert 0.0 < expected[:, 0].mean() < expected[:, -1].mean() < 1.0


# --- every roll-out --------------------------------------------------------------------------------------------------


def test_an_end_has_a_derivative_and_stays_a_probability():
    """Paths of value gradients weigh what follows by it; imagination alone decides at a half."""
    ones = (MeanStd(jnp.zeros(1), jnp.ones(1)) for _ in range(3))
    units = Normaliser(*ones, MeanStd(jnp.full(1, 0.2), jnp.full(1, 0.4)))
    condition = autoregressive.condition_of(jnp.zeros((3, 1)), jnp.zeros((3, 1)), units)

    def ends(normed):
        traj = jnp.zeros((3, 2, 3)).at[:, 0, 2].set(normed)
        return autoregressive.prediction_of(traj, condition, units).terminals

    normed = jnp.array([-3.0, 0.5, 5.0])
    np.testing.assert_allclose(ends(normed), [0.0, 0.4, 1.0], atol=1e-6)
    np.testing.assert_allclose(jnp.diag(jax.jacobian(ends)(normed)), [0.0, 0.4, 0.0], atol=1e-6)


def test_a_roll_out_by_hand():
    """s' = s + clip(a), r = 10 s, ends where s is 2 or 3; a = 2 - s / 2 without noise.

    From 0: a = 2, executed as 1 -> 1; a = 1.5, as 1 -> 2, which ends it; the rest is 1 and rewarded with 0.
    From -4: a = 4, 3.5, 3, 2.5: -4, -3, -2, -1 with rewards 10 times that.
    """

    def predict(memory, raw_obs, actions, key):
        position = raw_obs[:, 0]
        ends = ((position == 2) | (position == 3)).astype(jnp.float32)
        following = raw_obs + executed(actions, "clipped")
        return memory + 1, Prediction(following, 10 * position, ends), {"measured": position}

    def policy(params, raw_obs):
        return params - 0.5 * raw_obs, jnp.zeros_like(raw_obs)

    start = Standing(jnp.array([[0.0], [-4.0]]), jnp.zeros(2), jnp.int32(0))
    keys = jax.random.split(jax.random.key(0), 5)
    choose = under(Policy(jnp.float32(2.0), policy))
    end, segment, metrics = jax.jit(lambda start, keys: roll_out(predict, start, choose, keys))(start, keys)
    # from 2: a = 1 -> 3, a = 0.5 -> 3.5
    np.testing.assert_array_equal(segment.observations[..., 0], [[0, 1, 2, 3, 3.5], [-4, -3, -2, -1, 0]])
    np.testing.assert_array_equal(segment.actions[..., 0], [[2, 1.5, 1, 0.5, 0.25], [4, 3.5, 3, 2.5, 2]])
    np.testing.assert_array_equal(segment.rewards, [[0, 10, 20, 0, 0], [-40, -30, -20, -10, 0]])
    np.testing.assert_array_equal(segment.terminals, [[0, 0, 1, 1, 1], [0, 0, 0, 0, 0]])
    np.testing.assert_array_equal(end.observations[:, 0], [3.75, 1.0])
    np.testing.assert_array_equal(end.terminals, [1, 0])
    assert end.memory == 5
    # averaged up to the end, the step that ends included: 0, 1, 2 and -4, -3, -2, -1, 0
    np.testing.assert_allclose(metrics["measured"], (3 - 10) / 8, rtol=1e-6)


def test_a_roll_out_goes_on_where_another_stopped():
    """In two parts as in one, to the last bit: an end in the first part holds in the second."""

    def predict(memory, raw_obs, actions, key):
        noise = jax.random.normal(key, raw_obs.shape)
        ends = (raw_obs[:, 0] > 1.0).astype(jnp.float32)
        return memory, Prediction(raw_obs + actions + noise, raw_obs[:, 0], ends), {}

    def policy(params, raw_obs):
        return params - 0.5 * raw_obs, jnp.ones_like(raw_obs)

    choose, start = under(Policy(jnp.float32(0.5), policy)), Standing(jnp.zeros((64, 1)), jnp.zeros(64), ())
    keys = jax.random.split(jax.random.key(0), 8)

    @jax.jit
    def both(keys):
        _, whole, _ = roll_out(predict, start, choose, keys)
        middle, first, _ = roll_out(predict, start, choose, keys[:3])
        _, rest, _ = roll_out(predict, middle, choose, keys[3:])
        return whole, jax.tree.map(lambda a, b: jnp.concatenate([a, b], axis=1), first, rest)

    whole, parts = both(keys)
    assert all_equal(whole, parts)
    assert 0.1 < whole.terminals[:, 2].mean() < whole.terminals[:, -1].mean()
