// The memory-bound parts of a Transformer layer on jagged batches, fused: attention, the norm of a
// residual sum with its dropout, and the activation with its bias.
//
// Everything is float32, rows have a stride, and widths are multiples of 16.  Both directions work on
// pieces that depend on no other (one sequence, one block of rows), so the number of threads changes
// no bit.

#pragma once

#include <cstdint>

namespace seqrec::cpu {

// Which numbers are dropped: number c of row r where its 16 random bits, as an integer, are below
// `dropped`.  The bits are half c / 32 % 2 of word c / 8 % 4 of Philox4x32-10 with key `seed` and
// counter (r, c / 64 * 8 + c % 8, 0, stream 3): nothing is stored between forward and backward.
struct Dropout {
    uint64_t seed;
    uint32_t dropped;  // of 65536; 0: none is
    float scale;       // of what is kept
};

// softmax(scale q k^T) v for the heads of each sequence, weights dropped.  Sequence b is the rows
// offsets[b] to offsets[b + 1] of the keys and values; its queries are the same rows, each seeing the
// keys up to its own, or (`last`) the one row b, which sees all.  Heads lie side by side.
// Dropout's row is the query's row times `heads` plus the head.
struct Attention {
    const float *queries, *keys, *values;
    int64_t query_stride, key_stride;  // of keys and values
    const int64_t* offsets;
    int64_t heads, size;  // size: of one head
    bool last;
    float scale;
    Dropout drop;
    float *out, *lse;    // [queries, heads * size] and [queries, heads]
    const float* grad;   // of out, dense
    float *d_queries, *d_keys, *d_values;  // strided as what they are the gradients of
};

// drop(scale table[items] + places[at]): rows of `width` numbers, dense; one of `count` a token.
struct Embedding {
    const float *table, *places;
    const int64_t *items, *at;
    int64_t width;
    float scale;
    Dropout drop;
    float* y;
    const float* grad;  // of y
    float* d_y;         // of what is dropped of, times `scale` only in the table's gradient
};

// s = x + drop(h + shift) and y = norm(s), or with `after` s = x and y = drop(norm(s)): rows of
// `width` numbers, dense.  Without `s` (null) the sum is not kept; `residual` forms it alone.
struct ResidualNorm {
    const float *x, *h, *shift, *weight, *bias;
    int64_t width;
    float eps;
    bool after;
    Dropout drop;
    float *s, *y, *unit, *rate;  // unit: the normed sum [rows, width]; rate: 1 / its deviation [rows]
    const float *grad, *grad_s;  // of y and, or null, of s
    float *d_x, *d_h, *d_weight, *d_bias, *d_shift;  // the last three are added to
};

// y = gelu(h + bias), the exact one, or drop(relu(h + bias)): rows of `width` numbers, dense.
struct Activation {
    const float *h, *bias;
    int64_t width;
    Dropout drop;  // of relu
    float* y;
    const float* grad;    // of y
    float *d_h, *d_bias;  // the last is added to
};

struct EncoderKernels {
    const char* name;
    // One sequence; scratch holds attention_scratch(its length) floats.
    void (*attend)(const Attention&, int64_t sequence, float* scratch);
    void (*attend_backward)(const Attention&, int64_t sequence, float* scratch);
    // Rows begin to end - 1; scratch holds `width` floats, rounded up to a multiple of 64.
    void (*norm)(const ResidualNorm&, int64_t begin, int64_t end, float* scratch);
    void (*norm_backward)(const ResidualNorm&, int64_t begin, int64_t end, float* scratch);
    void (*residual)(const ResidualNorm&, int64_t begin, int64_t end, float* scratch);
    void (*residual_backward)(const ResidualNorm&, int64_t begin, int64_t end, float* scratch);
    void (*embed)(const Embedding&, int64_t begin, int64_t end, float* scratch);
    void (*embed_backward)(const Embedding&, int64_t begin, int64_t end, float* scratch);
    void (*relu)(const Activation&, int64_t begin, int64_t end, float* scratch);
    void (*relu_backward)(const Activation&, int64_t begin, int64_t end, float* scratch);
    void (*gelu)(const Activation&, int64_t begin, int64_t end);
    void (*gelu_backward)(const Activation&, int64_t begin, int64_t end);
};

inline int64_t attention_scratch(int64_t length, int64_t size) {
    const int64_t padded = (length + 15) / 16 * 16;
    return (2 * size + 2 * length + 5) * padded + 64;
}

// The version for the instruction set that `kernels()` names.
const EncoderKernels& encoder_kernels();

}  // namespace seqrec::cpu
