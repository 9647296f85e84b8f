// The kernels of jagged_attention.h with AVX2.

#include "jagged_attention.h"

#if defined(__x86_64__)

#include <immintrin.h>

#include "float16.h"
#include "target.h"

SEQREC_BEGIN_TARGET("avx2,fma,f16c")

namespace seqrec::cpu {
namespace jagged_attention_avx2 {

#include "vec_avx2.h"

#include "jagged_attention_body.h"

}  // namespace jagged_attention_avx2

extern const JaggedAttentionKernels kJaggedAttentionAvx2;
const JaggedAttentionKernels kJaggedAttentionAvx2 = {
    "avx2",
    jagged_attention_avx2::attend,
    jagged_attention_avx2::attend_backward,
};

}  // namespace seqrec::cpu

SEQREC_END_TARGET

#endif
