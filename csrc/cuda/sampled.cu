// The sampled losses on the GPU: common/sampled_rows.h and, for what items are owed,
// common/ordered_sums.h.

#include <torch/csrc/stable/library.h>

#include "../common/sampled_operands.h"
#include "block.h"

STABLE_TORCH_LIBRARY_IMPL(seqrec_native, CUDA, m) {
    using Device = seqrec::cuda::Device;
    m.impl("sampled_rows", TORCH_BOX(&seqrec::sampled::rows<Device>));
    m.impl("sort_slots", TORCH_BOX(&seqrec::sums::sort_slots<Device>));
    m.impl("add_sorted", TORCH_BOX(&seqrec::sums::add_sorted<Device>));
}
