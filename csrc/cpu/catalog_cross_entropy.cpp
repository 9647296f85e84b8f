// Catalogue cross-entropy: log-sum-exps, logits at the targets, and gradients, tile by tile.
//
// With logits x_mv = q_m . e_v / t + b_v, p = softmax_v(x), and for each row the factors `dense` (the
// upstream gradient times the row's label mass) and `pull` (minus upstream times weight, per target):
//
//     d_q[m] = 1/t (dense_m sum_v p_mv e_v + sum_t pull_mt e_target)
//     d_e[v] =      sum_m dense_m p_mv q_m/t + sum_{m, t: target is v} pull_mt q_m/t
//     d_b[v] =      sum_m dense_m p_mv       + sum_{m, t: target is v} pull_mt
//
// One pass.  For a block of rows (a few panels of kLanes queries) each tile of logits is turned into
// exp(x - shift), shift being the row's largest logit so far, and multiplied into d_q while it is in
// cache; what was added under an earlier shift is scaled when the shift moves.  The exponentials are
// kept, `panels * V * kLanes` of them, until the block's log-sum-exps are known; then they meet the
// queries, scaled by dense * exp(shift - LSE), in d_e.  Three products, one exponential.  Where no
// item gradient is wanted nothing is kept and any number of items will do.
//
// Recompute.  The forward folds tiles into log-sum-exps; the backward forms every tile again.  Four
// products, two exponentials, memory independent of V.
//
// Order.  Items are cut into at most kChunks chunks; a chunk's sums are its own and chunks are added
// in order.  The cut depends on shapes alone, every number is written by one task, and targets are
// added in the order of rows, so results do not depend on the number of threads.

#include <torch/csrc/stable/library.h>

#include <cmath>
#include <vector>

#include "operands.h"

namespace seqrec::cpu {
namespace {

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
void choose(const Problem& problem, const Panels& panels, float* chosen) {
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
void ratios(const float* from, const float* to, float* out) {
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
void lanes_of(const float* factors, int64_t rows, int64_t top, float beyond, float* lanes) {
    for (int lane = 0; lane < kLanes; ++lane) {
        lanes[lane] = top + lane < rows ? factors[top + lane] : beyond;
    }
}

// Rows of `in`, each times its factor.
void scale_rows(const float* in, const float* factor, int64_t padded, float* out) {
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
void pull_items(const Problem& problem, const Gradients& to) {
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

// ---- forward -------------------------------------------------------------------------------------

void forward(const Tensor& queries, const Tensor& items, const Tensor& columns,
             const std::optional<Tensor>& bias, double temperature, const Tensor& lse,
             const Tensor& chosen) {
    const Problem problem(queries, items, columns, bias, temperature);
    const int64_t panels = divide_up(problem.queries.rows, kLanes);
    const Panels all(problem, 0, panels);
    choose(problem, all, written<float>(chosen));

    const Chunks chunks(problem.tiles());
    const int64_t groups = divide_up(panels, kGroup);
    Buffer<Running> sums(chunks.count * panels);
    run_tasks(chunks.count * groups, [&] { return Floats(kTile * (all.padded + kLanes)); },
              [&](int64_t task, Floats& scratch) {
        const int64_t chunk = task / groups, first = task % groups * kGroup;
        const int64_t last = std::min(panels, first + kGroup);
        float factor[kLanes];
        for (int64_t g = first; g < last; ++g) sums[chunk * panels + g].start();
        for (int64_t tile = chunks.begin(chunk); tile < chunks.end(chunk); ++tile) {
            const int64_t item = tile * kTile;
            const int64_t count = std::min(kTile, problem.items.rows - item);
            int64_t stride;
            const float* rows =
                problem.items.read(item, count, scratch + kTile * kLanes, stride);
            for (int64_t g = first; g < last; ++g) {
                sums[chunk * panels + g].fold(problem, all.panel(g), rows, stride, item, count,
                                              scratch.get(), factor);
            }
        }
    });

    float* out = written<float>(lse);
    for (int64_t g = 0; g < panels; ++g) {
        float lanes[kLanes];
        combine(chunks.count,
                [&](int64_t c) -> const Running& { return sums[c * panels + g]; }, lanes);
        const int64_t held = std::min<int64_t>(kLanes, problem.queries.rows - g * kLanes);
        std::copy(lanes, lanes + held, out + g * kLanes);
    }
}

// ---- one pass ------------------------------------------------------------------------------------

void one_pass(const Tensor& queries, const Tensor& items, const Tensor& columns,
              const std::optional<Tensor>& bias, double temperature, const Tensor& dense,
              const Tensor& pull, int64_t workspace, const Tensor& lse, const Tensor& chosen,
              const std::optional<Tensor>& d_queries, const std::optional<Tensor>& d_items,
              const std::optional<Tensor>& d_bias) {
    const Problem problem(queries, items, columns, bias, temperature);
    const Gradients to{written<float>(d_queries), written<float>(d_items), written<float>(d_bias),
                       numbers<float>(dense), numbers<float>(pull)};
    const bool keep = to.items != nullptr || to.bias != nullptr;
    const int64_t tiles = problem.tiles(), padded = problem.queries.padded();
    const int64_t rows = problem.queries.rows, count = problem.items.rows;
    const Chunks chunks(tiles);

    // as many panels at a time as the kept exponentials leave room for
    const int64_t bytes = keep ? count * kLanes * static_cast<int64_t>(sizeof(float)) : 1;
    const int64_t most = std::min<int64_t>(2 * kGroup, divide_up(rows, kLanes));
    const int64_t group = std::max<int64_t>(1, std::min(most, workspace / bytes));

    Floats kept(keep ? group * count * kLanes : 1);
    Floats shifts(keep ? group * tiles * kLanes : 1);
    Floats lses(group * kLanes), weights(group * kLanes);
    Floats partial(to.queries != nullptr ? chunks.count * group * kLanes * padded : 1);
    Buffer<Running> sums(chunks.count * group);

    for (int64_t top = 0; top < rows; top += group * kLanes) {
        const Panels block(problem, top, std::min(group, divide_up(rows - top, kLanes)));
        choose(problem, block, written<float>(chosen));

        // exponentials, their sums, and the query gradients under each chunk's own shift
        run_tasks(chunks.count * block.count, [&] { return Floats(kTile * (padded + kLanes)); },
                  [&](int64_t task, Floats& scratch) {
            const int64_t chunk = task / block.count, g = task % block.count;
            Running& running = sums[task];
            running.start();
            float* gradient = partial + (to.queries != nullptr ? task * kLanes * padded : 0);
            if (to.queries != nullptr) std::fill(gradient, gradient + kLanes * padded, 0.0f);
            for (int64_t tile = chunks.begin(chunk); tile < chunks.end(chunk); ++tile) {
                const int64_t first = tile * kTile, held = std::min(kTile, count - first);
                float* scores = keep ? kept + (g * count + first) * kLanes : scratch.get();
                int64_t stride;
                const float* from =
                    problem.items.read(first, held, scratch + kTile * kLanes, stride);
                float factor[kLanes];
                const bool moved = running.fold(problem, block.panel(g), from, stride, first, held,
                                                scores, factor);
                if (to.queries != nullptr) {
                    if (moved) scale_rows(gradient, factor, padded, gradient);
                    kernels().add_to_queries(scores, held, from, stride, padded, gradient);
                }
                if (keep) {
                    std::copy(running.high, running.high + kLanes,
                              shifts + (g * tiles + tile) * kLanes);
                }
            }
        });

        run_tasks(block.count, [] { return 0; }, [&](int64_t g, int) {
            const auto part = [&](int64_t c) -> const Running& {
                return sums[c * block.count + g];
            };
            float* lanes = lses + g * kLanes;
            combine(chunks.count, part, lanes);
            const int64_t first = top + g * kLanes;
            std::copy(lanes, lanes + std::min<int64_t>(kLanes, rows - first),
                      written<float>(lse) + first);
            lanes_of(to.dense, rows, first, 0.0f, weights + g * kLanes);
            if (to.queries == nullptr) return;
            finish_queries(
                problem, to, first, chunks.count,
                [&](int64_t c) { return partial + (c * block.count + g) * kLanes * padded; },
                [&](int64_t c, int64_t lane) { return std::exp(part(c).high[lane] - lanes[lane]); });
        });

        // the kept exponentials meet the queries
        if (!keep) continue;
        run_tasks(tiles, [&] { return Floats((kLanes + kTile) * padded); },
                  [&](int64_t tile, Floats& scratch) {
            float* scaled = scratch.get();
            const ItemTile out(problem, to, tile, scratch + kLanes * padded);
            if (top > 0) out.load();
            for (int64_t g = 0; g < block.count; ++g) {
                float factor[kLanes];
                ratios(shifts + (g * tiles + tile) * kLanes, lses + g * kLanes, factor);
                for (int lane = 0; lane < kLanes; ++lane) factor[lane] *= weights[g * kLanes + lane];
                scale_rows(block.row(g, 0), factor, padded, scaled);
                out.add(kept + (g * count + out.first) * kLanes, scaled, factor,
                        top == 0 && g == 0);
            }
            out.store();
        });
    }
    pull_items(problem, to);
}

// ---- recompute -----------------------------------------------------------------------------------

void backward(const Tensor& queries, const Tensor& items, const Tensor& columns,
              const std::optional<Tensor>& bias, double temperature, const Tensor& dense,
              const Tensor& pull, int64_t workspace, const Tensor& lse,
              const std::optional<Tensor>& d_queries, const std::optional<Tensor>& d_items,
              const std::optional<Tensor>& d_bias) {
    const Problem problem(queries, items, columns, bias, temperature);
    const Gradients to{written<float>(d_queries), written<float>(d_items), written<float>(d_bias),
                       numbers<float>(dense), numbers<float>(pull)};
    const bool by_items = to.items != nullptr || to.bias != nullptr;
    const int64_t padded = problem.queries.padded(), rows = problem.queries.rows;
    const Chunks chunks(problem.tiles());

    // as many panels at a time as the chunks' query gradients leave room for
    const int64_t per_panel = chunks.count * kLanes * padded * static_cast<int64_t>(sizeof(float));
    const int64_t group = std::max<int64_t>(
        1, std::min<int64_t>(divide_up(rows, kLanes), 2 * workspace / per_panel));
    Floats partial(to.queries != nullptr ? chunks.count * group * kLanes * padded : 1);
    Floats scaled(by_items ? group * kLanes * padded : 1);
    Floats lses(group * kLanes), weights(group * kLanes);

    for (int64_t top = 0; top < rows; top += group * kLanes) {
        const Panels block(problem, top, std::min(group, divide_up(rows - top, kLanes)));
        for (int64_t g = 0; g < block.count; ++g) {
            // past the last row an LSE of +inf makes every probability 0
            lanes_of(numbers<float>(lse), rows, top + g * kLanes, INFINITY, lses + g * kLanes);
            lanes_of(to.dense, rows, top + g * kLanes, 0.0f, weights + g * kLanes);
            if (!by_items) continue;
            scale_rows(block.row(g, 0), weights + g * kLanes, padded, scaled + g * kLanes * padded);
        }

        run_tasks(chunks.count, [&] { return Floats(kTile * (kLanes + 2 * padded)); },
                  [&](int64_t chunk, Floats& scratch) {
            float* tile_scores = scratch.get();
            float* gradient = partial + (to.queries ? chunk * block.count * kLanes * padded : 0);
            if (to.queries != nullptr) {
                std::fill(gradient, gradient + block.count * kLanes * padded, 0.0f);
            }
            for (int64_t tile = chunks.begin(chunk); tile < chunks.end(chunk); ++tile) {
                const ItemTile out(problem, to, tile, scratch + kTile * (kLanes + padded));
                if (top > 0) out.load();
                int64_t stride;
                const float* from =
                    problem.items.read(out.first, out.count, scratch + kTile * kLanes, stride);
                for (int64_t g = 0; g < block.count; ++g) {
                    float unused[kLanes] = {};
                    kernels().score(block.panel(g), problem.items.width, from, stride,
                                    problem.bias_from(out.first), out.count, tile_scores, nullptr);
                    kernels().exponentials(tile_scores, out.count, lses + g * kLanes, unused);
                    if (to.queries != nullptr) {
                        kernels().add_to_queries(tile_scores, out.count, from, stride, padded,
                                                 gradient + g * kLanes * padded);
                    }
                    if (by_items) {
                        out.add(tile_scores, scaled + g * kLanes * padded, weights + g * kLanes,
                                top == 0 && g == 0);
                    }
                }
                out.store();
            }
        });

        if (to.queries == nullptr) continue;
        run_tasks(block.count, [] { return 0; }, [&](int64_t g, int) {
            finish_queries(
                problem, to, top + g * kLanes, chunks.count,
                [&](int64_t c) { return partial + (c * block.count + g) * kLanes * padded; },
                [](int64_t, int64_t) { return 1.0f; });
        });
    }
    pull_items(problem, to);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(seqrec_native, CPU, m) {
    m.impl("cross_entropy_forward", TORCH_BOX(&forward));
    m.impl("cross_entropy_one_pass", TORCH_BOX(&one_pass));
    m.impl("cross_entropy_backward", TORCH_BOX(&backward));
}

}  // namespace seqrec::cpu
