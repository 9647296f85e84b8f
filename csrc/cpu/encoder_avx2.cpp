// The encoder's kernels with AVX2.

#include "encoder.h"

#if defined(__x86_64__)

#include <immintrin.h>

#include "float16.h"
#include "target.h"

SEQREC_BEGIN_TARGET("avx2,fma,f16c")

namespace seqrec::cpu {
namespace encoder_avx2 {

#include "vec_avx2.h"

#include "encoder_body.h"

}  // namespace encoder_avx2

extern const EncoderKernels kEncoderAvx2;
const EncoderKernels kEncoderAvx2 = {
    "avx2",
    encoder_avx2::norm,
    encoder_avx2::norm_backward,
    encoder_avx2::residual,
    encoder_avx2::residual_backward,
    encoder_avx2::embed,
    encoder_avx2::embed_backward,
    encoder_avx2::relu,
    encoder_avx2::relu_backward,
    encoder_avx2::gelu,
    encoder_avx2::gelu_backward,
};

}  // namespace seqrec::cpu

SEQREC_END_TARGET

#endif
