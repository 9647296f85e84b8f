// The contrastive losses' kernels for processors with AVX-512.

#include "contrast_kernels.h"

#if defined(__x86_64__)

#include <immintrin.h>

#include "../common/philox.h"
#include "float16.h"
#include "target.h"

SEQREC_BEGIN_TARGET("avx512f,avx512bw,avx512dq,avx512vl,fma,f16c")

namespace seqrec::cpu {
namespace avx512 {

#include "vec_avx512.h"

#include "contrast_body.h"

}  // namespace avx512

extern const ContrastKernels kContrastAvx512;  // external, where a constant would be internal
const ContrastKernels kContrastAvx512 = avx512::contrast_kernels_named("avx512");

}  // namespace seqrec::cpu

SEQREC_END_TARGET

#endif
