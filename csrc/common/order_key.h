// A score and an id as one 64-bit integer whose order is the order of a ranking.
//
// Greater keys come first: by score descending, then by id ascending.  Keys of different ids differ,
// so sorting and merging need no rule for ties.  Shared by the CPU and the CUDA selection.

#pragma once

#include <cstdint>
#include <cstring>

#include "host_device.h"

namespace seqrec {

// Numbers whose order is that of scores: 0 is below that of every score.  `score` must not be NaN;
// -0.0 is 0.0.
SEQREC_HOST_DEVICE inline uint32_t ordered(float score) {
    score += 0.0f;  // -0.0 + 0.0 is 0.0
    uint32_t bits;
    memcpy(&bits, &score, sizeof bits);
    // Positive floats order as their bits do, negative ones the other way round and below them.
    return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

// The score that has this number; NaN for numbers outside those of the infinities.
SEQREC_HOST_DEVICE inline float unordered(uint32_t number) {
    const uint32_t bits = number & 0x80000000u ? number & 0x7fffffffu : ~number;
    float score;
    memcpy(&score, &bits, sizeof score);
    return score;
}

// `id` must be below 2^32.
SEQREC_HOST_DEVICE inline uint64_t key_of(uint32_t number, uint64_t id) {
    return static_cast<uint64_t>(number) << 32 | (0xffffffffu - static_cast<uint32_t>(id));
}

// `score` must not be NaN, `id` must be below 2^32.
SEQREC_HOST_DEVICE inline uint64_t order_key(float score, uint64_t id) {
    return key_of(ordered(score), id);
}

// The same for any score; 0, below every key, for NaN.
SEQREC_HOST_DEVICE inline uint64_t key_or_none(float score, uint64_t id) {
    return score == score ? order_key(score, id) : 0;
}

SEQREC_HOST_DEVICE inline float score_of(uint64_t key) {
    return unordered(static_cast<uint32_t>(key >> 32));
}

SEQREC_HOST_DEVICE inline int64_t id_of(uint64_t key) {
    return 0xffffffffu - static_cast<uint32_t>(key);
}

}  // namespace seqrec
