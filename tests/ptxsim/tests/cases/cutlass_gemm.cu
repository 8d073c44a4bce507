// A GEMM of CUTLASS 2.x for sm_80, unchanged: 128×128×32 tiles, three stages, bf16 in, fp32 out.
#include <cutlass/gemm/device/gemm.h>

using Element = cutlass::bfloat16_t;
using Gemm = cutlass::gemm::device::Gemm<
    Element, cutlass::layout::RowMajor, Element, cutlass::layout::ColumnMajor, float, cutlass::layout::RowMajor, float,
    cutlass::arch::OpClassTensorOp, cutlass::arch::Sm80, cutlass::gemm::GemmShape<64, 64, 32>, cutlass::gemm::GemmShape<32, 32, 32>,
    cutlass::gemm::GemmShape<16, 8, 16>, cutlass::epilogue::thread::LinearCombination<float, 4, float, float>,
    cutlass::gemm::threadblock::GemmIdentityThreadblockSwizzle<>, 3>;

extern "C" int cutlass_gemm(const void* a, const void* b, float* c, int m, int n, int k, float alpha, float beta) {
    auto typed = [](const void* p) { return static_cast<const Element*>(p); };
    Gemm gemm;
    return int(gemm({{m, n, k}, {typed(a), k}, {typed(b), k}, {c, n}, {c, n}, {alpha, beta}}));
}
