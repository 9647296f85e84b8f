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

#include "catalog_cross_entropy.h"

namespace seqrec::cpu {
namespace {

using namespace cross_entropy;

// ---- forward -------------------------------------------------------------------------------------

template <typename Tiles>
void forward_by(const Problem& problem, float* lse, float* chosen) {
    using Number = typename Tiles::Number;
    using Numbers = Buffer<Number>;
    constexpr int64_t kTile = Tiles::kTile;
    const int64_t panels = divide_up(problem.queries.rows, kLanes);
    const Panels<Tiles> all(problem, 0, panels);
    choose(problem, all, chosen);

    const Chunks chunks(problem.items.rows, kTile);
    const int64_t groups = divide_up(panels, kGroup);
    Buffer<Sums> sums(chunks.count * panels);
    run_tasks(chunks.count * groups, [&] { return Numbers(kTile * (all.padded + kLanes)); },
              [&](int64_t task, Numbers& scratch) {
        const int64_t chunk = task / groups, first = task % groups * kGroup;
        const int64_t last = std::min(panels, first + kGroup);
        Number* scores = Tiles::kScoresLieInTile ? scratch.get() : nullptr;
        float factor[kLanes];
        for (int64_t g = first; g < last; ++g) sums[chunk * panels + g].start();
        for (int64_t tile = chunks.begin(chunk); tile < chunks.end(chunk); ++tile) {
            const int64_t item = tile * kTile;
            const int64_t count = std::min(kTile, problem.items.rows - item);
            int64_t stride;
            const Number* rows =
                Tiles::read(problem.items, item, count, scratch + kTile * kLanes, stride);
            for (int64_t g = first; g < last; ++g) {
                Tiles::fold(problem, all.panel(g), rows, stride, item, count, scores,
                            sums[chunk * panels + g], factor);
            }
        }
    });

    for (int64_t g = 0; g < panels; ++g) {
        float lanes[kLanes];
        combine(chunks.count,
                [&](int64_t c) -> const Sums& { return sums[c * panels + g]; }, lanes);
        const int64_t held = std::min<int64_t>(kLanes, problem.queries.rows - g * kLanes);
        std::copy(lanes, lanes + held, lse + g * kLanes);
    }
}

void forward(const Tensor& queries, const Tensor& items, const Tensor& columns,
             const std::optional<Tensor>& bias, double temperature, const Tensor& lse,
             const Tensor& chosen) {
    const Problem problem(queries, items, columns, bias, temperature);
    const auto run = BFloat16::runs(problem.queries) ? forward_by<BFloat16Tiles>
                                                     : forward_by<Float32Tiles>;
    run(problem, written<float>(lse), written<float>(chosen));
}

// ---- one pass ------------------------------------------------------------------------------------

template <typename Tiles>
void one_pass_by(const Problem& problem, const Gradients& to, int64_t workspace, float* lse,
                 float* chosen) {
    using Number = typename Tiles::Number;
    using Numbers = Buffer<Number>;
    constexpr int64_t kTile = Tiles::kTile;
    const bool keep = to.items != nullptr || to.bias != nullptr;
    const int64_t padded = problem.queries.padded();
    const int64_t rows = problem.queries.rows, count = problem.items.rows;
    const Chunks chunks(count, kTile);
    const int64_t tiles = chunks.tiles;

    // as many panels at a time as the kept exponentials leave room for
    const int64_t bytes = keep ? count * kLanes * static_cast<int64_t>(sizeof(Number)) : 1;
    const int64_t most = std::min<int64_t>(2 * kGroup, divide_up(rows, kLanes));
    const int64_t group = std::max<int64_t>(1, std::min(most, workspace / bytes));

    Numbers kept(keep ? group * count * kLanes : 1);
    Floats shifts(keep ? group * tiles * kLanes : 1);
    Floats lses(group * kLanes), weights(group * kLanes);
    Floats partial(to.queries != nullptr ? chunks.count * group * kLanes * padded : 1);
    Buffer<Sums> sums(chunks.count * group);

    for (int64_t top = 0; top < rows; top += group * kLanes) {
        const Panels<Tiles> block(problem, top, std::min(group, divide_up(rows - top, kLanes)));
        choose(problem, block, chosen);

        // exponentials, their sums, and the query gradients under each chunk's own shift
        const int64_t spare = to.queries != nullptr ? Tiles::scratch_size(padded) : 0;
        run_tasks(chunks.count * block.count,
                  [&] { return Numbers(kTile * (padded + kLanes) + spare); },
                  [&](int64_t task, Numbers& scratch) {
            const int64_t chunk = task / block.count, g = task % block.count;
            Sums& running = sums[task];
            running.start();
            float* gradient = partial + (to.queries != nullptr ? task * kLanes * padded : 0);
            if (to.queries != nullptr) std::fill(gradient, gradient + kLanes * padded, 0.0f);
            for (int64_t tile = chunks.begin(chunk); tile < chunks.end(chunk); ++tile) {
                const int64_t first = tile * kTile, held = std::min(kTile, count - first);
                Number* scores = keep ? kept + (g * count + first) * kLanes : scratch.get();
                int64_t stride;
                const Number* from =
                    Tiles::read(problem.items, first, held, scratch + kTile * kLanes, stride);
                float factor[kLanes];
                const bool moved = Tiles::fold(problem, block.panel(g), from, stride, first, held,
                                               scores, running, factor);
                if (to.queries != nullptr) {
                    if (moved) scale_rows(gradient, factor, padded, gradient);
                    Tiles::add_to_queries(scores, held, from, stride, padded,
                                          scratch + kTile * (padded + kLanes), gradient);
                }
                if (keep) {
                    std::copy(running.shift, running.shift + kLanes,
                              shifts + (g * tiles + tile) * kLanes);
                }
            }
        });

        run_tasks(block.count, [] { return 0; }, [&](int64_t g, int) {
            const auto part = [&](int64_t c) -> const Sums& {
                return sums[c * block.count + g];
            };
            float* lanes = lses + g * kLanes;
            combine(chunks.count, part, lanes);
            const int64_t first = top + g * kLanes;
            std::copy(lanes, lanes + std::min<int64_t>(kLanes, rows - first), lse + first);
            lanes_of(to.dense, rows, first, 0.0f, weights + g * kLanes);
            if (to.queries == nullptr) return;
            finish_queries(
                problem, to, first, chunks.count,
                [&](int64_t c) { return partial + (c * block.count + g) * kLanes * padded; },
                [&](int64_t c, int64_t lane) { return std::exp(part(c).shift[lane] - lanes[lane]); });
        });

        // the kept exponentials meet the queries
        if (!keep) continue;
        struct Scratch {
            Numbers scaled;
            Floats factors, gradient;
        };
        const auto scratch = [&] {
            return Scratch{Numbers(block.count * kLanes * padded), Floats(block.count * kLanes),
                           Floats(kTile * padded)};
        };
        run_tasks(tiles, scratch, [&](int64_t tile, Scratch& own) {
            const ItemTile<Tiles> out(problem, to, tile, own.gradient.get());
            if (top > 0) out.load();
            for (int64_t g = 0; g < block.count; ++g) {
                float* factor = own.factors + g * kLanes;
                ratios(shifts + (g * tiles + tile) * kLanes, lses + g * kLanes, factor);
                for (int lane = 0; lane < kLanes; ++lane) factor[lane] *= weights[g * kLanes + lane];
                Tiles::scale(problem, block.row(g, 0), factor, padded,
                             own.scaled + g * kLanes * padded);
            }
            out.add(kept + out.first * kLanes, count * kLanes, block.count, own.scaled.get(),
                    own.factors.get(), top == 0);
            out.store();
        });
    }
    pull_items(problem, to);
}

void one_pass(const Tensor& queries, const Tensor& items, const Tensor& columns,
              const std::optional<Tensor>& bias, double temperature, const Tensor& dense,
              const Tensor& pull, int64_t workspace, const Tensor& lse, const Tensor& chosen,
              const std::optional<Tensor>& d_queries, const std::optional<Tensor>& d_items,
              const std::optional<Tensor>& d_bias) {
    const Problem problem(queries, items, columns, bias, temperature);
    const Gradients to{written<float>(d_queries), written<float>(d_items), written<float>(d_bias),
                       numbers<float>(dense), numbers<float>(pull)};
    const auto run = BFloat16::runs(problem.queries) ? one_pass_by<BFloat16Tiles>
                                                     : one_pass_by<Float32Tiles>;
    run(problem, to, workspace, written<float>(lse), written<float>(chosen));
}

// ---- recompute -----------------------------------------------------------------------------------

template <typename Tiles>
void backward_by(const Problem& problem, const Gradients& to, int64_t workspace, const float* lse) {
    using Number = typename Tiles::Number;
    using Numbers = Buffer<Number>;
    constexpr int64_t kTile = Tiles::kTile;
    const bool by_items = to.items != nullptr || to.bias != nullptr;
    const int64_t padded = problem.queries.padded(), rows = problem.queries.rows;
    const Chunks chunks(problem.items.rows, kTile);

    // as many panels at a time as the chunks' query gradients leave room for
    const int64_t per_panel = chunks.count * kLanes * padded * static_cast<int64_t>(sizeof(float));
    const int64_t group = std::max<int64_t>(
        1, std::min<int64_t>(divide_up(rows, kLanes), 2 * workspace / per_panel));
    Floats partial(to.queries != nullptr ? chunks.count * group * kLanes * padded : 1);
    Numbers scaled(by_items ? group * kLanes * padded : 1);
    Floats lses(group * kLanes), weights(group * kLanes);

    for (int64_t top = 0; top < rows; top += group * kLanes) {
        const Panels<Tiles> block(problem, top, std::min(group, divide_up(rows - top, kLanes)));
        for (int64_t g = 0; g < block.count; ++g) {
            // past the last row an LSE of +inf makes every probability 0
            lanes_of(lse, rows, top + g * kLanes, INFINITY, lses + g * kLanes);
            lanes_of(to.dense, rows, top + g * kLanes, 0.0f, weights + g * kLanes);
            if (!by_items) continue;
            Tiles::scale(problem, block.row(g, 0), weights + g * kLanes, padded,
                         scaled + g * kLanes * padded);
        }

        struct Scratch {
            Numbers tile, items, spare;
            Floats gradient;
        };
        const auto scratch = [&] {
            return Scratch{Numbers(kTile * kLanes), Numbers(kTile * padded),
                           Numbers(Tiles::scratch_size(padded)), Floats(kTile * padded)};
        };
        run_tasks(chunks.count, scratch, [&](int64_t chunk, Scratch& own) {
            float* gradient = partial + (to.queries ? chunk * block.count * kLanes * padded : 0);
            if (to.queries != nullptr) {
                std::fill(gradient, gradient + block.count * kLanes * padded, 0.0f);
            }
            for (int64_t tile = chunks.begin(chunk); tile < chunks.end(chunk); ++tile) {
                const ItemTile<Tiles> out(problem, to, tile, own.gradient.get());
                if (top > 0) out.load();
                int64_t stride;
                const Number* from =
                    Tiles::read(problem.items, out.first, out.count, own.items.get(), stride);
                for (int64_t g = 0; g < block.count; ++g) {
                    Tiles::exponentials(problem, block.panel(g), from, stride, out.first, out.count,
                                        lses + g * kLanes, own.tile.get());
                    if (to.queries != nullptr) {
                        Tiles::add_to_queries(own.tile.get(), out.count, from, stride, padded,
                                              own.spare.get(), gradient + g * kLanes * padded);
                    }
                    if (by_items) {
                        out.add(own.tile.get(), 0, 1, scaled + g * kLanes * padded,
                                weights + g * kLanes, top == 0 && g == 0);
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

void backward(const Tensor& queries, const Tensor& items, const Tensor& columns,
              const std::optional<Tensor>& bias, double temperature, const Tensor& dense,
              const Tensor& pull, int64_t workspace, const Tensor& lse,
              const std::optional<Tensor>& d_queries, const std::optional<Tensor>& d_items,
              const std::optional<Tensor>& d_bias) {
    const Problem problem(queries, items, columns, bias, temperature);
    const Gradients to{written<float>(d_queries), written<float>(d_items), written<float>(d_bias),
                       numbers<float>(dense), numbers<float>(pull)};
    const auto run = BFloat16::runs(problem.queries) ? backward_by<BFloat16Tiles>
                                                     : backward_by<Float32Tiles>;
    run(problem, to, workspace, numbers<float>(lse));
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(seqrec_native, CPU, m) {
    m.impl("cross_entropy_forward", TORCH_BOX(&forward));
    m.impl("cross_entropy_one_pass", TORCH_BOX(&one_pass));
    m.impl("cross_entropy_backward", TORCH_BOX(&backward));
}

}  // namespace seqrec::cpu
