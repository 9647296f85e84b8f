// Attention within the sequences of a jagged batch, one sequence at a time.
//
// Sequence b is the rows offsets[b] to offsets[b + 1] of keys and values.  Its queries are the same
// rows of the queries, each seeing all keys or (`causal`) those up to its own, or (`last`) the one
// row b, which sees all.  The heads of a row lie side by side.  Everything is float32.
//
// A sequence depends on no other, and no product here is large: each is done by one thread from
// beginning to end, so the number of threads changes no bit.  The scores of kBlock queries are in
// cache when their softmax and their product with the values are formed; the backward keeps those of
// kChunk queries, between them the gradients of keys and values are added to, in order.

#pragma once

#include <algorithm>
#include <cstdint>

#include "dropout.h"

namespace seqrec::cpu {

struct JaggedAttention {
    const float *queries, *keys, *values;
    int64_t query_stride, key_stride, value_stride;
    const int64_t* offsets;
    int64_t heads, size;  // size: of one head
    bool causal, last;
    float scale;
    Dropout drop;
    float *out, *lse;    // [queries, heads * size] and [queries, heads]
    const float* grad;   // of out, dense
    float *d_queries, *d_keys, *d_values;  // null where not wanted
    int64_t d_query_stride, d_key_stride, d_value_stride;
};

struct JaggedAttentionKernels {
    const char* name;
    // One sequence that is not empty; scratch holds attention_scratch(its length, size) floats.
    void (*attend)(const JaggedAttention&, int64_t sequence, float* scratch);
    void (*attend_backward)(const JaggedAttention&, int64_t sequence, float* scratch);
};

constexpr int64_t kBlock = 4;    // rows of a product at once: enough chains to hide an addition's latency
constexpr int64_t kChunk = 256;  // queries whose scores the backward keeps; a multiple of kBlock

constexpr int64_t attention_padded(int64_t length) { return (length + 15) / 16 * 16; }

inline int64_t attention_scratch(int64_t length, int64_t size) {
    const int64_t kept = std::max(std::min(length, kChunk), kBlock);
    return (2 * size + 2 * kept) * attention_padded(length) + 2 * dropout_room(length + 16);
}

}  // namespace seqrec::cpu
