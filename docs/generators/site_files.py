"""A hook of mkdocs: show files of the repository that are not in ``docs/`` without copying them, and mend docstrings.

Pages link to these files as a reader of the repository would (``../results/...``); in the site the links lead to the
copies made here.
"""

from __future__ import annotations

import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[2]
PAGES = {"contributing.md": "CONTRIBUTING.md", "changelog.md": "CHANGELOG.md"}
"""Pages of the site and the files they show."""
PICTURES = re.compile(r"(?:\.\./)+(results/[\w/.-]+\.(?:png|gif))")
"""Links of pages to pictures of results."""
REPORT = "report.html"
"""What ``make report`` writes; where it is there, the site has it, and pages that name it link to it."""
_UP = re.compile(r"\]\((?:\.\./)+(results/)")
_ROLES = re.compile(r":(?:func|class|data|meth|mod):(?=<code>)")
_DOCS = re.compile(r"\]\(docs/")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages of PAGES, every picture of ``results/`` that a page shows, and the report where there is one."""
    wanted = set()
    for path in sorted(Path(config.docs_dir).rglob("*.md")):
        wanted |= set(PICTURES.findall(path.read_text()))
    for picture in sorted(wanted):
        files.append(File.generated(config, picture, abs_src_path=str(ROOT / picture)))
    if (ROOT / REPORT).exists():
        files.append(File.generated(config, REPORT, abs_src_path=str(ROOT / REPORT)))
    for name, source in PAGES.items():
        files.append(File.generated(config, name, abs_src_path=str(ROOT / source)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Lead links to pictures of results, to the report and into ``docs/`` to where the site has them."""
    up = "../" * page.file.src_uri.count("/")
    if page.file.src_uri in PAGES:
        markdown = _DOCS.sub("](", markdown)
    if (ROOT / REPORT).exists():
        markdown = markdown.replace(f"`{REPORT}`", f"[`{REPORT}`]({up}{REPORT})")
    return _UP.sub(rf"]({up}\1", markdown)


def on_page_content(html: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Drop the roles of docstrings (``:func:``), which Markdown does not know."""
    return _ROLES.sub("", html)
