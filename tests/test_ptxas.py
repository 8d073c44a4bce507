"""What ptxas said of every kernel that ships: no spills, no local memory, registers to spare, and
nothing that it does not let run side by side."""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path += [str(ROOT / "tools"), str(ROOT / "bench")]
import build_cuda  # noqa: E402
from counting import sass  # noqa: E402


@dataclass(frozen=True)
class Report:
    kernel: str
    stack: int
    spills: int
    registers: int

    def complaints(self) -> list[str]:
        found = []
        if self.stack or self.spills:
            found.append(f"{self.kernel}: {self.stack} bytes of stack, {self.spills} of spills")
        if not 0 < self.registers <= 255:
            found.append(f"{self.kernel}: {self.registers} registers")
        return found


def reports(log: str) -> list[Report]:
    found = []
    for part in log.split("Compiling entry function ")[1:]:
        stack, *spills = re.findall(r"(\d+) bytes (?:stack frame|spill stores|spill loads)", part)
        registers = re.findall(r"Used (\d+) registers", part)
        found.append(
            Report(part.split("'")[1], int(stack), sum(map(int, spills)), int(registers[0]))
        )
    return found


# "(C7510) Potential Performance Loss: wgmma.mma_async instructions are serialized": to C7518, each
# for its reason; and that setmaxnreg was ignored.
SERIALISED = re.compile(r".*\((?:C7508|C751[0-8])\).*|.*(?:are serialized|setmaxnreg ignored).*")


def serialised(log: str) -> list[str]:
    return [found[0] for found in SERIALISED.finditer(log)]


built = pytest.mark.skipif(
    not all(build_cuda.log_of(source).exists() for source in build_cuda.sources()),
    reason="the CUDA module was not built",
)


@built
def test_products_run_beside_other_work() -> None:
    logs = [build_cuda.log_of(source).read_text() for source in build_cuda.sources()]
    assert not [line for log in logs for line in serialised(log)]


# Of Hopper's forward: instructions of the main loop that are not HGMMA, per warp and step. No more
# than those of sketches that had neither masks nor two intervals of keys (docs/kernels_sm90.md).
BESIDE_PRODUCTS = {(64, 64): 517, (64, 128): 517, (128, 128): 540, (128, 256): 314}


@built
@pytest.mark.skipif(not sass.has_nvdisasm(), reason="no nvdisasm")
@pytest.mark.parametrize("shape", BESIDE_PRODUCTS, ids=str)
@pytest.mark.parametrize("element", ["6__half", "13__nv_bfloat16"])
def test_a_step_of_hopper_s_forward_is_short(shape: tuple[int, int], element: str) -> None:
    d, dv = shape
    source = build_cuda.SOURCES / "sm90" / "instances" / f"fwd_d{d}.cu"
    if source not in build_cuda.sources():
        pytest.skip("not built for sm_90a")
    loops = sass.main_loops(build_cuda.object_of(source))
    (loop,) = (loop for name, loop in loops.items() if f"{element}Li{d}ELi{dv}E" in name)
    products = d // 16 + (128 if dv <= 128 else 64) // 16
    assert loop.hmma == products
    assert loop.opcodes.total() - loop.hmma <= BESIDE_PRODUCTS[shape]


def test_a_serialised_product_is_seen() -> None:
    said = (
        "ptxas info    : (C7512) Potential Performance Loss: wgmma.mma_async instructions are "
        "serialized due to insufficient register resources for the wgmma pipeline in '_Z3fwd'"
    )
    assert serialised(f"{LOG}{said}\n") == [said] and not serialised(LOG)
    assert serialised(said.replace("C7512", "C7508")) and not serialised("(C7519) is harmless")


@built
def test_no_kernel_spills() -> None:
    logs = [build_cuda.log_of(source).read_text() for source in build_cuda.sources()]
    found = [report for log in logs for report in reports(log)]
    assert len(found) >= 16, "4 head dims, 2 dtypes, V as wide as Q or twice"
    complaints = [complaint for report in found for complaint in report.complaints()]
    assert not complaints, "\n".join(complaints)


LOG = """ptxas info    : Compiling entry function '_Z3fwd' for 'sm_80'
ptxas info    : Function properties for _Z3fwd
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 254 registers, used 16 barriers, 864 bytes cmem[0]
"""


def test_a_spill_is_seen() -> None:
    assert not reports(LOG)[0].complaints()
    for clean in ("0 bytes stack", "0 bytes spill stores", "0 bytes spill loads", "254 registers"):
        dirty = LOG.replace(clean, "256" + clean.lstrip("0254"))
        assert dirty != LOG and reports(dirty)[0].complaints(), clean
