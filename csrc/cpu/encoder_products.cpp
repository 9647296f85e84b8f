// The products of a Transformer layer: projections, and a feed-forward with its activation.
//
//     y = x W' + b                    [rows, k] -> [rows, n], W [n, k]
//     y = act(x W1' + b1) W2'         [rows, k] -> [rows, k], W1 [inner, k], W2 [k, inner]
//
// Everything goes by blocks of rows, and what one product hands to the next lies in the second cache.
// A backward is one pass over the blocks too: with the gradient of y it forms that of the rows, and
// adds to those of the weights.  These are summed in chunks of rows that depend on nothing but their
// number, and the chunks' sums in their order, so the number of threads changes no bit.
//
// Narrow products read bfloat16 operands, rounded here, and sum in float32; everything that is stored
// is float32.  A processor that does not multiply bfloat16 does not round, then.

#include <torch/csrc/stable/library.h>

#include <algorithm>

#include "encoder.h"
#include "operands.h"

namespace seqrec::cpu {
namespace {

constexpr int64_t kBlock = 96;   // rows; a multiple of the kernels' six
constexpr int64_t kChunks = 16;  // of rows, at most

// How rows are multiplied.  Operands are dense, and widths multiples of kPad.
class Products {
  public:
    explicit Products(bool narrow) : narrow_(narrow ? kernels().bfloat16 : nullptr) {}

    // A weight [n, k] as a right operand of n rows or, `turned`, of k.
    class Right {
      public:
        Right(const Products& how, const Tensor& weight, bool turned)
            : depth(weight.size(turned ? 1 : 0)),
              columns(weight.size(turned ? 0 : 1)),
              wide(numbers<float>(weight)),
              room_(turned || how.narrow_ ? depth * columns : 0) {
            const int64_t n = weight.size(0), k = weight.size(1);
            auto* words = reinterpret_cast<uint32_t*>(room_.get());
            if (how.narrow_ && turned) {
                Buffer<uint16_t> rounded(n * k);
                how.narrow_->narrow(wide, n * k, rounded.get());
                turn(rounded.get(), n, k / 2, words);
            } else if (how.narrow_) {
                how.narrow_->narrow_pairs(wide, n, k, reinterpret_cast<uint16_t*>(words));
            } else if (turned) {
                turn(wide, n, k, words);
                wide = room_.get();
            }
        }
        const uint16_t* pairs() const { return reinterpret_cast<const uint16_t*>(room_.get()); }

        const int64_t depth, columns;
        const float* wide;

      private:
        // Words of four bytes [rows, columns] to [columns, rows].
        static void turn(const void* in, int64_t rows, int64_t columns, uint32_t* out) {
            const auto* from = static_cast<const uint32_t*>(in);
            for (int64_t top = 0; top < rows; top += kPad) {
                for (int64_t c = 0; c < columns; ++c) {
                    for (int64_t r = top; r < top + kPad; ++r) {
                        out[c * rows + r] = from[r * columns + c];
                    }
                }
            }
        }
        Buffer<float> room_;
    };

    // What a task needs for its operands, up to so many numbers a row.
    Buffer<uint16_t> room(int64_t width) const {
        return Buffer<uint16_t>(narrow_ ? (kBlock + 1) * width : 0);
    }

    // out (+)= a b, a [rows, depth].
    void multiply(const float* a, int64_t rows, const Right& b, float* out, bool start_at_zero,
                  uint16_t* room) const {
        if (narrow_) {
            narrow_->narrow(a, rows * b.depth, room);
            narrow_->product({room, b.depth, 2, b.pairs(), 2 * b.columns, out, b.columns, rows,
                              b.depth / 2, b.columns, start_at_zero});
        } else {
            kernels().product({a, b.depth, 1, b.wide, b.columns, out, b.columns, rows, b.depth,
                               b.columns, start_at_zero});
        }
    }

    // out [n, k] (+)= a' b, a [rows, n] and b [rows, k].
    void add_weights(const float* a, int64_t n, const float* b, int64_t k, int64_t rows, float* out,
                     bool start_at_zero, uint16_t* room) const {
        if (narrow_) {
            uint16_t* right = room + (rows + 1) / 2 * 2 * n;
            narrow_->narrow_pairs(a, rows, n, room);
            narrow_->narrow_pairs(b, rows, k, right);
            narrow_->product(
                {room, 2, 2 * n, right, 2 * k, out, k, n, (rows + 1) / 2, k, start_at_zero});
        } else {
            kernels().product({a, 1, n, b, k, out, k, n, rows, k, start_at_zero});
        }
    }

  private:
    const BFloat16Kernels* narrow_;
};

// Calls work(begin, rows, scratch) for every block.
template <typename Scratch, typename Work>
void for_each_block(int64_t rows, const Scratch& make_scratch, const Work& work) {
    run_tasks(divide_up(rows, kBlock), make_scratch, [&](int64_t task, auto& scratch) {
        work(task * kBlock, std::min(kBlock, rows - task * kBlock), scratch);
    });
}

// The same, and `totals` becomes the sum of what work(begin, rows, scratch, sums, start_at_zero) adds
// to the `sums` of its chunk, or with `start_at_zero` leaves there.
template <typename Scratch, typename Work>
void sum_over_blocks(int64_t rows, const Tensor& totals, const Scratch& make_scratch,
                     const Work& work) {
    constexpr int64_t kRange = 4096;
    float* out = written<float>(totals);
    const int64_t size = totals.numel();
    const int64_t height = std::max(divide_up(divide_up(rows, kChunks), 6) * 6, kBlock);
    const int64_t chunks = divide_up(rows, height);
    if (chunks == 0) std::fill_n(out, size, 0.0f);
    Buffer<float> room(size * (chunks - 1));
    const auto sums = [&](int64_t chunk) { return chunk == 0 ? out : room + size * (chunk - 1); };
    run_tasks(chunks, make_scratch, [&](int64_t chunk, auto& scratch) {
        const int64_t end = std::min((chunk + 1) * height, rows);
        for (int64_t at = chunk * height; at < end; at += kBlock) {
            work(at, std::min(kBlock, end - at), scratch, sums(chunk), at == chunk * height);
        }
    });
    if (chunks < 2) return;
    run_tasks(divide_up(size, kRange), [] { return 0; }, [&](int64_t range, int) {
        const int64_t begin = range * kRange, end = std::min(begin + kRange, size);
        for (int64_t chunk = 1; chunk < chunks; ++chunk) {
            const float* more = sums(chunk);
            for (int64_t i = begin; i < end; ++i) out[i] += more[i];
        }
    });
}

// ---- a projection --------------------------------------------------------------------------------

void linear_forward(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias,
                    bool narrow, const Tensor& y) {
    const int64_t n = weight.size(0), k = weight.size(1);
    const Products products(narrow);
    const Products::Right turned(products, weight, true);
    const float *in = numbers<float>(x), *shift = numbers<float>(bias);
    float* out = written<float>(y);
    for_each_block(x.size(0), [&] { return products.room(k); },
                   [&](int64_t begin, int64_t rows, Buffer<uint16_t>& room) {
        float* own = out + begin * n;
        for (int64_t i = 0; shift != nullptr && i < rows; ++i) std::copy_n(shift, n, own + i * n);
        products.multiply(in + begin * k, rows, turned, own, shift == nullptr, room.get());
    });
}

void linear_backward(const Tensor& grad, const Tensor& x, const Tensor& weight, bool narrow,
                     const Tensor& d_x, const Tensor& d_parameters) {
    const int64_t n = weight.size(0), k = weight.size(1);
    const Products products(narrow);
    const Products::Right as_it_is(products, weight, false);
    const float *in = numbers<float>(x), *of_y = numbers<float>(grad);
    float* of_x = written<float>(d_x);
    const bool biased = d_parameters.numel() > n * k;
    sum_over_blocks(x.size(0), d_parameters, [&] { return products.room(n + k); },
                    [&](int64_t begin, int64_t rows, Buffer<uint16_t>& room, float* sums,
                        bool start_at_zero) {
        const float *d = of_y + begin * n, one = 1.0f;
        products.multiply(d, rows, as_it_is, of_x + begin * k, true, room.get());
        products.add_weights(d, n, in + begin * k, k, rows, sums, start_at_zero, room.get());
        if (biased) kernels().product({&one, 0, 0, d, n, sums + n * k, n, 1, rows, n, start_at_zero});
    });
}

// ---- the feed-forward ----------------------------------------------------------------------------

// What a task works in.
struct FeedForwardScratch {
    Buffer<float> first, second, factors;
    Buffer<uint16_t> room;

    FeedForwardScratch(const Products& products, int64_t inner, int64_t width)
        : first(kBlock * inner),
          second(kBlock * inner),
          factors(dropout_room(inner)),
          room(products.room(inner + width)) {}
};

Activation activation(const Tensor& bias, const Tensor& seed, int64_t dropped) {
    Activation a{};
    a.bias = numbers<float>(bias);
    a.width = bias.size(0);
    a.drop = dropout_of(seed.const_data_ptr(), kStreamDropout, dropped);
    return a;
}

void feed_forward_forward(const Tensor& x, const Tensor& first, const Tensor& bias,
                          const Tensor& second, bool relu, const Tensor& seed, int64_t dropped,
                          bool narrow, const std::optional<Tensor>& h, const Tensor& y) {
    const int64_t inner = first.size(0), width = first.size(1);
    const Products products(narrow);
    const Products::Right into(products, first, true), out_of(products, second, true);
    const auto act = relu ? encoder_kernels().relu : encoder_kernels().gelu;
    const Activation whole = activation(bias, seed, dropped);
    const float* in = numbers<float>(x);
    float *out = written<float>(y), *kept = written<float>(h);
    for_each_block(x.size(0), [&] { return FeedForwardScratch(products, inner, width); },
                   [&](int64_t begin, int64_t rows, FeedForwardScratch& scratch) {
        float* sums = kept != nullptr ? kept + begin * inner : scratch.first.get();
        products.multiply(in + begin * width, rows, into, sums, true, scratch.room.get());
        Activation a = whole;
        a.h = sums;
        a.first = begin;
        a.rows = rows;
        a.y = scratch.second.get();
        act(a, scratch.factors.get());
        products.multiply(a.y, rows, out_of, out + begin * width, true, scratch.room.get());
    });
}

void feed_forward_backward(const Tensor& grad, const Tensor& x, const Tensor& first,
                           const Tensor& bias, const Tensor& second, const Tensor& h, bool relu,
                           const Tensor& seed, int64_t dropped, bool narrow, const Tensor& d_x,
                           const Tensor& d_parameters) {
    const int64_t inner = first.size(0), width = first.size(1);
    const Products products(narrow);
    const Products::Right into(products, first, false), out_of(products, second, false);
    const auto act = relu ? encoder_kernels().relu_backward : encoder_kernels().gelu_backward;
    const Activation whole = activation(bias, seed, dropped);
    const float *in = numbers<float>(x), *of_y = numbers<float>(grad), *kept = numbers<float>(h);
    float* of_x = written<float>(d_x);
    sum_over_blocks(x.size(0), d_parameters,
                    [&] { return FeedForwardScratch(products, inner, width); },
                    [&](int64_t begin, int64_t rows, FeedForwardScratch& scratch, float* sums,
                        bool start_at_zero) {
        const float *d = of_y + begin * width, *from = in + begin * width;
        uint16_t* room = scratch.room.get();
        float *d_first = sums, *d_second = sums + inner * width, *d_bias = d_second + inner * width;
        if (start_at_zero) std::fill_n(d_bias, inner, 0.0f);
        products.multiply(d, rows, out_of, scratch.first.get(), true, room);
        Activation a = whole;
        a.h = kept + begin * inner;
        a.first = begin;
        a.rows = rows;
        a.y = scratch.second.get();
        a.grad = a.d_h = scratch.first.get();
        a.d_bias = d_bias;
        act(a, scratch.factors.get());
        products.multiply(a.d_h, rows, into, of_x + begin * width, true, room);
        products.add_weights(a.d_h, inner, from, width, rows, d_first, start_at_zero, room);
        products.add_weights(d, width, a.y, inner, rows, d_second, start_at_zero, room);
    });
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(seqrec_native, CPU, m) {
    m.impl("linear_forward", TORCH_BOX(&linear_forward));
    m.impl("linear_backward", TORCH_BOX(&linear_backward));
    m.impl("feed_forward_forward", TORCH_BOX(&feed_forward_forward));
    m.impl("feed_forward_backward", TORCH_BOX(&feed_forward_backward));
}

}  // namespace seqrec::cpu
