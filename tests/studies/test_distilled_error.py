"""What is measured of distilled diffusion, and under which policy."""

import csv
import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from experiments.harness import study
from experiments.harness.error_by_step import with_std
from experiments.world_models import distilled_error
from polygrad_jax import cli
from polygrad_jax import config as configs

STUDY = study.Study(distilled_error.Path(), "?", distilled_error.MODELS, {}, print, ways=distilled_error.WAYS)


def trained_as(model):
    return configs.validate(cli.override(configs.cpu("hopper"), [*distilled_error.MODELS[model]]))


def test_the_student_is_asked_in_few_calls_and_the_teachers_in_their_steps():
    config = trained_as("distilled")
    ways = study.ways_of(STUDY, "distilled", config)
    students = [each for each in ways.values() if each.world_model == "distilled"]
    assert [each.distilled.calls for each in students] == [1, 2, 4]
    teachers = [each for each in ways.values() if each.world_model == "autoregressive"]
    assert [each.diffusion.sampling_steps for each in teachers] == [1, 2, 4, 16, 128]
    assert all(each.denoiser == config.denoiser and each.diffusion.num_steps == 128 for each in ways.values())
    alone = study.ways_of(STUDY, "autoregressive diffusion", trained_as("autoregressive diffusion"))
    assert [each.diffusion.sampling_steps for each in alone.values()] == [1, 2, 4, 16, 128]
    for name in (*ways, *alone):
        row = {"variant": name}
        assert distilled_error.calls_of(row) in (1, 2, 4, 16, 128)
        assert distilled_error.kind_of(row) in {kind for _, kind in distilled_error.STYLES}


def test_a_teacher_imagines_with_its_own_part_of_the_state():
    config = trained_as("distilled")
    teacher = dataclasses.replace(config, world_model="autoregressive")

    class State:
        teacher = "teacher"

    assert study.state_for(teacher, config, State) == "teacher"
    assert study.state_for(config, config, State) is study.state_for(teacher, teacher, State) is State


@pytest.mark.parametrize("std", [None, 0.02])
def test_only_the_std_of_the_policy_changes(std):
    apply = with_std(lambda params, raw_obs: (params * raw_obs, jnp.full_like(raw_obs, 0.5)))
    mean, found = apply((jnp.float32(2.0), jnp.float32(std or 0.0)), jnp.ones((3, 1)))
    np.testing.assert_array_equal(mean, 2.0)
    np.testing.assert_allclose(found, 0.5 if std is None else std)


def test_the_figure_says_what_it_leaves_out(tmp_path, capsys):
    row = {"cell": "c", "env": "hopper", "model": "distilled", "seed": 0, "network": "trained", "mujoco": "4.0.0"}
    rows = [
        row | {"policy_std": std, "variant": f"{kind}calls {calls}", "step": step, "mse": 0.1 / calls, "finite": 1}
        for std in distilled_error.STDS
        for kind in ("", "teacher, ")
        for calls in (1, 2, 4)
        for step in (1, 9)
    ]
    rows.append(row | {"policy_std": 1.0, "variant": "calls 16", "step": "", "mse": "", "finite": 0})
    with (tmp_path / "distilled_error.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    distilled_error.draw(tmp_path)
    assert "calls 16, std 1.0: not finite, not drawn" in capsys.readouterr().out
    assert (tmp_path / "distilled_error.png").stat().st_size > 10_000
