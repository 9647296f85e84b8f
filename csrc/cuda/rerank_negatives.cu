// Re-ranking on the GPU: common/rerank_rows.h.

#include <torch/csrc/stable/library.h>

#include "../common/rerank_negatives_operands.h"
#include "block.h"

STABLE_TORCH_LIBRARY_IMPL(seqrec_native, CUDA, m) {
    m.impl("rerank_rows", TORCH_BOX(&seqrec::rerank::rows<seqrec::cuda::Device>));
}
