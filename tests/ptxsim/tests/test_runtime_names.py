"""No call of the CUDA runtime leaves the stand-in: every name libcudart exports is the engine's, with or without a real one beside it."""

import ctypes
import re
import subprocess
import sys
from pathlib import Path

import ptxsim
import pytest
from conftest import CASES, HERE
from ptxsim.build import runtime_names
from ptxsim.library import link_library

# In a process of its own: a real runtime comes first, as torch brings it, with its symbols open to everyone.
BESIDE_A_REAL_RUNTIME = """
import ctypes, sys
real = ctypes.CDLL(sys.argv[1], mode=ctypes.RTLD_GLOBAL)
sys.path.insert(0, sys.argv[2])
import ptxsim
library = ptxsim.Library([sys.argv[3]], flags=sys.argv[4:])
values, same, name = (ctypes.c_long * 64)(), (ctypes.c_long * 64)(), ctypes.create_string_buffer(256)
with ptxsim.Device(profile="sm_90"):
    assert library.properties(values, same, name) > 30 and values[:3] == [9, 0, 132], values[:3]
    x = (ctypes.c_int * 4)()
    assert library.copy_1d(x, (ctypes.c_int * 4)(1, 2, 3, 4), 16, 0) == 0 and list(x) == [1, 2, 3, 4]
    try:
        library.make_graph()
    except ptxsim.Unsupported as error:
        print(error)
"""


@pytest.fixture(scope="module")
def real_runtime(nvcc):
    """The toolkit's libcudart, or a skip: some toolkits come without."""
    said = subprocess.run([nvcc, "--dryrun", "-c", str(CASES / "host.cu")], capture_output=True, text=True).stderr
    top = Path(re.search(r"TOP=(\S+)", said)[1])
    found = sorted(top.glob("lib*/libcudart.so.13*")) + sorted(top.glob("targets/*/lib/libcudart.so.13*"))
    if not found:
        pytest.skip(f"no libcudart.so.13 in {top}")
    return found[0]


def functions_of(path):
    rows = [line.split() for line in subprocess.run(["nm", "-D", "--defined-only", str(path)], capture_output=True, text=True,
                                                    check=True).stdout.splitlines()]
    return {row[2].split("@")[0] for row in rows if len(row) == 3 and row[1] in "TWti"}


def test_the_engine_defines_every_name():
    missing = set(runtime_names()) - functions_of(ptxsim.engine_folder / "libptxsim_engine.so")
    assert not missing and len(runtime_names()) > 400


def test_the_names_are_the_toolkits(real_runtime):
    assert functions_of(real_runtime) == set(runtime_names())


def test_error_names_and_texts_are_the_toolkits(real_runtime):
    real, ours = ctypes.CDLL(str(real_runtime)), ctypes.CDLL(str(ptxsim.engine_folder / "libptxsim_engine.so"))
    for library in (real, ours):
        library.cudaGetErrorName.restype = library.cudaGetErrorString.restype = ctypes.c_char_p
    for code in range(-1, 1100):
        assert ours.cudaGetErrorName(code) == real.cudaGetErrorName(code)
        assert ours.cudaGetErrorString(code) == real.cudaGetErrorString(code)


@pytest.mark.parametrize("flags", [[], ["--default-stream", "per-thread"]], ids=["legacy", "per_thread"])
def test_nothing_falls_through_to_a_real_runtime(real_runtime, flags):
    command = [sys.executable, "-c", BESIDE_A_REAL_RUNTIME, str(real_runtime), str(HERE.parent), str(CASES / "runtime.cu"), *flags]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "Host code calls cudaGraphCreate, which is not simulated." in done.stdout


def test_a_name_the_stand_in_does_not_know_is_refused_when_linked(tmp_path):
    """A later toolkit's call, or the driver's: both would reach whatever the process has."""
    source = tmp_path / "later.cpp"
    source.write_text('extern "C" int cudaOfTomorrow(); extern "C" int cuInit(unsigned); int f() { return cudaOfTomorrow() + cuInit(0); }')
    subprocess.run(["g++", "-c", "-fPIC", str(source), "-o", str(tmp_path / "later.o")], check=True)
    with pytest.raises(ptxsim.Unsupported, match="Host code calls cuInit, cudaOfTomorrow, which"):
        link_library([tmp_path / "later.o"], tmp_path / "later.so")
