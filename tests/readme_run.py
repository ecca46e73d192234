"""The README's example, run once: its training is what the tests of the loop and of looking at a run look at."""

import contextlib
import fcntl
import io
import pickle
import runpy
from pathlib import Path
from typing import Any, NamedTuple

import jax
import pytest

import polygrad_jax
from polygrad_jax.config import Config, override, preset
from polygrad_jax.training import loop

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
}
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
        left = shared / "left.pickle"
        if not left.exists():
            left.write_bytes(pickle.dumps(_run(shared)))
        return pickle.loads(left.read_bytes())


def _run(shared: Path) -> ReadmeRun:
    traced, said, make_steps = [], io.StringIO(), loop.make_steps
    config = override(preset("smoke", "hopper"), SHORTER)

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
    kept = {name: jax.device_get(names[name]) for name in ("result", "imagined", "mean", "std")}
    return ReadmeRun(shared / "runs" / "library", config, kept, said.getvalue(), traced)
