"""The text of a page that a script writes, between two comments."""

from __future__ import annotations

from pathlib import Path


def rewrite(page: Path, name: str, text: str) -> None:
    """Replace what stands between <!-- name: begin --> and <!-- name: end -->."""
    begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    before = page.read_text()
    if before.count(begin) != 1 or before.count(end) != 1:
        raise SystemExit(f"{page}: expected {begin} and {end}, each once")
    head, rest = before.split(begin)
    _, tail = rest.split(end)
    page.write_text(f"{head}{begin}\n{text}\n{end}{tail}")


def table(header: list[str], lines: list[list[str]]) -> str:
    """Markdown: the first column to the left, the others to the right."""
    rule = "|---|" + "---:|" * (len(header) - 1)
    first, *rest = (f"| {' | '.join(row)} |" for row in [header, *lines])
    return "\n".join([first.replace("|  |", "| |", 1), rule, *rest])
