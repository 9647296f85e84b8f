// csrc/common/select.h as a GPU's block runs it, for the thread sanitizer (test_selection.py).  Prints
// "right" where the results are.

#include <algorithm>
#include <cstdio>
#include <random>

#include "../../csrc/common/select.h"
#include "threads_block.h"

using namespace seqrec;
using namespace seqrec::select;

namespace {

bool right(int64_t n, int64_t part, uint32_t k, bool adverse) {
    std::mt19937 draw(static_cast<unsigned>(n + k));
    std::vector<float> scores(static_cast<size_t>(n)), bias(scores.size(), 0.5f);
    for (size_t i = 0; i < scores.size(); ++i) {
        scores[i] = static_cast<float>(draw() % 1000);
        if (adverse && i % kThreads < 200) scores[i] += 1e5f;  // most hide behind a thread's first
    }
    const std::vector<int64_t> offsets{0, 3}, seen{n - 1, 0, 0};
    std::vector<int64_t> found(k);
    std::vector<float> best(k);
    ScoreProblem first{};
    first.scores = scores.data();
    first.bias = bias.data();
    first.rows = 1;
    first.width = first.stride = n;
    first.part = part;
    first.seen = {offsets.data(), seen.data(), nullptr, 1, 3, 0, n};
    first.k = static_cast<uint32_t>(std::min<int64_t>(k, part));
    std::vector<int64_t> keys(static_cast<size_t>(first.parts() * first.k));
    first.keys = keys.data();
    first.keys_stride = static_cast<int64_t>(keys.size());
    launch(first, 1, first.parts());
    launch(KeyProblem{keys.data(), 1, first.keys_stride, 0, best.data(), found.data(), k}, 1);

    std::vector<int64_t> wanted;
    for (int64_t i = 1; i < n - 1; ++i) wanted.push_back(i);
    std::stable_sort(wanted.begin(), wanted.end(), [&](int64_t a, int64_t b) {
        return scores[static_cast<size_t>(a)] > scores[static_cast<size_t>(b)];
    });
    wanted.resize(k, -1);
    return wanted == found;
}

}  // namespace

int main() {
    // by way of the floor, of the digits, and of memory that is not shared
    const bool all = right(3000, 2048, 20, false) && right(9000, 9000, 250, true) &&
                     right(2600, 2600, 1100, false) && right(40, 16, 30, false);
    std::puts(all ? "right" : "wrong");
    return all ? 0 : 1;
}
