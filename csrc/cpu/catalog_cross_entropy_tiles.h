// What the catalogue cross-entropy does to one tile, in both arithmetics.
//
// `rows` and `panel` are kLanes queries, `items` the tile's rows, `tile` its exponentials [items,
// kLanes], of which a backward may keep those of many panels, `panel_stride` numbers apart.
//
// BFloat16 rounds the exponentials, and the queries times their factors, once each before they enter
// the products of the gradients: a relative error of at most 2^-8 of every term, where a matrix of
// probabilities in bfloat16 has the same and rounded logits have more.  Log-sum-exps are sums of
// exponentials that nothing has rounded.

#pragma once

#include <cmath>

#include "arithmetic.h"

namespace seqrec::cpu::cross_entropy {

// Stands for a bias of -inf, and for the largest logit before there is one: far below every logit,
// yet finite, so that differences with it are numbers.
constexpr float kOut = -1.7e38f;

struct Problem {
    Matrix queries, items;
    const int64_t* columns;  // [M, slots]
    int64_t slots;
    const float* bias;
    float temperature;

    Problem(const Tensor& q, const Tensor& e, const Tensor& targets,
            const std::optional<Tensor>& item_bias, double t)
        : queries(q),
          items(e),
          columns(numbers<int64_t>(targets)),
          slots(targets.size(1)),
          bias(numbers<float>(item_bias)),
          temperature(static_cast<float>(t)) {}

    const float* bias_from(int64_t item) const { return bias == nullptr ? nullptr : bias + item; }
};

// exp(from - to) for the lanes of a panel.
inline void ratios(const float* from, const float* to, float* out) {
    float unused[kLanes] = {};
    std::copy(from, from + kLanes, out);
    kernels().exponentials(out, 1, to, unused);
}

// Rows of `in`, each times its factor.
inline void scale_rows(const float* in, const float* factor, int64_t padded, float* out) {
    for (int lane = 0; lane < kLanes; ++lane) {
        const float by = factor[lane];
        for (int64_t d = 0; d < padded; ++d) out[lane * padded + d] = in[lane * padded + d] * by;
    }
}

// The running sum of exponentials of a panel.
struct Sums {
    float shift[kLanes];  // what the logits are taken relative to
    float sum[kLanes];

    void start() {
        std::fill(shift, shift + kLanes, kOut);
        std::fill(sum, sum + kLanes, 0.0f);
    }

    // To a new shift; what has been added up has to be multiplied by `factor`.
    void move(const float* to, float* factor) {
        ratios(shift, to, factor);
        for (int lane = 0; lane < kLanes; ++lane) sum[lane] *= factor[lane];
        std::copy(to, to + kLanes, shift);
    }
};

// ---- float32 -------------------------------------------------------------------------------------

struct Float32Tiles : Float32 {
    static constexpr int64_t kTile = 288;  // items: 72 KiB of scores, for the second cache
    static constexpr bool kScoresLieInTile = true;  // `fold` needs it even where nobody reads it after

    static int64_t scratch_size(int64_t) { return 0; }

    static void read_panel(const Problem& problem, int64_t top, float* rows, float* panel) {
        read_panel_over(problem.queries, top, problem.temperature, rows, panel);
    }

    static float logit(const Problem& problem, const float* query, const float* item) {
        return dot(query, item, problem.queries.width);
    }

    // Adds a tile to the sums, relative to the largest logit so far, and leaves its exponentials in
    // `tile`; returns whether the shift moved, and then by which factor.
    static bool fold(const Problem& problem, const float* panel, const float* items, int64_t stride,
                     int64_t first, int64_t count, float* tile, Sums& sums, float* factor) {
        float high[kLanes];
        std::copy(sums.shift, sums.shift + kLanes, high);
        kernels().score(panel, problem.items.width, items, stride, problem.bias_from(first), count,
                        tile, high);
        const bool moved = !std::equal(high, high + kLanes, sums.shift);
        if (moved) sums.move(high, factor);
        kernels().exponentials(tile, count, high, sums.sum);
        return moved;
    }

    // Exponentials relative to `shift`.
    static void exponentials(const Problem& problem, const float* panel, const float* items,
                             int64_t stride, int64_t first, int64_t count, const float* shift,
                             float* tile) {
        float unused[kLanes] = {};
        kernels().score(panel, problem.items.width, items, stride, problem.bias_from(first), count,
                        tile, nullptr);
        kernels().exponentials(tile, count, shift, unused);
    }

    static void add_to_queries(const float* tile, int64_t count, const float* items, int64_t stride,
                               int64_t padded, float*, float* out) {
        kernels().add_to_queries(tile, count, items, stride, padded, out);
    }

    // Rows, each times its factor, as `add_to_items` wants them.
    static void scale(const Problem&, const float* rows, const float* factor, int64_t padded,
                      float* out) {
        scale_rows(rows, factor, padded, out);
    }

    static void add_to_items(const float* tile, int64_t panel_stride, int64_t panels, int64_t count,
                             const float* queries, int64_t padded, float* out, bool start_at_zero) {
        for (int64_t g = 0; g < panels; ++g) {
            kernels().add_to_items(tile + g * panel_stride, count, queries + g * kLanes * padded,
                                   padded, out, padded, start_at_zero && g == 0);
        }
    }

    static void weighted_sums(const float* tile, int64_t count, const float* weights, float* out,
                              bool start_at_zero) {
        kernels().weighted_sums(tile, count, weights, out, start_at_zero);
    }
};

// ---- bfloat16 ------------------------------------------------------------------------------------

struct BFloat16Tiles : BFloat16 {
    static constexpr int64_t kTile = 576;
    static constexpr bool kScoresLieInTile = false;

    // Scores turn into exponentials before they are stored, so a shift is chosen before the tile's
    // largest logit is known.  It is the largest logit of a chunk's first few items, and moves where
    // a tile exceeds it by more than kLag; e^kLag is as exact as 1 and far from overflow.
    static constexpr int64_t kFirst = 24;
    static constexpr float kLag = 16.0f;

    static int64_t scratch_size(int64_t padded) { return (kTile + 1) * (padded + kLanes); }

    static void read_panel(const Problem& problem, int64_t top, uint16_t* rows, uint16_t* panel) {
        BFloat16::read_panel(problem.queries, top, rows, panel);
    }

    static float logit(const Problem& problem, const uint16_t* query, const uint16_t* item) {
        return dot(query, item, problem.queries.width) / problem.temperature;
    }

    // Exponentials relative to `shift` go to `tile`, if there is one; `sums` and `high` become their
    // sums and the largest logits.
    static void exponentials(const Problem& problem, const uint16_t* panel, const uint16_t* items,
                             int64_t stride, int64_t first, int64_t count, const float* shift,
                             uint16_t* tile, float* sums, float* high) {
        std::fill(sums, sums + kLanes, 0.0f);
        std::fill(high, high + kLanes, kOut);
        kernels().bfloat16->exponentials(panel, pairs(problem.items.width), items, stride,
                                         1.0f / problem.temperature, problem.bias_from(first), count,
                                         shift, tile, sums, high);
    }

    static bool fold(const Problem& problem, const uint16_t* panel, const uint16_t* items,
                     int64_t stride, int64_t first, int64_t count, uint16_t* tile, Sums& sums,
                     float* factor) {
        float part[kLanes], high[kLanes];
        const auto run = [&](int64_t length, uint16_t* to) {
            exponentials(problem, panel, items, stride, first, length, sums.shift, to, part, high);
        };
        const bool fresh = std::all_of(sums.sum, sums.sum + kLanes, [](float s) { return s == 0; });
        if (fresh) {
            run(std::min(count, kFirst), nullptr);
            std::copy(high, high + kLanes, sums.shift);
        }
        run(count, tile);
        bool moved = false;
        for (int lane = 0; lane < kLanes; ++lane) moved |= high[lane] > sums.shift[lane] + kLag;
        if (moved) {
            for (int lane = 0; lane < kLanes; ++lane) {
                high[lane] = std::max(high[lane], sums.shift[lane]);
            }
            sums.move(high, factor);
            run(count, tile);
        }
        for (int lane = 0; lane < kLanes; ++lane) sums.sum[lane] += part[lane];
        return moved;
    }

    static void exponentials(const Problem& problem, const uint16_t* panel, const uint16_t* items,
                             int64_t stride, int64_t first, int64_t count, const float* shift,
                             uint16_t* tile) {
        float sums[kLanes], high[kLanes];
        exponentials(problem, panel, items, stride, first, count, shift, tile, sums, high);
    }

    static void add_to_queries(const uint16_t* tile, int64_t count, const uint16_t* items,
                               int64_t stride, int64_t padded, uint16_t* scratch, float* out) {
        kernels().bfloat16->add_to_queries(tile, count, items, stride, padded, scratch, out);
    }

    static void scale(const Problem& problem, const uint16_t* rows, const float* factor,
                      int64_t padded, uint16_t* out) {
        float by[kLanes];
        for (int lane = 0; lane < kLanes; ++lane) by[lane] = factor[lane] / problem.temperature;
        kernels().bfloat16->scaled_pairs(rows, by, padded, out);
    }

    static void add_to_items(const uint16_t* tile, int64_t panel_stride, int64_t panels,
                             int64_t count, const uint16_t* queries, int64_t padded, float* out,
                             bool start_at_zero) {
        kernels().bfloat16->add_to_items(tile, panel_stride, panels, count, queries, padded, out,
                                         start_at_zero);
    }

    static void weighted_sums(const uint16_t* tile, int64_t count, const float* weights, float* out,
                              bool start_at_zero) {
        kernels().bfloat16->weighted_sums(tile, count, weights, out, start_at_zero);
    }
};

}  // namespace seqrec::cpu::cross_entropy
