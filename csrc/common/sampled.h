// The sampled losses of one row, for the CPU and the CUDA loop around them.
//
// With a the logit of the row's positive and b those of its negatives, a loss is a function of a and
// of one number over the negatives; its slopes by b are, up to a factor of the row, those of that
// number.  seqrec_kernels/ops/sampled/problem.py has the formulas.

#pragma once

#include <cmath>
#include <cstdint>

#include "host_device.h"

namespace seqrec::sampled {

enum class Loss { kBce, kBpr, kSoftmax };

// log(1 + e^x), small ones to their last digits.
SEQREC_HOST_DEVICE inline float softplus(float x) {
    return (x > 0.0f ? x : 0.0f) + log1pf(expf(-fabsf(x)));
}

SEQREC_HOST_DEVICE inline float sigmoid(float x) {
    const float e = expf(-fabsf(x));
    return (x < 0.0f ? e : 1.0f) / (1.0f + e);
}

// A row's loss, its slope by a, and what multiplies the negatives' own numbers to make the slopes by b.
struct Row {
    float loss, own, others;
};

// `high` and `sum`: the largest b, and the sum of e^(b - high), which are the negatives' numbers.
SEQREC_HOST_DEVICE inline Row softmax_row(float a, float high, float sum) {
    const float over = high + logf(sum) - a;
    const float share = sigmoid(over);
    return {softplus(over), -share, share / sum};
}

// `sum` and `share`: the sums of softplus(b - a) and of its slopes, which are the negatives' numbers.
SEQREC_HOST_DEVICE inline Row bpr_row(float sum, float share, int64_t kept) {
    const float mean = 1.0f / static_cast<float>(kept);
    return {sum * mean, -share * mean, mean};
}

// `sum`: that of softplus(b), whose slopes are the negatives' numbers.
SEQREC_HOST_DEVICE inline Row bce_row(float a, float sum, float beta) {
    return {beta * softplus(-a) + sum, -beta * sigmoid(-a), 1.0f};
}

}  // namespace seqrec::sampled
