// The attention kernels of CUTLASS' example 41 (those of xFormers), unchanged, for sm_80.
#include <kernel_backward.h>
#include <kernel_forward.h>

using Half = cutlass::half_t;
using Forward = AttentionKernel<Half, cutlass::arch::Sm80, true, 64, 64, 64, false, false>;
using Backward = AttentionBackwardKernel<cutlass::arch::Sm80, Half, true, false, true, 64, 64, 64>;

// q, k, v, out are [batch, rows, heads, width]; lse is [batch, heads, rows padded to 32].
struct Problem {
    Half *q, *k, *v, *out;
    float* lse;
    int batch, heads, queries, keys, width;
    float scale;
    int causal;
};

template <class Params> void describe(Params& p, const Problem& x) {
    p.query_ptr = x.q, p.key_ptr = x.k, p.value_ptr = x.v;
    p.output_ptr = x.out, p.logsumexp_ptr = x.lse;
    p.scale = x.scale, p.head_dim = p.head_dim_value = x.width;
    p.num_queries = x.queries, p.num_keys = x.keys, p.num_heads = x.heads, p.num_batches = x.batch;
    p.q_strideM = p.k_strideM = p.v_strideM = x.heads * x.width;
    p.q_strideH = p.k_strideH = p.v_strideH = x.width;
    p.q_strideB = int64_t(x.queries) * x.heads * x.width;
    p.k_strideB = p.v_strideB = int64_t(x.keys) * x.heads * x.width;
}

template <class Kernel, class Params> int start(void (*kernel)(Params), const Params& p) {
    int smem = sizeof(typename Kernel::SharedStorage);
    if (smem > 48 << 10) {
        cudaError_t error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, smem);
        if (error != cudaSuccess) return error;
    }
    kernel<<<p.getBlocksGrid(), p.getThreadsGrid(), smem>>>(p);
    return cudaGetLastError();
}

extern "C" int fmha_forward(const Problem* x) {
    typename Forward::Params p;
    describe(p, *x);
    p.o_strideM = p.q_strideM;
    p.custom_mask_type = x->causal ? Forward::CausalFromBottomRight : Forward::NoCustomMask;
    if (!Forward::check_supported(p)) return -1;
    return start<Forward>(attention_kernel_batched_impl<Forward>, p);
}

extern "C" int fmha_backward(const Problem* x, Half* dout, float* delta, Half* dq, Half* dk, Half* dv, void* workspace) {
    typename Backward::Params p;
    describe(p, *x);
    p.custom_mask_type = x->causal ? Backward::CausalFromBottomRight : Backward::NoCustomMask;
    p.o_strideH = p.gO_strideH = x->width;
    p.o_strideB = p.gO_strideB = p.q_strideB;
    p.gO_strideM = p.q_strideM;
    int padded = (x->queries + 31) / 32 * 32;
    p.lse_strideH = p.delta_strideH = padded;
    p.lse_strideB = p.delta_strideB = int64_t(padded) * x->heads;
    p.grad_output_ptr = dout, p.delta_ptr = delta;
    p.grad_query_ptr = dq, p.grad_key_ptr = dk, p.grad_value_ptr = dv;
    p.gQKV_strideM_multiplier = 1;
    p.gQ_strideH = p.gK_strideH = p.gV_strideH = x->width;
    p.gQ_strideB = p.q_strideB;
    p.gK_strideB = p.gV_strideB = p.k_strideB;
    p.workspace = static_cast<float*>(workspace);
    if (!Backward::check_supported(p)) return -1;
    return start<Backward>(attention_kernel_backward_batched_impl<Backward>, p);
}

extern "C" size_t fmha_workspace(const Problem* x) {
    typename Backward::Params p;
    describe(p, *x);
    return p.workspace_size();
}
