"""What a folder holds, read without knowing what learns."""

import json
import shutil

import numpy as np
import pytest
from recorded import record

from polygrad_jax import config as configs
from polygrad_jax.config import ConfigError
from polygrad_jax.runs import run_folder
from polygrad_jax.runs.checkpoints import Checkpoints, export_npz, flatten_named
from polygrad_jax.runs.metrics_log import MetricsLog
from polygrad_jax.runs.run_folder import RunFolder
from polygrad_jax.runs.saved_run import read_evaluations, read_saved


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return record(tmp_path_factory.mktemp("runs") / "pendulum")


def test_the_arrays_of_a_checkpoint_come_in_three_parts_by_name(folder):
    run = read_saved(folder)
    stored = Checkpoints(folder / "checkpoints", read_only=True)
    checkpoint = stored.read(stored.steps()[-1])
    stored.close()
    assert run.env_steps == checkpoint.step == len(run.transitions)
    assert set(run.arrays) == {"agent", "world_model", "moments"}
    parts = {"agent": "agent", "world_model": "world_model", "moments": "replay/moments"}
    for part, where in parts.items():
        named = flatten_named(run.arrays[part])
        assert named
        for name, array in named.items():
            np.testing.assert_array_equal(array, checkpoint.arrays[f"train_state/{where}/{name}"])


def test_a_world_model_alone_and_a_best_evaluation(tmp_path):
    (tmp_path / "config.json").write_text(configs.to_json(configs.smoke("hopper")))
    kept = Checkpoints(tmp_path / "checkpoints")
    kept.save(7, {"world_model": {"a": np.arange(3.0)}}, {})
    kept.close()
    run = read_saved(tmp_path)
    assert run.env_steps == 7 and list(run.arrays) == ["world_model"]
    np.testing.assert_array_equal(run.arrays["world_model"]["a"], np.arange(3.0))

    export_npz(tmp_path / "best.npz", {"actor": {"w": np.ones(2)}, "moments": {"m": np.zeros(1)}, "env_steps": 9})
    best = read_saved(tmp_path, "best")  # as format version 1 wrote it
    assert best.env_steps == 9 and set(best.arrays) == {"agent", "moments", "world_model"}
    np.testing.assert_array_equal(best.arrays["agent"]["actor"]["w"], np.ones(2))


@pytest.mark.parametrize("judged", ["return_mean", "five_step_error"])
def test_a_best_evaluation_that_is_not_finite_is_refused(tmp_path, judged):
    """Earlier versions kept the first evaluation whatever it was. The newest checkpoint is not concerned."""
    (tmp_path / "config.json").write_text(configs.to_json(configs.smoke("hopper")))
    log = MetricsLog(tmp_path, say=lambda line: None)
    for step, value in ((9, float("nan")), (20, 1.0)):
        log.write_evaluation(step, {judged: value, "length_mean": 3.0})
    log.close()
    for step, good in ((9, False), (20, True), (30, True)):  # 30: its row is gone
        export_npz(tmp_path / "best.npz", {"moments": {"m": np.zeros(1)}, "env_steps": step})
        if good:
            assert read_saved(tmp_path, "best").env_steps == step
        else:
            with pytest.raises(ConfigError, match=f"best.npz is of step 9, whose {judged} is not finite; allowed"):
                _ = read_saved(tmp_path, "best").arrays


def test_evaluations_and_rows_are_columns_and_todays_names(tmp_path):
    (tmp_path / "config.json").write_text(configs.to_json(configs.smoke("hopper")))
    log = MetricsLog(tmp_path)
    for step, value in ((10, 1.5), (20, float("nan"))):
        log.write(step, {"denoiser/loss": value, "policy/entropy": 2.0, "gradients/actor_norm": 4.0})
        log.write_evaluation(step, {"return_mean": value})
    log.close()
    run = read_saved(tmp_path)
    np.testing.assert_array_equal(run.evaluations["return_mean"], [1.5, np.nan])
    assert run.rows[0] == {
        "env_steps": 10, "world_model/loss": 1.5, "agent/entropy": 2.0, "agent/actor_gradient_norm": 4.0
    }  # fmt: skip
    assert read_evaluations(tmp_path / "none") == {}


def test_what_is_missing_is_one_line(tmp_path):
    with pytest.raises(ConfigError, match="has no config.json"):
        read_saved(tmp_path)
    (tmp_path / "config.json").write_text(configs.to_json(configs.smoke("hopper")))
    with pytest.raises(ConfigError, match="which is worst; allowed: newest, best"):
        read_saved(tmp_path, "worst")
    for which, words in (("newest", "has no checkpoint yet"), ("best", "has no best.npz yet")):
        with pytest.raises(ConfigError, match=words):
            _ = read_saved(tmp_path, which).arrays
    with pytest.raises(ConfigError, match="metrics.jsonl does not exist"):
        _ = read_saved(tmp_path).rows
    with pytest.raises(ConfigError, match="replay holds no transitions; allowed: the folder of a run with its replay"):
        _ = read_saved(tmp_path).transitions
    assert [p.name for p in tmp_path.iterdir()] == ["config.json"]


@pytest.mark.parametrize("version", [1, 4])
def test_resuming_another_format_version_is_refused_before_anything_is_loaded(folder, tmp_path, version):
    old = tmp_path / "old"
    shutil.copytree(folder, old)
    config, environment = read_saved(old).config, RunFolder(old).saved_environment()
    assert RunFolder(old).check(config, environment) == []
    host = old / "checkpoints" / str(RunFolder(old).newest_step()) / "host" / "metadata"
    host.write_text(json.dumps(json.loads(host.read_text()) | {"format_version": version}))
    with pytest.raises(ConfigError, match=f"has format version {version}") as refused:
        RunFolder(old).check(config, environment)
    assert ("polygrad evaluate" in str(refused.value)) == (version in run_folder.LOOKED_AT_VERSIONS)
    assert "\n" not in str(refused.value)
