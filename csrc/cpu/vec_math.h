// Functions of a Vec.  Included inside a namespace, after the Vec.

// e^x for x <= about 0, to about one unit in the last place.  x = n ln 2 + r with |r| <= ln 2 / 2;
// e^r = 1 + r + r^2 P(r), P fitted for the least largest relative error of e^r (3e-9; the rounding
// of the sums is what remains); 2^n is added to the exponent's bits.  Below kLowest the result is 0,
// so that no denormal number ever enters a product.
constexpr float kLowest = -80.0f;

static inline Vec exponential(Vec x) {
    const Vec shift = all(12582912.0f);  // 1.5 * 2^23: adding it rounds to an integer, in the low bits
    const Vec clamped = greater_or_second(all(kLowest), x);  // NaN passes
    const Vec shifted = fma(clamped, all(1.44269504f), shift);
    const Vec n = sub(shifted, shift);
    Vec r = fma(n, all(-0.693145752f), clamped);  // ln 2 in two parts, the first with 9 zero bits
    r = fma(n, all(-1.42860677e-06f), r);
    Vec p = all(0x1.6a23cep-10f);
    p = fma(p, r, all(0x1.123a20p-7f));
    p = fma(p, r, all(0x1.5558f2p-5f));
    p = fma(p, r, all(0x1.555492p-3f));
    p = fma(p, r, all(0x1.fffffcp-2f));
    p = fma(mul(p, r), r, r);
    p = add(p, all(1.0f));
    return zero_where_below(x, all(kLowest), add_exponent(p, shifted));
}
