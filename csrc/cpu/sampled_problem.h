// A call of the sampled losses as its CPU kernels take it, and what is owed to the rows of its items.

#pragma once

#include "../common/sampled.h"
#include "operands.h"
#include "sampled.h"

namespace seqrec::cpu::sampled_losses {

using sampled::Loss;

constexpr int64_t kHands = 64;
constexpr int64_t kFewSlots = 16, kAhead = 4;

struct Problem {
    Matrix queries, items;
    const int64_t *positives, *negatives;
    int64_t row_stride, column_stride, count;  // of negatives
    const float* log_q;
    Loss loss;
    float temperature, beta;
    bool drop_hits;
    const float* upstream;  // [M]; null: no gradient is wanted
    float *losses, *counts, *d_queries, *d_items, *d_log_q;

    bool inside(int64_t id) const { return id >= 0 && id < items.rows; }
    bool wrong(int64_t id) const { return id != -1 && !inside(id); }
    int64_t negative(int64_t row, int64_t n) const {
        return negatives[row * row_stride + n * column_stride];
    }
    float correction(int64_t id) const { return log_q != nullptr ? log_q[id] : 0.0f; }
    bool scatters() const { return d_items != nullptr || d_log_q != nullptr; }

    // Whether item rows can be read where they lie.
    bool ready() const {
        return items.type == ScalarType::Float && items.column_stride == 1 &&
               items.width == items.padded();
    }
    const float* item(int64_t id) const {
        return static_cast<const float*>(items.data) + id * items.row_stride;
    }

    // Begins to load the rows of `table` that the slots of a row ask for.  Where a row has few, its
    // own work is too short to hide the wait for them behind; where it has many this is left out.
    // (Always inline: to gcc a function that only prefetches has no effect, and its calls are dropped.)
    __attribute__((always_inline)) void fetch(int64_t row, const float* table, int64_t stride) const {
        if (count >= kFewSlots || row >= queries.rows) return;
        for (int64_t n = 0; n <= count; ++n) {
            const int64_t id = n < count ? negative(row, n) : positives[row];
            if (!inside(id)) continue;
            const float* at = table + id * stride;
            for (int64_t d = 0; d < items.width; d += 16) __builtin_prefetch(at + d);
        }
    }

    // A query over the temperature, padded.
    void read_query(int64_t row, float* out) const {
        queries.copy_row(row, out);
        if (temperature == 1.0f) return;
        for (int64_t d = 0; d < queries.width; ++d) out[d] /= temperature;
    }
    void write_d_query(int64_t row, const float* sum) const {
        float* out = d_queries + row * queries.width;
        for (int64_t d = 0; d < queries.width; ++d) out[d] = sum[d] / temperature;
    }

    // The loss of a row; 0 for one that does not count.
    void write_loss(int64_t row, float loss, bool active, bool is_wrong) const {
        losses[row] = is_wrong ? __builtin_nanf("") : active ? loss : 0.0f;
        counts[row] = active ? 1.0f : 0.0f;
    }
};

// What a block of rows leaves for the items: `weights` [rows, slots] by which `queries`
// [rows, padded] are added to the rows of the slots' ids.  The last slot of a row is its positive.
struct Block {
    int64_t top, rows, slots;
    const float *queries, *weights;
};

inline void add_to_items(const Problem& p, const Block& block) {
    const int64_t padded = p.queries.padded(), negatives = block.slots - 1;
    torch::stable::parallel_for(0, kHands, 1, [&](int64_t begin, int64_t end) {
        Buffer<int64_t> ids(block.slots);
        Buffer<float> weights(block.slots);
        for (int64_t i = 0; i < block.rows; ++i) {
            const float* all_weights = block.weights + i * block.slots;
            int64_t held = 0;
            const auto take = [&](int64_t id, float weight) {
                ids[held] = id;
                weights[held] = weight;
                const int64_t hand = id % kHands;  // negative where the id is
                held += p.inside(id) & (hand >= begin) & (hand < end);
            };
            for (int64_t n = 0; n < negatives; ++n) {
                take(p.negative(block.top + i, n), all_weights[n]);
            }
            take(p.positives[block.top + i], all_weights[negatives]);
            if (p.d_items != nullptr) {
                sampled_kernels().add_to_rows(block.queries + i * padded, ids.get(), weights.get(),
                                              held, p.items.width, p.d_items);
            }
            if (p.d_log_q == nullptr) continue;
            for (int64_t k = 0; k < held; ++k) p.d_log_q[ids[k]] -= weights[k];
        }
    });
}

}  // namespace seqrec::cpu::sampled_losses
