// The values of a cache's lengths, indices and pages, where they can be read: always on the CPU, on CUDA at the
// cost of a sync.
#pragma once
#include <tuple>

#include "kvcache.h"

namespace diffattn::bindings {

// An int32 tensor of one or two dimensions, copied to the host, row after row.
inline std::vector<int32_t> values_of(const OptionalTensor& t) {
  if (!t) return {};
  const Tensor host = torch::stable::to(*t, {torch::headeronly::DeviceType::CPU});
  const int64_t rows = host.dim() == 2 ? host.size(0) : 1, n = host.size(host.dim() - 1);
  const int64_t stride = host.dim() == 2 ? host.stride(0) : 0;
  const auto* data = static_cast<const int32_t*>(host.data_ptr());
  std::vector<int32_t> values;
  values.reserve(rows * n);
  for (int64_t row = 0; row < rows; ++row)
    values.insert(values.end(), data + row * stride, data + row * stride + n);
  return values;
}

// What the index tensors held when the call began. A backend on the host reads these copies, so that what was
// checked is what it uses, even if something writes to the tensors meanwhile: another thread, or the call itself
// where they share memory with the cache.
class CacheValues {
 public:
  explicit CacheValues(const KvCache& c)
      : c_(c),
        mask_(c.mask()),
        seqlens_(values_of(c.seqlens)),
        batch_idx_(values_of(c.batch_idx)),
        leftpad_(values_of(c.leftpad)),
        block_table_(values_of(c.block_table)) {
    for (int64_t b = 0; b < c.shape.batch; ++b) {
      check_lengths(b);
      check_places(b);
      check_positions(b);
    }
    check_one_writer();
  }

  void use_in(Cache& cache) const {
    if (c_.seqlens) cache.seqlens = seqlens_.data();
    if (c_.batch_idx) cache.batch_idx = batch_idx_.data();
    if (c_.leftpad) cache.leftpad = leftpad_.data();
    if (c_.block_table) {
      cache.paging.block_table = block_table_.data();
      cache.paging.stride = pages();
    }
  }

 private:
  int64_t capacity() const { return c_.shape.seqlen_k; }
  int64_t appended() const { return c_.seqlen_new(); }
  int64_t pages() const { return c_.block_table->size(1); }
  int64_t cached(int64_t b) const { return c_.seqlens ? seqlens_[b] : capacity(); }
  int64_t leftpad(int64_t b) const { return c_.leftpad ? leftpad_[b] : 0; }

  void check_lengths(int64_t b) const {
    check(cached(b) >= 0 && cached(b) + appended() <= capacity(), "cache_seqlens[", b, "] is ",
          cached(b), ", accepted: 0 to ", capacity() - appended(), " (the cache holds ", capacity(),
          ", ", appended(), " are appended)");
    const int64_t keys = cached(b) + appended();
    check(leftpad(b) >= 0 && leftpad(b) <= keys, "cache_leftpad[", b, "] is ", leftpad(b),
          ", accepted: 0 to ", keys, ", the keys of sequence ", b, " with those appended");
  }

  // An entry may be anything if no key of its page is read or written.
  void check_places(int64_t b) const {
    const int64_t blocks = c_.k_cache.size(0);
    if (c_.batch_idx)
      check(batch_idx_[b] >= 0 && batch_idx_[b] < blocks, "cache_batch_idx[", b, "] is ",
            batch_idx_[b], ", accepted: 0 to ", blocks - 1);
    if (!c_.block_table) return;
    const int64_t first = std::min(leftpad(b), cached(b)) / c_.page_size();
    for (int64_t n = first; n * c_.page_size() < cached(b) + appended(); ++n) {
      if (is_hidden(b, n * c_.page_size(), (n + 1) * c_.page_size())) continue;
      const int64_t page = block_table_[b * pages() + n];
      check(page >= 0 && page < blocks, "block_table[", b, ", ", n, "] is ", page,
            ", accepted: 0 to ", blocks - 1);
    }
  }

  // Whether every head streams, and the cached keys begin <= j < end lie between sinks and window of every row.
  bool is_hidden(int64_t b, int64_t begin, int64_t end) const {
    const int64_t window = cached(b) + appended() - c_.shape.seqlen_q - mask_.left;
    return mask_.left >= 0 && mask_.streaming == ~uint64_t(0) && begin >= leftpad(b) + mask_.sink &&
           end <= std::min(window, cached(b));
  }

  // The rotary tables hold the positions of the new keys and of the queries.
  void check_positions(int64_t b) const {
    if (!c_.cos) return;
    const int64_t sq = c_.shape.seqlen_q,
                  rows = c_.rows_are_ordered() ? sq : std::min<int64_t>(sq, 1);
    const int64_t rotated = std::max(appended(), rows);
    const int64_t needed = rotated ? cached(b) + rotated : 0;
    check(needed <= c_.cos->size(0), "rotary_cos has ", c_.cos->size(0), " positions, sequence ", b,
          " needs ", needed);
  }

  // No two sequences append to the same place.
  void check_one_writer() const {
    struct Written {
      int64_t block, b, n;
    };
    std::vector<Written> all;
    for (int64_t b = 0; appended() && b < c_.shape.batch; ++b) {
      if (c_.batch_idx) all.push_back({batch_idx_[b], b, 0});
      if (c_.block_table)
        for (int64_t n = cached(b) / c_.page_size(); n * c_.page_size() < cached(b) + appended();
             ++n)
          all.push_back({block_table_[b * pages() + n], b, n});
    }
    std::sort(all.begin(), all.end(), [](const Written& x, const Written& y) {
      return std::tie(x.block, x.b, x.n) < std::tie(y.block, y.b, y.n);
    });
    for (size_t i = 1; i < all.size(); ++i) {
      const Written &one = all[i - 1], &other = all[i];
      if (one.block != other.block) continue;
      check(!c_.batch_idx, "cache_batch_idx[", one.b, "] and cache_batch_idx[", other.b,
            "] are both ", one.block, ": two sequences cannot append to one row of the cache");
      check(false, "block_table[", one.b, ", ", one.n, "] and block_table[", other.b, ", ", other.n,
            "] are both ", one.block, ": a page that is appended to belongs to one place only");
    }
  }

  const KvCache& c_;
  const Mask mask_;
  const std::vector<int32_t> seqlens_, batch_idx_, leftpad_, block_table_;
};

}  // namespace diffattn::bindings
