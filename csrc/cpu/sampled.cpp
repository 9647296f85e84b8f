// Losses against sampled negatives, and their gradients: gather, dot and reduce in one pass.
//
// **Negatives of a row's own** are read where they lie, by pointer, twice: for their logits and, while
// they are in the first caches, for the gradient of the query.  What the items are owed is kept as a
// weight a slot for a block of rows, and added to their rows afterwards.  *Order without sorting:*
// ids are dealt to 64 hands by their lowest bits, hands to threads, and each thread goes through the
// slots of the block in order, adding those of its hands.  So a row of the table is always written
// by one thread, in the order of the slots, whatever the number of threads; reading all ids a thread
// costs little beside adding rows, and less than sorting them.
//
// **Shared negatives** are gathered once, and meet kLanes rows at a time as a matrix product does
// (kernels.h); their gradients are collected in gathered form and put in their places at the end.

#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <string>
#include <utility>
#include <vector>

#include "sampled_problem.h"

namespace seqrec::cpu {

extern const SampledKernels kSampledPortable;
#if defined(__x86_64__)
extern const SampledKernels kSampledAvx2;
extern const SampledKernels kSampledAvx512;
#endif

const SampledKernels& sampled_kernels() {
#if defined(__x86_64__)
    return version_of({&kSampledAvx2, &kSampledAvx512}, kSampledPortable);
#else
    return kSampledPortable;
#endif
}

namespace {

using namespace sampled_losses;
using sampled::Row;

constexpr int64_t kRowsOfTask = 16;
constexpr int64_t kChunk = 64;  // shared negatives of a task
constexpr float kNothing = -__builtin_inff();  // the logit of a negative that takes no part

int64_t padded_to(int64_t count) { return divide_up(count, kPad) * kPad; }

// ---- negatives of a row's own --------------------------------------------------------------------

struct RowScratch {
    Buffer<const float*> rows;
    Buffer<float> logits, copies, sum;

    RowScratch(const Problem& p, int64_t padded)
        : rows(p.count + 1),
          logits(padded_to(p.count + 1)),
          copies(p.ready() ? 0 : (p.count + 1) * padded),
          sum(padded) {}
};

// The loss from logits [count rounded up], which become the numbers that Row::others multiplies.
Row row_of(const Problem& p, float positive, float* logits, int64_t kept) {
    const SampledKernels& k = sampled_kernels();
    const int64_t padded = padded_to(p.count);
    float total;
    if (p.loss == Loss::kSoftmax) {
        const float sum = k.exponentials(logits, padded, &total);
        return sampled::softmax_row(positive, total, sum);
    }
    const bool pairs = p.loss == Loss::kBpr;
    const float share = k.softplus(logits, padded, pairs ? positive : 0.0f, &total);
    return pairs ? sampled::bpr_row(total, share, kept) : sampled::bce_row(positive, total, p.beta);
}

// Loss and query gradient of a row.  `query` [padded] is for its numbers over the temperature, and
// `weights` [count + 1] for those by which it is added to its items.
void own_row(const Problem& p, int64_t row, RowScratch& s, float* query, float* weights) {
    const int64_t padded = p.queries.padded(), slots = p.count + 1;
    const int64_t positive = p.positives[row];
    bool is_wrong = p.wrong(positive);
    int64_t kept = 0;
    for (int64_t n = 0; n < p.count; ++n) {
        const int64_t id = p.negative(row, n);
        is_wrong |= p.wrong(id);
        kept += p.inside(id) & !(p.drop_hits & (id == positive));
    }
    const bool active = p.inside(positive) && kept > 0;
    if (!active) {  // it may hold anything
        std::fill(query, query + padded, 0.0f);
        std::fill(weights, weights + slots, 0.0f);
        if (p.d_queries != nullptr) p.write_d_query(row, query);
        return p.write_loss(row, 0.0f, false, is_wrong);
    }
    p.read_query(row, query);
    const auto row_at = [&](int64_t id, int64_t slot) {
        if (p.ready()) return p.item(id);
        float* copy = s.copies + slot * padded;
        p.items.copy_row(id, copy);
        return const_cast<const float*>(copy);
    };
    const float* own = row_at(positive, p.count);
    for (int64_t n = 0; n < p.count; ++n) {
        const int64_t id = p.negative(row, n);
        // where none takes part any row will do
        const bool takes_part = p.inside(id) & !(p.drop_hits & (id == positive));
        s.rows[n] = takes_part ? row_at(id, n) : own;
    }
    s.rows[p.count] = own;
    float* logits = s.logits.get();
    sampled_kernels().dots(query, s.rows.get(), slots, padded, logits);
    const float logit = logits[p.count] - p.correction(positive);
    if (p.log_q != nullptr || kept < p.count) {
        for (int64_t n = 0; n < p.count; ++n) {
            const int64_t id = p.negative(row, n);
            const bool takes_part = p.inside(id) & !(p.drop_hits & (id == positive));
            logits[n] = takes_part ? logits[n] - p.correction(id) : kNothing;
        }
    }
    std::fill(logits + p.count, logits + padded_to(p.count), kNothing);

    const Row found = row_of(p, logit, logits, kept);
    p.write_loss(row, found.loss, true, is_wrong);
    if (p.upstream == nullptr) return;
    const float others = found.others * p.upstream[row];
    for (int64_t n = 0; n < p.count; ++n) weights[n] = logits[n] * others;
    weights[p.count] = found.own * p.upstream[row];
    if (p.d_queries == nullptr) return;
    sampled_kernels().weighted_rows(weights, s.rows.get(), slots, padded, s.sum.get());
    p.write_d_query(row, s.sum.get());
}

void own_negatives(const Problem& p, int64_t workspace) {
    const int64_t padded = p.queries.padded(), slots = p.count + 1;
    const int64_t most = std::max<int64_t>(workspace / (slots + padded), kRowsOfTask);
    const int64_t size = std::min(most, p.queries.rows);
    Buffer<float> queries(size * padded), weights(size * slots);
    for (int64_t top = 0; top < p.queries.rows; top += size) {
        const int64_t rows = std::min(size, p.queries.rows - top);
        run_tasks(divide_up(rows, kRowsOfTask), [&] { return RowScratch(p, padded); },
                  [&](int64_t task, RowScratch& scratch) {
            const int64_t end = std::min((task + 1) * kRowsOfTask, rows);
            for (int64_t i = task * kRowsOfTask; i < end; ++i) {
                if (p.ready()) p.fetch(top + i + kAhead, p.item(0), p.items.row_stride);
                own_row(p, top + i, scratch, queries + i * padded, weights + i * slots);
            }
        });
        if (p.scatters()) add_to_items(p, {top, rows, slots, queries.get(), weights.get()});
    }
}

// ---- shared negatives ----------------------------------------------------------------------------

// The negatives that are there, in order, and where each id stands among them.
struct Bank {
    std::vector<int64_t> ids;
    std::vector<std::pair<int64_t, int64_t>> places;  // id, place; sorted
    bool wrong = false;
    Buffer<float> table, minus_log_q;  // [count, padded] and [count]

    explicit Bank(const Problem& p)
        : table(p.count * p.queries.padded()), minus_log_q(p.log_q != nullptr ? p.count : 0) {
        for (int64_t n = 0; n < p.count; ++n) {
            const int64_t id = p.negative(0, n);
            wrong |= p.wrong(id);
            if (!p.inside(id)) continue;
            p.items.copy_row(id, table + count() * p.queries.padded());
            if (p.log_q != nullptr) minus_log_q[count()] = -p.log_q[id];
            places.emplace_back(id, count());
            ids.push_back(id);
        }
        std::sort(places.begin(), places.end());
    }
    int64_t count() const { return static_cast<int64_t>(ids.size()); }

    // Calls hit(place) for every negative that is `id`, and returns how many there are.
    template <typename Hit>
    int64_t each(int64_t id, const Hit& hit) const {
        auto at = std::lower_bound(places.begin(), places.end(), std::make_pair(id, int64_t{0}));
        int64_t found = 0;
        for (; at != places.end() && at->first == id; ++at, ++found) hit(at->second);
        return found;
    }
};

// kLanes rows before the bank, and what is kept of them for the bank's gradients.
struct Panel {
    float *rows, *scaled;  // [kLanes, padded]: queries over the temperature; times `factor`
    float* tile;           // [count, kLanes]
    float* own;            // [kLanes]: weights of the positives
    float* factor;         // [kLanes]
};

void shared_panel(const Problem& p, const Bank& bank, int64_t top, const Panel& at, float* panel,
                  float* sums, float* item) {
    const int64_t padded = p.queries.padded(), count = bank.count();
    const int64_t held = std::min<int64_t>(kLanes, p.queries.rows - top);
    read_panel(p.queries, top, p.temperature, at.rows, panel);
    int64_t kept[kLanes] = {};
    for (int64_t lane = 0; lane < held; ++lane) {
        const int64_t positive = p.positives[top + lane];
        const int64_t hits = p.drop_hits ? bank.each(positive, [](int64_t) {}) : 0;
        kept[lane] = p.inside(positive) ? count - hits : 0;
        if (kept[lane] > 0) continue;
        std::fill(at.rows + lane * padded, at.rows + (lane + 1) * padded, 0.0f);
        for (int64_t d = 0; d < p.queries.width; ++d) panel[d * kLanes + lane] = 0.0f;
    }
    const float* bias = p.log_q != nullptr ? bank.minus_log_q.get() : nullptr;
    kernels().score(panel, p.queries.width, bank.table.get(), padded, bias, count, at.tile, nullptr);
    float positives[kLanes] = {}, first[kLanes] = {}, second[kLanes] = {}, shift[kLanes] = {};
    for (int64_t lane = 0; lane < held; ++lane) {
        if (kept[lane] == 0) continue;
        const int64_t id = p.positives[top + lane];
        p.items.copy_row(id, item);
        positives[lane] = kernels().dot(at.rows + lane * padded, 1, item, p.queries.width) -
                          p.correction(id);
        if (kept[lane] == count) continue;
        bank.each(id, [&](int64_t place) { at.tile[place * kLanes + lane] = kNothing; });
    }
    if (p.loss == Loss::kSoftmax) {
        sampled_kernels().lanes_high(at.tile, count, shift);
        kernels().exponentials(at.tile, count, shift, first);
    } else {
        if (p.loss == Loss::kBpr) std::copy(positives, positives + kLanes, shift);
        sampled_kernels().lanes_softplus(at.tile, count, shift, first, second);
    }
    std::fill(at.own, at.own + kLanes, 0.0f);
    std::fill(at.factor, at.factor + kLanes, 0.0f);
    for (int64_t lane = 0; lane < held; ++lane) {
        const int64_t row = top + lane;
        const bool active = kept[lane] > 0, is_wrong = bank.wrong | p.wrong(p.positives[row]);
        Row found{};
        if (active) {
            found = p.loss == Loss::kSoftmax
                        ? sampled::softmax_row(positives[lane], shift[lane], first[lane])
                    : p.loss == Loss::kBpr
                        ? sampled::bpr_row(first[lane], second[lane], kept[lane])
                        : sampled::bce_row(positives[lane], first[lane], p.beta);
        }
        p.write_loss(row, found.loss, active, is_wrong);
        if (!active || p.upstream == nullptr) continue;
        at.own[lane] = found.own * p.upstream[row];
        at.factor[lane] = found.others * p.upstream[row];
    }
    if (p.upstream == nullptr) return;
    for (int64_t lane = 0; lane < kLanes; ++lane) {
        for (int64_t d = 0; d < padded; ++d) {
            at.scaled[lane * padded + d] = at.rows[lane * padded + d] * at.factor[lane];
        }
    }
    if (p.d_queries == nullptr) return;
    std::fill(sums, sums + kLanes * padded, 0.0f);
    kernels().add_to_queries(at.tile, count, bank.table.get(), padded, padded, sums);
    for (int64_t lane = 0; lane < held; ++lane) {
        float* sum = sums + lane * padded;
        for (int64_t d = 0; d < padded; ++d) sum[d] *= at.factor[lane];
        if (kept[lane] > 0) {
            p.items.copy_row(p.positives[top + lane], item);
            for (int64_t d = 0; d < padded; ++d) sum[d] += at.own[lane] * item[d];
        }
        p.write_d_query(top + lane, sum);
    }
}

void shared_negatives(const Problem& p, int64_t workspace) {
    const Bank bank(p);
    const int64_t padded = p.queries.padded(), count = bank.count(), square = kLanes * padded;
    const int64_t panels = divide_up(p.queries.rows, kLanes);
    const int64_t each = 2 * square + kLanes * (count + 2);
    const int64_t size = std::min(std::max<int64_t>(workspace / each, 1), panels);
    Buffer<float> work(size * each);
    const bool d_items = p.d_items != nullptr, d_log_q = p.d_log_q != nullptr;
    Buffer<float> shares(d_items ? count * padded : 0), slopes(d_log_q ? count : 0);
    if (d_items) std::fill(shares.get(), shares + count * padded, 0.0f);
    if (d_log_q) std::fill(slopes.get(), slopes + count, 0.0f);
    // queries and weights of the positives lie together, so that a block is one scatter
    float *queries = work.get(), *own = queries + size * square, *scaled = own + size * kLanes;
    float *factors = scaled + size * square, *tiles = factors + size * kLanes;
    const auto at = [&](int64_t i) {
        return Panel{queries + i * square, scaled + i * square, tiles + i * kLanes * count,
                     own + i * kLanes, factors + i * kLanes};
    };
    for (int64_t first = 0; first < panels; first += size) {
        const int64_t held = std::min(size, panels - first);
        run_tasks(held, [&] { return Buffer<float>(2 * square + padded); },
                  [&](int64_t i, Buffer<float>& own_work) {
            shared_panel(p, bank, (first + i) * kLanes, at(i), own_work.get(), own_work + square,
                         own_work + 2 * square);
        });
        if (!p.scatters()) continue;
        run_tasks(divide_up(count, kChunk), [] { return 0; }, [&](int64_t task, int) {
            const int64_t begin = task * kChunk, some = std::min(kChunk, count - begin);
            for (int64_t i = 0; i < held; ++i) {
                const Panel panel = at(i);
                const float* tile = panel.tile + begin * kLanes;
                if (d_items) {
                    kernels().add_to_items(tile, some, panel.scaled, padded, shares + begin * padded,
                                           padded, false);
                }
                if (d_log_q) {
                    kernels().weighted_sums(tile, some, panel.factor, slopes + begin, false);
                }
            }
        });
        const int64_t top = first * kLanes, rows = std::min(held * kLanes, p.queries.rows - top);
        add_to_items(p, {top, rows, 1, queries, own});
    }
    for (int64_t n = 0; n < count; ++n) {
        const float one = 1.0f;
        if (d_items) {
            sampled_kernels().add_to_rows(shares + n * padded, &bank.ids[static_cast<size_t>(n)],
                                          &one, 1, p.items.width, p.d_items);
        }
        if (d_log_q) p.d_log_q[bank.ids[static_cast<size_t>(n)]] -= slopes[n];
    }
}

void sampled_loss(const Tensor& queries, const Tensor& items, const Tensor& positives,
                  const Tensor& negatives, const std::optional<Tensor>& log_q, std::string loss,
                  double temperature, double beta, bool drop_hits,
                  const std::optional<Tensor>& upstream, int64_t workspace, const Tensor& losses,
                  const Tensor& counts, const std::optional<Tensor>& d_queries,
                  const std::optional<Tensor>& d_items, const std::optional<Tensor>& d_log_q) {
    const bool shared = negatives.dim() == 1;
    const Problem p{Matrix(queries),
                    Matrix(items),
                    numbers<int64_t>(positives),
                    numbers<int64_t>(negatives),
                    shared ? 0 : negatives.stride(0),
                    negatives.stride(shared ? 0 : 1),
                    negatives.size(shared ? 0 : 1),
                    numbers<float>(log_q),
                    loss == "bce"   ? Loss::kBce
                    : loss == "bpr" ? Loss::kBpr
                                    : Loss::kSoftmax,
                    static_cast<float>(temperature),
                    static_cast<float>(beta),
                    drop_hits,
                    numbers<float>(upstream),
                    written<float>(losses),
                    written<float>(counts),
                    written<float>(d_queries),
                    written<float>(d_items),
                    written<float>(d_log_q)};
    if (p.queries.rows == 0) return;
    const int64_t floats = workspace / static_cast<int64_t>(sizeof(float));
    shared ? shared_negatives(p, floats) : own_negatives(p, floats);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(seqrec_native, CPU, m) {
    m.impl("sampled", TORCH_BOX(&sampled_loss));
}

}  // namespace seqrec::cpu
