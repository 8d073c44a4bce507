// The schemas of all ops, whatever device implements them. The build names their namespace, DIFFATTN_OPS:
// setup.py says diffattn, and each build for the kernel hub has a name of its own.
#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY(DIFFATTN_OPS, m) {
  // Dense: q (batch, seqlen_q, nheads, 2, d), k (batch, seqlen_k, nheads_k, 1 or 2, d),
  // v (batch, seqlen_k, nheads_k, dv), lam (batch, seqlen_q, nheads).
  // Packed, with cu_seqlens: the first two dimensions are one.
  // fwd and bwd on the CPU take groups of maps too: q (.., groups, r + 1, d), nheads = groups·r, and an LSE
  // (r + 1, batch, groups, seqlen_q).
  m.def(
      "fwd(Tensor q, Tensor k, Tensor v, Tensor lam, Tensor? norm_weight, Tensor? cu_seqlens_q, "
      "Tensor? cu_seqlens_k, SymInt max_seqlen_q, SymInt max_seqlen_k, float softmax_scale, "
      "SymInt window_left, SymInt window_right, SymInt sink_size, int streaming_heads, "
      "float? norm_eps, float out_scale, "
      "bool deterministic, bool training, float softcap=0.0) -> (Tensor out, Tensor lse, Tensor o, "
      "Tensor o2, Tensor "
      "rstd)");
  m.def(
      "bwd(Tensor dout, Tensor? dlse, Tensor q, Tensor k, Tensor v, Tensor lam, "
      "Tensor? norm_weight, Tensor o, Tensor o2, Tensor lse, Tensor rstd, Tensor? cu_seqlens_q, "
      "Tensor? cu_seqlens_k, SymInt max_seqlen_q, SymInt max_seqlen_k, float softmax_scale, "
      "SymInt window_left, SymInt window_right, SymInt sink_size, int streaming_heads, "
      "float? norm_eps, float out_scale, "
      "bool deterministic, float softcap=0.0) "
      "-> (Tensor dq, Tensor dk, Tensor dv, Tensor dlam, Tensor dnorm_weight)");
  m.def(
      "decode(Tensor q, Tensor(a!) k_cache, Tensor(b!) v_cache, Tensor lam, Tensor? k, Tensor? v, "
      "Tensor? rotary_cos, Tensor? rotary_sin, Tensor? cache_seqlens, Tensor? cache_batch_idx, "
      "Tensor? cache_leftpad, Tensor? block_table, Tensor? norm_weight, float softmax_scale, "
      "SymInt window_left, SymInt window_right, SymInt sink_size, int streaming_heads, "
      "bool rotary_interleaved, float? norm_eps, "
      "float out_scale, SymInt num_splits, Tensor(c!)? k_stream=None, Tensor(d!)? v_stream=None, "
      "float softcap=0.0) "
      "-> (Tensor out, Tensor lse)");
  // Each map's own result, (.., seqlen_q, nheads, 2, dv) in the compute type, and gradients of a part of the
  // keys: lse is that of all keys, dlse is less D of each map.
  m.def(
      "components(Tensor q, Tensor k, Tensor v, Tensor? cu_seqlens_q, Tensor? cu_seqlens_k, "
      "SymInt max_seqlen_q, SymInt max_seqlen_k, float softmax_scale, SymInt window_left, "
      "SymInt window_right, SymInt sink_size, int streaming_heads, bool deterministic, float "
      "softcap=0.0) "
      "-> (Tensor o, Tensor lse)");
  m.def(
      "bwd_partial(Tensor dout, Tensor dlse, Tensor q, Tensor k, Tensor v, Tensor lam, "
      "Tensor lse, Tensor? cu_seqlens_q, Tensor? cu_seqlens_k, SymInt max_seqlen_q, "
      "SymInt max_seqlen_k, float softmax_scale, SymInt window_left, SymInt window_right, "
      "SymInt sink_size, int streaming_heads, bool deterministic, float softcap=0.0) "
      "-> (Tensor dq, Tensor dk, Tensor dv)");
  m.def(
      "decode_components(Tensor q, Tensor(a!) k_cache, Tensor(b!) v_cache, Tensor? k, Tensor? v, "
      "Tensor? rotary_cos, Tensor? rotary_sin, Tensor? cache_seqlens, Tensor? cache_batch_idx, "
      "Tensor? cache_leftpad, Tensor? block_table, float softmax_scale, SymInt window_left, "
      "SymInt window_right, SymInt sink_size, int streaming_heads, bool rotary_interleaved, "
      "SymInt num_splits, Tensor(c!)? k_stream=None, Tensor(d!)? v_stream=None, "
      "float softcap=0.0) "
      "-> (Tensor o, Tensor lse)");
}
