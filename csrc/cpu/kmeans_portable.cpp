// The kernels of k-means for every processor.

#include "kmeans.h"

#include "float16.h"
#include "kernels.h"

namespace seqrec::cpu {
namespace kmeans_portable {

#include "vec_portable.h"

#include "kmeans_body.h"

}  // namespace kmeans_portable

extern const KMeansKernels kKMeansPortable;
const KMeansKernels kKMeansPortable = {
    "portable",
    kmeans_portable::panel,
    kmeans_portable::best_two,
    kmeans_portable::dot,
    kmeans_portable::add,
};

}  // namespace seqrec::cpu
