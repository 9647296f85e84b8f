// The kernels of k-means with AVX-512.

#include "kmeans.h"

#include "kernels.h"

#if defined(__x86_64__)

#include <immintrin.h>

#include "float16.h"
#include "target.h"

SEQREC_BEGIN_TARGET("avx512f,avx512bw,avx512dq,avx512vl,fma,f16c")

namespace seqrec::cpu {
namespace kmeans_avx512 {

#include "vec_avx512.h"

#include "kmeans_body.h"

}  // namespace kmeans_avx512

extern const KMeansKernels kKMeansAvx512;
const KMeansKernels kKMeansAvx512 = {
    "avx512",
    kmeans_avx512::panel,
    kmeans_avx512::best_two,
    kmeans_avx512::dot,
    kmeans_avx512::add,
};

}  // namespace seqrec::cpu

SEQREC_END_TARGET

#endif
