// Which keys the query rows of a CTA see, and how these are cut into splits.
#pragma once
#include "cache.cuh"
#include "plan.h"

namespace diffattn::cuda::sm80 {

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
  __device__ int head_of(int m, int head_k) const { return head_k * group.divisor + group.rem(m); }
};

struct Range {
  int begin, end;
};

// The blocks of keys that some row of a CTA sees, in parts as equal as whole blocks allow. They depend
// only on the sequence and the plan, so other sequences of the batch change no bit of a result.
class Splits {
 public:
  __device__ Splits(const DecodePlan& plan, const SequenceMask& mask, const PackedRows& rows)
      : keys_{mask.begin(rows.row_of(rows.begin)), mask.end(rows.row_of(rows.end - 1))} {
    begin_ = keys_.begin / kBlockKeys;
    end_ = (keys_.end + kBlockKeys - 1) / kBlockKeys;
    if (keys_.end <= keys_.begin) end_ = begin_;
    const Divisor& most = plan.splits;
    each_ = max(most.div(end_ - begin_ + most.divisor - 1), plan.least_blocks);
  }

  // The splits from here on have no keys.
  __device__ int count() const {
    return int(unsigned(end_ - begin_ + each_ - 1) / unsigned(each_));
  }
  __device__ Range blocks(int split) const {
    const int begin = begin_ + split * each_;
    return {min(begin, end_), min(begin + each_, end_)};
  }
  __device__ const Range& keys() const { return keys_; }

 private:
  Range keys_;
  int begin_, end_, each_;
};

}  // namespace diffattn::cuda::sm80
