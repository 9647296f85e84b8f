// The memory-bound parts of a Transformer layer beside its attention, fused: embedding, residual sum
// and its norm, activation, each with its dropout and the bias of the product before it.  What meets
// the activation, the products on both sides of it, is in encoder_products.cpp.
//
// Everything is float32, and widths are multiples of 16.  Both directions work on blocks of rows that
// depend on no other, so the number of threads changes no bit.

#pragma once

#include <cstdint>

#include "dropout.h"

namespace seqrec::cpu {

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

// y = gelu(h + bias), the exact one, or drop(relu(h + bias)): a block of dense rows of `width`
// numbers, the first of which is row `first` of what is dropped of.  The backward forms y again,
// and grad and d_h may be one.
struct Activation {
    const float *h, *bias;
    int64_t first, rows, width;
    Dropout drop;  // of relu
    float* y;
    const float* grad;    // of y
    float *d_h, *d_bias;  // the last is added to
};

struct EncoderKernels {
    const char* name;
    // Rows begin to end - 1; scratch holds dropout_room(width) floats.
    void (*norm)(const ResidualNorm&, int64_t begin, int64_t end, float* scratch);
    void (*norm_backward)(const ResidualNorm&, int64_t begin, int64_t end, float* scratch);
    void (*residual)(const ResidualNorm&, int64_t begin, int64_t end, float* scratch);
    void (*residual_backward)(const ResidualNorm&, int64_t begin, int64_t end, float* scratch);
    void (*embed)(const Embedding&, int64_t begin, int64_t end, float* scratch);
    void (*embed_backward)(const Embedding&, int64_t begin, int64_t end, float* scratch);
    // All rows; scratch as above.
    void (*relu)(const Activation&, float* scratch);
    void (*relu_backward)(const Activation&, float* scratch);
    void (*gelu)(const Activation&, float* scratch);
    void (*gelu_backward)(const Activation&, float* scratch);
};

// The version for the instruction set that `kernels()` names.
const EncoderKernels& encoder_kernels();

}  // namespace seqrec::cpu
