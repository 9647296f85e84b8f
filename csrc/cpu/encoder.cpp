// Attention on jagged batches, and the norm of a residual sum: what is computed is in encoder.h.

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
    for (const EncoderKernels* one : {&kEncoderAvx2, &kEncoderAvx512}) {
        if (std::strcmp(one->name, kernels().name) == 0) return *one;
    }
#endif
    return kEncoderPortable;
}

namespace {

constexpr int64_t kTokens = 64;  // of a task: sequences that start among them
constexpr int64_t kNormRows = 128;

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
    const int64_t rows = x.size(0);
    run_tasks(divide_up(rows, kNormRows), [&] { return Buffer<float>(divide_up(a.width, 64) * 64); },
              [&](int64_t task, Buffer<float>& scratch) {
        const int64_t begin = task * kNormRows;
        encoder_kernels().norm(a, begin, std::min(begin + kNormRows, rows), scratch.get());
    });
}

void norm_backward(const Tensor& grad, const Tensor& weight, bool after, const Tensor& seed,
                   int64_t dropped, const Tensor& unit, const Tensor& rate, const Tensor& d_x,
                   const Tensor& d_h, const Tensor& d_weight, const Tensor& d_bias) {
    const ResidualNorm shared = [&] {
        ResidualNorm a = residual_norm(weight, 0.0, after, seed, dropped, unit, rate);
        a.grad = numbers<float>(grad);
        a.d_x = written<float>(d_x);
        a.d_h = written<float>(d_h);
        return a;
    }();
    const int64_t rows = grad.size(0), tasks = divide_up(rows, kNormRows), width = shared.width;
    // each task's sums, added up in their order afterwards
    Buffer<float> sums(tasks * 2 * width);
    std::fill(sums.get(), sums + tasks * 2 * width, 0.0f);
    run_tasks(tasks, [&] { return Buffer<float>(divide_up(width, 64) * 64); },
              [&](int64_t task, Buffer<float>& scratch) {
        ResidualNorm own = shared;
        own.d_weight = sums + task * 2 * width;
        own.d_bias = own.d_weight + width;
        const int64_t begin = task * kNormRows;
        encoder_kernels().norm_backward(own, begin, std::min(begin + kNormRows, rows),
                                        scratch.get());
    });
    float* totals[] = {written<float>(d_weight), written<float>(d_bias)};
    for (int part = 0; part < 2; ++part) {
        std::fill(totals[part], totals[part] + width, 0.0f);
        for (int64_t task = 0; task < tasks; ++task) {
            const float* add = sums + (task * 2 + part) * width;
            for (int64_t c = 0; c < width; ++c) totals[part][c] += add[c];
        }
    }
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(seqrec_native, CPU, m) {
    m.impl("attention_forward", TORCH_BOX(&attention_forward));
    m.impl("attention_backward", TORCH_BOX(&attention_backward));
    m.impl("norm_forward", TORCH_BOX(&norm_forward));
    m.impl("norm_backward", TORCH_BOX(&norm_backward));
}

}  // namespace seqrec::cpu
