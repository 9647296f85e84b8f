// The encoder's kernels with AVX-512.

#include "encoder.h"

#if defined(__x86_64__)

#include <immintrin.h>

#include "float16.h"
#include "target.h"

SEQREC_BEGIN_TARGET("avx512f,avx512bw,avx512dq,avx512vl,fma,f16c")

namespace seqrec::cpu {
namespace encoder_avx512 {

#include "vec_avx512.h"

#include "encoder_body.h"

}  // namespace encoder_avx512

extern const EncoderKernels kEncoderAvx512;
const EncoderKernels kEncoderAvx512 = {
    "avx512",
    encoder_avx512::norm,
    encoder_avx512::norm_backward,
    encoder_avx512::residual,
    encoder_avx512::residual_backward,
    encoder_avx512::embed,
    encoder_avx512::embed_backward,
    encoder_avx512::relu,
    encoder_avx512::relu_backward,
    encoder_avx512::gelu,
    encoder_avx512::gelu_backward,
};

}  // namespace seqrec::cpu

SEQREC_END_TARGET

#endif
