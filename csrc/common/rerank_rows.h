// Re-ranking on the GPU: a block a row.
//
// **Scores.** Warps score 32 slots at a time, the shared ones first, from where the items lie
// (gather.h): all the same way, so that equal rows score equal bits wherever they stand.  Shared rows
// are the same for every block, and the caches have them.  A score is kept as the number of order_key.h,
// 0 where the slot is no candidate: empty, forbidden to the row, NaN, or, where repeats are dropped,
// an id that an earlier slot holds.  Forbidden and repeated ids are looked for one by one, a slot a thread
// and a warp's threads in the same place.
//
// **Draw.** The id at the drawn place comes from counts of numbers (place.h), as on the CPU.

#pragma once

#include "gather.h"
#include "rerank_negatives.h"

namespace seqrec::rerank {

struct Shared {
    uint32_t wrong, count;
    int64_t id;
};

// The slots of a row, as place.h asks the threads of a block.
template <typename Block>
struct BlockSlots {
    Block& block;
    Shared& s;
    const Candidates& c;
    int64_t row, slots;
    const uint32_t* numbers;  // [slots]

    SEQREC_BLOCK int64_t id(int64_t slot) const {
        return slot < c.shares ? c.shared_id(slot) : c.own_id(row, slot - c.shares);
    }
    SEQREC_BLOCK uint32_t other_way_round(int64_t slot) const {
        return 0xffffffffu - static_cast<uint32_t>(id(slot));
    }

    // How many slots there are that wanted(slot).
    template <typename Wanted>
    SEQREC_BLOCK uint32_t count(const Wanted& wanted) const {
        block.each([&](int t) {
            if (t == 0) s.count = 0;
        });
        block.warps([&](typename Block::Warp& warp) {
            uint32_t found = 0;
            for (int64_t first = warp.index * kWarpSize; first < slots; first += kThreads) {
                typename Block::Warp::template Lanes<bool> one;
                warp.each([&](int lane) {
                    one[lane] = first + lane < slots && wanted(first + lane);
                });
                found += bits_in(warp.ballot(one));
            }
            warp.each([&](int lane) {
                if (lane == 0 && found > 0) block.add(&s.count, found);
            });
        });
        return block.read(&s.count);
    }

    SEQREC_BLOCK uint32_t reach(uint32_t x) const {
        return count([&](int64_t slot) { return numbers[slot] >= x; });
    }
    SEQREC_BLOCK int64_t any(const Neighbours& run) const {
        block.each([&](int t) {
            for (int64_t slot = t; slot < slots; slot += kThreads) {
                if (run.hold(numbers[slot])) s.id = id(slot);  // one slot alone
            }
        });
        return block.read(&s.id);
    }
    SEQREC_BLOCK Neighbours ties(uint32_t number) const {
        const uint32_t found = count([&](int64_t slot) { return numbers[slot] == number; });
        return {0, 0xffffffffu, 0, found};
    }
    SEQREC_BLOCK uint32_t level(uint32_t number, uint32_t x) const {
        return count([&](int64_t slot) {
            return numbers[slot] == number && other_way_round(slot) >= x;
        });
    }
};

// Block i: row first_row + i.
template <typename T, int kPack>
struct RerankRows {
    using Shared = rerank::Shared;
    static constexpr int kResident = 2;
    Candidates c;
    int64_t first_row;
    const T* queries;
    int64_t query_stride;
    Gather<T, kPack> items;
    uint32_t* numbers;  // [rows, slots]
    int64_t* found;  // [rows]

    template <typename Block>
    SEQREC_BLOCK void run(Block& block, Shared& s, int64_t i, int64_t) const {
        const int64_t row = first_row + i, slots = c.shares + c.owned;
        uint32_t* own = numbers + i * slots;
        const BlockSlots<Block> all{block, s, c, row, slots, own};
        int64_t begin, end;
        const bool listed = c.forbidden.find(row, begin, end);
        block.each([&](int t) {
            if (t == 0) s.wrong = 0;
        });
        block.each([&](int t) {
            for (int64_t at = begin + t; at < end; at += kThreads) {
                if (c.forbidden_wrong(c.forbidden.ids[at])) block.mark(&s.wrong, 1u);
            }
        });
        block.warps([&](typename Block::Warp& warp) {
            for (int64_t first = warp.index * kWarpSize; first < slots; first += kThreads) {
                score(block, warp, s, all, first, begin, end, own);
            }
        });
        const bool wrong = block.read(&s.wrong) != 0 || !listed;
        int64_t id = -1;
        if (!wrong) id = draw(c, row, all.reach(1), all);
        block.each([&](int t) {
            if (t == 0) found[i] = id;
        });
    }

    // The numbers of 32 neighbouring slots.
    template <typename Block>
    SEQREC_BLOCK void score(Block& block, typename Block::Warp& warp, Shared& s,
                            const BlockSlots<Block>& all, int64_t first, int64_t begin, int64_t end,
                            uint32_t* own) const {
        typename Block::Warp::template Lanes<uint32_t> ids;
        typename Block::Warp::template Lanes<bool> allowed;
        warp.each([&](int lane) {
            const int64_t slot = first + lane, id = slot < all.slots ? all.id(slot) : -1;
            if (c.wrong(id)) block.mark(&s.wrong, 1u);
            allowed[lane] = c.inside(id) && !among(c.forbidden.ids + begin, end - begin, id) &&
                            !(c.drop && repeated(all.row, slot, id));
            ids[lane] = allowed[lane] ? static_cast<uint32_t>(id) : 0;
        });
        const uint32_t mask = warp.ballot(allowed);
        const T* query = queries + all.row * query_stride;
        const auto products = items.products(warp, query, ids, mask);
        warp.each([&](int lane) {
            const int64_t slot = first + lane;
            if (slot < all.slots) own[slot] = allowed[lane] ? number_of(products[lane]) : 0;
        });
    }

    // Whether an earlier slot holds the id.
    SEQREC_BLOCK bool repeated(int64_t row, int64_t slot, int64_t id) const {
        const int64_t shares = slot < c.shares ? slot : c.shares;
        bool held = false;
        for (int64_t i = 0; i < shares; ++i) held |= c.shared_id(i) == id;
        for (int64_t i = 0; i < slot - shares; ++i) held |= c.own_id(row, i) == id;
        return held;
    }
};

}  // namespace seqrec::rerank
