"""What a run says of units in which its agent hardly learns."""

import numpy as np
import pytest

from polygrad_jax.config import override, smoke
from polygrad_jax.training.units import say_units
from polygrad_jax.types import MeanStd, Normaliser

OBSERVATIONS, REWARDS = "normalise-observations", "value-scale running"


def statistics_of(mean, std):
    return MeanStd(np.array([0.0, mean], np.float32), np.array([1e-12, std], np.float32))


@pytest.mark.parametrize(
    ("fields", "observations", "rewards", "said"),
    [
        ({}, (0.0, 1.0), (1.0, 0.5), []),
        ({}, (300.0, 1.0), (1.0, 0.5), [OBSERVATIONS]),
        ({}, (0.0, 1e6), (-1e4, 0.5), [OBSERVATIONS, REWARDS]),
        ({}, (1e-6, 1e-6), (0.0, 1e-7), [OBSERVATIONS, REWARDS]),
        ({}, (0.0, 1.0), (0.0, 1e-12), []),  # no reward yet
        ({"a2c.normalise_observations": True}, (300.0, 1.0), (1e3, 1.0), [REWARDS]),
        ({"a2c.normalise_observations": True, "a2c.value_scale": "running"}, (300.0, 1.0), (1e3, 1.0), []),
        ({"agent": "value_gradient"}, (300.0, 1.0), (0.0, 1e-5), ["TransformReward"]),
        ({"agent": "dreamer", "world_model": "dreamer"}, (300.0, 1.0), (1.0, 1.0), ["TransformObservation"]),
    ],
)
def test_units_that_an_agent_reads_raw_and_hardly_learns_in_are_said(fields, observations, rewards, said, capsys):
    one = MeanStd(np.zeros(1), np.ones(1))
    rewards = MeanStd(*(np.array([x], np.float32) for x in rewards))
    say_units(override(smoke("hopper"), fields), Normaliser(statistics_of(*observations), one, rewards, one))
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == len(said) and all(word in line for word, line in zip(said, lines, strict=True)), lines
