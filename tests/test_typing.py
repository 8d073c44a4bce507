"""Types that a checker reads: the ops' are those of their schemas."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
import torch

import diffattn_cuda

PACKAGE = Path(diffattn_cuda.__file__).parent
TYPES = {"Tensor": "Tensor", "Optional[Tensor]": "Tensor | None", "int": "int", "bool": "bool",
         "float": "float", "Optional[float]": "float | None"}  # fmt: skip


@pytest.mark.parametrize("op", ["fwd", "bwd", "decode"])
def test_a_stub_has_the_arguments_of_its_schema(op: str) -> None:
    schema = getattr(torch.ops.diffattn, op).default._schema
    stub = ast.parse((PACKAGE / "_schemas.pyi").read_text())
    (protocol,) = [x for x in stub.body if isinstance(x, ast.ClassDef) and x.name == op.title()]
    (call,) = [x for x in protocol.body if isinstance(x, ast.FunctionDef)]
    written = {a.arg: ast.unparse(a.annotation) for a in call.args.args[1:] if a.annotation}
    assert list(written.items()) == [(a.name, TYPES[str(a.type)]) for a in schema.arguments]
    assert call.returns is not None
    assert ast.unparse(call.returns).count("Tensor") == len(schema.returns)


def test_the_package_says_that_it_is_typed() -> None:
    assert (PACKAGE / "py.typed").exists()
