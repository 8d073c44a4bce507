// Which keys the query rows of a CTA see, and how these are cut into splits.
#pragma once
#include "cache.cuh"
#include "decode.h"

namespace diffattn::cuda::sm80 {

// The query rows of a KV head that a CTA has, packed: rows of a sequence, each with all its heads.
struct PackedRows {
  int group, count;  // query heads of the KV head; all rows there are
  int begin, end;    // of this CTA

  __device__ PackedRows(const Shape& shape, int rows, int block)
      : group(int(shape.nheads / shape.nheads_k)),
        count(group * int(shape.seqlen_q)),
        begin(block * rows),
        end(min(begin + rows, count)) {}

  __device__ int row_of(int m) const { return m / group; }  // of the sequence
};

struct Range {
  int begin, end;
};

// Blocks of keys that some row of a CTA sees, in parts as equal as whole blocks allow. They depend on
// the sequence and the plan only, so that the batch around it changes no bit of a result.
class Splits {
 public:
  __device__ Splits(const DecodePlan& plan, const Sight& sight, const PackedRows& rows)
      : keys_{sight.begin(rows.row_of(rows.begin)), sight.end(rows.row_of(rows.end - 1))} {
    begin_ = keys_.begin / kBlockKeys;
    end_ = (keys_.end + kBlockKeys - 1) / kBlockKeys;
    if (keys_.end <= keys_.begin) end_ = begin_;
    const int each = (end_ - begin_ + plan.splits - 1) / plan.splits;
    each_ = max(each, plan.least_blocks);
  }

  // The splits from here on have no keys.
  __device__ int count() const { return (end_ - begin_ + each_ - 1) / each_; }
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
