// The GPU's selection on the CPU: common/select.h, one thread playing all of a block's.
//
// What runs on a CPU is catalog_topk.cpp.  This is how the program that a GPU runs is tested without
// one, so it is unkind: shared memory starts as noise, and the threads of each phase come in another
// order, so that a result which depends on the order shows.

#include <torch/csrc/stable/library.h>

#include "../common/select_operands.h"
#include "operands.h"

namespace seqrec::cpu {
namespace {

using select::KeyProblem;
using select::kThreads;
using select::ScoreProblem;
using select::Shared;

struct Block {
    uint32_t turn = 0;

    template <typename Phase>
    void each(const Phase& phase) {
        const uint32_t mask = (++turn * 0x9e3779b9u >> 16) % kThreads;
        for (uint32_t t = 0; t < kThreads; ++t) phase(static_cast<int>(t ^ mask));
    }
    template <typename T>
    T read(const T* p) {
        return *p;
    }
    uint32_t add(uint32_t* p) { return (*p)++; }
    void mark(uint32_t* p, uint32_t bits) { *p |= bits; }
};

// Calls task(i, block, shared) for each of `count` blocks.
template <typename Task>
void run_blocks(int64_t count, const Task& task) {
    const auto noise = [] {
        auto shared = std::make_unique<Shared>();
        std::memset(static_cast<void*>(shared.get()), 0xa5, sizeof(Shared));
        return shared;
    };
    run_tasks(count, noise, [&](int64_t i, std::unique_ptr<Shared>& shared) {
        Block block;
        task(i, block, *shared);
    });
}

void select_scores(const Tensor& scores, const std::optional<Tensor>& bias, int64_t first,
                   int64_t part, int64_t k, int64_t first_item, int64_t items,
                   const std::optional<Tensor>& seen_offsets, const std::optional<Tensor>& seen_ids,
                   const std::optional<Tensor>& seen_rows, const Tensor& keys) {
    const ScoreProblem problem = select::score_problem(
        scores, bias, first, part, k, first_item, items, seen_offsets, seen_ids, seen_rows, keys);
    const int64_t parts = problem.parts();
    run_blocks(problem.rows * parts, [&](int64_t i, Block& block, Shared& shared) {
        problem.run(block, shared, i / parts, i % parts);
    });
}

void select_keys(const Tensor& keys, int64_t first_item, const Tensor& scores, const Tensor& ids) {
    const KeyProblem problem = select::key_problem(keys, first_item, scores, ids);
    run_blocks(problem.rows, [&](int64_t row, Block& block, Shared& shared) {
        problem.run(block, shared, row);
    });
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(seqrec_native, CPU, m) {
    m.impl("select_scores", TORCH_BOX(&select_scores));
    m.impl("select_keys", TORCH_BOX(&select_keys));
}

}  // namespace seqrec::cpu
