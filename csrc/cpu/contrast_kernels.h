// What a tile of the contrastive losses goes through between its two products, in a version for each
// vector instruction set.  The formulas are told in contrast.cpp.

#pragma once

#include "kernels.h"

namespace seqrec::cpu {

// What the logits of all pairs have in common.
struct ContrastNumbers {
    float over_temperature;  // 1 / t
    float over_focal;        // 1 / f
    float margin;            // added to the tanh of a negative
    float offset;            // added to its logit
    float mixed_margin;      // added to the tanh of a mixed negative
    float log_weight;        // added to its logit
};

// `count` negatives by kLanes anchors, stored [count, kLanes].
struct ContrastTile {
    const float* scores;
    int64_t count;
    const uint64_t* left_out;  // a bit for each lane that takes no part, or null
    const float* shift;        // [kLanes] what is taken off the logits

    // mixed negatives only: norms, 1 / norms (0 where that is), and the mix ratios of each pair, or
    // of every negative where the stride is 0
    const float *anchor_norms, *anchor_inverses;  // [kLanes]
    const float *norms, *inverses;                // [count]
    const float* mix;
    int64_t mix_stride;

    // written; the coefficients belong to exponentials under `shift`
    float* high;          // [kLanes] the largest logit
    float* sum;           // [kLanes] sum of exponentials
    float* along;         // [kLanes] multiplies unit(anchor) in the anchor's gradient
    float* to_anchors;    // [count, kLanes] multiplies the negative in the anchor's gradient
    float* to_negatives;  // [count, kLanes] multiplies the anchor in the negative's gradient; without
                          // mixed negatives it is to_anchors and not written
    float* to_units;      // [count, kLanes] multiplies unit(negative) there; form "paper" only
};

enum Mixed { kNoMixed, kOfficial, kPaper };

struct ContrastKernels {
    const char* name;

    // By whether logits are focal, by Mixed, and by whether coefficients are wanted.  Where mixed
    // logits are plain the two forms are one, and kPaper is not called.
    void (*pairs[2][3][2])(const ContrastTile&, const ContrastNumbers&);

    // bits[i] = the lanes whose id is ids[i].
    void (*equal)(const int64_t* lanes, const int64_t* ids, int64_t count, uint64_t* bits);

    // mix[i][lane] = low + span * u, u of the pair (anchor top + lane, negative first + i).
    void (*draw)(int64_t seed, int64_t top, int64_t first, int64_t count, float low, float span,
                 float* mix);
};

// Of the same instruction set as kernels().
const ContrastKernels& contrast_kernels();

}  // namespace seqrec::cpu
