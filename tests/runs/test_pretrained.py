"""Runs that come with the package: each walks, imagines, is what its card says, and is never taken for one's own."""

import json
import re
import shutil
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from experiments.learning import export_pretrained
from polygrad_jax import cli, open_pretrained, open_run
from polygrad_jax import config as configs
from polygrad_jax.analysis import reports
from polygrad_jax.config import ConfigError
from polygrad_jax.runs import pretrained
from polygrad_jax.runs.run_folder import BEST_FILE, CARD_FILE, RunFolder

# --- those that come -------------------------------------------------------------------------------------------------

WALKS = {"hopper": 2_500, "halfcheetah": 5_000, "walker2d": 2_500}
"""Returns of one whole episode; standing still has 1,000, 0 and 1,000."""


def test_some_come():
    assert {"hopper"} <= set(pretrained.names()) <= set(WALKS)


@pytest.mark.parametrize("name", pretrained.names())
def test_it_walks_as_its_card_says(name):
    run, card = open_pretrained(name), pretrained.read_card(pretrained.find(name))
    row = reports.evaluate(run, episodes=1, seed=3)
    assert row["return_mean"] > WALKS[name] and row["length_mean"] == 1_000
    assert abs(row["return_mean"] - card["return_mean"]) < 0.1 * card["return_mean"] + 4 * card["return_std"]
    assert run.env_steps == card["env_steps"] <= card["trained_env_steps"]


@pytest.mark.parametrize("name", pretrained.names())
def test_it_imagines_from_its_own_states(name):
    run = open_pretrained(name)
    assert len(run.transitions) == export_pretrained.TRANSITIONS and run.has_simulator_states
    imagined = run.imagine(run.contexts(8, jax.random.key(0)), jax.random.key(1))
    assert imagined.observations.shape == (8, run.config.horizon, run.spec.observation_size)
    assert np.isfinite(imagined.observations).all()


@pytest.mark.parametrize("name", pretrained.names())
def test_its_files_name_no_machine_and_its_command_is_its_configuration(name):
    folder = pretrained.find(name)
    card = pretrained.read_card(folder)
    texts = [path.read_text() for path in folder.glob("*.json")]
    assert len(texts) == 3 and not any(re.search(r'(?:^|[\s"=])/', text) for text in texts)  # no path from the root
    verb, *words = card["command"].split()[1:]
    options, fields = cli._train_parser().parse_known_args(words)
    assert verb == "train"
    meant = cli.build_config(options, fields, options.preset)
    assert configs.to_dict(meant) == configs.to_dict(configs.from_dict(RunFolder(folder).saved_config()))


def test_the_command_of_a_run_is_one_that_is_taken():
    """A switch was written with its value, --loop.side-by-side False, which polygrad refuses."""
    fields = {"seed": 3, "loop.side_by_side": False, "preallocate_gpu_memory": True, "a2c.gamma": 0.9}
    config = configs.override(configs.cpu("hopper"), fields)
    verb, *words = export_pretrained.command_of(SimpleNamespace(config=config)).split()[1:]
    options, left = cli._train_parser().parse_known_args(words)
    assert verb == "train" and cli.build_config(options, left, options.preset) == config


# --- one made here ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def shipped(readme_run, tmp_path_factory):
    """A folder of shipped runs in which a run of ours is ``small``."""
    folder = tmp_path_factory.mktemp("shipped")
    export_pretrained.export(open_run(readme_run.folder, "best"), folder / "small")
    return folder


@pytest.fixture
def small(shipped, tmp_path, monkeypatch):
    monkeypatch.setattr(pretrained, "SHIPPED", shipped)
    monkeypatch.chdir(tmp_path)
    return shipped / "small"


def test_an_exported_run_is_the_run(small, readme_run):
    ours, theirs = open_run(readme_run.folder, "best"), open_pretrained("small")
    for name in ("agent_state", "model_state", "normaliser"):
        jax.tree.map(np.testing.assert_array_equal, getattr(ours, name), getattr(theirs, name))
    kept = len(theirs.transitions)
    np.testing.assert_array_equal(theirs.transitions.observations, ours.transitions.observations[-kept:])
    assert "--diffusion.num-steps 4" in pretrained.read_card(small)["command"]
    with pytest.raises(ConfigError, match="small is there already"):
        export_pretrained.export(ours, small)


def test_a_verb_copies_it_once_and_shows_its_best(small, tmp_path, capsys):
    for _ in range(2):
        assert cli.main(["evaluate", "--pretrained", "small", "--episodes", "1"]) == 0
        assert "best evaluation" in capsys.readouterr().out
    folder = tmp_path / "runs" / "pretrained-small"
    assert (folder / "evaluations.csv").read_text().count("\n") == 3
    assert not (small / "evaluations.csv").exists()
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["pretrained-small"]
    assert cli.main(["evaluate", "runs/pretrained-small", "--episodes", "1"]) == 0


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["evaluate"], "RUN or --pretrained is neither; allowed: one of them"),
        (["imagine", "runs", "--pretrained", "small"], "RUN or --pretrained is runs and --pretrained small"),
        (["imagine", "--pretrained", "ant"], "pretrained is ant; allowed: small"),
        (["imagine", "--pretrained", "../small"], "pretrained is ../small; allowed: small"),
        (["evaluate", "--pretrained", "small", "--which", "newest"], "which is newest; allowed for a run that comes"),
    ],
)
def test_what_cannot_be_meant_is_one_line(small, tmp_path, capsys, words, line):
    assert cli.main(words) == 2
    said = capsys.readouterr()
    assert said.out == "" and said.err.startswith(f"polygrad: {line}") and said.err.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_it_is_not_trained_on(small, tmp_path, capsys):
    folder = pretrained.copy_to("small", tmp_path / "mine")
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert cli.main(["train", "--run", str(folder)]) == 2
    assert "came with the package (card.json) and is not trained on" in capsys.readouterr().err
    assert before == {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_copy_of_a_read_only_installation_can_be_written_to(small, tmp_path, monkeypatch):
    shutil.copytree(small, tmp_path / "shipped" / "small")
    monkeypatch.setattr(pretrained, "SHIPPED", tmp_path / "shipped")
    inside = list((tmp_path / "shipped").rglob("*"))
    for path in inside:
        path.chmod(0o555 if path.is_dir() else 0o444)
    try:
        folder = pretrained.copy_to("small", tmp_path / "mine")
    finally:
        for path in inside:
            path.chmod(0o755)
    assert all(path.stat().st_mode & 0o200 for path in (folder, *folder.rglob("*")))


def test_what_is_in_the_way_stays(small, tmp_path):
    (tmp_path / "mine").mkdir()
    with pytest.raises(ConfigError, match="mine is there and is not the pretrained small"):
        pretrained.copy_to("small", tmp_path / "mine")
    assert list((tmp_path / "mine").iterdir()) == []


def test_other_parameters_than_those_of_the_card_are_refused(small, tmp_path, monkeypatch):
    shutil.copytree(small, tmp_path / "shipped" / "small")
    monkeypatch.setattr(pretrained, "SHIPPED", tmp_path / "shipped")
    card = json.loads((tmp_path / "shipped" / "small" / CARD_FILE).read_text())
    (tmp_path / "shipped" / "small" / CARD_FILE).write_text(json.dumps(card | {"sha256": "0" * 64}))
    with pytest.raises(ConfigError, match=f"{BEST_FILE} is not the file of its card"):
        pretrained.find("small")
    (tmp_path / "shipped" / "small" / BEST_FILE).unlink()  # was a FileNotFoundError
    with pytest.raises(ConfigError, match=f"{BEST_FILE} is not the file of its card"):
        pretrained.find("small")
