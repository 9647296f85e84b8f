// Functions of a Vec.  Included inside a namespace, after the Vec.

// x = n ln 2 + r with |r| <= ln 2 / 2, for |x| < 2^21.  n is also kept as the low bits of `shifted`,
// where add_exponent finds it.  Returns e^r - 1 = r + r^2 P(r), P fitted for the least largest relative
// error of e^r (3e-9; the rounding of the sums is what remains).
static inline Vec reduced_exponential(Vec x, Vec& shifted) {
    const Vec shift = all(12582912.0f);  // 1.5 * 2^23: adding it rounds to an integer, in the low bits
    shifted = fma(x, all(1.44269504f), shift);
    const Vec n = sub(shifted, shift);
    Vec r = fma(n, all(-0.693145752f), x);  // ln 2 in two parts, the first with 9 zero bits
    r = fma(n, all(-1.42860677e-06f), r);
    Vec p = all(0x1.6a23cep-10f);
    p = fma(p, r, all(0x1.123a20p-7f));
    p = fma(p, r, all(0x1.5558f2p-5f));
    p = fma(p, r, all(0x1.555492p-3f));
    p = fma(p, r, all(0x1.fffffcp-2f));
    return fma(mul(p, r), r, r);
}

// e^x for x <= about 0, to about one unit in the last place.  Below kLowest the result is 0, so that
// no denormal number ever enters a product.
constexpr float kLowest = -80.0f;

static inline Vec exponential(Vec x) {
    Vec shifted;
    const Vec power = add(reduced_exponential(x, shifted), all(1.0f));
    return zero_where_below(x, all(kLowest), add_exponent(power, shifted));
}

// tanh (x/2) and its derivative by x, to a few units in the last place also where they are near 0.  With
// e = exp(-|x|) = 2^n (1 + part) and m = e - 1 = 2^n part + (2^n - 1), which cancels nowhere, they are
// -m / (2 + m) and 2 e / (2 + m)^2.  NaN stays NaN.
static inline Vec tangent_of_half(Vec x, Vec& slope) {
    Vec shifted;
    // the slope ends at 1e-37, so that times any x there is in practice it is nothing
    const Vec below = greater_or_second(all(-86.0f), with_sign_of(x, all(-0.0f)));
    const Vec part = reduced_exponential(below, shifted);
    const Vec scale = add_exponent(all(1.0f), shifted);
    const Vec m = fma(part, scale, sub(scale, all(1.0f)));
    const Vec inverse = reciprocal(add(m, all(2.0f)));
    slope = mul(fma(part, scale, scale), mul(inverse, add(inverse, inverse)));
    return with_sign_of(mul(m, inverse), x);
}
