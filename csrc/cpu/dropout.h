// Dropout by counter: nothing is stored between forward and backward.

#pragma once

#include <cstdint>
#include <cstring>

namespace seqrec::cpu {

constexpr uint32_t kStreamDropout = 3;    // row and column of what is dropped
constexpr uint32_t kStreamAttention = 4;  // row: the query's, times the heads, plus the head;
                                          // column: the key's row

// Number c of row r is dropped where its 16 random bits, as an integer, are below `dropped`.  They are
// half c % 2 (0 the low one) of word c / 2 % 4 of Philox4x32-10 with key `seed` and counter
// (r, c / 8, 0, stream).
struct Dropout {
    uint64_t seed;
    uint32_t stream;
    uint32_t dropped;  // of 65536; 0: none is
    float scale;       // of what is kept
};

// `seed`: an int64.
inline Dropout dropout_of(const void* seed, uint32_t stream, int64_t dropped) {
    uint64_t key;
    std::memcpy(&key, seed, sizeof key);
    const auto kept = static_cast<float>(65536 - dropped);
    return {key, stream, static_cast<uint32_t>(dropped), 65536.0f / kept};
}

// What dropout_factors needs room for, in floats.
constexpr int64_t dropout_room(int64_t columns) { return (columns + 7 + 63) / 64 * 64; }

}  // namespace seqrec::cpu
