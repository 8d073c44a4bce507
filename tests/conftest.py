"""Options, the `impl` fixture, and the choice of tests an implementation can run."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, settings
from support import impls
from support.bench import bench  # noqa: F401  a fixture
from support.impls import Impl
from support.ranks import Ranks

settings.register_profile(
    "ci",
    derandomize=True,  # the same examples on every run: a red CI is reproducible
    deadline=None,
    max_examples=60,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
settings.register_profile("search", settings.get_profile("ci"), derandomize=False,
                          max_examples=2000)  # fmt: skip
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--device", default="cpu", choices=["cpu", "sim", "cuda"],
                     help="where the implementation under test runs")  # fmt: skip
    parser.addoption("--sim-profile", default="sm_80", help="--device sim: which GPU")
    parser.addoption("--sim-seed", default=0, type=int, help="--device sim: what hardware decides")
    parser.addoption("--impl", default="package", choices=["package", "reference"],
                     help="what to test; the reference tests the suite itself")  # fmt: skip


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "needs(what): the Impl attribute this test depends on")


def _load(config: pytest.Config) -> Impl:
    options = ("--device", "--impl", "--sim-profile", "--sim-seed")
    return impls.load(*(config.getoption(option) for option in options))


@pytest.fixture(scope="session")
def impl(request: pytest.FixtureRequest) -> Impl:
    return _load(request.config)


@pytest.fixture
def sim(impl: Impl) -> Any:
    """The simulated GPU, for tests that need it."""
    from support import simulator

    return simulator.start()


@pytest.fixture(scope="session")
def ranks() -> Iterator[Ranks]:
    """Four processes that talk by gloo."""
    pool = Ranks(4, seconds=240)  # of a machine that does other things meanwhile
    yield pool
    pool.close()


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def _uses(item: pytest.Item, fixture: str) -> bool:
    return fixture in getattr(item, "fixturenames", ())


def _runs(item: pytest.Item, impl: Impl) -> bool:
    if not all(impl.supports(mark.args[0]) for mark in item.iter_markers("needs")):
        return False
    params = getattr(getattr(item, "callspec", None), "params", {})
    wanted = [params.get("dtype"), getattr(params.get("case"), "dtype", None)]
    return all(dtype is None or dtype in impl.dtypes for dtype in wanted)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Deselect, rather than skip, what the chosen implementation does not claim to do.

    The simulator takes the CPU's place, so tests that need the CPU itself cannot run with it.
    """
    mine = [item for item in items if _uses(item, "impl")]
    if not mine:
        return
    impl, simulated = _load(config), config.getoption("--device") == "sim"
    dropped = [item for item in mine if not _runs(item, impl)]
    if simulated:
        dropped += [item for item in items if item not in set(mine)]
    else:
        dropped += [item for item in mine if _uses(item, "sim")]
    gone = set(dropped)
    config.hook.pytest_deselected(items=list(gone))
    items[:] = [item for item in items if item not in gone]
