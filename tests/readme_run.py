"""The README's example, run once: its training is what the tests of the loop and of looking at a run look at."""

import contextlib
import dataclasses
import fcntl
import io
import json
import runpy
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

import polygrad_jax
from polygrad_jax.config import Config, override, preset
from polygrad_jax.training import loop
from polygrad_jax.types import Segment

EXAMPLE = Path(__file__).parent / "readme_examples" / "library.py"
SHORTER = {
    "diffusion.num_steps": 4,
    "diffusion.sampling_steps": 4,
    "denoiser.width": 32,
    "denoiser.num_blocks": 1,
    "model_training.batch_size": 16,
    "model_training.warmup_env_steps": 50,
    "a2c.trajectories": 8,
    "a2c.hidden_size": 16,
    "loop.total_env_steps": 1_300,
    "loop.prefill_env_steps": 600,
    "loop.replay_capacity": 1_000,  # the oldest transitions are no longer drawn
    "loop.eval_every_env_steps": 300,
    "loop.checkpoint_every_env_steps": 300,
    "loop.error_trajectories": 4,
    "loop.film_checkpoints": True,
}
TOLD, ARRAYS, IMAGINED = "told.json", "arrays.npz", "imagined_"
"""Files of what the example left, and how the names of a segment's arrays begin."""
TRACED_ONCE = ("improve_policy", "improve_model", "finish", "learn", "report_warmup", "finite")


class ReadmeRun(NamedTuple):
    """What the example left."""

    folder: Path
    config: Config
    names: dict[str, Any]  # result, imagined, mean, std
    said: str
    traced: list[str]  # the loop's functions, as often as each was traced


def readme_run(shared: Path) -> ReadmeRun:
    """Run the example in ``shared``, or read what it left there: workers of one session train once."""
    shared.mkdir(exist_ok=True)
    with open(shared / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (shared / TOLD).exists():
            _run(shared)
    told = json.loads((shared / TOLD).read_text())
    with np.load(shared / ARRAYS) as arrays:
        segment = {name.removeprefix(IMAGINED): arrays[name] for name in arrays if name.startswith(IMAGINED)}
        names = {"imagined": Segment(**segment), "mean": arrays["mean"], "std": arrays["std"]}
    result = loop.Result(**told["result"] | {"folder": Path(told["result"]["folder"])})
    folder = shared / "runs" / "library"
    return ReadmeRun(folder, _config(), names | {"result": result}, told["said"], told["traced"])


def _config() -> Config:
    return override(preset("smoke", "hopper"), SHORTER)


def _run(shared: Path) -> None:
    """Run the example and write down what it left."""
    traced, said, make_steps = [], io.StringIO(), loop.make_steps
    config = _config()

    def counted(name, function):
        def counting(*given):
            traced.append(name)
            return function(*given)

        return counting

    def counting(*given):
        made = make_steps(*given)
        return made._replace(**{name: counted(name, getattr(made, name)) for name in TRACED_ONCE})

    with contextlib.chdir(shared), contextlib.redirect_stdout(said), pytest.MonkeyPatch.context() as patch:
        patch.setattr(polygrad_jax, "preset", lambda name, env: config, raising=False)
        patch.setattr(loop, "make_steps", counting)
        names = runpy.run_path(str(EXAMPLE))
    imagined = {f"{IMAGINED}{name}": value for name, value in vars(names["imagined"]).items() if value is not None}
    np.savez(shared / ARRAYS, mean=names["mean"], std=names["std"], **imagined)
    result = dataclasses.asdict(names["result"]) | {"folder": str(names["result"].folder)}
    (shared / TOLD).write_text(json.dumps({"result": result, "said": said.getvalue(), "traced": traced}))
