// The kernels for processors with AVX-512 (F, BW, DQ, VL): 16 floats a register, 32 registers.

#include "kernels.h"

#if defined(__x86_64__)

#include <immintrin.h>

#include "float16.h"
#include "target.h"

SEQREC_BEGIN_TARGET("avx512f,avx512bw,avx512dq,avx512vl,fma,f16c")

namespace seqrec::cpu {
namespace avx512 {

#include "vec_avx512.h"

// A product keeps 6 x 4 registers of sums, 4 of the right operand and one broadcast: 29 of 32.
constexpr int kRows = 6;
constexpr int kColumns = 4;

#include "kernels_body.h"

}  // namespace avx512

extern const Kernels kAvx512;  // external, where a constant would be internal
const Kernels kAvx512 = {
    "avx512",
    avx512::score,
    avx512::dot,
    avx512::exponentials,
    avx512::add_to_queries,
    avx512::add_to_items,
    avx512::weighted_sums,
    avx512::count,
    avx512::above,
    avx512::reach,
    avx512::range,
    avx512::first_within,
    avx512::from_bfloat16,
    avx512::from_float16,
    avx512::product,
    nullptr,
};

}  // namespace seqrec::cpu

SEQREC_END_TARGET

#endif
