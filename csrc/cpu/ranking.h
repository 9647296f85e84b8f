// What ranking and selection share: a sweep of item tiles over panels of queries, and seen items.

#pragma once

#include <cmath>
#include <vector>

#include "arithmetic.h"

namespace seqrec::cpu {

constexpr int64_t kRankTile = 96;   // items of a tile: 24 KiB of scores, for the first cache
constexpr int64_t kRankPanels = 4;  // panels that pass over an item tile before the next one is read

// ---- seen items ----------------------------------------------------------------------------------

// What every row has seen.  A row whose entries are not all in range is *wrong*.
struct SeenRows : Csr {
    int64_t first_item, items;  // of the whole table: ids below first_item are ignored

    SeenRows(const std::optional<Tensor>& offset, const std::optional<Tensor>& id,
             const std::optional<Tensor>& row, int64_t first, int64_t all)
        : Csr(csr_of(offset, id, row)), first_item(first), items(all) {}

    bool wrong(int64_t b) const {
        int64_t begin, end;
        if (!find(b, begin, end)) return true;
        return std::any_of(ids + begin, ids + end,
                           [&](int64_t id) { return id < 0 || id >= items; });
    }

    bool holds(int64_t b, int64_t id) const {
        int64_t begin, end;
        return find(b, begin, end) && std::find(ids + begin, ids + end, id) != ids + end;
    }

    // How many different items of the catalogue the row has met.
    int64_t distinct(int64_t b) const {
        int64_t begin, end;
        if (!find(b, begin, end)) return 0;
        std::vector<int64_t> own(ids + begin, ids + end);
        std::sort(own.begin(), own.end());
        const auto last = std::unique(own.begin(), own.end());
        return last - std::lower_bound(own.begin(), last, first_item);
    }
};

// The seen places of one panel, grouped by the tile they fall into: a counting sort.
class SeenPlaces {
  public:
    // Tiles `begin` .. `end` - 1 of rows `top` .. `top + held - 1`.
    void collect(const SeenRows& seen, int64_t top, int64_t held, int64_t begin, int64_t end) {
        begin_ = begin;
        starts_.assign(static_cast<size_t>(end - begin) + 2, 0);
        if (!seen.given()) return;
        // counted one place further on, so that filling moves the starts to where they belong
        each(seen, top, held, begin, end, [&](int64_t tile, uint32_t) { ++starts_[tile + 2]; });
        for (size_t i = 2; i < starts_.size(); ++i) starts_[i] += starts_[i - 1];
        places_.resize(starts_.back());
        each(seen, top, held, begin, end,
             [&](int64_t tile, uint32_t place) { places_[starts_[tile + 1]++] = place; });
    }

    // Writes `value` to the seen places of a tile's scores.
    void mark(int64_t tile, float value, float* scores) const {
        const auto t = static_cast<size_t>(tile - begin_);
        for (size_t i = starts_[t]; i < starts_[t + 1]; ++i) scores[places_[i]] = value;
    }

  private:
    template <typename Visit>
    void each(const SeenRows& seen, int64_t top, int64_t held, int64_t begin, int64_t end,
              const Visit& visit) const {
        for (int64_t lane = 0; lane < held; ++lane) {
            int64_t from, to;
            if (!seen.find(top + lane, from, to)) continue;
            for (int64_t i = from; i < to; ++i) {
                const int64_t item = seen.ids[i] - seen.first_item;
                const int64_t tile = item / kRankTile;
                if (item < 0 || tile < begin || tile >= end) continue;
                visit(tile - begin, static_cast<uint32_t>(item % kRankTile * kLanes + lane));
            }
        }
    }

    int64_t begin_ = 0;
    std::vector<size_t> starts_;
    std::vector<uint32_t> places_;
};

// ---- the sweep -----------------------------------------------------------------------------------

// All queries as panels, and how the catalogue is shared out.  Counts and keys do not depend on who
// finds them, so here the cut may follow the number of threads.
template <typename Arithmetic>
struct Sweep {
    using Number = typename Arithmetic::Number;
    Matrix queries, items;
    const float* bias;
    int64_t batch, panels, groups, tiles, chunks, padded;
    Buffer<Number> rows, turned;

    Sweep(const Tensor& q, const Tensor& e, const std::optional<Tensor>& item_bias)
        : queries(q),
          items(e),
          bias(numbers<float>(item_bias)),
          batch(queries.rows),
          panels(divide_up(batch, kLanes)),
          groups(divide_up(panels, kRankPanels)),
          tiles(divide_up(items.rows, kRankTile)),
          padded(queries.padded()),
          rows(panels * kLanes * padded),
          turned(panels * Arithmetic::panel_size(queries.width)) {
        const int64_t threads = torch::stable::get_num_threads();
        const int64_t enough = threads == 1 ? 1 : divide_up(4 * threads, std::max<int64_t>(groups, 1));
        const int64_t countable = divide_up(items.rows, int64_t{1} << 30);  // by int32
        chunks = std::min(tiles, std::max(enough, countable));
        run_tasks(panels, [] { return 0; }, [&](int64_t panel, int) {
            Arithmetic::read_panel(queries, panel * kLanes, row(panel * kLanes), turned_panel(panel));
        });
    }

    Number* row(int64_t b) const { return rows + b * padded; }
    Number* turned_panel(int64_t panel) const {
        return turned + panel * Arithmetic::panel_size(queries.width);
    }
    int64_t held(int64_t panel) const { return std::min<int64_t>(kLanes, batch - panel * kLanes); }

    // The score of one pair, in the bits it has in a tile.
    float score(int64_t b, int64_t item, Number* scratch) const {
        int64_t stride;
        const Number* row_of_item = Arithmetic::read(items, item, 1, scratch, stride);
        const float product = Arithmetic::dot(row(b), row_of_item, queries.width);
        return bias == nullptr ? product : product + bias[item];
    }

    // Calls visit(chunk, panel, first item, count, scores, state of the panel) for every tile of every
    // panel, items ascending within a chunk; start and finish (chunk, panel, state) around them.
    // Seen places hold `seen_value`.
    template <typename State, typename Start, typename Visit, typename Finish>
    void run(const SeenRows& seen, float seen_value, const Start& start, const Visit& visit,
             const Finish& finish) const {
        struct Scratch {
            Buffer<float> scores;
            Buffer<Number> items;
            SeenPlaces seen[kRankPanels];
            State state[kRankPanels];
        };
        const auto scratch = [&] {
            return Scratch{Buffer<float>(kRankTile * kLanes), Buffer<Number>(kRankTile * padded),
                           {}, {}};
        };
        run_tasks(chunks * groups, scratch, [&](int64_t task, Scratch& own) {
            const int64_t chunk = task / groups, first_panel = task % groups * kRankPanels;
            const int64_t count = std::min(kRankPanels, panels - first_panel);
            const int64_t begin = tiles * chunk / chunks, end = tiles * (chunk + 1) / chunks;
            for (int64_t p = 0; p < count; ++p) {
                const int64_t panel = first_panel + p;
                own.seen[p].collect(seen, panel * kLanes, held(panel), begin, end);
                start(chunk, panel, own.state[p]);
            }
            for (int64_t tile = begin; tile < end; ++tile) {
                const int64_t first = tile * kRankTile;
                const int64_t length = std::min(kRankTile, items.rows - first);
                int64_t stride;
                const Number* from =
                    Arithmetic::read(items, first, length, own.items.get(), stride);
                for (int64_t p = 0; p < count; ++p) {
                    Arithmetic::score(turned_panel(first_panel + p), queries.width, from, stride,
                                      bias == nullptr ? nullptr : bias + first, length,
                                      own.scores.get());
                    own.seen[p].mark(tile, seen_value, own.scores.get());
                    visit(chunk, first_panel + p, first, length, own.scores.get(), own.state[p]);
                }
            }
            for (int64_t p = 0; p < count; ++p) finish(chunk, first_panel + p, own.state[p]);
        });
    }
};

}  // namespace seqrec::cpu
