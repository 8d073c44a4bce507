#include "fp.h"

namespace ptxsim {

namespace {

double round_integer(double x, Rounding rounding) {
    switch (rounding) {
        case Rounding::Nearest: return std::nearbyint(x);
        case Rounding::Zero: return std::trunc(x);
        case Rounding::Down: return std::floor(x);
        case Rounding::Up: return std::ceil(x);
        case Rounding::NearestAway: return std::round(x);
    }
    return x;
}

}  // namespace

double round_to_format(double x, int mantissa, int min_exponent, int max_exponent, Rounding rounding) {
    if (x == 0 || std::isinf(x) || x != x) return x;
    int exponent = std::ilogb(x);
    int quantum = (exponent < min_exponent ? min_exponent : exponent) - mantissa;
    double rounded = std::ldexp(round_integer(std::ldexp(x, -quantum), rounding), quantum);
    double largest = std::ldexp(2.0 - std::ldexp(1.0, -mantissa), max_exponent);
    if (std::fabs(rounded) <= largest) return rounded == 0 ? std::copysign(0.0, x) : rounded;
    bool to_infinity = rounding == Rounding::Nearest || rounding == Rounding::NearestAway ||
                       (rounding == Rounding::Up && x > 0) || (rounding == Rounding::Down && x < 0);
    return std::copysign(to_infinity ? std::numeric_limits<double>::infinity() : largest, x);
}

}  // namespace ptxsim
