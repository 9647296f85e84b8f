// The kernels of jagged_attention.h for every processor.

#include "jagged_attention.h"
#include "float16.h"

namespace seqrec::cpu {
namespace jagged_attention_portable {

#include "vec_portable.h"

#include "jagged_attention_body.h"

}  // namespace jagged_attention_portable

extern const JaggedAttentionKernels kJaggedAttentionPortable;
const JaggedAttentionKernels kJaggedAttentionPortable = {
    "portable",
    jagged_attention_portable::attend,
    jagged_attention_portable::attend_backward,
};

}  // namespace seqrec::cpu
