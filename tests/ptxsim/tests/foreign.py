"""Where code that nobody here wrote lies: packages from PyPI. Nothing of it is copied; what is absent skips its tests, with the
reason. Also a command: runs the main() of an example in a process of its own, because examples end their process.

    python foreign.py example.cu --off elect descriptor --seed 3 -- --m=512 --n=256
"""

import argparse
import ctypes
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))
import ptxsim  # noqa: E402 (the package lies beside this folder)

STAND_INS = HERE / "cases" / "stand_ins"


def package(name, why):
    """The folder of an installed package, without importing it."""
    found = importlib.util.find_spec(name)
    if found is None:
        pytest.skip(f"{why} is not installed")
    return Path(found.submodule_search_locations[0])


def cutlass():
    """nvidia-cutlass is a build requirement of the project, so it is there wherever nvcc is."""
    found = importlib.util.find_spec("cutlass_library")
    assert found, "nvidia-cutlass is not installed"
    return Path(found.submodule_search_locations[0]) / "source"


def cutlass_folders():
    return [cutlass() / "include", cutlass() / "tools/util/include"]


def curand():
    """CUTLASS's examples fill matrices by cuRAND's device code, whose headers come with nvidia-curand (and so with torch)."""
    site = Path(importlib.util.find_spec("numpy").origin).parents[1] / "nvidia"
    found = [folder for folder in (*site.glob("cu*/include"), site / "curand" / "include") if (folder / "curand_kernel.h").exists()]
    if not found:
        pytest.skip("nvidia-curand is not installed: CUTLASS's examples include curand_kernel.h")
    return found[0]


def fallback(folder):
    """A folder of headers that is searched after all others: it may hold those of another toolkit too."""
    return ["-Xcompiler", "-idirafter", "-Xcompiler", str(folder)]


def example(name):
    """The source of a CUTLASS example, by its number."""
    (source,) = (cutlass() / "examples").glob(f"{name}_*/*.cu")
    return source


def example_flags(source):
    folders = [*cutlass_folders(), cutlass() / "examples/common", source.parent]
    return ["-std=c++17", "--expt-relaxed-constexpr", *(f"-I{folder}" for folder in folders), *fallback(curand())]


def run_example(name, *arguments, off=(), seed=0):
    """What the example prints, with the simulator's error at the end if that stopped it, and its exit status."""
    command = [sys.executable, __file__, str(example(name)), "--seed", str(seed), "--off", *off, "--", *arguments]
    done = subprocess.run(command, capture_output=True, text=True)
    return done.stdout + done.stderr, done.returncode


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path)
    parser.add_argument("--off", nargs="*", default=[], help="checks")
    parser.add_argument("--seed", type=int, default=0)
    at = sys.argv.index("--")
    args, given = parser.parse_args(sys.argv[1:at]), sys.argv[at + 1 :]
    library = ptxsim.Library([str(args.source)], arch="90a", flags=example_flags(args.source))
    words = [args.source.stem, *given]
    argv = (ctypes.c_char_p * len(words))(*(word.encode() for word in words))
    at_exit = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_void_p)(lambda *_: print_pending())
    ctypes.CDLL(None).on_exit(at_exit, None)  # an example that fails calls exit()
    try:
        with ptxsim.Device("sm_90a", seed=args.seed, checks=dict.fromkeys(args.off, False)):
            status = library.main(len(words), argv)
    except ptxsim.SimError as error:
        status = show(error)
    sys.stdout.flush()
    ctypes.CDLL(None).fflush(None)
    os._exit(status)  # at_exit must not run without an interpreter


def print_pending():
    try:
        ptxsim.raise_pending()
    except ptxsim.SimError as error:
        show(error)


def show(error):
    print(f"{type(error).__name__}: {error}", flush=True)
    return 3


if __name__ == "__main__":
    main()
