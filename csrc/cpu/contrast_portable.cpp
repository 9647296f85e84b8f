// The contrastive losses' kernels for every processor.

#include "../common/philox.h"
#include "contrast_kernels.h"
#include "float16.h"

namespace seqrec::cpu {
namespace portable {

#include "vec_portable.h"

#include "contrast_body.h"

}  // namespace portable

extern const ContrastKernels kContrastPortable;  // external, where a constant would be internal
const ContrastKernels kContrastPortable = portable::contrast_kernels_named("portable");

}  // namespace seqrec::cpu
