// Philox4x32-10: random numbers that are functions of (seed, stream, c0, c1) and of nothing else.
//
// What seqrec_kernels/philox.py tells, word for word and bit for bit; shared by the CPU and CUDA.
// Salmon et al., "Parallel random numbers: as easy as 1, 2, 3" (SC 2011).

#pragma once

#include <cstdint>

#include "host_device.h"

namespace seqrec {

constexpr uint32_t kStreamMix = 1;     // c0 = k, c1 = r: mix ratios of pairs
constexpr uint32_t kStreamRerank = 2;  // c0 = row: the draw among re-ranked candidates

// The first of the four words; counters count by their low 32 bits.
SEQREC_HOST_DEVICE static constexpr uint32_t philox(int64_t seed, uint32_t stream, uint32_t c0,
                                                    uint32_t c1) {
    uint32_t k0 = static_cast<uint32_t>(static_cast<uint64_t>(seed));
    uint32_t k1 = static_cast<uint32_t>(static_cast<uint64_t>(seed) >> 32);
    uint32_t x0 = c0, x1 = c1, x2 = 0, x3 = stream;
    for (int round = 0; round < 10; ++round) {
        const uint64_t a = uint64_t{0xD2511F53u} * x0, b = uint64_t{0xCD9E8D57u} * x2;
        x0 = static_cast<uint32_t>(b >> 32) ^ x1 ^ k0;
        x1 = static_cast<uint32_t>(b);
        x2 = static_cast<uint32_t>(a >> 32) ^ x3 ^ k1;
        x3 = static_cast<uint32_t>(a);
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    return x0;
}

// In [0, m).
SEQREC_HOST_DEVICE static constexpr uint32_t choice(uint32_t word, uint32_t m) {
    return static_cast<uint32_t>(uint64_t{word} * m >> 32);
}

// In [0, 1), a multiple of 2^-24.
SEQREC_HOST_DEVICE static constexpr float uniform(uint32_t word) {
    return static_cast<float>(static_cast<int32_t>(word >> 8)) * 0x1p-24f;
}

}  // namespace seqrec
