"""The page ``deviations.md``: every comment and docstring of the package that says ``DEVIATION``, with its place."""

from __future__ import annotations

import ast
import io
import re
import textwrap
import tokenize
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "polygrad_jax"
PAGE = "deviations.md"
WORD = "DEVIATION"
ORDER = ("diffusion", "networks", "data", "world_models", "agents", "training", "envs", "config")
"""Rooms in the order in which the page shows them; any other follows."""
TITLES = {
    "diffusion": "Diffusion",
    "networks": "Networks",
    "data": "Replay and statistics",
    "world_models": "World models",
    "agents": "Learning the policy",
    "training": "The training loop",
    "envs": "Environments",
    "config": "Configuration",
}
INTRODUCTION = """\
# Deviations

Look up here where this implementation differs from the paper, from the official PyTorch code, or from the source of a
baseline, and why. The page is made of the comments marked `DEVIATION` in the package by
`python docs/generate.py deviations`; a test asserts that it is current. Where paper and official code disagree, the
default follows the official code, because it produced the paper's figures.
"""


class Deviation(NamedTuple):
    """One marked place."""

    file: str  # relative to the package
    function: str  # dotted name of the enclosing function or class; empty at the top of a module
    text: str  # in one line, or one and a line for every item of a list


def deviations_of(source: str, file: str) -> list[Deviation]:
    """Return the marked places of one module, in the order of its lines."""
    tree = ast.parse(source)
    found = [(line, text) for line, text in [*_comments(source), *_docstrings(tree)] if WORD in text]
    spans = _spans(tree)
    return [Deviation(file, _enclosing(spans, line), _from_the_word(text)) for line, text in sorted(found)]


def page() -> str:
    """Return the text of the page."""
    every = [
        deviation
        for path in sorted(PACKAGE.rglob("*.py"))
        for deviation in deviations_of(path.read_text(), path.relative_to(PACKAGE).as_posix())
    ]
    rooms = sorted({d.file.split("/")[0] for d in every}, key=lambda room: (*ORDER, room).index(room))
    parts = [INTRODUCTION]
    for room in rooms:
        title = TITLES.get(room, room.removesuffix(".py").replace("_", " ").capitalize())
        rows = [d for d in every if d.file.split("/")[0] == room]
        parts.append(f"## {title}\n")
        parts += [_entry(d) for d in rows]
        parts.append("")
    return "\n".join(parts).rstrip() + "\n"


def _entry(deviation: Deviation) -> str:
    place = f"`{deviation.file}`" + (f", `{deviation.function}`" if deviation.function else "")
    return f"- **{place}**: " + deviation.text.replace("\n", "\n    - ")


def _comments(source: str) -> list[tuple[int, str]]:
    """Return blocks of whole-line comments ``(first line, text)``; lines that follow one another are one block."""
    blocks: list[list[tuple[int, str]]] = []
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type != tokenize.COMMENT:
            continue
        line, text = token.start[0], token.string.lstrip("#").strip()
        whole = not token.line[: token.start[1]].strip()
        if whole and blocks and blocks[-1][-1][0] == line - 1:
            blocks[-1].append((line, text))
        else:
            blocks.append([(line, text)])
    return [(block[0][0], " ".join(text for _, text in block)) for block in blocks]


def _docstrings(tree: ast.Module) -> list[tuple[int, str]]:
    """Return the paragraphs of all docstrings, each with the line in which its docstring begins."""
    found = []
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if not isinstance(body, list):
            continue
        for statement in body:  # of attributes too: a string behind an assignment
            if isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant):
                value = statement.value.value
                if isinstance(value, str):
                    found += [(statement.lineno, paragraph) for paragraph in _paragraphs(value)]
    return found


def _paragraphs(docstring: str) -> list[str]:
    """Return the paragraphs of a docstring, each in one line; a list follows the paragraph that announces it."""
    paragraphs: list[str] = []
    for part in re.split(r"\n\s*\n", textwrap.dedent(docstring)):
        items = [" ".join(item.split()) for item in re.split(r"(?:^|\n)\s*[-*] ", part.strip())]
        text = "\n".join(filter(None, items))
        if paragraphs and paragraphs[-1].endswith(":"):
            paragraphs[-1] += "\n" + text
        else:
            paragraphs.append(text)
    return paragraphs


def _spans(tree: ast.Module) -> list[tuple[int, int, str]]:
    found = []

    def walk(node: ast.AST, prefix: str) -> None:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                name = f"{prefix}{child.name}"
                found.append((child.lineno, child.end_lineno or child.lineno, name))
                walk(child, f"{name}.")
            else:
                walk(child, prefix)

    walk(tree, "")
    return found


def _enclosing(spans: list[tuple[int, int, str]], line: int) -> str:
    """Return the name of the innermost function or class around a line."""
    around = [span for span in spans if span[0] <= line <= span[1]]
    return max(around, key=lambda span: span[0])[2] if around else ""


def _from_the_word(text: str) -> str:
    """Return what is said from the word on, as sentences of their own."""
    text = text[text.index(WORD) + len(WORD) :].lstrip(" :,").rstrip()
    text = f"differs {text}" if text.startswith("from ") else text
    text = re.sub(r":(?:class|func|data):`([^`]*)`", r"`\1`", text).replace("``", "`")
    return text[:1].upper() + text[1:]
