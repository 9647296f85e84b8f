// Re-ranking as the CPU and CUDA take it: slots of candidates, which of them are allowed, the draw.
//
// seqrec_kernels/ops/rerank_negatives/problem.py has the rules.

#pragma once

#include "csr.h"
#include "order_key.h"
#include "philox.h"
#include "place.h"

namespace seqrec::rerank {

// The ids of a call, on the device.
struct Candidates {
    const int64_t* shared;  // `shares` of them, `shared_stride` apart
    const int64_t* own;     // [rows, owned]
    int64_t shares, shared_stride, owned, row_stride, column_stride;
    Csr forbidden;
    const int64_t *top_m, *seed;  // [1] each
    int64_t first_item, items;    // candidates are first_item .. items - 1, below 2^32 - 1
    bool drop;                    // repeats count once

    SEQREC_HOST_DEVICE int64_t shared_id(int64_t place) const {
        return shared[place * shared_stride];
    }
    SEQREC_HOST_DEVICE int64_t own_id(int64_t row, int64_t place) const {
        return own[row * row_stride + place * column_stride];
    }
    SEQREC_HOST_DEVICE bool inside(int64_t id) const { return id >= first_item && id < items; }
    // Such an id makes -1 the answer of its row.
    SEQREC_HOST_DEVICE bool wrong(int64_t id) const { return id != -1 && !inside(id); }
    SEQREC_HOST_DEVICE bool forbidden_wrong(int64_t id) const { return id < 0 || id >= items; }

    // How many of the row's `allowed` slots are kept, the best ones.
    SEQREC_HOST_DEVICE uint32_t kept(uint32_t allowed) const {
        const int64_t most = *top_m;
        return most < 0 ? 0 : most < allowed ? static_cast<uint32_t>(most) : allowed;
    }
    // The place of the one that is drawn.
    SEQREC_HOST_DEVICE uint32_t drawn(int64_t row, uint32_t kept) const {
        return choice(philox(*seed, kStreamRerank, static_cast<uint32_t>(row), 0), kept);
    }
};

// The number of a slot's score; 0 where that is NaN.
SEQREC_HOST_DEVICE inline uint32_t number_of(float score) {
    return score == score ? ordered(score) : 0;
}

// The id that the row draws from slots (place.h), `run` all their candidates; -1 for none.
template <typename Slots>
SEQREC_BLOCK int64_t draw(const Candidates& c, int64_t row, const Neighbours& run,
                          const Slots& slots) {
    const uint32_t kept = c.kept(run.count);
    return kept == 0 ? -1 : id_at_place(c.drawn(row, kept), run, slots);
}
template <typename Slots>
SEQREC_BLOCK int64_t draw(const Candidates& c, int64_t row, uint32_t allowed,
                          const Slots& slots) {
    return draw(c, row, everything(allowed), slots);
}

// Whether `id` is among `count` ids.
SEQREC_HOST_DEVICE inline bool among(const int64_t* ids, int64_t count, int64_t id) {
    bool found = false;
    for (int64_t i = 0; i < count; ++i) found |= ids[i] == id;
    return found;
}

}  // namespace seqrec::rerank
