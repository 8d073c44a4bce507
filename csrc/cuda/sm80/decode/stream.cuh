// The way of cached keys and values from global memory to the warps that use them.
#pragma once
#include "../shared/tile.cuh"
#include "append.cuh"
#include "splits.cuh"

namespace diffattn::cuda::sm80 {

// One thread's share of filling kCols columns of kBlockKeys rows in shared memory. Their pitch is an
// odd number of 16-byte chunks, as in a Tile.
template <int kCols, int kThreads>
class BlockFill {
  // A quarter warp writes 128 bytes at a time: eight chunks of a row, or four of rows r and r + 4,
  // which an odd pitch puts 64 bytes apart.
  static constexpr int kWidth = kCols % 64 == 0 ? 8 : 4;
  static constexpr int kBlocks = kCols / kChunk / kWidth;  // of kWidth chunks, in a row
  static constexpr int kLines = kThreads / kWidth;
  static constexpr int kRowsAtOnce = kLines < kBlockKeys ? kLines : kBlockKeys;
  static constexpr int kBlocksAtOnce = kLines / kRowsAtOnce;
  static_assert(kCols % 32 == 0 && kBlockKeys % kRowsAtOnce == 0);
  static_assert(kWidth == 8 || kRowsAtOnce % 8 == 0);

 public:
  // cols is how many there are, pitch the bytes from a row to the next in shared memory.
  __device__ BlockFill(int cols, int pitch, int thread)
      : block_(thread / kWidth / kRowsAtOnce), cols_(cols), pitch_(pitch) {
    const int line = thread / kWidth % kRowsAtOnce;
    row_ = kWidth == 8 ? line : line / 8 * 8 + line % 2 * 4 + line % 8 / 2;
    col_ = (block_ * kWidth + thread % kWidth) * kChunk;
  }

  // Starts the copies of the rows in `valid`; the others, and columns that do not exist, become
  // zeros, and nothing of them is read. The rows in `fresh` are left to copy(). The noise's map lies
  // `noise` bytes away, and next to the signal's in shared memory.
  template <int kMostComps, class Element>
  __device__ void start(char* to, const Element* rows, int64_t stride, int comps, int64_t noise,
                        Range valid, Range fresh) const {
#pragma unroll
    for (int r = 0; r < kBlockKeys; r += kRowsAtOnce) {
      const int row = row_ + r;
      const Element* const source = rows + row * stride + col_;
      char* const target = to + row * pitch_ + col_ * 2;
      const bool exists = row >= valid.begin && row < valid.end;
      if (row >= fresh.begin && row < fresh.end) continue;
#pragma unroll
      for (int block = 0; block < kBlocks; block += kBlocksAtOnce) {
        const int col = block * kWidth * kChunk;
        if (kBlocks % kBlocksAtOnce && block + block_ >= kBlocks) continue;
#pragma unroll
        for (int comp = 0; comp < kMostComps; ++comp) {
          using Copy = cute::SM80_CP_ASYNC_CACHEGLOBAL_ZFILL<cute::uint128_t>;
          const char* const of_map = reinterpret_cast<const char*>(source + col) + comp * noise;
          if (comp < comps)
            Copy::copy(*reinterpret_cast<const cute::uint128_t*>(of_map),
                       *reinterpret_cast<cute::uint128_t*>(target + comp * kCols * 2 + col * 2),
                       exists && col_ + col < cols_);
        }
      }
    }
  }

  // Writes load(row, col) to the chunks of some rows.
  template <class Load>
  __device__ void copy(char* to, Range rows, int thread, const Load& load) const {
    constexpr int kChunks = kCols / kChunk;
#pragma unroll 1
    for (int i = thread; i < (rows.end - rows.begin) * kChunks; i += kThreads) {
      const int row = rows.begin + i / kChunks, col = i % kChunks * kChunk;
      *reinterpret_cast<uint4*>(to + row * pitch_ + col * 2) =
          col < cols_ ? load(row, col) : uint4{};
    }
  }

 private:
  int block_, row_, col_, cols_, pitch_;
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
        fill_k_(int(params.shape.headdim), T::k_pitch(params.shape), thread),
        fill_v_(int(params.shape.headdim_v), T::VTile::kPitch, thread),
        head_k_(head_k),
        thread_(thread),
        block_(blocks.begin),
        end_(blocks.end),
        keys_(keys),
        first_fresh_(fresh_keys ? sequence.cached : sequence.keys),
        ring_(ring),
        slot_bytes_(slot_bytes) {
    place_ = place_of(block_);
    next_place_ = place_of(block_ + T::kGroups);
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
  __device__ Place place_of(int block) const {
    return block < end_ ? pages_.of(block * kBlockKeys) : Place{-1, 0};
  }

  // Rows of the block that hold visible keys, and of these the first new one.
  __device__ Range visible() const {
    const int key = block_ * kBlockKeys;
    if (!pages_.exists(place_.page)) return {0, 0};
    return {max(keys_.begin - key, 0), min(keys_.end - key, kBlockKeys)};
  }

  // noise: bytes from the signal's map to the noise's, in the cache and in the new rows.
  template <int kMostComps, class Fill>
  __device__ void fill(const Fill& f, char* to, const View& cache, const View& fresh, int comps,
                       int64_t noise, int64_t fresh_noise) const {
    const int key = block_ * kBlockKeys, first = first_fresh_ - key;
    const Range valid = visible();
    const Range fresh_rows{max(first, valid.begin), valid.end};
    const Element* old =
        row_of<const Element>(cache, pages_.offset(cache, place_) + head_k_ * cache.head);
    f.template start<kMostComps>(to, old, cache.row, comps, noise, valid, fresh_rows);
    if (fresh_rows.begin >= fresh_rows.end) return;
    const Element* young = row_of<const Element>(
        fresh, s_.batch * fresh.batch + head_k_ * fresh.head - first * fresh.row);
    const Rotator<Element> rotator(kMostComps == 2 ? p_.cache.rotary : Rotary{});  // keys only
    for (int comp = 0; comp < comps; ++comp)
      f.copy(to + comp * T::kHeadDim * 2, fresh_rows, thread_, [&](int row, int col) {
        return rotator.load(young + row * fresh.row + comp * fresh_noise / int(sizeof(Element)),
                            col, key + row);
      });
  }

  __device__ void issue_keys(char* slot) {
    const CachedMap &signal = p_.maps[kSignal], &noise = p_.maps[kNoise];
    fill<2>(fill_k_, slot, signal.k_cache, signal.k_new, p_.shape.k_components == 1 ? 1 : 2,
            bytes_to_noise(signal.k_cache, noise.k_cache),
            bytes_to_noise(signal.k_new, noise.k_new));
    const uint32_t bit = 1u << block_ / T::kGroups % kLater;
    found_ = pages_.exists(place_.page) ? found_ | bit : found_ & ~bit;
  }

  __device__ void issue_values(char* slot) {
    fill<1>(fill_v_, slot, p_.v_cache, p_.v_new, 1, 0, 0);
    block_ += T::kGroups;
    place_ = next_place_;
    next_place_ = place_of(block_ + T::kGroups);
  }

  const DecodeParams& p_;
  const CachedSequence& s_;
  const Pages& pages_;
  const BlockFill<T::kHeadDim, T::kGroupThreads> fill_k_;
  const BlockFill<T::kHeadDimV, T::kGroupThreads> fill_v_;
  const int head_k_, thread_;
  int block_, end_;
  const Range keys_;  // that some row of the CTA sees
  const int first_fresh_;
  char* const ring_;
  const int slot_bytes_;
  Place place_, next_place_;
  unsigned issued_ = 0, taken_ = 0;  // slots
  uint32_t found_ = 0;
};

}  // namespace diffattn::cuda::sm80
