// Exact top-K selection on the GPU: common/select.h, a thread block for each part of a row of scores,
// and one for each row of what these have found.

#include <cuda_runtime.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/macros.h>

#include "../common/select_operands.h"
#include "block.h"

namespace seqrec::cuda {
namespace {

using select::KeyProblem;
using select::kThreads;
using select::ScoreProblem;
using torch::stable::Tensor;

__global__ void __launch_bounds__(kThreads) select_scores_kernel(const ScoreProblem problem) {
    __shared__ select::Shared shared;
    Block block;
    problem.run(block, shared, blockIdx.x, blockIdx.y);
}

__global__ void __launch_bounds__(kThreads) select_keys_kernel(const KeyProblem problem) {
    __shared__ select::Shared shared;
    Block block;
    problem.run(block, shared, blockIdx.x);
}

cudaStream_t stream_of(const Tensor& t) {
    void* stream = nullptr;
    STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(t.get_device(), &stream));
    return static_cast<cudaStream_t>(stream);
}

void select_scores(const Tensor& scores, const std::optional<Tensor>& bias, int64_t first,
                   int64_t part, int64_t k, int64_t first_item, int64_t items,
                   const std::optional<Tensor>& seen_offsets, const std::optional<Tensor>& seen_ids,
                   const std::optional<Tensor>& seen_rows, const Tensor& keys) {
    const ScoreProblem problem = select::score_problem(
        scores, bias, first, part, k, first_item, items, seen_offsets, seen_ids, seen_rows, keys);
    if (problem.rows == 0 || problem.width == 0) return;
    const torch::stable::accelerator::DeviceGuard guard(scores.get_device());
    const dim3 grid(static_cast<unsigned>(problem.rows), static_cast<unsigned>(problem.parts()));
    select_scores_kernel<<<grid, kThreads, 0, stream_of(scores)>>>(problem);
    STD_CUDA_KERNEL_LAUNCH_CHECK();
}

void select_keys(const Tensor& keys, int64_t first_item, const Tensor& scores, const Tensor& ids) {
    const KeyProblem problem = select::key_problem(keys, first_item, scores, ids);
    if (problem.rows == 0) return;
    const torch::stable::accelerator::DeviceGuard guard(keys.get_device());
    const auto rows = static_cast<unsigned>(problem.rows);
    select_keys_kernel<<<rows, kThreads, 0, stream_of(keys)>>>(problem);
    STD_CUDA_KERNEL_LAUNCH_CHECK();
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(seqrec_native, CUDA, m) {
    m.impl("select_scores", TORCH_BOX(&select_scores));
    m.impl("select_keys", TORCH_BOX(&select_keys));
}

}  // namespace seqrec::cuda
