// The sampled losses of rows on the GPU: a warp a row, item rows read where they lie.
//
// **Logits.** Lane l stands for negative 32 c + l of chunk c: it reads the id, says whether it takes
// part, and gets its logit (gather.h).
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

#include "gather.h"
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

    Call call;
    const T* queries;
    int64_t query_stride;
    Gather<T, kPack> items;

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

    SEQREC_BLOCK float logit(float product, int64_t id) const {
        return product / call.temperature - (call.log_q != nullptr ? call.log_q[id] : 0.0f);
    }

    template <typename Warp>
    SEQREC_BLOCK void run_row(Warp& warp, int64_t row) const {
        using Floats = typename Warp::template Lanes<float>;
        const int64_t positive = call.positives[row];
        const bool there = call.inside(positive);
        const T* query = queries + row * query_stride;
        const Layout<kPack>& layout = items.layout;
        const T* own = items.row(there ? positive : 0);
        float* weights = call.weights + row * call.weights_stride;
        const float a = there ? logit(items.product(warp, query, own), positive) : 0.0f;
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
            if (!call.scored) b = items.products(warp, query, some.id, some.mask);
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
                if (summing && active) items.add(warp, some.id, some.mask, weight, strip, total);
            }
            if (summing) write_sum(warp, row, strip, active ? own : nullptr, own_weight, total);
        }
    }

    // The groups' sums and the positive's share as a strip of the query's gradient.
    template <typename Warp, typename Floats>
    SEQREC_BLOCK void write_sum(Warp& warp, int64_t row, int strip, const T* own,
                                float own_weight, Floats (&total)[kPack]) const {
        const Layout<kPack>& layout = items.layout;
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
