"""setuptools' build backend, behind a look at what it needs: an old setuptools cannot say so."""

import build_checks

build_checks.check()
from setuptools.build_meta import *  # noqa: E402, F403
