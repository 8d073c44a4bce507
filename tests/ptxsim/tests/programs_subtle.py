"""The known answers of cases/subtle.cu."""

import numpy as np
from programs import INT, kernel


def start(dev, build, name, grid, block, inputs, outputs, *rest):
    tensors = [dev.tensor(v, name=n) for n, v in inputs.items()]
    return dev.launch(kernel(build, "subtle", name), grid, block, [*tensors, *outputs, *map(INT, rest)])


def bytes_of_a_word(dev, build):
    x = np.random.default_rng(0).integers(0, 100, 128).astype(np.uint8)
    out = dev.empty((128,), np.uint8, "out")
    start(dev, build, "bytes_of_a_word", 1, 128, {"x": x}, [out])
    room, halves = np.zeros(128, np.uint8), np.zeros(64, np.uint8)
    i = np.arange(128)
    room[i % 32 * 4 + i // 32] = x
    halves[i[:64] % 32 * 2 + i[:64] // 32] = x[:64]
    assert np.array_equal(out.numpy(), room[::-1] + halves[i // 2])


def early_warps(dev, build):
    x = np.arange(128, dtype=INT)
    for warps in (1, 2, 3, 4):
        out = dev.tensor(np.full(128, -1, INT), name="out")
        start(dev, build, "early_warps", 1, 128, {"x": x}, [out], warps)
        assert out.numpy().tolist() == list(range(warps * 32 - 1, -1, -1)) + [-1] * (128 - 32 * warps)


def masked_garbage(dev, build):
    x = np.arange(64, dtype=INT)
    out = dev.empty((64,), INT, "out")
    start(dev, build, "masked_garbage", 1, 64, {"x": x}, [out], 40)
    assert np.array_equal(out.numpy(), np.where(x[::-1] < 40, x[::-1], -1))


def through_global(dev, build):
    x = np.random.default_rng(1).integers(-9, 10, (2, 128)).astype(INT)
    scratch, out = dev.empty((2, 128), INT, "scratch"), dev.empty((2, 128), INT, "out")
    start(dev, build, "through_global", 2, 128, {"x": x}, [scratch, out])
    turned = x.reshape(2, 4, 32)[:, :, ::-1].reshape(2, 128) * 3
    assert np.array_equal(out.numpy(), turned + np.roll(turned, -64, 1))


def voting_barriers(dev, build):
    for x in (np.arange(-40, 56, dtype=INT), np.full(96, 200, INT), np.zeros(96, INT)):
        out = dev.empty((96,), INT, "out")
        start(dev, build, "voting_barriers", 1, 96, {"x": x}, [out])
        assert (out.numpy() == (x > 0).sum() * 4 + (x < 100).all() * 2 + (x == 7).any()).all()


def alternating_buffers(dev, build):
    x = np.random.default_rng(2).integers(-9, 10, (5, 64)).astype(INT)
    out = dev.empty((64,), INT, "out")
    start(dev, build, "alternating_buffers", 1, 64, {"x": x}, [out], 5)
    assert np.array_equal(out.numpy(), (x[:, ::-1] * np.arange(1, 6)[:, None]).sum(0))


def phases(dev, build):
    x = np.random.default_rng(3).integers(-9, 10, (4, 128)).astype(INT)
    out = dev.empty((128,), INT, "out")
    start(dev, build, "phases", 1, 128, {"x": x}, [out], 4)
    assert np.array_equal(out.numpy(), x[:, ::-1].sum(0))


def lock(dev, build):
    mutex, counter = dev.tensor(np.zeros(1, np.uint32), name="mutex"), dev.tensor(np.zeros(1, INT), name="counter")
    start(dev, build, "lock", 3, 64, {}, [mutex, counter])
    assert counter.numpy()[0] == 6 and mutex.numpy()[0] == 0


SUBTLE_PROGRAMS = [bytes_of_a_word, early_warps, masked_garbage, through_global, voting_barriers, alternating_buffers, phases, lock]
