#include "host_calls.h"

#include <cstdio>

#include "cta.h"
#include "device.h"
#include "lanes.h"

namespace ptxsim {

namespace {

u64 argument(const Warp& w, int lane, u32 offset, int bytes) {
    u64 value = 0;
    std::memcpy(&value, w.local.data() + static_cast<size_t>(lane) * w.local_stride + offset,
                static_cast<size_t>(bytes));
    return value;
}

// A generic address a kernel passes to the driver: local memory or a registered allocation.
const char* host_pointer(const Warp& w, int lane, u64 address, u64 bytes) {
    if ((address & kWindowMask) == kLocalWindow) {
        u64 offset = address & ~kWindowMask;
        if (offset + bytes > w.local_stride) w.fail(ErrorKind::OutOfBounds, "printf reads outside local memory.", lane);
        return reinterpret_cast<const char*>(w.local.data() + static_cast<size_t>(lane) * w.local_stride + offset);
    }
    const Allocation* a = find_allocation(*w.cta->launch->memory, address);
    if (!a || !a->contains(address, bytes))
        w.fail(ErrorKind::OutOfBounds, "printf or assert reads " + hex(address) + ", which is not registered.", lane);
    return reinterpret_cast<const char*>(address);
}

std::string text_of(const Warp& w, int lane, u64 address) {
    std::string text;
    for (; text.size() < 4096; ++address) {
        char c = *host_pointer(w, lane, address, 1);
        if (c == '\0') break;
        text += c;
    }
    return text;
}

// One conversion of a printf format; arguments lie in the buffer at their natural alignment.
struct PrintfArguments {
    const Warp& w;
    int lane;
    u64 at;
    u64 take(u64 bytes) {
        at = (at + bytes - 1) / bytes * bytes;
        u64 value = 0;
        std::memcpy(&value, host_pointer(w, lane, at, bytes), bytes);
        at += bytes;
        return value;
    }
};

std::string convert(PrintfArguments& arguments, std::string spec) {
    char kind = spec.back(), text[512];
    size_t letters = spec.find_first_of("lhjzt");
    bool wide = spec.find("ll") != std::string::npos || spec.find('l') != std::string::npos ||
                spec.find('z') != std::string::npos;
    std::string flags = spec.substr(0, letters == std::string::npos ? spec.size() - 1 : letters);
    if (kind == 's') {
        std::snprintf(text, sizeof text, spec.c_str(), text_of(arguments.w, arguments.lane, arguments.take(8)).c_str());
    } else if (kind == 'p') {
        std::snprintf(text, sizeof text, spec.c_str(), reinterpret_cast<void*>(arguments.take(8)));
    } else if (std::string("fFeEgGaA").find(kind) != std::string::npos) {
        std::snprintf(text, sizeof text, (flags + kind).c_str(), bit_cast<double>(arguments.take(8)));
    } else {
        u64 value = arguments.take(wide ? 8 : 4);
        long long number =
            !wide && (kind == 'd' || kind == 'i') ? static_cast<s32>(value) : static_cast<long long>(value);
        if (kind == 'c') std::snprintf(text, sizeof text, (flags + kind).c_str(), static_cast<int>(value));
        else std::snprintf(text, sizeof text, (flags + "ll" + kind).c_str(), number);
    }
    return text;
}

std::string format(const Warp& w, int lane, const std::string& text, u64 buffer) {
    PrintfArguments arguments{w, lane, buffer};
    std::string out;
    for (size_t i = 0; i < text.size(); ++i) {
        if (text[i] != '%') {
            out += text[i];
            continue;
        }
        size_t end = text.find_first_of("diouxXfFeEgGaAcsp%", i + 1);
        if (end == std::string::npos) break;
        out += text[end] == '%' ? "%" : convert(arguments, text.substr(i, end - i + 1));
        i = end;
    }
    return out;
}

}  // namespace

void host_printf(Warp& w, const Op& op) {
    u32 base = w.fragment().frames.back().local;
    for_lanes(w.active, [&](int lane) {
        std::string text = format(w, lane, text_of(w, lane, argument(w, lane, base + op.list[0], 8)),
                                  argument(w, lane, base + op.list[1], 8));
        w.cta->launch->device->print(text);
        if (op.count < 3) return;
        size_t at = static_cast<size_t>(lane) * w.local_stride + base + op.list[2];
        std::memset(w.local.data() + at, 0, 4);
        std::memset(w.local_defined.data() + at, 1, 4);
    });
}

void host_assert(Warp& w, const Op& op) {
    int lane = __builtin_ctz(w.active);
    u32 base = w.fragment().frames.back().local;
    auto text = [&](int i) { return text_of(w, lane, argument(w, lane, base + op.list[i], 8)); };
    std::string line = std::to_string(argument(w, lane, base + op.list[2], 4));
    w.fail(ErrorKind::Trap, "Assertion `" + text(0) + "` failed at " + text(1) + ":" + line + " in " + text(3) + ".",
           lane);
}

}  // namespace ptxsim
