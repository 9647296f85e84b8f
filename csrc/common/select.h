// The largest keys of a row, in order: what one thread block does on the GPU (program.h).
//
// **Selection.** Keys (order_key.h) differ; 0 is no key.  Each thread finds the greatest of its keys.
// The k-th greatest of these is a floor: k keys reach it, so none of the k largest lies below.  What
// reaches the floor is hardly more than k for scores in no particular order; it is gathered in shared
// memory and sorted there.  Where it does not fit (scores that rise along the row, k above the number
// of threads), the k-th largest key is found exactly, eight bits at a time from the top: count the
// keys that share the bits known so far by their next eight, and go on with the eight that the k-th
// has.  Digits of the id follow those of the score, so ties need no further care.
//
// **Deterministic.** Counts are sums of integers and bits are OR-ed, which commute.  The order in which
// keys are gathered is anybody's, and sorting takes it away.
//
// The floor from the maxima of disjoint parts follows Gaihre et al., "Dr. Top-k" (SC 2021), the digits
// Alabi et al., "Fast k-selection algorithms for graphics processing units" (JEA 2012).

#pragma once

#include <cmath>

#include "order_key.h"
#include "program.h"

namespace seqrec::select {

// a thread for each value of a digit
static_assert(kThreads == 256);
constexpr uint32_t kRoom = 1024;  // keys that are sorted in shared memory
constexpr int64_t kMostPart = 16384;  // scores of a block, at most: what `marks` has bits for

// Where the search for the k-th largest key has come to.
struct Search {
    uint64_t prefix;  // its bits, as far as they are known
    uint32_t left;  // how many keys that begin with them are among the k largest
    bool found;
    bool whole;  // all that begin with them are
};

// What the threads of a block share.
struct Shared {
    uint64_t keys[kRoom];
    uint64_t most[kThreads];
    uint64_t floor;
    Search search;
    uint32_t bins[kThreads];
    uint32_t count;
    uint32_t wrong;
    uint32_t marks[kMostPart / 32];
};

// ---- what is selected from -----------------------------------------------------------------------

// Keys as an earlier selection left them, 0 for none.
struct Keys {
    const int64_t* keys;
    SEQREC_BLOCK uint64_t operator()(int64_t i) const { return static_cast<uint64_t>(keys[i]); }
};

// Scores of neighbouring items, the first of them number `first`.
struct Scores {
    const float* scores;
    const float* bias;  // or null
    const uint32_t* marks;  // a bit for each that is no candidate, or null
    int64_t first;

    SEQREC_BLOCK uint64_t operator()(int64_t i) const {
        if (marks != nullptr && marks[i / 32] >> (i % 32) & 1) return 0;
        const float score = bias == nullptr ? scores[i] : scores[i] + bias[i];
        // false for NaN too
        return score > -INFINITY ? order_key(score, static_cast<uint64_t>(first + i)) : 0;
    }
};

// The items that each row has seen (SeenItems), and the table they are in.
struct Seen {
    const int64_t* offsets;  // [users + 1]
    const int64_t* ids;  // [entries]
    const int64_t* rows;  // user of each row, or null: row b is user b
    int64_t users, entries;
    int64_t first_item, items;  // candidates are first_item .. items - 1

    // Marks those of the row that are among the `count` candidates from number `first` on.  False
    // where the row is sent outside the lists or its list names an item outside the table.
    template <typename Block>
    SEQREC_BLOCK bool mark(Block& block, Shared& s, int64_t row, int64_t first, int64_t count) const {
        block.each([&](int t) {
            for (int64_t i = t; i < (count + 31) / 32; i += kThreads) s.marks[i] = 0;
            if (t == 0) s.wrong = 0;
        });
        const int64_t user = rows == nullptr ? row : rows[row];
        if (user < 0 || user >= users) return false;
        const int64_t start = offsets[user], end = offsets[user + 1];
        if (start < 0 || end < start || end > entries) return false;
        block.each([&](int t) {
            for (int64_t i = start + t; i < end; i += kThreads) {
                const int64_t item = ids[i], place = item - first_item - first;
                if (item < 0 || item >= items) block.mark(&s.wrong, 1u);
                if (place >= 0 && place < count) {
                    block.mark(&s.marks[place / 32], 1u << (place % 32));
                }
            }
        });
        return block.read(&s.wrong) == 0;
    }
};

// ---- selecting -----------------------------------------------------------------------------------

// A key that at least k of the row's reach; 1 where too few threads have any.  1 <= k <= kThreads.
template <typename Block, typename Source>
SEQREC_BLOCK uint64_t lower_bound(Block& block, Shared& s, const Source& source, int64_t n,
                                  int64_t k) {
    block.each([&](int t) {
        uint64_t most = 0;
        for (int64_t i = t; i < n; i += kThreads) {
            const uint64_t key = source(i);
            most = key > most ? key : most;
        }
        s.most[t] = most;
        if (t == 0) s.floor = 1;
    });
    block.each([&](int t) {
        const uint64_t own = s.most[t];
        int above = 0;
        for (int i = 0; i < kThreads; ++i) above += s.most[i] > own;
        if (own != 0 && above == k - 1) s.floor = own;  // keys differ: one thread at most
    });
    return block.read(&s.floor);
}

// Puts the keys that reach `floor` into `keys`, in any order, the first `room` of them; how many
// there are.
template <typename Block, typename Source>
SEQREC_BLOCK uint32_t gather(Block& block, Shared& s, const Source& source, int64_t n,
                             uint64_t floor, uint64_t* keys, uint32_t room) {
    block.each([&](int t) {
        if (t == 0) s.count = 0;
    });
    block.each([&](int t) {
        for (int64_t i = t; i < n; i += kThreads) {
            const uint64_t key = source(i);
            if (key < floor) continue;
            const uint32_t place = block.add(&s.count);
            if (place < room) keys[place] = key;
        }
    });
    return block.read(&s.count);
}

// The floor that exactly k keys reach; `floor` itself where no more than k reach that.
template <typename Block, typename Source>
SEQREC_BLOCK uint64_t exact_floor(Block& block, Shared& s, const Source& source, int64_t n,
                                  uint64_t floor, uint32_t k) {
    Search known{0, k, true, false};
    for (int shift = 56; shift >= 0 && !known.whole; shift -= 8) {
        block.each([&](int t) {
            s.bins[t] = 0;
            if (t == 0) s.search.found = false;
        });
        block.each([&](int t) {
            for (int64_t i = t; i < n; i += kThreads) {
                const uint64_t key = source(i);
                // two shifts, because one by 64 means nothing
                if (key >= floor && (key ^ known.prefix) >> shift >> 8 == 0) {
                    block.add(&s.bins[key >> shift & 255]);
                }
            }
        });
        block.each([&](int t) {
            uint32_t above = 0;
            for (int i = t + 1; i < kThreads; ++i) above += s.bins[i];
            const uint32_t own = s.bins[t];
            if (above < known.left && known.left - above <= own) {  // the k-th has this digit
                const uint32_t left = known.left - above;
                s.search = {known.prefix | static_cast<uint64_t>(t) << shift, left, true,
                            left == own};
            }
        });
        known = block.read(&s.search);
        if (!known.found) return floor;  // fewer than k: only at the first digit
    }
    return known.prefix > floor ? known.prefix : floor;
}

// Sorts keys, greatest first: bitonic, in the form whose every exchange moves the greater one to the
// front.  So keys past the n-th may be thought of as 0 and left alone, whatever n is.
template <typename Block>
SEQREC_BLOCK void sort(Block& block, uint64_t* keys, uint32_t n) {
    for (int run = 0; run < 32 && uint32_t{1} << run < n; ++run) {
        for (int log = run; log >= 0; --log) {  // runs of 2^run, sorted, become runs of twice that
            const uint32_t step = uint32_t{1} << log;
            const uint32_t pairs = (((n - 1) >> (log + 1)) + 1) << log;
            block.each([&](int t) {
                for (uint32_t pair = t; pair < pairs; pair += kThreads) {
                    const uint32_t first = pair >> log << (log + 1), place = pair & (step - 1);
                    const uint32_t a = first + place;
                    // a run meets its neighbour mirrored; after that, halves meet halves
                    const uint32_t b = log == run ? first + 2 * step - 1 - place : a + step;
                    if (b >= n || keys[a] >= keys[b]) continue;
                    const uint64_t greater = keys[b];
                    keys[b] = keys[a];
                    keys[a] = greater;
                }
            });
        }
    }
}

// Writes the k largest keys of source(0) .. source(n - 1), greatest first and 0 behind the last, to
// `out`, which lies where all threads see it.  1 <= k < 2^31, n < 2^32.
template <typename Block, typename Source>
SEQREC_BLOCK void largest(Block& block, Shared& s, const Source& source, int64_t n, uint32_t k,
                          uint64_t* out) {
    const bool few = k <= kThreads;
    uint64_t floor = few ? lower_bound(block, s, source, n, k) : 1;
    uint32_t count = kRoom + 1;
    uint64_t* keys = s.keys;
    if (few || n <= kRoom) count = gather(block, s, source, n, floor, keys, kRoom);
    if (count > kRoom) {
        floor = exact_floor(block, s, source, n, floor, k);
        if (k > kRoom) keys = out;
        count = gather(block, s, source, n, floor, keys, k);
        if (count > k) count = k;  // never, as keys differ; but nothing may be written past the end
    }
    sort(block, keys, count);
    block.each([&](int t) {
        for (uint32_t i = t; i < k; i += kThreads) out[i] = i < count ? keys[i] : 0;
    });
}

// ---- the programs --------------------------------------------------------------------------------

// The k best of each part of each row of scores: a block each.
struct ScoreProblem {
    using Shared = select::Shared;
    static constexpr int kResident = 4;
    const float* scores;  // [rows, width], rows `stride` apart
    const float* bias;  // [width] or null
    int64_t rows, width, stride;
    int64_t part;  // scores of a block
    int64_t first;  // number of the first column
    Seen seen;  // offsets null: nothing is seen
    int64_t* keys;  // [rows, parts, k], rows `keys_stride` apart
    int64_t keys_stride;
    uint32_t k;

    SEQREC_HOST_DEVICE int64_t parts() const { return (width + part - 1) / part; }

    template <typename Block>
    SEQREC_BLOCK void run(Block& block, Shared& s, int64_t row, int64_t place) const {
        const int64_t start = place * part;
        int64_t n = width - start < part ? width - start : part;
        const bool any = seen.offsets != nullptr;
        if (any && !seen.mark(block, s, row, first + start, n)) n = 0;  // a row gone wrong is empty
        const Scores source{scores + row * stride + start,
                            bias == nullptr ? nullptr : bias + start, any ? s.marks : nullptr,
                            first + start};
        largest(block, s, source, n, k,
                reinterpret_cast<uint64_t*>(keys + row * keys_stride + place * k));
    }
};

// The k best of each part of keys, as keys: a block each.
struct KeyParts {
    using Shared = select::Shared;
    static constexpr int kResident = 4;
    const int64_t* keys;  // [width]
    int64_t width, part;
    int64_t* best;  // [parts, k]
    uint32_t k;

    template <typename Block>
    SEQREC_BLOCK void run(Block& block, Shared& s, int64_t place, int64_t) const {
        const int64_t start = place * part;
        const int64_t n = width - start < part ? width - start : part;
        largest(block, s, Keys{keys + start}, n, k, reinterpret_cast<uint64_t*>(best + place * k));
    }
};

// The k best of each row of keys, as scores and items: a block each.
struct KeyProblem {
    using Shared = select::Shared;
    static constexpr int kResident = 4;
    const int64_t* keys;  // [rows, width], contiguous
    int64_t rows, width, first_item;
    float* scores;  // [rows, k]
    int64_t* ids;  // [rows, k]
    uint32_t k;

    template <typename Block>
    SEQREC_BLOCK void run(Block& block, Shared& s, int64_t row, int64_t) const {
        float* best = scores + row * k;
        int64_t* found = ids + row * k;
        largest(block, s, Keys{keys + row * width}, width, k, reinterpret_cast<uint64_t*>(found));
        block.each([&](int t) {
            for (uint32_t i = t; i < k; i += kThreads) {
                const auto key = static_cast<uint64_t>(found[i]);
                best[i] = key == 0 ? -INFINITY : score_of(key);
                found[i] = key == 0 ? -1 : first_item + id_of(key);
            }
        });
    }
};

}  // namespace seqrec::select
