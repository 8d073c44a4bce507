"""Special registers and by-name facts about the launch: PTX ISA section 10."""

import numpy as np
import ptxsim
import pytest
from truth import module_text

NAMES = ["tid.x", "tid.y", "tid.z", "ntid.x", "ntid.y", "ntid.z", "ctaid.x", "ctaid.y", "ctaid.z", "nctaid.x", "nctaid.y", "nctaid.z",
         "laneid", "warpid", "nwarpid", "smid", "nsmid", "dynamic_smem_size", "total_smem_size", "clock", "lanemask_lt"]


def kernel_text():
    stores = "\n".join(f"  mov.u32 %v, %{name}; st.global.u32 [%p+{4 * i}], %v;" for i, name in enumerate(NAMES))
    return f""".visible .entry k(.param .u64 out)
{{
  .reg .b64 %p, %o, %c; .reg .b32 %v, %i, %n, %m; .shared .b32 room[25];
  ld.param.u64 %p, [out];
  mov.u32 %i, %ctaid.z; mov.u32 %n, %nctaid.y; mov.u32 %m, %ctaid.y; mad.lo.u32 %i, %i, %n, %m;
  mov.u32 %n, %nctaid.x; mov.u32 %m, %ctaid.x; mad.lo.u32 %i, %i, %n, %m;
  mov.u32 %n, %ntid.z; mov.u32 %m, %tid.z; mad.lo.u32 %i, %i, %n, %m;
  mov.u32 %n, %ntid.y; mov.u32 %m, %tid.y; mad.lo.u32 %i, %i, %n, %m;
  mov.u32 %n, %ntid.x; mov.u32 %m, %tid.x; mad.lo.u32 %i, %i, %n, %m;
  mul.wide.u32 %o, %i, {4 * len(NAMES)}; add.u64 %p, %p, %o;
  mov.u32 %v, room; st.shared.u32 [%v], 0;
{stores}
  mov.u64 %c, %clock64; mov.u64 %c, %globaltimer;
  ret;
}}
"""


@pytest.fixture(scope="module")
def table():
    """Every register of every thread of a (2, 3, 2) grid of (5, 4, 3) blocks, by name."""
    dev = ptxsim.Device(profile="sm_80")
    kernel = ptxsim.load_ptx(module_text("sm_80", [kernel_text().replace("st.shared.u32 [%v], 0;", "")])).kernel("k")
    out = dev.empty((2, 3, 2, 3, 4, 5, len(NAMES)), np.uint32, "out")
    dev.launch(kernel, (2, 3, 2), (5, 4, 3), [out], smem=48)
    return dict(zip(NAMES, np.moveaxis(out.numpy().copy(), -1, 0)))


INDEX = np.indices((2, 3, 2, 3, 4, 5))
EXPECTED = {"tid.x": INDEX[5], "tid.y": INDEX[4], "tid.z": INDEX[3], "ntid.x": 5, "ntid.y": 4, "ntid.z": 3, "ctaid.x": INDEX[2],
            "ctaid.y": INDEX[1], "ctaid.z": INDEX[0], "nctaid.x": 2, "nctaid.y": 3, "nctaid.z": 2}
LINEAR = INDEX[5] + 5 * INDEX[4] + 20 * INDEX[3]


@pytest.mark.parametrize("name", EXPECTED)
def test_coordinates(table, name):
    assert (table[name] == EXPECTED[name]).all()


def test_lanes_follow_the_linear_index(table):
    assert (table["laneid"] == LINEAR % 32).all()
    assert (table["warpid"] == LINEAR // 32).all() and (table["nwarpid"] >= 2).all()
    assert (table["lanemask_lt"] == (1 << LINEAR % 32) - 1).all()


def test_sizes(table):
    assert (table["dynamic_smem_size"] == 48).all() and (table["total_smem_size"] >= 48 + 100).all()
    assert (table["smid"] < table["nsmid"]).all()
