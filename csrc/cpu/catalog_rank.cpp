// Exact ranks by counting: each tile of scores is compared with the targets' scores while it lies in
// cache.
//
//     greater = candidates above the target's score,   at_least = candidates not below it
//
// A seen item that is left out scores NaN, which no comparison counts; one with a given score has
// that score.  The target's own score is the same chain of operations as its competitors', so its own
// place counts in `at_least` exactly once, unless it is left out as seen, and is taken off again.

#include <torch/csrc/stable/library.h>

#include "ranking.h"

namespace seqrec::cpu {
namespace {

struct Counts {
    std::vector<int32_t> greater, at_least;  // [slots, kLanes]
};

template <typename Arithmetic>
void rank_by(const Tensor& queries, const Tensor& items, const Tensor& targets,
             const std::optional<Tensor>& bias, int64_t first_item,
             const std::optional<Tensor>& seen_offsets, const std::optional<Tensor>& seen_ids,
             const std::optional<Tensor>& seen_rows, std::optional<double> seen_score,
             const Tensor& greater, const Tensor& equal) {
    const Sweep<Arithmetic> sweep(queries, items, bias);
    const int64_t slots = targets.size(1), last_item = first_item + sweep.items.rows;
    const SeenRows seen(seen_offsets, seen_ids, seen_rows, first_item, last_item);
    const int64_t* wanted = numbers<int64_t>(targets);
    const bool replaced = seen_score.has_value();
    const float given = replaced ? static_cast<float>(*seen_score) : NAN;

    // the targets' scores, by panel, slot and lane; rows without a target are never read again
    Buffer<float> levels(sweep.panels * slots * kLanes);
    Buffer<int8_t> counts_itself(sweep.batch * slots);
    std::fill(levels.get(), levels + sweep.panels * slots * kLanes, NAN);
    const auto level = [&](int64_t b, int64_t slot) -> float& {
        return levels[(b / kLanes * slots + slot) * kLanes + b % kLanes];
    };
    using Numbers = Buffer<typename Arithmetic::Number>;
    run_tasks(sweep.batch, [&] { return Numbers(sweep.padded); },
              [&](int64_t b, Numbers& scratch) {
        const bool wrong = seen.wrong(b);
        for (int64_t slot = 0; slot < slots; ++slot) {
            const int64_t place = b * slots + slot, target = wanted[place];
            counts_itself[place] = -1;  // no rank
            if (wrong || target < first_item || target >= last_item) continue;
            const bool is_seen = seen.holds(b, target);
            counts_itself[place] = replaced || !is_seen;
            level(b, slot) = replaced && is_seen
                                 ? given
                                 : sweep.score(b, target - first_item, scratch.get());
        }
    });

    const int64_t size = slots * kLanes;
    Buffer<int32_t> found(sweep.chunks * sweep.panels * 2 * size);
    sweep.template run<Counts>(
        seen, given,
        [&](int64_t, int64_t, Counts& own) {
            own.greater.assign(static_cast<size_t>(size), 0);
            own.at_least.assign(static_cast<size_t>(size), 0);
        },
        [&](int64_t, int64_t panel, int64_t, int64_t count, const float* scores, Counts& own) {
            for (int64_t slot = 0; slot < slots; ++slot) {
                kernels().count(scores, count, levels + panel * size + slot * kLanes,
                                own.greater.data() + slot * kLanes,
                                own.at_least.data() + slot * kLanes);
            }
        },
        [&](int64_t chunk, int64_t panel, const Counts& own) {
            int32_t* out = found + (chunk * sweep.panels + panel) * 2 * size;
            std::copy(own.greater.begin(), own.greater.end(), out);
            std::copy(own.at_least.begin(), own.at_least.end(), out + size);
        });

    int64_t* above = written<int64_t>(greater);
    int64_t* level_with = written<int64_t>(equal);
    for (int64_t b = 0; b < sweep.batch; ++b) {
        for (int64_t slot = 0; slot < slots; ++slot) {
            const int64_t place = b * slots + slot;
            const int8_t itself = counts_itself[place];
            above[place] = level_with[place] = -1;
            if (itself < 0) continue;
            if (std::isnan(level(b, slot))) {
                // last: behind all its candidates, in a tie with none
                const int64_t left_out = seen.given() && !replaced ? seen.distinct(b) : 0;
                above[place] = sweep.items.rows - left_out - itself;
                level_with[place] = 0;
                continue;
            }
            int64_t more = 0, not_less = 0;
            for (int64_t chunk = 0; chunk < sweep.chunks; ++chunk) {
                const int32_t* part = found + (chunk * sweep.panels + b / kLanes) * 2 * size;
                more += part[slot * kLanes + b % kLanes];
                not_less += part[size + slot * kLanes + b % kLanes];
            }
            above[place] = more;
            level_with[place] = not_less - more - itself;
        }
    }
}

void rank(const Tensor& queries, const Tensor& items, const Tensor& targets,
          const std::optional<Tensor>& bias, int64_t first_item,
          const std::optional<Tensor>& seen_offsets, const std::optional<Tensor>& seen_ids,
          const std::optional<Tensor>& seen_rows, std::optional<double> seen_score,
          const Tensor& greater, const Tensor& equal) {
    const auto run = BFloat16::runs(Matrix(queries)) ? rank_by<BFloat16> : rank_by<Float32>;
    run(queries, items, targets, bias, first_item, seen_offsets, seen_ids, seen_rows, seen_score,
        greater, equal);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(seqrec_native, CPU, m) { m.impl("rank", TORCH_BOX(&rank)); }

}  // namespace seqrec::cpu
