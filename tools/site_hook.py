"""A hook of mkdocs.yml: what the site has besides docs/, and where links between both lead.

README.md is the start page; the examples are pages that show their code. Pages stay as they are in
the repository, so that they also read well there; only links to what has another place change.
"""

from __future__ import annotations

import ast
import json
import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parent.parent
# By their path in the repository: the page of the site.
PLACES = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    ".github/SECURITY.md": "security.md",
    ".github/CODE_OF_CONDUCT.md": "conduct.md",
}
NOTEBOOK = "examples/tour.ipynb"
EXAMPLES = {f"examples/{path.name}": f"examples/{path.stem}.md"
            for path in [ROOT / NOTEBOOK, *sorted((ROOT / "examples").glob("*.py"))]}  # fmt: skip
LINK = re.compile(r"(\]\(\s*)([^)\s:]+?)((?:#[^)\s]*)?\s*\))")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    for source, place in PLACES.items():
        files.append(File.generated(config, place, content=(ROOT / source).read_text()))
    for source, place in EXAMPLES.items():
        files.append(File.generated(config, place, content=_example(source)))
    files.append(File.generated(config, "examples/index.md", content=_examples()))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Links are written for the repository: those that lead out of docs/ get the site's place."""
    place = page.file.src_uri
    sources = {site: source for source, site in (PLACES | EXAMPLES).items()}
    source = sources.get(place, f"docs/{place}")

    def moved(link: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(posixpath.dirname(source), link[2]))
        found = (PLACES | EXAMPLES).get(target, target.removeprefix("docs/"))
        return f"{link[1]}{posixpath.relpath(found, posixpath.dirname(place) or '.')}{link[3]}"

    return markdown if place.startswith("examples/") else LINK.sub(moved, markdown)


def _example(source: str) -> str:
    text = (ROOT / source).read_text()
    if source == NOTEBOOK:
        return "".join(_cell(cell) for cell in json.loads(text)["cells"])
    return f"# {source}\n\n```python\n{text}```\n"


def _cell(cell: dict[str, Any]) -> str:
    """With the outputs that the file keeps."""
    text = "".join(cell["source"])
    if cell["cell_type"] == "markdown":
        return f"{text}\n\n"
    shown = [f"```python\n{text}\n```\n\n"]
    for output in cell["outputs"]:
        data = output.get("data", {})
        plain = "".join(output.get("text") or data.get("text/plain", ""))
        if "image/png" in data:
            shown.append(f"![](data:image/png;base64,{data['image/png'].strip()})\n\n")
        else:
            shown.append(f"```text\n{plain.strip()}\n```\n\n")
    return "".join(shown)


def _summary(source: str) -> str:
    text = (ROOT / source).read_text()
    if source == NOTEBOOK:
        return "from one call to a trained layer, with the maps drawn."
    return (ast.get_docstring(ast.parse(text)) or "").splitlines()[0]


def _examples() -> str:
    """Each with the first sentence of its docstring."""
    lines = []
    for source, place in EXAMPLES.items():
        said = _summary(source)
        lines.append(f"- [{source}]({Path(place).name}): {said}")
    return "# Examples\n\nCode to copy; the tests run it.\n\n" + "\n".join(lines) + "\n"
