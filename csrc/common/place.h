// What stands at a place of an order that nobody sorts.
//
// Numbers are asked one question: how many of you reach x?  Each answer leaves a shorter run of
// neighbours that has the place in it, until one number alone is left.  x is guessed as if scores lay
// evenly between the ends of the run, and is its middle where a guess was of little use: a few
// questions for scores as they come, below 100 for any.  A question is a comparison and a sum over
// numbers that stay where they are, vectors on a CPU and registers of a warp on a GPU; nothing is
// moved, and what is asked does not show in what is found.

#pragma once

#include "order_key.h"
#include "program.h"

namespace seqrec {

// A run of the order, greatest first: all numbers from `high` down to `low`.
struct Neighbours {
    uint32_t low, high;
    uint32_t before;  // how many numbers are greater
    uint32_t count;   // how many there are in it

    // 0 is no number.
    SEQREC_HOST_DEVICE bool hold(uint32_t number) const {
        return number != 0 && number >= low && number <= high;
    }
};

// The whole order of `count` numbers above 0.
SEQREC_HOST_DEVICE inline Neighbours everything(uint32_t count) {
    return {0, 0xffffffffu, 0, count};
}

// Where in a run to ask, if scores lie evenly in it; 0 where that cannot be said.
SEQREC_HOST_DEVICE inline uint32_t guess(const Neighbours& run, uint32_t place) {
    const float low = unordered(run.low), high = unordered(run.high);
    const float share = (static_cast<float>(place - run.before) + 0.5f) /
                        static_cast<float>(run.count);
    const float level = high - (high - low) * share;
    return level > low && level <= high ? ordered(level) : 0;  // false for NaN too
}

// Of a run the neighbours at `place` (0 is the greatest of all), which is in it: at most `enough`, or
// else all the same number.  `reach(x)`: how many numbers there are of at least x.
template <bool kScores, typename Reach>
SEQREC_BLOCK Neighbours at_place(uint32_t place, Neighbours run, uint32_t enough,
                                 const Reach& reach) {
    bool halve = !kScores;
    while (run.count > enough && run.low < run.high) {
        uint32_t x = halve ? 0 : guess(run, place);
        if (x <= run.low || x > run.high) x = run.low + (run.high - run.low) / 2 + 1;
        const uint32_t reaching = reach(x), count = run.count;
        if (reaching > place) {
            run.low = x;
            run.count = reaching - run.before;
        } else {
            run.high = x - 1;
            run.count -= reaching - run.before;
            run.before = reaching;
        }
        halve = !kScores || (!halve && run.count > count / 2);
    }
    return run;
}

// The id at `place` of a run of slots in the order (score descending, id ascending).  Of the slots are
// asked, with the numbers of scores (order_key.h), 0 for a slot that is no candidate:
//
//     reach(x)            how many slots have a number of at least x
//     any(run)            the id of a slot whose number is in the run
//     ties(number)        their 2^32 - 1 - id, of the slots that have this number, as a run
//     level(number, x)    how many of those are at least x
template <typename Slots>
SEQREC_BLOCK int64_t id_at_place(uint32_t place, const Neighbours& run, const Slots& slots) {
    const Neighbours found =
        at_place<true>(place, run, 1, [&](uint32_t x) { return slots.reach(x); });
    if (found.count == 1) return slots.any(found);
    // scores that tie: the same search among their ids, to the end, as ids may repeat too
    const uint32_t number = found.low;
    const Neighbours ids =
        at_place<false>(place - found.before, slots.ties(number), 0,
                        [&](uint32_t x) { return slots.level(number, x); });
    return 0xffffffffu - ids.low;
}

}  // namespace seqrec
