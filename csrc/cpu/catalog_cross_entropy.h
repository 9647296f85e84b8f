// What the forward and both backward plans of the catalogue cross-entropy are made of; the mathematics
// and the order of sums are told in catalog_cross_entropy.cpp.

#pragma once

#include <cmath>

#include "operands.h"

namespace seqrec::cpu::cross_entropy {

constexpr int64_t kTile = 288;        // items of a tile: 72 KiB of scores, for the second cache
constexpr int64_t kChunkTiles = 7;    // tiles of a chunk, unless that made more than ...
constexpr int64_t kChunks = 64;       // ... this many chunks
constexpr int64_t kGroup = 8;         // panels that pass over an item tile before the next one is read

// Stands for a bias of -inf, and for the largest logit before there is one: far below every logit,
// yet finite, so that differences with it are numbers.
constexpr float kOut = -1.7e38f;

using Floats = Buffer<float>;

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

    int64_t tiles() const { return divide_up(items.rows, kTile); }
    const float* bias_from(int64_t item) const { return bias == nullptr ? nullptr : bias + item; }
};

// Tiles cut into chunks of equal length.
struct Chunks {
    int64_t tiles, length, count;
    explicit Chunks(int64_t all_tiles)
        : tiles(all_tiles),
          length(std::max(kChunkTiles, divide_up(all_tiles, kChunks))),
          count(divide_up(all_tiles, length)) {}
    int64_t begin(int64_t chunk) const { return chunk * length; }
    int64_t end(int64_t chunk) const { return std::min(tiles, (chunk + 1) * length); }
};

// The queries of a block of rows, over the temperature.
struct Panels {
    int64_t top, count, padded, width;
    Floats rows, turned;

    Panels(const Problem& problem, int64_t first_row, int64_t panels)
        : top(first_row),
          count(panels),
          padded(problem.queries.padded()),
          width(problem.queries.width),
          rows(panels * kLanes * padded),
          turned(panels * kLanes * width) {
        run_tasks(count, [] { return 0; }, [&](int64_t g, int) {
            read_panel(problem.queries, top + g * kLanes, problem.temperature, row(g, 0), panel(g));
        });
    }
    float* row(int64_t g, int64_t lane) const { return rows + (g * kLanes + lane) * padded; }
    float* panel(int64_t g) const { return turned + g * kLanes * width; }
};

// Logits at the targets of the panels' rows.
inline void choose(const Problem& problem, const Panels& panels, float* chosen) {
    const int64_t rows = std::min(problem.queries.rows - panels.top, panels.count * kLanes);
    run_tasks(rows, [&] { return Floats(panels.padded); }, [&](int64_t i, Floats& scratch) {
        for (int64_t slot = 0; slot < problem.slots; ++slot) {
            const int64_t place = (panels.top + i) * problem.slots + slot;
            const int64_t item = problem.columns[place];
            int64_t stride;
            const float* row = problem.items.read(item, 1, scratch.get(), stride);
            const float score = kernels().dot(panels.row(0, i), 1, row, panels.width);
            chosen[place] = problem.bias == nullptr ? score : score + problem.bias[item];
        }
    });
}

// exp(from - to) for the lanes of a panel.
inline void ratios(const float* from, const float* to, float* out) {
    float unused[kLanes] = {};
    std::copy(from, from + kLanes, out);
    kernels().exponentials(out, 1, to, unused);
}

// The running sum of exponentials of a panel, relative to the largest logit so far.
struct Running {
    float high[kLanes];
    float sum[kLanes];

    void start() {
        std::fill(high, high + kLanes, kOut);
        std::fill(sum, sum + kLanes, 0.0f);
    }

    // Scores a tile and turns it into exponentials under the new shift; returns whether that moved,
    // and then what has been added up so far has to be multiplied by `factor`.
    bool fold(const Problem& problem, const float* panel, const float* items, int64_t stride,
              int64_t first, int64_t count, float* tile, float* factor) {
        float before[kLanes];
        std::copy(high, high + kLanes, before);
        kernels().score(panel, problem.items.width, items, stride, problem.bias_from(first), count,
                        tile, high);
        const bool moved = !std::equal(high, high + kLanes, before);
        if (moved) {
            ratios(before, high, factor);
            for (int lane = 0; lane < kLanes; ++lane) sum[lane] *= factor[lane];
        }
        kernels().exponentials(tile, count, high, sum);
        return moved;
    }
};

// The log-sum-exp of each lane from the sums of all chunks; part(c) is the Running of chunk c.
template <typename Part>
void combine(int64_t chunks, const Part& part, float* lse) {
    for (int lane = 0; lane < kLanes; ++lane) {
        float top = kOut;
        for (int64_t c = 0; c < chunks; ++c) top = std::max(top, part(c).high[lane]);
        float total = 0.0f;
        for (int64_t c = 0; c < chunks; ++c) {
            total += part(c).sum[lane] * std::exp(part(c).high[lane] - top);
        }
        // all items taken out: as far down as a number goes
        lse[lane] = total == 0.0f ? kOut : top + std::log(total);
    }
}

// `factors` of a panel's rows from row `top` on; `beyond` past the last row.
inline void lanes_of(const float* factors, int64_t rows, int64_t top, float beyond, float* lanes) {
    for (int lane = 0; lane < kLanes; ++lane) {
        lanes[lane] = top + lane < rows ? factors[top + lane] : beyond;
    }
}

// Rows of `in`, each times its factor.
inline void scale_rows(const float* in, const float* factor, int64_t padded, float* out) {
    for (int lane = 0; lane < kLanes; ++lane) {
        const float by = factor[lane];
        for (int64_t d = 0; d < padded; ++d) out[lane * padded + d] = in[lane * padded + d] * by;
    }
}

// ---- gradients -----------------------------------------------------------------------------------

struct Gradients {
    float* queries;  // [M, D], null where not wanted
    float* items;    // [V, D]
    float* bias;     // [V]
    const float* dense;
    const float* pull;
};

// Adds a tile's share to the gradients of its items and their bias.  `rows` are the queries, scaled by
// `factor`; `first_time` overwrites.
struct ItemTile {
    const Problem& problem;
    const Gradients& to;
    int64_t first, count, padded;
    float* rows;
    int64_t stride;

    // `scratch` [kTile, padded] serves where a row of the gradient is no whole number of vectors
    ItemTile(const Problem& p, const Gradients& g, int64_t tile, float* scratch)
        : problem(p),
          to(g),
          first(tile * kTile),
          count(std::min(kTile, p.items.rows - first)),
          padded(p.items.padded()) {
        const bool direct = p.items.width == padded;
        rows = direct && g.items != nullptr ? g.items + first * padded : scratch;
        stride = padded;
    }

    void add(const float* tile, const float* queries, const float* factor, bool first_time) const {
        if (to.items != nullptr) {
            kernels().add_to_items(tile, count, queries, padded, rows, stride, first_time);
        }
        if (to.bias != nullptr) {
            kernels().weighted_sums(tile, count, factor, to.bias + first, first_time);
        }
    }

    // Brings the scratch rows to and from the gradient.
    void load() const { move(rows, [](float& in, float& out) { in = out; }); }
    void store() const { move(rows, [](float& in, float& out) { out = in; }); }

    template <typename Move>
    void move(float* scratch, const Move& one) const {
        const int64_t width = problem.items.width;
        if (to.items == nullptr || width == padded) return;
        for (int64_t i = 0; i < count; ++i) {
            for (int64_t d = 0; d < width; ++d) {
                one(scratch[i * padded + d], to.items[(first + i) * width + d]);
            }
        }
    }
};

// Finishes the query gradients of a panel: the chunks' sums, each times its weight, then the targets.
template <typename Part, typename Weight>
void finish_queries(const Problem& problem, const Gradients& to, int64_t top, int64_t chunks,
                    const Part& part, const Weight& weight) {
    const int64_t width = problem.queries.width, padded = problem.queries.padded();
    const int64_t held = std::min<int64_t>(kLanes, problem.queries.rows - top);
    Floats sum(padded), scratch(padded);
    for (int64_t lane = 0; lane < held; ++lane) {
        const int64_t m = top + lane;
        std::fill(sum.get(), sum + padded, 0.0f);
        for (int64_t c = 0; c < chunks; ++c) {
            const float by = weight(c, lane) * to.dense[m];
            const float* row = part(c) + lane * padded;
            for (int64_t d = 0; d < padded; ++d) sum[d] += by * row[d];
        }
        for (int64_t slot = 0; slot < problem.slots; ++slot) {
            const float by = to.pull[m * problem.slots + slot];
            if (by == 0.0f) continue;
            int64_t stride;
            const float* item = problem.items.read(problem.columns[m * problem.slots + slot], 1,
                                                   scratch.get(), stride);
            for (int64_t d = 0; d < padded; ++d) sum[d] += by * item[d];
        }
        for (int64_t d = 0; d < width; ++d) to.queries[m * width + d] = sum[d] / problem.temperature;
    }
}

// Adds the targets' share to the item and bias gradients.  A task owns a range of items and looks at
// every target, so each item meets its targets in the order of rows.
inline void pull_items(const Problem& problem, const Gradients& to) {
    if (to.items == nullptr && to.bias == nullptr) return;
    const int64_t ranges = std::min<int64_t>(torch::stable::get_num_threads(), problem.items.rows);
    const int64_t width = problem.queries.width, targets = problem.queries.rows * problem.slots;
    run_tasks(ranges, [&] { return Floats(problem.queries.padded()); },
              [&](int64_t range, Floats& row) {
        const int64_t begin = problem.items.rows * range / ranges;
        const int64_t end = problem.items.rows * (range + 1) / ranges;
        for (int64_t place = 0; place < targets; ++place) {
            const int64_t item = problem.columns[place];
            const float by = to.pull[place];
            if (item < begin || item >= end || by == 0.0f) continue;
            if (to.bias != nullptr) to.bias[item] += by;
            if (to.items == nullptr) continue;
            problem.queries.copy_row(place / problem.slots, row.get());
            float* out = to.items + item * width;
            for (int64_t d = 0; d < width; ++d) out[d] += by * (row[d] / problem.temperature);
        }
    });
}

}  // namespace seqrec::cpu::cross_entropy
