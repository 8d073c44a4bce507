"""Write docs/api.md from the package's docstrings: `python docs/api.py`, or `make docs`.

griffe reads them; nothing is imported. tests/test_docs.py asks that the file be up to date.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import griffe

ROOT = Path(__file__).resolve().parent.parent
TARGET = ROOT / "docs" / "api.md"
WIDTH = 100
PAGE = {
    "diffattn_cuda": "functional",
    "diffattn_cuda.components": "components",
    "diffattn_cuda.distributed": "distributed",
    "diffattn_cuda.flops": "flops",
    "diffattn_cuda.nn": "nn",
    "diffattn_cuda.nn: caches": "caches",
    "diffattn_cuda.duo": "duo",
    "diffattn_cuda.head_patterns": "head_patterns",
    "diffattn_cuda.passkeys": "passkeys",
    "diffattn_cuda.hf": "hf",
    "diffattn_cuda.reference": "reference",
}
HEAD = """\
<!-- Written by docs/api.py (make docs) from the docstrings; do not edit. -->
# API reference

The tests run the examples, which begin with `import torch` and the import of what they call.
`Lambda` is `float | Tensor`, `Window` is `tuple[int, int]`, `Heads` is `Sequence[bool] | Tensor |
None`, and a `Result` is a tensor, (out, lse) with `return_lse`, or (o, lse) with
`return_components`.
"""
Documented = griffe.Module | griffe.Class | griffe.Function


def page() -> str:
    """The whole of docs/api.md."""
    blocks = [HEAD.strip()]
    for title, name in PAGE.items():
        blocks += [f"## {title}", *sections(module(name))]
        for member in public(name):
            blocks += described(member)
    return "\n\n".join(blocks) + "\n"


@cache
def module(name: str) -> griffe.Module:
    """Of the package, parsed."""
    found = griffe.load(
        f"diffattn_cuda.{name}",
        search_paths=[ROOT],
        docstring_parser="google",
        docstring_options={"returns_multiple_items": False, "returns_named_value": False},
        allow_inspection=False,
    )
    assert isinstance(found, griffe.Module)
    return found


def public(name: str) -> list[griffe.Class | griffe.Function]:
    """Functions and classes that the module defines, in its order."""
    own = module(name).members.values()
    return [m for m in own if isinstance(m, griffe.Class | griffe.Function) and m.is_public]


def described(member: griffe.Class | griffe.Function, owner: str = "") -> Iterator[str]:
    """Heading, signature, docstring; of a class also its methods."""
    yield f"{'####' if owner else '###'} {owner}{member.name}"
    yield f"```python\n{signature(member)}\n```"
    yield from sections(member)
    if isinstance(member, griffe.Class):
        for method in member.all_members.values():
            if method.is_function and method.is_public and method.docstring:
                yield from described(method, f"{member.name}.")  # type: ignore[arg-type]


def signature(member: griffe.Class | griffe.Function) -> str:
    """As in the source, on lines of WIDTH that break between parameters only."""
    parts = []
    for p in member.parameters:
        if p.kind is griffe.ParameterKind.keyword_only and "*" not in parts:
            parts.append("*")
        if p.name != "self":
            parts.append(f"{p.name}: {p.annotation}" + (f" = {p.default}" if p.default else ""))
    result = "" if member.is_class else f" -> {member.returns}"  # type: ignore[union-attr]
    whole = f"{member.name}({', '.join(parts)}){result}"
    if len(whole) <= WIDTH:
        return whole
    unbroken = ", ".join(part.replace(" ", "\0") for part in parts)
    lines = textwrap.fill(unbroken, WIDTH, initial_indent="    ", subsequent_indent="    ")
    return f"{member.name}(\n{lines},\n){result}".replace("\0", " ")


def sections(member: Documented) -> Iterator[str]:
    """The docstring's, as markdown."""
    for section in member.docstring.parsed if member.docstring else []:
        match section:
            case griffe.DocstringSectionText():
                yield section.value
            case griffe.DocstringSectionParameters() | griffe.DocstringSectionAttributes():
                yield items(section.kind.value.title(), [(i.name, i) for i in section.value])
            case griffe.DocstringSectionRaises():
                yield items("Raises", [(str(i.annotation), i) for i in section.value])
            case griffe.DocstringSectionReturns():
                yield "**Returns** " + " ".join(section.value[0].description.split())
            case griffe.DocstringSectionExamples():
                yield "**Examples**"
                yield from (example(kind, value) for kind, value in section.value)
            case _:
                raise ValueError(f"{member.path}: no rule for a section of {section.kind.value}")


def items(title: str, named: list[tuple[str, griffe.DocstringElement]]) -> str:
    lines = (f"- `{name}`: {' '.join(item.description.split())}" for name, item in named)
    return f"**{title}**\n\n" + "\n".join(lines)


def example(kind: griffe.DocstringSectionKind, value: str) -> str:
    return f"```pycon\n{value}\n```" if kind is griffe.DocstringSectionKind.examples else value


if __name__ == "__main__":
    TARGET.write_text(page())
