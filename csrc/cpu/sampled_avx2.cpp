// The sampled losses' kernels with AVX2.

#include "kernels.h"
#include "sampled.h"

#if defined(__x86_64__)

#include <immintrin.h>

#include "float16.h"
#include "target.h"

SEQREC_BEGIN_TARGET("avx2,fma,f16c")

namespace seqrec::cpu {
namespace sampled_avx2 {

#include "vec_avx2.h"

#include "sampled_body.h"

}  // namespace sampled_avx2

extern const SampledKernels kSampledAvx2;
const SampledKernels kSampledAvx2 = {
    "avx2",
    sampled_avx2::dots,
    sampled_avx2::weighted_rows,
    sampled_avx2::add_to_rows,
    sampled_avx2::exponentials,
    sampled_avx2::softplus,
    sampled_avx2::lanes_high,
    sampled_avx2::lanes_softplus,
};

}  // namespace seqrec::cpu

SEQREC_END_TARGET

#endif
