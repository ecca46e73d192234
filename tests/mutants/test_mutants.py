"""Deliberately wrong versions of the package, each of which must be killed by the check that is named for it.

A check is what other tests assert, as a function; every check passes on the code as it is, and fails on its mutants.
Every check traces anew (a jitted function of its own), so that no cached trace hides a mutant.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import test_a2c_parity as a2c_parity
import test_sampler_parity as sampler_parity

from polygrad_jax.agents import a2c
from polygrad_jax.config import DenoiserConfig, EnvSpec, smoke
from polygrad_jax.diffusion import denoising_loss as losses
from polygrad_jax.diffusion import guidance as guidances
from polygrad_jax.diffusion import sampler as samplers
from polygrad_jax.diffusion import schedule as schedules
from polygrad_jax.networks.official_weights import denoiser_params
from polygrad_jax.types import MeanStd, Normaliser, Policy, Segment
from polygrad_jax.world_models import polygrad

N, TAU = sampler_parity.N, sampler_parity.TAU

# --- checks ----------------------------------------------------------------------------------------------------------


def sampling_is_the_official_one(name: str = "polygrad", rule: str = "score") -> None:
    """A whole recorded run of Algorithm 2 ends where the official code's did."""
    arrays, sampler, given = sampler_parity.recorded_run(name, rule)
    schedule = schedules.coefficients(N, np.arange(N), TAU)
    # The last step's draws are not used; what they are must not matter.
    draws = samplers.Draws(*(jnp.asarray(arrays[k]).at[0].set(1.0) for k in ("x_noise", "a_noise")))

    def run(traj, actions):
        def body(carry, c_and_draws):
            return samplers.diffusion_step(sampler, given, carry, *c_and_draws), None

        begin = samplers.Diffusing(traj, actions, jnp.zeros_like(actions))
        end, _ = jax.lax.scan(body, begin, (schedule, draws), reverse=True)
        return losses.set_initial_state(end.traj, given.initial), end.actions

    traj, actions = jax.jit(run)(jnp.asarray(arrays["init_x"]), jnp.asarray(arrays["init_a"]))
    tolerance = {"rtol": sampler_parity.RTOL, "atol": sampler_parity.ATOL}
    np.testing.assert_allclose(traj, arrays["final_x"], **tolerance)
    np.testing.assert_allclose(actions, arrays["final_a"], **tolerance)


def random_actions_are_the_official_ones() -> None:
    """The run in which only the last step's clip touches the actions."""
    sampling_is_the_official_one("random_actions", "random_actions")


def loss_is_the_official_one() -> None:
    """The recorded loss of Algorithm 1 and its three parts."""
    arrays = sampler_parity.load("denoising_loss_mlp")
    params = denoiser_params(sampler_parity.part(arrays, "param/"), "mlp")
    _, metrics = losses.denoising_loss(
        sampler_parity.mlp,
        params,
        *(jnp.asarray(arrays[k]) for k in ("trajectories", "actions")),
        jnp.asarray(arrays["diffusion_step"], jnp.int32),
        jnp.asarray(arrays["noise"]),
        schedules.coefficients(N, np.arange(N), TAU),
        "clean",
    )
    for ours, theirs in [("loss", "loss"), ("observation_loss", "obs_mse_loss"), ("reward_loss", "reward_mse_loss")]:
        np.testing.assert_allclose(metrics[f"world_model/{ours}"], arrays[theirs], rtol=1e-5)


def hand_normaliser() -> Normaliser:
    return Normaliser(
        observations=MeanStd(jnp.array([3.0]), jnp.array([2.0])),
        actions=MeanStd(jnp.array([0.1]), jnp.array([0.4])),
        rewards=MeanStd(jnp.array([10.0]), jnp.array([5.0])),
        terminals=MeanStd(jnp.array([0.2]), jnp.array([0.4])),
    )


def packing_is_by_hand() -> None:
    """(5 - 3) / 2 = 1, (20 - 10) / 5 = 2, (1 - 0.2) / 0.4 = 2, (0.5 - 0.1) / 0.4 = 1; and back."""
    raw = Segment(*(jnp.full(s, x) for s, x in [((1, 2, 1), 5.0), ((1, 2, 1), 0.5), ((1, 2), 20.0), ((1, 2), 1.0)]))
    traj, actions = losses.pack(raw, hand_normaliser())
    np.testing.assert_allclose(traj[0, 0], [1.0, 2.0, 2.0], rtol=1e-6)
    np.testing.assert_allclose(actions[0, 0], [1.0], rtol=1e-6)
    back = losses.unpack(traj, actions, hand_normaliser())
    for ours, expected in zip(jax.tree.leaves(back), jax.tree.leaves(raw), strict=True):
        np.testing.assert_allclose(ours, expected, rtol=1e-6)


SPEC = EnvSpec(1, 1)


def tiny_config():
    base = smoke("hopper")
    denoiser = DenoiserConfig(width=16, num_blocks=1)
    diffusion = base.diffusion.__class__(num_steps=2, sampling_steps=2, tau=0.1)
    return base.__class__(horizon=3, denoiser=denoiser, diffusion=diffusion)


def constant_policy(params, raw_obs):
    return params + 0.0 * raw_obs, 0.5 + 0.0 * raw_obs


def imagination_uses_the_average() -> None:
    """Imagined trajectories depend on the averaged parameters and on nothing else that the denoiser has learnt."""
    model = polygrad.make_polygrad(tiny_config(), SPEC)
    state = model.init(jax.random.key(0))
    context = Segment(*(jnp.ones(s) for s in [(4, 1, 1), (4, 1, 1), (4, 1), (4, 1)]))

    @jax.jit
    def observations(state):
        policy = Policy(jnp.float32(0.2), constant_policy)
        return model.imagine(state, policy, context, hand_normaliser(), jax.random.key(1))[0].observations

    def moved(params):
        return jax.tree.map(lambda p: p + 0.1, params)

    here = observations(state)
    np.testing.assert_array_equal(observations(state.replace(params=moved(state.params))), here)
    assert np.abs(observations(state.replace(ema_params=moved(state.ema_params))) - here).max() > 1e-3


def the_average_follows_its_schedule() -> None:
    """Copies every 10 updates before 20 (here), 0.99 e + 0.01 p every 10 from then on, nothing between."""
    decay = tiny_config().denoiser.ema_decay
    ema, params = jnp.array([1.0]), jnp.array([2.0])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(polygrad, "EMA_START_UPDATES", 20)
        after = {n: float(polygrad.average(ema, params, jnp.int32(n), decay)[0]) for n in (0, 5, 10, 19, 20, 25, 30)}
    expected = {0: 2.0, 5: 1.0, 10: 2.0, 19: 1.0, 20: 1.01, 25: 1.0, 30: 1.01}
    np.testing.assert_allclose(list(after.values()), list(expected.values()), rtol=1e-6)


def no_gradient_flows_through_imagined_actions() -> None:
    """The gradient of the actor's loss is the same where the actions were made from the very parameters."""
    plain, through_actions = jax.jit(lambda: tuple(map(a2c_parity.gradient_through_data, ("nothing", "actions"))))()
    assert a2c_parity.largest_difference(plain, through_actions) < 1e-6


def policy_updates_are_the_official_ones() -> None:
    """Actor and critic after three recorded updates, to 1e-6."""
    name = "no_linesearch"
    data = a2c_parity.recorded(name)
    state, _ = a2c_parity.updates(name, data)[-1]
    for part in ("actor", "critic"):
        assert a2c_parity.worst_difference(state, data, a2c_parity.UPDATES - 1, part) < 1e-6, part


CHECKS = [
    sampling_is_the_official_one,
    random_actions_are_the_official_ones,
    loss_is_the_official_one,
    packing_is_by_hand,
    imagination_uses_the_average,
    the_average_follows_its_schedule,
    no_gradient_flows_through_imagined_actions,
    policy_updates_are_the_official_ones,
]


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_the_code_passes(check):
    check()


# --- mutants ---------------------------------------------------------------------------------------------------------

MUTANTS = []


def killed_by(check):
    """Registers a mutant: a function of ``monkeypatch`` that makes the package wrong."""

    def register(mutate):
        MUTANTS.append(pytest.param(mutate, check, id=mutate.__name__))
        return mutate

    return register


# Clip and score swapped.


@killed_by(sampling_is_the_official_one)
def clip_after_score(patch):
    rule = guidances.RULES["score"]

    def move(before, policy, strength, draws):
        moved = rule.move(before, policy, strength, draws)
        return moved._replace(actions=guidances.clip_to_policy(moved.actions, policy, 3.0))

    patch.setitem(guidances.RULES, "score", rule._replace(move=move, clips_while_moving=False))


@killed_by(random_actions_are_the_official_ones)
def no_clip_in_the_last_step(patch):
    rule = guidances.RULES["random_actions"]
    patch.setitem(guidances.RULES, "random_actions", rule._replace(clips=False))


# sqrt(alpha_bar) dropped from the actions.


@killed_by(sampling_is_the_official_one)
def actions_unscaled_in_sampling(patch):
    predict = samplers.predict_clean
    patch.setattr(samplers, "predict_clean", lambda s, g, traj, a, c: predict(s, g, traj, a / c.sqrt_alpha_bar, c))


def with_another_network_input(patch, change):
    """Algorithm 1 whose network is shown ``change(actions, steps, sqrt_alpha_bar)`` instead of actions and steps."""
    loss = losses.denoising_loss

    def wrong(denoise, params, traj, actions, steps, noise, schedule, prediction):
        def shown(params, noisy, scaled, steps):
            return denoise(params, noisy, *change(scaled, steps, schedule.sqrt_alpha_bar[steps][:, None, None]))

        return loss(shown, params, traj, actions, steps, noise, schedule, prediction)

    patch.setattr(losses, "denoising_loss", wrong)


@killed_by(loss_is_the_official_one)
def actions_unscaled_in_training(patch):
    with_another_network_input(patch, lambda scaled, steps, root: (scaled / root, steps))


# beta for the posterior std; noise on the last step.


def with_other_posterior_std(patch, change):
    true = schedules.coefficients

    def wrong(num_steps, steps, tau):
        c = true(num_steps, steps, tau)
        root_beta = jnp.sqrt(jnp.asarray(schedules.cosine_betas(num_steps, tau), jnp.float32))
        return c.replace(posterior_std=change(c.posterior_std, root_beta))

    patch.setattr(schedules, "coefficients", wrong)


@killed_by(sampling_is_the_official_one)
def sqrt_beta_for_the_posterior_std(patch):
    with_other_posterior_std(patch, lambda std, root_beta: root_beta.at[0].set(0.0))


@killed_by(sampling_is_the_official_one)
def noise_on_the_last_step(patch):
    with_other_posterior_std(patch, lambda std, root_beta: std.at[0].set(root_beta[0]))


# Step index off by one.


@killed_by(sampling_is_the_official_one)
def the_network_is_told_the_next_step_in_sampling(patch):
    predict = samplers.predict_clean
    patch.setattr(samplers, "predict_clean", lambda s, g, x, a, c: predict(s, g, x, a, c.replace(step=c.step + 1)))


@killed_by(loss_is_the_official_one)
def the_network_is_told_the_next_step_in_training(patch):
    with_another_network_input(patch, lambda scaled, steps, root: (scaled, steps + 1))


@killed_by(loss_is_the_official_one)
def noise_level_of_the_step_before(patch):
    add_noise = losses.add_noise

    def wrong(clean, noise, c):
        earlier = schedules.coefficients(N, np.arange(N), TAU)
        step = jnp.maximum(c.step - 1, 0)
        return add_noise(clean, noise, jax.tree.map(lambda x: x[step], earlier))

    patch.setattr(losses, "add_noise", wrong)


@killed_by(sampling_is_the_official_one)
def state_clip_begins_one_step_late(patch):
    tolerance = samplers.state_change_tolerance
    patch.setattr(samplers, "state_change_tolerance", lambda step, *rest, **kw: tolerance(step + 1, *rest, **kw))


# Raw and normalised mixed.


@killed_by(sampling_is_the_official_one)
def actions_stay_raw_after_a_step(patch):
    patch.setattr(samplers, "normalise", lambda x, statistics: x)


@killed_by(sampling_is_the_official_one)
def the_policy_reads_normalised_states(patch):
    def wrong(given, normed_obs):
        return guidances.Gaussian(*given.policy(normed_obs))

    patch.setattr(samplers, "policy_at", wrong)


@killed_by(packing_is_by_hand)
def actions_are_packed_raw(patch):
    pack = losses.pack
    patch.setattr(losses, "pack", lambda segment, normaliser: (pack(segment, normaliser)[0], segment.actions))


# EMA unused.


@killed_by(imagination_uses_the_average)
def imagination_uses_the_newest_parameters(patch):
    make = polygrad.make_polygrad

    def wrong(config, spec):
        model = make(config, spec)
        return model._replace(imagine=lambda s, *rest: model.imagine(s.replace(ema_params=s.params), *rest))

    patch.setattr(polygrad, "make_polygrad", wrong)


@killed_by(the_average_follows_its_schedule)
def the_average_is_always_a_copy(patch):
    patch.setattr(polygrad, "average", lambda ema, params, updates, decay: params)


# Gradient flowing through imagined actions; weight decay dropped.


@killed_by(no_gradient_flows_through_imagined_actions)
def gradient_through_imagined_actions(patch):
    patch.setattr(a2c, "lax", a2c_parity._LaxWithoutStop)


@killed_by(policy_updates_are_the_official_ones)
def weight_decay_dropped(patch):
    step = a2c.adamw_step
    patch.setattr(a2c, "adamw_step", lambda params, direction, rate, decay: step(params, direction, rate, 0.0))


# And one that is easily forgotten: the initial state.


@killed_by(sampling_is_the_official_one)
def initial_state_not_written_before_a_step(patch):
    patch.setattr(samplers, "set_initial_state", lambda traj, initial: traj)


@pytest.mark.parametrize(("mutate", "check"), MUTANTS)
def test_the_mutant_is_killed(mutate, check, monkeypatch):
    mutate(monkeypatch)
    with pytest.raises(AssertionError):
        check()


def test_the_checks_hold_under_wrappers_that_change_nothing(monkeypatch):
    """The same monkeypatching with a change that is none: what kills a mutant is its slip."""
    with_another_network_input(monkeypatch, lambda scaled, steps, root: (scaled, steps))
    with_other_posterior_std(monkeypatch, lambda std, root_beta: std)
    loss_is_the_official_one()
    sampling_is_the_official_one()
