// The way of cached keys and values from global memory to the warps that use them.
#pragma once
#include "append.cuh"
#include "splits.cuh"
#include "tile.cuh"

namespace diffattn::cuda::sm80 {

// One thread's share of filling a tile with a block of keys.
template <class Tile, int kThreads>
class BlockFill {
  static constexpr int kPanelChunks = Tile::kRows * Tile::kChunks;
  static constexpr int kPanelsAtOnce = kPanelChunks < kThreads ? kThreads / kPanelChunks : 1;
  static constexpr int kRowsAtOnce = kThreads / kPanelsAtOnce / Tile::kChunks;
  static_assert(Tile::kRows % kRowsAtOnce == 0);

 public:
  __device__ BlockFill(int cols, int thread)
      : row_(thread % (kThreads / kPanelsAtOnce) / Tile::kChunks),
        panel_(thread / (kThreads / kPanelsAtOnce)),
        cols_(cols) {
    const int chunk = thread % Tile::kChunks;
    col_ = panel_ * Tile::kPanel + chunk * kChunk;
    target_ = panel_ * Tile::kPanelBytes + Tile::offset(row_, chunk);
  }

  // Starts the copies of the rows in `valid`; the others, and columns that do not exist, become
  // zeros, and nothing of them is read. The rows in `fresh` are left to copy().
  template <class Element>
  __device__ void start(char* tile, const Element* rows, int64_t stride, Range valid,
                        Range fresh) const {
    for_chunks([&](int row, int col, int target) {
      using Copy = cute::SM80_CP_ASYNC_CACHEGLOBAL_ZFILL<cute::uint128_t>;
      if (row < fresh.begin || row >= fresh.end)
        Copy::copy(*reinterpret_cast<const cute::uint128_t*>(rows + row * stride + col),
                   *reinterpret_cast<cute::uint128_t*>(tile + target),
                   row >= valid.begin && row < valid.end && col < cols_);
    });
  }

  // Writes load(row, col) to the chunks of some rows.
  template <class Load>
  __device__ void copy(char* tile, Range rows, int thread, const Load& load) const {
    constexpr int kChunks = Tile::kCols / kChunk;
#pragma unroll 1
    for (int i = thread; i < (rows.end - rows.begin) * kChunks; i += kThreads) {
      const int row = rows.begin + i / kChunks, chunk = i % kChunks;
      const int target =
          chunk / Tile::kChunks * Tile::kPanelBytes + Tile::offset(row, chunk % Tile::kChunks);
      *reinterpret_cast<uint4*>(tile + target) =
          chunk * kChunk < cols_ ? load(row, chunk * kChunk) : uint4{};
    }
  }

 private:
  // f(row, column, bytes from the tile's start) for this thread's chunks. The rows of one thread
  // differ in other bits of their number than those of different threads do, so that the
  // permutation of a chunk is that of the first row and that of the step, combined.
  template <class F>
  __device__ void for_chunks(const F& f) const {
#pragma unroll
    for (int p = 0; p < Tile::kPanels; p += kPanelsAtOnce) {
      if (Tile::kPanels % kPanelsAtOnce != 0 && p + panel_ >= Tile::kPanels) continue;
#pragma unroll
      for (int r = 0; r < Tile::kRows; r += kRowsAtOnce)
        f(row_ + r, col_ + p * Tile::kPanel,
          (target_ ^ Tile::offset(r, 0) % Tile::kRowBytes) + r * Tile::kRowBytes +
              p * Tile::kPanelBytes);
    }
  }

  int row_, panel_, col_, target_, cols_;
};

// A ring of slots in shared memory through which blocks pass: the keys of a block in one slot, its
// values in the next. Each of T::kGroups groups of warps has a ring, and takes every kGroups-th
// block.
template <class T>
class KeyStream {
  using Element = typename T::Element;

 public:
  __device__ KeyStream(const DecodeParams& params, const CachedSequence& sequence,
                       const Pages& pages, int head_k, Range blocks, Range keys, bool fresh_keys,
                       char* ring, int slot_bytes, int thread)
      : p_(params),
        s_(sequence),
        pages_(pages),
        fill_k_(int(params.shape.headdim), thread),
        fill_v_(int(params.shape.headdim_v), thread),
        head_k_(head_k),
        thread_(thread),
        block_(blocks.begin),
        end_(blocks.end),
        keys_(keys),
        first_fresh_(fresh_keys ? sequence.cached : sequence.keys),
        ring_(ring),
        slot_bytes_(slot_bytes) {
    page_ = page_of(block_);
    next_page_ = page_of(block_ + T::kGroups);
  }

  // Starts the copies into the next slot: of keys and values in turn. Without a block left, the
  // group of copies is empty, so that counting groups stays counting slots.
  __device__ void issue(bool values) {
    char* const slot = ring_ + issued_++ % T::kSlots * slot_bytes_ * T::kGroups;
    if (block_ < end_) values ? issue_values(slot) : issue_keys(slot);
    cute::cp_async_fence();
  }

  // The slot that is used next. After wait() this thread's copies into it have landed.
  __device__ const char* take() { return ring_ + taken_++ % T::kSlots * slot_bytes_ * T::kGroups; }
  __device__ static void wait() { cute::cp_async_wait<T::kSlots - 2>(); }

  // Whether the keys of a block could be found. Asked before kLater further blocks are issued.
  __device__ bool found(int block) const { return found_ >> block / T::kGroups % kLater & 1; }

 private:
  static constexpr int kLater = 32;

  // The entry of the table, asked for long before it is needed.
  __device__ int page_of(int block) const {
    return block < end_ ? pages_.of(block * kBlockKeys) : -1;
  }

  // Rows of the block that hold visible keys, and of these the first new one.
  __device__ Range visible() const {
    const int key = block_ * kBlockKeys;
    if (!pages_.exists(page_)) return {0, 0};
    return {max(keys_.begin - key, 0), min(keys_.end - key, kBlockKeys)};
  }

  template <class Fill>
  __device__ void fill(const Fill& f, char* tile, const View& cache, const View& fresh, int comp,
                       bool rotated) const {
    const int key = block_ * kBlockKeys, first = first_fresh_ - key;
    const Range valid = visible();
    const Element* old = row_of<const Element>(
        cache, pages_.offset(cache, page_, key) + head_k_ * cache.head + comp * cache.comp);
    const Range fresh_rows{max(first, valid.begin), valid.end};
    f.start(tile, old, cache.row, valid, fresh_rows);
    if (fresh_rows.begin >= fresh_rows.end) return;
    const int64_t stride = fresh.row;
    const Element* young = row_of<const Element>(
        fresh, s_.batch * fresh.batch + head_k_ * fresh.head + comp * fresh.comp - first * stride);
    const Rotator<Element> rotator(rotated ? p_.cache.rotary : Rotary{});
    f.copy(tile, fresh_rows, thread_,
           [&](int row, int col) { return rotator.load(young + row * stride, col, key + row); });
  }

  __device__ void issue_keys(char* slot) {
    for (int comp = 0; comp < int(p_.shape.k_components); ++comp)
      fill(fill_k_, slot + comp * T::KTile::kBytes, p_.k_cache, p_.k_new, comp, true);
    const uint32_t bit = 1u << block_ / T::kGroups % kLater;
    found_ = pages_.exists(page_) ? found_ | bit : found_ & ~bit;
  }

  __device__ void issue_values(char* slot) {
    fill(fill_v_, slot, p_.v_cache, p_.v_new, 0, false);
    block_ += T::kGroups;
    page_ = next_page_;
    next_page_ = page_of(block_ + T::kGroups);
  }

  const DecodeParams& p_;
  const CachedSequence& s_;
  const Pages& pages_;
  const BlockFill<typename T::KTile, T::kGroupThreads> fill_k_;
  const BlockFill<typename T::VTile, T::kGroupThreads> fill_v_;
  const int head_k_, thread_;
  int block_, end_;
  const Range keys_;  // that some row of the CTA sees
  const int first_fresh_;
  char* const ring_;
  const int slot_bytes_;
  int page_, next_page_;
  unsigned issued_ = 0, taken_ = 0;  // slots
  uint32_t found_ = 0;
};

}  // namespace diffattn::cuda::sm80
