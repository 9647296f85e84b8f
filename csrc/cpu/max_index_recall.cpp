// The items that are largest in the column of the batch's largest mean: the queries are read once, and
// the column once.
//
// **Mean.**  Sums are float64, a chunk of rows at a time, chunks added in their order: the number of
// threads changes nothing.
//
// **Column.**  Its numbers are compared, kLanes at a time, with the n-th largest so far.  What is
// above goes to a list with room for 2n keys, which is cut to its best n when it is full: every item
// costs O(1) on average, whatever n is and in whatever order they come.  Parts of the column have lists of their
// own; which parts there are does not show in the n best of all.
//
// **Memory.**  Numbers of a row-major table lie in a cache line each; they are brought together 1024 at
// a time.  (Loads begun 16, 32 or 64 numbers ahead made no difference beyond the noise: the processor
// foresees a constant stride.)  Where the column is contiguous, as in a table that is held transposed,
// and float32 it is compared as it lies.

#include <torch/csrc/stable/library.h>

#include <cmath>
#include <functional>
#include <vector>

#include "../common/order_key.h"
#include "operands.h"

namespace seqrec::cpu {
namespace {

constexpr int64_t kRowsOfSum = 256;
constexpr int64_t kFew = 4;                  // rows that are added in one go
constexpr int64_t kPiece = 16 * kLanes;      // numbers brought together
constexpr int64_t kPart = int64_t{1} << 16;  // items of a task, at least

using Keys = std::vector<uint64_t>;

// The column of the largest mean, the lowest of those that tie; -1 where none is a number.
int64_t best_column(const Matrix& queries) {
    const int64_t chunks = divide_up(queries.rows, kRowsOfSum), padded = queries.padded();
    Buffer<double> sums(chunks * padded);
    run_tasks(chunks, [&] { return Buffer<float>(kFew * padded); },
              [&](int64_t chunk, Buffer<float>& scratch) {
        double* sum = sums + chunk * padded;
        std::fill(sum, sum + padded, 0.0);
        const int64_t end = std::min((chunk + 1) * kRowsOfSum, queries.rows);
        for (int64_t b = chunk * kRowsOfSum; b < end; b += kFew) {
            const int64_t held = std::min(kFew, end - b);
            int64_t stride;
            const float* few = queries.read(b, held, scratch.get(), stride);
            if (held == kFew) {
                const float *one = few, *two = one + stride, *three = two + stride;
                const float* four = three + stride;
                for (int64_t d = 0; d < padded; ++d) {
                    sum[d] += (double{one[d]} + double{two[d]}) + (double{three[d]} + double{four[d]});
                }
                continue;
            }
            for (int64_t i = 0; i < held; ++i) {
                for (int64_t d = 0; d < padded; ++d) sum[d] += double{few[i * stride + d]};
            }
        }
    });
    uint64_t best = 0;
    for (int64_t d = 0; d < queries.width; ++d) {
        double sum = 0.0;
        for (int64_t chunk = 0; chunk < chunks; ++chunk) sum += sums[chunk * padded + d];
        const auto mean = static_cast<float>(sum / static_cast<double>(queries.rows));
        best = std::max(best, key_or_none(mean, static_cast<uint64_t>(d)));
    }
    return best == 0 ? -1 : id_of(best);
}

// One column of a matrix.
struct Column {
    const char* data;
    ScalarType type;
    int64_t stride;

    Column(const Matrix& items, int64_t column) : type(items.type), stride(items.row_stride) {
        const int64_t size = type == ScalarType::Float ? 4 : 2;
        data = static_cast<const char*>(items.data) + column * items.column_stride * size;
    }

    // Numbers first .. first + count - 1: where they lie, or brought together in `scratch`.
    const float* read(int64_t first, int64_t count, float* scratch) const {
        if (type == ScalarType::Float) {
            const float* from = reinterpret_cast<const float*>(data) + first * stride;
            if (stride == 1) return from;
            for (int64_t i = 0; i < count; ++i) scratch[i] = from[i * stride];
            return scratch;
        }
        const uint16_t* from = reinterpret_cast<const uint16_t*>(data) + first * stride;
        uint16_t narrow[kPiece];
        if (stride != 1) {
            for (int64_t i = 0; i < count; ++i) narrow[i] = from[i * stride];
            from = narrow;
        }
        const auto widen = type == ScalarType::BFloat16 ? kernels().from_bfloat16
                                                        : kernels().from_float16;
        widen(from, count, scratch);
        return scratch;
    }
};

// The best n of what it is offered, ids ascending.
class Best {
  public:
    Best(int64_t n, int64_t most) : n_(static_cast<size_t>(n)) {
        keys_.reserve(static_cast<size_t>(std::min(2 * n, most)));
    }

    // Whether every number is worth offering, or only those above the threshold: one that ties with
    // it has n better ones before it.
    bool takes_all() const { return takes_all_; }
    float threshold() const { return threshold_; }

    void offer(float number, int64_t id) {
        if (takes_all_ ? number != number : !(number > threshold_)) return;
        keys_.push_back(order_key(number, static_cast<uint64_t>(id)));
        if (keys_.size() < 2 * n_) return;
        cut(keys_, n_);
        takes_all_ = false;
        threshold_ = score_of(keys_[n_ - 1]);
    }

    // Hands over the best n, in no order.
    Keys take() {
        cut(keys_, n_);
        return std::move(keys_);
    }

    // Leaves the best n, the last of them at the end.
    static void cut(Keys& keys, size_t n) {
        if (keys.size() <= n) return;
        const auto last = keys.begin() + static_cast<ptrdiff_t>(n - 1);
        std::nth_element(keys.begin(), last, keys.end(), std::greater<uint64_t>());
        keys.resize(n);
    }

  private:
    size_t n_;
    Keys keys_;
    float threshold_ = -__builtin_inff();
    bool takes_all_ = true;
};

void select(const Column& column, int64_t begin, int64_t end, Best& best) {
    Buffer<float> scratch(kPiece);
    float level[kLanes];
    uint64_t hits[kPiece / kLanes];
    for (int64_t first = begin; first < end; first += kPiece) {
        const int64_t count = std::min(kPiece, end - first);
        const float* numbers = column.read(first, count, scratch.get());
        int64_t begun = 0;
        for (; begun < count && best.takes_all(); ++begun) best.offer(numbers[begun], first + begun);
        const int64_t rows = (count - begun) / kLanes;
        std::fill(level, level + kLanes, best.threshold());
        if (kernels().above(numbers + begun, rows, level, hits)) {
            for (int64_t row = 0; row < rows; ++row) {
                for (uint64_t left = hits[row]; left != 0; left &= left - 1) {
                    const int64_t at = begun + row * kLanes + __builtin_ctzll(left);
                    best.offer(numbers[at], first + at);
                }
            }
        }
        for (int64_t at = begun + rows * kLanes; at < count; ++at) best.offer(numbers[at], first + at);
    }
}

void max_index_recall(const Tensor& queries, const Tensor& items, int64_t first_item,
                      const Tensor& found) {
    const Matrix table(items);
    const int64_t n = found.size(0), rows = table.rows;
    int64_t* out = written<int64_t>(found);
    const int64_t chosen = best_column(Matrix(queries));
    Keys all;
    if (chosen >= 0) {
        const Column column(table, chosen);
        const int64_t threads = torch::stable::get_num_threads();
        const int64_t parts = std::min(threads == 1 ? 1 : 4 * threads, divide_up(rows, kPart));
        std::vector<Keys> lists(static_cast<size_t>(parts));
        run_tasks(parts, [] { return 0; }, [&](int64_t part, int) {
            const int64_t begin = rows * part / parts, end = rows * (part + 1) / parts;
            Best best(n, end - begin);
            select(column, begin, end, best);
            lists[static_cast<size_t>(part)] = best.take();
        });
        all = std::move(lists[0]);
        for (size_t part = 1; part < lists.size(); ++part) {
            all.insert(all.end(), lists[part].begin(), lists[part].end());
            Keys().swap(lists[part]);
        }
        Best::cut(all, static_cast<size_t>(n));
        std::sort(all.begin(), all.end(), std::greater<uint64_t>());
    }
    for (int64_t i = 0; i < n; ++i) {
        const bool any = i < static_cast<int64_t>(all.size());
        out[i] = any ? first_item + id_of(all[static_cast<size_t>(i)]) : -1;
    }
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(seqrec_native, CPU, m) {
    m.impl("max_index_recall", TORCH_BOX(&max_index_recall));
}

}  // namespace seqrec::cpu
