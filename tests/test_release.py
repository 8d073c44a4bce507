"""The texts and forms of the repository, and what a release asks of the tree."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent
FORMS = sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml"))
sys.path.insert(0, str(ROOT / "tools"))
import release  # noqa: E402


def tree(folder: Path, version: str, changelog: str) -> Path:
    (folder / "pyproject.toml").write_text(f'[project]\nversion = "{version}"\n')
    (folder / "CHANGELOG.md").write_text(changelog)
    return folder


CHANGELOG = """# Changelog
## Unreleased
- later
## 0.2.0 (2026-12-01)
### Functions
- a thing
## 0.1.0 (2026-11-25)
- first
"""


def test_the_notes_are_the_part_of_that_version(tmp_path: Path) -> None:
    root = tree(tmp_path, "0.2.0", CHANGELOG)
    assert release.notes("v0.2.0", root) == "### Functions\n- a thing"


@pytest.mark.parametrize(
    "tag, version, why",
    [
        ("v0.3.0", "0.2.0", "the tag is v0.3.0, pyproject.toml has version 0.2.0"),
        ("0.2.0", "0.2.0", "the tag is 0.2.0"),
        ("v0.3.0", "0.3.0", "no part '## 0.3.0 "),
    ],
)
def test_a_tag_that_cannot_be_released(tmp_path: Path, tag: str, version: str, why: str) -> None:
    with pytest.raises(SystemExit, match=why):
        release.notes(tag, tree(tmp_path, version, CHANGELOG))


def test_the_changelog_begins_with_what_is_unreleased() -> None:
    parts = [line for line in (ROOT / "CHANGELOG.md").read_text().splitlines() if line[:3] == "## "]
    assert parts[0] == "## Unreleased"
    assert release.version()


@pytest.mark.parametrize("path", [p for p in FORMS if p.name != "config.yml"], ids=lambda p: p.stem)
def test_an_issue_form_is_one_that_github_takes(path: Path) -> None:
    form: dict[str, Any] = yaml.safe_load(path.read_text())
    assert {"name", "description", "body"} <= set(form) <= {"name", "description", "body", "labels"}
    fields = [part for part in form["body"] if part["type"] != "markdown"]
    assert len({field["id"] for field in fields}) == len(fields) >= 3
    for field in fields:
        assert field["type"] in ("textarea", "input", "checkboxes") and field["attributes"]["label"]


def test_reports_of_bugs_and_speed_come_with_the_machine() -> None:
    for name in ("bug.yml", "performance.yml"):
        assert "python -m diffattn_cuda --json" in (FORMS[0].parent / name).read_text()


def test_the_citation_names_no_version() -> None:
    """pyproject.toml has it, alone."""
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["cff-version"] == "1.2.0" and citation["authors"] and citation["title"]
    assert "version" not in citation
