"""One page that shows every figure and table of the results beside the paper's claim, in one HTML file.

Of the archive it shows the search that led to today's preset, and no earlier one. Made from the files under
``results/`` alone. Learning curves are interactive: hover shows seed and value, a click on a name hides it, buttons
pick the task. What stands beside a claim is the README of its folder, so that the page says what the folders say. The
file needs no server and no network.

    python experiments/report/build.py --out report.html
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from experiments.harness import in_venv

# isort: split
import argparse
import base64
import html
import importlib.util
import io
import itertools
import re
import string
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from experiments.harness import figures, grid, statistics
from experiments.learning import returns_table
from experiments.learning.training_runs import AGAIN
from experiments.report.sections import CURVES, NAMES, PUBLISHED, SECTIONS, Section
from polygrad_jax.config import ConfigError
from polygrad_jax.runs import physics
from polygrad_jax.runs.run_folder import write_text_atomically

RESULTS = in_venv.CLONE / "results"
TEMPLATE = Path(__file__).with_name("page.html")
PACKAGES = ("plotly", "markdown")
EXTENSIONS = ("tables", "fenced_code", "sane_lists")
DASHES = ("solid", "dash")
REFERENCE = "PPO"
"""What the table of returns compares with, where it was run."""


class Curve(NamedTuple):
    """What one seed returned."""

    name: str  # of the setting
    seed: str
    steps: list[int]
    returns: list[float]
    published: bool


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("report.html"), help="the page (report.html)")
    return parser.parse_args()


def require_packages() -> None:
    """Raise ConfigError where the extra ``report`` is not installed."""
    for package in PACKAGES:
        if importlib.util.find_spec(package) is None:
            raise ConfigError(f"this Python has no {package}; type: pip install -e .[report]")


# --- learning curves -------------------------------------------------------------------------------------------------


def rows_of(results: Path, task: str) -> list[grid.Row]:
    """Return the rows of a task's own experiments, their settings named as in the report."""
    found = []
    for experiment in CURVES[task]:
        path = results / "learning_curves" / f"{experiment}.csv"
        for row in grid.read_csv(path) if path.is_file() else []:
            if not row["exp_name"].endswith(AGAIN):
                found.append(row | {"exp_name": NAMES.get((experiment, row["exp_name"]), row["exp_name"])})
    physics.refuse_mixed(grid.used(found, results / "learning_curves"), False)
    return found


def published_rows(results: Path, task: str) -> list[grid.Row]:
    """Return what others published of a task, marked with the version of their environment."""
    rows = grid.read_csv(results / PUBLISHED)
    own = [row for row in rows if row["env_name"].rpartition("-")[0] == task]
    return [row | {"exp_name": f"{row['exp_name']} ({row['env_name'].rpartition('-')[2]}, published)"} for row in own]


def curves_of(rows: list[grid.Row], published: bool) -> list[Curve]:
    """Return the returns of every setting and seed."""
    returns = [row for row in rows if row["metric"] == returns_table.RETURN]
    curves = []
    for (name, seed), own in statistics.groups(returns, ["exp_name", "seed"]).items():
        points = sorted((int(row["env_step"]), float(row["value"])) for row in own)
        curves.append(Curve(name, seed, [step for step, _ in points], [value for _, value in points], published))
    return curves


def styles_of(names: Iterable[str]) -> dict[str, tuple[str, str]]:
    """Return a colour and a dash for each name, so that no two are alike; colours first.

    Raises:
      ConfigError: there are more names than that.
    """
    names, styles = list(names), [(colour, dash) for dash in DASHES for colour in figures.PALETTE]
    if len(names) > len(styles):
        raise ConfigError(f"the report has {len(names)} settings; allowed: {len(styles)}, which can be told apart")
    return dict(zip(names, styles, strict=False))


def styles_of_settings(results: Path) -> dict[str, tuple[str, str]]:
    """Return the style of every setting, the same on all tasks; those that most tasks have get colours of their own."""
    names_of_tasks = [dict.fromkeys(r["exp_name"] for r in rows_of(results, task)) for task in CURVES]
    tasks_with = Counter(itertools.chain(*names_of_tasks))
    return styles_of(name for name, _ in tasks_with.most_common())


def draw(curves: list[Curve], styles: Mapping[str, tuple[str, str]]) -> Any:
    """Draw a line per seed; published ones are dotted and hidden until they are asked for."""
    import plotly.graph_objects as go

    others = dict.fromkeys(c.name for c in curves if c.published)
    styles = dict(zip(others, itertools.cycle([(colour, "dot") for colour in figures.PALETTE]))) | dict(styles)
    chart, named = go.Figure(), set()
    for curve in curves:
        colour, dash = styles[curve.name]
        chart.add_scatter(
            x=curve.steps,
            y=curve.returns,
            mode="lines",
            line={"color": colour, "width": 1.2 if curve.published else 2.2, "dash": dash},
            name=curve.name,
            legendgroup=curve.name,
            showlegend=curve.name not in named,
            visible="legendonly" if curve.published else True,
            hovertemplate=f"{curve.name}, seed {curve.seed}<br>%{{y:,.0f}} at %{{x:,}} steps<extra></extra>",
        )
        named.add(curve.name)
    chart.update_layout(
        template="simple_white",
        height=520,
        margin={"l": 10, "r": 30, "t": 30, "b": 10},
        legend={"orientation": "h", "yref": "container", "y": 0, "yanchor": "bottom"},
        xaxis_title="environment steps",
        yaxis_title="return",
        hovermode="closest",
    )
    return chart


def task_part(results: Path, task: str, styles: Mapping[str, tuple[str, str]]) -> str:
    """Return the part of the page on one task: the chart, its lines in these styles, and the table of returns."""
    import plotly.io

    own = rows_of(results, task)
    if not own:
        return ""
    curves = curves_of(own, False) + curves_of(published_rows(results, task), True)
    settings = statistics.groups(own, ["exp_name"])
    by_name = {name: returns_table.runs_of(rows, None) for (name,), rows in settings.items()}
    table = returns_table.table(by_name, REFERENCE if REFERENCE in by_name else None)
    chart = plotly.io.to_html(
        draw(curves, styles),
        full_html=False,
        include_plotlyjs=False,
        config={"responsive": True, "displaylogo": False},
    )
    versions = ", ".join(dict.fromkeys(row["env_name"] for row in own))
    note = f"{versions}, {grid.physics_of(own)}. Environment steps include the random prefill; returns "
    note += "are of 20 episodes with the mean action, in the table means of the last three evaluations of each seed."
    return (
        f'<div class="task" data-task="{html.escape(task)}"><h3>{html.escape(task)}</h3>{chart}'
        f"<p>{html.escape(note)}</p>{to_html(chr(10).join(table))}</div>"
    )


# --- folders of results ----------------------------------------------------------------------------------------------


def to_html(text: str) -> str:
    """Return Markdown as HTML, its tables in boxes that scroll on a narrow screen."""
    import markdown

    made = markdown.markdown(text, extensions=list(EXTENSIONS))
    return made.replace("<table>", '<div class="wide"><table>').replace("</table>", "</table></div>")


def inline(path: Path) -> str:
    """Return a picture as a data address, in 128 colours: figures have fewer, and take a third of the room."""
    from PIL import Image

    smaller = io.BytesIO()
    with Image.open(path) as picture:
        picture.convert("RGB").quantize(128).save(smaller, "PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(smaller.getvalue()).decode()}"


def picture(path: Path, words: str) -> str:
    return f'<figure><img loading="lazy" src="{inline(path)}" alt="{html.escape(words)}"></figure>'


def folder_part(results: Path, name: str) -> str:
    """Return what a folder's README says, without links that lead nowhere from here, and its figures."""
    folder = results / name
    heading, _, text = (folder / "README.md").read_text().partition("\n")
    text = re.sub(r"^!\[[^\]]*\]\([^)]*\)\n?", "", text, flags=re.MULTILINE)  # every figure follows below
    text = re.sub(r"\[([^\]]+)\]\((?!\w+:)[^)]*\)", r"\1", text)
    pictures = "".join(
        picture(path, f"{name}: {path.stem.replace('_', ' ')}") for path in sorted(folder.rglob("*.png"))
    )
    words = html.escape(heading.removeprefix("# "))
    return f"<details><summary>{words}</summary>{to_html(text)}{pictures}</details>"


def section_part(results: Path, section: Section, number: int) -> str:
    """Return a section: the claim, then where it was measured."""
    said = f"The paper, {section.paper}" if section.paper else "Not in the paper"
    curves = ""
    if section.curves:
        styles = styles_of_settings(results)
        parts = {task: task_part(results, task, styles) for task in CURVES}
        parts = {task: part for task, part in parts.items() if part}
        buttons = "".join(f'<button data-task="{t}">{t}</button>' for t in ("All", *parts))
        curves = f'<div class="tasks">{buttons}</div>{"".join(parts.values())}'
    return (
        f'<section id="section-{number}"><h2>{html.escape(section.title)}</h2>'
        f'<p class="claim"><b>{said}.</b> {html.escape(section.claim)}</p>{curves}'
        f"{''.join(folder_part(results, name) for name in section.folders)}</section>"
    )


def page(results: Path) -> str:
    """Return the whole page."""
    import plotly.offline

    index = "".join(f'<a href="#section-{k}">{html.escape(s.title)}</a>' for k, s in enumerate(SECTIONS, 1))
    parts = "".join(section_part(results, section, k) for k, section in enumerate(SECTIONS, 1))
    script = plotly.offline.get_plotlyjs()
    return string.Template(TEMPLATE.read_text()).substitute(index=index, parts=parts, plotly=script)


def main() -> int:
    options = parse()
    try:
        require_packages()
        text = page(RESULTS)
        write_text_atomically(options.out, text)
    except ConfigError as error:
        print(f"report: {error}", file=sys.stderr)
        return in_venv.BAD_INPUT
    print(f"written: {options.out} ({len(text) / 1e6:.1f} MB)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
