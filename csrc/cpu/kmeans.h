// The inner loops of k-means, in a version for each vector instruction set.

#pragma once

#include <cstdint>

namespace seqrec::cpu {

struct KMeansKernels {
    const char* name;

    // rows[lane] [width] -> panel [width, kLanes].
    void (*panel)(const float* const* rows, int64_t width, float* panel);

    // Of scores [count, kLanes], for each lane: the largest (its lowest place among equals) and the
    // largest of the others.  NaN is never chosen; where all are, the place is 0.
    void (*best_two)(const float* scores, int64_t count, float* first, float* second, float* place);

    // x . c
    float (*dot)(const float* x, const float* c, int64_t width);

    // out[:] += x[:]
    void (*add)(const float* x, int64_t width, float* out);
};

}  // namespace seqrec::cpu
