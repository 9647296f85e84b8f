// Embedding and residual norm: what is computed is in encoder.h.

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

constexpr int64_t kRows = 128;  // of a task, where rows do not depend on each other

Dropout dropout(const Tensor& seed, int64_t dropped) {
    return dropout_of(seed.const_data_ptr(), kStreamDropout, dropped);
}

// Calls work(begin, end, scratch, sums) for blocks of rows.  `sums` [of_each] are the block's own,
// zero at first; `totals` (or null) becomes their sum over the blocks, in their order.
template <typename Work>
void for_each_block(int64_t rows, int64_t width, int64_t of_each, float* totals, const Work& work) {
    const int64_t tasks = divide_up(rows, kRows);
    Buffer<float> sums(tasks * of_each);
    std::fill(sums.get(), sums + tasks * of_each, 0.0f);
    run_tasks(tasks, [&] { return Buffer<float>(dropout_room(width)); },
              [&](int64_t task, Buffer<float>& scratch) {
        work(task * kRows, std::min((task + 1) * kRows, rows), scratch.get(),
             sums + task * of_each);
    });
    std::fill(totals, totals + of_each, 0.0f);
    for (int64_t task = 0; task < tasks; ++task) {
        for (int64_t c = 0; c < of_each; ++c) totals[c] += sums[task * of_each + c];
    }
}

ResidualNorm residual_of(const std::optional<Tensor>& shift, const Tensor& seed, int64_t dropped,
                         int64_t width) {
    ResidualNorm a{};
    a.shift = numbers<float>(shift);
    a.width = width;
    a.drop = dropout(seed, dropped);
    return a;
}

void norm_forward(const Tensor& x, const std::optional<Tensor>& h,
                  const std::optional<Tensor>& shift, const Tensor& weight, const Tensor& bias, double eps, bool after,
                  const Tensor& seed, int64_t dropped, const std::optional<Tensor>& s,
                  const Tensor& y, const Tensor& unit, const Tensor& rate) {
    ResidualNorm a = residual_of(shift, seed, dropped, x.size(1));
    a.x = numbers<float>(x);
    a.h = numbers<float>(h);
    a.weight = numbers<float>(weight);
    a.bias = numbers<float>(bias);
    a.eps = static_cast<float>(eps);
    a.after = after;
    a.s = written<float>(s);
    a.y = written<float>(y);
    a.unit = written<float>(unit);
    a.rate = written<float>(rate);
    for_each_block(x.size(0), a.width, 0, nullptr,
                   [&](int64_t begin, int64_t end, float* scratch, float*) {
        encoder_kernels().norm(a, begin, end, scratch);
    });
}

void norm_backward(const Tensor& grad, const std::optional<Tensor>& grad_s, const Tensor& weight,
                   bool after, const Tensor& seed, int64_t dropped, const Tensor& unit,
                   const Tensor& rate, const Tensor& d_x, const Tensor& d_h,
                   const Tensor& d_scales) {
    ResidualNorm a = residual_of(std::nullopt, seed, dropped, unit.size(1));
    a.weight = numbers<float>(weight);
    a.after = after;
    a.unit = written<float>(unit);
    a.rate = written<float>(rate);
    a.grad = numbers<float>(grad);
    a.grad_s = numbers<float>(grad_s);
    a.d_x = written<float>(d_x);
    a.d_h = written<float>(d_h);
    for_each_block(grad.size(0), a.width, (after ? 2 : 3) * a.width, written<float>(d_scales),
                   [&](int64_t begin, int64_t end, float* scratch, float* sums) {
        ResidualNorm own = a;
        own.d_weight = sums;
        own.d_bias = sums + a.width;
        own.d_shift = after ? nullptr : sums + 2 * a.width;
        encoder_kernels().norm_backward(own, begin, end, scratch);
    });
}

void residual_forward(const Tensor& x, const Tensor& h, const Tensor& shift, const Tensor& seed,
                      int64_t dropped, const Tensor& s) {
    ResidualNorm a = residual_of(shift, seed, dropped, x.size(1));
    a.x = numbers<float>(x);
    a.h = numbers<float>(h);
    a.s = written<float>(s);
    for_each_block(x.size(0), a.width, 0, nullptr,
                   [&](int64_t begin, int64_t end, float* scratch, float*) {
        encoder_kernels().residual(a, begin, end, scratch);
    });
}

void residual_backward(const Tensor& grad, const Tensor& seed, int64_t dropped, const Tensor& d_h,
                       const Tensor& d_shift) {
    ResidualNorm a = residual_of(std::nullopt, seed, dropped, grad.size(1));
    a.grad_s = numbers<float>(grad);
    a.d_h = written<float>(d_h);
    for_each_block(grad.size(0), a.width, a.width, written<float>(d_shift),
                   [&](int64_t begin, int64_t end, float* scratch, float* sums) {
        ResidualNorm own = a;
        own.d_shift = sums;
        encoder_kernels().residual_backward(own, begin, end, scratch);
    });
}

Embedding embedding(const Tensor& table, const Tensor& items, const Tensor& places,
                    const Tensor& at, double scale, const Tensor& seed, int64_t dropped) {
    Embedding a{};
    a.items = numbers<int64_t>(items);
    a.at = numbers<int64_t>(at);
    a.width = table.size(1);
    a.scale = static_cast<float>(scale);
    a.drop = dropout(seed, dropped);
    a.table = numbers<float>(table);
    a.places = numbers<float>(places);
    return a;
}

void embed_forward(const Tensor& table, const Tensor& items, const Tensor& places, const Tensor& at,
                   double scale, const Tensor& seed, int64_t dropped, const Tensor& y) {
    Embedding a = embedding(table, items, places, at, scale, seed, dropped);
    a.y = written<float>(y);
    for_each_block(items.size(0), a.width, 0, nullptr,
                   [&](int64_t begin, int64_t end, float* scratch, float*) {
        encoder_kernels().embed(a, begin, end, scratch);
    });
}

// out[ids[i]][:] += scale * rows[i][:] from zero on.  A task owns a range of out's rows and looks at
// every id, so each row meets its terms in their order whatever the number of tasks.
void scatter(const float* rows, const int64_t* ids, int64_t count, int64_t width, float scale,
             const Tensor& out) {
    float* to = written<float>(out);
    const int64_t height = out.size(0);
    const int64_t ranges = std::min<int64_t>(torch::stable::get_num_threads(), height);
    run_tasks(ranges, [] { return 0; }, [&](int64_t range, int) {
        const int64_t begin = height * range / ranges, end = height * (range + 1) / ranges;
        std::fill(to + begin * width, to + end * width, 0.0f);
        for (int64_t i = 0; i < count; ++i) {
            if (ids[i] < begin || ids[i] >= end) continue;
            for (int64_t c = 0; c < width; ++c) to[ids[i] * width + c] += scale * rows[i * width + c];
        }
    });
}

void embed_backward(const Tensor& grad, const Tensor& items, const Tensor& at, double scale,
                    const Tensor& seed, int64_t dropped, const Tensor& d_table,
                    const Tensor& d_places) {
    const int64_t rows = items.size(0), width = d_table.size(1);
    const float* masked = numbers<float>(grad);
    Buffer<float> room(dropped != 0 ? rows * width : 1);
    if (dropped != 0) {
        Embedding a{};
        a.width = width;
        a.drop = dropout(seed, dropped);
        a.grad = masked;
        a.d_y = room.get();
        for_each_block(rows, width, 0, nullptr,
                       [&](int64_t begin, int64_t end, float* scratch, float*) {
            encoder_kernels().embed_backward(a, begin, end, scratch);
        });
        masked = room.get();
    }
    scatter(masked, numbers<int64_t>(items), rows, width, static_cast<float>(scale), d_table);
    scatter(masked, numbers<int64_t>(at), rows, width, 1.0f, d_places);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(seqrec_native, CPU, m) {
    m.impl("norm_forward", TORCH_BOX(&norm_forward));
    m.impl("norm_backward", TORCH_BOX(&norm_backward));
    m.impl("residual_forward", TORCH_BOX(&residual_forward));
    m.impl("residual_backward", TORCH_BOX(&residual_backward));
    m.impl("embed_forward", TORCH_BOX(&embed_forward));
    m.impl("embed_backward", TORCH_BOX(&embed_backward));
}

}  // namespace seqrec::cpu
