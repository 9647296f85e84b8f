// What the forward and both backward plans of the catalogue cross-entropy are made of; the mathematics
// and the order of sums are told in catalog_cross_entropy.cpp.

#pragma once

#include "catalog_cross_entropy_tiles.h"

namespace seqrec::cpu::cross_entropy {

constexpr int64_t kChunkItems = 2016;  // items of a chunk, in whole tiles, unless that made more than ...
constexpr int64_t kChunks = 64;        // ... this many chunks
constexpr int64_t kGroup = 8;          // panels that pass over an item tile before the next one is read

using Floats = Buffer<float>;

// Tiles cut into chunks of equal length.
struct Chunks {
    int64_t tiles, length, count;
    Chunks(int64_t items, int64_t tile)
        : tiles(divide_up(items, tile)),
          length(std::max(divide_up(kChunkItems, tile), divide_up(tiles, kChunks))),
          count(divide_up(tiles, length)) {}
    int64_t begin(int64_t chunk) const { return chunk * length; }
    int64_t end(int64_t chunk) const { return std::min(tiles, (chunk + 1) * length); }
};

// The queries of a block of rows.
template <typename Tiles>
struct Panels {
    using Number = typename Tiles::Number;
    int64_t top, count, padded, size;
    Buffer<Number> rows, turned;

    Panels(const Problem& problem, int64_t first_row, int64_t panels)
        : top(first_row),
          count(panels),
          padded(problem.queries.padded()),
          size(Tiles::panel_size(problem.queries.width)),
          rows(panels * kLanes * padded),
          turned(panels * size) {
        run_tasks(count, [] { return 0; }, [&](int64_t g, int) {
            Tiles::read_panel(problem, top + g * kLanes, row(g, 0), panel(g));
        });
    }
    Number* row(int64_t g, int64_t lane) const { return rows + (g * kLanes + lane) * padded; }
    Number* panel(int64_t g) const { return turned + g * size; }
};

// Logits at the targets of the panels' rows.
template <typename Tiles>
void choose(const Problem& problem, const Panels<Tiles>& panels, float* chosen) {
    using Number = typename Tiles::Number;
    const int64_t rows = std::min(problem.queries.rows - panels.top, panels.count * kLanes);
    run_tasks(rows, [&] { return Buffer<Number>(panels.padded); },
              [&](int64_t i, Buffer<Number>& scratch) {
        for (int64_t slot = 0; slot < problem.slots; ++slot) {
            const int64_t place = (panels.top + i) * problem.slots + slot;
            const int64_t item = problem.columns[place];
            int64_t stride;
            const Number* row = Tiles::read(problem.items, item, 1, scratch.get(), stride);
            const float score = Tiles::logit(problem, panels.row(0, i), row);
            chosen[place] = problem.bias == nullptr ? score : score + problem.bias[item];
        }
    });
}

// The log-sum-exp of each lane from the sums of all chunks; part(c) are those of chunk c.
template <typename Part>
void combine(int64_t chunks, const Part& part, float* lse) {
    for (int lane = 0; lane < kLanes; ++lane) {
        float top = kOut;
        for (int64_t c = 0; c < chunks; ++c) top = std::max(top, part(c).shift[lane]);
        float total = 0.0f;
        for (int64_t c = 0; c < chunks; ++c) {
            total += part(c).sum[lane] * std::exp(part(c).shift[lane] - top);
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

// ---- gradients -----------------------------------------------------------------------------------

struct Gradients {
    float* queries;  // [M, D], null where not wanted
    float* items;    // [V, D]
    float* bias;     // [V]
    const float* dense;
    const float* pull;
};

// Adds tiles' shares to the gradients of their items and bias.  `queries` are scaled by `factor`, both
// of as many panels as there are tiles; `first_time` overwrites.
template <typename Tiles>
struct ItemTile {
    using Number = typename Tiles::Number;
    const Problem& problem;
    const Gradients& to;
    int64_t first, count, padded;
    float* rows;

    // `scratch` [kTile, padded] serves where a row of the gradient is no whole number of vectors
    ItemTile(const Problem& p, const Gradients& g, int64_t tile, float* scratch)
        : problem(p),
          to(g),
          first(tile * Tiles::kTile),
          count(std::min(Tiles::kTile, p.items.rows - first)),
          padded(p.items.padded()) {
        const bool direct = p.items.width == padded;
        rows = direct && g.items != nullptr ? g.items + first * padded : scratch;
    }

    void add(const Number* tile, int64_t panel_stride, int64_t panels, const Number* queries,
             const float* factor, bool first_time) const {
        if (to.items != nullptr) {
            Tiles::add_to_items(tile, panel_stride, panels, count, queries, padded, rows,
                                first_time);
        }
        if (to.bias == nullptr) return;
        for (int64_t g = 0; g < panels; ++g) {
            Tiles::weighted_sums(tile + g * panel_stride, count, factor + g * kLanes,
                                 to.bias + first, first_time && g == 0);
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
