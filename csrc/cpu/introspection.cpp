// What doctor and the tests ask: which versions of the kernels run here, and forcing one.

#include <torch/csrc/stable/library.h>

#include <string>

#include "kernels.h"

namespace {

bool force_kernels(std::string name) { return seqrec::cpu::force_kernels(name.c_str()); }
std::string available_kernels() { return seqrec::cpu::available_kernels(); }

}  // namespace

// No tensor says which device is meant, so these run on any.
STABLE_TORCH_LIBRARY_IMPL(seqrec_native, CompositeExplicitAutograd, m) {
    m.impl("force_kernels", TORCH_BOX(&force_kernels));
    m.impl("available_kernels", TORCH_BOX(&available_kernels));
}
