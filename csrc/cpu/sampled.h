// The sampled losses' inner loops, in a version for each vector instruction set.
//
// Rows of item numbers are given by pointers, as they lie in the table, and are never gathered.  The
// query, and what is written for it, are padded to a multiple of kPad floats with zeros, and so are
// the rows; a table whose rows are not like that is copied, a row at a time.

#pragma once

#include <cstdint>

namespace seqrec::cpu {

struct SampledKernels {
    const char* name;

    // out[i] = query . rows[i]; there is room for `count` rounded up to a multiple of kPad.
    void (*dots)(const float* query, const float* const* rows, int64_t count, int64_t padded,
                 float* out);

    // out[:] = sum_i weights[i] * rows[i][:].
    void (*weighted_rows)(const float* weights, const float* const* rows, int64_t count,
                          int64_t padded, float* out);

    // table[ids[i]][:] += weights[i] * query[:], over `width` columns, one after the other.
    void (*add_to_rows)(const float* query, const int64_t* ids, const float* weights, int64_t count,
                        int64_t width, float* table);

    // logits -> exp(logits - their largest, `high`), in place; returns the sum.  `count` is a
    // multiple of kPad; a logit of -inf becomes 0, and one at least is larger.
    float (*exponentials)(float* logits, int64_t count, float* high);

    // logits -> s(logits - shift), the slope of their softplus, in place; returns the sum of those
    // and, in `total`, that of the softplus.  As above.
    float (*softplus)(float* logits, int64_t count, float shift, float* total);

    // The same for kLanes rows at once, negatives by lanes: high[lane] becomes the largest ...
    void (*lanes_high)(const float* tile, int64_t count, float* high);

    // ... and sums, of slopes and of the softplus, are added to.
    void (*lanes_softplus)(float* tile, int64_t count, const float* shift, float* totals,
                           float* slopes);
};

// The version for the instruction set that `kernels()` names.
const SampledKernels& sampled_kernels();

}  // namespace seqrec::cpu
