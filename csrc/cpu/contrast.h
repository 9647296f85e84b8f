// The operands of the contrastive losses, and what is known of the anchors that are worked at a time;
// the mathematics and the order of sums are told in contrast.cpp.

#pragma once

#include <cmath>
#include <vector>

#include "contrast_kernels.h"
#include "operands.h"

namespace seqrec::cpu::contrast {

constexpr int64_t kTile = 96;  // negatives of a tile: 24 KiB of scores

using Floats = Buffer<float>;

// In float64, which has room for the square of any float32; in eight sums, which vectors add.
inline double product(const float* a, const float* b, int64_t width) {
    double sums[8] = {};
    int64_t d = 0;
    for (; d + 8 <= width; d += 8) {
        for (int j = 0; j < 8; ++j) sums[j] += static_cast<double>(a[d + j]) * b[d + j];
    }
    for (; d < width; ++d) sums[0] += static_cast<double>(a[d]) * b[d];
    for (int j = 1; j < 8; ++j) sums[0] += sums[j];
    return sums[0];
}

// The norm of a row and its reciprocal; both 0 where the reciprocal would not be finite.
inline void norm_of(const float* row, int64_t width, float& norm, float& inverse) {
    norm = static_cast<float>(std::sqrt(product(row, row, width)));
    const bool zero = norm < 1e-37f;  // not where it is NaN
    norm = zero ? 0.0f : norm;
    inverse = zero ? 0.0f : 1.0f / norm;
}

// One block of the denominator, the in-batch negatives or the noise.
struct Side {
    Matrix rows;
    const int64_t* ids = nullptr;
    Mixed mixed = kNoMixed;
    float* gradient = nullptr;  // [rows, width]
    int64_t first_tile = 0, tiles, first_kept = 0;
    Floats norms{1}, inverses{1};  // of mixed negatives
    Floats units{1};  // form "paper": what multiplies unit(negative) in its gradient

    explicit Side(const Tensor& t) : rows(t), tiles(divide_up(rows.rows, kTile)) {}

    int64_t kept_tiles() const { return gradient == nullptr ? 0 : tiles; }

    void measure() {
        norms = Floats(rows.rows);
        inverses = Floats(rows.rows);
        units = Floats(rows.rows);
        std::fill(units.get(), units + rows.rows, 0.0f);
        each_row([&](int64_t k, const float* row) {
            norm_of(row, rows.width, norms[k], inverses[k]);
        });
    }

    // In the gradient, the part along each negative itself.
    void add_units() const {
        each_row([&](int64_t k, const float* row) {
            const float by = units[k] * inverses[k];
            for (int64_t d = 0; d < rows.width; ++d) gradient[k * rows.width + d] += by * row[d];
        });
    }

    template <typename Task>
    void each_row(const Task& task) const {
        run_tasks(tiles, [&] { return Floats(rows.padded()); }, [&](int64_t tile, Floats& scratch) {
            for (int64_t k = tile * kTile; k < std::min(rows.rows, (tile + 1) * kTile); ++k) {
                int64_t stride;
                task(k, rows.read(k, 1, scratch.get(), stride));
            }
        });
    }
};

// Where a tile lies.
struct Place {
    const Side& side;
    int64_t first, count;
    int64_t kept;  // its place among the tiles that are kept, where its side has a gradient
};

struct Problem {
    Matrix anchors, positives;
    std::vector<Side> sides;
    bool focal = false;
    ContrastNumbers numbers{};
    const int64_t* ids = nullptr;
    int64_t seed = 0;
    float mix_low = 0.0f, mix_span = 0.0f;  // the ratio is low + span * u
    float *d_anchors = nullptr, *d_positives = nullptr;

    int64_t tiles() const { return sides.back().first_tile + sides.back().tiles; }
    int64_t kept_tiles() const { return sides.back().first_kept + sides.back().kept_tiles(); }
    int64_t kept_before(int64_t tile) const {
        int64_t kept = 0;
        for (const Side& side : sides) {
            kept += std::min(side.kept_tiles(), std::max<int64_t>(0, tile - side.first_tile));
        }
        return kept;
    }
    Place place(int64_t tile) const {
        const Side& side = tile < sides.back().first_tile ? sides.front() : sides.back();
        const int64_t own = tile - side.first_tile;
        return {side, own * kTile, std::min(kTile, side.rows.rows - own * kTile),
                side.first_kept + own};
    }
    // The kernel for the pairs of a side.
    auto pairs(const Side& side, bool gradients) const {
        const Mixed mixed = side.mixed == kPaper && !focal ? kOfficial : side.mixed;
        return contrast_kernels().pairs[focal][mixed][gradients];
    }
    bool units_kept() const { return focal && sides[0].mixed == kPaper && sides[0].gradient; }
};

// What is known of kLanes anchors; rows past the last are zero.
struct Panel {
    int64_t ids[kLanes];
    float norms[kLanes], inverses[kLanes];
    float positive[kLanes], slope[kLanes];  // the positive's logit, and its derivative
    float shift[kLanes];                    // at least the positive's logit, at most the log-sum-exp
    float sum[kLanes], along[kLanes];       // sums over the tiles so far, under `shift`
    float weight[kLanes];  // upstream gradient * exp(shift - log-sum-exp)
    float pull[kLanes];    // upstream gradient * (probability of the positive - 1) * slope
};

// The logit s tanh(s/f) / t of a positive, and its derivative.
inline void positive_logit(float s, bool focal, const ContrastNumbers& n, float& x, float& slope) {
    slope = n.over_temperature;
    if (focal) {
        const float y = s * n.over_focal, t = std::tanh(y), e = std::exp(-2.0f * std::fabs(y));
        slope *= t + y * 4.0f * e / ((1.0f + e) * (1.0f + e));
        x = s * t * n.over_temperature;
    } else {
        x = s * n.over_temperature;
    }
}

}  // namespace seqrec::cpu::contrast
