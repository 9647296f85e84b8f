// The contrastive losses' kernels for processors with AVX2.

#include "contrast_kernels.h"

#if defined(__x86_64__)

#include <immintrin.h>

#include "../common/philox.h"
#include "float16.h"
#include "target.h"

SEQREC_BEGIN_TARGET("avx2,fma,f16c")

namespace seqrec::cpu {
namespace avx2 {

#include "vec_avx2.h"

#include "contrast_body.h"

}  // namespace avx2

extern const ContrastKernels kContrastAvx2;  // external, where a constant would be internal
const ContrastKernels kContrastAvx2 = avx2::contrast_kernels_named("avx2");

}  // namespace seqrec::cpu

SEQREC_END_TARGET

#endif
