"""``docs/metrics.md``: a line for every name that is logged, none for a name that is not, and the right loggers."""

import dataclasses
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_metrics_log import read_events

from polygrad_jax import config as configs
from polygrad_jax.agents.agent_table import AGENTS, make_agent
from polygrad_jax.config import A2CConfig, Config, EnvSpec
from polygrad_jax.envs.episodes import EpisodeResults
from polygrad_jax.runs.metrics_log import MetricsLog
from polygrad_jax.training.collecting import empty_chunk
from polygrad_jax.training.evaluating import evaluation_row
from polygrad_jax.training.fitting import Progressing
from polygrad_jax.training.loop import HISTOGRAMS
from polygrad_jax.training.step import make_steps
from polygrad_jax.training.train_state import Clock
from polygrad_jax.types import Agent, Metrics
from polygrad_jax.world_models.model_table import SIMULATOR, WORLD_MODELS, make_world_model_for_agent

ROOT = Path(__file__).parents[2]
PENDULUM = EnvSpec(4, 1)
PAIRS = [
    *((model, "a2c") for model in (*WORLD_MODELS, SIMULATOR)),
    ("polygrad", "value_gradient"),
    ("dreamer", "dreamer"),
]
WITH_PASSES = {"a2c.search": False, "a2c.learning_rates": "constant", "a2c.minibatches": 2, "a2c.clip_ratio": 0.2}
OF_THE_HOST = ("error", "env_steps", "memory", "fit", "replay")


def page() -> dict[str, str]:
    """Every name of the page with who logs it."""
    rows = re.findall(r"^\| `(\S+)` \|(.*)\|$", (ROOT / "docs" / "metrics.md").read_text(), flags=re.MULTILINE)
    assert len(rows) == len(dict(rows)), "a name has two lines"
    cells = {name: [cell.strip() for cell in line.split("|")] for name, line in rows}
    assert all(len(cell) == 3 and all(cell) for cell in cells.values())
    return {name: cell[-1] for name, cell in cells.items()}


_LOGGED_BY_A2C: dict[A2CConfig, Metrics] = {}


def traced_once(agent: Agent, config: Config) -> Agent:
    """A2C whose update only logs, as that of equal settings did before: the world model is nothing to it."""
    if config.agent != "a2c":
        return agent

    def update(state, *given):
        if config.a2c in _LOGGED_BY_A2C:
            return state, jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), _LOGGED_BY_A2C[config.a2c])
        state, metrics = agent.update(state, *given)
        _LOGGED_BY_A2C[config.a2c] = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), metrics)
        return state, metrics

    return agent._replace(update=update)


def on_the_device(world_model: str, agent: str, fields: dict | None = None) -> set[str]:
    """The names that one training step logs; nothing is computed."""
    config = configs.override(
        configs.preset("smoke", "inverted_pendulum"),
        {"world_model": world_model, "agent": agent, "diffusion.terminals": "classified"} | (fields or {}),
    )
    model = make_world_model_for_agent(config, PENDULUM)
    steps = make_steps(config, PENDULUM, model, traced_once(make_agent(config, PENDULUM, model), config))
    chunk = empty_chunk(config.loop.env_steps_per_policy_update, PENDULUM)
    _, output = jax.eval_shape(steps.learn, jax.eval_shape(steps.init), chunk)
    assert set(output.metrics.counts) <= set(HISTOGRAMS)
    return {*output.metrics.names, *(HISTOGRAMS[name][0] for name in output.metrics.counts)}


@pytest.fixture(scope="module")
def logged() -> dict[tuple[str, str], set[str]]:
    names = {pair: on_the_device(*pair) for pair in PAIRS}
    names[SIMULATOR, "a2c"] |= on_the_device(SIMULATOR, "a2c", WITH_PASSES)
    return names


def of_the_host() -> set[str]:
    """The names that the loop and ``polygrad fit`` add."""
    sources = [*(ROOT / "polygrad_jax" / "training").glob("*.py"), ROOT / "polygrad_jax/envs/prediction_error.py"]
    written = re.compile(rf'"((?:{"|".join(OF_THE_HOST)})/[a-z_]+)"')
    names = {name for source in sources for name in written.findall(source.read_text())}
    names |= {"error/observation_mse_NNN"}
    names |= {f"seconds/{field.name}" for field in dataclasses.fields(Clock)}
    names |= {f"seconds/{f.name.removesuffix('_seconds')}" for f in dataclasses.fields(Progressing) if "_sec" in f.name}
    names |= {f"episode/{name}" for name in ("return", "length", "distance")}
    evaluated = evaluation_row(EpisodeResults(np.ones(2), np.ones(2), np.ones(2)))
    return names | {f"evaluation/{name}" for name in (*evaluated, "five_step_error", "reward_mse", "training_seconds")}


def test_every_name_has_a_line_and_every_line_a_name(logged):
    names = of_the_host().union(*logged.values())
    assert names - page().keys() == set(), "docs/metrics.md lacks a line"
    assert page().keys() - names == set(), "docs/metrics.md has a line for a name that nothing logs"


def test_the_last_column_says_who_logs_it(logged):
    learning = set(WORLD_MODELS)
    for name, by in page().items():
        room = name.split("/")[0]
        if room in ("world_model", "guidance") or name.startswith(("imagination/dis", "imagination/pre")):
            expected = {model for (model, agent), names in logged.items() if name in names and agent == "a2c"}
            said = learning if by == "every model" else set(by.split(", "))
        elif room in ("agent", "imagination"):
            expected = {agent for (_, agent), names in logged.items() if name in names}
            said = set(AGENTS) if by == "every agent" else set(by.split(", "))
        else:
            continue
        assert said == expected, name


def test_no_two_names_become_one_curve(tmp_path):
    """TensorBoard's writers replace every other character by ``_``, so that names that differ in brackets only are one.

    Also as they are read back: every tag has its own number, of a scalar or of an evaluation.
    """
    names = [name.replace("NNN", f"{h:03d}") for name in page() for h in (range(1, 10) if "NNN" in name else (1,))]
    tags = [f"{name} {axis}" for name in names for axis in ("[x: env steps]", "[x: updates]")]
    assert all(re.fullmatch(r"[a-z_]+/[a-z0-9_]+", name) for name in names)
    assert len({re.sub(r"[^-/\w.]", "_", tag).casefold() for tag in tags}) == len(tags)
    log = MetricsLog(tmp_path)
    evaluated = [name.removeprefix("evaluation/") for name in names if name.startswith("evaluation/")]
    numbers = {name: float(k) for k, name in enumerate(names) if not name.startswith("evaluation/")}
    log.write(3, numbers)
    log.write_evaluation(3, {name: 1000.0 + k for k, name in enumerate(evaluated)})
    log.close()
    numbers |= {f"evaluation/{name}": 1000.0 + k for k, name in enumerate(evaluated)}
    reader = read_events(tmp_path)
    read = {tag: [event.value for event in reader.Scalars(tag)] for tag in reader.Tags()["scalars"]}
    assert read == {f"{name} [x: env steps]": [value] for name, value in numbers.items()}
