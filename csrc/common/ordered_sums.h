// Sums of rows by key in a fixed order: into[key] += scale sum_s weight_s rows_s over the slots s of
// the key, without a float that two threads add to.
//
// **Sorting.** Slots are sorted by key, stably, eight bits at a time from the lowest: each part of the
// slots counts its digits (CountDigits); counts become places, first by digit and then by part
// (ScanDigits); each part moves its slots there in their order (MoveDigits), where a warp takes 32
// neighbours at once and a lane's rank is how many lanes below it have its digit.  The result is the
// one stable order, so the atomic counts leave no trace.  The keys of a table of V rows need
// ceil(log2(V + 1) / 8) rounds: two for 65,535 items, three for 16 million.
//
// **Adding.** The sorted slots are cut in tiles of kTile, and a few lanes go through each (AddRuns).  A
// run of equal keys that begins in the tile is added to its row of `into`; one that an earlier tile
// began is left in `heads`.  AddHeads then adds, for each run that has heads, all of them in the order of
// the tiles.  So a row of `into` has one writer at a time, and long runs are shared by many.
//
// Slots with the key `empty`, which is above all others, are no part of it.

#pragma once

#include "packs.h"
#include "program.h"

namespace seqrec::sums {

constexpr int kDigits = 256;  // values of a digit: one for each thread
constexpr int64_t kPart = 4096;  // slots of a block
constexpr int64_t kTile = 64;  // slots between two looks at who owns a run
constexpr int kAhead = 4;  // rows loaded before the first of them is added
static_assert(kDigits == kThreads);

SEQREC_HOST_DEVICE inline uint32_t digit_of(uint32_t key, int shift) { return key >> shift & 255; }

struct Shared {
    uint32_t bins[kWarps][kDigits];
    uint32_t sums[2][kDigits];
};

// sums[0] becomes the sums of itself up to and with each place.
template <typename Block>
SEQREC_BLOCK void accumulate(Block& block, Shared& s) {
    int from = 0;
    for (int step = 1; step < kDigits; step *= 2, from = 1 - from) {
        block.each([&](int t) {
            s.sums[1 - from][t] = s.sums[from][t] + (t < step ? 0 : s.sums[from][t - step]);
        });
    }
    static_assert(kDigits == 256);  // an even number of steps: they end where they began
}

struct CountDigits {
    using Shared = sums::Shared;
    static constexpr int kResident = 4;
    const uint32_t* keys;  // [slots]
    int64_t slots, parts;
    int shift;
    uint32_t* counts;  // [kDigits, parts]

    template <typename Block>
    SEQREC_BLOCK void run(Block& block, Shared& s, int64_t part, int64_t) const {
        block.each([&](int t) { s.bins[0][t] = 0; });
        block.each([&](int t) {
            const int64_t start = part * kPart;
            const int64_t end = start + kPart < slots ? start + kPart : slots;
            for (int64_t i = start + t; i < end; i += kThreads) {
                block.add(&s.bins[0][digit_of(keys[i], shift)]);
            }
        });
        block.each([&](int t) { counts[t * parts + part] = s.bins[0][t]; });
    }
};

// Counts become how many slots with the digit stand in earlier parts.
struct ScanDigits {
    using Shared = sums::Shared;
    static constexpr int kResident = 4;
    int64_t parts;
    uint32_t* counts;  // [kDigits, parts]
    uint32_t* totals;  // [kDigits]

    template <typename Block>
    SEQREC_BLOCK void run(Block& block, Shared& s, int64_t digit, int64_t) const {
        uint32_t* own = counts + digit * parts;
        uint32_t before = 0;
        for (int64_t first = 0; first < parts; first += kThreads) {
            block.each([&](int t) { s.sums[0][t] = first + t < parts ? own[first + t] : 0; });
            accumulate(block, s);
            block.each([&](int t) {
                if (first + t < parts) own[first + t] = before + (t == 0 ? 0 : s.sums[0][t - 1]);
            });
            before += block.read(&s.sums[0][kThreads - 1]);
        }
        block.each([&](int t) {
            if (t == 0) totals[digit] = before;
        });
    }
};

struct MoveDigits {
    using Shared = sums::Shared;
    static constexpr int kResident = 4;
    const uint32_t* keys;
    const uint32_t* places;  // where the slots stood at first; null: here
    int64_t slots, parts;
    int shift;
    const uint32_t *counts, *totals;
    uint32_t *moved_keys, *moved_places;

    template <typename Block>
    SEQREC_BLOCK void run(Block& block, Shared& s, int64_t part, int64_t) const {
        using Warp = typename Block::Warp;
        constexpr int64_t kRun = kPart / kWarps;
        block.each([&](int t) {
            s.sums[0][t] = totals[t];
            for (int w = 0; w < kWarps; ++w) s.bins[w][t] = 0;
        });
        accumulate(block, s);
        block.warps([&](Warp& warp) {
            const int64_t start = part * kPart + warp.index * kRun;
            warp.each([&](int lane) {
                for (int64_t i = start + lane; i < start + kRun && i < slots; i += kWarpSize) {
                    block.add(&s.bins[warp.index][digit_of(keys[i], shift)]);
                }
            });
        });
        block.each([&](int t) {  // from how many a warp has to where its first one goes
            uint32_t place = (t == 0 ? 0 : s.sums[0][t - 1]) + counts[t * parts + part];
            for (int w = 0; w < kWarps; ++w) {
                const uint32_t held = s.bins[w][t];
                s.bins[w][t] = place;
                place += held;
            }
        });
        block.warps([&](Warp& warp) {
            const int64_t start = part * kPart + warp.index * kRun;
            uint32_t* next = s.bins[warp.index];
            for (int64_t first = start; first < start + kRun && first < slots; first += kWarpSize) {
                typename Warp::template Lanes<uint32_t> key, digit;
                warp.each([&](int lane) {
                    const bool there = first + lane < slots;
                    key[lane] = there ? keys[first + lane] : 0;
                    digit[lane] = there ? digit_of(key[lane], shift) : kDigits;
                });
                const auto peers = warp.match(digit);
                warp.each([&](int lane) {
                    if (digit[lane] == kDigits) return;
                    const uint32_t below = peers[lane] & ((uint32_t{1} << lane) - 1);
                    const uint32_t to = next[digit[lane]] + bits_in(below);
                    moved_keys[to] = key[lane];
                    moved_places[to] =
                        places == nullptr ? static_cast<uint32_t>(first + lane) : places[first + lane];
                });
                warp.sync();
                warp.each([&](int lane) {  // the last of them counts them all
                    if (digit[lane] == kDigits || peers[lane] >> lane != 1) return;
                    next[digit[lane]] += bits_in(peers[lane]);
                });
                warp.sync();
            }
        });
    }
};

// ---- adding --------------------------------------------------------------------------------------

// What AddRuns and AddHeads share.
struct Runs {
    const uint32_t* keys;  // [slots], sorted
    int64_t slots;
    uint32_t empty;
    float scale;
    float* heads;  // [tiles, width]
    float* into;  // [empty, width]

    SEQREC_HOST_DEVICE int64_t tiles() const { return divided_up(slots, kTile); }

    // Whether a tile begins with a key that the one before ends with.
    SEQREC_HOST_DEVICE bool goes_on(int64_t tile) const {
        const int64_t start = tile * kTile;
        return tile > 0 && start < slots && keys[start - 1] == keys[start];
    }
    template <int kPack>
    SEQREC_BLOCK void add(uint32_t key, const Layout<kPack>& layout, int column,
                          const float* sum) const {
        float* row = into + static_cast<int64_t>(key) * layout.width + column;
        Pack<float, kPack> pack = load<kPack>(row);
        for (int v = 0; v < kPack; ++v) pack.values[v] = fmaf(scale, sum[v], pack.values[v]);
        store<kPack>(row, pack);
    }
};

// Block (i, strip): tiles that `layout.lanes` threads each go through, over a strip of columns.
template <typename T, int kPack>
struct AddRuns {
    using Shared = Nothing;
    static constexpr int kResident = 2;
    Runs runs;
    Layout<kPack> layout;
    const uint32_t* places;  // [slots] of the sorted ones
    const float* weights;  // by place; null: all are 1
    const T* rows;  // of place p: row p / per_row; null: all are 1
    int64_t row_stride;
    uint32_t per_row;

    SEQREC_HOST_DEVICE int64_t blocks() const {
        return divided_up(runs.tiles(), kThreads / layout.lanes);
    }

    template <typename Block>
    SEQREC_BLOCK void run(Block& block, Shared&, int64_t i, int64_t strip) const {
        block.each([&](int t) {
            const int64_t tile = i * (kThreads / layout.lanes) + t / layout.lanes;
            const int column = static_cast<int>(strip) * layout.strip() + t % layout.lanes * kPack;
            if (tile < runs.tiles() && column < layout.width) add(tile, column);
        });
    }

    SEQREC_BLOCK void add(int64_t tile, int column) const {
        const int64_t start = tile * kTile;
        const int64_t end = start + kTile < runs.slots ? start + kTile : runs.slots;
        bool head = runs.goes_on(tile);
        uint32_t current = runs.keys[start];
        float sum[kPack] = {};
        const auto put = [&] {
            if (current == runs.empty) return;
            if (head) {
                Pack<float, kPack> pack;
                for (int v = 0; v < kPack; ++v) pack.values[v] = sum[v];
                store<kPack>(runs.heads + tile * layout.width + column, pack);
            } else {
                runs.add<kPack>(current, layout, column, sum);
            }
        };
        for (int64_t first = start; first < end && current != runs.empty; first += kAhead) {
            uint32_t key[kAhead];
            float weight[kAhead];
            Pack<T, kPack> row[kAhead];
            SEQREC_UNROLL
            for (int u = 0; u < kAhead; ++u) {
                key[u] = first + u < end ? runs.keys[first + u] : runs.empty;
                if (key[u] == runs.empty) continue;
                const uint32_t place = places[first + u];
                weight[u] = weights == nullptr ? 1.0f : weights[place];
                if (rows == nullptr) continue;
                row[u] = load<kPack>(rows + place / per_row * row_stride + column);
            }
            SEQREC_UNROLL
            for (int u = 0; u < kAhead; ++u) {
                if (key[u] != current) {
                    put();
                    head = false;
                    current = key[u];
                    for (int v = 0; v < kPack; ++v) sum[v] = 0.0f;
                }
                if (key[u] == runs.empty) continue;
                for (int v = 0; v < kPack; ++v) {
                    sum[v] = fmaf(weight[u], rows == nullptr ? 1.0f : row[u][v], sum[v]);
                }
            }
        }
        put();
    }
};

// As AddRuns, over the tiles: the first one that goes on with a run takes the heads of all that do.
template <int kPack>
struct AddHeads {
    using Shared = Nothing;
    static constexpr int kResident = 4;
    Runs runs;
    Layout<kPack> layout;

    SEQREC_HOST_DEVICE int64_t blocks() const {
        return divided_up(runs.tiles(), kThreads / layout.lanes);
    }

    template <typename Block>
    SEQREC_BLOCK void run(Block& block, Shared&, int64_t i, int64_t strip) const {
        block.each([&](int t) {
            const int64_t tile = i * (kThreads / layout.lanes) + t / layout.lanes;
            const int column = static_cast<int>(strip) * layout.strip() + t % layout.lanes * kPack;
            if (column < layout.width && runs.goes_on(tile)) add(tile, column);
        });
    }

    SEQREC_BLOCK void add(int64_t tile, int column) const {
        const uint32_t key = runs.keys[tile * kTile];
        if (key == runs.empty) return;
        if (runs.keys[(tile - 1) * kTile] == key && runs.goes_on(tile - 1)) return;
        int64_t last = tile, past = runs.tiles();  // the last tile that begins with the key
        while (past - last > 1) {
            const int64_t middle = last + (past - last) / 2;
            (runs.keys[middle * kTile] == key ? last : past) = middle;
        }
        float sum[kPack] = {};
        SEQREC_UNROLL_BY(4)
        for (int64_t at = tile; at <= last; ++at) {
            const Pack<float, kPack> head = load<kPack>(runs.heads + at * layout.width + column);
            for (int v = 0; v < kPack; ++v) sum[v] += head.values[v];
        }
        runs.add<kPack>(key, layout, column, sum);
    }
};

}  // namespace seqrec::sums
