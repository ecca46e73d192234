"""The configuration's page is what the source says, and the generator says where it is not."""

import importlib.util
import subprocess
import sys
from pathlib import Path

from polygrad_jax import config as configs

SCRIPT = Path(__file__).resolve().parents[2] / "docs" / "generate.py"


def generator():
    spec = importlib.util.spec_from_file_location("generate", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_configuration_page_is_current():
    command = [sys.executable, str(SCRIPT), "configuration", "--check"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", ""), done.stdout + done.stderr


def test_the_page_lists_every_field_once():
    lines = generator().configuration().splitlines()
    for name in configs.declared_fields():
        rows = [line for line in lines if line.startswith(f"| `{name}` | ")]
        assert len(rows) == 1, name
        assert rows[0].replace("\\|", "").count("|") == 6, rows[0]


def test_a_stale_page_is_found_and_written_anew(tmp_path, capsys):
    main = generator().main
    page = tmp_path / "configuration.md"
    assert main(["configuration", "--check"], tmp_path) == 1 and not page.exists()
    assert "stale: configuration" in capsys.readouterr().out
    assert main(["configuration"], tmp_path) == 0
    assert main(["configuration", "--check"], tmp_path) == 0
    page.write_text(page.read_text() + "by hand\n")
    assert main(["configuration", "--check"], tmp_path) == 1
