"""The presets: the paper's tables, and by how much each of the others differs from them."""

import dataclasses

import pytest

from polygrad_jax import config as configs
from polygrad_jax.config import Config, ConfigError, override

TASKS = ("hopper", "walker2d", "halfcheetah", "inverted_pendulum")

CPU_A2C = {
    "preset": "cpu_a2c",
    "diffusion.num_steps": 16,
    "diffusion.sampling_steps": 16,
    "diffusion.terminals": "classified",
    "diffusion.terminal_std": 0.5,
    "guidance.delta_lr": 0.03,
    "guidance.state_change_clip": 0.0,
    "model_training.batch_size": 128,
    "model_training.recent_share": 0.5,
    "model_training.padded_actions": "drawn",
    "denoiser.width": 256,
    "denoiser.learning_rate": 0.004,
    "transformer.token_dim": 64,
    "transformer.num_blocks": 2,
    "transformer.learning_rate": 0.001,
    "transformer.batch_size": 128,
    "ensemble.members": 5,
    "ensemble.elites": 3,
    "ensemble.hidden_size": 100,
    "dreamer.deter": 128,
    "dreamer.latents": 16,
    "dreamer.classes": 16,
    "dreamer.units": 128,
    "dreamer.layers": 1,
    "dreamer.coder_units": 128,
    "dreamer.coder_layers": 2,
    "dreamer.learning_rate": 0.0003,
    "dreamer.window": 32,
    "dreamer_agent.units": 128,
    "dreamer_agent.layers": 1,
    "dreamer_agent.learning_rate": 0.0001,
    "a2c.trajectories": 128,
    "a2c.hidden_size": 128,
    "a2c.gae_lambda": 0.95,
    "a2c.critic_lr": 0.001,
    "a2c.critic_updates": 4,
    "a2c.max_actor_lr": 0.0003,
    "a2c.target_change": 0.03,
    "a2c.final_target_change": 0.003,
    "a2c.target_critic_ema": 0.98,
    "a2c.actor_ema": 0.999,
    "a2c.initial_std": 0.5,
    "a2c.min_std": 0.2,
    "a2c.train_terminal_transitions": True,
    "loop.total_env_steps": 100_000,
    "loop.env_steps_per_policy_update": 8,
    "loop.side_by_side": True,
    "loop.replay_capacity": 200_000,
    "loop.eval_every_env_steps": 5_000,
}
"""Differences between cpu_a2c and paper on every task but the pendulum, where paper's tau is 1."""
LIKE_PAPER_ON_THE_PENDULUM = (
    "diffusion.terminals",
    "diffusion.terminal_std",
    "guidance.state_change_clip",
    "model_training.batch_size",
    "model_training.recent_share",
    "model_training.padded_actions",
    "denoiser.learning_rate",
    "a2c.final_target_change",
    "a2c.actor_ema",
    "a2c.initial_std",
    "a2c.min_std",
    "loop.env_steps_per_policy_update",
)
CPU_A2C_PENDULUM = {name: value for name, value in CPU_A2C.items() if name not in LIKE_PAPER_ON_THE_PENDULUM} | {
    "diffusion.tau": 0.1,
    "guidance.state_change_clip_below": 2,
    "a2c.max_actor_lr": 0.003,
    "loop.total_env_steps": 20_000,
}
CPU = {
    "preset": "cpu",
    "agent": "value_gradient",
    "env.actions": "squashed",
    "diffusion.prediction": "change",
    "guidance.rule": "correlated",
    "guidance.relaxation": 0.5,
    "denoiser.num_blocks": 3,
    "denoiser.shown_actions": "executed",
    "ensemble.elites": 5,
    "ensemble.hidden_size": 200,
    "ensemble.hidden_layers": 3,
    "model_training.updates_per_env_step": 0.5,
    "value_gradient.path_length": 5,
    "value_gradient.critics": 3,
    "value_gradient.hidden_size": 128,
    "value_gradient.hidden_layers": 2,
    "value_gradient.gamma": 0.99,
    "value_gradient.final_gamma": 0.995,
    "value_gradient.target_rate": 0.01,
    "value_gradient.actor_ema": 0.9995,
    "loop.total_env_steps": 80_000,
    "loop.prefill_env_steps": 2_500,
}
"""Differences between cpu and what cpu_a2c is on Hopper."""
CPU_A2C_PASSES = {
    "preset": "cpu_a2c_passes",
    "diffusion.prediction": "change",
    "guidance.rule": "correlated",
    "guidance.relaxation": 0.5,
    "denoiser.num_blocks": 3,
    "denoiser.shown_actions": "executed",
    "model_training.updates_per_env_step": 2.0,
    "a2c.trajectories": 256,
    "a2c.gamma": 0.995,
    "a2c.entropy_weight": 0.0003,
    "a2c.initial_std": 0.8,
    "a2c.min_std": 0.3,
    "a2c.normalise_observations": True,
    "a2c.value_scale": "running",
    "a2c.search": False,
    "a2c.learning_rates": "falling",
    "a2c.minibatches": 4,
    "a2c.clip_ratio": 0.2,
    "a2c.grad_clip": 0.5,
    "a2c.weight_decay": 0.0,
    "a2c.critic_lr": 0.0003,
    "a2c.critic_updates": 1,
    "a2c.target_critic_ema": 0.0,
    "a2c.actor_ema": 0.99,
    "loop.env_steps_per_policy_update": 16,
}
"""Differences between cpu_a2c_passes and what cpu_a2c is on Hopper."""
SMOKE = {
    "preset": "smoke",
    "diffusion.num_steps": 8,
    "diffusion.sampling_steps": 8,
    "diffusion.tau": 0.1,
    "model_training.batch_size": 32,
    "model_training.warmup_env_steps": 200,
    "denoiser.width": 64,
    "denoiser.num_blocks": 2,
    "transformer.token_dim": 32,
    "transformer.batch_size": 32,
    "ensemble.members": 3,
    "ensemble.elites": 2,
    "ensemble.hidden_size": 16,
    "ensemble.hidden_layers": 2,
    "dreamer.deter": 16,
    "dreamer.latents": 4,
    "dreamer.classes": 4,
    "dreamer.units": 16,
    "dreamer.coder_units": 16,
    "dreamer.coder_layers": 1,
    "dreamer.window": 8,
    "dreamer_agent.horizon": 5,
    "dreamer_agent.units": 16,
    "a2c.trajectories": 16,
    "a2c.hidden_size": 32,
    "a2c.final_target_change": 0.0,
    "loop.total_env_steps": 2_400,
    "loop.prefill_env_steps": 1_000,
    "loop.env_steps_per_policy_update": 4,
    "loop.replay_capacity": 10_000,
    "loop.eval_every_env_steps": 800,
    "loop.eval_episodes": 2,
    "loop.film_checkpoints": False,
    "loop.error_trajectories": 8,
    "loop.log_every_env_steps": 100,
    "loop.checkpoint_every_env_steps": 800,
}
"""Differences between smoke and cpu_a2c, where cpu_a2c has another value."""
PAPER = {"hopper": {"diffusion.tau": 0.1}, "inverted_pendulum": {}} | dict.fromkeys(
    ("walker2d", "halfcheetah"), {"loop.total_env_steps": 1_505_000}
)


def differences(config: Config, base: Config) -> dict:
    """Dotted fields of ``config`` that differ from ``base``."""
    before = dict(configs.flatten(base))
    return {name: value for name, value in configs.flatten(config) if value != before[name]}


@pytest.mark.parametrize("env", TASKS)
def test_paper_differs_from_the_defaults_by_task(env):
    named = {} if env == "hopper" else {"env.name": env}
    assert differences(configs.paper(env), Config()) == named | PAPER[env]


@pytest.mark.parametrize("env", TASKS)
def test_cpu_a2c_and_smoke_are_as_pinned(env):
    paper, a2c, smoke = configs.paper(env), configs.cpu_a2c(env), configs.smoke(env)
    if env == "inverted_pendulum":
        assert differences(a2c, paper) == CPU_A2C_PENDULUM
    else:
        assert differences(a2c, paper) == CPU_A2C | ({"diffusion.tau": 1.0} if env == "hopper" else {})
    values = dict(configs.flatten(a2c))
    assert differences(smoke, a2c) == {name: value for name, value in SMOKE.items() if value != values[name]}


@pytest.mark.parametrize("env", TASKS)
def test_cpu_differs_from_cpu_a2c_on_hopper_by_one_list_for_all_tasks(env):
    for_hopper = configs.override(configs.cpu_a2c("hopper"), {"env.name": env})
    assert differences(configs.cpu_a2c_passes(env), for_hopper) == CPU_A2C_PASSES
    assert differences(configs.cpu(env), for_hopper) == CPU
    assert differences(configs.cpu_long(env), configs.cpu(env)) == {
        "preset": "cpu_long",
        "loop.total_env_steps": 100_000,
    }


@pytest.mark.parametrize("env", TASKS)
def test_the_other_presets_differ_from_paper_as_pinned(env):
    paper = configs.paper(env)
    assert differences(configs.preset("paper_transformer", env), paper) == {
        "preset": "paper_transformer",
        "denoiser.kind": "transformer",
        "denoiser.learning_rate": 0.0001,
    } | ({"diffusion.tau": 1.0} if env == "hopper" else {})
    rules = ("random_actions", "policy_sampling", "no_clipping", "state_update", "noisy_states", "posterior_mean")
    assert rules == configs.ABLATIONS
    for rule in rules:
        ablation = configs.preset(f"paper_{rule}", env)
        assert differences(ablation, paper) == {"preset": f"paper_{rule}", "guidance.rule": rule}


@pytest.mark.parametrize("env", TASKS)
@pytest.mark.parametrize("name", configs.PRESETS)
def test_every_preset_is_valid_and_survives_json(name, env):
    config = configs.validate(configs.preset(name, env))
    assert (config.preset, config.env.name) == (name, env)
    assert configs.from_dict(configs.to_dict(config)) == config
    assert configs.PRESETS[name].__doc__


def test_the_paper_preset_is_tables_1_to_4():
    c = configs.paper("hopper")
    assert (c.a2c.trajectories, c.horizon) == (1024, 10)
    assert (c.a2c.gae_lambda, c.a2c.critic_lr, c.a2c.gamma) == (0.9, 3e-4, 0.99)
    assert (c.a2c.target_change, c.a2c.entropy_weight, c.a2c.min_std) == (0.01, 1e-5, 0.1)
    assert (c.denoiser.width, c.denoiser.num_blocks) == (1024, 6)
    assert (c.model_training.batch_size, c.denoiser.learning_rate) == (256, 3e-4)
    assert (c.diffusion.num_steps, c.diffusion.sampling_steps, c.diffusion.tau) == (128, 128, 0.1)
    assert configs.paper("walker2d").diffusion.tau == 1.0
    assert c.loop.env_steps_per_policy_update == 4
    assert configs.model_updates_per_policy_update(c) == 4
    t = configs.paper_transformer("hopper")
    assert (t.denoiser.token_dim, t.denoiser.num_heads, t.denoiser.num_blocks) == (312, 4, 6)
    assert (t.denoiser.learning_rate, t.diffusion.tau) == (1e-4, 1.0)


@pytest.mark.parametrize("task", ["hopper Hopper-v4", "inverted_pendulum InvertedPendulum-v5"])
@pytest.mark.parametrize("name", ["paper", "cpu"])
def test_a_full_gymnasium_id_has_the_settings_of_its_task(task, name):
    known, gymnasium = task.split()
    ours, theirs = configs.preset(name, known), configs.preset(name, gymnasium)
    assert theirs.env.name == gymnasium
    assert dataclasses.replace(theirs, env=ours.env) == ours


def test_another_task_has_settings_of_its_own():
    assert configs.cpu_a2c("inverted_pendulum").a2c != configs.cpu_a2c("hopper").a2c
    assert configs.task_of("my/Own-v1") == "my/own"


def test_override_replaces_fields_by_dotted_name_and_refuses_others():
    base = configs.cpu("hopper")
    changes = {"seed": 4, "denoiser.width": 32, "denoiser.num_blocks": 1}
    assert differences(override(base, changes), base) == changes
    assert override(base, {}) == base
    with pytest.raises(ConfigError, match="^unknown field denoiser.widht; allowed: denoiser.width$"):
        override(base, {"denoiser.widht": 32})
    with pytest.raises(ConfigError, match="^unknown field denoiser"):
        override(base, {"denoiser": base.denoiser})
    with pytest.raises(ConfigError, match="^loop.overlap was removed; "):
        override(base, {"loop.overlap": True})


def test_an_unknown_preset_is_refused():
    with pytest.raises(ConfigError, match="^preset is huge; allowed: paper, cpu, cpu_long, smoke, "):
        configs.preset("huge", "hopper")


def test_the_fields_that_differ_from_the_preset_are_named():
    config = configs.smoke("walker2d")
    assert configs.non_default(config) == {}
    changes = {"seed": 3, "a2c.gamma": 0.9}
    assert configs.non_default(override(config, changes)) == changes
    assert configs.non_default(override(configs.paper("hopper"), {"preset": "own", "seed": 1})) == {"seed": 1}
