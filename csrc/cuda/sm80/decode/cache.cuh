// Where the keys of a sequence are when they come from a cache, and how many they are.
//
// Lengths, indices and page tables are known to the device alone and may hold anything: whatever
// they hold, no access leaves the tensors. Keys of which nobody can say where they are, are masked.
#pragma once
#include "../shared/problem.cuh"
#include "plan.h"

namespace diffattn::cuda::sm80 {

constexpr int kBlockKeys = 16;  // a step of keys; pages are multiples of it

struct CachedSequence {
  int64_t batch;  // in q and the new keys
  int row;        // in a cache without pages; of one that does not exist no key is found
  int capacity;   // keys
  int cached;     // before this call
  int keys;       // with those it appends
  int leftpad;

  __device__ CachedSequence(const DecodeParams& p, int64_t b) : batch(b) {
    const Cache& cache = p.cache;
    // All are asked for before any is waited for.
    const int length = cache.seqlens ? cache.seqlens[b] : kMaxSeqlen;
    const int pad = cache.leftpad ? cache.leftpad[b] : 0;
    row = cache.batch_idx ? cache.batch_idx[b] : int(b);
    capacity = int(p.shape.seqlen_k);
    cached = min(max(length, 0), capacity);
    keys = int(min(cached + cache.seqlen_new, int64_t(capacity)));
    leftpad = max(pad, 0);
  }
};

// Where a key is. A cache without pages is one whose sequences are pages, of as many keys as a cache may
// hold.
struct Place {
  int page;  // perhaps none that exists
  int row;   // in the page
};

class Pages {
 public:
  __device__ Pages(const DecodeParams& p, const CachedSequence& s, const Divisor& size)
      : table_(nullptr), count_(int(p.cache.blocks)), sequence_(s.row), size_(size) {
    const Paging& paging = p.cache.paging;
    if (paging.block_table) table_ = paging.block_table + s.batch * paging.stride;
  }

  __device__ Place of(int key) const {
    // A page has 16 keys or more: size_.div() would ask whether it has one.
    const int index = int(__umulhi(unsigned(key), size_.multiplier) >> size_.shift_right);
    return {table_ ? __ldg(table_ + index) : sequence_, key - index * size_.divisor};
  }
  __device__ bool exists(int page) const { return page >= 0 && page < count_; }

  // Element offset of the first head's row of a key. Of a page that does not exist nothing is read, so
  // the numbers may be taken for unsigned, which saves instructions.
  __device__ static int64_t offset(const View& v, const Place& place) {
    return unsigned(place.page) * v.batch + unsigned(place.row) * v.row;
  }

 private:
  const int32_t* table_;
  int count_, sequence_;
  const Divisor& size_;
};

}  // namespace diffattn::cuda::sm80
