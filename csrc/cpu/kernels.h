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
#include <cstring>
#include <initializer_list>

namespace seqrec::cpu {

constexpr int kLanes = 64;  // queries of a tile
constexpr int kChain = 64;  // the error of a chain grows with its length
constexpr int kPad = 16;    // rows that vectors run along are padded to a multiple of this

// out[i][:] (+)= sum_k a[i * row_stride + k * step] * b[k][:], over `columns`, a multiple of kPad.  So
// the left operand may stand either way round.
//
// Of bfloat16 numbers every a and b is a pair of neighbours, whose products are summed: b is
// [depth, columns][2], and strides count single numbers.
template <typename Number>
struct Product {
    const Number* a;
    ptrdiff_t row_stride, step;
    const Number* b;
    ptrdiff_t b_stride;
    float* out;
    ptrdiff_t out_stride;
    int64_t rows, depth, columns;
    bool start_at_zero;
};

// Products of bfloat16 numbers, for processors that multiply pairs of them into float32 sums.
//
// A panel is [pairs, kLanes][2], pairs along the width, an odd width ended by a zero; items are rows
// [stride] with at least 2 * pairs numbers.  A score is one chain over all pairs, in `dot` too.
// Subnormal numbers count as zero.
struct BFloat16Kernels {
    // scores[i][lane] = panel[:, lane] . items[i] (+ bias[i]).
    void (*score)(const uint16_t* panel, int64_t pairs, const uint16_t* items, int64_t stride,
                  const float* bias, int64_t count, float* scores);

    // The score of one pair, in the bits that `score` gives it (without the bias).
    float (*dot)(const uint16_t* query, const uint16_t* item, int64_t pairs);

    // With logits x = scale * score (+ bias): sums[lane] += sum_i exp(x - shift[lane]); `high` becomes
    // at least the largest logit of each lane, NaN not regarded; tile[i][lane] = the exponential,
    // rounded, unless `tile` is null.  Below -80 it is exactly 0.
    void (*exponentials)(const uint16_t* panel, int64_t pairs, const uint16_t* items,
                         int64_t stride, float scale, const float* bias, int64_t count,
                         const float* shift, uint16_t* tile, float* sums, float* high);

    // out[lane][:] += sum_i tile[i][lane] * items[i][:], over `padded` columns; scratch holds
    // (count + 1) * (padded + kLanes) numbers.
    void (*add_to_queries)(const uint16_t* tile, int64_t count, const uint16_t* items,
                           int64_t stride, int64_t padded, uint16_t* scratch, float* out);

    // rows [kLanes, padded], each times its factor and rounded: out [kLanes / 2, padded][2].
    void (*scaled_pairs)(const uint16_t* rows, const float* factor, int64_t padded, uint16_t* out);

    // out[i][:] (+)= sum over panels g and lanes of tile[g][i][lane] * queries[g][lane][:], tiles
    // `panel_stride` apart, queries as scaled_pairs leaves them; out is [count, padded].
    void (*add_to_items)(const uint16_t* tile, int64_t panel_stride, int64_t panels, int64_t count,
                         const uint16_t* queries, int64_t padded, float* out, bool start_at_zero);

    // out[i] (+)= sum_lane tile[i][lane] * weights[lane].
    void (*weighted_sums)(const uint16_t* tile, int64_t count, const float* weights, float* out,
                          bool start_at_zero);

    void (*product)(const Product<uint16_t>& p);

    // Float32 to bfloat16, `count` numbers, a multiple of kPad.
    void (*narrow)(const float* in, int64_t count, uint16_t* out);

    // Dense rows of `columns` numbers two by two: out [rows / 2, columns][2]; an odd last row meets
    // zeros.
    void (*narrow_pairs)(const float* in, int64_t rows, int64_t columns, uint16_t* out);
};

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

    // How many of `count` scores, a multiple of kPad, are at least `level`; NaN is not.
    int64_t (*reach)(const float* scores, int64_t count, float level);

    // How many are numbers, and the least and the greatest of them if there are any.
    int64_t (*range)(const float* scores, int64_t count, float* least, float* greatest);

    // The place of the first one from `low` to `high`; `count` if there is none.
    int64_t (*first_within)(const float* scores, int64_t count, float low, float high);

    // Narrower floats to float32.
    void (*from_bfloat16)(const uint16_t* in, int64_t count, float* out);
    void (*from_float16)(const uint16_t* in, int64_t count, float* out);

    void (*product)(const Product<float>& p);

    // Null where bfloat16 is widened to float32 instead.
    const BFloat16Kernels* bfloat16;
};

// The best version this processor runs, or the one that was forced.
const Kernels& kernels();

// Forces a version by name ("" lifts it); false where it does not exist or cannot run here.
bool force_kernels(const char* name);

// The versions this processor runs, best first, separated by commas.
const char* available_kernels();

// Of another family's tables the one for the vectors that `kernels()` uses.  A version that extends
// another has a name that extends its name ("avx512_bf16"), so the beginning decides.
template <typename Table>
const Table& version_of(std::initializer_list<const Table*> tables, const Table& otherwise) {
    for (const Table* one : tables) {
        if (std::strncmp(one->name, kernels().name, std::strlen(one->name)) == 0) return *one;
    }
    return otherwise;
}

}  // namespace seqrec::cpu
