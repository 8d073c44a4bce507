"""What the build needs, asked before anything of it is imported, so that a lack is told in words.

The standard library alone: build_backend.py and setup.py import this first.
"""

import os
import sys
from importlib import metadata

SETUPTOOLS, TORCH = (77, 0), (2, 10)
HOW_TO_GET = (
    "with --no-build-isolation they have to be installed beforehand: "
    "pip install 'torch>=2.10' 'setuptools>=77' ninja"
)


def numbers(version):
    """The first two numbers: 2.10 of 2.10.0+cu130."""
    parts = version.replace("+", ".").replace("a", ".").replace("rc", ".").split(".")
    return tuple(int(part) if part.isdigit() else 0 for part in [*parts, "0"][:2])


def installed(name):
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def lack(name, oldest):
    """What is wrong with an installed package; an empty string if nothing is."""
    found, needed = installed(name), ".".join(map(str, oldest))
    if found is None:
        wrong = f"{name} is not installed"
    elif numbers(found) < oldest:
        wrong = f"{name} {found} is too old"
    else:
        return ""
    return f"{wrong}: diffattn_cuda is built with {name} >= {needed}; {HOW_TO_GET}"


def platform_lack(platform=sys.platform, confstr=os.confstr):
    """The package is for Linux with glibc, because PyTorch is."""
    if platform != "linux":
        return f"diffattn_cuda is for Linux, this is {platform}"
    try:
        libc = confstr("CS_GNU_LIBC_VERSION") or ""
    except (ValueError, OSError):
        libc = ""
    return "" if libc.startswith("glibc") else "diffattn_cuda needs glibc; musl has no PyTorch"


def check():
    """Ends the build with one sentence if it cannot succeed."""
    reason = platform_lack() or lack("setuptools", SETUPTOOLS) or lack("torch", TORCH)
    if reason:
        raise SystemExit(reason)
