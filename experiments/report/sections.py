"""What the report shows: the paper's claims in words, and the folders of ``results/`` that answer them."""

from __future__ import annotations

from typing import NamedTuple


class Section(NamedTuple):
    """A part of the report: a claim, and where it was measured."""

    title: str
    paper: str  # where the paper makes the claim; empty for what is not in the paper
    claim: str
    folders: tuple[str, ...]  # of results/, whose README and figures answer it
    curves: bool = False  # whether the learning curves stand here


SECTIONS = (
    Section(
        "Policies",
        "Figure 6",
        "Trained by A2C in what PolyGRAD imagines, policies on Hopper, Walker2d and HalfCheetah return more than those "
        "of PPO, TRPO and A2C after as many real steps (one million). Off-policy methods are stronger still.",
        ("learning_curves", "published_curves"),
        curves=True,
    ),
    Section(
        "How the preset was found",
        "",
        "Value gradients through a small ensemble, from start states that PolyGRAD imagines, are not in the paper.",
        ("archive/value_gradient_search",),
    ),
    Section(
        "One trajectory, diffused",
        "Figure 2",
        "A trajectory of random states and actions becomes an on-policy one in a single pass.",
        ("world_models/imagined_hopper",),
    ),
    Section(
        "Errors of imagined states",
        "Figures 5 and 8",
        "Over trajectories of 10 states PolyGRAD's error is equal to the best, of either denoiser.",
        (
            "world_models/prediction_error",
            "world_models/small_data",
            "world_models/denoiser_output",
            "world_models/partial_observation",
            "world_models/learning_rates",
            "world_models/imagined_ends",
            "world_models/distilled_error",
        ),
    ),
    Section(
        "Time to imagine",
        "Figure 4",
        "Diffusing whole trajectories in a single pass takes far less time than diffusing step by step.",
        ("world_models/computation_time", "sampler_speed", "training_speed", "limits", "scaling"),
    ),
    Section(
        "Are imagined actions the policy's?",
        "Figures 3 and 9 to 13",
        "The distribution of actions is close to the policy's Gaussian while its standard deviation is 0.1 or more, "
        "and begins to deviate below. Without the clip it has heavy tails.",
        ("guidance/action_distribution",),
    ),
    Section(
        "How right is the guidance?",
        "",
        "The paper judges its rule by the distribution of actions and by returns. Here every rule is compared with "
        "what can be computed: a linear Gaussian world in closed form, and MuJoCo in the closed loop.",
        (
            "guidance/oracle",
            "guidance/guidance_error",
            "guidance/guidance_error_causal",
            "guidance/unsettled_actions",
            "guidance/gradient_study",
        ),
    ),
    Section(
        "Killed runs",
        "",
        "A run that is killed loses what followed its last checkpoint, and ends with the bits of one that was not.",
        ("killed_runs",),
    ),
)

PUBLISHED = "published_curves/v4.csv"
CURVES = {
    "Hopper": (
        "hopper_long",
        "hopper_a2c_options",
        "hopper",
        "hopper_model_free",
        "hopper_dreamer",
        "hopper_world_models",
    ),
    "Walker2d": ("walker2d_long", "walker2d_a2c_options", "walker2d_recorded", "walker2d_model_free"),
    "HalfCheetah": ("halfcheetah_long", "halfcheetah_a2c_options", "halfcheetah_recorded", "halfcheetah_model_free"),
    "InvertedPendulum": ("inverted_pendulum_value_gradient", "inverted_pendulum", "inverted_pendulum_model_free"),
}
"""Experiments of ``results/learning_curves`` by task; one that has not been run is left out."""
NAMES = {
    ("hopper_a2c_options", "PolyGRAD, A2C"): "PolyGRAD, A2C in passes",
    ("walker2d_a2c_options", "PolyGRAD, A2C"): "PolyGRAD, A2C in passes",
    ("halfcheetah_a2c_options", "PolyGRAD, A2C"): "PolyGRAD, A2C in passes",
    ("hopper", "score"): "PolyGRAD, A2C",
    ("hopper", "random_actions"): "PolyGRAD, A2C, random actions",
    ("hopper", "correlated"): "PolyGRAD, A2C, rule correlated",
    ("hopper_world_models", "ensemble"): "ensemble, A2C",
    ("hopper_world_models", "simulator"): "MuJoCo itself, A2C",
    ("walker2d_recorded", "score"): "PolyGRAD, A2C",
    ("halfcheetah_recorded", "score"): "PolyGRAD, A2C",
    ("inverted_pendulum", "score"): "PolyGRAD, A2C",
    ("hopper_long", "PolyGRAD"): "PolyGRAD, value gradients",
    ("walker2d_long", "PolyGRAD"): "PolyGRAD, value gradients",
    ("halfcheetah_long", "PolyGRAD"): "PolyGRAD, value gradients",
    ("inverted_pendulum_value_gradient", "PolyGRAD"): "PolyGRAD, value gradients",
}
"""What a setting of an experiment is called in the report; others keep their names."""
