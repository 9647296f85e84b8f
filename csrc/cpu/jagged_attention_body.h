// The kernels of jagged_attention.h, written once over `Vec`; included as kernels_body.h is.

#include "vec_math.h"

#include "dropout_body.h"

// ---- products ------------------------------------------------------------------------------------

// out[i][:] = factor * sum_k a[i * row_stride + k * step] * b[k][:], or with `onto` that added to it,
// for Rows rows; `some` of one register's columns, or all of Columns registers (0).
template <int Rows, int Columns>
static inline void product(const float* a, int64_t row_stride, int64_t step, const float* b,
                           int64_t b_stride, int64_t depth, float factor, bool onto, float* out,
                           int64_t out_stride, int64_t some = 0) {
    Vec acc[Rows][Columns];
#pragma GCC unroll 8
    for (int i = 0; i < Rows; ++i) {
#pragma GCC unroll 8
        for (int j = 0; j < Columns; ++j) acc[i][j] = all(0.0f);
    }
    for (int64_t k = 0; k < depth; ++k) {
        Vec right[Columns];
#pragma GCC unroll 8
        for (int j = 0; j < Columns; ++j) {
            const float* at = b + k * b_stride + j * Vec::width;
            right[j] = some == 0 ? load(at) : load_first(at, some);
        }
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
            float* at = out + i * out_stride + j * Vec::width;
            Vec sum = mul(acc[i][j], all(factor));
            if (some == 0) {
                store(at, onto ? add(load(at), sum) : sum);
            } else {
                store_first(at, some, onto ? add(load_first(at, some), sum) : sum);
            }
        }
    }
}

template <int Rows>
static inline void rows_product(const float* a, int64_t row_stride, int64_t step, const float* b,
                                int64_t b_stride, int64_t depth, float factor, bool onto,
                                int64_t columns, float* out, int64_t out_stride) {
    constexpr int64_t one = Vec::width, two = 2 * one;
    int64_t j = 0;
    for (; j + two <= columns; j += two) {
        product<Rows, 2>(a, row_stride, step, b + j, b_stride, depth, factor, onto, out + j,
                         out_stride);
    }
    for (; j + one <= columns; j += one) {
        product<Rows, 1>(a, row_stride, step, b + j, b_stride, depth, factor, onto, out + j,
                         out_stride);
    }
    if (j < columns) {
        product<Rows, 1>(a, row_stride, step, b + j, b_stride, depth, factor, onto, out + j,
                         out_stride, columns - j);
    }
}

static void some_rows_product(int64_t rows, const float* a, int64_t row_stride, int64_t step,
                              const float* b, int64_t b_stride, int64_t depth, float factor,
                              bool onto, int64_t columns, float* out, int64_t out_stride) {
    const auto run = rows == 4   ? rows_product<4>
                     : rows == 3 ? rows_product<3>
                     : rows == 2 ? rows_product<2>
                                 : rows_product<1>;
    run(a, row_stride, step, b, b_stride, depth, factor, onto, columns, out, out_stride);
}

// ---- a sequence ----------------------------------------------------------------------------------

// [length, size] with a stride -> [size, padded]; behind `length` its last row is repeated.
static void transposed(const float* rows, int64_t stride, int64_t length, int64_t size,
                       int64_t padded, float* out) {
    constexpr int64_t side = Vec::width;
    for (int64_t d = 0; d < size; d += side) {
        const int64_t wide = size - d < side ? size - d : side;
        for (int64_t j = 0; j < padded; j += side) {
            Vec block[side];
#pragma GCC unroll 16
            for (int64_t i = 0; i < side; ++i) {
                // no branch here: lengths are no pattern that a processor would foresee
                const float* at = rows + (j + i < length ? j + i : length - 1) * stride + d;
                block[i] = wide == side ? load(at) : load_first(at, wide);
            }
            turn(block);
            float* to = out + d * padded + j;
#pragma GCC unroll 16
            for (int64_t i = 0; i < side; ++i) {
                if (i < wide) store(to + i * padded, block[i]);
            }
        }
    }
}

// Room for the factors of one row; nothing in it that was never written may meet a product.
static inline void clear(float* room, int64_t count) {
    for (int64_t j = 0; j < count; ++j) room[j] = 0.0f;
}

struct Sequence {
    int64_t first, length, query, queries, padded;  // query: the row of its first one
};

static inline Sequence sequence_of(const JaggedAttention& a, int64_t b) {
    const int64_t first = a.offsets[b], length = a.offsets[b + 1] - first;
    const int64_t padded = attention_padded(length);
    if (a.last) return {first, length, b, 1, padded};
    return {first, length, first, length, padded};
}

static void attend(const JaggedAttention& a, int64_t b, float* scratch) {
    const Sequence s = sequence_of(a, b);
    float* keys = scratch;                         // [size, padded]
    float* weights = keys + a.size * s.padded;     // [kBlock, padded]
    float* room = weights + kBlock * s.padded;     // of the factors of a row
    const bool whole = a.last || !a.causal;
    const int64_t width = a.heads * a.size;
    if (a.drop.dropped != 0) clear(room, dropout_room(s.padded));
    for (int64_t h = 0; h < a.heads; ++h) {
        transposed(a.keys + s.first * a.key_stride + h * a.size, a.key_stride, s.length, a.size,
                   s.padded, keys);
        for (int64_t i = 0; i < s.queries; i += kBlock) {
            const int64_t rows = s.queries - i < kBlock ? s.queries - i : kBlock;
            const int64_t reach = whole ? s.length : i + rows;
            const int64_t lanes = attention_padded(reach);
            const int64_t row = s.query + i;
            some_rows_product(rows, a.queries + row * a.query_stride + h * a.size, a.query_stride,
                              1, keys, s.padded, a.size, a.scale, false, lanes, weights, s.padded);
            for (int64_t r = 0; r < rows; ++r) {
                float* w = weights + r * s.padded;
                const int64_t seen = whole ? s.length : i + r + 1;
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
                    const float* factors =
                        dropout_factors(a.drop, (row + r) * a.heads + h, s.first, seen, room);
                    for (int64_t j = 0; j < lanes; j += Vec::width) {
                        store(w + j, mul(mul(load(w + j), share), load(factors + j)));
                    }
                }
            }
            some_rows_product(rows, weights, s.padded, 1,
                              a.values + s.first * a.value_stride + h * a.size, a.value_stride,
                              reach, 1.0f, false, a.size, a.out + row * width + h * a.size, width);
        }
    }
}

static void attend_backward(const JaggedAttention& a, int64_t b, float* scratch) {
    const Sequence s = sequence_of(a, b);
    const int64_t kept = s.queries < kChunk ? s.queries : kChunk;
    float* keys = scratch;                        // [size, padded]
    float* values = keys + a.size * s.padded;     // [size, padded]
    float* weights = values + a.size * s.padded;  // [kept, padded], after dropout
    float* slopes = weights + kept * s.padded;    // [kept, padded], of the scores
    float* room = slopes + kept * s.padded;       // of the factors of a row
    float* ones = room + dropout_room(s.padded);  // [padded]
    const bool whole = a.last || !a.causal;
    const int64_t width = a.heads * a.size;
    clear(room, dropout_room(s.padded));
    for (int64_t j = 0; j < s.padded; ++j) ones[j] = 1.0f;
    for (int64_t h = 0; h < a.heads; ++h) {
        const int64_t head = h * a.size;
        const float* in_keys = a.keys + s.first * a.key_stride + head;
        transposed(in_keys, a.key_stride, s.length, a.size, s.padded, keys);
        transposed(a.values + s.first * a.value_stride + head, a.value_stride, s.length, a.size,
                   s.padded, values);
        const float* queries = a.queries + s.query * a.query_stride + head;
        const float* grad = a.grad + s.query * width + head;
        for (int64_t top = 0; top < s.queries; top += kChunk) {
            const int64_t end = s.queries - top < kChunk ? s.queries : top + kChunk;
            for (int64_t i = top; i < end; i += kBlock) {
                const int64_t rows = end - i < kBlock ? end - i : kBlock;
                const int64_t reach = whole ? s.length : i + rows;
                const int64_t lanes = attention_padded(reach);
                float* w = weights + (i - top) * s.padded;
                float* d = slopes + (i - top) * s.padded;
                some_rows_product(rows, queries + i * a.query_stride, a.query_stride, 1, keys,
                                  s.padded, a.size, a.scale, false, lanes, w, s.padded);
                some_rows_product(rows, grad + i * width, width, 1, values, s.padded, a.size, 1.0f,
                                  false, lanes, d, s.padded);
                for (int64_t r = 0; r < rows; ++r, w += s.padded, d += s.padded) {
                    const int64_t row = (s.query + i + r) * a.heads + h;
                    const int64_t seen = whole ? s.length : i + r + 1;
                    const Vec lse = all(a.lse[row]);
                    for (int64_t j = seen; j < lanes; ++j) w[j] = -__builtin_inff();
                    const float* factors = a.drop.dropped == 0
                        ? ones : dropout_factors(a.drop, row, s.first, seen, room);
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
                if (a.d_queries == nullptr) continue;
                some_rows_product(rows, slopes + (i - top) * s.padded, s.padded, 1, in_keys,
                                  a.key_stride, reach, a.scale, false, a.size,
                                  a.d_queries + (s.query + i) * a.d_query_stride + head,
                                  a.d_query_stride);
            }
            // Column j of both matrices.  Queries before the block of j's own have not reached it;
            // those of earlier chunks that have are in the gradients already.
            const int64_t reach = whole ? s.length : end;
            for (int64_t j = 0; j < reach; j += kBlock) {
                const int64_t rows = reach - j < kBlock ? reach - j : kBlock;
                const int64_t from = whole || j < top ? top : j;
                const bool onto = whole ? top > 0 : j < top;
                const int64_t column = (from - top) * s.padded + j;
                if (a.d_keys != nullptr) {
                    some_rows_product(rows, slopes + column, 1, s.padded,
                                      queries + from * a.query_stride, a.query_stride, end - from,
                                      a.scale, onto, a.size,
                                      a.d_keys + (s.first + j) * a.d_key_stride + head,
                                      a.d_key_stride);
                }
                if (a.d_values != nullptr) {
                    some_rows_product(rows, weights + column, 1, s.padded, grad + from * width,
                                      width, end - from, 1.0f, onto, a.size,
                                      a.d_values + (s.first + j) * a.d_value_stride + head,
                                      a.d_value_stride);
                }
            }
        }
    }
}
