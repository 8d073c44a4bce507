"""The site's pages that the sources decide, and its build."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT / "tools"))
import support_table  # noqa: E402


def test_the_support_tables_are_those_of_the_sources(tmp_path: Path) -> None:
    page = tmp_path / "support.md"
    page.write_text(re.sub(r"^\|.*\n", "", support_table.PAGE.read_text(), flags=re.M))
    support_table.write(page)
    text = page.read_text()
    for row in [*support_table.cuda_rows(), *support_table.cpu_rows()]:
        assert f"| {' | '.join(row)} |" in text
        assert f"| {' | '.join(row)} |" in support_table.PAGE.read_text(), "run `make docs`"


def test_a_table_reads_a_new_architecture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "sm90"
    (folder / "instances").mkdir(parents=True)
    (folder / "kernels.cpp").write_text("[](int capability) { return capability >= 90; },")
    (folder / "instances" / "a.cu").write_text(
        "template void launch_fwd<__half, 64, 128>(const FwdParams&);\n"
        "template void launch_fwd<__half, 128, 128>(const FwdParams&);\n"
    )
    monkeypatch.setattr(support_table, "CUDA", tmp_path)
    where = ["sm90", "9.0 and later"]
    assert support_table.cuda_rows() == [
        [*where, "8–64", "fp16; V 2d wide", "no", "no"],
        [*where, "72–128", "fp16; V d wide", "no", "no"],
    ]
    (folder / "kernels.cpp").write_text("[](int capability) { return capability == 90; },")
    (folder / "instances" / "a.cu").write_text(
        "// Head dims over 32, up to 64.\n"
        "template void launch_fwd<__half, 64, 128>(const FwdParams&);\n"
    )
    only = [["sm90", "9.0", "40–64", "fp16; V 2d wide", "no", "no"]]
    assert support_table.cuda_rows() == only


def test_every_environment_variable_has_a_line() -> None:
    sources = [*ROOT.glob("csrc/**/*"), *ROOT.glob("diffattn_cuda/**/*.py"), ROOT / "setup.py",
               *ROOT.glob("tools/build_*.py")]  # fmt: skip
    texts = [path.read_text() for path in sources if path.is_file()]
    macros = {"DIFFATTN_OPS", "DIFFATTN_ARCHITECTURES"}  # of the compiler
    named = {name for text in texts for name in re.findall(r"\bDIFFATTN_\w+", text)} - macros
    page = (ROOT / "docs" / "environment.md").read_text()
    listed = set(re.findall(r"^\| `(DIFFATTN_\w+)`", page, re.M))
    assert listed == named and len(listed) >= 7


def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    pytest.importorskip("mkdocs")
    pytest.importorskip("material", reason="mkdocs-material is not installed")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir"]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run([*command, str(tmp_path)], cwd=ROOT, env=environment, text=True,
                          capture_output=True)  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    start = (tmp_path / "index.html").read_text()
    assert "Fused kernels for differential attention" in start
    assert 'href="examples/basic.html"' in start and 'href="simulator.html"' in start
    remote = re.findall(r'<(?:script|link)[^>]*(?:src|href)="(https?://[^"]*)"', start)
    assert not remote, "the site needs no other"
