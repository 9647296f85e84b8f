// csrc/common/select.h as a GPU's block runs it, with a thread of the operating system for each of the
// block's: compiled by test_selection.py with -fsanitize=thread, which reports every access that no
// barrier orders.  Prints "right" where the results are.

#include <pthread.h>

#include <algorithm>
#include <cstdio>
#include <random>
#include <thread>
#include <vector>

#include "../../csrc/common/select.h"

using namespace seqrec;
using namespace seqrec::select;

namespace {

pthread_barrier_t barrier;

struct Block {
    int t;

    template <typename Phase>
    void each(const Phase& phase) {
        phase(t);
        pthread_barrier_wait(&barrier);
    }
    template <typename T>
    T read(const T* p) {
        const T value = *p;
        pthread_barrier_wait(&barrier);
        return value;
    }
    uint32_t add(uint32_t* p) { return __atomic_fetch_add(p, 1u, __ATOMIC_RELAXED); }
    void mark(uint32_t* p, uint32_t bits) { __atomic_fetch_or(p, bits, __ATOMIC_RELAXED); }
};

// Blocks one after the other: a row's parts, then the row.
void run(const ScoreProblem& scores, const KeyProblem& keys) {
    static Shared shared;
    std::vector<std::thread> threads;
    for (int t = 0; t < kThreads; ++t) {
        threads.emplace_back([&, t] {
            Block block{t};
            for (int64_t part = 0; part < scores.parts(); ++part) {
                scores.run(block, shared, 0, part);
                pthread_barrier_wait(&barrier);  // another block has another shared memory
            }
            keys.run(block, shared, 0);
        });
    }
    for (std::thread& thread : threads) thread.join();
}

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
    run(first, {keys.data(), 1, first.keys_stride, 0, best.data(), found.data(), k});

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
    pthread_barrier_init(&barrier, nullptr, kThreads);
    // by way of the floor, of the digits, and of memory that is not shared
    const bool all = right(3000, 2048, 20, false) && right(9000, 9000, 250, true) &&
                     right(2600, 2600, 1100, false) && right(40, 16, 30, false);
    std::puts(all ? "right" : "wrong");
    return all ? 0 : 1;
}
