// csrc/common/max_index_recall.h and rerank_rows.h as a GPU's blocks run them, for the thread sanitizer
// (test_cuda_rerank_negatives.py).  Prints "right" where the results are.

#include <algorithm>
#include <cstdio>
#include <random>
#include <set>

#include "../../csrc/common/max_index_recall.h"
#include "../../csrc/common/rerank_rows.h"
#include "threads_block.h"

using namespace seqrec;

namespace {

std::vector<float> whole(size_t count, unsigned seed) {
    std::mt19937 draw(seed);
    std::vector<float> made(count);
    for (float& x : made) x = static_cast<float>(draw() % 9);
    return made;
}

bool recalls() {
    constexpr int64_t kBatch = recall::kRows + 40, kItems = recall::kPart + 900, kWidth = 33;
    constexpr uint32_t kWanted = 20;
    const auto queries = whole(kBatch * kWidth, 1), items = whole(kItems * kWidth, 2);
    std::vector<double> sums(2 * kWidth);
    int64_t column = -7;
    const recall::SumColumns<float> add{{queries.data(), kBatch, kWidth, kWidth, 1}, sums.data()};
    launch(add, 2, 2);
    launch(recall::BestColumn{sums.data(), 2, kWidth, kBatch, &column}, 1);
    std::vector<double> means(kWidth);
    for (int64_t i = 0; i < kBatch * kWidth; ++i) means[i % kWidth] += queries[i];
    if (column != std::max_element(means.begin(), means.end()) - means.begin()) return false;

    std::vector<int64_t> keys(2 * kWanted), fewer(kWanted), found(kWanted);
    std::vector<float> best(kWanted);
    const recall::ColumnParts<float> parts{
        {{items.data(), kItems, kWidth, kWidth, 1}, &column}, 0, keys.data(), kWanted};
    launch(parts, 2);
    launch(select::KeyParts{keys.data(), 2 * kWanted, 2 * kWanted, fewer.data(), kWanted}, 1);
    launch(select::KeyProblem{fewer.data(), 1, kWanted, 0, best.data(), found.data(), kWanted}, 1);
    std::vector<int64_t> wanted(kItems);
    for (int64_t i = 0; i < kItems; ++i) wanted[i] = i;
    std::stable_sort(wanted.begin(), wanted.end(), [&](int64_t a, int64_t b) {
        return items[a * kWidth + column] > items[b * kWidth + column];
    });
    wanted.resize(kWanted);
    return found == wanted;
}

bool reranks(bool drop) {
    constexpr int64_t kRows = 3, kOwn = 40, kShared = 37, kItems = 60, kWidth = 20;
    const auto queries = whole(kRows * kWidth, 3), items = whole(kItems * kWidth, 4);
    std::mt19937 draw(5);
    std::vector<int64_t> own(kRows * kOwn), shared(kShared), met{3, 4, 5, 3, 9, 10};
    const std::vector<int64_t> offsets{0, 4, 4, 6};
    for (int64_t& id : own) id = static_cast<int64_t>(draw() % (kItems + 1)) - 1;
    for (int64_t& id : shared) id = draw() % kItems;
    const int64_t top_m = 15, seed = 8;
    std::vector<uint32_t> numbers(kRows * (kOwn + kShared));
    std::vector<int64_t> found(kRows, -7);
    rerank::Candidates c{};
    c.shared = shared.data();
    c.shares = kShared;
    c.shared_stride = 1;
    c.own = own.data();
    c.owned = kOwn;
    c.row_stride = kOwn;
    c.column_stride = 1;
    c.forbidden = {offsets.data(), met.data(), nullptr, kRows, 6};
    c.top_m = &top_m;
    c.seed = &seed;
    c.items = kItems;
    c.drop = drop;
    const rerank::RerankRows<float, 4> program{
        c, 0, queries.data(), kWidth, {Layout<4>(kWidth), items.data(), kWidth},
        numbers.data(), found.data()};
    launch(program, kRows);

    for (int64_t row = 0; row < kRows; ++row) {
        std::vector<std::pair<float, int64_t>> slots;  // minus the score, id
        std::set<int64_t> gone(met.begin() + offsets[row], met.begin() + offsets[row + 1]);
        for (int64_t slot = 0; slot < kShared + kOwn; ++slot) {
            const int64_t id = slot < kShared ? shared[slot] : own[row * kOwn + slot - kShared];
            if (id < 0 || gone.count(id) != 0) continue;
            float score = 0;
            for (int64_t d = 0; d < kWidth; ++d) {
                score += queries[row * kWidth + d] * items[id * kWidth + d];
            }
            slots.emplace_back(-score, id);
            if (drop) gone.insert(id);
        }
        std::sort(slots.begin(), slots.end());
        const uint32_t kept = c.kept(static_cast<uint32_t>(slots.size()));
        if (found[row] != slots[c.drawn(row, kept)].second) return false;
    }
    return true;
}

}  // namespace

int main() {
    const bool all = recalls() && reranks(true) && reranks(false);
    std::puts(all ? "right" : "wrong");
    return all ? 0 : 1;
}
