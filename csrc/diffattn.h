// The waist of the library: what the bindings hand to a backend. It hides torch from the backends, and it needs
// no CUDA header.
#pragma once
#include <cstdint>

struct CUstream_st;

namespace diffattn {

// The widest rows of Q and K, and of V.
constexpr int64_t kMostHeaddim = 128, kMostHeaddimV = 2 * kMostHeaddim;

// The most signal maps that share a noise map.
constexpr int64_t kMostSignals = 8;

// The longest sequence of a cache whose size does not say it: a ring's.
constexpr int64_t kMostLength = int64_t(1) << 29;

enum class DType { f16, bf16, f32, f64 };

// A strided tensor whose last dimension is contiguous. Strides count elements. A dimension that is
// broadcast, or that the tensor does not have, has stride 0. data == nullptr: the tensor is absent.
struct View {
  void* data = nullptr;
  int64_t batch = 0, row = 0, head = 0;
  int64_t half = 0;  // of V: from the first half of a row to the second, which may lie apart
};

// A head has two softmax maps, the signal's and the noise's, which is subtracted. What each map has of its
// own are two views with the same strides; they are equal where both maps share a tensor (K of DIFF V2).
constexpr int kSignal = 0, kNoise = 1;

struct Map {
  View q;    // [batch, row, head, d]
  View k;    // [batch, row, head_k, d]
  View lse;  // [batch, head, row]
  View o;  // [batch, row, head, dv]   in the compute type: the map's own result, if it is asked for
};

struct MapGradients {
  View dq, dk;  // as q, k
  View dlse;    // [batch, head, row]   absent: zero
};

struct CachedMap {
  View q, lse, o;  // as in Map
  View k_cache;    // [batch or block, row, head_k, d]
  View k_stream;   // [batch, slot, streaming head, d]    absent: k_cache has all heads
  View k_new;      // [batch, row, head_k, d]   absent: nothing to append
};

struct Shape {
  int64_t batch;
  int64_t seqlen_q, seqlen_k;  // with cu_seqlens: the longest sequence; at most 2^40
  int64_t nheads, nheads_k;
  int64_t headdim, headdim_v;
  int64_t k_components;  // 2, or 1 where both maps share K (DIFF V2)
};

// Which keys a row sees: key j is visible to row i iff D - left <= j <= D + right, where D = i + sk - sq; negative: unbounded.
// At most 2^41, because sizes are added to them. A head that streams also sees the first `sink` keys of the sequence, counted
// from its padding, as far as `right` allows. A head that does not stream sees every key that `right` allows.
struct Mask {
  int64_t left, right;
  int64_t sink = 0;
  // Bit h: KV head h streams. All bits set: every head does, even beyond 64.
  uint64_t streaming = ~uint64_t(0);

  int64_t full_heads() const { return __builtin_popcountll(~streaming); }
};

// Y = O·rsqrt(mean(O²) + eps)·weight·scale; Y = O·scale where eps is negative.
struct Norm {
  const void* weight = nullptr;  // [dv] in the compute type, or absent
  double eps = -1;
  double scale = 1;
};

// Offsets of each sequence in a packed batch, [batch + 1]; absent where the batch is dense. A backend
// that cannot read them beforehand keeps every access inside the totals.
struct Varlen {
  const int32_t* cu_seqlens_q = nullptr;
  const int32_t* cu_seqlens_k = nullptr;
  int64_t total_q = 0, total_k = 0;  // rows that the packed tensors have
};

// Groups of maps: several signal maps share a noise map. Then nheads counts signals, and head h is signal
// h % signals of group h / signals. In the views of a map's own tensors (q, lse, o) `head` steps along groups, and
// from signal to signal of a group these strides do.
struct Groups {
  int64_t signals = 1;
  int64_t q = 0, lse = 0, o = 0, dq = 0, dlse = 0;

  int64_t count(const Shape& s) const { return s.nheads / signals; }
};

// A score is softmax_scale·QKᵀ, and with a soft cap c > 0 it is c·tanh(softmax_scale·QKᵀ / c). The mask comes after
// it. 0: no cap. Between these limits neither c nor a score divided by it leaves the range of fp32.
constexpr double kLeastSoftcap = 1e-9, kMostSoftcap = 1e9;

// The compute type is fp32, and fp64 for fp64 tensors. lam, lse, rstd and norm.weight are in it.
struct FwdParams {
  DType dtype;
  Shape shape;
  Map maps[2];
  View v;  // [batch, row, head_k, dv]
  // Absent where the maps' own results are asked for, which have neither lambda nor norm.
  View lam;  // [batch, row, head]
  View out;  // [batch, row, head, dv]
  // For backward; absent where it does not need them.
  View o;             // [batch, row, head, dv]   O1 - lam·O2, where a norm changes the output
  View o_complement;  // [batch, row, head, dv]   O2 + lam·O1
  View rstd;          // [batch, head, row]       absent without a norm
  double softmax_scale, softcap;
  Mask mask;
  Norm norm;
  Varlen varlen;
  Groups groups;
};

struct BwdParams {
  DType dtype;
  Shape shape;
  Map maps[2];
  View v, lam;
  View o, o_complement, rstd;  // as forward left them
  View dout;                   // [batch, row, head, dv]
  MapGradients map_grads[2];
  View dv;             // as v
  View dlam;           // [batch, row, head]
  void* dnorm_weight;  // [dv] in the compute type
  double softmax_scale, softcap;
  Mask mask;
  Norm norm;
  Varlen varlen;
  bool deterministic;  // bitwise the same from run to run; the CPU backend always is
  // Of a part of the keys, with the LSE of all: dlse is less D of each map (see docs/kernels_backward.md), so o,
  // o_complement and dlam are absent, and dq, dk and dv are in the compute type, to be added to other parts'.
  bool partial;
  Groups groups;
};

struct Rotary {
  const void* cos = nullptr;  // [seqlen_ro, dim / 2] in the tensors' dtype; absent: no rotation
  const void* sin = nullptr;
  int64_t seqlen = 0;  // positions that the tables have
  int64_t dim = 0;
  bool interleaved = true;
};

struct Paging {
  const int32_t* block_table = nullptr;  // [batch, max_blocks]; absent: the cache is contiguous
  int64_t stride = 0;                    // of its batch dimension
  int64_t page_size = 0;
};

// The slots of a cache of streaming heads, whose size does not depend on the length. Keys are counted from the
// padding, which has no slot. The first sink_slots keys have slots of their own; a later one takes the slot of the key
// `slots` before it. Both numbers are multiples of 16, so that no block of 16 keys crosses the wrap.
struct Ring {
  int64_t sink_slots = 0;
  int64_t slots = 0;  // 0: there is no ring
};

// Where the keys of a sequence are when they come from a cache. All absent: k and v are tensors.
struct Cache {
  const int32_t* seqlens = nullptr;    // [batch]   before anything is appended
  const int32_t* batch_idx = nullptr;  // [batch]
  const int32_t* leftpad = nullptr;    // [batch]   at most the keys there are after appending
  int64_t seqlen_new = 0;              // keys appended to every sequence
  int64_t blocks = 0;                  // sequences, or pages, that the cache has room for
  Paging paging;
  Ring ring;  // of k_stream and v_stream
  Rotary rotary;
};

// With a ring, the caches hold full heads alone and the ring holds those that stream, each in the order of the heads.
struct DecodeParams {
  DType dtype;
  Shape shape;  // seqlen_k is the cache's capacity, or kMostLength where a ring has all heads
  CachedMap maps[2];
  View v_cache;   // [batch or block, row, head_k, dv]
  View v_stream;  // [batch, slot, streaming head, dv]    absent: v_cache has all heads
  View v_new;     // [batch, row, head_k, dv]   absent: nothing to append
  View lam, out;  // as in FwdParams
  Cache cache;
  double softmax_scale, softcap;
  Mask mask;
  Norm norm;
  int64_t num_splits;  // 0: the backend chooses; above the number of keys, that number
  Groups groups;
};

namespace cpu {

// How a backend without threads of its own spreads work: run() calls body(ctx, w) once for each
// w < threads, on as many threads as there are, and returns when all calls have returned.
struct Parallel {
  int threads;
  void (*run)(int threads, void (*body)(void* ctx, int worker), void* ctx);
};

void fwd(const FwdParams&, const Parallel&);
void bwd(const BwdParams&, const Parallel&);
void decode(const DecodeParams&, const Parallel&);

// The instruction set chosen for this machine: "avx512", "avx2" or "portable".
const char* isa();

// What was compiled in, best first. Behind the last the name is null.
struct InstructionSet {
  const char* name;
  bool runs_here;
};
InstructionSet instruction_set(int index);

}  // namespace cpu

namespace cuda {

// What serves a call. workspace says how many bytes of device memory launch needs besides the tensors, from
// shapes and totals alone; they need not be initialised. stream is a cudaStream_t.
template <class Params>
struct EntryPoint {
  int64_t (*workspace)(const Params&);
  void (*launch)(const Params&, void* workspace, CUstream_st* stream);
};

// Chosen by the current device, which has to be that of the tensors, and by the shape. Bases and strides of
// tensors of the kernels' dtype and of norm.weight are multiples of 16 bytes. Throws std::runtime_error where
// the device or a size is not supported, and so does launch.
EntryPoint<FwdParams> choose(const FwdParams&);
EntryPoint<BwdParams> choose(const BwdParams&);
EntryPoint<DecodeParams> choose(const DecodeParams&);

}  // namespace cuda
}  // namespace diffattn
