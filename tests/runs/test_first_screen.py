"""The first lines of a run."""

from pathlib import Path

from polygrad_jax import config as configs
from polygrad_jax.config import EnvSpec
from polygrad_jax.runs import first_screen

HOPPER = EnvSpec(11, 3)


def test_six_lines_and_the_fields_that_differ():
    config = configs.override(configs.cpu("hopper"), {"horizon": 7, "a2c.gamma": 0.9, "seed": 0})
    lines = first_screen.describe(config, HOPPER, Path("runs/here"), "JAX found no accelerator").splitlines()
    assert [line.split()[0] for line in lines[:6]] == ["task", "preset", "device", "work", "folder", "look"]
    assert "Hopper-v5: 11 observations, 3 actions" in lines[0] and "polygrad" in lines[0]
    assert "cpu (JAX found no accelerator)" in lines[1]
    assert "PRESET=paper|cpu|cpu_long|cpu_a2c|cpu_a2c_passes|smoke" in lines[1]
    assert "runs/here" in lines[4] and "polygrad tensorboard runs/here" in lines[5]
    assert sorted(lines[7:]) == ["  a2c.gamma = 0.9", "  horizon = 7"]
    plain = first_screen.describe(configs.cpu("hopper"), HOPPER, Path("runs/here"), "asked for")
    assert len(plain.splitlines()) == 6
    several = first_screen.describe(configs.cpu("hopper"), HOPPER, Path("runs/here"), "asked for", [3, 4]).splitlines()
    assert "polygrad tensorboard runs/here " in several[5] and "polygrad plot runs/here/seed3" in several[5]
    assert several[6].split(maxsplit=1) == ["seeds", "3, 4, as one program; each does this work, in seed3 and so on"]


def of_steps(total, warmup):
    """A run of 1,000 random steps, and iterations of 4."""
    fields = {"loop.total_env_steps": total, "model_training.warmup_env_steps": warmup}
    fields |= {"loop.prefill_env_steps": 1_000, "loop.env_steps_per_policy_update": 4}
    return configs.override(configs.cpu("hopper"), fields)


def test_the_work_is_counted_by_hand():
    # 5,000 - 1,000 - 400 = 3,600 steps; 3,600 / 4 = 900 iterations.
    config = of_steps(5_000, 400)
    phases = first_screen._work(config, 0).split(", then ")
    assert phases[:2] == ["1,000 random steps", "400 steps that train the world model alone"]
    assert phases[2].startswith("900 iterations of 4 environment steps")
    assert phases[2].endswith("; the time they take is shown after the first 20")
    assert "resumes at environment step 2,000 of 5,000" in first_screen._work(config, 2_000)


def test_no_time_is_promised_that_is_never_told():
    # (1,080 - 1,000) / 4 = 20 iterations, of which the first only starts the clock
    config = of_steps(1_080, 0)
    assert first_screen._work(config, 0) == "1,000 random steps, then 20 iterations of 4 environment steps"
    reached = "none: environment step 1,080 of 1,080 is reached (--loop.total-env-steps)"
    assert first_screen._work(config, 1_080) == reached  # it said that the run resumes there


def test_the_whole_configuration_is_there_when_asked_for():
    config = configs.cpu("hopper")
    lines = first_screen.whole_configuration(config).splitlines()
    assert len(lines) == 1 + len(list(configs.flatten(config)))
    assert f"  a2c.gamma = {config.a2c.gamma}" in lines
