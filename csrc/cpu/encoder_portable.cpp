// The encoder's kernels for every processor.

#include "encoder.h"
#include "float16.h"

namespace seqrec::cpu {
namespace encoder_portable {

#include "vec_portable.h"

#include "encoder_body.h"

}  // namespace encoder_portable

extern const EncoderKernels kEncoderPortable;
const EncoderKernels kEncoderPortable = {
    "portable",
    encoder_portable::norm,
    encoder_portable::norm_backward,
    encoder_portable::residual,
    encoder_portable::residual_backward,
    encoder_portable::embed,
    encoder_portable::embed_backward,
    encoder_portable::relu,
    encoder_portable::relu_backward,
    encoder_portable::gelu,
    encoder_portable::gelu_backward,
};

}  // namespace seqrec::cpu
