// Vec for AVX2, FMA and F16C: 8 floats a register, 16 registers.
//
// Included inside a namespace and a target pragma by each file that compiles kernels for it.

struct Vec {
    static constexpr int width = 8;
    __m256 v;
};
struct Count {
    __m256i v;
};

static inline Vec load(const float* p) { return {_mm256_loadu_ps(p)}; }
static inline void store(float* p, Vec a) { _mm256_storeu_ps(p, a.v); }
static inline Vec all(float a) { return {_mm256_set1_ps(a)}; }
static inline Vec add(Vec a, Vec b) { return {_mm256_add_ps(a.v, b.v)}; }
static inline Vec sub(Vec a, Vec b) { return {_mm256_sub_ps(a.v, b.v)}; }
static inline Vec mul(Vec a, Vec b) { return {_mm256_mul_ps(a.v, b.v)}; }
static inline Vec divide(Vec a, Vec b) { return {_mm256_div_ps(a.v, b.v)}; }
static inline Vec fma(Vec a, Vec b, Vec c) { return {_mm256_fmadd_ps(a.v, b.v, c.v)}; }
static inline Vec fnma(Vec a, Vec b, Vec c) { return {_mm256_fnmadd_ps(a.v, b.v, c.v)}; }
static inline float fma(float a, float b, float c) { return __builtin_fmaf(a, b, c); }

// The greater one; b where either is NaN.
static inline Vec greater_or_second(Vec a, Vec b) { return {_mm256_max_ps(a.v, b.v)}; }

static inline Vec reciprocal(Vec a) { return {_mm256_div_ps(_mm256_set1_ps(1.0f), a.v)}; }
static inline Vec absolute(Vec a) { return {_mm256_andnot_ps(_mm256_set1_ps(-0.0f), a.v)}; }

// a with its sign replaced by b's.
static inline Vec with_sign_of(Vec a, Vec b) {
    return {_mm256_or_ps(absolute(a).v, _mm256_and_ps(b.v, _mm256_set1_ps(-0.0f)))};
}

static inline Vec reciprocal_root(Vec a) {
    return {_mm256_div_ps(_mm256_set1_ps(1.0f), _mm256_sqrt_ps(a.v))};
}

// The lanes, as bits, whose ids equal `id`; and a in the lanes of `bits`, b in the others.
static inline uint64_t equal_bits(const int64_t* ids, int64_t id) {
    const __m256i one = _mm256_set1_epi64x(id);
    const __m256i* at = reinterpret_cast<const __m256i*>(ids);
    const __m256i low = _mm256_cmpeq_epi64(_mm256_loadu_si256(at), one);
    const __m256i high = _mm256_cmpeq_epi64(_mm256_loadu_si256(at + 1), one);
    return static_cast<unsigned>(_mm256_movemask_pd(_mm256_castsi256_pd(low)) |
                                 _mm256_movemask_pd(_mm256_castsi256_pd(high)) << 4);
}
static inline Vec choose_bits(uint64_t bits, Vec a, Vec b) {
    const __m256i place = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
    const __m256i set = _mm256_and_si256(_mm256_set1_epi32(static_cast<int>(bits)), place);
    return {_mm256_blendv_ps(b.v, a.v, _mm256_castsi256_ps(_mm256_cmpeq_epi32(set, place)))};
}

// a, and 0 where x < low (not where x is NaN).
static inline Vec zero_where_below(Vec x, Vec low, Vec a) {
    return {_mm256_and_ps(_mm256_cmp_ps(x.v, low.v, _CMP_NLT_UQ), a.v)};
}

// Number i: the sum of the numbers of a[i].
static inline Vec sums_of(const Vec (&a)[8]) {
    const __m256 first = _mm256_hadd_ps(_mm256_hadd_ps(a[0].v, a[1].v),
                                        _mm256_hadd_ps(a[2].v, a[3].v));
    const __m256 second = _mm256_hadd_ps(_mm256_hadd_ps(a[4].v, a[5].v),
                                         _mm256_hadd_ps(a[6].v, a[7].v));
    return {_mm256_add_ps(_mm256_permute2f128_ps(first, second, 0x20),
                          _mm256_permute2f128_ps(first, second, 0x31))};
}

// Number j of a[i] becomes number i of a[j].
static inline void turn(Vec (&a)[8]) {
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
        const __m256 one = a[i].v, other = a[i + 4].v;
        a[i].v = _mm256_permute2f128_ps(one, other, 0x20);
        a[i + 4].v = _mm256_permute2f128_ps(one, other, 0x31);
    }
#pragma GCC unroll 4
    for (int i = 0; i < 8; i += i & 1 ? 3 : 1) {  // 0 1 4 5
        const __m256 one = a[i].v, other = a[i + 2].v;
        a[i].v = _mm256_shuffle_ps(one, other, 0x44);
        a[i + 2].v = _mm256_shuffle_ps(one, other, 0xEE);
    }
#pragma GCC unroll 4
    for (int i = 0; i < 8; i += 2) {
        const __m256 one = a[i].v, other = a[i + 1].v;
        a[i].v = _mm256_blend_ps(one, _mm256_moveldup_ps(other), 0xAA);
        a[i + 1].v = _mm256_blend_ps(_mm256_movehdup_ps(one), other, 0xAA);
    }
}

// a times 2^n, n the integer in the low bits of `shifted`.
static inline Vec add_exponent(Vec a, Vec shifted) {
    const __m256i n = _mm256_slli_epi32(_mm256_castps_si256(shifted.v), 23);
    return {_mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(a.v), n))};
}

static inline Count load_count(const int32_t* p) {
    return {_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))};
}
static inline void store_count(int32_t* p, Count a) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), a.v);
}

// A comparison that holds is all ones, the integer -1.
static inline Count count_greater(Count n, Vec a, Vec b) {
    return {_mm256_sub_epi32(n.v, _mm256_castps_si256(_mm256_cmp_ps(a.v, b.v, _CMP_GT_OQ)))};
}
static inline Count count_at_least(Count n, Vec a, Vec b) {
    return {_mm256_sub_epi32(n.v, _mm256_castps_si256(_mm256_cmp_ps(a.v, b.v, _CMP_GE_OQ)))};
}
static inline uint64_t greater_bits(Vec a, Vec b) {
    return static_cast<uint32_t>(_mm256_movemask_ps(_mm256_cmp_ps(a.v, b.v, _CMP_GT_OQ)));
}

static inline uint64_t at_least_bits(Vec a, Vec b) {
    return static_cast<uint32_t>(_mm256_movemask_ps(_mm256_cmp_ps(a.v, b.v, _CMP_GE_OQ)));
}

static inline Vec load_float16(const uint16_t* p) {
    return {_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)))};
}

// Up to `count` < width numbers; the others are zero, and are not written.
static inline __m256i first_lanes(int64_t count) {
    const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(count)), lane);
}
static inline Vec load_first(const float* p, int64_t count) {
    return {_mm256_maskload_ps(p, first_lanes(count))};
}
static inline void store_first(float* p, int64_t count, Vec a) {
    _mm256_maskstore_ps(p, first_lanes(count), a.v);
}

// All numbers; halves are added, as a register's numbers add up fastest.
static inline float sum_of(Vec a) {
    const __m128 four = _mm_add_ps(_mm256_castps256_ps128(a.v), _mm256_extractf128_ps(a.v, 1));
    const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}

// The greatest one, where none is NaN.
static inline float greatest_of(Vec a) {
    const __m128 four = _mm_max_ps(_mm256_castps256_ps128(a.v), _mm256_extractf128_ps(a.v, 1));
    const __m128 two = _mm_max_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)));
}

// 64-bit integers; the product is that of their low halves.
typedef uint64_t Wide __attribute__((vector_size(32)));
static inline Wide low_product(Wide a, Wide b) {
    return reinterpret_cast<Wide>(
        _mm256_mul_epu32(reinterpret_cast<__m256i>(a), reinterpret_cast<__m256i>(b)));
}
// a0 b0 a1 b1 and so on, in two parts.
static inline void interleave(Wide a, Wide b, Wide& low, Wide& high) {
    const __m256i x = reinterpret_cast<__m256i>(a), y = reinterpret_cast<__m256i>(b);
    const __m256i even = _mm256_unpacklo_epi64(x, y), odd = _mm256_unpackhi_epi64(x, y);
    low = reinterpret_cast<Wide>(_mm256_permute2x128_si256(even, odd, 0x20));
    high = reinterpret_cast<Wide>(_mm256_permute2x128_si256(even, odd, 0x31));
}

// The scale where one of the 16 numbers of 16 bits is not below `dropped`, else 0.
static inline void where_kept(Wide bits, uint32_t dropped, float scale, float* out) {
    const __m256i below = _mm256_set1_epi32(static_cast<int32_t>(dropped) - 1);
    const __m256i both = reinterpret_cast<__m256i>(bits);
    const __m256i first = _mm256_cvtepu16_epi32(_mm256_castsi256_si128(both));
    const __m256i second = _mm256_cvtepu16_epi32(_mm256_extracti128_si256(both, 1));
    const __m256 each = _mm256_set1_ps(scale);
    _mm256_storeu_ps(
        out, _mm256_and_ps(_mm256_castsi256_ps(_mm256_cmpgt_epi32(first, below)), each));
    _mm256_storeu_ps(
        out + 8, _mm256_and_ps(_mm256_castsi256_ps(_mm256_cmpgt_epi32(second, below)), each));
}
