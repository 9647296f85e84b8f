// The kernels of jagged_attention.h with AVX-512.

#include "jagged_attention.h"

#if defined(__x86_64__)

#include <immintrin.h>

#include "float16.h"
#include "target.h"

SEQREC_BEGIN_TARGET("avx512f,avx512bw,avx512dq,avx512vl,fma,f16c")

namespace seqrec::cpu {
namespace jagged_attention_avx512 {

#include "vec_avx512.h"

#include "jagged_attention_body.h"

}  // namespace jagged_attention_avx512

extern const JaggedAttentionKernels kJaggedAttentionAvx512;
const JaggedAttentionKernels kJaggedAttentionAvx512 = {
    "avx512",
    jagged_attention_avx512::attend,
    jagged_attention_avx512::attend_backward,
};

}  // namespace seqrec::cpu

SEQREC_END_TARGET

#endif
