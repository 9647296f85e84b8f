// The sampled losses of rows on the GPU: a warp a row, item rows read where they lie.
//
// **Logits.** Lane l stands for negative 32 c + l of chunk c: it reads the id, says whether it takes
// part, and gets its logit.  Item rows are read by groups of lanes (Layout), kRows by each group before
// the first is needed; their products are summed over the group in a tree that halves the number of
// sums with each of its first steps, so that kRows sums cost little more than one.  Rounds in which no
// negative takes part are left out, so that a row with one negative costs one round.
//
// **Loss.** Each lane keeps the running numbers of its negatives (sampled.h), which meet at the end.
//
// **Gradients.** Logits are left in `weights`; with the row's numbers each lane makes weights of its
// own, and the item rows, which the caches still hold, are summed with them for the query.  What items
// are owed is for ordered_sums.h, from the weights and from `keys`, the ids that take part.
//
// Negatives that all rows share are scored by a matrix product before (`scored`), and their rows are
// summed by products afterwards: what stands here of a row then is its loss and its weights.

#pragma once

#include "packs.h"
#include "program.h"
#include "sampled.h"

namespace seqrec::sampled {

// A call, without what depends on the dtype.
struct Call {
    int64_t rows, items;
    const int64_t* positives;  // [rows]
    const int64_t* negatives;  // [rows, count], of these strides
    int64_t row_stride, column_stride;
    int count;
    const float* log_q;  // [items] or null
    Loss loss;
    float temperature, beta;
    bool drop_hits, scored;
    const float* upstream;  // [rows]; null: only losses
    float *losses, *counts;  // [rows]
    float* d_queries;  // [rows, width] or null
    float* weights;  // [rows, count + 1], the positive last; or null
    int64_t weights_stride;
    uint32_t* keys;  // [rows, count + 1], `items` where nothing is owed; [rows] if scored; or null

    SEQREC_HOST_DEVICE bool inside(int64_t id) const { return id >= 0 && id < items; }
};

template <typename T, int kPack>
struct Rows {
    using Shared = Nothing;
    static constexpr int kResident = 2;
    static constexpr int kRows = 4;  // of a group, in flight

    Call call;
    Layout<kPack> layout;
    const T *queries, *items;
    int64_t query_stride, item_stride;

    SEQREC_HOST_DEVICE int64_t blocks() const { return divided_up(call.rows, kWarps); }

    template <typename Block>
    SEQREC_BLOCK void run(Block& block, Shared&, int64_t i, int64_t) const {
        block.warps([&](typename Block::Warp& warp) {
            const int64_t row = i * kWarps + warp.index;
            if (row < call.rows) run_row(warp, row);
        });
    }

    // 32 neighbouring negatives.
    template <typename Warp>
    struct Chunk {
        typename Warp::template Lanes<uint32_t> id;  // 0 where there is none
        typename Warp::template Lanes<bool> takes;  // part
        uint32_t mask;  // of `takes`
        bool wrong;
    };

    template <typename Warp>
    SEQREC_BLOCK Chunk<Warp> chunk(Warp& warp, int64_t row, int first) const {
        Chunk<Warp> found;
        typename Warp::template Lanes<bool> wrong;
        const int64_t positive = call.positives[row];
        warp.each([&](int lane) {
            const int n = first + lane;
            const int64_t id =
                n < call.count ? call.negatives[row * call.row_stride + n * call.column_stride] : -1;
            const bool inside = call.inside(id);
            wrong[lane] = id != -1 && !inside;
            found.id[lane] = inside ? static_cast<uint32_t>(id) : 0;
            found.takes[lane] =
                inside && call.inside(positive) && !(call.drop_hits && id == positive);
        });
        found.mask = warp.ballot(found.takes);
        found.wrong = warp.ballot(wrong) != 0;
        return found;
    }

    // Which lane of the chunk a group's value `u` of round `r` is for; a lane's own round and value.
    SEQREC_BLOCK int slot_of(int lane, int r, int u) const {
        return lane / layout.lanes * layout.lanes + u * (layout.lanes / kRows) + r;
    }
    SEQREC_BLOCK int rounds() const { return layout.lanes / kRows; }
    SEQREC_BLOCK bool needed(uint32_t mask, int r) const {
        uint32_t first = 1;  // a bit for each slot of round 0
        for (int place = rounds(); place < kWarpSize; place *= 2) first |= first << place;
        return (mask & first << r) != 0;
    }

    // The products of the row's query with the items of the lanes; 0 for those that take no part.
    template <typename Warp>
    SEQREC_BLOCK typename Warp::template Lanes<float> products(Warp& warp, const T* query,
                                                               const Chunk<Warp>& some) const {
        using Floats = typename Warp::template Lanes<float>;
        Floats result;
        warp.each([&](int lane) { result[lane] = 0.0f; });
        for (int r = 0; r < rounds(); ++r) {
            if (!needed(some.mask, r)) continue;
            typename Warp::template Lanes<uint32_t> id[kRows];
            Floats sum[kRows];
SEQREC_UNROLL
            for (int u = 0; u < kRows; ++u) {
                typename Warp::template Lanes<int> from;
                warp.each([&](int lane) {
                    from[lane] = slot_of(lane, r, u);
                    sum[u][lane] = 0.0f;
                });
                id[u] = warp.take(some.id, from);
            }
            warp.each([&](int lane) {
                int column = lane % layout.lanes * kPack;
                for (; column < layout.width; column += layout.strip()) {
                    const Pack<T, kPack> q = load<kPack>(query + column);
                    Pack<T, kPack> e[kRows];
SEQREC_UNROLL
                    for (int u = 0; u < kRows; ++u) {
                        e[u] = q;  // where none takes part any row will do
                        if ((some.mask >> slot_of(lane, r, u) & 1) == 0) continue;
                        e[u] = load<kPack>(items + id[u][lane] * item_stride + column);
                    }
SEQREC_UNROLL
                    for (int u = 0; u < kRows; ++u) {
                        for (int v = 0; v < kPack; ++v) {
                            sum[u][lane] = fmaf(q[v], e[u][v], sum[u][lane]);
                        }
                    }
                }
            });
            Floats two[2], one;
            halve(warp, sum[0], sum[2], layout.lanes / 2, two[0]);
            halve(warp, sum[1], sum[3], layout.lanes / 2, two[1]);
            halve(warp, two[0], two[1], layout.lanes / 4, one);
            add_up(warp, one, layout.lanes / kRows);
            warp.each([&](int lane) {
                if (lane % rounds() == r) result[lane] = one[lane];
            });
        }
        return result;
    }

    // Sums of two values over pairs of lanes: of the first in lanes without the bit `step`, of the
    // second in those with it.
    template <typename Warp, typename Floats>
    SEQREC_BLOCK void halve(Warp& warp, const Floats& first, const Floats& second, int step,
                            Floats& sum) const {
        Floats given;
        warp.each([&](int lane) {
            const bool upper = lane & step;
            given[lane] = upper ? first[lane] : second[lane];
            sum[lane] = upper ? second[lane] : first[lane];
        });
        const Floats got = warp.exchange(given, step);
        warp.each([&](int lane) { sum[lane] += got[lane]; });
    }

    // The product of two rows.
    template <typename Warp>
    SEQREC_BLOCK float product(Warp& warp, const T* query, const T* item) const {
        typename Warp::template Lanes<float> sum;
        warp.each([&](int lane) {
            sum[lane] = 0.0f;
            int column = lane % layout.lanes * kPack;
            for (; column < layout.width; column += layout.strip()) {
                const Pack<T, kPack> q = load<kPack>(query + column), e = load<kPack>(item + column);
                for (int v = 0; v < kPack; ++v) sum[lane] = fmaf(q[v], e[v], sum[lane]);
            }
        });
        add_up(warp, sum, layout.lanes);
        return warp.same(sum);
    }

    SEQREC_BLOCK float logit(float product, int64_t id) const {
        return product / call.temperature - (call.log_q != nullptr ? call.log_q[id] : 0.0f);
    }

    template <typename Warp>
    SEQREC_BLOCK void run_row(Warp& warp, int64_t row) const {
        using Floats = typename Warp::template Lanes<float>;
        const int64_t positive = call.positives[row];
        const bool there = call.inside(positive);
        const T* query = queries + row * query_stride;
        const T* own = items + (there ? positive : 0) * item_stride;
        float* weights = call.weights + row * call.weights_stride;
        const float a = there ? logit(product(warp, query, own), positive) : 0.0f;
        const float shift = call.loss == Loss::kBpr ? a : 0.0f;

        // ---- the numbers of the negatives
        bool wrong = positive != -1 && !there;
        int kept = 0;
        Floats high, sum, share;
        warp.each([&](int lane) {
            high[lane] = -INFINITY;
            sum[lane] = share[lane] = 0.0f;
        });
        for (int first = 0; first < call.count; first += kWarpSize) {
            const Chunk<Warp> some = chunk(warp, row, first);
            wrong |= some.wrong;
            kept += bits_in(some.mask);
            if (some.mask == 0) continue;
            Floats b;
            if (!call.scored) b = products(warp, query, some);
            warp.each([&](int lane) {
                if (!some.takes[lane]) return;
                float* place = weights + first + lane;
                const float x = logit(call.scored ? *place : b[lane], some.id[lane]);
                if (call.weights != nullptr) *place = x;
                if (call.loss != Loss::kSoftmax) {
                    sum[lane] += softplus(x - shift);
                    share[lane] += sigmoid(x - shift);
                } else if (x > high[lane]) {
                    sum[lane] = sum[lane] * expf(high[lane] - x) + 1.0f;
                    high[lane] = x;
                } else {
                    sum[lane] += expf(x - high[lane]);
                }
            });
        }
        const bool active = there && kept > 0;

        // ---- the row's
        float highest = 0.0f;
        if (call.loss == Loss::kSoftmax) {
            Floats most = high;
            for (int step = kWarpSize / 2; step > 0; step /= 2) {
                const Floats other = warp.exchange(most, step);
                warp.each([&](int lane) { most[lane] = fmaxf(most[lane], other[lane]); });
            }
            highest = warp.same(most);
            warp.each([&](int lane) { sum[lane] *= expf(high[lane] - highest); });
        }
        add_up(warp, sum, kWarpSize);
        add_up(warp, share, kWarpSize);
        Row found{0.0f, 0.0f, 0.0f};
        if (active) {
            const float total = warp.same(sum);
            found = call.loss == Loss::kSoftmax ? softmax_row(a, highest, total)
                    : call.loss == Loss::kBpr   ? bpr_row(total, warp.same(share), kept)
                                                : bce_row(a, total, call.beta);
        }
        warp.each([&](int lane) {
            if (lane != 0) return;
            call.losses[row] = wrong ? NAN : found.loss;
            call.counts[row] = active ? 1.0f : 0.0f;
        });
        if (call.upstream == nullptr) return;

        // ---- weights, and the gradient of the query
        const float upstream = active ? call.upstream[row] : 0.0f;
        const float own_weight = found.own * upstream, others = found.others * upstream;
        const auto none = static_cast<uint32_t>(call.items);
        const bool summing = call.d_queries != nullptr && !call.scored;
        warp.each([&](int lane) {
            if (lane != 0) return;
            weights[call.count] = own_weight;
            if (call.keys == nullptr) return;
            const int64_t slot = call.scored ? row : row * (call.count + int64_t{1}) + call.count;
            call.keys[slot] = active ? static_cast<uint32_t>(positive) : none;
        });
        const int end = summing ? layout.width : 1;
        for (int strip = 0; strip < end; strip += layout.strip()) {
            Floats total[kPack];
            for (int v = 0; v < kPack; ++v) {
                warp.each([&](int lane) { total[v][lane] = 0.0f; });
            }
            for (int first = 0; first < call.count; first += kWarpSize) {
                Chunk<Warp> some = chunk(warp, row, first);
                Floats weight;
                warp.each([&](int lane) {
                    const int n = first + lane;
                    weight[lane] = 0.0f;
                    if (n >= call.count) return;
                    const bool takes = some.takes[lane] && active;
                    if (takes) weight[lane] = weights[n];
                    if (strip != 0) return;
                    if (takes) {
                        const float x = weight[lane] - shift;
                        weight[lane] = others * (call.loss == Loss::kSoftmax ? expf(x - highest)
                                                                             : sigmoid(x));
                    }
                    weights[n] = weight[lane];
                    if (call.keys == nullptr || call.scored) return;
                    call.keys[row * (call.count + int64_t{1}) + n] = takes ? some.id[lane] : none;
                });
                if (summing && active) add_rows(warp, some, weight, strip, total);
            }
            if (summing) write_sum(warp, row, strip, active ? own : nullptr, own_weight, total);
        }
    }

    // Adds the weighted items of the lanes, in a strip of columns; each group adds its own.
    template <typename Warp, typename Floats>
    SEQREC_BLOCK void add_rows(Warp& warp, const Chunk<Warp>& some, const Floats& weight,
                               int strip, Floats (&total)[kPack]) const {
        for (int r = 0; r < rounds(); ++r) {
            if (!needed(some.mask, r)) continue;
            typename Warp::template Lanes<uint32_t> id[kRows];
            Floats share[kRows];
SEQREC_UNROLL
            for (int u = 0; u < kRows; ++u) {
                typename Warp::template Lanes<int> from;
                warp.each([&](int lane) { from[lane] = slot_of(lane, r, u); });
                id[u] = warp.take(some.id, from);
                share[u] = warp.take(weight, from);
            }
            warp.each([&](int lane) {
                const int column = strip + lane % layout.lanes * kPack;
                if (column >= layout.width) return;
                Pack<T, kPack> e[kRows];
SEQREC_UNROLL
                for (int u = 0; u < kRows; ++u) {
                    if ((some.mask >> slot_of(lane, r, u) & 1) == 0) continue;
                    e[u] = load<kPack>(items + id[u][lane] * item_stride + column);
                }
SEQREC_UNROLL
                for (int u = 0; u < kRows; ++u) {
                    if ((some.mask >> slot_of(lane, r, u) & 1) == 0) continue;
                    for (int v = 0; v < kPack; ++v) {
                        total[v][lane] = fmaf(share[u][lane], e[u][v], total[v][lane]);
                    }
                }
            });
        }
    }

    // The groups' sums and the positive's share as a strip of the query's gradient.
    template <typename Warp, typename Floats>
    SEQREC_BLOCK void write_sum(Warp& warp, int64_t row, int strip, const T* own,
                                float own_weight, Floats (&total)[kPack]) const {
        for (int step = kWarpSize / 2; step >= layout.lanes; step /= 2) {
            for (int v = 0; v < kPack; ++v) {
                const Floats other = warp.exchange(total[v], step);
                warp.each([&](int lane) { total[v][lane] += other[lane]; });
            }
        }
        warp.each([&](int lane) {
            const int column = strip + lane * kPack;
            if (lane >= layout.lanes || column >= layout.width) return;
            Pack<T, kPack> e;
            if (own != nullptr) e = load<kPack>(own + column);
            Pack<float, kPack> sums;
            for (int v = 0; v < kPack; ++v) {
                const float sum =
                    own != nullptr ? fmaf(own_weight, e[v], total[v][lane]) : total[v][lane];
                sums.values[v] = sum / call.temperature;
            }
            store<kPack>(call.d_queries + row * layout.width + column, sums);
        });
    }
};

}  // namespace seqrec::sampled
