// What the library was built for and with, so that Python can tell whether it serves a chip.

#include <torch/csrc/stable/library.h>

#include <string>

namespace {

std::string cuda_build() { return SEQREC_CUDA; }

}  // namespace

// No tensor says which device is meant.
STABLE_TORCH_LIBRARY_IMPL(seqrec_native, CompositeExplicitAutograd, m) {
    m.impl("cuda_build", TORCH_BOX(&cuda_build));
}
