// The kernels of kernels.h, written once over `Vec`, a register of Vec::width floats.
//
// Included by one source file a vector instruction set, which defines Vec, kRows and kColumns inside
// its own namespace and under its own target pragma.  No lambdas and no calls into the standard
// library here: neither would inherit the pragma.

#include "vec_math.h"

// ---- products ------------------------------------------------------------------------------------

// acc[i][j] += sum_k a[i * row_stride + k * step] * b[k * b_stride + j * width .. + width]
template <int Rows, int Columns>
static inline void multiply(Vec (&acc)[Rows][Columns], const float* a, ptrdiff_t row_stride,
                            ptrdiff_t step, const float* b, ptrdiff_t b_stride, ptrdiff_t depth) {
    for (ptrdiff_t k = 0; k < depth; ++k) {
        Vec right[Columns];
#pragma GCC unroll 8
        for (int j = 0; j < Columns; ++j) right[j] = load(b + k * b_stride + j * Vec::width);
#pragma GCC unroll 16
        for (int i = 0; i < Rows; ++i) {
            const Vec left = all(a[i * row_stride + k * step]);
#pragma GCC unroll 8
            for (int j = 0; j < Columns; ++j) acc[i][j] = fma(left, right[j], acc[i][j]);
        }
    }
}

template <int Rows, int Columns>
static inline void zero(Vec (&acc)[Rows][Columns]) {
#pragma GCC unroll 16
    for (int i = 0; i < Rows; ++i) {
#pragma GCC unroll 8
        for (int j = 0; j < Columns; ++j) acc[i][j] = all(0.0f);
    }
}

template <int Rows>
static inline void score_rows(const float* panel, int64_t width, const float* items, int64_t stride,
                              const float* bias, float* scores, float* high) {
    // a tile that is kept lies beyond the second cache: fetch the next rows' lines to write to
    for (int i = 0; i < Rows * kLanes; i += 16) __builtin_prefetch(scores + Rows * kLanes + i, 1);
    for (int lane = 0; lane < kLanes; lane += kColumns * Vec::width) {
        for (int64_t k = 0; k == 0 || k < width; k += kChain) {
            const bool last = width - k <= kChain;
            Vec acc[Rows][kColumns];
            zero(acc);
            multiply(acc, items + k, stride, 1, panel + k * kLanes + lane, kLanes,
                     last ? width - k : kChain);
#pragma GCC unroll 16
            for (int i = 0; i < Rows; ++i) {
                const Vec add_on = all(bias != nullptr && last ? bias[i] : 0.0f);
#pragma GCC unroll 8
                for (int j = 0; j < kColumns; ++j) {
                    float* place = scores + i * kLanes + lane + j * Vec::width;
                    if (k > 0) acc[i][j] = add(load(place), acc[i][j]);
                    if (bias != nullptr && last) acc[i][j] = add(acc[i][j], add_on);
                    store(place, acc[i][j]);
                }
            }
            if (high == nullptr || !last) continue;
#pragma GCC unroll 8
            for (int j = 0; j < kColumns; ++j) {
                Vec top = load(high + lane + j * Vec::width);
#pragma GCC unroll 16
                for (int i = 0; i < Rows; ++i) top = greater_or_second(acc[i][j], top);
                store(high + lane + j * Vec::width, top);
            }
        }
    }
}

static void score(const float* panel, int64_t width, const float* items, int64_t stride,
                  const float* bias, int64_t count, float* scores, float* high) {
    int64_t i = 0;
    for (; i + kRows <= count; i += kRows) {
        score_rows<kRows>(panel, width, items + i * stride, stride, bias ? bias + i : nullptr,
                          scores + i * kLanes, high);
    }
    for (; i < count; ++i) {
        score_rows<1>(panel, width, items + i * stride, stride, bias ? bias + i : nullptr,
                      scores + i * kLanes, high);
    }
}

static float dot(const float* query, int64_t query_stride, const float* item, int64_t width) {
    float total = 0.0f;
    for (int64_t first = 0; first < width; first += kChain) {
        const int64_t end = width - first <= kChain ? width : first + kChain;
        float sum = 0.0f;
        for (int64_t k = first; k < end; ++k) sum = fma(query[k * query_stride], item[k], sum);
        total = first > 0 ? total + sum : sum;
    }
    return total;
}

// out[i][:] (+)= sum_k a[i * row_stride + k * step] * b[k][:], for Rows rows and Columns registers.
template <int Rows, int Columns>
static inline void add_columns(const float* a, ptrdiff_t row_stride, ptrdiff_t step, const float* b,
                               ptrdiff_t b_stride, ptrdiff_t depth, float* out, ptrdiff_t out_stride,
                               bool start_at_zero) {
    Vec acc[Rows][Columns];
    zero(acc);
    multiply(acc, a, row_stride, step, b, b_stride, depth);
#pragma GCC unroll 16
    for (int i = 0; i < Rows; ++i) {
#pragma GCC unroll 8
        for (int j = 0; j < Columns; ++j) {
            float* place = out + i * out_stride + j * Vec::width;
            store(place, start_at_zero ? acc[i][j] : add(load(place), acc[i][j]));
        }
    }
}

// The same for all columns.
template <int Rows>
static inline void add_rows(const float* a, ptrdiff_t row_stride, ptrdiff_t step, const float* b,
                            ptrdiff_t b_stride, ptrdiff_t depth, float* out, ptrdiff_t out_stride,
                            int64_t padded, bool start_at_zero) {
    int64_t column = 0;
    for (; column + kColumns * Vec::width <= padded; column += kColumns * Vec::width) {
        add_columns<Rows, kColumns>(a, row_stride, step, b + column, b_stride, depth, out + column,
                                    out_stride, start_at_zero);
    }
    if constexpr (kColumns > 2) {
        for (; column + 2 * Vec::width <= padded; column += 2 * Vec::width) {
            add_columns<Rows, 2>(a, row_stride, step, b + column, b_stride, depth, out + column,
                                 out_stride, start_at_zero);
        }
    }
    for (; column < padded; column += Vec::width) {
        add_columns<Rows, 1>(a, row_stride, step, b + column, b_stride, depth, out + column,
                             out_stride, start_at_zero);
    }
}

static void add_to_queries(const float* tile, int64_t count, const float* items, int64_t stride,
                           int64_t padded, float* out) {
    int lane = 0;
    for (; lane + kRows <= kLanes; lane += kRows) {
        add_rows<kRows>(tile + lane, 1, kLanes, items, stride, count, out + lane * padded, padded,
                        padded, false);
    }
    constexpr int rest = kLanes % kRows;
    if constexpr (rest > 0) {
        add_rows<rest>(tile + lane, 1, kLanes, items, stride, count, out + lane * padded, padded,
                       padded, false);
    }
}

static void add_to_items(const float* tile, int64_t count, const float* queries, int64_t padded,
                         float* out, int64_t stride, bool start_at_zero) {
    int64_t i = 0;
    for (; i + kRows <= count; i += kRows) {
        // broadcasts of single numbers are no stream that a processor would foresee
        const float* next = tile + (i + kRows) * kLanes;
        for (int k = 0; k < kRows * kLanes; k += 16) __builtin_prefetch(next + k);
        add_rows<kRows>(tile + i * kLanes, kLanes, 1, queries, padded, kLanes, out + i * stride, stride,
                        padded, start_at_zero);
    }
    for (; i < count; ++i) {
        add_rows<1>(tile + i * kLanes, kLanes, 1, queries, padded, kLanes, out + i * stride, stride,
                    padded, start_at_zero);
    }
}

constexpr int64_t kDepth = 64;  // rows of the right operand that stay in the first cache

template <int Rows, int Columns>
static inline void product_rows(const Product<float>& p, int64_t& row, int64_t column, int64_t k) {
    const int64_t depth = p.depth - k <= kDepth ? p.depth - k : kDepth;
    for (; row + Rows <= p.rows; row += Rows) {
        add_columns<Rows, Columns>(p.a + row * p.row_stride + k * p.step, p.row_stride, p.step,
                                   p.b + k * p.b_stride + column, p.b_stride, depth,
                                   p.out + row * p.out_stride + column, p.out_stride,
                                   p.start_at_zero && k == 0);
    }
}

template <int Columns>
static inline void product_columns(const Product<float>& p, int64_t& column) {
    for (; column + Columns * Vec::width <= p.columns; column += Columns * Vec::width) {
        for (int64_t k = 0; k == 0 || k < p.depth; k += kDepth) {
            int64_t row = 0;
            product_rows<kRows, Columns>(p, row, column, k);
            product_rows<2, Columns>(p, row, column, k);
            product_rows<1, Columns>(p, row, column, k);
        }
    }
}

static void product(const Product<float>& p) {
    int64_t column = 0;
    product_columns<kColumns>(p, column);
    if constexpr (kColumns > 2) product_columns<2>(p, column);
    product_columns<1>(p, column);
}

static void weighted_sums(const float* tile, int64_t count, const float* weights, float* out,
                          bool start_at_zero) {
    for (int64_t i = 0; i < count; ++i) {
        Vec sum = all(0.0f);
        for (int lane = 0; lane < kLanes; lane += Vec::width) {
            sum = fma(load(tile + i * kLanes + lane), load(weights + lane), sum);
        }
        float parts[Vec::width];
        store(parts, sum);
        float total = 0.0f;
        for (int j = 0; j < Vec::width; ++j) total += parts[j];
        out[i] = start_at_zero ? total : out[i] + total;
    }
}

// ---- exponentials --------------------------------------------------------------------------------

static void exponentials(float* scores, int64_t count, const float* shift, float* sums) {
    constexpr int Columns = 4;  // enough independent chains to hide latencies
    for (int lane = 0; lane < kLanes; lane += Columns * Vec::width) {
        Vec low[Columns], sum[Columns];
        for (int j = 0; j < Columns; ++j) {
            low[j] = load(shift + lane + j * Vec::width);
            sum[j] = all(0.0f);
        }
        for (int64_t i = 0; i < count; ++i) {
            float* row = scores + i * kLanes + lane;
#pragma GCC unroll 8
            for (int j = 0; j < Columns; ++j) {
                const Vec p = exponential(sub(load(row + j * Vec::width), low[j]));
                sum[j] = add(sum[j], p);
                store(row + j * Vec::width, p);
            }
        }
        // a tile's own sum first: the error of a long sum grows with its number of terms
        for (int j = 0; j < Columns; ++j) {
            float* place = sums + lane + j * Vec::width;
            store(place, add(load(place), sum[j]));
        }
    }
}

// ---- comparisons ---------------------------------------------------------------------------------

static void count(const float* scores, int64_t count, const float* level, int32_t* greater,
                  int32_t* at_least) {
    constexpr int Columns = 2;
    for (int lane = 0; lane < kLanes; lane += Columns * Vec::width) {
        Vec low[Columns];
        Count above[Columns], level_too[Columns];
        for (int j = 0; j < Columns; ++j) {
            low[j] = load(level + lane + j * Vec::width);
            above[j] = load_count(greater + lane + j * Vec::width);
            level_too[j] = load_count(at_least + lane + j * Vec::width);
        }
        for (int64_t i = 0; i < count; ++i) {
            const float* row = scores + i * kLanes + lane;
#pragma GCC unroll 8
            for (int j = 0; j < Columns; ++j) {
                const Vec s = load(row + j * Vec::width);
                above[j] = count_greater(above[j], s, low[j]);
                level_too[j] = count_at_least(level_too[j], s, low[j]);
            }
        }
        for (int j = 0; j < Columns; ++j) {
            store_count(greater + lane + j * Vec::width, above[j]);
            store_count(at_least + lane + j * Vec::width, level_too[j]);
        }
    }
}

static bool above(const float* scores, int64_t count, const float* level, uint64_t* hits) {
    uint64_t any = 0;
    for (int64_t i = 0; i < count; ++i) {
        uint64_t found = 0;
#pragma GCC unroll 16
        for (int lane = 0; lane < kLanes; lane += Vec::width) {
            found |= greater_bits(load(scores + i * kLanes + lane), load(level + lane)) << lane;
        }
        hits[i] = found;
        any |= found;
    }
    return any != 0;
}

constexpr int kGroup = kPad / Vec::width;  // registers of a group of kPad scores

static inline int32_t sum_of(const Count (&counts)[kGroup]) {
    int32_t parts[kPad], total = 0;
    for (int j = 0; j < kGroup; ++j) store_count(parts + j * Vec::width, counts[j]);
    for (int j = 0; j < kPad; ++j) total += parts[j];
    return total;
}

static inline void zero(Count (&counts)[kGroup]) {
    const int32_t zeros[Vec::width] = {};
    for (int j = 0; j < kGroup; ++j) counts[j] = load_count(zeros);
}

static int64_t reach(const float* scores, int64_t count, float level) {
    const Vec low = all(level);
    Count found[kGroup];
    zero(found);
    for (int64_t i = 0; i < count; i += kPad) {
#pragma GCC unroll 4
        for (int j = 0; j < kGroup; ++j) {
            found[j] = count_at_least(found[j], load(scores + i + j * Vec::width), low);
        }
    }
    return sum_of(found);
}

static int64_t range(const float* scores, int64_t count, float* least, float* greatest) {
    const Vec bottom = all(-__builtin_inff()), none = all(0.0f);
    Count numbers[kGroup];
    zero(numbers);
    Vec high = bottom, minus_low = bottom;
    for (int64_t i = 0; i < count; i += kPad) {
#pragma GCC unroll 4
        for (int j = 0; j < kGroup; ++j) {
            const Vec s = load(scores + i + j * Vec::width);
            numbers[j] = count_at_least(numbers[j], s, bottom);
            high = greater_or_second(s, high);
            minus_low = greater_or_second(sub(none, s), minus_low);
        }
    }
    float highs[Vec::width], lows[Vec::width];
    store(highs, high);
    store(lows, minus_low);
    for (int j = 1; j < Vec::width; ++j) {
        highs[0] = highs[j] > highs[0] ? highs[j] : highs[0];
        lows[0] = lows[j] > lows[0] ? lows[j] : lows[0];
    }
    *greatest = highs[0];
    *least = -lows[0];
    return sum_of(numbers);
}

static int64_t first_within(const float* scores, int64_t count, float low, float high) {
    const Vec from = all(low), to = all(high);
    for (int64_t i = 0; i < count; i += Vec::width) {
        const Vec s = load(scores + i);
        const uint64_t within = at_least_bits(s, from) & at_least_bits(to, s);
        if (within != 0) return i + __builtin_ctzll(within);
    }
    return count;
}

// ---- conversions ---------------------------------------------------------------------------------

static void from_bfloat16(const uint16_t* in, int64_t count, float* out) {
    for (int64_t i = 0; i < count; ++i) {
        const uint32_t bits = static_cast<uint32_t>(in[i]) << 16;
        __builtin_memcpy(out + i, &bits, sizeof bits);
    }
}

static void from_float16(const uint16_t* in, int64_t count, float* out) {
    int64_t i = 0;
    for (; i + Vec::width <= count; i += Vec::width) store(out + i, load_float16(in + i));
    for (; i < count; ++i) out[i] = float16_to_float(in[i]);
}
