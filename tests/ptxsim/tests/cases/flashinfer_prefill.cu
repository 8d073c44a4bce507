// Calls FlashInfer's prefill for Hopper: bf16, heads of 128, with and without a causal mask.
#include <flashinfer/attention/hopper/default_params.cuh>
#include <flashinfer/attention/hopper/prefill_sm90.cuh>
#include <flashinfer/attention/hopper/variants.cuh>
#include <flashinfer/attention/mask.cuh>

using namespace flashinfer;
using Element = cutlass::bfloat16_t;

constexpr int kWidth = 128;

template <MaskMode kMask>
static int run(SinglePrefillParams<Element, Element, Element>& params) {
    return SinglePrefillWithKVCacheDispatched<kWidth, kWidth, kMask, /*LEFT_SLIDING_WINDOW=*/false, StandardAttention>(params, 0);
}

extern "C" int prefill(Element* q, Element* k, Element* v, Element* out, float* lse, int queries, int keys, int heads, int kv_heads,
                       float scale, int causal) {
    SinglePrefillParams<Element, Element, Element> p{};
    p.q_ptr = q;
    p.k_ptr = k;
    p.v_ptr = v;
    p.o_ptr = out;
    p.lse_ptr = lse;
    p.additional_params.sm_scale = scale;
    p.q_stride_n = p.o_stride_n = heads * kWidth;
    p.k_stride_n = p.v_stride_n = kv_heads * kWidth;
    p.q_stride_h = p.k_stride_h = p.v_stride_h = p.o_stride_h = kWidth;
    p.qo_len = queries;
    p.kv_len = keys;
    p.num_qo_heads = heads;
    p.num_kv_heads = kv_heads;
    p.group_size = heads / kv_heads;
    p.window_left = -1;
    p.causal = causal;
    return causal ? run<MaskMode::kCausal>(p) : run<MaskMode::kNone>(p);
}
