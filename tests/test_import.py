"""What `import diffattn_cuda` says where something is missing, and which version it has."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

import diffattn_cuda

PACKAGE = Path(diffattn_cuda.__file__).parent
PRINT = "import diffattn_cuda; print(diffattn_cuda.__version__)"
HIDE = """
from importlib import metadata
def version(name): raise metadata.PackageNotFoundError(name)  # torch's folder may hold ours too
metadata.version = version
"""


def source_tree(folder: Path) -> Path:
    """The package's Python alone, as in a clone that was not built."""
    return Path(shutil.copytree(PACKAGE, folder / "diffattn_cuda",
                                ignore=shutil.ignore_patterns("*.so", "__pycache__")))  # fmt: skip


def python(folder: Path, code: str) -> subprocess.CompletedProcess[str]:
    """Without .pth files: that of an editable install would find what is missing in the folder."""
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    packages = [path for path in sys.path if path.endswith("site-packages")]
    code = f"import sys; sys.path += {packages}\n{code}"
    return subprocess.run([sys.executable, "-S", "-c", code], cwd=folder, env=environment,
                          text=True, capture_output=True)  # fmt: skip


def test_without_compiled_modules(tmp_path: Path) -> None:
    package = source_tree(tmp_path)
    result = python(tmp_path, "import diffattn_cuda")
    last = result.stderr.strip().splitlines()[-1]
    assert last.startswith(f"ImportError: {package} has no compiled modules")
    assert "make build" in last and "another folder" in last and "circular" not in result.stderr


def test_without_torch(tmp_path: Path) -> None:
    source_tree(tmp_path)
    (tmp_path / "hide.py").write_text("import sys\nsys.modules['torch'] = None\n")
    result = python(tmp_path, "import hide, diffattn_cuda")
    last = result.stderr.strip().splitlines()[-1]
    assert last == (
        "ModuleNotFoundError: diffattn_cuda needs PyTorch >= 2.10, which is not installed"
    )


def test_version_is_that_of_the_installed_distribution() -> None:
    try:
        expected = metadata.version("diffattn_cuda")
    except metadata.PackageNotFoundError:
        expected = "0+unknown"
    assert diffattn_cuda.__version__ == expected


@pytest.mark.parametrize("installed", [False, True])
def test_version(tmp_path: Path, installed: bool) -> None:
    """From the metadata next to the package; none in a tree that was built in place."""
    shutil.copytree(PACKAGE, tmp_path / "diffattn_cuda")
    if installed:
        (tmp_path / "diffattn_cuda-9.8.7.dist-info").mkdir()
        (tmp_path / "diffattn_cuda-9.8.7.dist-info" / "METADATA").write_text(
            "Metadata-Version: 2.1\nName: diffattn_cuda\nVersion: 9.8.7\n"
        )
    result = python(tmp_path, (HIDE if not installed else "") + PRINT)
    assert result.stdout.strip() == ("9.8.7" if installed else "0+unknown"), result.stderr


def test_a_torch_that_is_too_old(tmp_path: Path) -> None:
    """Its libraries lack what the modules need, which the linker says in its own words."""
    package = source_tree(tmp_path)
    (package / "_cpu.abi3.so").write_bytes(b"")  # stands for a module that cannot be loaded
    (tmp_path / "age.py").write_text("import torch\ntorch.__version__ = '2.9.1+cpu'\n")
    result = python(tmp_path, "import age, diffattn_cuda")
    last = result.stderr.strip().splitlines()[-1]
    assert last == "ImportError: diffattn_cuda needs PyTorch >= 2.10, found 2.9.1+cpu"
    unchanged = python(tmp_path, "import diffattn_cuda").stderr.strip().splitlines()[-1]
    assert unchanged.startswith("ImportError: ") and "PyTorch" not in unchanged
