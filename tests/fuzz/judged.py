"""Judge what a verb made of a mutated file, as ``hostile_files.py`` prints it."""

from typing import Any

LONGEST_LINE = 1_000
ROOM = 8 * 2**20
"""Bytes that Python may take for a file beside twice its size and what the verb takes for a whole one."""
CHECKED = ("checkpoint", "replay", "events")
"""Kinds of files of which ``train`` accepts what it wrote, and nothing else: a checksum says so."""


def why_no_refusal(line: str) -> str | None:
    """Say what is wrong with stderr after a refusal; None if it is one line for people."""
    lines = line.split("\n")
    if len(lines) != 2 or lines[1]:
        return f"{len(lines) - 1} lines: {line[:300]!r}"
    if len(lines[0]) > LONGEST_LINE or not lines[0].isprintable() or not lines[0].startswith("polygrad: "):
        return f"a line of {len(lines[0])} characters: {line[:300]!r}"
    return None


def fault(result: dict[str, Any], whole: dict[str, Any]) -> str | None:
    """Say what is wrong with what a verb made of a mutated file; None if nothing is.

    Args:
      whole: what the same verb makes of the whole files.
    """
    most = 2 * result["size"] + whole["peak"] + ROOM
    if result["unpickled"]:
        return "unpickled"
    if result["raised"] is not None:
        return f"raised {result['raised']}"
    if result["peak"] > most:
        return f"took {result['peak'] / 2**20:.0f} MiB, {most / 2**20:.0f} allowed"
    if result["code"] == 0:
        other = result["accepted"] != whole["accepted"]
        return "accepted as another" if other and result["verb"] == "train" and result["kind"] in CHECKED else None
    if result["code"] != 2:
        return f"exit code {result['code']}: {result['said'][:300]!r}"
    if result["changed"]:
        return f"wrote {', '.join(result['changed'][:3])}"
    return why_no_refusal(result["said"])


def outcome(result: dict[str, Any], whole: dict[str, Any]) -> str:
    """Return ``refused``, ``as whole`` or ``another valid one``."""
    if result["code"] != 0:
        return "refused"
    return "as whole" if result["accepted"] == whole["accepted"] else "another valid one"
