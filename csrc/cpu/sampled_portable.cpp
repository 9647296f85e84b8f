// The sampled losses' kernels for every processor.

#include "float16.h"
#include "kernels.h"
#include "sampled.h"

namespace seqrec::cpu {
namespace sampled_portable {

#include "vec_portable.h"

#include "sampled_body.h"

}  // namespace sampled_portable

extern const SampledKernels kSampledPortable;
const SampledKernels kSampledPortable = {
    "portable",
    sampled_portable::dots,
    sampled_portable::weighted_rows,
    sampled_portable::add_to_rows,
    sampled_portable::exponentials,
    sampled_portable::softplus,
    sampled_portable::lanes_high,
    sampled_portable::lanes_softplus,
};

}  // namespace seqrec::cpu
