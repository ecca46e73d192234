"""The study of gradients: what it counts and tries; its measures are those of ``gradient_error``, tested there."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from experiments.guidance import gradient_study as study
from experiments.harness import grid
from experiments.harness.opened_runs import OfRun
from polygrad_jax.config import ConfigError, cpu, validate
from polygrad_jax.types import Segment


def test_rewards_behind_an_end_and_of_the_last_step_do_not_count():
    """Two trajectories of four steps: 1 + 2 (then it ends) + 0, 4 + 5 + 6; not the last 9: 18 / 6."""
    rewards = np.array([[1.0, 2.0, 100.0, 9.0], [4.0, 5.0, 6.0, 9.0]])
    terminals = np.array([[0.0, 1.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]])
    nothing = np.zeros((2, 4, 1))
    assert study.earned(Segment(nothing, nothing, rewards, terminals)) == 3.0


def test_the_fitted_denoiser_is_tried_at_several_steps_and_the_runs_own_at_its_own():
    config = cpu("hopper")
    many = validate(replace(config, diffusion=replace(config.diffusion, num_steps=128)))
    fitted = [setting.labels for setting in study.settings(many, own=False)]
    assert {labels["sampling_steps"] for labels in fitted} == set(study.STEPS)
    assert {labels["rule"] for labels in fitted} == set(study.WITH_NOBODY)
    assert not any("z of" in labels["rule"] for labels in fitted)
    assert all((labels["sampling_tau"] > 0) == ("spaced" in labels["rule"]) for labels in fitted)
    own = list(study.settings(config, own=True))
    assert [setting.labels["rule"] for setting in own] == list(study.OF_OWN)
    assert {len(setting.schedule.step) for setting in own} == {config.diffusion.num_steps}


def test_a_run_of_another_agent_is_refused(monkeypatch):
    """The default preset's agent is another; A2C's loss met its parameters with a traceback."""
    monkeypatch.setattr(study, "open_run", lambda folder: SimpleNamespace(config=cpu("hopper")))
    with pytest.raises(ConfigError, match="runs/x is a run of agent value_gradient; allowed: a2c"):
        next(study.rows_of(None, OfRun("runs/x")))


def test_the_figure_is_made_from_the_csv_alone(tmp_path):
    common = {"env": "hopper", "std": 0.4, "updates": 7, "rows": 8, "closed_ceiling": 0.9}
    rows = [
        common | {"model": model, "rule": "score", "sampling_steps": steps, "seed": seed, "closed_cosine": cosine}
        for model, steps, seed, cosine in (("fitted", 8, 0, 0.5), ("fitted", 8, 1, 0.7), ("untrained", 16, 0, 0.1))
    ]
    diverged = {"cell": "b", "outcome": "diverged"}  # its empty cells were no numbers
    grid.write_csv(tmp_path / "gradient_study.csv", [*rows, diverged])
    study.draw(tmp_path)
    assert (tmp_path / "gradient_study.png").stat().st_size > 1000
