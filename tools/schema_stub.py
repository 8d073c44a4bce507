"""Write diffattn_cuda/_schemas.pyi, the types of the raw ops, from the built package.

`python tools/schema_stub.py`, or `make docs`. tests/test_typing.py asks that it be up to date.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from diffattn_cuda.ops import OPS

TARGET = Path(__file__).resolve().parent.parent / "diffattn_cuda" / "_schemas.pyi"
TYPES = {"Tensor": "Tensor", "Optional[Tensor]": "Tensor | None", "int": "int", "bool": "bool",
         "float": "float", "Optional[float]": "float | None"}  # fmt: skip
HEAD = '''\
"""The types of `torch.ops.diffattn`: a type checker cannot read csrc/bindings/schemas.cpp.

Written by tools/schema_stub.py (make docs). Nothing can be imported from here at run time.
"""

from typing import Protocol

from torch import Tensor
from torch._ops import OpOverload
'''


def text() -> str:
    """The whole file."""
    everything = "".join(f"    {op}: {class_name(op)}\n" for op in OPS)
    return "\n".join([HEAD, *map(protocol, OPS), f"class Ops(Protocol):\n{everything}"])


def class_name(op: str) -> str:
    return op.title().replace("_", "")


def argument(a: Any) -> str:
    default = f" = {a.default_value!r}" if a.has_default_value() else ""
    return f"{a.name}: {TYPES[str(a.type)]}{default}"


def protocol(op: str) -> str:
    schema: Any = getattr(torch.ops.diffattn, op).default._schema
    arguments = "".join(f"        {argument(a)},\n" for a in schema.arguments)
    result = ", ".join(TYPES[str(r.type)] for r in schema.returns)
    return (
        f"class {class_name(op)}(Protocol):\n    default: OpOverload\n"
        "    def __call__(\n        self,\n"
        f"{arguments}    ) -> tuple[{result}]: ...\n"
    )


if __name__ == "__main__":
    TARGET.write_text(text())
