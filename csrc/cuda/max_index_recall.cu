// The largest of one column on the GPU: common/max_index_recall.h.

#include <torch/csrc/stable/library.h>

#include "../common/max_index_recall_operands.h"
#include "block.h"

STABLE_TORCH_LIBRARY_IMPL(seqrec_native, CUDA, m) {
    using Device = seqrec::cuda::Device;
    m.impl("best_column", TORCH_BOX(&seqrec::recall::best_column<Device>));
    m.impl("column_keys", TORCH_BOX(&seqrec::recall::column_keys<Device>));
    m.impl("column_numbers", TORCH_BOX(&seqrec::recall::column_numbers<Device>));
    m.impl("best_keys", TORCH_BOX(&seqrec::recall::best_keys<Device>));
}
