// Some neighbouring numbers of a row, loaded at once and widened to float32.

#pragma once

#include <cstdint>
#include <cstring>

#include "host_device.h"

#if defined(__CUDACC__)
#include <cuda_fp16.h>
#else
#include "../cpu/float16.h"
#endif

namespace seqrec {

struct BFloat16 {
    uint16_t bits;
};
struct Float16 {
    uint16_t bits;
};

SEQREC_HOST_DEVICE inline float widened(float x) { return x; }

SEQREC_HOST_DEVICE inline float widened(BFloat16 x) {
    const uint32_t bits = static_cast<uint32_t>(x.bits) << 16;
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

SEQREC_HOST_DEVICE inline float widened(Float16 x) {
#if defined(__CUDACC__)
    __half value;
    memcpy(&value, &x.bits, sizeof value);
    return __half2float(value);
#else
    return float16_to_float(x.bits);
#endif
}

// Aligned to its size, as far as a GPU loads at once: 16 bytes.
template <typename T, int kCount>
struct alignas(sizeof(T) * kCount < 16 ? sizeof(T) * kCount : 16) Pack {
    T values[kCount];

    SEQREC_HOST_DEVICE float operator[](int i) const { return widened(values[i]); }
};

template <int kCount, typename T>
SEQREC_HOST_DEVICE inline Pack<T, kCount> load(const T* p) {
    return *reinterpret_cast<const Pack<T, kCount>*>(p);
}

template <int kCount>
SEQREC_HOST_DEVICE inline void store(float* p, const Pack<float, kCount>& pack) {
    *reinterpret_cast<Pack<float, kCount>*>(p) = pack;
}

// ---- rows ----------------------------------------------------------------------------------------

// How the lanes of a warp stand before rows: `lanes` neighbours share a row, a power of two in
// [4, 32], each with `kPack` neighbouring columns; where the row is wider they go on `strip` further.
template <int kPack>
struct Layout {
    int lanes;
    int width;  // a multiple of kPack

    explicit Layout(int64_t columns) : lanes(4), width(static_cast<int>(columns)) {
        while (lanes < 32 && lanes * kPack < width) lanes *= 2;
    }
    SEQREC_HOST_DEVICE int strip() const { return lanes * kPack; }
    SEQREC_HOST_DEVICE int strips() const { return (width + strip() - 1) / strip(); }
};

}  // namespace seqrec
