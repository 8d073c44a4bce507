import functools
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
for folder in (HERE, HERE.parent):
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))

import ptxsim  # noqa: E402

CASES = HERE / "cases"


@pytest.fixture(scope="session")
def nvcc():
    """Path of nvcc; a test that asks for it is skipped with the reason where there is none."""
    path = ptxsim.find_nvcc()
    if path is None:
        pytest.skip("no nvcc on PATH, in CUDA_HOME or from PyPI")
    return path


@pytest.fixture
def device():
    return ptxsim.Device(profile="sm_80", seed=0, threads=2)


@pytest.fixture(scope="session")
def compile_case(nvcc):
    """compile_case("gemm") compiles cases/gemm.cu for sm_80, once a session."""

    @functools.cache
    def compiled(name, arch="sm_80", flags=()):
        return ptxsim.compile_cu(str(CASES / f"{name}.cu"), arch=arch, flags=list(flags))

    return compiled
