// Attention on jagged batches, residual norm and activation: what is computed is in encoder.h.

#include "encoder.h"

#include <torch/csrc/stable/library.h>

#include <cstring>

#include "operands.h"

namespace seqrec::cpu {

extern const EncoderKernels kEncoderPortable;
#if defined(__x86_64__)
extern const EncoderKernels kEncoderAvx2;
extern const EncoderKernels kEncoderAvx512;
#endif

const EncoderKernels& encoder_kernels() {
#if defined(__x86_64__)
    return version_of({&kEncoderAvx2, &kEncoderAvx512}, kEncoderPortable);
#else
    return kEncoderPortable;
#endif
}

namespace {

constexpr int64_t kTokens = 64;  // of a task: sequences that start among them
constexpr int64_t kRows = 128;  // of a task, where rows do not depend on each other

Dropout dropout(const Tensor& seed, int64_t dropped) {
    uint64_t key;
    std::memcpy(&key, seed.const_data_ptr(), sizeof key);
    const auto kept = static_cast<float>(65536 - dropped);
    return {key, static_cast<uint32_t>(dropped), 65536.0f / kept};
}

// Calls work(sequence, scratch) for every sequence that is not empty.  Tasks are runs of tokens, so
// that threads get equal shares whatever the order of long and short sequences.
template <typename Work>
void for_each_sequence(const Attention& a, int64_t sequences, const Work& work) {
    int64_t longest = 0;
    for (int64_t b = 0; b < sequences; ++b) {
        longest = std::max(longest, a.offsets[b + 1] - a.offsets[b]);
    }
    const int64_t tasks = divide_up(a.offsets[sequences], kTokens);
    const int64_t size = attention_scratch(longest, a.size);
    run_tasks(tasks, [&] { return Buffer<float>(size); }, [&](int64_t task, Buffer<float>& own) {
        const int64_t* end = a.offsets + sequences;
        const int64_t* at = std::lower_bound(a.offsets, end, task * kTokens);
        for (; at < end && *at < (task + 1) * kTokens; ++at) {
            if (at[1] > at[0]) work(at - a.offsets, own.get());
        }
    });
}

Attention attention(const Tensor& queries, const Tensor& keys, const Tensor& values,
                    const Tensor& offsets, int64_t heads, bool last, const Tensor& seed,
                    int64_t dropped) {
    Attention a{};
    a.queries = numbers<float>(queries);
    a.keys = numbers<float>(keys);
    a.values = numbers<float>(values);
    a.query_stride = queries.stride(0);
    a.key_stride = keys.stride(0);
    a.offsets = numbers<int64_t>(offsets);
    a.heads = heads;
    a.size = queries.size(1) / heads;
    a.last = last;
    a.scale = 1.0f / std::sqrt(static_cast<float>(a.size));
    a.drop = dropout(seed, dropped);
    return a;
}

void attention_forward(const Tensor& queries, const Tensor& keys, const Tensor& values,
                       const Tensor& offsets, int64_t heads, bool last, const Tensor& seed,
                       int64_t dropped, const Tensor& out, const Tensor& lse) {
    Attention a = attention(queries, keys, values, offsets, heads, last, seed, dropped);
    a.out = written<float>(out);
    a.lse = written<float>(lse);
    for_each_sequence(a, offsets.size(0) - 1, [&](int64_t b, float* scratch) {
        encoder_kernels().attend(a, b, scratch);
    });
}

void attention_backward(const Tensor& grad, const Tensor& queries, const Tensor& keys,
                        const Tensor& values, const Tensor& offsets, int64_t heads, bool last,
                        const Tensor& seed, int64_t dropped, const Tensor& lse,
                        const Tensor& d_queries, const Tensor& d_keys, const Tensor& d_values) {
    Attention a = attention(queries, keys, values, offsets, heads, last, seed, dropped);
    a.grad = numbers<float>(grad);
    a.lse = written<float>(lse);
    a.d_queries = written<float>(d_queries);
    a.d_keys = written<float>(d_keys);
    a.d_values = written<float>(d_values);
    for_each_sequence(a, offsets.size(0) - 1, [&](int64_t b, float* scratch) {
        encoder_kernels().attend_backward(a, b, scratch);
    });
}

// Calls work(begin, end, scratch, sums) for blocks of rows.  `sums` [of_each] are the block's own,
// zero at first; `totals` (or null) becomes their sum over the blocks, in their order.
template <typename Work>
void for_each_block(int64_t rows, int64_t width, int64_t of_each, float* totals, const Work& work) {
    const int64_t tasks = divide_up(rows, kRows);
    Buffer<float> sums(tasks * of_each);
    std::fill(sums.get(), sums + tasks * of_each, 0.0f);
    run_tasks(tasks, [&] { return Buffer<float>(divide_up(width, 64) * 64); },
              [&](int64_t task, Buffer<float>& scratch) {
        work(task * kRows, std::min((task + 1) * kRows, rows), scratch.get(),
             sums + task * of_each);
    });
    std::fill(totals, totals + of_each, 0.0f);
    for (int64_t task = 0; task < tasks; ++task) {
        for (int64_t c = 0; c < of_each; ++c) totals[c] += sums[task * of_each + c];
    }
}

ResidualNorm residual_norm(const Tensor& weight, double eps, bool after, const Tensor& seed,
                           int64_t dropped, const Tensor& unit, const Tensor& rate) {
    ResidualNorm a{};
    a.weight = numbers<float>(weight);
    a.width = weight.size(0);
    a.eps = static_cast<float>(eps);
    a.after = after;
    a.drop = dropout(seed, dropped);
    a.unit = written<float>(unit);
    a.rate = written<float>(rate);
    return a;
}

void norm_forward(const Tensor& x, const Tensor& h, const Tensor& weight, const Tensor& bias,
                  double eps, bool after, const Tensor& seed, int64_t dropped, const Tensor& y,
                  const Tensor& unit, const Tensor& rate) {
    ResidualNorm a = residual_norm(weight, eps, after, seed, dropped, unit, rate);
    a.x = numbers<float>(x);
    a.h = numbers<float>(h);
    a.bias = numbers<float>(bias);
    a.y = written<float>(y);
    for_each_block(x.size(0), a.width, 0, nullptr,
                   [&](int64_t begin, int64_t end, float* scratch, float*) {
        encoder_kernels().norm(a, begin, end, scratch);
    });
}

void norm_backward(const Tensor& grad, const Tensor& weight, bool after, const Tensor& seed,
                   int64_t dropped, const Tensor& unit, const Tensor& rate, const Tensor& d_x,
                   const Tensor& d_h, const Tensor& d_scales) {
    ResidualNorm a = residual_norm(weight, 0.0, after, seed, dropped, unit, rate);
    a.grad = numbers<float>(grad);
    a.d_x = written<float>(d_x);
    a.d_h = written<float>(d_h);
    for_each_block(grad.size(0), a.width, 2 * a.width, written<float>(d_scales),
                   [&](int64_t begin, int64_t end, float* scratch, float* sums) {
        ResidualNorm own = a;
        own.d_weight = sums;
        own.d_bias = sums + a.width;
        encoder_kernels().norm_backward(own, begin, end, scratch);
    });
}

Activation activation(const Tensor& h, const Tensor& bias) {
    Activation a{};
    a.h = numbers<float>(h);
    a.bias = numbers<float>(bias);
    a.width = bias.size(0);
    return a;
}

void gelu_forward(const Tensor& h, const Tensor& bias, const Tensor& y) {
    Activation a = activation(h, bias);
    a.y = written<float>(y);
    for_each_block(h.size(0), 0, 0, nullptr, [&](int64_t begin, int64_t end, float*, float*) {
        encoder_kernels().gelu(a, begin, end);
    });
}

void gelu_backward(const Tensor& grad, const Tensor& h, const Tensor& bias, const Tensor& d_h,
                   const Tensor& d_bias) {
    Activation a = activation(h, bias);
    a.grad = numbers<float>(grad);
    a.d_h = written<float>(d_h);
    for_each_block(h.size(0), 0, a.width, written<float>(d_bias),
                   [&](int64_t begin, int64_t end, float*, float* sums) {
        Activation own = a;
        own.d_bias = sums;
        encoder_kernels().gelu_backward(own, begin, end);
    });
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(seqrec_native, CPU, m) {
    m.impl("attention_forward", TORCH_BOX(&attention_forward));
    m.impl("attention_backward", TORCH_BOX(&attention_backward));
    m.impl("norm_forward", TORCH_BOX(&norm_forward));
    m.impl("norm_backward", TORCH_BOX(&norm_backward));
    m.impl("gelu_forward", TORCH_BOX(&gelu_forward));
    m.impl("gelu_backward", TORCH_BOX(&gelu_backward));
}

}  // namespace seqrec::cpu
