// The kernels of contrast_kernels.h, written once over `Vec`; included as kernels_body.h is.

#include "vec_math.h"

// A mixed negative is taken for 0 where the squared norm of what it is the direction of is below this.
constexpr float kLeastSquare = 1e-6f;

constexpr float kOut = -1.7e38f;  // the logit of a pair that takes no part

// The logit s (tanh(s/f) + margin) / t + more and its derivative; plain: s / t + more.  `curl` is the
// part of the derivative that comes from the tanh.
template <bool Focal>
static inline Vec logit(Vec s, const ContrastNumbers& n, float margin, float more, Vec& slope,
                        Vec& curl) {
    const Vec scale = all(n.over_temperature);
    if constexpr (!Focal) {
        slope = scale;
        curl = all(0.0f);
        return fma(s, scale, all(more));
    }
    const Vec y = mul(s, all(2.0f * n.over_focal));
    const Vec t = tangent_of_half(y, curl);
    const Vec weight = fma(t, scale, all(margin * n.over_temperature));
    curl = mul(mul(y, scale), curl);
    slope = add(weight, curl);
    return fma(s, weight, all(more));
}

// A mix ratio and what follows from it alone.
struct Ratio {
    Vec mix, rest, squares, cross;  // m, 1 - m, m^2 + (1 - m)^2, 2 m (1 - m)
};

static inline Ratio ratio_of(Vec mix, Vec present) {
    const Vec rest = sub(all(1.0f), mix);
    return {mix, rest, fma(rest, rest, mul(mul(mix, mix), present)),
            mul(mul(mix, rest), all(2.0f))};
}

template <bool Focal, Mixed Mix, bool Gradients>
static void pairs(const ContrastTile& tile, const ContrastNumbers& n) {
    const Vec zero = all(0.0f);
    for (int lane = 0; lane < kLanes; lane += Vec::width) {
        const Vec shift = load(tile.shift + lane);
        Vec high = all(kOut), sum = zero, along = zero;
        Vec norm = zero, inverse = zero, present = zero;
        Ratio ratio{};
        if constexpr (Mix != kNoMixed) {
            norm = load(tile.anchor_norms + lane);
            inverse = load(tile.anchor_inverses + lane);
            present = mul(norm, inverse);  // 1, or 0 for an anchor that is 0
            ratio = ratio_of(load(tile.mix + lane), present);
        }
        for (int64_t i = 0; i < tile.count; ++i) {
            const uint64_t out = tile.left_out == nullptr ? 0 : tile.left_out[i] >> lane;
            const Vec s = load(tile.scores + i * kLanes + lane);
            Vec slope, curl;
            Vec x = logit<Focal>(s, n, n.margin, n.offset, slope, curl);
            if (out != 0) x = choose_bits(out, all(kOut), x);
            high = greater_or_second(x, high);
            const Vec e = exponential(sub(x, shift));
            sum = add(sum, e);
            Vec to_anchor = mul(e, slope), to_negative = to_anchor;

            if constexpr (Mix != kNoMixed) {
                // the bracket mix unit(a) + rest unit(n) has the square D^2, and u = a . h;
                // for a negative that is 0 the square is wrong and u is 0
                if (tile.mix_stride != 0) {
                    ratio = ratio_of(load(tile.mix + i * tile.mix_stride + lane), present);
                }
                const Vec mix = ratio.mix, rest = ratio.rest;
                const Vec b = all(tile.norms[i]), over_b = all(tile.inverses[i]);
                const Vec cosine = mul(mul(s, inverse), over_b);
                const Vec square = fma(ratio.cross, cosine, ratio.squares);
                const Vec over_d = zero_where_below(square, all(kLeastSquare), reciprocal_root(square));
                const Vec mix_b = mul(mix, b);
                const Vec u = mul(fma(mix_b, norm, mul(rest, s)), over_d);
                x = logit<Focal>(u, n, n.mixed_margin, n.log_weight, slope, curl);
                if (out != 0) x = choose_bits(out, all(kOut), x);
                high = greater_or_second(x, high);
                const Vec h = exponential(sub(x, shift));
                sum = add(sum, h);
                if constexpr (Gradients) {
                    // du/da = h: mix_b / D of unit(a) and rest / D of n
                    const Vec pull = mul(h, Mix == kPaper ? sub(slope, curl) : slope);
                    const Vec by_d = mul(pull, over_d);
                    to_anchor = fma(rest, by_d, to_anchor);
                    along = fma(mix_b, by_d, along);
                    if constexpr (Mix == kPaper) {
                        // inside the tanh u = |a| b g(cosine), with all its derivatives
                        const Vec whole = mul(h, curl);
                        const Vec g = mul(fma(rest, cosine, mix), over_d);
                        const Vec cube = mul(mul(over_d, over_d), over_d);
                        const Vec dg = mul(mul(mul(rest, rest), fma(mix, cosine, rest)), cube);
                        const Vec radial = mul(whole, fnma(dg, cosine, g));
                        const Vec cross = mul(whole, dg);
                        to_anchor = add(to_anchor, cross);
                        to_negative = add(to_negative, cross);
                        along = fma(radial, b, along);
                        store(tile.to_units + i * kLanes + lane, mul(radial, norm));
                    }
                }
            }
            if constexpr (Gradients) {
                store(tile.to_anchors + i * kLanes + lane, to_anchor);
                if constexpr (Mix != kNoMixed) {
                    store(tile.to_negatives + i * kLanes + lane, to_negative);
                }
            }
        }
        store(tile.high + lane, high);
        store(tile.sum + lane, sum);
        if constexpr (Mix != kNoMixed && Gradients) store(tile.along + lane, along);
    }
}

static void equal(const int64_t* lanes, const int64_t* ids, int64_t count, uint64_t* bits) {
    for (int64_t i = 0; i < count; ++i) {
        uint64_t found = 0;
#pragma GCC unroll 16
        for (int lane = 0; lane < kLanes; lane += Vec::width) {
            found |= equal_bits(lanes + lane, ids[i]) << lane;
        }
        bits[i] = found;
    }
}

static void draw(int64_t seed, int64_t top, int64_t first, int64_t count, float low, float span,
                 float* mix) {
    for (int64_t i = 0; i < count; ++i) {
        for (int lane = 0; lane < kLanes; ++lane) {
            const uint32_t word = philox(seed, kStreamMix, static_cast<uint32_t>(first + i),
                                         static_cast<uint32_t>(top + lane));
            const float part = span * uniform(word);
            mix[i * kLanes + lane] = low + part;
        }
    }
}

static constexpr ContrastKernels contrast_kernels_named(const char* name) {
    return {name,
            {{{pairs<false, kNoMixed, false>, pairs<false, kNoMixed, true>},
              {pairs<false, kOfficial, false>, pairs<false, kOfficial, true>},
              {nullptr, nullptr}},
             {{pairs<true, kNoMixed, false>, pairs<true, kNoMixed, true>},
              {pairs<true, kOfficial, false>, pairs<true, kOfficial, true>},
              {pairs<true, kPaper, false>, pairs<true, kPaper, true>}}},
            equal,
            draw};
}
