// The GPU's programs on the CPU, for tests (emulated_block.h).  What runs on a CPU is in the files
// named after the operators.

#include <torch/csrc/stable/library.h>

#include "../common/max_index_recall_operands.h"
#include "../common/rerank_negatives_operands.h"
#include "../common/sampled_operands.h"
#include "../common/select_operands.h"
#include "emulated_block.h"

STABLE_TORCH_LIBRARY_IMPL(seqrec_native, CPU, m) {
    using Device = seqrec::cpu::EmulatedDevice;
    m.impl("select_scores", TORCH_BOX(&seqrec::select::select_scores<Device>));
    m.impl("select_keys", TORCH_BOX(&seqrec::select::select_keys<Device>));
    m.impl("best_column", TORCH_BOX(&seqrec::recall::best_column<Device>));
    m.impl("column_keys", TORCH_BOX(&seqrec::recall::column_keys<Device>));
    m.impl("column_numbers", TORCH_BOX(&seqrec::recall::column_numbers<Device>));
    m.impl("best_keys", TORCH_BOX(&seqrec::recall::best_keys<Device>));
    m.impl("rerank_rows", TORCH_BOX(&seqrec::rerank::rows<Device>));
    m.impl("sampled_rows", TORCH_BOX(&seqrec::sampled::rows<Device>));
    m.impl("sort_slots", TORCH_BOX(&seqrec::sums::sort_slots<Device>));
    m.impl("add_sorted", TORCH_BOX(&seqrec::sums::add_sorted<Device>));
}
