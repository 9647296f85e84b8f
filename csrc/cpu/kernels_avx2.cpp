// The kernels for processors with AVX2, FMA and F16C: 8 floats a register, 16 registers.

#include "kernels.h"

#if defined(__x86_64__)

#include <immintrin.h>

#include "float16.h"
#include "target.h"

SEQREC_BEGIN_TARGET("avx2,fma,f16c")

namespace seqrec::cpu {
namespace avx2 {

#include "vec_avx2.h"

// A product keeps 6 x 2 registers of sums, 2 of the right operand and one broadcast: 15 of 16.
constexpr int kRows = 6;
constexpr int kColumns = 2;

#include "kernels_body.h"

}  // namespace avx2

extern const Kernels kAvx2;  // external, where a constant would be internal
const Kernels kAvx2 = {
    "avx2",
    avx2::score,
    avx2::dot,
    avx2::exponentials,
    avx2::add_to_queries,
    avx2::add_to_items,
    avx2::weighted_sums,
    avx2::count,
    avx2::above,
    avx2::reach,
    avx2::range,
    avx2::first_within,
    avx2::from_bfloat16,
    avx2::from_float16,
    avx2::product,
    nullptr,
};

}  // namespace seqrec::cpu

SEQREC_END_TARGET

#endif
