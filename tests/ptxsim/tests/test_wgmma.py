"""wgmma.mma_async: every type and N as whole matrices against exact sums; every descriptor mode, every element of A in
turn hot, against index functions that were written apart from the engine's."""

import numpy as np
import ptxsim
import pytest
from wgmma_programs import (
    BYTES,
    DEPTH,
    WIDTHS,
    a_to_registers,
    address,
    bits_of_integers,
    descriptor,
    from_fragments,
    instruction,
    kernel,
    place,
    to_fragments,
)

PAIRS = [("f32", "bf16", "bf16"), ("f32", "f16", "f16"), ("f16", "f16", "f16"), ("f32", "tf32", "tf32"),
         *((d, a, b) for d in ("f32", "f16") for a in ("e4m3", "e5m2") for b in ("e4m3", "e5m2")),
         *(("s32", a, b) for a in ("s8", "u8") for b in ("s8", "u8"))]
WORD_BITS = {"f32": 1, "s32": 1, "f16": 2}  # elements of an accumulator register


def sizes(d):
    return [n for n in range(8, 257, 8) if d != "s32" or n % 16 == 0 or n in (8, 24)]


def launch(text, image, a_words, c_words, seed=0, checks=None):
    dev = ptxsim.Device(profile="sm_90a", seed=seed, threads=2, checks=checks)
    out = dev.empty(c_words.shape, np.uint32, "out")
    counters = dev.launch(ptxsim.load_ptx(text).kernel("k"), c_words.shape[0], 128,
                          [dev.tensor(image, "image"), dev.tensor(a_words, "a"), dev.tensor(c_words, "c"), out])
    return out.numpy().copy(), counters


def result_bits(d, values):
    return values.astype(np.int64).astype(np.uint32) if d == "s32" else bits_of_integers(d, values).astype(np.uint32)


def layout(mode, major, extent, depth, size):
    """Leading and stride offsets that leave gaps where there is room, and the bytes that the matrix then takes."""
    width, gap = WIDTHS[mode][0], 2 if extent <= 64 else 1
    group = 8 * width  # a group of eight rows
    if major == "k":
        stride, leading = (group * 3, group * 3 * -(-extent // 8)) if mode == "none" else (gap * group, 16)
    elif mode != "none":
        leading, stride = (2 * gap + 1) * group, gap * group
    else:
        leading, stride = group * -(-extent * size // 16), group
    x, k = np.meshgrid(np.arange(extent), np.arange(depth), indexing="ij")
    return leading, stride, int(address(0, mode, major, x, k, leading, stride, size).max()) + size


def product(d, a_type, b_type, n, source="smem", modes=("128", "128"), majors=("k", "k"), scales=(1, 1), accumulate=True,
            satfinite=False, copies=1, make=None, seed=0):
    """Runs one product a CTA; returns what came, what should have, and the counters."""
    depth, size, rng = DEPTH[a_type], BYTES[a_type], np.random.default_rng(n)
    low = 0 if "u8" in (a_type, b_type) else -3
    a, b, c = make() if make else (rng.integers(low, 4, (copies, 64, depth)), rng.integers(low, 4, (copies, n, depth)),
                                   rng.integers(-9, 10, (copies, 64, n)))
    a_leading, a_stride, a_bytes = layout(modes[0], majors[0], 64, depth, size)
    b_leading, b_stride, b_bytes = layout(modes[1], majors[1], n, depth, size)
    b_start = -(-a_bytes // 1024) * 1024 if source == "smem" else 0
    total = -(-(b_start + b_bytes) // 1024) * 1024
    image = np.zeros((a.shape[0], total), np.uint8)
    a_bits = bits_of_integers(a_type, a)
    if source == "smem":
        place(image, a_bits, 0, modes[0], majors[0], a_leading, a_stride)
    place(image, bits_of_integers(b_type, b), b_start, modes[1], majors[1], b_leading, b_stride)
    per = WORD_BITS[d]
    registers = n // 2 // per
    tail = "" if d == "s32" else f", {scales[0]}, {scales[1]}"
    if size == 2:
        tail += (f", {int(majors[0] != 'k')}" if source == "smem" else "") + f", {int(majors[1] != 'k')}"
    text = kernel(instruction(n, d, a_type, b_type, satfinite), registers, d, total,
                  descriptor(modes[0], a_leading, a_stride) if source == "smem" else None,
                  descriptor(modes[1], b_leading, b_stride), 0, b_start, tail, accumulate=accumulate)
    words, counters = launch(text, image, a_to_registers(a_bits), to_fragments(result_bits(d, c), registers, per), seed)
    want = scales[0] * scales[1] * np.einsum("cmk,cnk->cmn", a, b) + (c if accumulate else 0)
    return from_fragments(words, n, per), result_bits(d, want), counters


@pytest.mark.parametrize("source", ["smem", "registers"])
@pytest.mark.parametrize("pair", PAIRS, ids="-".join)
def test_every_n_of_every_type(pair, source):
    for n in sizes(pair[0]):
        got, want, counters = product(*pair, n, source)
        assert np.array_equal(got, want), n
        assert counters["wgmma_flop"] == counters["mma_flop"] == 2 * 64 * n * DEPTH[pair[1]]
        assert counters[f"wgmma_flop_m64n{n}k{DEPTH[pair[1]]}"] == counters["wgmma_flop"]
        assert counters["inst_wgmma"] == 4


MODES = [(a, b, x, y) for a in WIDTHS for b in WIDTHS for x in ("k", "mn") for y in ("k", "mn")]


@pytest.mark.parametrize("modes", MODES, ids="-".join)
def test_every_descriptor_mode_one_hot_element_at_a_time(modes):
    """A CTA for each element of A: the row of the hot one shows the row of B that meets it, and all else is zero."""
    def make():
        a = np.zeros((64 * 16, 64, 16), int)
        a[np.arange(1024), np.arange(1024) // 16, np.arange(1024) % 16] = 1
        return a, np.broadcast_to(np.arange(8)[:, None] * 16 + np.arange(16) + 1, (1024, 8, 16)), np.zeros((1024, 64, 8), int)

    got, want, _ = product("f32", "bf16", "bf16", 8, modes=modes[:2], majors=modes[2:], make=make)
    assert np.array_equal(got, want) and np.count_nonzero(want) == 1024 * 8


@pytest.mark.parametrize("major", ["k", "mn"])
@pytest.mark.parametrize("mode", WIDTHS)
def test_every_column_of_a_wide_b(mode, major):
    """B's element (n, k) for every n to 256, hot in turn by k: the digits of D say which n and k came."""
    def make():
        a = np.zeros((16, 64, 16), int)
        a[np.arange(16), 5, np.arange(16)] = 1
        b = np.broadcast_to((np.arange(256)[:, None] * 7 + np.arange(16) * 13) % 251, (16, 256, 16))
        return a, b, np.zeros((16, 64, 256), int)

    got, want, _ = product("f32", "bf16", "bf16", 256, modes=("none", mode), majors=("k", major), make=make)
    assert np.array_equal(got, want)


@pytest.mark.parametrize("pair", [("f32", "tf32", "tf32"), ("f32", "e4m3", "e5m2"), ("s32", "s8", "u8")], ids="-".join)
@pytest.mark.parametrize("mode", WIDTHS)
def test_descriptor_modes_of_other_widths(pair, mode):
    got, want, _ = product(*pair, 64, modes=(mode, mode), copies=2)
    assert np.array_equal(got, want)


@pytest.mark.parametrize("d", ["f32", "f16"])
@pytest.mark.parametrize("source", ["smem", "registers"])
def test_every_register_of_a_fragment(d, source):
    """One element of A hot in each CTA, so that each of its registers and halves is seen alone; D's by distinct values."""
    def make():
        a = np.zeros((1024, 64, 16), int)
        a[np.arange(1024), np.arange(1024) // 16, np.arange(1024) % 16] = 1
        b = np.broadcast_to(np.arange(16)[:, None] + 16 * np.arange(16) + 1, (1024, 16, 16))
        return a, b, np.zeros((1024, 64, 16), int)

    got, want, _ = product(d, "f16", "f16", 16, source, make=make)
    assert np.array_equal(got, want)


@pytest.mark.parametrize("scales", [(1, -1), (-1, 1), (-1, -1)])
@pytest.mark.parametrize("source", ["smem", "registers"])
def test_scales(scales, source):
    got, want, _ = product("f32", "bf16", "bf16", 32, source, scales=scales)
    assert np.array_equal(got, want)


@pytest.mark.parametrize("d", [("f32", "bf16", "bf16"), ("f16", "f16", "f16"), ("s32", "s8", "s8")], ids="-".join)
def test_scale_d_of_zero_forgets_the_accumulators(d):
    got, want, _ = product(*d, 24, accumulate=False)
    assert np.array_equal(got, want)


def test_satfinite_clamps():
    def make():
        return np.full((1, 64, 32), 127), np.full((1, 16, 32), 127), np.full((1, 64, 16), 2**31 - 5)

    got, _, _ = product("s32", "s8", "s8", 16, satfinite=True, make=make)
    assert (got == 2**31 - 1).all()
    got, _, _ = product("s32", "s8", "s8", 16, make=make)
    assert (got == (2**31 - 5 + 32 * 127 * 127) % 2**32).all()


@pytest.mark.parametrize("seed", range(8))
def test_the_seed_changes_no_result(seed):
    got, want, _ = product("f32", "bf16", "bf16", 128, copies=2, seed=seed)
    assert np.array_equal(got, want)


@pytest.mark.parametrize("name", ["m64n12k16.f32.bf16.bf16", "m64n264k16.f32.bf16.bf16", "m64n16k8.f32.bf16.bf16",
                                  "m64n16k16.f16.bf16.bf16", "m64n40k32.s32.s8.s8", "m32n16k16.f32.bf16.bf16"])
def test_shapes_that_do_not_exist_are_refused(name):
    registers = int(name.split("n")[1].split("k")[0]) // 2
    text = kernel(f"wgmma.mma_async.sync.aligned.{name}", registers, "f32", 4096, descriptor("none", 128, 256),
                  descriptor("none", 128, 256), tail=", 1, 1, 0, 0")
    with pytest.raises(ptxsim.Unsupported, match="wgmma"):
        launch(text, np.zeros((1, 4096), np.uint8), np.zeros((1, 4, 128), np.uint32), np.zeros((1, registers, 128), np.uint32))


@pytest.mark.parametrize("target", ["sm_90", "sm_100a", "sm_103a", "sm_120a"])
def test_other_targets_have_no_wgmma(target):
    text = kernel(instruction(8, "f32", "bf16", "bf16"), 4, "f32", 4096, descriptor("none", 128, 256),
                  descriptor("none", 128, 256), tail=", 1, 1, 0, 0", target=target)
    dev = ptxsim.Device(profile=target.rstrip("a"))
    out = dev.empty((1, 4, 128), np.uint32, "out")
    tensors = [dev.tensor(np.zeros(shape, np.uint8), "x") for shape in (4096, 2048, 2048)]
    with pytest.raises(ptxsim.Unsupported, match="sm_90a"):
        dev.launch(ptxsim.load_ptx(text).kernel("k"), 1, 128, [*tensors, out])


@pytest.mark.parametrize("seed", range(20))
def test_registers_of_a_are_kept_over_the_end_of_a_loop(seed):
    """A product is pending while the next turn's first instructions use registers of their own (a kernel of Triton's)."""
    a, b = np.full((1, 64, 16), 2), np.full((1, 8, 16), 3)
    image = np.zeros((1, 1024), np.uint8)
    place(image, bits_of_integers("bf16", b), 0, "none", "k", 128, 256)
    text = kernel(instruction(8, "f32", "bf16", "bf16"), 4, "f32", 1024, None, descriptor("none", 128, 256), tail=", 1, 1, 0",
                  commit="wgmma.commit_group.sync.aligned; add.u32 %k, %k, 1; setp.lt.u32 %p, %k, 3; @%p bra TURN;",
                  fence="mov.u32 %k, 0;\nTURN:\n" + " ".join(f"mad.lo.u32 %z{i}, %t, 77, {i}; add.u32 %sum, %sum, %z{i};" for i in range(9))
                  + "wgmma.wait_group.sync.aligned 0;" + " ".join(f"add.u32 %b{i}, %a{i}, 0;" for i in range(4))
                  + "wgmma.fence.sync.aligned;")
    text = text.replace("{%a0, %a1, %a2, %a3}", "{%b0, %b1, %b2, %b3}").replace("%a<4>;", "%a<4>, %b<4>, %z<9>, %sum;")
    words, _ = launch(text, image, a_to_registers(bits_of_integers("bf16", a)), np.zeros((1, 4, 128), np.uint32), seed)
    assert (words.view(np.float32) == 3 * 16 * 2 * 3).all()
