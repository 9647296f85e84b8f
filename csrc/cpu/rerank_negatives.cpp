// One candidate a row, drawn among its best: rows of some queries at a time, nothing sorted.
//
// **Scores.**  A row's own candidates are read where they lie in the table, by pointer.  The shared
// ones are gathered once for all rows and meet kRows queries at a time, a cache-sized block of them
// after the other, as a matrix product does.  Both are the same chain of operations (sampled.h), so
// that equal item rows score equal bits wherever they stand.
//
// **Allowed.**  A bit an item tells, before anything is scored, which of a row's own are forbidden or
// repeated.  Shared ones lose their repeats once a call; the forbidden among them are looked up, a
// few a row, and score NaN.
//
// **Draw.**  The id at the drawn place is found by asking how many scores reach a level, a few times
// (common/place.h), and not by an order.
//
// **Memory.**  Scores of kRows rows and a bit an item a thread, and the shared rows once.

#include <torch/csrc/stable/library.h>

#include <utility>
#include <vector>

#include "../common/rerank_negatives.h"
#include "operands.h"
#include "sampled.h"

namespace seqrec::cpu {
namespace {

using rerank::Candidates;

constexpr int64_t kRows = 16;         // of a task
constexpr int64_t kBlock = 1 << 12;   // numbers of the shared rows that kRows queries meet in one go
constexpr int64_t kFloats = 1 << 18;  // scores a thread, unless one row has more

constexpr int64_t kFetched = 16;      // rows that begin to load before any is scored

int64_t padded_to(int64_t count) { return divide_up(count, kPad) * kPad; }

// Item rows by pointer, padded as SampledKernels::dots takes them.
struct Table {
    Matrix items;
    bool ready;  // where they lie

    explicit Table(const Tensor& t)
        : items(t),
          ready(items.type == ScalarType::Float && items.column_stride == 1 &&
                items.width == items.padded()) {}

    const float* row(int64_t id, float* copy) const {
        if (ready) return static_cast<const float*>(items.data) + id * items.row_stride;
        items.copy_row(id, copy);
        return copy;
    }
};

// A set of items: a bit for each of the table.
class Items {
  public:
    explicit Items(int64_t items) : words_(static_cast<size_t>(divide_up(items, 64))) {}

    bool holds(int64_t id) const { return words_[word(id)] & bit(id); }

    // False where it was there.
    bool add(int64_t id) {
        uint64_t& at = words_[word(id)];
        const bool fresh = !(at & bit(id));
        at |= bit(id);
        return fresh;
    }
    void remove(int64_t id) { words_[word(id)] &= ~bit(id); }

  private:
    static size_t word(int64_t id) { return static_cast<size_t>(id) / 64; }
    static uint64_t bit(int64_t id) { return uint64_t{1} << (id % 64); }

    std::vector<uint64_t> words_;
};

// The shared candidates that are there, each once where repeats are dropped.
struct Bank {
    std::vector<int64_t> ids;
    std::vector<std::pair<int64_t, int64_t>> places;  // id, place; sorted
    std::vector<const float*> rows;
    Items items;
    bool wrong = false;
    Buffer<float> copies;

    Bank(const Candidates& c, const Table& table)
        : items(c.items), copies(table.ready ? 0 : c.shares * table.items.padded()) {
        std::vector<std::pair<int64_t, int64_t>> slots;
        for (int64_t i = 0; i < c.shares; ++i) {
            const int64_t id = c.shared_id(i);
            wrong |= c.wrong(id);
            if (c.inside(id)) slots.emplace_back(id, i);
        }
        std::sort(slots.begin(), slots.end());
        for (const auto& [id, slot] : slots) {
            if (c.drop && !ids.empty() && ids.back() == id) continue;
            places.emplace_back(id, count());
            rows.push_back(table.row(id, copies + count() * table.items.padded()));
            ids.push_back(id);
            items.add(id);
        }
    }
    int64_t count() const { return static_cast<int64_t>(ids.size()); }

    // Calls hit(place) for every slot that holds `id`.
    template <typename Hit>
    void each(int64_t id, const Hit& hit) const {
        if (!items.holds(id)) return;
        auto at = std::lower_bound(places.begin(), places.end(), std::make_pair(id, int64_t{0}));
        for (; at != places.end() && at->first == id; ++at) hit(at->second);
    }
};

// The slots of a row, as place.h asks them.
struct Slots {
    const float* scores;  // [count], a multiple of kPad; NaN: no candidate
    const int64_t* ids;
    int64_t count;

    // All candidates.
    Neighbours run() const {
        float least, greatest;
        const auto held = static_cast<uint32_t>(kernels().range(scores, count, &least, &greatest));
        if (held == 0) return everything(0);
        return {ordered(least), ordered(greatest), 0, held};
    }
    // Numbers that are asked for lie between those of two scores, so they are of scores.
    uint32_t reach(uint32_t number) const {
        return static_cast<uint32_t>(kernels().reach(scores, count, unordered(number)));
    }
    int64_t any(const Neighbours& found) const {
        // no score has the number of -0.0, which as a float would hold 0.0 too
        const uint32_t high = found.high - (found.high == 0x7fffffffu);
        const int64_t at =
            kernels().first_within(scores, count, unordered(found.low), unordered(high));
        return at < count ? ids[at] : -1;
    }
    Neighbours ties(uint32_t number) const {
        Neighbours run{0xffffffffu, 0, 0, 0};
        each_of(number, [&](uint32_t other_way_round) {
            run.low = std::min(run.low, other_way_round);
            run.high = std::max(run.high, other_way_round);
            ++run.count;
        });
        return run;
    }
    uint32_t level(uint32_t number, uint32_t x) const {
        uint32_t n = 0;
        each_of(number, [&](uint32_t other_way_round) { n += other_way_round >= x; });
        return n;
    }

  private:
    template <typename Visit>
    void each_of(uint32_t number, const Visit& visit) const {
        const float score = unordered(number);
        for (int64_t i = 0; i < count; ++i) {
            if (scores[i] == score) visit(0xffffffffu - static_cast<uint32_t>(ids[i]));
        }
    }
};

struct Scratch {
    Buffer<float> queries, scores, copies;
    std::vector<int64_t> ids;        // of the shared candidates, then of a row's own
    std::vector<const float*> rows;  // of its own
    Items taken;  // what the row may not draw from its own: forbidden, or in another slot
    std::vector<int64_t> marked;  // what is only in there for this row
};

class Call {
  public:
    Call(const Candidates& candidates, const Tensor& queries, const Tensor& items,
         const Tensor& found)
        : c_(candidates),
          queries_(queries),
          table_(items),
          bank_(candidates, table_),
          padded_(queries_.padded()),
          shares_(padded_to(bank_.count())),
          width_(shares_ + padded_to(c_.owned)),
          rows_(std::clamp<int64_t>(kFloats / std::max<int64_t>(width_, 1), 1, kRows)),
          found_(written<int64_t>(found)) {}

    void run() const {
        run_tasks(divide_up(queries_.rows, rows_), [&] { return scratch(); },
                  [&](int64_t task, Scratch& s) {
            const int64_t top = task * rows_, held = std::min(rows_, queries_.rows - top);
            const float* query[kRows];
            for (int64_t i = 0; i < held; ++i) {
                int64_t stride;
                query[i] = queries_.read(top + i, 1, s.queries + i * padded_, stride);
            }
            const int64_t block = std::max<int64_t>(kBlock / padded_ / kPad, 1) * kPad;
            for (int64_t first = 0; first < bank_.count(); first += block) {
                const int64_t count = std::min(block, bank_.count() - first);
                for (int64_t i = 0; i < held; ++i) {
                    sampled_kernels().dots(query[i], bank_.rows.data() + first, count, padded_,
                                           s.scores + i * width_ + first);
                }
            }
            for (int64_t i = 0; i < held; ++i) {
                found_[top + i] = drawn(top + i, query[i], s.scores + i * width_, s);
            }
        });
    }

  private:
    Scratch scratch() const {
        Scratch s{Buffer<float>(rows_ * padded_),
                  Buffer<float>(rows_ * width_),
                  Buffer<float>(table_.ready ? 0 : c_.owned * padded_),
                  std::vector<int64_t>(static_cast<size_t>(width_)),
                  std::vector<const float*>(static_cast<size_t>(c_.owned)),
                  c_.drop ? bank_.items : Items(c_.items),
                  {}};
        std::copy(bank_.ids.begin(), bank_.ids.end(), s.ids.begin());
        return s;
    }

    // The id that a row draws.  `scores` [width_]: those of the shared candidates, for its own.
    int64_t drawn(int64_t row, const float* query, float* scores, Scratch& s) const {
        constexpr float nothing = __builtin_nanf("");
        std::fill(scores + bank_.count(), scores + shares_, nothing);
        const bool right = forbid(row, scores, s);
        const int64_t held = right ? gather(row, s) : -1;
        for (const int64_t id : s.marked) s.taken.remove(id);
        s.marked.clear();
        if (held < 0) return -1;
        const int64_t count = shares_ + padded_to(held);
        sampled_kernels().dots(query, s.rows.data(), held, padded_, scores + shares_);
        std::fill(scores + shares_ + held, scores + count, nothing);
        const Slots slots{scores, s.ids.data(), count};
        return rerank::draw(c_, row, slots.run(), slots);
    }

    // Takes what is forbidden to a row from both kinds of candidates; false where the list is wrong.
    bool forbid(int64_t row, float* scores, Scratch& s) const {
        int64_t begin, end;
        if (bank_.wrong || !c_.forbidden.find(row, begin, end)) return false;
        for (int64_t i = begin; i < end; ++i) {
            const int64_t id = c_.forbidden.ids[i];
            if (c_.forbidden_wrong(id)) return false;
            if (s.taken.add(id)) s.marked.push_back(id);
            bank_.each(id, [&](int64_t place) { scores[place] = __builtin_nanf(""); });
        }
        return true;
    }

    // Brings together a row's own candidates that are allowed; how many, -1 where one is wrong.
    int64_t gather(int64_t row, Scratch& s) const {
        const Candidates c = c_;  // a copy, which nothing that is written here could change
        int64_t* ids = s.ids.data() + shares_;
        const float** rows = s.rows.data();
        int64_t held = 0;
        bool wrong = false;
        for (int64_t i = 0; i < c.owned; ++i) {
            const int64_t id = c.own_id(row, i);
            wrong |= c.wrong(id);
            if (!c.inside(id) || (c.drop ? !s.taken.add(id) : s.taken.holds(id))) continue;
            ids[held] = id;
            rows[held] = table_.row(id, s.copies + held * padded_);
            ++held;
        }
        for (int64_t i = 0; table_.ready && i < std::min(held, kFetched); ++i) {
            for (int64_t d = 0; d < padded_; d += 16) __builtin_prefetch(rows[i] + d);
        }
        if (c.drop) s.marked.insert(s.marked.end(), ids, ids + held);
        return wrong ? -1 : held;
    }

    const Candidates c_;
    const Matrix queries_;
    const Table table_;
    const Bank bank_;
    const int64_t padded_;
    const int64_t shares_, width_;  // scores of a row: shared ones, and all, each padded
    const int64_t rows_;            // of a task
    int64_t* found_;
};

void rerank_negatives(const Tensor& queries, const Tensor& items,
                      const std::optional<Tensor>& candidates, const std::optional<Tensor>& shared,
                      const std::optional<Tensor>& offsets, const std::optional<Tensor>& ids,
                      const std::optional<Tensor>& rows, const Tensor& top_m, const Tensor& seed,
                      bool drop, int64_t first_item, const Tensor& found) {
    Candidates c{};
    if (shared.has_value()) {
        c.shared = numbers<int64_t>(shared);
        c.shares = shared->size(0);
        c.shared_stride = shared->stride(0);
    }
    if (candidates.has_value()) {
        c.own = numbers<int64_t>(candidates);
        c.owned = candidates->size(1);
        c.row_stride = candidates->stride(0);
        c.column_stride = candidates->stride(1);
    }
    c.forbidden = csr_of(offsets, ids, rows);
    c.top_m = numbers<int64_t>(top_m);
    c.seed = numbers<int64_t>(seed);
    c.first_item = first_item;
    c.items = items.size(0);
    c.drop = drop;
    Call(c, queries, items, found).run();
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(seqrec_native, CPU, m) {
    m.impl("rerank_negatives", TORCH_BOX(&rerank_negatives));
}

}  // namespace seqrec::cpu
