// What the families that share a mnemonic across integers, floats and halves offer each other.
#pragma once

#include "decoder.h"

namespace ptxsim {

// The handler for an integer type: pick(T{}) with T of that width and sign.
template <class Pick>
Handler by_integer_type(Form& f, const std::string& type, Pick pick) {
    if (type == "s16") return pick(s16{});
    if (type == "u16" || type == "b16") return pick(u16{});
    if (type == "s32") return pick(s32{});
    if (type == "u32" || type == "b32") return pick(u32{});
    if (type == "s64") return pick(s64{});
    if (type == "u64" || type == "b64") return pick(u64{});
    f.unsupported("type ." + type);
}

// d = a op b (op c), all of `bytes`.
void emit_binary(Form& f, Handler fn, int bytes, OpClass cls = OpClass::Integer);
void emit_ternary(Form& f, Handler fn, int bytes, OpClass cls = OpClass::Integer);

// float.cpp and half.cpp
void decode_float_add(Form& f);
void decode_float_sub(Form& f);
void decode_float_mul(Form& f);
void decode_float_fma(Form& f);
void decode_float_div(Form& f);
void decode_float_min(Form& f);
void decode_float_max(Form& f);
void decode_float_abs(Form& f);
void decode_float_neg(Form& f);
void decode_approximate(Form& f, const std::string& function);
void decode_half_arithmetic(Form& f, const std::string& operation, const std::string& type);
void decode_half_approximate(Form& f, const std::string& operation, const std::string& type);
void decode_half_compare(Form& f, const std::string& type);

}  // namespace ptxsim
