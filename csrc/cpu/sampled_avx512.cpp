// The sampled losses' kernels with AVX-512.

#include "kernels.h"
#include "sampled.h"

#if defined(__x86_64__)

#include <immintrin.h>

#include "float16.h"
#include "target.h"

SEQREC_BEGIN_TARGET("avx512f,avx512bw,avx512dq,avx512vl,fma,f16c")

namespace seqrec::cpu {
namespace sampled_avx512 {

#include "vec_avx512.h"

#include "sampled_body.h"

}  // namespace sampled_avx512

extern const SampledKernels kSampledAvx512;
const SampledKernels kSampledAvx512 = {
    "avx512",
    sampled_avx512::dots,
    sampled_avx512::weighted_rows,
    sampled_avx512::add_to_rows,
    sampled_avx512::exponentials,
    sampled_avx512::softplus,
    sampled_avx512::lanes_high,
    sampled_avx512::lanes_softplus,
};

}  // namespace seqrec::cpu

SEQREC_END_TARGET

#endif
