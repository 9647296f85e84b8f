// The bfloat16 kernels for processors that multiply pairs of them (AVX512-BF16).
//
// VDPBF16PS adds the products of two neighbouring pairs to each float32 sum, twice the work of a
// fused multiply-add, with subnormal numbers read and written as zero.  So every product runs along
// pairs: of the width in scores, of items in the gradients of queries, of lanes in those of items.

#include "kernels.h"

#if defined(__x86_64__)

#include <immintrin.h>

#include "target.h"

SEQREC_BEGIN_TARGET("avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,fma")

namespace seqrec::cpu {
namespace avx512_bf16 {

constexpr int kWidth = 16;  // floats, or pairs, of a register
constexpr int kRows = 6;    // a product keeps 6 x 4 registers of sums, 4 operands and one broadcast
constexpr int kColumns = 4;
static_assert(kLanes == kColumns * kWidth, "one register block covers all lanes");

static inline __m512bh pairs_at(const uint16_t* p) {
    return reinterpret_cast<__m512bh>(_mm512_loadu_si512(p));
}

// One pair in every place.
static inline __m512bh pair_in_all(const uint16_t* p) {
    int32_t pair;
    __builtin_memcpy(&pair, p, sizeof pair);
    return reinterpret_cast<__m512bh>(_mm512_set1_epi32(pair));
}

template <int Rows, int Columns>
static inline void zero(__m512 (&acc)[Rows][Columns]) {
#pragma GCC unroll 8
    for (int i = 0; i < Rows; ++i) {
#pragma GCC unroll 4
        for (int j = 0; j < Columns; ++j) acc[i][j] = _mm512_setzero_ps();
    }
}

// acc[i][j] += sum_k a[i * row_stride + k * step] . b[k * b_stride + 32 j ..], pair by pair; strides
// count bfloat16 numbers.
template <int Rows, int Columns>
static inline void multiply(__m512 (&acc)[Rows][Columns], const uint16_t* a, ptrdiff_t row_stride,
                            ptrdiff_t step, const uint16_t* b, ptrdiff_t b_stride,
                            ptrdiff_t depth) {
    for (ptrdiff_t k = 0; k < depth; ++k) {
        __m512bh right[Columns];
#pragma GCC unroll 4
        for (int j = 0; j < Columns; ++j) right[j] = pairs_at(b + k * b_stride + j * 2 * kWidth);
#pragma GCC unroll 8
        for (int i = 0; i < Rows; ++i) {
            const __m512bh left = pair_in_all(a + i * row_stride + k * step);
#pragma GCC unroll 4
            for (int j = 0; j < Columns; ++j) {
                acc[i][j] = _mm512_dpbf16_ps(acc[i][j], left, right[j]);
            }
        }
    }
}

// ---- scores --------------------------------------------------------------------------------------

template <int Rows>
static inline void score_rows(const uint16_t* panel, int64_t pairs, const uint16_t* items,
                              int64_t stride, const float* bias, float* scores) {
    __m512 acc[Rows][kColumns];
    zero(acc);
    multiply(acc, items, stride, 2, panel, 2 * kLanes, pairs);
#pragma GCC unroll 8
    for (int i = 0; i < Rows; ++i) {
        const __m512 add_on = _mm512_set1_ps(bias != nullptr ? bias[i] : 0.0f);
#pragma GCC unroll 4
        for (int j = 0; j < kColumns; ++j) {
            if (bias != nullptr) acc[i][j] = _mm512_add_ps(acc[i][j], add_on);
            _mm512_storeu_ps(scores + i * kLanes + j * kWidth, acc[i][j]);
        }
    }
}

static void score(const uint16_t* panel, int64_t pairs, const uint16_t* items, int64_t stride,
                  const float* bias, int64_t count, float* scores) {
    int64_t i = 0;
    for (; i + kRows <= count; i += kRows) {
        score_rows<kRows>(panel, pairs, items + i * stride, stride, bias ? bias + i : nullptr,
                          scores + i * kLanes);
    }
    for (; i < count; ++i) {
        score_rows<1>(panel, pairs, items + i * stride, stride, bias ? bias + i : nullptr,
                      scores + i * kLanes);
    }
}

static float dot(const uint16_t* query, const uint16_t* item, int64_t pairs) {
    __m512 acc[1][1];
    zero(acc);
    for (int64_t k = 0; k < pairs; ++k) {
        acc[0][0] = _mm512_dpbf16_ps(acc[0][0], pair_in_all(item + 2 * k),
                                     pair_in_all(query + 2 * k));
    }
    return _mm512_cvtss_f32(acc[0][0]);
}

// ---- exponentials --------------------------------------------------------------------------------

// e^x for x <= about 40, to about two units in the last place; 0 below kLowest, so that no subnormal
// number enters a sum; NaN for NaN.  2^n 2^f with x log2 e = n + f, |f| <= 1/2.
constexpr float kLowest = -80.0f;

static inline __m512 exponential(__m512 x) {
    const __m512 t = _mm512_mul_ps(x, _mm512_set1_ps(1.44269504f));
    const __m512 n = _mm512_roundscale_ps(t, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    const __m512 f = _mm512_sub_ps(t, n);
    __m512 p = _mm512_set1_ps(1.339527e-3f);
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(9.674768e-3f));
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(5.5503324e-2f));
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(0.24022651f));
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(0.69314720f));
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(1.0f));
    const __mmask16 enough = _mm512_cmp_ps_mask(x, _mm512_set1_ps(kLowest), _CMP_NLT_UQ);
    return _mm512_maskz_scalef_ps(enough, p, n);
}

template <int Rows, bool Plain, bool Keep>
static inline void exponential_rows(const uint16_t* panel, int64_t pairs, const uint16_t* items,
                                    int64_t stride, float scale, const float* bias,
                                    const float* shift, uint16_t* tile, float* sums, float* high) {
    __m512 acc[Rows][kColumns];
    zero(acc);
    multiply(acc, items, stride, 2, panel, 2 * kLanes, pairs);
    __m512 sum[kColumns], top[kColumns];
#pragma GCC unroll 4
    for (int j = 0; j < kColumns; ++j) {
        sum[j] = _mm512_loadu_ps(sums + j * kWidth);
        top[j] = _mm512_loadu_ps(high + j * kWidth);
    }
#pragma GCC unroll 8
    for (int i = 0; i < Rows; ++i) {
#pragma GCC unroll 4
        for (int j = 0; j < kColumns; ++j) {
            if (!Plain) {
                const __m512 add_on = _mm512_set1_ps(bias != nullptr ? bias[i] : 0.0f);
                acc[i][j] = _mm512_fmadd_ps(acc[i][j], _mm512_set1_ps(scale), add_on);
            }
            top[j] = _mm512_max_ps(acc[i][j], top[j]);  // NaN is passed over
            acc[i][j] = exponential(_mm512_sub_ps(acc[i][j], _mm512_loadu_ps(shift + j * kWidth)));
            sum[j] = _mm512_add_ps(sum[j], acc[i][j]);
        }
        if (!Keep) continue;
#pragma GCC unroll 2
        for (int j = 0; j < kColumns; j += 2) {
            _mm512_storeu_si512(tile + i * kLanes + j * kWidth,
                                reinterpret_cast<__m512i>(
                                    _mm512_cvtne2ps_pbh(acc[i][j + 1], acc[i][j])));
        }
    }
#pragma GCC unroll 4
    for (int j = 0; j < kColumns; ++j) {
        _mm512_storeu_ps(sums + j * kWidth, sum[j]);
        _mm512_storeu_ps(high + j * kWidth, top[j]);
    }
}

template <bool Plain, bool Keep>
static void exponentials_of(const uint16_t* panel, int64_t pairs, const uint16_t* items,
                            int64_t stride, float scale, const float* bias, int64_t count,
                            const float* shift, uint16_t* tile, float* sums, float* high) {
    int64_t i = 0;
    for (; i + kRows <= count; i += kRows) {
        exponential_rows<kRows, Plain, Keep>(panel, pairs, items + i * stride, stride, scale,
                                             bias ? bias + i : nullptr, shift, tile + i * kLanes,
                                             sums, high);
    }
    for (; i < count; ++i) {
        exponential_rows<1, Plain, Keep>(panel, pairs, items + i * stride, stride, scale,
                                         bias ? bias + i : nullptr, shift, tile + i * kLanes, sums,
                                         high);
    }
}

static void exponentials(const uint16_t* panel, int64_t pairs, const uint16_t* items,
                         int64_t stride, float scale, const float* bias, int64_t count,
                         const float* shift, uint16_t* tile, float* sums, float* high) {
    const bool plain = scale == 1.0f && bias == nullptr;
    const auto run = tile == nullptr ? (plain ? exponentials_of<true, false>
                                              : exponentials_of<false, false>)
                                     : (plain ? exponentials_of<true, true>
                                              : exponentials_of<false, true>);
    run(panel, pairs, items, stride, scale, bias, count, shift, tile, sums, high);
}

// ---- gradients -----------------------------------------------------------------------------------

// 0 0 1 1 2 2 ... 15 15
static inline __m512i half_steps() {
    alignas(64) static const uint16_t steps[32] = {0, 0, 1,  1,  2,  2,  3,  3,  4,  4,  5,
                                                   5, 6, 6,  7,  7,  8,  8,  9,  9,  10, 10,
                                                   11, 11, 12, 12, 13, 13, 14, 14, 15, 15};
    return _mm512_load_si512(steps);
}

// Rows two by two, number by number beside each other: out [count / 2, padded][2]; an odd last row
// meets zeros.  `padded` numbers a row, a multiple of kWidth.
static inline void pair_up(const uint16_t* in, int64_t count, int64_t stride, int64_t padded,
                           uint16_t* out) {
    const __m512i low = _mm512_add_epi16(_mm512_set1_epi32(32 << 16), half_steps());
    const __m512i high = _mm512_add_epi16(low, _mm512_set1_epi16(16));
    for (int64_t i = 0; i < count; i += 2, in += 2 * stride, out += 2 * padded) {
        for (int64_t d = 0; d < padded; d += 2 * kWidth) {
            const bool whole = d + 2 * kWidth <= padded;
            const __mmask32 held = whole ? ~__mmask32{0} : (__mmask32{1} << kWidth) - 1;
            const __m512i a = _mm512_maskz_loadu_epi16(held, in + d);
            const __m512i b =
                _mm512_maskz_loadu_epi16(i + 1 < count ? held : __mmask32{0}, in + stride + d);
            _mm512_storeu_si512(out + 2 * d, _mm512_permutex2var_epi16(a, low, b));
            if (!whole) continue;
            _mm512_storeu_si512(out + 2 * d + 2 * kWidth, _mm512_permutex2var_epi16(a, high, b));
        }
    }
}

// The sum of such products over panels of both operands, [panels, depth, columns][2] the right one.
struct Panels : Product<uint16_t> {
    int64_t panels;
    ptrdiff_t panel_stride;  // of the left operand
};

template <int Rows, int Columns>
static inline void add_block(const Panels& p, int64_t row, int64_t column) {
    __m512 acc[Rows][Columns];
    zero(acc);
    const uint16_t* a = p.a + row * p.row_stride;
    for (int64_t g = 0; g < p.panels; ++g) {
        if (p.row_stride == kLanes) {
            // broadcasts of single pairs are no stream that a processor would foresee
            const uint16_t* next = a + g * p.panel_stride + Rows * p.row_stride;
            for (int k = 0; k < Rows * kLanes; k += 32) __builtin_prefetch(next + k);
        }
        multiply(acc, a + g * p.panel_stride, p.row_stride, p.step,
                 p.b + g * p.depth * p.b_stride + 2 * column, p.b_stride, p.depth);
    }
#pragma GCC unroll 8
    for (int i = 0; i < Rows; ++i) {
#pragma GCC unroll 4
        for (int j = 0; j < Columns; ++j) {
            float* place = p.out + (row + i) * p.out_stride + column + j * kWidth;
            if (!p.start_at_zero) acc[i][j] = _mm512_add_ps(_mm512_loadu_ps(place), acc[i][j]);
            _mm512_storeu_ps(place, acc[i][j]);
        }
    }
}

template <int Columns>
static inline void add_columns(const Panels& p, int64_t column) {
    int64_t i = 0;
    for (; i + kRows <= p.rows; i += kRows) add_block<kRows, Columns>(p, i, column);
    for (; i + 2 <= p.rows; i += 2) add_block<2, Columns>(p, i, column);
    for (; i < p.rows; ++i) add_block<1, Columns>(p, i, column);
}

// Columns outside, so that a block of the right operand stays in the first cache.
static void add_product(const Panels& p) {
    int64_t column = 0;
    for (; column + 4 * kWidth <= p.columns; column += 4 * kWidth) add_columns<4>(p, column);
    for (; column + 2 * kWidth <= p.columns; column += 2 * kWidth) add_columns<2>(p, column);
    if (column < p.columns) add_columns<1>(p, column);
}

static void product(const Product<uint16_t>& p) { add_product({p, 1, 0}); }

static void add_to_queries(const uint16_t* tile, int64_t count, const uint16_t* items,
                           int64_t stride, int64_t padded, uint16_t* scratch, float* out) {
    const int64_t depth = (count + 1) / 2;
    uint16_t* pairs_of_tile = scratch + depth * 2 * padded;
    pair_up(items, count, stride, padded, scratch);
    pair_up(tile, count, kLanes, kLanes, pairs_of_tile);
    product({pairs_of_tile, 2, 2 * kLanes, scratch, 2 * padded, out, padded, kLanes, depth, padded,
             false});
}

static void add_to_items(const uint16_t* tile, int64_t panel_stride, int64_t panels, int64_t count,
                         const uint16_t* queries, int64_t padded, float* out, bool start_at_zero) {
    const Product<uint16_t> one{tile, kLanes, 2, queries, 2 * padded, out, padded, count,
                                kLanes / 2, padded, start_at_zero};
    add_product({one, panels, panel_stride});
}

static inline __m512 widened(const uint16_t* p) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(
        _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))), 16));
}

static void scaled_pairs(const uint16_t* rows, const float* factor, int64_t padded, uint16_t* out) {
    for (int lane = 0; lane < kLanes; lane += 2) {
        const __m512 even = _mm512_set1_ps(factor[lane]), odd = _mm512_set1_ps(factor[lane + 1]);
        for (int64_t d = 0; d < padded; d += kWidth) {
            const uint16_t* from = rows + lane * padded + d;
            const __m512i low = _mm512_cvtepu16_epi32(reinterpret_cast<__m256i>(
                _mm512_cvtneps_pbh(_mm512_mul_ps(widened(from), even))));
            const __m512i high = _mm512_cvtepu16_epi32(reinterpret_cast<__m256i>(
                _mm512_cvtneps_pbh(_mm512_mul_ps(widened(from + padded), odd))));
            _mm512_storeu_si512(out + lane * padded + 2 * d,
                                _mm512_or_si512(low, _mm512_slli_epi32(high, 16)));
        }
    }
}

static void weighted_sums(const uint16_t* tile, int64_t count, const float* weights, float* out,
                          bool start_at_zero) {
    for (int64_t i = 0; i < count; ++i) {
        __m512 sum = _mm512_setzero_ps();
        for (int lane = 0; lane < kLanes; lane += kWidth) {
            sum = _mm512_fmadd_ps(widened(tile + i * kLanes + lane),
                                  _mm512_loadu_ps(weights + lane), sum);
        }
        const float total = _mm512_reduce_add_ps(sum);
        out[i] = start_at_zero ? total : out[i] + total;
    }
}

// ---- conversions ---------------------------------------------------------------------------------

static void narrow(const float* in, int64_t count, uint16_t* out) {
    for (int64_t i = 0; i < count; i += kWidth) {
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + i),
                            reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(_mm512_loadu_ps(in + i))));
    }
}

static void narrow_pairs(const float* in, int64_t rows, int64_t columns, uint16_t* out) {
    // numbers 0, 16, 1, 17 and so on
    const __m512i beside = _mm512_add_epi16(half_steps(), _mm512_set1_epi32(16 << 16));
    for (int64_t i = 0; i < rows; i += 2, in += 2 * columns, out += 2 * columns) {
        for (int64_t d = 0; d < columns; d += kWidth) {
            const __m512 low = _mm512_loadu_ps(in + d);
            const __m512 high =
                i + 1 < rows ? _mm512_loadu_ps(in + columns + d) : _mm512_setzero_ps();
            const __m512i both = reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(high, low));
            _mm512_storeu_si512(out + 2 * d, _mm512_permutexvar_epi16(beside, both));
        }
    }
}

}  // namespace avx512_bf16

extern const BFloat16Kernels kAvx512BFloat16;  // external, where a constant would be internal
const BFloat16Kernels kAvx512BFloat16 = {
    avx512_bf16::score,
    avx512_bf16::dot,
    avx512_bf16::exponentials,
    avx512_bf16::add_to_queries,
    avx512_bf16::scaled_pairs,
    avx512_bf16::add_to_items,
    avx512_bf16::weighted_sums,
    avx512_bf16::product,
    avx512_bf16::narrow,
    avx512_bf16::narrow_pairs,
};

}  // namespace seqrec::cpu

SEQREC_END_TARGET

#endif
