"""The known answers of cases/protocols.cu."""

import numpy as np
from programs import INT, kernel


def start(dev, build, name, grid, block, arguments, cooperative=False):
    return dev.launch(kernel(build, "protocols", name), grid, block, arguments, cooperative=cooperative)


def halves(dev, build):
    out = dev.empty((32,), INT, "out")
    start(dev, build, "halves", 1, 32, [out])
    lane = np.arange(32)
    high = (47 - lane) + (47 - lane + 0) + (47 - lane + 1)
    room = lane + np.where(lane < 16, 0, 2)
    assert np.array_equal(out.numpy(), np.where(lane < 16, 15 - lane, high) * 100 + room[::-1])


def tiles(dev, build):
    x = np.random.default_rng(0).integers(-4, 10, 64).astype(INT)
    out = dev.empty((64,), INT, "out")
    start(dev, build, "tiles", 1, 64, [dev.tensor(x, "x"), out])
    tile = x.reshape(8, 8)
    same = ((tile[:, :, None] & 3) == (tile[:, None, :] & 3)).sum(2)
    room = np.roll(tile, -3, 1) + 3
    expected = tile.sum(1)[:, None] * 1000 + (tile > 0).sum(1)[:, None] * 100 + (tile == 7).any(1)[:, None] * 50 + same + room * 100000
    assert np.array_equal(out.numpy(), expected.ravel())


def partitioned(dev, build):
    x = np.random.default_rng(1).integers(0, 100, 32).astype(INT)
    out = dev.empty((32,), INT, "out")
    start(dev, build, "partitioned", 1, 32, [dev.tensor(x, "x"), out])
    alike = x[:, None] % 5 == x[None] % 5
    assert np.array_equal(out.numpy(), (alike * x).sum(1) * 64 + alike.sum(1))


def in_place(dev, build):
    rng = np.random.default_rng(2)
    halves, bytes_ = rng.integers(0, 1 << 16, 128).astype(np.uint16), rng.integers(0, 256, 128).astype(np.uint8)
    on_device = [dev.tensor(halves, "halves"), dev.tensor(bytes_, "bytes")]
    start(dev, build, "in_place", 1, 128, on_device)
    for _ in range(3):
        halves, bytes_ = halves * np.uint16(3) + np.uint16(1), bytes_ * np.uint8(5) + np.uint8(2)
    assert np.array_equal(on_device[0].numpy(), halves) and np.array_equal(on_device[1].numpy(), bytes_)


def flags_in_a_block(dev, build):
    flags = [dev.tensor(np.zeros(1, np.uint32), name) for name in ("flag", "strong")]
    out = dev.empty((32,), INT, "out")
    start(dev, build, "flags_in_a_block", 1, 64, [dev.empty((96,), INT, "data"), *flags, out])
    assert np.array_equal(out.numpy(), 6 * np.arange(32)[::-1])


def specialised(dev, build):
    out = dev.empty((64,), INT, "out")
    start(dev, build, "specialised", 1, 128, [dev.empty((64,), INT, "slot"), out, INT(4)])
    assert np.array_equal(out.numpy(), 10 * (np.arange(64)[::-1] + 63))


def lock_of_lanes(dev, build):
    mutex, counter = dev.tensor(np.zeros(1, np.uint32), "mutex"), dev.tensor(np.zeros(1, INT), "counter")
    start(dev, build, "lock_of_lanes", 2, 48, [mutex, counter])
    assert counter.numpy()[0] == 96 and mutex.numpy()[0] == 0


def last_block(dev, build):
    x = np.random.default_rng(3).integers(-9, 10, 64).astype(INT)
    on_device, total = dev.tensor(x, "x"), dev.tensor(np.zeros(1, INT), "total")
    ticket = dev.tensor(np.zeros(1, np.uint32), "ticket")
    start(dev, build, "last_block", 5, 64, [on_device, dev.empty((5, 64), INT, "partial"), ticket, total])
    assert total.numpy()[0] == x.sum() * 15 and (on_device.numpy() == -1).all() and ticket.numpy()[0] == 0


def look_back(dev, build):
    x = np.random.default_rng(4).integers(-9, 10, 40 * 64).astype(INT)
    flag = dev.tensor(np.zeros(40, np.uint32), "flag")
    values = [dev.empty((40,), INT, name) for name in ("aggregate", "prefix")]
    out = dev.empty((40 * 64,), INT, "out")
    start(dev, build, "look_back", 40, 64, [dev.tensor(x, "x"), flag, *values, out])
    assert np.array_equal(out.numpy(), x.cumsum())


def turns(dev, build):
    x = np.random.default_rng(5).standard_normal((7, 64)).astype(np.float32)
    row = dev.tensor(np.zeros(64, np.float32), "row")
    start(dev, build, "turns", 7, 64, [dev.tensor(np.zeros(1, np.uint32), "turn"), row, dev.tensor(x, "x")])
    expected = np.zeros(64, np.float32)
    for part in x:
        expected += part
    assert np.array_equal(row.numpy(), expected)


def rounds_of(x, rounds, offsets):
    for _ in range(rounds):
        x = (sum(np.roll(x, -k) for k in offsets) + x[0]) % 1009
    return x


def grid_rounds(dev, build):
    x = np.random.default_rng(6).integers(0, 1000, 6 * 64).astype(INT)
    a, b = dev.tensor(x, "a"), dev.empty(x.shape, INT, "b")
    start(dev, build, "grid_rounds", (3, 2), (16, 4), [a, b, INT(5)], cooperative=True)
    assert np.array_equal(b.numpy(), rounds_of(x, 5, (0, 37, 74, 111)))


def own_grid_rounds(dev, build):
    x = np.random.default_rng(7).integers(0, 1000, 5 * 64).astype(INT)
    a, b = dev.tensor(x, "a"), dev.empty(x.shape, INT, "b")
    start(dev, build, "own_grid_rounds", 5, 64, [a, b, INT(3), dev.tensor(np.zeros(3, np.uint32), "arrived")])
    assert np.array_equal(b.numpy(), rounds_of(x, 3, (37,)))


PROTOCOLS = [halves, tiles, partitioned, in_place, flags_in_a_block, specialised, lock_of_lanes, last_block, look_back, turns,
             grid_rounds, own_grid_rounds]
