"""Boxes of TMA at every edge, in every rank and swizzle, against index functions; every rule of the encoder of maps."""

import numpy as np
import ptxsim
import pytest
import tma


def load(tensor, box, at, seed=0, fill=0, **how):
    device = ptxsim.Device(profile="sm_90", seed=seed, threads=1)
    source = device.tensor(tensor.memory, name="source")
    counts = [-(-b // s) for b, s in zip(box, how.get("element_strides") or [1] * len(box))]
    expected = tma.loaded(tensor, box, at, how.get("swizzle", 0), how.get("element_strides"), fill)
    assert expected.size == np.prod(counts)
    out = device.empty((expected.size,), expected.dtype, "out")
    counters = tma.launch(tma.LOAD, device, (tensor.map(device, source, box, **how), out), expected.nbytes, at)
    assert counters["bulk_shared_bytes"] == expected.nbytes
    np.testing.assert_array_equal(out.numpy(), expected)


SHAPES = {1: ((40,), (16,)), 2: ((40, 7), (16, 4)), 3: ((24, 5, 3), (8, 4, 2)), 4: ((16, 3, 4, 2), (8, 2, 2, 2)),
          5: ((16, 3, 2, 3, 2), (8, 2, 2, 2, 2))}


@pytest.mark.parametrize("rank", SHAPES)
def test_a_box_over_every_edge(rank):
    """In each dimension: before, over the first edge, inside, over the last edge, past it."""
    dims, box = SHAPES[rank]
    tensor = tma.Tensor(dims, pad=1)
    middle = [0 if rank > 1 else 8 for _ in dims]
    for d in range(rank):
        for start in (-box[d], -1, 0, 1, dims[d] - box[d], dims[d] - 1, dims[d]):
            load(tensor, box, [*middle[:d], start, *middle[d + 1 :]], seed=start & 3)
    load(tensor, box, [-1] * rank)
    load(tensor, box, [n - 1 for n in dims])


@pytest.mark.parametrize("dtype", tma.TYPES)
@pytest.mark.parametrize("swizzle", [32, 64, 128])
def test_swizzles_of_every_type(swizzle, dtype):
    item = np.dtype(tma.TYPES[dtype]).itemsize
    box = (swizzle // item, 19)
    tensor = tma.Tensor((2 * box[0], 24), dtype)
    for at in ((0, 0), (box[0] // 2, 3), (-1, 10)):
        load(tensor, box, at, swizzle=swizzle)


def test_strides_of_elements():
    load(tma.Tensor((16, 9, 5)), (8, 5, 4), (3, 1, -1), element_strides=[1, 2, 3])


def test_strides_of_elements_leave_the_innermost_dimension_alone():
    tensor = tma.Tensor((16, 9))
    device = ptxsim.Device(profile="sm_90")
    source = device.tensor(tensor.memory, name="source")
    assert tensor.map(device, source, (8, 5), element_strides=[3, 1]) == tensor.map(device, source, (8, 5))


@pytest.mark.parametrize("dtype", ["FLOAT16", "FLOAT32"])
def test_fill_of_nan(dtype):
    load(tma.Tensor((16, 4), dtype), (8, 4), (12, 2), nan_fill=True, fill=np.nan)


def test_tf32_is_rounded_and_subnormals_flushed():
    device = ptxsim.Device(profile="sm_90", threads=1)
    x = np.array([1 + 2.0**-11, 1 + 2.0**-10, 1 + 2.0**-12 + 2.0**-11, 1e-40], np.float32)
    source, out = device.tensor(x, name="source"), {}
    for dtype in ("TFLOAT32", "TFLOAT32_FTZ", "FLOAT32_FTZ"):
        got = device.empty((4,), np.float32, "out")
        tma.launch(tma.LOAD, device, (device.tensor_map(source, dtype, [4], [], [4]), got), 16, [0])
        out[dtype] = got.numpy().tolist()
    small = out["TFLOAT32"].pop()
    assert out["TFLOAT32"] == [1.0, 1 + 2.0**-10, 1 + 2.0**-10] and 0 < small < 1.2e-38
    assert out["TFLOAT32_FTZ"][3] == 0 and out["FLOAT32_FTZ"] == [*x[:3].tolist(), 0.0]


@pytest.mark.parametrize("swizzle", [0, 32, 64, 128])
@pytest.mark.parametrize("at", [(0, 0), (-4, -2), (12, 5)], ids=str)
def test_a_store_writes_what_lies_in_the_tensor(at, swizzle):
    box = ((swizzle or 32) // 2, 4)
    tensor = tma.Tensor((2 * box[0] + 8, 7))
    for seed in range(3):
        device = ptxsim.Device(profile="sm_90", seed=seed, threads=1)
        target = device.tensor(tensor.memory, name="target")
        values = device.tensor(np.arange(box[0] * box[1], dtype=np.uint16) + 1, name="values")
        copy = "cp.async.bulk.tensor.2d.global.shared::cta.tile.bulk_group [%map, {%c0, %c1}], [%room]"
        tma.launch(tma.STORE, device, (tensor.map(device, target, box, swizzle=swizzle), values), values.nbytes, at, copy=copy)
        expected = tensor.memory.copy()
        for linear, (i, j) in enumerate(tma.box_positions(box, (1, 1))):
            if tensor.inside((at[0] + i, at[1] + j)):
                expected[at[1] + j, at[0] + i] = values.numpy()[tma.shared_index(linear, 2, swizzle)]
        np.testing.assert_array_equal(target.numpy(), expected)


REDUCTIONS = [("add", "UINT16", None), ("add", "INT32", np.add), ("min", "INT32", np.minimum), ("max", "INT32", np.maximum),
              ("and", "INT32", np.bitwise_and), ("or", "INT32", np.bitwise_or), ("xor", "UINT64", np.bitwise_xor),
              ("add", "FLOAT32", np.add), ("max", "FLOAT16", np.maximum), ("min", "FLOAT32", None), ("or", "FLOAT16", None)]


@pytest.mark.parametrize("name, dtype, function", REDUCTIONS, ids=lambda v: v if isinstance(v, str) else "")
def test_reductions(name, dtype, function):
    tensor = tma.Tensor((16, 3), dtype)
    device = ptxsim.Device(profile="sm_90", threads=1)
    target = device.tensor(tensor.memory, name="target")
    values = device.tensor((np.arange(48) * 37 % 64).astype(tensor.memory.dtype), name="values")
    copy = f"cp.reduce.async.bulk.tensor.2d.global.shared::cta.{name}.tile.bulk_group [%map, {{%c0, %c1}}], [%room]"
    arguments = (tensor.map(device, target, (16, 3)), values)
    if function is None:
        with pytest.raises(ptxsim.BadProgram, match="reduction"):
            tma.launch(tma.STORE, device, arguments, values.nbytes, (0, 0), copy=copy)
        return
    tma.launch(tma.STORE, device, arguments, values.nbytes, (0, 0), copy=copy)
    np.testing.assert_array_equal(target.numpy(), function(tensor.memory, values.numpy().reshape(3, 16)))


LINES = [("add", "s32", np.int32, np.add), ("min", "u64", np.uint64, np.minimum), ("add.noftz", "f16", np.float16, np.add),
         ("add", "f32", np.float32, np.add), ("", "", np.int32, lambda old, new: new)]


@pytest.mark.parametrize("name, dtype, numpy_type, function", LINES, ids=lambda v: v if isinstance(v, str) else "")
def test_lines_stored_and_reduced(name, dtype, numpy_type, function):
    device = ptxsim.Device(profile="sm_90", threads=1)
    target = device.tensor(np.arange(32).astype(numpy_type), name="target")
    values = device.tensor((np.arange(32) * 7 % 32).astype(numpy_type), name="values")
    way = "global.shared::cta.bulk_group"
    opcode = f"cp.reduce.async.bulk.{way}.{name}.{dtype}" if name else f"cp.async.bulk.{way}"
    where = f"ld.param.u64 %a, [map]; {opcode} [%a], [%room], %n"
    expected = function(target.numpy().copy(), values.numpy())
    tma.launch(tma.STORE, device, (target.ptr.to_bytes(8, "little") + bytes(120), values), values.nbytes, (0,), copy=where)
    np.testing.assert_array_equal(target.numpy(), expected)


# ---- the encoder ----

GOOD = dict(dtype="FLOAT16", dims=[64, 32, 4], strides=[128, 4096], box=[64, 8, 1])
RULES = [
    ("globalAddress", dict(base=8)), ("globalDim", dict(dims=[64, 0, 4])),
    ("globalDim", dict(dims=[64, (1 << 32) + 1, 4])),
    ("globalStrides", dict(strides=[136, 4096])), ("globalStrides", dict(strides=[128, 1 << 40])), ("boxDim", dict(box=[64, 257, 1])),
    ("boxDim", dict(box=[64, 0, 1])), ("boxDim", dict(box=[63, 8, 1])), ("elementStrides", dict(element_strides=[1, 9, 1])),
    ("elementStrides", dict(element_strides=[1, 0, 1])), ("swizzle", dict(box=[128, 8, 1], swizzle=128)), ("swizzle", dict(swizzle=64)),
    ("INTERLEAVE_32B", dict(interleave=32, swizzle=64)), ("globalStrides", dict(interleave=32, swizzle=32, strides=[144, 4096])),
    ("globalAddress", dict(interleave=32, swizzle=32, base=16)),
    ("tensorRank", dict(dims=[64, 32], strides=[128], box=[64, 8], interleave=16)),
    ("tensorRank", dict(dims=[16] * 6, strides=[32] * 5, box=[16] * 6)), ("oobFill", dict(dtype="INT32", nan_fill=True)),
]  # fmt: skip


@pytest.mark.parametrize("argument, change", RULES, ids=lambda v: v if isinstance(v, str) else "-".join(v))
def test_the_encoder_names_the_argument_that_breaks_a_rule(argument, change):
    device = ptxsim.Device(profile="sm_90")
    device.tensor_map(**{"base": 1 << 20, **GOOD})
    given = {"base": 1 << 20, **GOOD, **change}
    with pytest.raises(ptxsim.BadProgram, match=argument):
        device.tensor_map(**given)


EDGES = [dict(dims=[64, 1 << 32, 4]), dict(box=[64, 256, 1]), dict(strides=[128, (1 << 40) - 16]), dict(strides=[0, 4096]),
         dict(element_strides=[9, 8, 1]), dict(swizzle=128), dict(interleave=32, swizzle=32), dict(interleave=16)]  # fmt: skip


@pytest.mark.parametrize("change", EDGES, ids=lambda v: "-".join(v))
def test_the_encoder_takes_what_is_just_allowed(change):
    assert len(ptxsim.Device(profile="sm_90").tensor_map(**{"base": 1 << 20, **GOOD, **change})) == 128


# ---- a map, a box or an operand that is wrong ----


def wrong(error, says, tensor=None, map_bytes=None, box=(16, 4), at=(0, 0), nbytes=None, template=tma.LOAD, **fields):
    tensor = tensor or tma.Tensor((32, 8))
    device = ptxsim.Device(profile="sm_90", threads=1)
    source = device.tensor(tensor.memory, name="source")
    good = tensor.map(device, source, box)
    out = device.empty((box[0] * box[1],), tensor.memory.dtype, "out")
    with pytest.raises(error, match=says):
        tma.launch(template, device, (map_bytes(good) if map_bytes else good, out), nbytes or out.nbytes, at, **fields)


def test_bytes_that_are_no_map():
    wrong(ptxsim.BadProgram, "no tensor map", map_bytes=lambda good: bytes(128))
    wrong(ptxsim.BadProgram, "no tensor map", map_bytes=lambda good: good[:20] + bytes([good[20] ^ 1]) + good[21:])


def test_a_map_of_another_rank():
    wrong(ptxsim.BadProgram, "rank 2", at=(0, 0, 0))


def test_the_bytes_of_a_map_are_opaque():
    reads = tma.LOAD.replace("bar.sync 0;", "bar.sync 0; ld.param.u32 %v0, [map+16];")
    wrong(ptxsim.OutOfBounds, "opaque", template=reads)


def test_what_no_document_describes_stops():
    device = ptxsim.Device(profile="sm_90", threads=1)
    tensor = tma.Tensor((32, 8))
    source, out = device.tensor(tensor.memory, name="source"), device.empty((64,), np.uint16, "out")
    with pytest.raises(ptxsim.Unsupported, match="span of its swizzle"):
        tma.launch(tma.LOAD, device, (tensor.map(device, source, (16, 4), swizzle=64), out), 128, (0, 0))
    im2col = tma.LOAD.replace("global.tile", "global.im2col")
    wrong(ptxsim.Unsupported, "im2col", template=im2col)


def test_a_destination_that_is_not_aligned():
    wrong(ptxsim.Misaligned, "128", template=tma.LOAD.replace("[%room], [%map", "[%room+16], [%map"))


def test_a_box_in_a_gap_or_past_the_memory():
    tensor = tma.Tensor((32, 8))
    device = ptxsim.Device(profile="sm_90", threads=1)
    memory = device.register(tensor.memory.ctypes.data, tensor.memory.nbytes, "storage").allow(0, (8, 24), (64, 2), 2)
    out = device.empty((64,), np.uint16, "out")
    tma.launch(tma.LOAD, device, (tensor.map(device, tensor.memory.ctypes.data, (16, 4)), out), 128, (8, 0))
    with pytest.raises(ptxsim.OutOfBounds, match="gap"):
        tma.launch(tma.LOAD, device, (tensor.map(device, tensor.memory.ctypes.data, (16, 4)), out), 128, (16, 0))
    taller = device.tensor_map(tensor.memory.ctypes.data, "UINT16", [32, 9], [64], [16, 4])
    with pytest.raises(ptxsim.OutOfBounds, match="storage"):
        tma.launch(tma.LOAD, device, (taller, out), 128, (0, 6))
    memory.unregister()


def test_undefined_sources_stay_undefined():
    device = ptxsim.Device(profile="sm_90", threads=1)
    source, out = device.empty((8, 32), np.uint16, "source"), device.empty((64,), np.uint16, "out")
    box = device.tensor_map(source, "UINT16", [32, 8], [64], [16, 4])
    with pytest.raises(ptxsim.Undefined):
        tma.launch(tma.LOAD, device, (box, out), 128, (0, 0))


@pytest.mark.parametrize("change", [16, -16])
def test_expected_bytes_that_are_wrong(change):
    """Too many: nobody ever sees the phase complete. Too few: it completes while bytes are still to come, or never."""
    for seed in range(12):
        device = ptxsim.Device(profile="sm_90", seed=seed, threads=1)
        tensor = tma.Tensor((32, 8))
        source, out = device.tensor(tensor.memory, name="source"), device.empty((64,), np.uint16, "out")
        expects = tma.LOAD.replace("_, [%bar], %n;", f"_, [%bar], {128 + change};")
        with pytest.raises((ptxsim.Deadlock, ptxsim.Race), match="mbarrier"):
            tma.launch(expects, device, (tensor.map(device, source, (16, 4)), out), 128, (0, 0))
