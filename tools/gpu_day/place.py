"""Where the day's commands run: with the wheel's package, not the checkout's."""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
NEEDED = ("torch", "numpy", "pytest", "hypothesis")
# CUDA's tools, where NVIDIA's installers and packages put them.
TOOL_FOLDERS = ("/usr/local/cuda/bin", "/opt/nvidia/nsight-compute/*", "/usr/local/cuda/nsight*")


@dataclass(frozen=True)
class Place:
    """The unpacked wheel, the folder for results, and the device."""

    package: Path
    out: Path
    device: str = "cuda"

    def environment(self) -> dict[str, str]:
        """The wheel comes before any other package; tools/ makes `gpu_day.deadline` a plugin."""
        paths = [str(self.package), str(ROOT / "tools")]
        return dict(os.environ) | {"PYTHONPATH": os.pathsep.join(paths)}


def prepare(wheel: Path | None, out: Path, device: str) -> Place:
    """Unpacks the wheel, which needs no pip: it holds a package and nothing to run."""
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise SystemExit(
            f"{sys.executable} lacks {', '.join(missing)}, needed: {', '.join(NEEDED)}"
        )
    chosen = wheel or newest_wheel(ROOT / "dist")
    if not zipfile.is_zipfile(chosen):
        raise SystemExit(f"the wheel is {chosen}, expected a .whl file: make wheel, or GPU_WHEEL=…")
    out.mkdir(parents=True, exist_ok=True)
    package = out.resolve() / "package"
    shutil.rmtree(package, ignore_errors=True)
    with zipfile.ZipFile(chosen) as archive:
        archive.extractall(package)
    print(f"wheel {chosen}, results in {out}", flush=True)
    return Place(package, out.resolve(), device)


def newest_wheel(folder: Path) -> Path:
    wheels = sorted(folder.glob("diffattn_cuda-*.whl"), key=lambda path: path.stat().st_mtime)
    if not wheels:
        raise SystemExit(f"no wheel in {folder}: make wheel, or GPU_WHEEL=…")
    return wheels[-1]


def find_tool(name: str) -> str:
    """compute-sanitizer or ncu: on PATH, or where CUDA is."""
    home = os.environ.get("CUDA_HOME")
    folders = [Path(home) / "bin"] if home else []
    for pattern in TOOL_FOLDERS:
        folders += sorted(Path("/").glob(pattern.lstrip("/")), reverse=True)
    found = shutil.which(name) or shutil.which(name, path=os.pathsep.join(map(str, folders)))
    if found is None:
        raise SystemExit(
            f"no {name} on PATH, in CUDA_HOME/bin or in {', '.join(TOOL_FOLDERS)}: it comes with "
            "the CUDA toolkit and needs no compiler"
        )
    return found
