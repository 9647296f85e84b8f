// The kernels of sampled.h, written once over `Vec`; included as kernels_body.h is.

#include "vec_math.h"

// ---- rows by pointer -----------------------------------------------------------------------------

// As many rows at once as a register has numbers: their products end in one register.
static void dots(const float* query, const float* const* rows, int64_t count, int64_t padded,
                 float* out) {
    int64_t i = 0;
    for (; i + Vec::width <= count; i += Vec::width) {
        const float* const* some = rows + i;
        for (int j = 0; j < Vec::width && i + Vec::width + j < count; ++j) {
            for (int64_t d = 0; d < padded; d += 16) __builtin_prefetch(some[Vec::width + j] + d);
        }
        Vec acc[Vec::width];
#pragma GCC unroll 16
        for (int j = 0; j < Vec::width; ++j) acc[j] = all(0.0f);
        for (int64_t d = 0; d < padded; d += Vec::width) {
            const Vec q = load(query + d);
#pragma GCC unroll 16
            for (int j = 0; j < Vec::width; ++j) acc[j] = fma(q, load(some[j] + d), acc[j]);
        }
        store(out + i, sums_of(acc));
    }
    if (i == count) return;
    Vec acc[Vec::width];
#pragma GCC unroll 16
    for (int j = 0; j < Vec::width; ++j) acc[j] = all(0.0f);
    for (int j = 0; i + j < count; ++j) {
        Vec sum = all(0.0f);
        for (int64_t d = 0; d < padded; d += Vec::width) {
            sum = fma(load(query + d), load(rows[i + j] + d), sum);
        }
        acc[j] = sum;
    }
    store(out + i, sums_of(acc));
}

// Two chains a column, so that an addition's latency hides; four registers of columns at once.
template <int Columns>
static inline void weighted_columns(const float* weights, const float* const* rows, int64_t count,
                                    int64_t first, float* out) {
    Vec even[Columns], odd[Columns];
#pragma GCC unroll 4
    for (int j = 0; j < Columns; ++j) even[j] = odd[j] = all(0.0f);
    int64_t i = 0;
    for (; i + 2 <= count; i += 2) {
        const Vec one = all(weights[i]), two = all(weights[i + 1]);
#pragma GCC unroll 4
        for (int j = 0; j < Columns; ++j) {
            even[j] = fma(one, load(rows[i] + first + j * Vec::width), even[j]);
            odd[j] = fma(two, load(rows[i + 1] + first + j * Vec::width), odd[j]);
        }
    }
    if (i < count) {
        const Vec one = all(weights[i]);
#pragma GCC unroll 4
        for (int j = 0; j < Columns; ++j) {
            even[j] = fma(one, load(rows[i] + first + j * Vec::width), even[j]);
        }
    }
#pragma GCC unroll 4
    for (int j = 0; j < Columns; ++j) store(out + first + j * Vec::width, add(even[j], odd[j]));
}

static void weighted_rows(const float* weights, const float* const* rows, int64_t count,
                          int64_t padded, float* out) {
    int64_t d = 0;
    for (; d + 4 * Vec::width <= padded; d += 4 * Vec::width) {
        weighted_columns<4>(weights, rows, count, d, out);
    }
    for (; d < padded; d += Vec::width) weighted_columns<1>(weights, rows, count, d, out);
}

static void add_to_rows(const float* query, const int64_t* ids, const float* weights, int64_t count,
                        int64_t width, float* table) {
    constexpr int64_t kAhead = 8;
    for (int64_t i = 0; i < count; ++i) {
        if (i + kAhead < count) {
            const float* next = table + ids[i + kAhead] * width;
            for (int64_t d = 0; d < width; d += 16) __builtin_prefetch(next + d, 1);
        }
        float* row = table + ids[i] * width;
        const Vec weight = all(weights[i]);
        int64_t d = 0;
        for (; d + Vec::width <= width; d += Vec::width) {
            store(row + d, fma(weight, load(query + d), load(row + d)));
        }
        for (; d < width; ++d) row[d] = fma(weights[i], query[d], row[d]);
    }
}

// ---- numbers of negatives ------------------------------------------------------------------------

static inline float total_of(Vec a) {
    float parts[Vec::width];
    store(parts, a);
    float sum = 0.0f;
    for (int j = 0; j < Vec::width; ++j) sum += parts[j];
    return sum;
}

static float exponentials(float* logits, int64_t count, float* high) {
    Vec highest = load(logits);
    for (int64_t i = Vec::width; i < count; i += Vec::width) {
        highest = greater_or_second(load(logits + i), highest);
    }
    float parts[Vec::width];
    store(parts, highest);
    float top = parts[0];
    for (int j = 1; j < Vec::width; ++j) top = parts[j] > top ? parts[j] : top;
    *high = top;
    Vec sum = all(0.0f);
    for (int64_t i = 0; i < count; i += Vec::width) {
        const Vec e = exponential(sub(load(logits + i), all(top)));
        store(logits + i, e);
        sum = add(sum, e);
    }
    return total_of(sum);
}

// log(1 + y) for 0 <= y <= 1, as 2 atanh(s) with s = y / (2 + y): s + s^3 P(s^2), P fitted for the
// least largest relative error of the whole (5e-9).
static inline Vec log_of_one_more(Vec y) {
    const Vec s = divide(y, add(y, all(2.0f)));
    const Vec z = mul(s, s);
    Vec p = all(0x1.1ed7c0p-3f);
    p = fma(p, z, all(0x1.1ebd0ep-3f));
    p = fma(p, z, all(0x1.99d208p-3f));
    p = fma(p, z, all(0x1.555502p-2f));
    const Vec half = fma(mul(s, z), p, s);
    return add(half, half);
}

// softplus(x), and its slope.
static inline Vec softplus_of(Vec x, Vec* slope) {
    const Vec zero = all(0.0f), one = all(1.0f);
    const Vec e = exponential(sub(zero, absolute(x)));
    const Vec above = add(zero_where_below(x, zero, sub(one, e)), e);  // 1, and e where x < 0
    *slope = divide(above, add(one, e));
    return add(greater_or_second(zero, x), log_of_one_more(e));
}

static float softplus(float* logits, int64_t count, float shift, float* total) {
    Vec totals = all(0.0f), slopes = all(0.0f);
    for (int64_t i = 0; i < count; i += Vec::width) {
        Vec slope;
        totals = add(totals, softplus_of(sub(load(logits + i), all(shift)), &slope));
        slopes = add(slopes, slope);
        store(logits + i, slope);
    }
    *total = total_of(totals);
    return total_of(slopes);
}

static void lanes_high(const float* tile, int64_t count, float* high) {
    for (int lane = 0; lane < kLanes; lane += Vec::width) {
        Vec top = all(-__builtin_inff());
        for (int64_t i = 0; i < count; ++i) {
            top = greater_or_second(load(tile + i * kLanes + lane), top);
        }
        store(high + lane, top);
    }
}

static void lanes_softplus(float* tile, int64_t count, const float* shift, float* totals,
                           float* slopes) {
    for (int lane = 0; lane < kLanes; lane += Vec::width) {
        const Vec low = load(shift + lane);
        Vec total = load(totals + lane), sum = load(slopes + lane);
        for (int64_t i = 0; i < count; ++i) {
            float* place = tile + i * kLanes + lane;
            Vec slope;
            total = add(total, softplus_of(sub(load(place), low), &slope));
            sum = add(sum, slope);
            store(place, slope);
        }
        store(totals + lane, total);
        store(slopes + lane, sum);
    }
}
