"""Algorithm 2 against whole sampling runs recorded from the official code (tests/parity/README.md)."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from polygrad_jax.agents.a2c import make_policy_apply
from polygrad_jax.config import A2CConfig, EnvSpec, GuidanceConfig
from polygrad_jax.diffusion.denoising_loss import denoising_loss, set_initial_state
from polygrad_jax.diffusion.sampler import Diffusing, Draws, Given, Sampler, diffusion_step, sample_given_actions
from polygrad_jax.diffusion.schedule import coefficients, cosine_betas
from polygrad_jax.networks.denoisers import ResidualMLPDenoiser, TransformerDenoiser
from polygrad_jax.networks.official_weights import actor_params, denoiser_params
from polygrad_jax.types import MeanStd, Normaliser, Policy

PARITY = pathlib.Path(__file__).parent
RTOL, ATOL = 1e-4, 1e-5
N, TAU = 16, 0.1
FILE_OF_RULE = {
    "score": "polygrad",
    "no_clipping": "no_clipping",
    "state_update": "state_update",
    "policy_sampling": "policy_sampling",
    "random_actions": "random_actions",
    "posterior_mean": "posterior_mean_conditioning",
}


def load(name):
    return dict(np.load(PARITY / f"{name}.npz", allow_pickle=False))


def part(arrays, prefix):
    return {name.removeprefix(prefix): value for name, value in arrays.items() if name.startswith(prefix)}


def normaliser_of(arrays):
    norm = part(arrays, "norm/")
    return Normaliser(
        *(
            MeanStd(jnp.asarray(norm[f"{k}/mean"]), jnp.asarray(norm[f"{k}/std"]))
            for k in ("observations", "actions", "rewards", "terminals")
        )
    )


def mlp(params, traj, actions, step):
    return ResidualMLPDenoiser(width=48, num_blocks=6, embed_dim=128).apply({"params": params}, traj, actions, step)


def recorded_run(name, rule, **guidance):
    arrays = load(f"sample_{name}")
    policy_apply = make_policy_apply(EnvSpec(11, 3), A2CConfig(hidden_size=32, min_std=0.1))
    sampler = Sampler(mlp, GuidanceConfig(rule=rule, **guidance), "clean")
    given = Given(
        denoiser_params(part(arrays, "denoiser/"), "mlp"),
        Policy(actor_params(part(arrays, "actor_critic/")), policy_apply),
        normaliser_of(arrays),
        jnp.asarray(arrays["s0"]),
        jnp.float32(arrays["guidance_scale"]),
    )
    return arrays, sampler, given


def run_step(sampler, given, schedule, t, traj, actions, arrays):
    c = jax.tree.map(lambda x: x[t], schedule)
    draws = Draws(jnp.asarray(arrays["x_noise"][t]), jnp.asarray(arrays["a_noise"][t]))
    before = Diffusing(traj, actions, residual=jnp.zeros_like(actions))
    after = jax.jit(diffusion_step, static_argnums=0)(sampler, given, before, c, draws)
    return after.traj, after.actions


@pytest.mark.parametrize(("n", "tau"), [(8, 0.1), (8, 1.0), (16, 0.1), (16, 1.0), (128, 0.1), (128, 1.0)])
def test_betas_are_the_official_ones(n, tau):
    np.testing.assert_allclose(cosine_betas(n, tau), load("schedule")[f"betas_N{n}_tau{tau}"], rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize(
    ("name", "rule", "guidance"),
    [(name, rule, {}) for rule, name in FILE_OF_RULE.items()]
    + [("wide_state_clip", "score", {"state_change_clip": 100.0})],
)
def test_every_step_and_the_whole_run_are_the_official_ones(name, rule, guidance):
    arrays, sampler, given = recorded_run(name, rule, **guidance)
    schedule = coefficients(N, np.arange(N), TAU)
    traj, actions = jnp.asarray(arrays["init_x"]), jnp.asarray(arrays["init_a"])
    for i, t in enumerate(arrays["step_t"]):
        # one step from the recorded state, so that an error is seen where it is made
        x_in, a_in = jnp.asarray(arrays["step_x_in"][i]), jnp.asarray(arrays["step_a_in"][i])
        x, a = run_step(sampler, given, schedule, t, x_in, a_in, arrays)
        np.testing.assert_allclose(x, arrays["step_x_out"][i], rtol=RTOL, atol=ATOL, err_msg=f"trajectory, t = {t}")
        np.testing.assert_allclose(a, arrays["step_a_out"][i], rtol=RTOL, atol=ATOL, err_msg=f"actions, t = {t}")
        traj, actions = run_step(sampler, given, schedule, t, traj, actions, arrays)
    np.testing.assert_allclose(set_initial_state(traj, given.initial), arrays["final_x"], rtol=RTOL, atol=ATOL)
    np.testing.assert_allclose(actions, arrays["final_a"], rtol=RTOL, atol=ATOL)


def test_sampling_with_given_actions_is_the_official_one():
    arrays = load("sample_given_actions")
    sampler = Sampler(mlp, GuidanceConfig(), "clean")
    params = denoiser_params(part(arrays, "denoiser/"), "mlp")
    given = Given(params, None, None, jnp.asarray(arrays["s0"]), jnp.float32(0))
    noise = jnp.concatenate([jnp.asarray(arrays["x_noise"]), jnp.asarray(arrays["init_x"])[None]])
    x = sample_given_actions(sampler, given, coefficients(N, np.arange(N), TAU), jnp.asarray(arrays["actions"]), noise)
    np.testing.assert_allclose(x, arrays["final_x"], rtol=RTOL, atol=ATOL)


@pytest.mark.parametrize("kind", ["mlp", "transformer"])
def test_the_loss_and_every_gradient_are_the_official_ones(kind):
    arrays = load(f"denoising_loss_{kind}")
    modules = {
        "mlp": ResidualMLPDenoiser(width=48, num_blocks=6, embed_dim=128),
        "transformer": TransformerDenoiser(embed_dim=48, num_heads=4, num_blocks=3, horizon=10),
    }

    def denoise(params, traj, actions, step):
        return modules[kind].apply({"params": params}, traj, actions, step)

    def loss(params):
        return denoising_loss(
            denoise,
            params,
            jnp.asarray(arrays["trajectories"]),
            jnp.asarray(arrays["actions"]),
            jnp.asarray(arrays["diffusion_step"], jnp.int32),
            jnp.asarray(arrays["noise"]),
            coefficients(N, np.arange(N), TAU),
            "clean",
        )

    params = denoiser_params(part(arrays, "param/"), kind)
    gradient, metrics = jax.jit(jax.grad(loss, has_aux=True))(params)
    np.testing.assert_allclose(metrics["world_model/loss"], arrays["loss"], rtol=1e-5)
    for ours, theirs in [("observation", "obs"), ("reward", "reward"), ("terminal", "term")]:
        np.testing.assert_allclose(metrics[f"world_model/{ours}_loss"], arrays[f"{theirs}_mse_loss"], rtol=1e-5)
    theirs = part(arrays, "grad/")
    # the fixed frequencies of the step embedding have no gradient in either code
    theirs |= {k: v for k, v in part(arrays, "param/").items() if k not in theirs}
    expected = denoiser_params(theirs, kind)
    if kind == "mlp":
        expected["step_embedding"]["frequencies"] = jnp.zeros(8)
    jax.tree.map(lambda g, e: np.testing.assert_allclose(g, e, rtol=RTOL, atol=1e-6), gradient, expected)
