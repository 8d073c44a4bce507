"""Types that a checker reads."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import diffattn_cuda

sys.path.append(str(Path(__file__).resolve().parents[1] / "tools"))
import schema_stub  # noqa: E402

PACKAGE = Path(diffattn_cuda.__file__).parent


def test_the_types_of_the_ops_are_those_of_their_schemas() -> None:
    assert schema_stub.text() == schema_stub.TARGET.read_text(), "run `make docs`"
    names = [
        node.name for node in ast.parse(schema_stub.text()).body if isinstance(node, ast.ClassDef)
    ]
    assert names == ["Fwd", "Bwd", "Decode", "Ops"]


def test_the_package_says_that_it_is_typed() -> None:
    assert (PACKAGE / "py.typed").exists()
