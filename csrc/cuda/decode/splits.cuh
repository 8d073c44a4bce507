// Which keys the query rows of a CTA see, and how these are cut into splits.
#pragma once
#include "../common/lanes.cuh"
#include "cache.cuh"
#include "plan.h"

namespace diffattn::cuda::decoding {

// The query rows that a CTA has of a KV head, packed: rows of the sequence, each with all its heads.
struct PackedRows {
  const Divisor& group;  // query heads of the KV head
  int count;             // of all CTAs
  int begin, end;        // of this one

  __device__ PackedRows(const DecodePlan& plan, int block)
      : group(plan.group),
        count(group.divisor * plan.seqlen_q.divisor),
        begin(block * plan.rows),
        end(min(begin + plan.rows, count)) {}

  // Row of the sequence, and query head, of packed row m.
  __device__ int row_of(int m) const { return group.div(m); }
  __device__ int first_row() const { return row_of(begin); }
  __device__ int last_row() const { return row_of(end - 1); }
  __device__ int head_of(int m, int head_k) const { return head_k * group.divisor + group.rem(m); }
};

struct Range {
  int begin, end;
};

// The blocks of an interval of keys that rows of a CTA see. Blocks are counted through all intervals.
struct KeyBlocks {
  Range keys;      // that some row sees
  int begin, end;  // blocks
  int shift = 0;   // from block·kBlockKeys to the first key of a block

  __device__ KeyBlocks(const KeyInterval& mask, const PackedRows& rows)
      : keys{mask.begin(rows.first_row()), mask.end(rows.last_row())},
        begin(keys.begin / kBlockKeys),
        end(keys.end > keys.begin ? (keys.end + kBlockKeys - 1) / kBlockKeys : begin) {}

  // The same where so many blocks come before.
  __device__ KeyBlocks behind(int blocks) const {
    KeyBlocks moved = *this;
    moved.shift = (begin - blocks) * kBlockKeys;
    moved.begin = blocks;
    moved.end = blocks + end - begin;
    return moved;
  }

  __device__ int key_of(int block) const { return block * kBlockKeys + shift; }
};

struct SeenInterval {
  KeyInterval mask;
  KeyBlocks blocks;

  __device__ SeenInterval(const KeyInterval& interval, const PackedRows& rows)
      : mask(interval), blocks(interval, rows) {}
};

// The keys that some row of a CTA sees: those of its sinks, where hidden keys follow, and then those of its
// window; else all in one interval.
template <bool kSinks>
class SeenKeys {
 public:
  __device__ SeenKeys(const DecodeParams& params, const CachedSequence& sequence,
                      const PackedRows& rows, int head_k)
      : p_(params), sequence_(sequence), rows_(rows), head_k_(head_k) {}

  __device__ SeenInterval first() const {
    return {kSinks ? mask().first(rows_.last_row()) : mask().window(), rows_};
  }
  __device__ SeenInterval window(int blocks_before) const {
    SeenInterval seen(mask().window(), rows_);
    seen.blocks = seen.blocks.behind(blocks_before);
    return seen;
  }
  // The one that has a block.
  __device__ SeenInterval of(int block) const {
    const SeenInterval before = first();
    return kSinks && block >= before.blocks.end ? window(before.blocks.end) : before;
  }

  // All blocks.
  __device__ Range blocks() const {
    const SeenInterval before = first();
    const KeyBlocks& last = kSinks && before.mask.end_key() < sequence_.keys
                                ? window(before.blocks.end).blocks
                                : before.blocks;
    return {before.blocks.begin, last.end};
  }

 private:
  __device__ HeadMask mask() const {
    if (!kSinks) return make(sequence_.keys);
    // Computed again each time: few CTAs need it twice, and registers are short in every step.
    return make(keep_uniform(sequence_.keys));
  }
  __device__ HeadMask make(int keys) const {
    return {p_.mask, head_k_, int(p_.shape.seqlen_q), keys, sequence_.leftpad};
  }

  const DecodeParams& p_;
  const CachedSequence& sequence_;
  const PackedRows& rows_;
  int head_k_;
};

// Their blocks in parts as equal as whole blocks allow. They depend only on the sequence and the plan, so other
// sequences of the batch change no bit of a result.
class Splits {
 public:
  __device__ Splits(const Divisor& most, int least_blocks, const Range& blocks)
      : all_(blocks),
        each_(max(most.div(all_.end - all_.begin + most.divisor - 1), least_blocks)) {}

  // The splits from here on have no keys.
  __device__ int count() const {
    return int(unsigned(all_.end - all_.begin + each_ - 1) / unsigned(each_));
  }
  __device__ Range blocks(int split) const {
    const int begin = all_.begin + split * each_;
    return {min(begin, all_.end), min(begin + each_, all_.end)};
  }

 private:
  Range all_;
  int each_;
};

}  // namespace diffattn::cuda::decoding
