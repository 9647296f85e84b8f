// The kernels for every processor, in the compiler's own vectors of four floats (SSE2, NEON, ...).

#include "float16.h"
#include "kernels.h"

namespace seqrec::cpu {
namespace portable {

#include "vec_portable.h"

constexpr int kRows = 6;
constexpr int kColumns = 2;

#include "kernels_body.h"

}  // namespace portable

extern const Kernels kPortable;  // external, where a constant would be internal
const Kernels kPortable = {
    "portable",
    portable::score,
    portable::dot,
    portable::exponentials,
    portable::add_to_queries,
    portable::add_to_items,
    portable::weighted_sums,
    portable::count,
    portable::above,
    portable::reach,
    portable::range,
    portable::first_within,
    portable::from_bfloat16,
    portable::from_float16,
    portable::product,
    nullptr,
};

}  // namespace seqrec::cpu
