"""What the pages say of the code holds: names exist, generated pages are current, links lead somewhere."""

import ast
import importlib.util
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
PACKAGE = ROOT / "polygrad_jax"
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(DOCS.rglob("*.md"))]
PLACE = re.compile(r"`([\w/]+\.py): ([\w., ]+)`")
"""How a page names functions: ``file.py: function, Class.method``, the file relative to the package."""


def names_of(path: Path) -> set[str]:
    """Every class and function of a module, methods as ``Class.method``; nested functions by their own name."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(node.name)
        if isinstance(node, ast.ClassDef):
            found |= {f"{node.name}.{child.name}" for child in node.body if isinstance(child, ast.FunctionDef)}
    return found


def places(text: str) -> list[tuple[str, str]]:
    return [(file, name.strip()) for file, names in PLACE.findall(text) for name in names.split(",")]


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_function_that_a_page_names_exists(page):
    for file, name in places(page.read_text()):
        path = PACKAGE / file
        assert path.is_file(), f"{page.name} names polygrad_jax/{file}"
        assert name in names_of(path), f"{page.name} names {name}, which is not in polygrad_jax/{file}"


def test_the_page_on_the_algorithms_covers_every_line_and_follows_a_transition_in_twelve_hops():
    text = (DOCS / "algorithm.md").read_text()
    for algorithm, lines in ((1, range(3, 7)), (2, range(2, 15)), (3, range(2, 10))):
        part = text.split(f"## Algorithm {algorithm}")[1].split("\n## ")[0]
        shown = [int(number) for number in re.findall(r"^\| (\d+) \|", part, flags=re.MULTILINE)]
        assert shown == list(lines), f"Algorithm {algorithm}"
    walk = text.split("## One transition")[1].split("\n## ")[0]
    hops = [line for line in walk.splitlines() if re.match(r"\d+\. ", line)]
    assert 8 <= len(hops) <= 12 and all(PLACE.search(line) for line in hops)


def generate():
    spec = importlib.util.spec_from_file_location("docs_generate", DOCS / "generate.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_generated_pages_are_current(capsys):
    module = generate()
    assert "deviations" in module.PAGES
    assert module.main(["--check"]) == 0, capsys.readouterr().out


def test_a_deviation_has_its_place_and_its_words():
    generate()
    from generators.deviations import Deviation, deviations_of

    source = '''
class Net:
    def step(self):
        """Step.

        DEVIATION from the paper: twice.

        Not this.
        """
        x = 1  # nothing
        # Not this. DEVIATION, as MBPO: the first line
        # and the second.
        return x
'''
    assert deviations_of(source, "a.py") == [
        Deviation("a.py", "Net.step", "Differs from the paper: twice."),
        Deviation("a.py", "Net.step", "As MBPO: the first line and the second."),
    ]


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_to_files_of_the_repository_lead_somewhere(page):
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", text):
        if not re.match(r"\w+:", target) and target not in ("contributing.md", "changelog.md"):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_the_readme_is_short():
    text = re.sub(r"^```.*?^```$", "", (ROOT / "README.md").read_text(), flags=re.MULTILINE | re.DOTALL)
    assert len(text.split()) <= 900
