"""The official training loop at our sizes, an iteration on demand: a child process of ``training_speed.py``.

Imports the official repository (marc-rigter/polygrad-world-models) from a clone; nothing of it is here. An iteration is
the environment steps, the policy's update and the denoiser's updates of the official script, by the official classes.
Needs torch, einops, scipy and gymnasium[mujoco]. The official tasks, which need an older MuJoCo, are replaced by those
of Gymnasium; modules that an iteration never enters, and what only they need (wandb, dill), by empty ones.
"""

from __future__ import annotations

import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import official_worker

NEVER = 10**12
"""Steps between two looks at what only the official logs show."""


def import_official(clone: str) -> types.SimpleNamespace:
    """Return the official modules that an iteration needs."""
    sys.path.insert(0, clone)

    def package(name: str, folder: str | None = None, **names: Any) -> None:
        module = types.ModuleType(name)
        module.__dict__.update(names)
        if folder:  # its modules can be imported; what the package itself does on import is left out
            module.__path__ = [str(Path(clone) / folder)]
        sys.modules[name] = module

    package("polygrad.environments")  # registers tasks with gym when it is imported
    package("polygrad.utils", "polygrad/utils")
    nothing = types.SimpleNamespace(line_series=lambda **_: None)
    package("wandb", plot=nothing)
    package("dill")
    from polygrad import datasets, models
    from polygrad.agent import a2c, diffusion_wm_agent
    from polygrad.utils import training

    return types.SimpleNamespace(
        models=models,
        dataset=datasets.OnlineSequenceDataset,
        actor_critic=a2c.ActorCritic,
        agent=diffusion_wm_agent.DiffusionWMAgent,
        trainer=training.Trainer,
        cycle=training.cycle,
    )


def random_episodes(env: Any, steps: int) -> list[dict[str, Any]]:
    """Return episodes of random actions, with the fields of the official ones."""
    import numpy as np

    episodes, made = [], 0
    while made < steps:
        state, _ = env.reset(seed=made)
        rows: list[tuple[Any, ...]] = []
        ended = False
        while not ended:
            action = env.action_space.sample()
            following, reward, terminal, truncated, _ = env.step(action)
            rows.append((state, action, following, reward, terminal))
            state, ended = following, terminal or truncated
        made += len(rows)
        names = ("observations", "actions", "next_observations", "rewards", "terminals")
        episode = {name: np.array(column) for name, column in zip(names, zip(*rows, strict=True), strict=True)}
        episodes.append(episode | {"timeouts": np.zeros(len(rows), bool), "sim_states": np.zeros(len(rows))})
    return episodes


def make_iteration(clone: str, size: dict[str, Any]) -> Callable[[], None]:
    """Return a function that makes one iteration, in float32 on the CPU."""
    import gymnasium
    import torch

    # What loads batches takes the modules replaced here, and the replay, as they are.
    torch.multiprocessing.set_start_method("fork")
    official = import_official(clone)
    torch.manual_seed(0)
    torch.set_num_threads(size["cores"])
    env = gymnasium.make(size["env"])
    env.action_space.seed(0)
    horizon = size["horizon"]
    normalised = ["observations", "actions", "rewards", "terminals"]
    how = {"normalizer": "GaussianNormalizer", "norm_keys": normalised}
    dataset = official.dataset(random_episodes(env, size["prefill"]), horizon=horizon, **how)
    network = official.models.ResidualMLPDenoiser(
        horizon=horizon,
        transition_dim=dataset.observation_dim + 2,
        cond_dim=dataset.action_dim,
        dim_mults=None,
        attention=None,
        embed_dim=size["embed_dim"],
        hidden_dim=size["width"],
        num_layers=size["num_blocks"],
    )
    schedule = {"n_timesteps": size["num_steps"], "noise_sched_tau": size["tau"], "action_condition_noise_scale": 0.0}
    choices = {"loss_type": "l2", "predict_epsilon": False}
    sizes = (horizon, dataset.observation_dim, dataset.action_dim)
    diffusion = official.models.GaussianDiffusion(network, *sizes, **schedule, **choices)
    trainer = official.trainer(
        diffusion, dataset, env, ema_decay=size["ema_decay"], train_batch_size=size["batch_size"],
        train_lr=size["learning_rate"], sample_freq=None, log_freq=NEVER,
    )  # fmt: skip
    actor_critic = official.actor_critic(
        dataset.observation_dim, dataset.action_dim, dataset.normalizer, log_interval=NEVER,
        ac_use_normed_inputs=False, normalize_adv=True, linesearch=True, **size["agent"],
    )  # fmt: skip
    agent = official.agent(
        trainer.ema_model, actor_critic, dataset, None, env, "polygrad", log_interval=NEVER, tune_guidance=True,
        **size["guidance"],
    )  # fmt: skip
    loader = torch.utils.data.DataLoader(
        dataset, batch_size=size["trajectories"], num_workers=2, shuffle=True, pin_memory=True
    )
    batches = official.cycle(loader)
    at: dict[str, Any] = {"state": env.reset(seed=0)[0], "step": 0}

    def iteration() -> None:
        for _ in range(size["env_steps"]):
            policy = actor_critic.forward_actor(torch.from_numpy(at["state"]).float(), normed_input=False)
            at["state"], _, terminal, truncated, _ = env.step(policy.sample().detach().numpy())
            if terminal or truncated:
                at["state"], _ = env.reset()
        agent.training_step(next(batches), at["step"])
        trainer.train(size["updates"], at["step"])
        at["step"] += size["env_steps"]

    iteration()
    return iteration


if __name__ == "__main__":
    official_worker.serve(make_iteration)
