// The kernels of encoder.h, written once over `Vec`; included as kernels_body.h is.

#include "vec_math.h"

#include "dropout_body.h"

// ---- the norm of a residual sum ------------------------------------------------------------------

// x + drop(h + shift), of `factors` or, null, without dropout.
static inline Vec residual_sum(const ResidualNorm& a, int64_t row, int64_t c, const float* factors) {
    const Vec x = load(a.x + row * a.width + c);
    const Vec h = add(load(a.h + row * a.width + c), load(a.shift + c));
    return factors != nullptr ? fma(h, load(factors + c), x) : add(h, x);
}

static void norm(const ResidualNorm& a, int64_t begin, int64_t end, float* factors) {
    const int64_t width = a.width;
    const bool drops = a.drop.dropped != 0;
    for (int64_t row = begin; row < end; ++row) {
        float* s = a.s != nullptr ? a.s + row * width : nullptr;
        float* unit = a.unit + row * width;
        float* y = a.y + row * width;
        if (drops) dropout_factors(a.drop, row, 0, width, factors);
        Vec total = all(0.0f);
        for (int64_t c = 0; c < width; c += Vec::width) {
            const Vec z = a.after ? load(a.x + row * width + c)
                                  : residual_sum(a, row, c, drops ? factors : nullptr);
            store(unit + c, z);
            if (s != nullptr) store(s + c, z);
            total = add(total, z);
        }
        const Vec mean = all(sum_of(total) / static_cast<float>(width));
        Vec squares = all(0.0f);
        for (int64_t c = 0; c < width; c += Vec::width) {
            const Vec z = sub(load(unit + c), mean);
            store(unit + c, z);
            squares = fma(z, z, squares);
        }
        const float variance = sum_of(squares) / static_cast<float>(width);
        const float rate = 1.0f / __builtin_sqrtf(variance + a.eps);
        a.rate[row] = rate;
        for (int64_t c = 0; c < width; c += Vec::width) {
            const Vec u = mul(load(unit + c), all(rate));
            const Vec out = fma(u, load(a.weight + c), load(a.bias + c));
            store(unit + c, u);
            store(y + c, drops && a.after ? mul(out, load(factors + c)) : out);
        }
    }
}

// The gradient of h and of the shift, `d` being that of the sum.
static inline void pass_to_shift(const ResidualNorm& a, int64_t row, int64_t c, Vec d,
                                 const float* factors) {
    if (factors != nullptr) {
        d = mul(d, load(factors + c));
        store(a.d_h + row * a.width + c, d);
    }
    store(a.d_shift + c, add(load(a.d_shift + c), d));
}

static void norm_backward(const ResidualNorm& a, int64_t begin, int64_t end, float* factors) {
    const int64_t width = a.width;
    const bool drops = a.drop.dropped != 0;
    for (int64_t row = begin; row < end; ++row) {
        const float* unit = a.unit + row * width;
        const float* grad = a.grad + row * width;
        const float* of_sum = a.grad_s != nullptr ? a.grad_s + row * width : nullptr;
        float* d_x = a.d_x + row * width;
        if (drops) dropout_factors(a.drop, row, 0, width, factors);
        Vec sum = all(0.0f), along = all(0.0f);
        for (int64_t c = 0; c < width; c += Vec::width) {
            const Vec u = load(unit + c);
            Vec g = load(grad + c);
            if (drops && a.after) g = mul(g, load(factors + c));
            store(a.d_weight + c, fma(g, u, load(a.d_weight + c)));
            store(a.d_bias + c, add(load(a.d_bias + c), g));
            g = mul(g, load(a.weight + c));
            store(d_x + c, g);
            sum = add(sum, g);
            along = fma(g, u, along);
        }
        const Vec share = all(1.0f / static_cast<float>(width)), rate = all(a.rate[row]);
        const Vec mean = mul(all(sum_of(sum)), share);
        const Vec slope = mul(all(sum_of(along)), share);
        for (int64_t c = 0; c < width; c += Vec::width) {
            const Vec left = sub(sub(load(d_x + c), mean), mul(load(unit + c), slope));
            const Vec d = of_sum != nullptr ? fma(left, rate, load(of_sum + c)) : mul(left, rate);
            store(d_x + c, d);
            if (!a.after) pass_to_shift(a, row, c, d, drops ? factors : nullptr);
        }
    }
}

static void residual(const ResidualNorm& a, int64_t begin, int64_t end, float* factors) {
    const int64_t width = a.width;
    const bool drops = a.drop.dropped != 0;
    for (int64_t row = begin; row < end; ++row) {
        if (drops) dropout_factors(a.drop, row, 0, width, factors);
        for (int64_t c = 0; c < width; c += Vec::width) {
            store(a.s + row * width + c, residual_sum(a, row, c, drops ? factors : nullptr));
        }
    }
}

static void residual_backward(const ResidualNorm& a, int64_t begin, int64_t end, float* factors) {
    const bool drops = a.drop.dropped != 0;
    for (int64_t row = begin; row < end; ++row) {
        if (drops) dropout_factors(a.drop, row, 0, a.width, factors);
        for (int64_t c = 0; c < a.width; c += Vec::width) {
            const Vec d = load(a.grad_s + row * a.width + c);
            pass_to_shift(a, row, c, d, drops ? factors : nullptr);
        }
    }
}

// ---- the embedding -------------------------------------------------------------------------------

static void embed(const Embedding& a, int64_t begin, int64_t end, float* factors) {
    const int64_t width = a.width;
    for (int64_t row = begin; row < end; ++row) {
        const float* item = a.table + a.items[row] * width;
        const float* place = a.places + a.at[row] * width;
        if (a.drop.dropped != 0) dropout_factors(a.drop, row, 0, width, factors);
        for (int64_t c = 0; c < width; c += Vec::width) {
            const Vec z = fma(load(item + c), all(a.scale), load(place + c));
            store(a.y + row * width + c, a.drop.dropped != 0 ? mul(z, load(factors + c)) : z);
        }
    }
}

static void embed_backward(const Embedding& a, int64_t begin, int64_t end, float* factors) {
    const int64_t width = a.width;
    for (int64_t row = begin; row < end; ++row) {
        dropout_factors(a.drop, row, 0, width, factors);
        for (int64_t c = 0; c < width; c += Vec::width) {
            const int64_t at = row * width + c;
            store(a.d_y + at, mul(load(a.grad + at), load(factors + c)));
        }
    }
}

// ---- the activation ------------------------------------------------------------------------------

// The normal distribution beyond |x|, and its density without its constant.  erf is Hastings' form
// (Abramowitz and Stegun 7.1.26), 1.5e-7 from the true one.
static inline Vec tail_of(Vec x, Vec& density) {
    const Vec size = greater_or_second(x, sub(all(0.0f), x));
    density = exponential(mul(mul(x, x), all(-0.5f)));
    const Vec base = fma(size, all(0.3275911f * 0.707106781f), all(1.0f));
    const Vec t = reciprocal(base);
    Vec p = all(0.5f * 1.061405429f);
    p = fma(p, t, all(0.5f * -1.453152027f));
    p = fma(p, t, all(0.5f * 1.421413741f));
    p = fma(p, t, all(0.5f * -0.284496736f));
    p = fma(p, t, all(0.5f * 0.254829592f));
    return mul(mul(p, t), density);
}

static void gelu(const Activation& a, float*) {
    const Vec none = all(0.0f);
    for (int64_t row = 0; row < a.rows; ++row) {
        const float* h = a.h + row * a.width;
        float* y = a.y + row * a.width;
        for (int64_t c = 0; c < a.width; c += Vec::width) {
            const Vec x = add(load(h + c), load(a.bias + c));
            Vec density;
            const Vec tail = tail_of(x, density);
            // x Phi(x) = max(x, 0) - |x| Phi(-|x|): no cancellation on either side
            store(y + c, fnma(absolute(x), tail, greater_or_second(x, none)));
        }
    }
}

static void gelu_backward(const Activation& a, float*) {
    const Vec none = all(0.0f);
    for (int64_t row = 0; row < a.rows; ++row) {
        const int64_t start = row * a.width;
        for (int64_t c = 0; c < a.width; c += Vec::width) {
            const Vec x = add(load(a.h + start + c), load(a.bias + c));
            Vec density;
            const Vec tail = tail_of(x, density);
            store(a.y + start + c, fnma(absolute(x), tail, greater_or_second(x, none)));
            // Phi(x) + x phi(x)
            const Vec below = zero_where_below(x, none, fma(tail, all(-2.0f), all(1.0f)));
            const Vec slope = fma(mul(x, density), all(0.398942280f), add(tail, below));
            const Vec d = mul(load(a.grad + start + c), slope);
            store(a.d_h + start + c, d);
            store(a.d_bias + c, add(load(a.d_bias + c), d));
        }
    }
}

static void relu(const Activation& a, float* factors) {
    const bool drops = a.drop.dropped != 0;
    for (int64_t row = 0; row < a.rows; ++row) {
        if (drops) dropout_factors(a.drop, a.first + row, 0, a.width, factors);
        for (int64_t c = 0; c < a.width; c += Vec::width) {
            const int64_t at = row * a.width + c;
            // in this order NaN stays NaN
            const Vec x = greater_or_second(all(0.0f), add(load(a.h + at), load(a.bias + c)));
            store(a.y + at, drops ? mul(x, load(factors + c)) : x);
        }
    }
}

static void relu_backward(const Activation& a, float* factors) {
    const bool drops = a.drop.dropped != 0;
    const Vec none = all(0.0f);
    for (int64_t row = 0; row < a.rows; ++row) {
        if (drops) dropout_factors(a.drop, a.first + row, 0, a.width, factors);
        for (int64_t c = 0; c < a.width; c += Vec::width) {
            const int64_t at = row * a.width + c;
            const Vec x = add(load(a.h + at), load(a.bias + c));
            const Vec kept = drops ? load(factors + c) : all(1.0f);
            store(a.y + at, mul(greater_or_second(none, x), kept));
            const Vec d = mul(choose_bits(greater_bits(x, none), load(a.grad + at), none), kept);
            store(a.d_h + at, d);
            store(a.d_bias + c, add(load(a.d_bias + c), d));
        }
    }
}
