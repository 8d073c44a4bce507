"""Imports the compiled module, building it first when its sources changed."""

from __future__ import annotations

import ctypes
import importlib.util
import os
import sys
import sysconfig

from .build import build

folder = build()
# Local: its CUDA symbols must not capture those of a real runtime in this process; host libraries find it by its soname.
library = ctypes.CDLL(str(folder / "libptxsim_engine.so"), mode=os.RTLD_NOW | os.RTLD_LOCAL)
_path = folder / f"_ptxsim{sysconfig.get_config_var('EXT_SUFFIX')}"
_spec = importlib.util.spec_from_file_location("_ptxsim", _path)
assert _spec is not None and _spec.loader is not None
native = importlib.util.module_from_spec(_spec)
sys.modules["_ptxsim"] = native
_spec.loader.exec_module(native)
