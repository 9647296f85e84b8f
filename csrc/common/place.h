// What stands at a place of an order that nobody sorts.
//
// Numbers are asked one question: how many of you reach x?  The answer, by halving, has the number at
// a place bit by bit from the top, and the search ends as soon as one number alone is left: after
// about log2(n) questions behind the bits that all share.  A question is a comparison and a sum over
// numbers that stay where they are, vectors on a CPU and registers of a warp on a GPU; nothing is
// moved, nothing depends on an order of execution.

#pragma once

#include <cstdint>

#include "host_device.h"

namespace seqrec {

// Some neighbours in the order, greatest first: all numbers from `high` down to `low`.
struct Neighbours {
    uint32_t low, high;
    uint32_t before;  // how many numbers are greater
    uint32_t count;   // how many there are

    // 0 is no number.
    SEQREC_HOST_DEVICE bool hold(uint32_t number) const {
        return number != 0 && number >= low && number <= high;
    }
};

// The neighbours at `place` (0 is the greatest's) of `all` numbers above 0, place < all: at most
// `enough` of them, or else all the same number.  `reach(x)`: how many numbers are at least x.
template <typename Reach>
SEQREC_HOST_DEVICE Neighbours at_place(uint32_t place, uint32_t all, uint32_t enough,
                                       const Reach& reach) {
    Neighbours found{0, 0xffffffffu, 0, all};
    for (int bit = 31; bit >= 0 && found.count > enough; --bit) {
        const uint32_t middle = found.low | uint32_t{1} << bit;
        const uint32_t reaching = reach(middle);
        if (reaching > place) {
            found.low = middle;
            found.count = reaching - found.before;
        } else {
            found.high = middle - 1;
            found.count -= reaching - found.before;
            found.before = reaching;
        }
    }
    return found;
}

// The id at `place` of `all` slots in the order (score descending, id ascending).  Of the slots are
// asked, with the numbers of scores (order_key.h), 0 for a slot that is no candidate:
//
//     reach(x)        how many slots have a number of at least x
//     any(found)      the id of a slot whose number `found` holds
//     level(number, x)    how many slots of this number have 2^32 - 1 - id of at least x
template <typename Slots>
SEQREC_HOST_DEVICE int64_t id_at_place(uint32_t place, uint32_t all, const Slots& slots) {
    const Neighbours found =
        at_place(place, all, 1, [&](uint32_t x) { return slots.reach(x); });
    if (found.count == 1) return slots.any(found);
    // scores that tie: the same search among their ids, to the last bit, as ids may repeat too
    const uint32_t number = found.low;
    const Neighbours ids = at_place(place - found.before, found.count, 0,
                                    [&](uint32_t x) { return slots.level(number, x); });
    return 0xffffffffu - ids.low;
}

}  // namespace seqrec
