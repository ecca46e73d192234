"""The official PyTorch sampler at our sizes, run on demand: a child process of ``rollout_speed.py --against-official``.

Imports the official repository (marc-rigter/polygrad-world-models) from a clone; nothing of it is here. Needs
torch and einops. Modules of the official code that sampling never enters, and what only they need (wandb, gym, dill,
...), are replaced by empty ones.
"""

from __future__ import annotations

import sys
import types
from typing import Any

import official_worker


def import_official(clone: str) -> tuple[Any, ...]:
    """``(models, ActorCritic)`` from the clone."""
    sys.path.insert(0, clone)

    def empty(name: str, **names: Any) -> types.ModuleType:
        module = types.ModuleType(name)
        module.__dict__.update(names)
        sys.modules[name] = module
        return module

    empty("polygrad.environments")  # registers tasks with gym when it is imported
    # Networks and sampler import it and leave it unused; the agent takes two names from it, for training.
    utils = empty("polygrad.utils")
    utils.training = empty("polygrad.utils.training", EMA=lambda decay: None)
    utils.evaluation = empty("polygrad.utils.evaluation", get_standardized_stats=None)
    empty("wandb")
    from polygrad import models
    from polygrad.agent.a2c import ActorCritic

    return models, ActorCritic


class Identity:
    """A normaliser with mean 0 and std 1 that does the official one's arithmetic."""

    def __init__(self, torch: Any, sizes: dict[str, int]):
        self._means = {name: torch.zeros(size) for name, size in sizes.items()}
        self._stds = {name: torch.ones(size) for name, size in sizes.items()}

    def normalize(self, x: Any, name: str) -> Any:
        return (x - self._means[name]) / self._stds[name]

    def unnormalize(self, x: Any, name: str) -> Any:
        return x * self._stds[name] + self._means[name]


def make_run(clone: str, size: dict[str, Any]) -> Any:
    """A function that samples one batch with the official code's defaults, in float32 on the CPU."""
    import torch

    models, actor_critic_type = import_official(clone)
    torch.manual_seed(0)
    torch.set_num_threads(size["cores"])
    observations, actions, horizon, batch = (size[k] for k in ("observations", "actions", "horizon", "batch"))
    shape = {"horizon": horizon, "transition_dim": observations + 2, "cond_dim": actions}
    unused = {"dim_mults": None, "attention": None}
    if size["kind"] == "mlp":
        width = {"embed_dim": size["embed_dim"], "hidden_dim": size["width"], "num_layers": size["num_blocks"]}
        network = models.ResidualMLPDenoiser(**shape, **unused, **width)
    else:
        # Its number of heads is fixed at 4.
        network = models.TransformerDenoiser(**shape, **unused, n_embd=size["token_dim"], num_layers=size["num_blocks"])
    steps = size["sampling_steps"]
    schedule = {"n_timesteps": steps, "noise_sched_tau": size["tau"], "action_condition_noise_scale": 0.0}
    choices = {"loss_type": "l2", "predict_epsilon": False}
    diffusion = models.GaussianDiffusion(network, horizon, observations, actions, **schedule, **choices).eval()
    normaliser = Identity(torch, {"observations": observations, "actions": actions})
    agent = actor_critic_type(
        observations,
        actions,
        normaliser,
        hidden_dim=size["hidden_size"],
        min_std=size["min_std"],
        init_std=size["initial_std"],
        ac_use_normed_inputs=False,
    )
    guidance = {"guidance_scale": size["delta"], "clip_std": size["clip_std"], "clip_state_change": size["state_clip"]}

    def run() -> None:
        conditions = {0: torch.randn(batch, observations)}
        diffusion(conditions, policy=agent.forward_actor, verbose=False, normalizer=normaliser, **guidance)

    return run


if __name__ == "__main__":
    official_worker.serve(make_run)
