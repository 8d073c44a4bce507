"""What a release asks of the tree, and its notes.

    python tools/release.py check v0.2.0    # the tag, pyproject.toml and CHANGELOG.md agree
    python tools/release.py notes v0.2.0    # that version's part of CHANGELOG.md

pyproject.toml has the version, and nothing else does: the package, CMake and the wheel read it
there. To release: name the version there, turn CHANGELOG.md's "## Unreleased" into "## 0.2.0
(date)" with an empty "## Unreleased" above it, commit, tag, push the tag.
.github/workflows/release.yml does the rest.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def version(root: Path = ROOT) -> str:
    found = re.search(r'^version = "([^"]+)"$', (root / "pyproject.toml").read_text(), re.M)
    assert found, "pyproject.toml has no version"
    return found[1]


def notes(tag: str, root: Path = ROOT) -> str:
    """Refuses a tag that is not the tree's version, and a version without notes."""
    if tag != f"v{version(root)}":
        raise SystemExit(f"the tag is {tag}, pyproject.toml has version {version(root)}")
    parts = re.split(r"^## ", (root / "CHANGELOG.md").read_text(), flags=re.M)[1:]
    named = re.compile(re.escape(tag[1:]) + r" \(\d{4}-\d\d-\d\d\)\n")
    mine = [part.partition("\n")[2].strip() for part in parts if named.match(part)]
    if len(mine) != 1 or not mine[0]:
        raise SystemExit(f"CHANGELOG.md has no part '## {tag[1:]} (year-month-day)' with text")
    return mine[0]


def main(arguments: list[str]) -> None:
    if len(arguments) != 2 or arguments[0] not in ("check", "notes"):
        raise SystemExit(__doc__)
    text = notes(arguments[1])
    print(text if arguments[0] == "notes" else f"{arguments[1]} can be released")


if __name__ == "__main__":
    main(sys.argv[1:])
