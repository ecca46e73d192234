"""A saved configuration is read back; one of the revision before is carried over or refused by name."""

import json

import numpy as np
import pytest

from polygrad_jax import config as configs
from polygrad_jax.config import Config, ConfigError

BEFORE = {
    "preset": "cpu",
    "seed": 3,
    "world_model": "dreamer",
    "learner": "latent",
    "diffusion": {"num_steps": 16, "sampling_steps": 8, "sampling_tau": 0.0, "sampling_floor": 0.0, "eta": 1.0},
    "guidance": {"rule": "correlated", "rho": 1.0, "relaxation": 0.5, "max_delta_over_variance": 1.0},
    "denoiser": {
        "width": 256,
        "embed_dim": 128,
        "batch_size": 64,
        "recent_share": 0.5,
        "recent_windows": 100,
        "padded_actions": "drawn",
        "ema_every_updates": 10,
        "ema_start_updates": 2000,
    },
    "ensemble": {"members": 5, "batch_size": 128, "heldout_share": 0.1, "heldout_decay": 0.99},
    "dreamer": {"deter": 128, "bins": 255, "batch_size": 16},
    "latent_policy": {"units": 128, "gamma": 0.9, "return_lambda": 0.95, "slow_critic_rate": 0.02},
    "a2c": {"gamma": 0.98, "search_ratio": 0.8, "normalise_advantages": True},
    "loop": {
        "total_env_steps": 9_000,
        "denoiser_warmup_env_steps": 200,
        "denoiser_updates_per_env_step": 0.5,
        "env_steps_per_policy_update": 8,
        "env_steps_per_iteration": 8,
        "overlap": False,
    },
}
"""What the revision before wrote, without most of the fields that stand as they were."""


def changed(changes: dict) -> dict:
    """``BEFORE`` with values replaced by dotted name."""
    saved = json.loads(json.dumps(BEFORE))
    for name, value in changes.items():
        group, _, last = name.rpartition(".")
        (saved[group] if group else saved)[last] = value
    return saved


def test_a_configuration_of_the_revision_before_is_carried_over():
    expected = {
        "preset": "cpu",
        "seed": 3,
        "world_model": "dreamer",
        "agent": "dreamer",
        "diffusion.num_steps": 16,
        "diffusion.sampling_steps": 8,
        "guidance.rule": "correlated",
        "guidance.relaxation": 0.5,
        "model_training.batch_size": 64,
        "model_training.recent_share": 0.5,
        "model_training.recent_windows": 100,
        "model_training.padded_actions": "drawn",
        "model_training.updates_per_env_step": 0.5,
        "model_training.warmup_env_steps": 200,
        "denoiser.width": 256,
        "ensemble.members": 5,
        "dreamer.deter": 128,
        "dreamer_agent.units": 128,
        "dreamer_agent.gamma": 0.9,
        "a2c.gamma": 0.98,
        "loop.total_env_steps": 9_000,
        "loop.env_steps_per_policy_update": 8,
    }
    assert configs.from_dict(BEFORE) == configs.override(Config(), expected)


def test_an_ensemble_keeps_the_batch_it_was_trained_on():
    saved = changed({"world_model": "ensemble", "learner": "a2c"})
    assert configs.from_dict(saved).model_training.batch_size == 128
    assert configs.from_dict(saved).agent == "a2c"


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        (
            {"loop.overlap": True},
            "saved configuration: loop.overlap is True; allowed: False (each iteration collects, then learns)",
        ),
        (
            {"loop.env_steps_per_iteration": 16},
            "saved configuration: loop.env_steps_per_iteration is 16; allowed: 8 (loop.env_steps_per_policy_update)",
        ),
        (
            {"a2c.search_ratio": 0.5, "dreamer.bins": 41},
            "saved configuration: dreamer.bins is 41; allowed: 255; a2c.search_ratio is 0.5; allowed: 0.8",
        ),
        (
            {"guidance.rule": "preconditioned"},
            "saved configuration: guidance.rule is preconditioned, which was removed; allowed: a rule registered in "
            "RULES",
        ),
    ],
)
def test_a_removed_field_at_another_value_is_refused_in_one_line(changes, line):
    with pytest.raises(ConfigError) as refusal:
        configs.from_dict(changed(changes))
    assert str(refusal.value) == line


@pytest.mark.parametrize("name", configs.REMOVED)
def test_every_removed_field_is_dropped_at_its_constant(name):
    if name in ("ensemble.batch_size", "loop.env_steps_per_iteration"):
        return  # above
    group, _, last = name.rpartition(".")
    constant = configs.REMOVED[name].constant
    assert configs.from_dict({group: {last: constant}}) == Config()
    with pytest.raises(ConfigError, match=name):
        configs.from_dict({group: {last: not constant if isinstance(constant, bool) else constant + 1}})


def test_a_rule_that_a_program_registers_under_an_old_name_is_read_back():
    config = configs.override(configs.smoke("hopper"), {"guidance.rule": "preconditioned"})
    assert configs.from_dict(configs.to_dict(config)) == config


def test_numbers_of_numpy_are_saved_as_numbers():
    of_numpy = {"seed": np.int64(3), "a2c.gamma": np.float64(0.5), "horizon": np.int32(7)}
    config = configs.validate(configs.override(Config(), of_numpy))
    assert configs.from_dict(json.loads(configs.to_json(config))) == config


def test_fields_that_an_older_version_did_not_write_have_their_defaults():
    saved = changed({"env": {"name": "walker2d", "version": 4, "hide_velocities": True}})
    assert configs.from_dict(saved).env.actions == "clipped"
    del saved["denoiser"]["recent_share"], saved["learner"], saved["latent_policy"]
    config = configs.from_dict(saved)
    assert (config.model_training.recent_share, config.agent) == (0.0, "a2c")
    assert config.dreamer_agent == Config().dreamer_agent
    assert configs.from_dict({}) == Config()


@pytest.mark.parametrize(
    ("saved", "words"),
    [
        (changed({"a2c.momentum": 0.9}), "of A2CConfig: unknown fields ['momentum']"),
        (changed({"colour": "blue"}), "of Config: unknown fields ['colour']"),
        (changed({"a2c": 3}), "3 in place of A2CConfig"),
        ([], "[] in place of Config"),
        (configs.to_dict(Config()) | {"learner": "a2c"}, "of Config: unknown fields ['learner']"),
    ],
)
def test_what_is_no_configuration_is_refused(saved, words):
    with pytest.raises(ConfigError) as refusal:
        configs.from_dict(saved)
    assert words in str(refusal.value) and "allowed: " in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_json_is_what_is_read_back():
    config = configs.override(configs.cpu("inverted_pendulum"), {"seed": 7, "env.hide_velocities": True})
    assert configs.from_dict(json.loads(configs.to_json(config))) == config
