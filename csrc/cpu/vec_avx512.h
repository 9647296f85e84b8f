// Vec for AVX-512 (F, BW, DQ, VL): 16 floats a register, 32 registers.
//
// Included inside a namespace and a target pragma by each file that compiles kernels for it.

struct Vec {
    static constexpr int width = 16;
    __m512 v;
};
struct Count {
    __m512i v;
};

static inline Vec load(const float* p) { return {_mm512_loadu_ps(p)}; }
static inline void store(float* p, Vec a) { _mm512_storeu_ps(p, a.v); }
static inline Vec all(float a) { return {_mm512_set1_ps(a)}; }
static inline Vec add(Vec a, Vec b) { return {_mm512_add_ps(a.v, b.v)}; }
static inline Vec sub(Vec a, Vec b) { return {_mm512_sub_ps(a.v, b.v)}; }
static inline Vec mul(Vec a, Vec b) { return {_mm512_mul_ps(a.v, b.v)}; }
static inline Vec divide(Vec a, Vec b) { return {_mm512_div_ps(a.v, b.v)}; }
static inline Vec fma(Vec a, Vec b, Vec c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
static inline Vec fnma(Vec a, Vec b, Vec c) { return {_mm512_fnmadd_ps(a.v, b.v, c.v)}; }
static inline float fma(float a, float b, float c) { return __builtin_fmaf(a, b, c); }

// The greater one; b where either is NaN.
static inline Vec greater_or_second(Vec a, Vec b) { return {_mm512_max_ps(a.v, b.v)}; }


// 1 / a to about one unit in the last place: 14 bits, then a step of Newton's.
static inline Vec reciprocal(Vec a) {
    const __m512 x = _mm512_rcp14_ps(a.v);
    return {_mm512_fmadd_ps(x, _mm512_fnmadd_ps(a.v, x, _mm512_set1_ps(1.0f)), x)};
}

static inline Vec absolute(Vec a) { return {_mm512_abs_ps(a.v)}; }

// a with its sign replaced by b's.
static inline Vec with_sign_of(Vec a, Vec b) {
    const __m512i sign = _mm512_set1_epi32(INT32_MIN);  // of b where this is set, else of a
    return {_mm512_castsi512_ps(_mm512_ternarylogic_epi32(
        sign, _mm512_castps_si512(a.v), _mm512_castps_si512(b.v), 0xac))};
}

// 1 / sqrt(a) to about one unit in the last place: 14 bits, then a step of Newton's.
static inline Vec reciprocal_root(Vec a) {
    const __m512 x = _mm512_rsqrt14_ps(a.v);
    const __m512 error = _mm512_fnmadd_ps(_mm512_mul_ps(a.v, x), x, _mm512_set1_ps(1.0f));
    return {_mm512_fmadd_ps(_mm512_mul_ps(x, _mm512_set1_ps(0.5f)), error, x)};
}

// The lanes, as bits, whose ids equal `id`; and a in the lanes of `bits`, b in the others.
static inline uint64_t equal_bits(const int64_t* ids, int64_t id) {
    const __m512i one = _mm512_set1_epi64(id);
    const unsigned low = _mm512_cmpeq_epi64_mask(_mm512_loadu_si512(ids), one);
    const unsigned high = _mm512_cmpeq_epi64_mask(_mm512_loadu_si512(ids + 8), one);
    return low | high << 8;
}
static inline Vec choose_bits(uint64_t bits, Vec a, Vec b) {
    return {_mm512_mask_blend_ps(static_cast<__mmask16>(bits), b.v, a.v)};
}

// a, and 0 where x < low (not where x is NaN).
static inline Vec zero_where_below(Vec x, Vec low, Vec a) {
    return {_mm512_maskz_mov_ps(_mm512_cmp_ps_mask(x.v, low.v, _CMP_NLT_UQ), a.v)};
}

// Number i: the sum of the numbers of a[i].  Halves of registers are folded into those of one register
// for two, and so on: 31 shuffles in all.
static inline Vec sums_of(const Vec (&a)[16]) {
    __m512 eight[8], four[4], two[2];
#pragma GCC unroll 8
    for (int i = 0; i < 8; ++i) {
        eight[i] = _mm512_add_ps(_mm512_shuffle_f32x4(a[i].v, a[i + 8].v, 0x44),
                                 _mm512_shuffle_f32x4(a[i].v, a[i + 8].v, 0xEE));
    }
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
        four[i] = _mm512_add_ps(_mm512_shuffle_f32x4(eight[i], eight[i + 4], 0x88),
                                _mm512_shuffle_f32x4(eight[i], eight[i + 4], 0xDD));
    }
#pragma GCC unroll 2
    for (int i = 0; i < 2; ++i) {
        two[i] = _mm512_add_ps(_mm512_unpacklo_ps(four[2 * i], four[2 * i + 1]),
                               _mm512_unpackhi_ps(four[2 * i], four[2 * i + 1]));
    }
    const __m512 one = _mm512_add_ps(_mm512_shuffle_ps(two[0], two[1], 0x44),
                                     _mm512_shuffle_ps(two[0], two[1], 0xEE));
    return {_mm512_shuffle_f32x4(one, one, 0xD8)};  // its quarters are of rows 0, 8, 4, 12 and on
}

// Number j of a[i] becomes number i of a[j].  In four steps blocks of h by h numbers beside the diagonal
// of one of 2 h change places.
static inline void turn(Vec (&a)[16]) {
    const __m512i lanes =
        _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
#pragma GCC unroll 4
    for (int h = 8; h > 0; h /= 2) {
        const __m512i step = _mm512_set1_epi32(h);
        const __mmask16 odd = _mm512_test_epi32_mask(lanes, step);
        // 16 and more: of the second row
        const __m512i upper = _mm512_mask_add_epi32(lanes, odd, lanes, _mm512_set1_epi32(16 - h));
        const __m512i lower = _mm512_add_epi32(upper, step);
#pragma GCC unroll 16
        for (int i = 0; i < 16; ++i) {
            if (i & h) continue;
            const __m512 one = a[i].v, other = a[i + h].v;
            a[i].v = _mm512_permutex2var_ps(one, upper, other);
            a[i + h].v = _mm512_permutex2var_ps(one, lower, other);
        }
    }
}

// a times 2^n, n the integer in the low bits of `shifted`.
static inline Vec add_exponent(Vec a, Vec shifted) {
    const __m512i n = _mm512_slli_epi32(_mm512_castps_si512(shifted.v), 23);
    return {_mm512_castsi512_ps(_mm512_add_epi32(_mm512_castps_si512(a.v), n))};
}

static inline Count load_count(const int32_t* p) { return {_mm512_loadu_si512(p)}; }
static inline void store_count(int32_t* p, Count a) { _mm512_storeu_si512(p, a.v); }

static inline Count count_greater(Count n, Vec a, Vec b) {
    const __mmask16 hit = _mm512_cmp_ps_mask(a.v, b.v, _CMP_GT_OQ);
    return {_mm512_mask_sub_epi32(n.v, hit, n.v, _mm512_set1_epi32(-1))};
}
static inline Count count_at_least(Count n, Vec a, Vec b) {
    const __mmask16 hit = _mm512_cmp_ps_mask(a.v, b.v, _CMP_GE_OQ);
    return {_mm512_mask_sub_epi32(n.v, hit, n.v, _mm512_set1_epi32(-1))};
}
static inline uint64_t greater_bits(Vec a, Vec b) {
    return _mm512_cmp_ps_mask(a.v, b.v, _CMP_GT_OQ);
}

static inline uint64_t at_least_bits(Vec a, Vec b) {
    return _mm512_cmp_ps_mask(a.v, b.v, _CMP_GE_OQ);
}

static inline Vec load_float16(const uint16_t* p) {
    return {_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)))};
}

// Up to `count` < width numbers; the others are zero, and are not written.
static inline __mmask16 first_lanes(int64_t count) {
    return static_cast<__mmask16>((1u << count) - 1);
}
static inline Vec load_first(const float* p, int64_t count) {
    return {_mm512_maskz_loadu_ps(first_lanes(count), p)};
}
static inline void store_first(float* p, int64_t count, Vec a) {
    _mm512_mask_storeu_ps(p, first_lanes(count), a.v);
}

// All numbers; halves are added, as a register's numbers add up fastest.
static inline float sum_of(Vec a) { return _mm512_reduce_add_ps(a.v); }

// The greatest one, where none is NaN.
static inline float greatest_of(Vec a) { return _mm512_reduce_max_ps(a.v); }

// 64-bit integers; the product is that of their low halves.
typedef uint64_t Wide __attribute__((vector_size(64)));
static inline Wide low_product(Wide a, Wide b) {
    return reinterpret_cast<Wide>(
        _mm512_mul_epu32(reinterpret_cast<__m512i>(a), reinterpret_cast<__m512i>(b)));
}
// a0 b0 a1 b1 and so on, in two parts.
static inline void interleave(Wide a, Wide b, Wide& low, Wide& high) {
    const __m512i first = _mm512_setr_epi64(0, 8, 1, 9, 2, 10, 3, 11);
    const __m512i second = _mm512_setr_epi64(4, 12, 5, 13, 6, 14, 7, 15);
    const __m512i x = reinterpret_cast<__m512i>(a), y = reinterpret_cast<__m512i>(b);
    low = reinterpret_cast<Wide>(_mm512_permutex2var_epi64(x, first, y));
    high = reinterpret_cast<Wide>(_mm512_permutex2var_epi64(x, second, y));
}

// The scale where one of the 32 numbers of 16 bits is not below `dropped`, else 0.
static inline void where_kept(Wide bits, uint32_t dropped, float scale, float* out) {
    const __mmask32 kept = _mm512_cmpge_epu16_mask(
        reinterpret_cast<__m512i>(bits), _mm512_set1_epi16(static_cast<int16_t>(dropped)));
    const __m512 each = _mm512_set1_ps(scale);
    _mm512_storeu_ps(out, _mm512_maskz_mov_ps(static_cast<__mmask16>(kept), each));
    _mm512_storeu_ps(out + 16, _mm512_maskz_mov_ps(static_cast<__mmask16>(kept >> 16), each));
}
