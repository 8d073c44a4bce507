// Where the keys of a sequence are when they come from a cache, and how many they are.
//
// Only the device knows lengths, indices and page tables, and they may hold anything: whatever they
// hold, no access leaves the tensors. Keys in pages that do not exist are masked.
#pragma once
#include "../common/problem.cuh"
#include "plan.h"

namespace diffattn::cuda::decoding {

constexpr int kBlockKeys = 16;  // a step of keys; pages are multiples of it

// Where a key is. In a cache without pages each sequence is a page, of as many keys as a cache may hold. A ring is
// such a page too.
struct CachedRow {
  int page;  // perhaps not one that exists
  int row;   // in the page
};

class Pages {
 public:
  __device__ Pages(const DecodeParams& p, const DecodePlan& plan, int64_t batch, bool in_ring)
      : table_(nullptr),
        count_(int(p.cache.blocks)),
        wraps_from_(in_ring ? int(p.cache.ring.sink_slots) : 0),
        size_(in_ring ? plan.ring : plan.page) {
    const Cache& cache = p.cache;
    sequence_ = cache.batch_idx ? cache.batch_idx[batch] : int(batch);
    if (!cache.paging.block_table) return;
    if (in_ring)
      count_ = int(p.shape.batch);
    else
      table_ = cache.paging.block_table + batch * cache.paging.stride;
  }

  __device__ CachedRow row_of(int key) const {
    // size_.div() would test for pages of one key; every page has 16 or more, and so has a ring.
    const unsigned counted = wraps_from_ ? unsigned(max(key - wraps_from_, 0)) : unsigned(key);
    const int index = int(__umulhi(counted, size_.multiplier) >> size_.shift_right);
    return {table_ ? __ldg(table_ + index) : sequence_, key - index * size_.divisor};
  }
  __device__ bool exists(int page) const { return page >= 0 && page < count_; }

  // Element offset of the first head's row of a key. Nothing is read from a page that does not exist,
  // so the numbers may be taken as unsigned, which saves instructions.
  __device__ static int64_t offset(const View& v, const CachedRow& at) {
    return unsigned(at.page) * v.batch + unsigned(at.row) * v.row;
  }

 private:
  const int32_t* table_;  // absent without pages
  int count_;
  int sequence_;    // without pages: the row of the cache, perhaps not one that exists
  int wraps_from_;  // the first key of a ring that may take another's slot
  const Divisor& size_;
};

// One sequence of the batch: how many keys it has in the cache, and where they are. A ring knows nothing of padding:
// its keys are counted from there.
struct CachedSequence {
  int64_t batch;  // in q and the new keys
  int cached;     // keys before this call; negative where it brings padding of a ring
  int keys;       // and with those that it appends
  int leftpad;
  int uncounted = 0;  // keys before the first that is counted
  bool in_ring;
  Pages pages;

  __device__ CachedSequence(const DecodeParams& p, const DecodePlan& plan, int64_t b, bool in_ring)
      : batch(b), in_ring(in_ring), pages(p, plan, b, in_ring) {
    const Cache& cache = p.cache;
    const int length = cache.seqlens ? cache.seqlens[b] : kMaxSeqlen;
    const int pad = cache.leftpad ? cache.leftpad[b] : 0;
    const int capacity = int(p.shape.seqlen_k);
    cached = min(max(length, 0), capacity);
    keys = int(min(cached + cache.seqlen_new, int64_t(capacity)));
    leftpad = max(pad, 0);
    if (!in_ring) return;
    uncounted = min(leftpad, keys);
    cached -= uncounted;
    keys -= uncounted;
    leftpad = 0;
  }

  // Whether a new key has a slot that no later one of this call takes.
  __device__ bool has_slot(const Ring& ring, int key) const {
    return !in_ring || (key >= 0 && (key < ring.sink_slots || key >= keys - ring.slots));
  }
};

}  // namespace diffattn::cuda::decoding
