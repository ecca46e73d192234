"""Tasks whose next state does not follow from the last observation: who predicts with the velocities hidden?

    python experiments/world_models/partial_observation.py --dataset runs/hopper-115k/score-seed0 --seconds 600 \\
        --seeds 0 1 2 --jobs 2 --threads 1 --out results/world_models/partial_observation
    python experiments/world_models/partial_observation.py --out results/world_models/partial_observation --figure-only

The paper's other open question. The observations of a recorded run are cut before the velocities; every model learns
from the rest for the same seconds. Varied: PolyGRAD diffuses trajectories that begin with the last 1 (the paper's), 2
or 4 observed states and the actions between them; the transformer sees up to 15, Dreamer-v3 five before it predicts.
All are shown actions as they are executed. What is measured, in what is seen, and the columns of
``partial_observation.csv``: ``experiments/harness/study.py``.

The run's policy reads velocities too. All models imagine under another policy of the same kind: the mean action
regressed on what is seen, the std as it was (``regressed``; what it explains of the variance of the run's mean actions
is the column ``policy_explained``).
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from experiments.harness import in_venv  # noqa: F401  first of all: it continues in the clone's .venv

# isort: split
import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.harness import grid, statistics
from experiments.harness.study import Fields, Study, run
from experiments.world_models.compared_models import EXECUTED, SCORE
from experiments.world_models.compared_models import MODELS as COMPARED
from experiments.world_models.prediction_error import draw
from polygrad_jax.agents import a2c
from polygrad_jax.config import ConfigError
from polygrad_jax.envs import tasks
from polygrad_jax.runs.recorded_data import RecordedData, open_data
from polygrad_jax.types import Array, Params

MODELS: dict[str, Fields] = {
    f"PolyGRAD, {states} state{'s' * (states > 1)}": (
        *(*COMPARED["PolyGRAD MLP"], *EXECUTED),
        *("--denoiser.context-length", str(states)),
    )
    for states in (1, 2, 4)
} | {name: COMPARED[name] for name in ("transformer", "Dreamer-v3")}
COLOURS = {
    ("PolyGRAD, 1 state", "score"): "#56B4E9",
    ("PolyGRAD, 2 states", "score"): "#0072B2",
    ("PolyGRAD, 4 states", "score"): "#004060",
    ("transformer", ""): "#009E73",
    ("Dreamer-v3", ""): "#E69F00",
}
FIRST, STEPS = "PolyGRAD, 1 state", (1, 2, 5, 9)
REGRESSION_UPDATES, REGRESSION_BATCH, REGRESSION_LEARNING_RATE = 5_000, 256, 1e-3


def regressed(data: RecordedData, shown: int) -> tuple[Params, float]:
    """Return ``(actor, share)``: the data's policy from the first ``shown`` observations only, and what it explains.

    The actor has the least squared error of the mean action, over the data's own states; the std is the policy's.
    """
    assert data.collector is not None and data.actor is not None  # hidden() asks first
    config, precision = data.collector.a2c, data.collector.precision
    raw_obs = jnp.asarray(data.transitions.observations)
    whole = a2c.make_policy_apply(data.spec, config, precision)
    part_spec = dataclasses.replace(data.spec, observation_size=shown)
    part = a2c.make_policy_apply(part_spec, config, precision)
    wanted = jax.jit(whole)(data.actor, raw_obs)[0]
    actor = a2c.init(jax.random.key(0), part_spec, config).actor | {"log_std": jnp.asarray(data.actor["log_std"])}
    adam = optax.adam(optax.cosine_decay_schedule(REGRESSION_LEARNING_RATE, REGRESSION_UPDATES))

    def loss(network: Params, rows: Array) -> Array:
        mean, _ = part(actor | {"network": network}, raw_obs[rows, :shown])
        return jnp.square(mean - wanted[rows]).mean()

    def update(carry: tuple[Params, optax.OptState], key: Array) -> tuple[tuple[Params, optax.OptState], None]:
        network, state = carry
        rows = jax.random.randint(key, (REGRESSION_BATCH,), 0, raw_obs.shape[0])
        gradients = jax.grad(loss)(network, rows)
        with jax.numpy_dtype_promotion("standard"):  # optax mixes dtypes, which our tests forbid
            updates, state = adam.update(gradients, state)
        return (optax.apply_updates(network, updates), state), None

    keys = jax.random.split(jax.random.key(1), REGRESSION_UPDATES)
    start = (actor["network"], adam.init(actor["network"]))
    (network, _), _ = jax.jit(lambda start, keys: jax.lax.scan(update, start, keys))(start, keys)
    learnt = actor | {"network": network}
    left = np.square(np.asarray(jax.jit(part)(learnt, raw_obs[:, :shown])[0] - wanted)).mean()
    return learnt, float(1.0 - left / np.asarray(wanted).var(0).mean())


@functools.cache
def hidden(where: str) -> tuple[RecordedData, float]:
    """Return the dataset with its velocities hidden, and a policy that does without them, with what that explains.

    Raises:
      ConfigError: see ``open_data``; or the data are of no named task, lack a policy of A2C, or hide their
        velocities already.
    """
    data = open_data(where)
    if (reason := data.why_not_judged()) is not None:
        raise ConfigError(f"dataset {where}: {reason}; allowed: the folder of a run on a MuJoCo task")
    assert data.env is not None and data.collector is not None
    if data.collector.agent != "a2c":  # whose network is regressed anew
        raise ConfigError(f"dataset {where} is of agent {data.collector.agent}; allowed: a2c")
    if data.env.hide_velocities:
        raise ConfigError(f"dataset {where} hides its velocities already; allowed: one that has them")
    task = dataclasses.replace(data.env, hide_velocities=True)
    env = tasks.make(task)
    shown = tasks.spec_of(env).observation_size
    env.close()
    actor, share = regressed(data, shown)
    data = dataclasses.replace(
        data,
        transitions=dataclasses.replace(data.transitions, observations=data.transitions.observations[:, :shown]),
        env=task,
        collector=dataclasses.replace(data.collector, env=task),
        actor=actor,
    )
    return data, share


def compared() -> list[statistics.Pair]:
    """Return the ratios of the table: over the paper's PolyGRAD, and of PolyGRAD with a history over the others."""
    with_history = [model for model in MODELS if model.startswith("PolyGRAD") and model != FIRST]
    pairs = [(model, FIRST) for model in MODELS if model != FIRST]
    pairs += [(model, other) for other in ("transformer", "Dreamer-v3") for model in with_history]
    return [(f"{model} / {other}", {"model": model}, {"model": other}) for model, other in pairs]


def draw_and_compare(out: Path) -> None:
    """Draw ``partial_observation.png`` and print the ratios."""
    name = Path(__file__).stem
    draw(out, name, COLOURS)
    print(statistics.tables(grid.read_csv(out / f"{name}.csv"), compared(), STEPS))


if __name__ == "__main__":
    own = {"prepare": lambda where: hidden(where)[0], "columns": lambda where: {"policy_explained": hidden(where)[1]}}
    sys.exit(run(Study(Path(__file__), __doc__, MODELS, SCORE, draw_and_compare, **own)))
