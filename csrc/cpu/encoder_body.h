// The kernels of encoder.h, written once over `Vec`; included as kernels_body.h is.

#include "vec_math.h"

constexpr uint32_t kStream = 3;
constexpr int kDraws = 64;  // from eight Philox counters

// factors[c] = what number c of the row is multiplied with, for `columns` rounded up to kDraws.
//
// `Wide` has 64-bit lanes, of which `low_product` multiplies the low halves: one instruction, both
// halves of the product.  What stands in a high half where a low one is meant does no harm.
static inline void factors_of(const Dropout& drop, int64_t row, int64_t columns, float* factors) {
    constexpr int kWide = sizeof(Wide) / 8, kParts = 8 / kWide;
    typedef int64_t Signed __attribute__((vector_size(sizeof(Wide))));
    typedef uint32_t Narrow __attribute__((vector_size(sizeof(Wide) / 2)));
    static const uint64_t lanes[8] = {0, 1, 2, 3, 4, 5, 6, 7};
    uint32_t scale;
    __builtin_memcpy(&scale, &drop.scale, sizeof scale);
    for (int64_t c = 0; c < columns; c += kDraws) {
        Wide x[4][kParts];
        uint32_t k0 = static_cast<uint32_t>(drop.seed);
        uint32_t k1 = static_cast<uint32_t>(drop.seed >> 32);
#pragma GCC unroll 8
        for (int part = 0; part < kParts; ++part) {
            __builtin_memcpy(&x[1][part], lanes + part * kWide, sizeof(Wide));
            x[0][part] = Wide{} + static_cast<uint32_t>(row);
            x[1][part] += static_cast<uint64_t>(c / 8);
            x[2][part] = Wide{};
            x[3][part] = Wide{} + kStream;
        }
#pragma GCC unroll 10
        for (int round = 0; round < 10; ++round) {
#pragma GCC unroll 8
            for (int part = 0; part < kParts; ++part) {
                const Wide a = low_product(x[0][part], Wide{} + 0xD2511F53u);
                const Wide b = low_product(x[2][part], Wide{} + 0xCD9E8D57u);
                x[0][part] = (b >> 32) ^ x[1][part] ^ k0;
                x[1][part] = b;
                x[2][part] = (a >> 32) ^ x[3][part] ^ k1;
                x[3][part] = a;
            }
            k0 += 0x9E3779B9u;
            k1 += 0xBB67AE85u;
        }
#pragma GCC unroll 4
        for (int word = 0; word < 4; ++word) {
#pragma GCC unroll 8
            for (int part = 0; part < kParts; ++part) {
#pragma GCC unroll 2
                for (int half = 0; half < 2; ++half) {
                    const Wide bits = (x[word][part] >> (16 * half)) & 0xFFFFu;
                    const Signed kept = reinterpret_cast<Signed>(bits) >=
                                        Signed{} + static_cast<int64_t>(drop.dropped);
                    const Wide factor = reinterpret_cast<Wide>(kept) & scale;
                    const Narrow narrow = __builtin_convertvector(factor, Narrow);
                    __builtin_memcpy(factors + c + 32 * half + 8 * word + part * kWide, &narrow,
                                     sizeof narrow);
                }
            }
        }
    }
}

// ---- products ------------------------------------------------------------------------------------

// out[i][:] (+)= factor * sum_k a[i * row_stride + k * step] * b[k][:], for Rows rows.
template <int Rows, int Columns>
static inline void product(const float* a, int64_t row_stride, int64_t step, const float* b,
                           int64_t b_stride, int64_t depth, float factor, float* out,
                           int64_t out_stride) {
    Vec acc[Rows][Columns];
#pragma GCC unroll 8
    for (int i = 0; i < Rows; ++i) {
#pragma GCC unroll 8
        for (int j = 0; j < Columns; ++j) acc[i][j] = all(0.0f);
    }
    for (int64_t k = 0; k < depth; ++k) {
        Vec right[Columns];
#pragma GCC unroll 8
        for (int j = 0; j < Columns; ++j) right[j] = load(b + k * b_stride + j * Vec::width);
#pragma GCC unroll 8
        for (int i = 0; i < Rows; ++i) {
            const Vec left = all(a[i * row_stride + k * step]);
#pragma GCC unroll 8
            for (int j = 0; j < Columns; ++j) acc[i][j] = fma(left, right[j], acc[i][j]);
        }
    }
#pragma GCC unroll 8
    for (int i = 0; i < Rows; ++i) {
#pragma GCC unroll 8
        for (int j = 0; j < Columns; ++j) {
            store(out + i * out_stride + j * Vec::width, mul(acc[i][j], all(factor)));
        }
    }
}

template <int Rows>
static inline void rows_product(const float* a, int64_t row_stride, int64_t step,
                                const float* b, int64_t b_stride, int64_t depth, float factor,
                                int64_t columns, float* out, int64_t out_stride) {
    int64_t j = 0;
    for (; j + 2 * Vec::width <= columns; j += 2 * Vec::width) {
        product<Rows, 2>(a, row_stride, step, b + j, b_stride, depth, factor, out + j, out_stride);
    }
    for (; j < columns; j += Vec::width) {
        product<Rows, 1>(a, row_stride, step, b + j, b_stride, depth, factor, out + j, out_stride);
    }
}

constexpr int kBlock = 4;  // rows of a product at once: enough chains to hide an addition's latency

static void some_rows_product(int64_t rows, const float* a, int64_t row_stride,
                                     int64_t step, const float* b, int64_t b_stride,
                                     int64_t depth, float factor, int64_t columns, float* out,
                                     int64_t out_stride) {
    const auto run = rows == 4   ? rows_product<4>
                     : rows == 3 ? rows_product<3>
                     : rows == 2 ? rows_product<2>
                                 : rows_product<1>;
    run(a, row_stride, step, b, b_stride, depth, factor, columns, out, out_stride);
}

// In halves, as a register's numbers add up fastest.
static inline float sum_of(Vec a) {
    float parts[Vec::width];
    store(parts, a);
#pragma GCC unroll 4
    for (int half = Vec::width / 2; half > 0; half /= 2) {
#pragma GCC unroll 8
        for (int j = 0; j < half; ++j) parts[j] += parts[j + half];
    }
    return parts[0];
}

static inline float greatest_of(Vec a) {
    float parts[Vec::width];
    store(parts, a);
#pragma GCC unroll 4
    for (int half = Vec::width / 2; half > 0; half /= 2) {
#pragma GCC unroll 8
        for (int j = 0; j < half; ++j) {
            parts[j] = parts[j + half] > parts[j] ? parts[j + half] : parts[j];
        }
    }
    return parts[0];
}

// ---- attention -----------------------------------------------------------------------------------

// [length, size] with a stride -> [size, padded]; what stands behind `length` is zero.
static inline void transposed(const float* rows, int64_t stride, int64_t length, int64_t size,
                              int64_t padded, float* out) {
    for (int64_t d = 0; d < size; ++d) {
        for (int64_t j = 0; j < length; ++j) out[d * padded + j] = rows[j * stride + d];
        for (int64_t j = length; j < padded; ++j) out[d * padded + j] = 0.0f;
    }
}

struct Sequence {
    int64_t first, length, query, queries, padded;  // query: the row of its first one
};

static inline Sequence sequence_of(const Attention& a, int64_t b) {
    const int64_t first = a.offsets[b], length = a.offsets[b + 1] - first;
    const int64_t padded = (length + 15) / 16 * 16;
    if (a.last) return {first, length, b, length > 0 ? 1 : 0, padded};
    return {first, length, first, length, padded};
}

static void attend(const Attention& a, int64_t b, float* scratch) {
    const Sequence s = sequence_of(a, b);
    float* keys = scratch;                            // [size, padded]
    float* weights = keys + a.size * s.padded;        // [kBlock, padded]
    float* factors = weights + kBlock * s.padded;     // [padded]
    const int64_t width = a.heads * a.size;
    for (int64_t h = 0; h < a.heads; ++h) {
        transposed(a.keys + s.first * a.key_stride + h * a.size, a.key_stride, s.length, a.size,
                   s.padded, keys);
        for (int64_t i = 0; i < s.queries; i += kBlock) {
            const int64_t rows = s.queries - i < kBlock ? s.queries - i : kBlock;
            const int64_t reach = a.last ? s.length : i + rows;
            const int64_t lanes = (reach + 15) / 16 * 16;
            const int64_t row = s.query + i;
            some_rows_product(rows, a.queries + row * a.query_stride + h * a.size, a.query_stride,
                              1, keys, s.padded, a.size, a.scale, lanes, weights, s.padded);
            for (int64_t r = 0; r < rows; ++r) {
                float* w = weights + r * s.padded;
                const int64_t seen = a.last ? s.length : i + r + 1;
                for (int64_t j = seen; j < lanes; ++j) w[j] = -__builtin_inff();
                Vec highest = load(w);
                for (int64_t j = Vec::width; j < lanes; j += Vec::width) {
                    highest = greater_or_second(load(w + j), highest);
                }
                const float high = greatest_of(highest);
                Vec sums = all(0.0f);
                for (int64_t j = 0; j < lanes; j += Vec::width) {
                    const Vec e = exponential(sub(load(w + j), all(high)));
                    store(w + j, e);
                    sums = add(sums, e);
                }
                const float sum = sum_of(sums);
                a.lse[(row + r) * a.heads + h] = high + __builtin_logf(sum);
                const Vec share = all(1.0f / sum);
                if (a.drop.dropped == 0) {
                    for (int64_t j = 0; j < lanes; j += Vec::width) {
                        store(w + j, mul(load(w + j), share));
                    }
                } else {
                    factors_of(a.drop, (row + r) * a.heads + h, lanes, factors);
                    for (int64_t j = 0; j < lanes; j += Vec::width) {
                        store(w + j, mul(mul(load(w + j), share), load(factors + j)));
                    }
                }
            }
            some_rows_product(rows, weights, s.padded, 1,
                              a.values + s.first * a.key_stride + h * a.size, a.key_stride, reach,
                              1.0f, a.size, a.out + row * width + h * a.size, width);
        }
    }
}

static void attend_backward(const Attention& a, int64_t b, float* scratch) {
    const Sequence s = sequence_of(a, b);
    float* keys = scratch;                            // [size, padded]
    float* values = keys + a.size * s.padded;         // [size, padded]
    float* weights = values + a.size * s.padded;      // [queries, padded], after dropout
    float* slopes = weights + s.queries * s.padded;   // [queries, padded], of the scores
    float* factors = slopes + s.queries * s.padded;   // [padded]
    const int64_t width = a.heads * a.size;
    for (int64_t h = 0; h < a.heads; ++h) {
        const int64_t head = h * a.size;
        const float* in_keys = a.keys + s.first * a.key_stride + head;
        transposed(in_keys, a.key_stride, s.length, a.size, s.padded, keys);
        transposed(a.values + s.first * a.key_stride + head, a.key_stride, s.length, a.size,
                   s.padded, values);
        const float* queries = a.queries + s.query * a.query_stride + head;
        const float* grad = a.grad + s.query * width + head;
        for (int64_t i = 0; i < s.queries; i += kBlock) {
            const int64_t rows = s.queries - i < kBlock ? s.queries - i : kBlock;
            const int64_t reach = a.last ? s.length : i + rows;
            const int64_t lanes = (reach + 15) / 16 * 16;
            float* w = weights + i * s.padded;
            float* d = slopes + i * s.padded;
            some_rows_product(rows, queries + i * a.query_stride, a.query_stride, 1, keys, s.padded,
                              a.size, a.scale, lanes, w, s.padded);
            some_rows_product(rows, grad + i * width, width, 1, values, s.padded, a.size, 1.0f,
                              lanes, d, s.padded);
            for (int64_t r = 0; r < rows; ++r, w += s.padded, d += s.padded) {
                const int64_t row = (s.query + i + r) * a.heads + h;
                const int64_t seen = a.last ? s.length : i + r + 1;
                const Vec lse = all(a.lse[row]);
                for (int64_t j = seen; j < lanes; ++j) w[j] = -__builtin_inff();
                if (a.drop.dropped != 0) {
                    factors_of(a.drop, row, lanes, factors);
                } else {
                    for (int64_t j = 0; j < lanes; ++j) factors[j] = 1.0f;
                }
                Vec sums = all(0.0f);
                for (int64_t j = 0; j < lanes; j += Vec::width) {
                    const Vec p = exponential(sub(load(w + j), lse));
                    const Vec slope = mul(load(d + j), load(factors + j));
                    sums = fma(p, slope, sums);
                    store(w + j, p);
                    store(d + j, slope);
                }
                const Vec mean = all(sum_of(sums));
                for (int64_t j = 0; j < lanes; j += Vec::width) {
                    const Vec p = load(w + j);
                    store(d + j, mul(p, sub(load(d + j), mean)));
                    store(w + j, mul(p, load(factors + j)));
                }
            }
            some_rows_product(rows, slopes + i * s.padded, s.padded, 1, in_keys, a.key_stride,
                              reach, a.scale, a.size,
                              a.d_queries + (s.query + i) * a.query_stride + head, a.query_stride);
        }
        // column j of both matrices; rows before the block of j's own have not reached it
        for (int64_t j = 0; j < s.length; j += kBlock) {
            const int64_t rows = s.length - j < kBlock ? s.length - j : kBlock;
            const int64_t from = a.last ? 0 : j;
            const int64_t place = (s.first + j) * a.key_stride + head;
            some_rows_product(rows, slopes + from * s.padded + j, 1, s.padded,
                              queries + from * a.query_stride, a.query_stride, s.queries - from,
                              a.scale, a.size, a.d_keys + place, a.key_stride);
            some_rows_product(rows, weights + from * s.padded + j, 1, s.padded,
                              grad + from * width, width, s.queries - from, 1.0f, a.size,
                              a.d_values + place, a.key_stride);
        }
    }
}

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
        if (drops) factors_of(a.drop, row, width, factors);
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
        if (drops) factors_of(a.drop, row, width, factors);
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
        if (drops) factors_of(a.drop, row, width, factors);
        for (int64_t c = 0; c < width; c += Vec::width) {
            store(a.s + row * width + c, residual_sum(a, row, c, drops ? factors : nullptr));
        }
    }
}

static void residual_backward(const ResidualNorm& a, int64_t begin, int64_t end, float* factors) {
    const bool drops = a.drop.dropped != 0;
    for (int64_t row = begin; row < end; ++row) {
        if (drops) factors_of(a.drop, row, a.width, factors);
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
        if (a.drop.dropped != 0) factors_of(a.drop, row, width, factors);
        for (int64_t c = 0; c < width; c += Vec::width) {
            const Vec z = fma(load(item + c), all(a.scale), load(place + c));
            store(a.y + row * width + c, a.drop.dropped != 0 ? mul(z, load(factors + c)) : z);
        }
    }
}

static void embed_backward(const Embedding& a, int64_t begin, int64_t end, float* factors) {
    const int64_t width = a.width;
    for (int64_t row = begin; row < end; ++row) {
        factors_of(a.drop, row, width, factors);
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
    const Vec t{all(1.0f).v / base.v};
    Vec p = all(0.5f * 1.061405429f);
    p = fma(p, t, all(0.5f * -1.453152027f));
    p = fma(p, t, all(0.5f * 1.421413741f));
    p = fma(p, t, all(0.5f * -0.284496736f));
    p = fma(p, t, all(0.5f * 0.254829592f));
    return mul(mul(p, t), density);
}

static void gelu(const Activation& a, int64_t begin, int64_t end) {
    const Vec none = all(0.0f);
    for (int64_t row = begin; row < end; ++row) {
        const float* h = a.h + row * a.width;
        float* y = a.y + row * a.width;
        for (int64_t c = 0; c < a.width; c += Vec::width) {
            const Vec x = add(load(h + c), load(a.bias + c));
            Vec density;
            const Vec tail = tail_of(x, density);
            // x Phi(x) = max(x, 0) - |x| Phi(-|x|): no cancellation on either side
            const Vec size = greater_or_second(x, sub(none, x));
            store(y + c, sub(greater_or_second(x, none), mul(size, tail)));
        }
    }
}

static void gelu_backward(const Activation& a, int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
        const float* h = a.h + row * a.width;
        const float* grad = a.grad + row * a.width;
        float* d_h = a.d_h + row * a.width;
        for (int64_t c = 0; c < a.width; c += Vec::width) {
            const Vec x = add(load(h + c), load(a.bias + c));
            Vec density;
            const Vec tail = tail_of(x, density);
            // Phi(x) + x phi(x)
            const Vec below = zero_where_below(x, all(0.0f), fma(tail, all(-2.0f), all(1.0f)));
            const Vec slope = fma(mul(x, density), all(0.398942280f), add(tail, below));
            const Vec d = mul(load(grad + c), slope);
            store(d_h + c, d);
            store(a.d_bias + c, add(load(a.d_bias + c), d));
        }
    }
}

static void relu(const Activation& a, int64_t begin, int64_t end, float* factors) {
    const bool drops = a.drop.dropped != 0;
    for (int64_t row = begin; row < end; ++row) {
        if (drops) factors_of(a.drop, row, a.width, factors);
        for (int64_t c = 0; c < a.width; c += Vec::width) {
            const int64_t at = row * a.width + c;
            // in this order NaN stays NaN
            const Vec x = greater_or_second(all(0.0f), add(load(a.h + at), load(a.bias + c)));
            store(a.y + at, drops ? mul(x, load(factors + c)) : x);
        }
    }
}

static void relu_backward(const Activation& a, int64_t begin, int64_t end, float* factors) {
    const bool drops = a.drop.dropped != 0;
    for (int64_t row = begin; row < end; ++row) {
        if (drops) factors_of(a.drop, row, a.width, factors);
        for (int64_t c = 0; c < a.width; c += Vec::width) {
            const int64_t at = row * a.width + c;
            const Vec x = add(load(a.h + at), load(a.bias + c));
            const Vec none = all(0.0f);
            const Vec d = choose_bits(greater_bits(x, none), load(a.grad + at), none);
            const Vec kept = drops ? mul(d, load(factors + c)) : d;
            store(a.d_h + at, kept);
            store(a.d_bias + c, add(load(a.d_bias + c), kept));
        }
    }
}
