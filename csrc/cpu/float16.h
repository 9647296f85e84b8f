// float16 to float32 in integer arithmetic, exact.

#pragma once

#include <cstdint>

// static, so that each instruction set keeps a copy of its own
static inline float float16_to_float(uint16_t half) {
    const uint32_t sign = static_cast<uint32_t>(half & 0x8000u) << 16;
    const uint32_t exponent = half >> 10 & 0x1fu;
    const uint32_t fraction = half & 0x3ffu;
    uint32_t bits;
    if (exponent == 0) {
        // zero or subnormal: the fraction counts steps of 2^-24
        const float size = static_cast<float>(fraction) * 0x1p-24f;
        __builtin_memcpy(&bits, &size, sizeof bits);
    } else if (exponent == 31) {
        bits = 0x7f800000u | fraction << 13;  // infinity or NaN
    } else {
        bits = (exponent + 112) << 23 | fraction << 13;
    }
    bits |= sign;
    float value;
    __builtin_memcpy(&value, &bits, sizeof value);
    return value;
}
