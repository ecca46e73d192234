"""Several seeds as one program: each is the run it would be alone, and a session that was killed goes on as one."""

import dataclasses
import json

import jax
import numpy as np
import pytest
import tiny
from test_resume import assert_same_run, newest_arrays, records

from polygrad_jax.agents.agent_table import make_agent
from polygrad_jax.config import ConfigError
from polygrad_jax.runs.checkpoints import Checkpoints
from polygrad_jax.runs.seed_folders import check_folder_of_seeds, seeds_in
from polygrad_jax.training import loop
from polygrad_jax.training.collecting import empty_chunk
from polygrad_jax.training.loop import NonFiniteError, train, train_seeds
from polygrad_jax.training.seeds import of_each_seed, over_seeds, resumed_together, stacked
from polygrad_jax.training.step import make_steps
from polygrad_jax.world_models.model_table import make_world_model_for_agent

pytestmark = pytest.mark.slow

SEEDS = [3, 0, 7]
LOOP = {"prefill_env_steps": 60, "total_env_steps": 200, "env_steps_per_policy_update": 4, "replay_capacity": 1_000}
EVERY = {"eval_every_env_steps": 80, "log_every_env_steps": 40, "checkpoint_every_env_steps": 40, "eval_episodes": 2}


def small(**fields):
    named = {f"loop.{name}": value for name, value in (LOOP | EVERY).items()}
    return tiny.config_of("polygrad", fields=named | {"model_training.warmup_env_steps": 20} | fields)


@pytest.fixture(scope="module")
def together(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "together"
    return train_seeds(small(), SEEDS, folder), folder


def test_each_seed_is_the_run_alone(together, tmp_path):
    """Within rounding: a vectorised gradient or Adam step may differ in its last bit."""
    results, folder = together
    assert [result.folder for result in results] == [folder / f"seed{seed}" for seed in SEEDS]
    assert all(200 <= result.env_steps < 204 and result.stopped_by is None for result in results)
    alone = train(dataclasses.replace(small(), seed=0), tmp_path / "alone")
    assert alone.env_steps == results[1].env_steps
    (_, arrays, host), (_, arrays_alone, host_alone) = map(newest_arrays, (folder / "seed0", tmp_path / "alone"))
    assert arrays.keys() == arrays_alone.keys()
    for name, value in arrays.items():
        np.testing.assert_allclose(value, arrays_alone[name], rtol=2e-3, atol=2e-4, err_msg=name)
    assert host["config"] == host_alone["config"]
    (metrics, evaluations), (metrics_alone, evaluations_alone) = map(records, (folder / "seed0", tmp_path / "alone"))
    assert [row["env_steps"] for row in metrics] == [row["env_steps"] for row in metrics_alone]
    assert [row.keys() for row in metrics] == [row.keys() for row in metrics_alone]
    for line, line_alone in zip(evaluations.splitlines(), evaluations_alone.splitlines(), strict=True):
        assert line.split(",")[0] == line_alone.split(",")[0]


def test_a_finished_run_can_be_extended_from_where_the_first_seed_ended(together):
    """A folder keeps two checkpoints: its end, and the last moment that all seeds were saved at."""
    results, folder = together
    saved, ends = [], []
    for seed in SEEDS:
        hosts = Checkpoints(folder / f"seed{seed}" / "checkpoints").hosts()
        saved.append({steps - host["counters"]["prefill_env_steps"]: steps for steps, host in hosts.items()})
        ends.append(max(saved[-1]))
    assert len(set(ends)) > 1
    moments = resumed_together([result.folder for result in results], saved, [False] * 3)
    assert [min(ends) in steps for steps in saved] == [True] * 3
    assert moments == [steps[min(ends)] for steps in saved]


def test_copies_that_disturb_each_other_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "why_not_side_by_side", lambda env: "rewards differ at step 3 while a copy is stepped")
    with pytest.raises(ConfigError, match="rewards differ at step 3 .*and there are 2 seeds; allowed: one"):
        train_seeds(small(), [0, 1], tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_a_seed_that_goes_on_alone_is_told_that_sums_are_rounded_otherwise(together, capsys):
    _, folder = together
    config = dataclasses.replace(small(), seed=0)
    assert json.loads((folder / "seed0" / "environment.json").read_text())["seeds_together"] == 3
    loop.begin(config, folder / "seed0").close()
    assert "seeds_together: 3 -> 1" in capsys.readouterr().err


def test_seeds_differ(together):
    _, folder = together
    first, second = (newest_arrays(folder / f"seed{seed}")[1] for seed in SEEDS[:2])
    assert not np.array_equal(first["train_state/root_key"], second["train_state/root_key"])
    different = [name for name in first if not np.array_equal(first[name], second[name])]
    assert len(different) > len(first) / 2


def test_killed_while_some_have_saved_goes_on_bit_for_bit(together, tmp_path, monkeypatch):
    """One folder has a checkpoint more than the others: all go back to the moment of which all have one."""
    _, whole = together
    folder, save, saves = tmp_path / "killed", loop.save, []

    def save_until_killed(run, state):
        if len(saves) == 3 + 3 + 1:  # of the prefill, of the next moment, and the first of three
            raise KeyboardInterrupt
        saves.append(run.folder.name)
        save(run, state)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(loop, "save", save_until_killed)
        train_seeds(small(), SEEDS, folder)
    assert saves == [f"seed{seed}" for seed in [*SEEDS, *SEEDS, SEEDS[0]]]
    train_seeds(small(), SEEDS, folder)
    for seed in SEEDS:
        assert_same_run(whole / f"seed{seed}", folder / f"seed{seed}")


def test_a_seed_that_diverges_stops_all_and_the_others_are_saved(tmp_path, monkeypatch):
    iterations = []

    def spoilt(tree, seeds):
        parts = of_each_seed(tree, seeds)
        if hasattr(parts[1], "finite") and iterations.append(1) is None and len(iterations) == 15:
            parts[1] = parts[1].replace(finite=np.array([True, False, True]))
        return parts

    with monkeypatch.context() as patch, pytest.raises(NonFiniteError) as error:
        patch.setattr(loop, "of_each_seed", spoilt)
        train_seeds(small(**{"loop.log_every_env_steps": 4}), SEEDS, tmp_path)
    assert "imagined trajectory" in str(error.value) and str(tmp_path / "seed0") in str(error.value)
    assert "saved at this step: seed3, seed7; each can go on alone" in str(error.value)
    steps = [Checkpoints(tmp_path / f"seed{seed}" / "checkpoints").steps()[-1] for seed in SEEDS]
    hosts = [newest_arrays(tmp_path / f"seed{seed}")[2]["counters"] for seed in SEEDS]
    learning = [step - host["prefill_env_steps"] for step, host in zip(steps, hosts, strict=True)]
    assert learning[0] == learning[2] == 15 * 4 > learning[1]
    # What is due at that step is done: on the way on from the checkpoint it would be due no more.
    rows = [records(tmp_path / f"seed{seed}")[0] for seed in SEEDS]
    assert [rows[k][-1]["env_steps"] for k in (0, 2)] == [steps[0], steps[2]]
    assert all("agent/actor_loss" in rows[k][-1] for k in (0, 2))


def test_what_cannot_learn_together_is_refused_before_anything_is_written(tmp_path):
    for seeds in ([], [1, 1]):
        with pytest.raises(ConfigError, match="allowed: one or more, each once"):
            train_seeds(small(), seeds, tmp_path / "new")
    with pytest.raises(ConfigError, match="world_model is simulator, and there are 2 seeds; allowed: one"):
        train_seeds(tiny.config_of("simulator"), [0, 1], tmp_path / "new")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("saved", "over", "resumed"),
    [
        ([{0: 60, 40: 100}, {0: 75, 40: 115}], [False, False], [100, 115]),
        ([{40: 100, 80: 140}, {0: 75, 40: 115}], [False, False], [100, 115]),  # killed between two saves
        ([{0: 60}, {}], [False, False], [60, None]),  # killed between the first two saves
        ([{}, {}], [False, False], [None, None]),
        ([{100: 160, 140: 200}, {80: 155, 100: 175}, {80: 148}], [True, False, False], [200, 155, 148]),
        ([{140: 200}, {125: 200}], [True, True], [200, 200]),
        ([{140: 200}, {80: 155, 100: 175}], [True, False], [200, 175]),
    ],
)  # fmt: skip
def test_all_resume_where_they_were_at_one_moment(tmp_path, saved, over, resumed):
    folders = [tmp_path / f"seed{seed}" for seed in range(len(saved))]
    assert resumed_together(folders, saved, over) == resumed


@pytest.mark.parametrize("saved", [[{40: 100}, {80: 155}], [{40: 100}, {}]])
def test_seeds_without_a_common_moment_are_refused(tmp_path, saved):
    with pytest.raises(ConfigError, match="not at one moment"):
        resumed_together([tmp_path / "seed0", tmp_path / "seed1"], saved, [False, False])


def test_an_axis_is_added_for_several_seeds_only():
    trees = [{"a": np.arange(2), "b": jax.numpy.float32(seed)} for seed in range(3)]
    assert stacked(trees[:1]) is trees[0]
    both = stacked(trees)
    assert isinstance(both["a"], np.ndarray) and both["a"].shape == (3, 2) and both["b"].shape == (3,)
    parts = of_each_seed(both, 3)
    assert [float(part["b"]) for part in parts] == [0.0, 1.0, 2.0]
    assert of_each_seed(trees[0], 1)[0] is trees[0]
    steps = object()
    assert over_seeds(steps, 1) is steps


def test_a_folder_of_several_seeds(together, tmp_path):
    _, folder = together
    assert seeds_in(folder) == sorted(SEEDS)
    assert seeds_in(folder / "seed0") == [] and seeds_in(tmp_path / "absent") == []
    check_folder_of_seeds(folder, [0, 1])
    check_folder_of_seeds(tmp_path, [0, 1])
    with pytest.raises(ConfigError, match="holds one run, and 2 seeds are asked for"):
        check_folder_of_seeds(folder / "seed0", [0, 1])
    (tmp_path / "seed01").mkdir()
    (tmp_path / "seed4294967296").mkdir()
    with pytest.raises(ConfigError, match="holds seed01; allowed: a folder that is new, empty or of several seeds"):
        check_folder_of_seeds(tmp_path, [0, 1])
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="is a file; allowed"):
        check_folder_of_seeds(tmp_path / "file", [0, 1])


@pytest.mark.parametrize(("world_model", "agent"), [("polygrad", "value_gradient")])
def test_other_agents_and_models_learn_for_several_seeds(world_model, agent):
    config = tiny.config_of(world_model, agent, tiny.SHORT_PATH)
    model = make_world_model_for_agent(config, tiny.SPEC)
    steps = make_steps(config, tiny.SPEC, model, make_agent(config, tiny.SPEC, model))
    chunk = empty_chunk(4, tiny.SPEC)
    states = [jax.jit(steps.init)(seed).replace(replay=tiny.replay_for(model.window or tiny.H)) for seed in (0, 1)]
    learn, learn_both = jax.jit(steps.learn), jax.jit(over_seeds(steps, 2).learn)
    apart, both = stacked([learn(state, chunk) for state in states]), learn_both(stacked(states), stacked([chunk] * 2))
    for one, of_both in zip(jax.tree.leaves(apart), jax.tree.leaves(both), strict=True):
        np.testing.assert_allclose(of_both, one, rtol=2e-3, atol=2e-4)
