// Item rows read where they lie, by a warp: 32 of them at once, one for each lane to ask for.
//
// Groups of lanes (Layout) read kRows rows each before the first is needed, in rounds.  Their products
// with a query are summed over the group in a tree that halves the number of sums with each of its first
// steps, so that kRows sums cost little more than one, and every lane gets its own.  Rounds in which
// nobody asks are left out, so that one row costs one round.  Equal rows give equal bits.

#pragma once

#include "packs.h"
#include "program.h"

namespace seqrec {

template <typename T, int kPack>
struct Gather {
    static constexpr int kRows = 4;  // of a group, in flight

    Layout<kPack> layout;
    const T* items;
    int64_t stride;

    SEQREC_HOST_DEVICE const T* row(int64_t id) const { return items + id * stride; }

    // Which lane a group's value `u` of round `r` is for.
    SEQREC_BLOCK int slot_of(int lane, int r, int u) const {
        return lane / layout.lanes * layout.lanes + u * (layout.lanes / kRows) + r;
    }
    SEQREC_BLOCK int rounds() const { return layout.lanes / kRows; }
    SEQREC_BLOCK bool needed(uint32_t mask, int r) const {
        uint32_t first = 1;  // a bit for each slot of round 0
        for (int place = rounds(); place < kWarpSize; place *= 2) first |= first << place;
        return (mask & first << r) != 0;
    }

    // The products of a query with the items of the lanes; 0 for those that take no part.
    template <typename Warp>
    SEQREC_BLOCK typename Warp::template Lanes<float> products(
        Warp& warp, const T* query, const typename Warp::template Lanes<uint32_t>& ids,
        uint32_t mask) const {
        using Floats = typename Warp::template Lanes<float>;
        Floats result;
        warp.each([&](int lane) { result[lane] = 0.0f; });
        for (int r = 0; r < rounds(); ++r) {
            if (!needed(mask, r)) continue;
            typename Warp::template Lanes<uint32_t> id[kRows];
            Floats sum[kRows];
            SEQREC_UNROLL
            for (int u = 0; u < kRows; ++u) {
                typename Warp::template Lanes<int> from;
                warp.each([&](int lane) {
                    from[lane] = slot_of(lane, r, u);
                    sum[u][lane] = 0.0f;
                });
                id[u] = warp.take(ids, from);
            }
            warp.each([&](int lane) {
                int column = lane % layout.lanes * kPack;
                for (; column < layout.width; column += layout.strip()) {
                    const Pack<T, kPack> q = load<kPack>(query + column);
                    Pack<T, kPack> e[kRows];
                    SEQREC_UNROLL
                    for (int u = 0; u < kRows; ++u) {
                        e[u] = q;  // where none takes part any row will do
                        if ((mask >> slot_of(lane, r, u) & 1) == 0) continue;
                        e[u] = load<kPack>(row(id[u][lane]) + column);
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

    // Adds the weighted items of the lanes, in a strip of columns; each group adds its own.
    template <typename Warp, typename Floats>
    SEQREC_BLOCK void add(Warp& warp, const typename Warp::template Lanes<uint32_t>& ids,
                          uint32_t mask, const Floats& weight, int strip,
                          Floats (&total)[kPack]) const {
        for (int r = 0; r < rounds(); ++r) {
            if (!needed(mask, r)) continue;
            typename Warp::template Lanes<uint32_t> id[kRows];
            Floats share[kRows];
            SEQREC_UNROLL
            for (int u = 0; u < kRows; ++u) {
                typename Warp::template Lanes<int> from;
                warp.each([&](int lane) { from[lane] = slot_of(lane, r, u); });
                id[u] = warp.take(ids, from);
                share[u] = warp.take(weight, from);
            }
            warp.each([&](int lane) {
                const int column = strip + lane % layout.lanes * kPack;
                if (column >= layout.width) return;
                Pack<T, kPack> e[kRows];
                SEQREC_UNROLL
                for (int u = 0; u < kRows; ++u) {
                    if ((mask >> slot_of(lane, r, u) & 1) == 0) continue;
                    e[u] = load<kPack>(row(id[u][lane]) + column);
                }
                SEQREC_UNROLL
                for (int u = 0; u < kRows; ++u) {
                    if ((mask >> slot_of(lane, r, u) & 1) == 0) continue;
                    for (int v = 0; v < kPack; ++v) {
                        total[v][lane] = fmaf(share[u][lane], e[u][v], total[v][lane]);
                    }
                }
            });
        }
    }
};

}  // namespace seqrec
