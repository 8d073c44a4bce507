// How keys and values of the cache get from global memory to the warps that use them.
#pragma once
#include "../common/barrier.cuh"
#include "../common/tile.cuh"
#include "append.cuh"
#include "copy.cuh"
#include "dependent.cuh"
#include "place.cuh"
#include "splits.cuh"

namespace diffattn::cuda::decoding {

// One thread's share of filling kCols columns of kBlockKeys rows in shared memory. Their pitch is an
// odd number of 16-byte chunks, as in a Tile.
template <int kCols, int kThreads, class Copy>
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
  __device__ BlockFill(int cols, int pitch, int thread, const Copy& copy)
      : copy_(copy), block_(thread / kWidth / kRowsAtOnce), cols_(cols), pitch_(pitch) {
    const int line = thread / kWidth % kRowsAtOnce;
    row_ = kWidth == 8 ? line : line / 8 * 8 + line % 2 * 4 + line % 8 / 2;
    col_ = (block_ * kWidth + thread % kWidth) * kChunk;
  }

  // Starts the copies of the rows in `valid`. The others, and columns that do not exist, become zeros,
  // and nothing of them is read. The rows in `fresh` are left to copy(). With two maps the noise's
  // lies `noise` bytes from the signal's, and next to it in shared memory.
  template <int kMostMaps, class Element>
  __device__ void start(char* to, const Element* rows, int64_t stride, int maps, int64_t noise,
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
        for (int map = 0; map < kMostMaps; ++map)
          if (map < maps)
            copy_.start(target + (map * kCols + col) * 2,
                        reinterpret_cast<const char*>(source + col) + map * noise,
                        exists && col_ + col < cols_);
      }
    }
  }

  // Writes load(row, col) to each chunk of some rows.
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
  Copy copy_;
  int block_, row_, col_, cols_, pitch_;
};

// A ring of slots in shared memory through which blocks pass: the keys of a block in one slot, its
// values in the next. Each group of warps has a ring, and takes every kGroups-th block.
template <class T>
class KeyStream {
  using Element = typename T::Element;
  enum class Content { keys, values };

 public:
  __device__ KeyStream(const DecodeParams& params, const DecodePlan& plan, const SplitPlace& place,
                       const CachedSequence& sequence, const SeenKeys<T::kSinks>& seen,
                       const Range& blocks, const Role& role, char* smem)
      : p_(params),
        s_(sequence),
        fill_k_(int(params.shape.headdim), T::k_pitch(params.shape), role.thread, copy_of(plan)),
        fill_v_(int(params.shape.headdim_v), T::VTile::kPitch, role.thread, copy_of(plan)),
        place_(place),
        role_(role),
        seen_(seen),
        block_(blocks.begin + role.group),
        end_(blocks.end),
        part_(seen.first().blocks),
        first_fresh_(plan.append_first && !place.in_ring ? sequence.keys : sequence.cached),
        slot_bytes_(T::slot_bytes(params.shape)),
        ring_(smem + role.group * slot_bytes_) {
    find_block();
  }

  // Starts the copies into all slots but the last.
  __device__ void start() {
    wait_for_previous();  // keys that a kernel of their own appends are in the cache
#pragma unroll 1
    for (int slot = 0; slot < T::kSlots - 1; ++slot)
      if (slot % 2 == 0)
        issue<Content::keys>();
      else
        issue<Content::values>();
  }

  // The keys of the group's next block, and then its values. Refills the slot that was used before.
  __device__ const char* next_keys() { return next<Content::keys>(); }
  __device__ const char* next_values() { return next<Content::values>(); }

  // Whether the keys of a block could be found. Asked before kLater further blocks are issued.
  __device__ bool found(int block) const { return found_ >> block / T::kGroups % kLater & 1; }

 private:
  static constexpr int kLater = 32;

  __device__ static CacheCopy<T> copy_of(const DecodePlan& plan) {
    return CacheCopy<T>(T::kOneBlock || plan.row_blocks.divisor == 1);
  }

  __device__ char* slot(unsigned n) const {
    return ring_ + n % T::kSlots * slot_bytes_ * T::kGroups;
  }

  // The slot to refill is kSlots - 1 slots ahead, and keys and values alternate.
  __device__ static constexpr Content ahead(Content now) {
    if (T::kSlots % 2 == 1) return now;
    return now == Content::keys ? Content::values : Content::keys;
  }

  template <Content kNow>
  __device__ const char* next() {
    cute::cp_async_wait<T::kSlots - 2>();  // this thread's copies into the next slot have landed
    // Now those of the whole group have. All its warps have read the slot before: it may be refilled.
    if constexpr (T::kRowWarps == 1)
      __syncwarp();
    else
      named_barrier(1 + role_.group, T::kGroupThreads);
    issue<ahead(kNow)>();
    return slot(taken_++);
  }

  // Starts the copies into one more slot. Without a block left the group of copies is empty, so that
  // counting groups of copies still counts slots.
  template <Content kContent>
  __device__ void issue() {
    char* const to = slot(issued_++);
    if (block_ < stop_) {
      if constexpr (kContent == Content::keys)
        issue_keys(to);
      else
        issue_values(to);
    } else {
      let_next_begin();  // the last loads are under way
    }
    cute::cp_async_fence();
  }

  __device__ void issue_keys(char* to) {
    const View &signal = keys_of(p_.maps[kSignal]), &noise = keys_of(p_.maps[kNoise]);
    const int maps = p_.shape.k_components == 1 ? 1 : 2;
    const Range valid = visible(), fresh = fresh_of(valid);
    fill_k_.template start<2>(to, cached_rows(signal), signal.row, maps,
                              bytes_to_noise(signal, noise), valid, fresh);
    const uint32_t bit = 1u << block_ / T::kGroups % kLater;
    found_ = s_.pages.exists(at_.page) ? found_ | bit : found_ & ~bit;
    if (fresh.begin >= fresh.end) return;
    const Rotator<Element> rotator(p_.cache.rotary);
    const int position = s_.uncounted + part_.key_of(block_);
#pragma unroll 1
    for (int map = 0; map < maps; ++map) {
      const View& from = p_.maps[map].k_new;
      const Element* const rows = new_rows(from);
      fill_k_.copy(to + map * T::kHeadDim * 2, fresh, role_.thread, [&](int row, int col) {
        return rotator.load(rows + row * from.row, col, position + row);
      });
    }
  }

  __device__ void issue_values(char* to) {
    const Range valid = visible(), fresh = fresh_of(valid);
    const View& values = place_.in_ring ? p_.v_stream : p_.v_cache;
    fill_v_.template start<1>(to, cached_rows(values), values.row, 1, 0, valid, fresh);
    if (fresh.begin < fresh.end) {
      const Element* const rows = new_rows(p_.v_new);
      fill_v_.copy(to, fresh, role_.thread, [&](int row, int col) {
        return *reinterpret_cast<const uint4*>(rows + row * p_.v_new.row + col);
      });
    }
    block_ += T::kGroups;
    if (T::kSinks && block_ >= stop_) return find_block();
    at_ = next_at_;
    next_at_ = row_of_block(block_ + T::kGroups);
  }

  // The next block may be in another interval than the one before.
  __device__ void find_block() {
    if (T::kSinks && block_ >= part_.end && block_ < end_) part_ = seen_.window(part_.end).blocks;
    stop_ = T::kSinks ? min(part_.end, end_) : end_;
    at_ = row_of_block(block_);
    next_at_ = row_of_block(block_ + T::kGroups);
  }

  // The entry of the page table, loaded long before it is needed.
  __device__ CachedRow row_of_block(int block) const {
    return block < stop_ ? s_.pages.row_of(part_.key_of(block)) : CachedRow{-1, 0};
  }

  // The rows of the block that hold visible keys, and which of these are not in the cache yet.
  __device__ Range visible() const {
    const int key = part_.key_of(block_);
    if (!s_.pages.exists(at_.page)) return {0, 0};
    return {max(part_.keys.begin - key, 0), min(part_.keys.end - key, kBlockKeys)};
  }
  __device__ Range fresh_of(Range valid) const {
    return {max(first_fresh_ - part_.key_of(block_), valid.begin), valid.end};
  }

  __device__ const View& keys_of(const CachedMap& map) const {
    return place_.in_ring ? map.k_stream : map.k_cache;
  }

  // Row 0 of the block in the cache, and where it would lie among the new tokens.
  __device__ const Element* cached_rows(const View& v) const {
    return row_of<const Element>(v, Pages::offset(v, at_) + place_.head_in_keys * v.head);
  }
  __device__ const Element* new_rows(const View& v) const {
    const int first = first_fresh_ - part_.key_of(block_);
    return row_of<const Element>(v, s_.batch * v.batch + place_.head_k * v.head - first * v.row);
  }

  const DecodeParams& p_;
  const CachedSequence& s_;
  const BlockFill<T::kHeadDim, T::kGroupThreads, CacheCopy<T>> fill_k_;
  const BlockFill<T::kHeadDimV, T::kGroupThreads, CacheCopy<T>> fill_v_;
  const SplitPlace& place_;
  const Role& role_;
  const SeenKeys<T::kSinks>& seen_;
  int block_, end_;  // the next block, and where the split ends
  KeyBlocks part_;   // that has the next block
  int stop_;         // where it or the split ends
  const int first_fresh_;
  const int slot_bytes_;
  char* const ring_;
  CachedRow at_, next_at_;           // of the next block, and of the one after it
  unsigned issued_ = 0, taken_ = 0;  // slots
  uint32_t found_ = 0;               // a bit per block
};

}  // namespace diffattn::cuda::decoding
