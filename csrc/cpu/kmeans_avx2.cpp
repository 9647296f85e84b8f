// The kernels of k-means with AVX2.

#include "kmeans.h"

#include "kernels.h"

#if defined(__x86_64__)

#include <immintrin.h>

#include "float16.h"
#include "target.h"

SEQREC_BEGIN_TARGET("avx2,fma,f16c")

namespace seqrec::cpu {
namespace kmeans_avx2 {

#include "vec_avx2.h"

#include "kmeans_body.h"

}  // namespace kmeans_avx2

extern const KMeansKernels kKMeansAvx2;
const KMeansKernels kKMeansAvx2 = {
    "avx2",
    kmeans_avx2::panel,
    kmeans_avx2::best_two,
    kmeans_avx2::dot,
    kmeans_avx2::add,
};

}  // namespace seqrec::cpu

SEQREC_END_TARGET

#endif
