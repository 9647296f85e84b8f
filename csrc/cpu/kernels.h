// What is done to one tile while it lies in cache, in a version for each vector instruction set.
//
// Every operator cuts its work into *tiles*: `count` items by kLanes queries.  A tile of scores is
// stored items by queries, so that a vector register holds one item's scores for neighbouring
// queries: sums, maxima, counts and thresholds of a query never cross the lanes of a register.
//
// The queries of a tile are a *panel*, transposed once: float [width, kLanes].  Items are read as
// they lie in the table, one broadcast a number, and are never transposed.
//
// One score is a chain of fused multiply-adds over kChain numbers of the width, started at zero, plus
// the next such chain, and so on, and last the bias: the same for every pair, wherever it stands in a
// tile, and for `dot`.  So equal rows score equal bits and a target meets the bits of its competitors
// by construction.  (The portable version multiplies, rounds, then adds; its bits differ from the
// others', not among themselves.)

#pragma once

#include <cstddef>
#include <cstdint>

namespace seqrec::cpu {

constexpr int kLanes = 64;  // queries of a tile
constexpr int kChain = 64;  // the error of a chain grows with its length
constexpr int kPad = 16;    // rows that vectors run along are padded to a multiple of this

struct Kernels {
    const char* name;

    // scores[i][lane] = panel[:, lane] . items[i] (+ bias[i]); `high` (or null) becomes at least the
    // largest score of each lane, NaN not regarded.
    void (*score)(const float* panel, int64_t width, const float* items, int64_t stride,
                  const float* bias, int64_t count, float* scores, float* high);

    // The score of one pair, in the bits that `score` gives it (without the bias).
    float (*dot)(const float* query, int64_t query_stride, const float* item, int64_t width);

    // scores -> exp(scores - shift[lane]) in place; sums[lane] += the tile's sum.
    // Arguments are at most about 0; below -80 the exponential is exactly 0; NaN stays NaN.
    void (*exponentials)(float* scores, int64_t count, const float* shift, float* sums);

    // out[lane][:] += sum_i tile[i][lane] * items[i][:], over `padded` columns.
    void (*add_to_queries)(const float* tile, int64_t count, const float* items, int64_t stride,
                           int64_t padded, float* out);

    // out[i][:] (+)= sum_lane tile[i][lane] * queries[lane][:]; queries are [kLanes, padded].
    void (*add_to_items)(const float* tile, int64_t count, const float* queries, int64_t padded,
                         float* out, int64_t stride, bool start_at_zero);

    // out[i] (+)= sum_lane tile[i][lane] * weights[lane].
    void (*weighted_sums)(const float* tile, int64_t count, const float* weights, float* out,
                          bool start_at_zero);

    // greater[lane] += scores above level[lane]; at_least[lane] += scores not below it.
    void (*count)(const float* scores, int64_t count, const float* level, int32_t* greater,
                  int32_t* at_least);

    // hits[i] = the lanes, as bits, of the scores above level[lane]; returns whether there are any.
    bool (*above)(const float* scores, int64_t count, const float* level, uint64_t* hits);

    // Narrower floats to float32.
    void (*from_bfloat16)(const uint16_t* in, int64_t count, float* out);
    void (*from_float16)(const uint16_t* in, int64_t count, float* out);
};

// The best version this processor runs, or the one that was forced.
const Kernels& kernels();

// Forces a version by name ("" lifts it); false where it does not exist or cannot run here.
bool force_kernels(const char* name);

// The versions this processor runs, best first, separated by commas.
const char* available_kernels();

}  // namespace seqrec::cpu
