// Vec for the compiler's own vectors of four floats (SSE2, NEON, ...).
//
// Included inside a namespace by each file that compiles kernels for it.

typedef float Floats __attribute__((vector_size(16)));
typedef int32_t Ints __attribute__((vector_size(16)));

struct Vec {
    static constexpr int width = 4;
    Floats v;
};
struct Count {
    Ints v;
};

static inline Vec load(const float* p) {
    Vec a;
    __builtin_memcpy(&a.v, p, sizeof a.v);
    return a;
}
static inline void store(float* p, Vec a) { __builtin_memcpy(p, &a.v, sizeof a.v); }
static inline Vec all(float a) { return {Floats{a, a, a, a}}; }
static inline Vec add(Vec a, Vec b) { return {a.v + b.v}; }
static inline Vec sub(Vec a, Vec b) { return {a.v - b.v}; }
static inline Vec mul(Vec a, Vec b) { return {a.v * b.v}; }
static inline Vec divide(Vec a, Vec b) { return {a.v / b.v}; }

// Two roundings, in both forms: their bits must agree.
static inline Vec fma(Vec a, Vec b, Vec c) { return {a.v * b.v + c.v}; }
static inline Vec fnma(Vec a, Vec b, Vec c) { return {c.v - a.v * b.v}; }
static inline float fma(float a, float b, float c) { return a * b + c; }

static inline Vec choose(Ints where, Vec a, Vec b) {
    Ints x, y;
    __builtin_memcpy(&x, &a.v, sizeof x);
    __builtin_memcpy(&y, &b.v, sizeof y);
    const Ints bits = (where & x) | (~where & y);
    Vec chosen;
    __builtin_memcpy(&chosen.v, &bits, sizeof bits);
    return chosen;
}

// The greater one; b where either is NaN.
static inline Vec greater_or_second(Vec a, Vec b) { return choose(a.v > b.v, a, b); }

static inline Vec reciprocal(Vec a) { return {1.0f / a.v}; }

// a with its sign replaced by b's.
static inline Vec with_sign_of(Vec a, Vec b) {
    return choose(Ints{} + INT32_MIN, b, a);
}
static inline Vec absolute(Vec a) { return with_sign_of(a, all(0.0f)); }

static inline Vec reciprocal_root(Vec a) {
    return {Floats{1.0f / __builtin_sqrtf(a.v[0]), 1.0f / __builtin_sqrtf(a.v[1]),
                   1.0f / __builtin_sqrtf(a.v[2]), 1.0f / __builtin_sqrtf(a.v[3])}};
}

// The lanes, as bits, whose ids equal `id`; and a in the lanes of `bits`, b in the others.
static inline uint64_t equal_bits(const int64_t* ids, int64_t id) {
    return (ids[0] == id) | (ids[1] == id) << 1 | (ids[2] == id) << 2 | (ids[3] == id) << 3;
}
static inline Vec choose_bits(uint64_t bits, Vec a, Vec b) {
    const Ints place = {1, 2, 4, 8};
    const Ints set = (Ints{} + static_cast<int32_t>(bits)) & place;
    return choose(set == place, a, b);
}

// a, and 0 where x < low (not where x is NaN).
static inline Vec zero_where_below(Vec x, Vec low, Vec a) {
    return choose(x.v < low.v, all(0.0f), a);
}

// Number i: the sum of the numbers of a[i].
static inline Vec sums_of(const Vec (&a)[4]) {
    Vec sums;
    for (int i = 0; i < 4; ++i) sums.v[i] = (a[i].v[0] + a[i].v[1]) + (a[i].v[2] + a[i].v[3]);
    return sums;
}

// Number j of a[i] becomes number i of a[j].
static inline void turn(Vec (&a)[4]) {
    const Vec b[4] = {a[0], a[1], a[2], a[3]};
    for (int i = 0; i < 4; ++i) a[i].v = Floats{b[0].v[i], b[1].v[i], b[2].v[i], b[3].v[i]};
}

// a times 2^n, n the integer in the low bits of `shifted`.
static inline Vec add_exponent(Vec a, Vec shifted) {
    typedef uint32_t Bits __attribute__((vector_size(16)));
    Bits x, n;
    __builtin_memcpy(&x, &a.v, sizeof x);
    __builtin_memcpy(&n, &shifted.v, sizeof n);
    x += n << 23;
    Vec scaled;
    __builtin_memcpy(&scaled.v, &x, sizeof x);
    return scaled;
}

static inline Count load_count(const int32_t* p) {
    Count n;
    __builtin_memcpy(&n.v, p, sizeof n.v);
    return n;
}
static inline void store_count(int32_t* p, Count n) { __builtin_memcpy(p, &n.v, sizeof n.v); }

// A comparison that holds is the integer -1.
static inline Count count_greater(Count n, Vec a, Vec b) { return {n.v - (a.v > b.v)}; }
static inline Count count_at_least(Count n, Vec a, Vec b) { return {n.v - (a.v >= b.v)}; }
static inline uint64_t bits_of(Ints hit) {
    return (hit[0] & 1) | (hit[1] & 2) | (hit[2] & 4) | (hit[3] & 8);
}
static inline uint64_t greater_bits(Vec a, Vec b) { return bits_of(a.v > b.v); }
static inline uint64_t at_least_bits(Vec a, Vec b) { return bits_of(a.v >= b.v); }

static inline Vec load_float16(const uint16_t* p) {
    return {Floats{float16_to_float(p[0]), float16_to_float(p[1]), float16_to_float(p[2]),
                   float16_to_float(p[3])}};
}

// Up to `count` < width numbers; the others are zero, and are not written.
static inline Vec load_first(const float* p, int64_t count) {
    Vec a = all(0.0f);
    for (int64_t i = 0; i < count; ++i) a.v[i] = p[i];
    return a;
}
static inline void store_first(float* p, int64_t count, Vec a) {
    for (int64_t i = 0; i < count; ++i) p[i] = a.v[i];
}

// All numbers; halves are added, as a register's numbers add up fastest.
static inline float sum_of(Vec a) { return (a.v[0] + a.v[2]) + (a.v[1] + a.v[3]); }

// The greatest one, where none is NaN.
static inline float greatest_of(Vec a) {
    float high = a.v[0];
    for (int i = 1; i < 4; ++i) high = a.v[i] > high ? a.v[i] : high;
    return high;
}

// 64-bit integers; the product is that of their low halves.
typedef uint64_t Wide __attribute__((vector_size(16)));
static inline Wide low_product(Wide a, Wide b) { return (a & 0xFFFFFFFFu) * (b & 0xFFFFFFFFu); }
// a0 b0 a1 b1, in two parts.
static inline void interleave(Wide a, Wide b, Wide& low, Wide& high) {
    low = Wide{a[0], b[0]};
    high = Wide{a[1], b[1]};
}

// The scale where one of the 8 numbers of 16 bits is not below `dropped`, else 0.
static inline void where_kept(Wide bits, uint32_t dropped, float scale, float* out) {
    uint16_t numbers[8];
    __builtin_memcpy(numbers, &bits, sizeof numbers);
    for (int i = 0; i < 8; ++i) out[i] = numbers[i] >= dropped ? scale : 0.0f;
}
