"""The page that shows everything: whole, self-contained, and drawn from every row of the CSV files."""

import csv
import re
import shutil
import subprocess
import sys

import pytest

from experiments.report import build
from experiments.report.sections import CURVES, NAMES, SECTIONS
from polygrad_jax.config import ConfigError

FOLDERS = [name for section in SECTIONS for name in section.folders]
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    path = tmp_path_factory.mktemp("report") / "report.html"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["build.py", "--out", str(path)])
        assert build.main() == 0
    return path


def test_every_folder_of_results_is_in_it_once():
    """The archive is of searches that led somewhere else; what led to the preset is shown."""
    there = {path.parent.relative_to(build.RESULTS).as_posix() for path in build.RESULTS.rglob("README.md")} - {"."}
    assert set(FOLDERS) == {name for name in there if not name.startswith("archive")} | {
        "archive/value_gradient_search"
    }
    assert len(FOLDERS) == len(set(FOLDERS))


def test_it_needs_no_other_file(page):
    text = page.read_text()
    outside_scripts = re.sub(r"<script.*?</script>", "", text, flags=re.DOTALL)
    addresses = re.findall(r'(?:src|href)="([^"]*)"', outside_scripts)
    assert all(address.startswith(("data:", "#", "https://")) for address in addresses)
    assert not re.findall(r'<(?:script|link|img)[^>]*(?:src|href)="http', text)
    pictures = sum(len(list((build.RESULTS / name).rglob("*.png"))) for name in FOLDERS)
    assert outside_scripts.count("data:image/png;base64,") == pictures > 40
    assert {f"#section-{k}" for k in range(1, len(SECTIONS) + 1)} <= set(addresses)


@pytest.mark.parametrize("task", CURVES)
def test_every_evaluation_is_a_point_of_its_seeds_line(task):
    curves = build.curves_of(build.rows_of(build.RESULTS, task), False)
    drawn = {
        (line.name, words[1], step, value)
        for line in build.draw(curves, build.styles_of_settings(build.RESULTS)).data
        if (words := re.search(r"seed (\S+)<br>", line.hovertemplate))
        for step, value in zip(line.x, line.y, strict=True)
    }
    expected = set()
    for experiment in CURVES[task]:
        path = build.RESULTS / "learning_curves" / f"{experiment}.csv"
        if not path.is_file():
            continue
        with open(path, newline="") as file:
            for row in csv.DictReader(file):
                if row["metric"] == "return_mean" and not row["exp_name"].endswith(" again"):
                    name = NAMES.get((experiment, row["exp_name"]), row["exp_name"])
                    expected.add((name, row["seed"], int(row["env_step"]), float(row["value"])))
    assert drawn == expected and expected


def test_published_curves_are_marked_and_hidden_at_first():
    lines = build.draw(build.curves_of(build.published_rows(build.RESULTS, "Hopper"), True), {}).data
    assert len(lines) > 50 and all(line.name.endswith("published)") for line in lines)
    assert {line.visible for line in lines} == {"legendonly"} and {line.line.dash for line in lines} == {"dot"}


def test_no_two_settings_look_alike_and_one_looks_the_same_on_every_task():
    styles = build.styles_of_settings(build.RESULTS)
    assert len(set(styles.values())) == len(styles) > 8
    assert {styles[name][1] for name in ("PolyGRAD, value gradients", "PPO", "SAC")} == {"solid"}
    for task in CURVES:
        curves = build.curves_of(build.rows_of(build.RESULTS, task), False)
        for line in build.draw(curves, styles).data:
            assert (line.line.color, line.line.dash) == styles[line.name]
    most = len(build.DASHES) * len(build.figures.PALETTE)
    with pytest.raises(ConfigError, match=f"{most + 1} settings; allowed: {most}"):
        build.styles_of(map(str, range(most + 1)))


def test_a_missing_extra_is_one_line(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(build.importlib.util, "find_spec", lambda _: None)
    monkeypatch.setattr(sys, "argv", ["build.py", "--out", str(tmp_path / "r.html")])
    assert build.main() == 2
    assert capsys.readouterr().err == "report: this Python has no plotly; type: pip install -e .[report]\n"
    assert not list(tmp_path.iterdir())


def test_curves_of_several_physics_are_refused(tmp_path):
    folder = tmp_path / "learning_curves"
    folder.mkdir()
    for name, version in (("hopper", "4.0.0"), ("hopper_long", "3.4.0")):
        (folder / f"{name}.csv").write_text(
            "exp_name,env_name,seed,metric,env_step,value,mujoco\n" f"A,Hopper-v5,0,return_mean,5000,1.0,{version}\n"
        )
    with pytest.raises(ConfigError, match="3.4.0"):
        build.rows_of(tmp_path, "Hopper")


def dom_of(address, width=1280, *more):
    """The page as a browser has it after its scripts ran, and what those said."""
    command = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", *more]
    command += ["--virtual-time-budget=40000", f"--window-size={width},900", "--dump-dom", address]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


FRAME = """<iframe id="page" src="{}" width="390" height="800"></iframe><p id="widths"></p><script>
const frame = document.getElementById("page");
frame.onload = () => setTimeout(() => {{
  const root = frame.contentDocument.documentElement;
  document.getElementById("widths").textContent = `${{root.scrollWidth}} of ${{root.clientWidth}}`;
}}, 5000);
</script>"""


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason="no Chromium")
def test_nothing_is_wider_than_a_phone(page, tmp_path):
    """With every part open, what is wide scrolls in a box of its own. In a frame, for a window has at least 500 px."""
    opened, frame = tmp_path / "opened.html", tmp_path / "frame.html"
    opened.write_text(page.read_text().replace("<details>", "<details open>"))
    frame.write_text(FRAME.format(opened.name))
    done = dom_of(frame.as_uri(), 600, "--allow-file-access-from-files")
    needed, given = re.search(r'id="widths">(\d+) of (\d+)<', done.stdout).groups()
    assert int(needed) == int(given) <= 390


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason="no Chromium")
def test_a_browser_draws_every_chart_and_complains_of_nothing(page):
    done = dom_of(page.as_uri())
    assert "CONSOLE" not in done.stderr
    charts = done.stdout.count('class="task"')
    assert charts == len([task for task in CURVES if build.rows_of(build.RESULTS, task)])
    drawn = re.sub(r"<script.*?</script>", "", done.stdout, flags=re.DOTALL)
    own = {task: build.curves_of(build.rows_of(build.RESULTS, task), False) for task in CURVES}
    published = {task: build.curves_of(build.published_rows(build.RESULTS, task), True) for task in CURVES}
    in_legends = sum(len({curve.name for curve in own[task] + published[task]}) for task in CURVES)
    assert drawn.count('class="js-line"') == sum(map(len, own.values())) + in_legends
    assert drawn.count('aria-pressed="true"') == 1
