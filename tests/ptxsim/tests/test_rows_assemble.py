"""Every row of every truth table is PTX that ptxas accepts for its target: the tables cannot invent instructions."""

import importlib
import shutil
import subprocess
from collections import defaultdict
from pathlib import Path

import pytest
from truth import entry_text, module_text

TABLES = sorted(p.stem for p in Path(__file__).parent.glob("test_truth_*.py"))


def texts(table):
    """One module per target, with a kernel per row."""
    modules = defaultdict(list)
    for i, row in enumerate(importlib.import_module(table).ROWS):
        modules[row.target].append(entry_text(row, f"row{i}"))
    return {target: module_text(target, entries) for target, entries in modules.items()}


@pytest.mark.parametrize("table", TABLES)
def test_ptxas_accepts(table, nvcc, tmp_path):
    ptxas = Path(nvcc).with_name("ptxas")
    assert ptxas.exists() or shutil.which("ptxas")
    for target, text in texts(table).items():
        source = tmp_path / f"{target}.ptx"
        source.write_text(text)
        done = subprocess.run([str(ptxas), "-O0", "-arch", target, str(source), "-o", str(tmp_path / "out")],
                              capture_output=True, text=True)
        assert done.returncode == 0, f"{target}: {quote(done.stderr, text)}"


def quote(errors, text):
    """ptxas errors with the PTX line they point at."""
    lines, shown = text.splitlines(), []
    for message in errors.splitlines()[:12]:
        number = message.split("line ")[-1].split(";")[0]
        shown.append(message + (f"\n    {lines[int(number) - 1]}" if number.isdigit() else ""))
    return "\n".join(shown)
