// csrc/common/sampled_rows.h and ordered_sums.h as a GPU's blocks run them, for the thread sanitizer
// (test_cuda_sampled.py).  Prints "right" where the results are.

#include <algorithm>
#include <cstdio>
#include <numeric>
#include <random>

#include "../../csrc/common/ordered_sums.h"
#include "../../csrc/common/sampled_rows.h"
#include "threads_block.h"

using namespace seqrec;

namespace {

using Keys = std::vector<uint32_t>;

// Sorted keys and their places, in two rounds.
std::pair<Keys, Keys> sorted(const Keys& keys) {
    const auto slots = static_cast<int64_t>(keys.size());
    const int64_t parts = divided_up(slots, sums::kPart);
    Keys key[2] = {keys, Keys(keys.size())}, place[2] = {Keys(keys.size()), Keys(keys.size())};
    Keys counts(static_cast<size_t>(sums::kDigits * parts)), totals(sums::kDigits);
    for (int round = 0; round < 2; ++round) {
        const int from = round, to = 1 - round, shift = 8 * round;
        launch(sums::CountDigits{key[from].data(), slots, parts, shift, counts.data()}, parts);
        launch(sums::ScanDigits{parts, counts.data(), totals.data()}, sums::kDigits);
        launch(sums::MoveDigits{key[from].data(), round == 0 ? nullptr : place[from].data(), slots,
                                parts, shift, counts.data(), totals.data(), key[to].data(),
                                place[to].data()},
               parts);
    }
    return {key[0], place[0]};
}

bool sorts_and_adds() {
    std::mt19937 draw(1);
    constexpr uint32_t kItems = 300;
    constexpr int kWidth = 12;
    Keys keys(sums::kPart + 700);
    // many runs, a few long ones, some empty slots
    for (uint32_t& key : keys) key = draw() % 3 ? draw() % (kItems + 1) : draw() % 2;
    const auto [key, place] = sorted(keys);
    Keys wanted(keys.size());
    std::iota(wanted.begin(), wanted.end(), 0u);
    std::stable_sort(wanted.begin(), wanted.end(),
                     [&](uint32_t a, uint32_t b) { return keys[a] < keys[b]; });
    if (place != wanted) return false;

    const auto slots = static_cast<int64_t>(keys.size());
    std::vector<float> rows(keys.size() * kWidth), into(kItems * kWidth, 1.0f), right = into;
    for (float& x : rows) x = static_cast<float>(draw() % 7);
    for (size_t i = 0; i < keys.size(); ++i) {
        if (keys[i] == kItems) continue;
        for (size_t d = 0; d < kWidth; ++d) right[keys[i] * kWidth + d] += rows[i * kWidth + d];
    }
    std::vector<float> heads(static_cast<size_t>(divided_up(slots, sums::kTile) * kWidth));
    const sums::Runs runs{key.data(), slots, kItems, 1.0f, heads.data(), into.data()};
    const Layout<4> layout(kWidth);
    const sums::AddRuns<float, 4> add{runs, layout, place.data(), nullptr, rows.data(), kWidth, 1};
    launch(add, add.blocks(), layout.strips());
    const sums::AddHeads<4> rest{runs, layout};
    launch(rest, rest.blocks(), layout.strips());
    return into == right;
}

bool loses() {
    std::mt19937 draw(2);
    constexpr int kRows = 10, kCount = 40, kItems = 50, kWidth = 20;
    std::vector<float> queries(kRows * kWidth), items(kItems * kWidth), upstream(kRows, 1.0f);
    for (float& x : queries) x = static_cast<float>(draw() % 100) / 100 - 0.5f;
    for (float& x : items) x = static_cast<float>(draw() % 100) / 100 - 0.5f;
    std::vector<int64_t> positives(kRows), negatives(kRows * kCount);
    for (int64_t& id : positives) id = draw() % kItems;
    for (int64_t& id : negatives) id = static_cast<int64_t>(draw() % (kItems + 1)) - 1;
    std::vector<float> losses(kRows), counts(kRows), d_queries(queries.size());
    std::vector<float> weights(kRows * (kCount + 1));
    Keys keys(weights.size());
    sampled::Call call{};
    call.rows = kRows;
    call.items = kItems;
    call.positives = positives.data();
    call.negatives = negatives.data();
    call.row_stride = kCount;
    call.column_stride = 1;
    call.count = kCount;
    call.loss = sampled::Loss::kBpr;
    call.temperature = call.beta = 1.0f;
    call.upstream = upstream.data();
    call.losses = losses.data();
    call.counts = counts.data();
    call.d_queries = d_queries.data();
    call.weights = weights.data();
    call.weights_stride = kCount + 1;
    call.keys = keys.data();
    const sampled::Rows<float, 4> program{
        call, queries.data(), kWidth, {Layout<4>(kWidth), items.data(), kWidth}};
    launch(program, program.blocks());

    const auto product = [&](int row, int64_t id) {
        double sum = 0;
        for (int d = 0; d < kWidth; ++d) sum += queries[row * kWidth + d] * items[id * kWidth + d];
        return sum;
    };
    for (int row = 0; row < kRows; ++row) {
        const double a = product(row, positives[row]);
        double sum = 0, kept = 0;
        for (int n = 0; n < kCount; ++n) {
            const int64_t id = negatives[row * kCount + n];
            const uint32_t key = keys[row * (kCount + 1) + n];
            if (key != (id < 0 ? kItems : static_cast<uint32_t>(id))) return false;
            if (id < 0) continue;
            sum += std::log1p(std::exp(product(row, id) - a));
            ++kept;
        }
        if (!(std::abs(losses[row] - sum / kept) < 1e-5)) return false;
        // the weights of the negatives are the slope of the positive
        const float* own = weights.data() + row * (kCount + 1);
        if (!(std::abs(std::accumulate(own, own + kCount + 1, 0.0)) < 1e-5)) return false;
    }
    return true;
}

}  // namespace

int main() {
    const bool all = sorts_and_adds() && loses();
    std::puts(all ? "right" : "wrong");
    return all ? 0 : 1;
}
