// Exact top-K selection on the GPU: common/select.h, a thread block for each part of a row of scores,
// and one for each row of what these have found.

#include <torch/csrc/stable/library.h>

#include "../common/select_operands.h"
#include "block.h"

STABLE_TORCH_LIBRARY_IMPL(seqrec_native, CUDA, m) {
    m.impl("select_scores", TORCH_BOX(&seqrec::select::select_scores<seqrec::cuda::Device>));
    m.impl("select_keys", TORCH_BOX(&seqrec::select::select_keys<seqrec::cuda::Device>));
}
