"""A configuration that cannot be run is refused in one line naming the field, its value and what is allowed."""

import pytest

from polygrad_jax import config as configs
from polygrad_jax.config import ConfigError, override

CPU = configs.cpu("hopper")
UNSEARCHED = {"a2c.search": False, "a2c.learning_rates": "constant"}


@pytest.mark.parametrize(
    ("values", "line"),
    [
        ({"seed": -1}, "seed is -1; allowed: from 0 to 4294967295"),
        ({"horizon": 1}, "horizon is 1; allowed: 2 or greater"),
        ({"env.version": 3}, "env.version is 3; allowed: 4 or 5"),
        ({"a2c.gamma": 1.5}, "a2c.gamma is 1.5; allowed: from 0 to 1"),
        ({"a2c.gamma": float("nan")}, "a2c.gamma is nan; allowed: a finite number"),
        ({"guidance.relaxation": 0.0}, "guidance.relaxation is 0.0; allowed: greater than 0, at most 1"),
        ({"denoiser.ema_decay": 1.0}, "denoiser.ema_decay is 1.0; allowed: from 0 to below 1"),
        ({"precision": "float64"}, "precision is float64; allowed: float32, bfloat16"),
        ({"denoiser.shown_actions": "clipped"}, "denoiser.shown_actions is clipped; allowed: sampled, executed"),
        ({"horizon": "10"}, "horizon is 10; allowed: a whole number"),
        ({"horizon": 10.5}, "horizon is 10.5; allowed: a whole number"),
        ({"horizon": True}, "horizon is True; allowed: a whole number"),
        ({"a2c.gamma": None}, "a2c.gamma is None; allowed: a number"),
        ({"a2c.search": 1}, "a2c.search is 1; allowed: True or False"),
        ({"env.name": 5}, "env.name is 5; allowed: a text"),
        ({"diffusion.sampling_steps": 17}, "diffusion.sampling_steps is 17; allowed: at most diffusion.num_steps (16)"),
        ({"denoiser.num_heads": 5}, "denoiser.token_dim is 312; allowed: a multiple of denoiser.num_heads (5)"),
        (
            {"denoiser.token_dim": 9, "denoiser.num_heads": 3},
            "denoiser.token_dim is 9; allowed: an even number",
        ),
        ({"transformer.num_heads": 5}, "transformer.token_dim is 64; allowed: a multiple of transformer.num_heads (5)"),
        ({"ensemble.elites": 6}, "ensemble.elites is 6; allowed: at most ensemble.members (5)"),
        ({"a2c.min_std": 2.0}, "a2c.initial_std is 0.5; allowed: greater than a2c.min_std (2.0)"),
        (
            {"a2c.learning_rates": "falling"},
            "a2c.learning_rates is falling; allowed: adapted, or any with a2c.search False",
        ),
        (
            {"a2c.epochs": 4},
            "a2c.epochs is 4; allowed: 1 with a2c.learning_rates adapted; others with constant or falling, and "
            "a2c.search False",
        ),
        (
            {"a2c.minibatches": 2, "a2c.search": False},
            "a2c.minibatches is 2; allowed: 1 with a2c.learning_rates adapted; others with constant or falling, and "
            "a2c.search False",
        ),
        (
            {"a2c.clip_ratio": 0.2},
            "a2c.clip_ratio is 0.2; allowed: 0.0 with a2c.learning_rates adapted; others with constant or falling, and "
            "a2c.search False",
        ),
        (
            {"a2c.clip_ratio": 0.2, **UNSEARCHED},
            "a2c.clip_ratio is 0.2; allowed: 0.0 with a2c.epochs 1 and a2c.minibatches 1, where the only step begins "
            "at the ratio 1",
        ),
        (
            {"a2c.epochs": 4, **UNSEARCHED},
            "a2c.epochs is 4 with a2c.clip_ratio 0.0, so that nothing bounds how improbable later passes make an "
            "action; allowed: 1, or a2c.clip_ratio above 0",
        ),
        (
            {"a2c.minibatches": 5, **UNSEARCHED},
            "a2c.minibatches is 5; allowed: a number of equal parts, of two or more each, of a2c.trajectories times "
            "horizon - 1 (1152)",
        ),
        (
            {"a2c.minibatches": 18, "a2c.trajectories": 2, **UNSEARCHED},
            "a2c.minibatches is 18; allowed: a number of equal parts, of two or more each, of a2c.trajectories times "
            "horizon - 1 (18)",
        ),
        ({"a2c.clip_ratio": -0.1}, "a2c.clip_ratio is -0.1; allowed: 0 or greater"),
        (
            {"model_training.updates_per_env_step": 0.3},
            "model_training.updates_per_env_step is 0.3; allowed: a whole number of updates per "
            "loop.env_steps_per_policy_update (8) steps",
        ),
        ({"loop.total_env_steps": 10}, "loop.total_env_steps is 10; allowed: more than loop.prefill_env_steps (2500)"),
        (
            {"loop.prefill_env_steps": 60, "loop.replay_capacity": 200},
            "loop.replay_capacity is 200; allowed: at least 256 (the largest of loop.prefill_env_steps plus ten "
            "horizons, loop.env_steps_per_policy_update and 256)",
        ),
        (
            {"value_gradient.path": "imagined", "value_gradient.path_length": 10},
            "value_gradient.path_length is 10 with value_gradient.path imagined; allowed: from 1 to below horizon (10)",
        ),
        (
            {"value_gradient.path": "imagined", "value_gradient.starts": "replay"},
            "value_gradient.starts is replay with value_gradient.path imagined; allowed: imagined",
        ),
        (  # sigma of one action is NaN, and so was delta after the first policy update
            {"horizon": 2, "agent": "value_gradient", "value_gradient.trajectories": 1},
            "value_gradient.trajectories is 1 with horizon 2; allowed: 2 or more, since one transition has no standard "
            "deviation to tune guidance by",
        ),
        (
            {"value_gradient.gamma": 0.99, "value_gradient.final_gamma": 0.9},
            "value_gradient.final_gamma is 0.9; allowed: 0, or at least value_gradient.gamma (0.99)",
        ),
        ({"env.actions": "executed"}, "env.actions is executed; allowed: clipped, squashed"),
        (
            {"agent": "dreamer"},
            "agent is dreamer with world_model polygrad; allowed: a2c, value_gradient, or world_model dreamer",
        ),
    ],
)
def test_a_mistake_is_one_line(values, line):
    with pytest.raises(ConfigError) as refusal:
        configs.validate(override(CPU, values))
    assert str(refusal.value) == line


@pytest.mark.parametrize(
    "values",
    [
        {"world_model": "nothing_moves"},
        {"world_model": "own_latents", "agent": "dreamer"},
        {"agent": "greedy"},
        {"guidance.rule": "luck"},
    ],
)
def test_names_of_open_tables_pass(values):
    """A program may register a world model, an agent or a guidance rule; the table refuses a name it lacks."""
    config = override(CPU, values)
    assert configs.validate(config) == config


@pytest.mark.parametrize("values", [{}, {"a2c.epochs": 3, "a2c.clip_ratio": 0.2}, {"a2c.minibatches": 4}])
def test_passes_in_minibatches_need_no_search(values):
    config = override(CPU, UNSEARCHED | values)
    assert configs.validate(config) == config


def test_a_whole_number_is_a_number():
    config = override(CPU, {"a2c.gamma": 1})
    assert configs.validate(config) == config


@pytest.mark.parametrize(
    ("option", "line"),
    [
        ("loop.overlap", "loop.overlap was removed; instead: each iteration collects, then learns"),
        ("--loop.no-overlap", "loop.overlap was removed; instead: each iteration collects, then learns"),
        (
            "--loop.env-steps-per-iteration=8",
            "loop.env_steps_per_iteration was removed; instead: loop.env_steps_per_policy_update",
        ),
        ("--ensemble.batch-size", "ensemble.batch_size was removed; instead: model_training.batch_size"),
        ("--a2c.no-normalise-advantages", "a2c.normalise_advantages was removed; instead: always True"),
        ("--learner", "learner was renamed; allowed: agent (latent is now dreamer)"),
        ("--denoiser.batch-size", "denoiser.batch_size was renamed; allowed: model_training.batch_size"),
        ("--latent-policy.units", "latent_policy.units was renamed; allowed: dreamer_agent.units"),
        ("--a2c.gamma", None),
        ("--a2c.gamna", None),
        ("--help", None),
    ],
)
def test_a_removed_field_is_named_with_what_replaced_it(option, line):
    assert configs.removed_field(option) == line


def test_no_field_of_today_counts_as_removed():
    declared = configs.declared_fields()
    assert not [name for name in declared if configs.removed_field(name)]
    assert set(configs.RENAMED.values()) <= set(declared)
