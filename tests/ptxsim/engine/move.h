// Data movement the decoder itself emits.
#pragma once

#include "decoder.h"

namespace ptxsim {

// The address of a .local or call .param variable: the current frame's base plus op.offset.
template <class T>
void op_local_address(Warp& w, const Op& op);
void op_set_predicate(Warp& w, const Op& op);
void op_not_predicate(Warp& w, const Op& op);
// Zero-extends or truncates between cells of 4 and 8 bytes.
void emit_cast(Decoder& decoder, Ref dst, int dst_bytes, Ref src, int src_bytes);

}  // namespace ptxsim
