// cvt between pairs of 8-bit floats and pairs of wider ones (PTX ISA 9.7.9.21), from sm_89 on. The upper element of the
// source, or the first source, becomes the upper element of the destination.
#include "convert_fp8.h"

#include "fp8.h"
#include "lanes.h"

namespace ptxsim {

namespace {

enum Mode : u8 { kPlain, kRelu };

float rectified(float x, u8 mode) { return mode == kRelu && x < 0 ? 0 : x; }

template <class F>
u16 narrow_pair(float high, float low, u8 mode) {
    F upper, lower;
    store_nearest(rectified(high, mode), upper);
    store_nearest(rectified(low, mode), lower);
    return static_cast<u16>(upper.bits << 8 | lower.bits);
}

template <class F>
void op_from_floats(Warp& w, const Op& op) {
    u8 mode = op.mode;
    map2<u16, float, float>(w, op.dst, op.a, op.b, [=](float a, float b) { return narrow_pair<F>(a, b, mode); });
}

template <class F>
void op_from_halves(Warp& w, const Op& op) {
    u8 mode = op.mode;
    map1<u16, u32>(w, op.dst, op.a, [=](u32 pair) {
        return narrow_pair<F>(to_float(Half{static_cast<u16>(pair >> 16)}), to_float(Half{static_cast<u16>(pair)}),
                              mode);
    });
}

// Every 8-bit float is a half.
template <class F>
void op_to_halves(Warp& w, const Op& op) {
    u8 mode = op.mode;
    map1<u32, u16>(w, op.dst, op.a, [=](u16 pair) {
        float high = rectified(to_float(F{static_cast<u8>(pair >> 8)}), mode);
        float low = rectified(to_float(F{static_cast<u8>(pair)}), mode);
        return static_cast<u32>(half_from_float(high)) << 16 | half_from_float(low);
    });
}

}  // namespace

bool is_fp8_pair(const std::string& type) { return type == "e4m3x2" || type == "e5m2x2"; }

void decode_cvt_fp8(Form& f, const std::string& to, bool relu) {
    f.require_target(89);
    Decoder& d = f.decoder;
    std::string from = f.take_first_type();
    bool widens = is_fp8_pair(from), e4m3 = (widens ? from : to) == "e4m3x2";
    Handler handler = nullptr;
    if (widens && to == "f16x2") handler = e4m3 ? op_to_halves<E4m3> : op_to_halves<E5m2>;
    if (from == "f32") handler = e4m3 ? op_from_floats<E4m3> : op_from_floats<E5m2>;
    if (from == "f16x2") handler = e4m3 ? op_from_halves<E4m3> : op_from_halves<E5m2>;
    if (!handler) f.unsupported("a pair of ." + from + " to a pair of ." + to);
    Ref a = d.source(f.at(1), widens ? 2 : 4), b = from == "f32" ? d.source(f.at(2), 4) : a;
    Op& op = d.emit(handler, OpClass::Convert);
    op.a = a;
    op.b = b;
    op.mode = relu ? kRelu : kPlain;
    op.dst = d.dest(f.at(0), widens ? 4 : 2);
}

}  // namespace ptxsim
