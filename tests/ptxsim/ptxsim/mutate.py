"""Mutation of PTX: one barrier, wait, predicate, fence, address term, fragment register, commit, phase parity, count of an
mbarrier or matrix descriptor at a time.

A suite that lets a mutant live does not test what the mutated line is there for:

    report = run_mutants(module.text, check, kinds=("barrier", "wait"))    # check(text) raises when something is wrong
    print(report)                                                         # survivors with their PTX lines
    assert report.rate >= 0.95

Only text is changed, a line at a time, as nvcc writes it: one instruction a line.
"""

import random
import re
from collections import defaultdict
from dataclasses import dataclass

from .mutation_runner import MutationReport, run_in_processes

KINDS = ("barrier", "wait", "predicate", "fence", "address", "fragment", "commit", "parity", "count", "descriptor", "box")

INSTRUCTION = re.compile(r"^(?P<indent>\s*)(?:@(?P<guard>!?%\w+)\s+)?(?P<opcode>[a-z][\w.:]*)(?:\s+(?P<operands>[^;]*))?;")
REGISTER = re.compile(r"%[a-z_]\w*")
ADDRESSED = re.compile(r"\[\s*(%\w+)\s*(?:\+\s*(-?\w+)\s*)?\]")
# Integer instructions through which an address is computed, from their results back to their operands.
ADDRESS_OPCODES = "add sub mad mul shl shr and or xor lop3 cvt cvta mov selp bfe bfi shf min max neg".split()
MEMORY_OPCODES = "ld ldu st atom red cp ldmatrix stmatrix mbarrier".split()


@dataclass(frozen=True)
class Mutant:
    ptx_line: int  # 1-based line of the PTX text
    kind: str
    text: str  # the line after the change; empty if it was dropped
    original: str

    def apply(self, ptx):
        """The whole PTX with this one line changed. No line is added or removed, so line numbers stay."""
        lines = ptx.split("\n")
        assert lines[self.ptx_line - 1] == self.original, "the mutant belongs to another text"
        lines[self.ptx_line - 1] = self.text
        return "\n".join(lines)

    def __str__(self):
        return f"{self.ptx_line:6d}  {self.kind:9s}  {self.original.strip()}  →  {self.text.strip() or '(dropped)'}"


@dataclass(frozen=True)
class Line:
    """One instruction of the text."""

    number: int
    raw: str
    indent: str
    guard: str
    opcode: str
    operands: tuple

    @property
    def family(self):
        return self.opcode.split(".")[0]

    def rewritten(self, opcode, *operands, guard=True):
        prefix = f"@{self.guard} " if guard and self.guard else ""
        return f"{self.indent}{prefix}{opcode} {', '.join(operands)};".rstrip(" ;") + ";"


def split_operands(text):
    """Operands at the commas outside braces, brackets and parentheses."""
    parts, depth, current = [], 0, ""
    for char in text:
        depth += char in "{[("
        depth -= char in "}])"
        if char == "," and depth == 0:
            parts.append(current.strip())
            current = ""
        else:
            current += char
    return tuple(parts + [current.strip()]) if current.strip() or parts else ()


def functions_of(ptx):
    """Instructions of each .entry and .func: register names mean something only inside one."""
    functions, current = [], None
    for number, raw in enumerate(ptx.split("\n"), 1):
        named = re.search(r"\.(?:entry|func)\b[^%]*?(\w+)\s*(?:\(|$)", raw)
        if re.search(r"\.(entry|func)\b", raw):
            current = (named.group(1) if named else "", [])
            functions.append(current)
        match = INSTRUCTION.match(raw)
        if match and current and not match["opcode"].startswith(("ret", "exit")):
            current[1].append(
                Line(number, raw, match["indent"], match["guard"] or "", match["opcode"], split_operands(match["operands"] or ""))
            )
    return functions


# ---- what may be changed -----------------------------------------------------------------------


def barrier_changes(line, context):
    """Drop a barrier; or let it hold only the warp together."""
    if line.family in ("bar", "barrier"):
        yield ""
        if re.match(r"(bar|barrier)(\.cta)?\.sync", line.opcode) and len(line.operands) == 1:
            yield line.rewritten("bar.warp.sync", "0xffffffff")
    elif line.opcode.startswith(("barrier.cluster", "mbarrier.arrive")):
        yield ""


def wait_changes(line, context):
    """Drop a wait; or let one more group be in flight."""
    if re.match(r"(cp\.(reduce\.)?async(\.bulk)?|wgmma)\.wait_(group|all)", line.opcode):
        yield ""
        if "wait_group" in line.opcode and line.operands and line.operands[0].isdigit():
            yield line.rewritten(line.opcode, str(int(line.operands[0]) + 1))


def predicate_changes(line, context):
    """Make a guarded instruction unconditional, a branch never or always taken, a selection one-sided."""
    if line.guard and line.family == "bra":
        yield ""
        if context.label_line(line.operands[0]) > line.number:  # always taken backwards would only loop for ever
            yield line.rewritten(line.opcode, *line.operands, guard=False)
    elif line.guard:
        yield line.rewritten(line.opcode, *line.operands, guard=False)
    elif line.opcode in ("and.pred", "or.pred"):
        yield line.rewritten("mov.pred", line.operands[0], line.operands[1])
        yield line.rewritten("mov.pred", line.operands[0], line.operands[2])
    elif line.family == "selp":
        size = re.search(r"\d+", line.opcode)[0]
        for side in line.operands[1:3]:
            yield line.rewritten(f"mov.b{size}", line.operands[0], side)


def fence_changes(line, context):
    if line.family in ("membar", "fence") or line.opcode.startswith("wgmma.fence"):
        yield ""


def commit_changes(line, context):
    """Drop a commit: what it would have put in a group is waited for by nobody."""
    if "commit_group" in line.opcode:
        yield ""


def parity_changes(line, context):
    """Wait for the other phase."""
    if not re.match(r"mbarrier\.(test|try)_wait\.parity", line.opcode):
        return
    parity = line.operands[2]
    if parity.isdigit():
        yield line.rewritten(line.opcode, *line.operands[:2], str(int(parity) ^ 1), *line.operands[3:])
    else:
        flip = f"xor.b32 {parity}, {parity}, 1;"
        yield f"{line.indent}{flip} {line.rewritten(line.opcode, *line.operands).strip()} {flip}"


def count_changes(line, context):
    """An mbarrier that expects an arrival more or less, or 16 bytes."""
    if line.family != "mbarrier" or not line.operands[-1].isdigit():
        return
    count, step = int(line.operands[-1]), 16 if "expect_tx" in line.opcode else 1
    if step == 1 and ".init" not in line.opcode:
        return
    for changed in (count - step, count + step):
        if changed > 0:
            yield line.rewritten(line.opcode, *line.operands[:-1], str(changed))


def descriptor_changes(line, context):
    """The constant part of a matrix descriptor: another stride, another swizzle."""
    if not context.multiplies_warpgroups or not re.search(r"\.[bus]64$", line.opcode) or line.family not in ("or", "add", "mov"):
        return
    if re.fullmatch(r"-?\d+", line.operands[-1]) and abs(bits := int(line.operands[-1])) >> 32:
        for changed in (bits + (1 << 32), bits ^ 3 << 62 if bits > 0 else bits ^ 1 << 62):
            yield line.rewritten(line.opcode, *line.operands[:-1], str(changed if changed < 1 << 63 else changed - (1 << 64)))


def box_changes(line, context):
    """Another place in the tensor: each coordinate of a copy is off by one."""
    box = re.search(r"\{([^}]*)\}\s*\]", line.raw)
    if ".tensor." not in line.opcode or not box:
        return
    names = [name.strip() for name in box[1].split(",")]
    for i, name in enumerate(names):
        if name.startswith("%"):
            yield f"{line.indent}add.s32 {name}, {name}, 1; {line.raw.strip()} sub.s32 {name}, {name}, 1;"
        else:
            moved = [*names[:i], str(int(name) + 1), *names[i + 1 :]]
            yield line.raw[: box.start(1)] + ", ".join(moved) + line.raw[box.end(1) :]


def address_changes(line, context):
    """Drop one term of a sum an address depends on, or the offset inside the brackets."""
    if line.family in MEMORY_OPCODES:
        for match in ADDRESSED.finditer(line.raw):
            if match[2] and match[2] != "0":
                yield line.raw[: match.start()] + f"[{match[1]}]" + line.raw[match.end() :]
        return
    if not line.operands or line.operands[0] not in context.address_registers:
        return
    out, *terms = line.operands
    if any(context.rounds_a_quotient(t) for t in terms):
        return
    if line.family in ("add", "or", "xor", "sub") and ".cc" not in line.opcode and len(terms) == 2:
        # A predicate that selects an address counts as one of its terms.
        pred = line.opcode.endswith(".pred")
        kind = "pred" if pred else "b" + re.search(r"(\d+)$", line.opcode)[1]
        yield line.rewritten(f"mov.{kind}", out, terms[0])
        if terms[1].startswith("%") and line.family != "sub":
            yield line.rewritten(f"mov.{kind}", out, terms[1])
    elif line.family == "mad" and ".cc" not in line.opcode and ".sat" not in line.opcode:
        size = int(re.search(r"(\d+)$", line.opcode)[1]) * (2 if ".wide." in line.opcode else 1)
        yield line.rewritten(f"mov.b{size}", out, terms[2])
        yield line.rewritten("mul" + line.opcode[3:], out, terms[0], terms[1])


def fragment_changes(line, context):
    """Swap two registers of a fragment: each operand of an mma, the results of ldmatrix."""
    if line.family not in ("mma", "ldmatrix", "stmatrix"):
        return
    spans = [m for m in re.finditer(r"\{([^}]*)\}", line.raw)]
    for span in spans[1:] if line.family == "mma" else spans[:1]:
        names = [n.strip() for n in span[1].split(",")]
        for i, j in ((0, 1), (1, 2)):
            if j < len(names) and names[i] != names[j]:
                swapped = names[:]
                swapped[i], swapped[j] = names[j], names[i]
                yield line.raw[: span.start()] + "{" + ", ".join(swapped) + "}" + line.raw[span.end() :]


CHANGES = {
    "barrier": barrier_changes,
    "wait": wait_changes,
    "predicate": predicate_changes,
    "fence": fence_changes,
    "address": address_changes,
    "fragment": fragment_changes,
    "commit": commit_changes,
    "parity": parity_changes,
    "count": count_changes,
    "descriptor": descriptor_changes,
    "box": box_changes,
}


class Context:
    """What a change has to know of the function around it."""

    def __init__(self, lines, labels):
        self.labels = labels
        self.multiplies_warpgroups = any(line.opcode.startswith("wgmma.mma_async") for line in lines)
        self.definitions = defaultdict(list)
        for line in lines:
            if line.operands:
                for register in REGISTER.findall(line.operands[0]):
                    self.definitions[register].append(line)
        self.address_registers = self.backward_slice(
            {r for line in lines if line.family in MEMORY_OPCODES for r, _ in ADDRESSED.findall(line.raw)}
        )

    def backward_slice(self, roots):
        """Registers that integer arithmetic turns into one of the roots."""
        reached, open_ends = set(), list(roots)
        while open_ends:
            register = open_ends.pop()
            if register in reached:
                continue
            reached.add(register)
            for line in self.definitions[register]:
                if line.family in ADDRESS_OPCODES and not re.search(r"\.(f16|f32|f64|bf16|pred)", line.opcode):
                    open_ends += [r for operand in line.operands[1:] for r in REGISTER.findall(operand)]
        return reached

    def label_line(self, name):
        return self.labels.get(name, 0)

    def rounds_a_quotient(self, term):
        """x + (x >> 31 >>> n): the term nvcc adds before it divides a signed number; zero unless that is negative."""
        return any(
            line.opcode.startswith("shr.u")
            and any(d.opcode.startswith("shr.s") and d.operands[2] in ("31", "63") for d in self.definitions[line.operands[1]])
            for line in self.definitions.get(term, ())
        )


def labels_of(ptx):
    return {match[1]: number for number, raw in enumerate(ptx.split("\n"), 1) if (match := re.match(r"\s*([$\w]+):", raw))}


def mutants_of(ptx, kinds=KINDS, kernel=""):
    """Every mutant of the given kinds, of all functions or of those whose name contains `kernel`, by line."""
    unknown = set(kinds) - set(KINDS)
    if unknown:
        raise ValueError(f"unknown kinds {sorted(unknown)}; there are {', '.join(KINDS)}")
    labels, found = labels_of(ptx), []
    for name, lines in functions_of(ptx):
        if kernel in name:
            context = Context(lines, labels)
            found += [
                Mutant(line.number, kind, text, line.raw)
                for line in lines
                for kind in kinds
                for text in CHANGES[kind](line, context)
                if text != line.raw
            ]
    return sorted(found, key=lambda m: (m.ptx_line, m.kind))


def run_mutants(ptx, test, mutants=None, kinds=KINDS, kernel="", limit=None, seed=0, processes=2, timeout=None):
    """Run test(text) on each mutant and report which it killed, by raising.

    Each mutant runs in a forked process of its own, so one that crashes or hangs harms nothing; `timeout` in seconds
    defaults to a multiple of what the unchanged text takes. `limit` draws that many mutants, by `seed`.
    """
    mutants = mutants_of(ptx, kinds, kernel) if mutants is None else list(mutants)
    if limit is not None and len(mutants) > limit:
        mutants = sorted(random.Random(seed).sample(mutants, limit), key=lambda m: (m.ptx_line, m.kind))
    return run_in_processes(ptx, test, mutants, processes, timeout)


__all__ = ["KINDS", "Mutant", "MutationReport", "mutants_of", "run_mutants"]
