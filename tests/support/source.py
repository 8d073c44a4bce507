"""C++ and Python as text: comments, blocks between braces, fields, names. Enough for the laws."""

from __future__ import annotations

import io
import re
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass

TYPE = re.compile(r"^(?:\w+\s+)*?(?:namespace|struct|class|enum|union)\b|^extern\s*\"C\"")
STATEMENTS = {"if", "else", "for", "while", "switch", "catch", "return"}


@dataclass(frozen=True)
class Block:
    """What stands between two braces."""

    line: int
    length: int
    opener: str  # the statement before it, without template heads and preprocessor lines

    @property
    def is_function(self) -> bool:
        """Or a statement or initialiser inside one."""
        return not TYPE.match(self.opener)

    @property
    def name(self) -> str:
        """Of the function or type that it is the body of; "" for anything else."""
        opener = re.sub(r"__\w+__\s*\([^()]*\)", " ", self.opener)  # __launch_bounds__(…)
        if found := re.match(r"(?:struct|class|union|enum(?: class)?)\s+(\w+)", opener):
            return found[1]
        first = re.match(r"\w*", opener)
        whole = opener.count("(") == opener.count(")")
        found = re.match(r"[\w:<>,*&\s\[\]]*?[\w>*&]\s+[*&]*(\w+)\s*\(", opener)
        is_signature = found and whole and first and first[0] not in STATEMENTS
        return found[1] if found and is_signature else ""


def without_comments(text: str) -> str:
    """C++ text with comments blanked; line numbers stay."""
    block = re.compile(r"/\*.*?\*/", re.DOTALL)
    text = block.sub(lambda m: "\n" * m.group().count("\n"), text)
    return re.sub(r"//[^\n]*", "", text)


def comments(text: str, suffix: str) -> Iterator[tuple[int, str]]:
    """Each comment with its line.

    Of Python also each string that stands alone (a docstring); of Markdown what stands in `…`.
    """
    if suffix != ".py":
        pattern = r"`[^`\n]+`" if suffix == ".md" else r"//[^\n]*|/\*.*?\*/"
        for found in re.finditer(pattern, text, re.DOTALL):
            yield text.count("\n", 0, found.start()) + 1, found.group()
        return
    fresh = True
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT or (fresh and token.type == tokenize.STRING):
            yield token.start[0], token.string
        elif token.type not in (tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT):
            fresh = False
        if token.type in (tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT):
            fresh = True


def blocks(text: str) -> Iterator[Block]:
    """Every {...} of C++ text without comments, innermost first."""
    text = re.sub(r"^\s*#(?:.*\\\n)*.*$", lambda m: "\n" * m.group().count("\n"), text, flags=re.M)
    stack: list[tuple[int, str]] = []
    line, statement = 1, ""
    for char in text:
        line += char == "\n"
        if char == "{":
            stack.append((line, statement))
        elif char == "}" and stack:
            start, opener = stack.pop()
            yield Block(start, line - start + 1, _bare(opener))
        statement = "" if char in "{};" else statement + char


def _bare(opener: str) -> str:
    """A statement without template heads and labels, in one line."""
    opener = re.sub(r"\b(?:public|private|protected)\s*:", " ", opener)
    while found := re.search(r"\btemplate\s*<", opener):
        depth, at = 1, found.end()
        while depth and at < len(opener):
            depth += {"<": 1, ">": -1}.get(opener[at], 0)
            at += 1
        opener = opener[: found.start()] + opener[at:]
    return " ".join(opener.split())


def body_after(text: str, start: int) -> str:
    """The text from just after an opening brace to its closing one."""
    depth = 1
    for at in range(start, len(text)):
        depth += {"{": 1, "}": -1}.get(text[at], 0)
        if depth == 0:
            return text[start:at]
    return text[start:]


def field_count(body: str) -> int:
    """Data members of a struct's body: each declarator of `View q, k, v;` counts."""
    body = re.sub(r"\{[^{}]*\}", "", body)
    body = re.sub(r"<[^<>]*>", "", body)
    members = [m.strip() for m in body.split(";")]
    data = [
        m for m in members if m and "(" not in m and not re.match(r"(static|using|struct)\b", m)
    ]
    return sum(m.count(",") + 1 for m in data)


def kernel_arguments(text: str) -> set[str]:
    """Names of types that __global__ functions take, from C++ text without comments."""
    names: set[str] = set()
    for found in re.finditer(r"__global__[^{;]*?\b(?!__)\w+\s*\(([^(){};]*)\)\s*[{;]", text):
        names |= set(re.findall(r"\b[A-Z]\w+", found[1]))
    return names


def dead_names(texts: dict[str, str]) -> list[str]:
    """Functions and types that C++ files define, and that no text uses."""
    clean = {path: without_comments(text) for path, text in texts.items()}
    defined: dict[str, list[str]] = {}
    for path, text in clean.items():
        for block in blocks(text):
            if block.name:
                defined.setdefault(block.name, []).append(path)
    words: dict[str, int] = {}
    for text in clean.values():
        for word in re.findall(r"\w+", text):
            words[word] = words.get(word, 0) + 1
    return sorted(f"{paths[0]}: {name}" for name, paths in defined.items()
                  if words[name] <= len(paths) and name != "main")  # fmt: skip
