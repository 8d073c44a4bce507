"""Types that a checker reads."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import torch

import diffattn_cuda
from diffattn_cuda.ops import OPS

sys.path.append(str(Path(__file__).resolve().parents[1] / "tools"))
import schema_stub  # noqa: E402

PACKAGE = Path(diffattn_cuda.__file__).parent


def test_the_types_of_the_ops_are_those_of_their_schemas() -> None:
    assert schema_stub.text() == schema_stub.TARGET.read_text(), "run `make docs`"
    names = [
        node.name for node in ast.parse(schema_stub.text()).body if isinstance(node, ast.ClassDef)
    ]
    assert names == [*map(schema_stub.class_name, OPS), "Ops"]
    in_cpp = [s.name for s in torch._C._jit_get_all_schemas() if s.name.startswith("diffattn::")]
    assert sorted(in_cpp) == sorted(f"diffattn::{op}" for op in OPS)


def test_the_package_says_that_it_is_typed() -> None:
    assert (PACKAGE / "py.typed").exists()
