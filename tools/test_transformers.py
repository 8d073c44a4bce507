"""Run the tests of diffattn_cuda.hf with every version of transformers that it names as proven.

python tools/test_transformers.py FOLDER [PYTEST ARGUMENTS]: versions that are not installed go into
FOLDER, next to what is there; none of them replaces the one in the environment.
"""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

from diffattn_cuda.hf import PROVEN

ROOT = Path(__file__).resolve().parent.parent
# constraints.txt pins one version of transformers; the exact releases of the others stand here.
OTHERS = {"5.23": "5.23.0"}
TESTS = sorted(map(str, ROOT.glob("tests/test_hf_*.py")))


def main(folder: str, *arguments: str) -> int:
    installed = ".".join(version("transformers").split(".")[:2])
    for proven in PROVEN:
        path = Path(folder, proven).resolve()
        if proven != installed and not path.exists():
            pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps"]
            subprocess.run([*pip, "--target", path, f"transformers=={OTHERS[proven]}"], check=True)
        first = {} if proven == installed else {"PYTHONPATH": str(path)}
        print(f"transformers {proven}", flush=True)
        pytest = [sys.executable, "-m", "pytest", *TESTS, *arguments]
        status = subprocess.run(pytest, cwd=ROOT, env=os.environ | first).returncode
        if status:
            return status
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
