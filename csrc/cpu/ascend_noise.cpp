// Noise negatives moved up the gradient of the contrastive loss; seqrec_kernels/ops/contrast/ascend.py
// tells what is computed.
//
// A step has two passes over the similarities of anchors and noise, neither of which keeps them.  The
// first has anchors in the lanes and ends with l_r, the log-sum-exp of all that anchor r is contrasted
// with.  The second has noise in the lanes and l_r as a bias, so that the exponent of a pair is one
// product, the largest exponent of each noise row a maximum down its lane, and the direction the
// product that a gradient of queries is.
//
// A lane's sums run over tiles in order, so results do not depend on the number of threads.

#include <torch/csrc/stable/library.h>

#include <cmath>

#include "contrast.h"

namespace seqrec::cpu {
namespace {

using contrast::Floats;

constexpr int64_t kTile = 252;    // rows of a tile: 63 KiB of scores, and whole for every kernel
constexpr float kOut = -1.7e38f;  // below every exponent, yet finite

// The largest number of each lane so far; what was summed under the one before has to be multiplied
// by `factor` where it rose.
struct Highest {
    float high[kLanes], before[kLanes], factor[kLanes];

    bool rose() {
        if (std::equal(high, high + kLanes, before)) return false;
        float unused[kLanes] = {};
        std::copy(before, before + kLanes, factor);
        kernels().exponentials(factor, 1, high, unused);
        std::copy(high, high + kLanes, before);
        return true;
    }
};

// Panels of all rows of a matrix, over `divisor`.
struct Panels {
    int64_t held, count, width, padded;
    Floats rows, turned;

    Panels(const Matrix& m, float divisor)
        : held(m.rows),
          count(divide_up(m.rows, kLanes)),
          width(m.width),
          padded(m.padded()),
          rows(count * kLanes * padded),
          turned(count * kLanes * width) {
        run_tasks(count, [] { return 0; }, [&](int64_t g, int) {
            read_panel(m, g * kLanes, divisor, row(g * kLanes), panel(g));
        });
    }
    float* row(int64_t i) const { return rows + i * padded; }
    float* panel(int64_t g) const { return turned + g * kLanes * width; }
};

// still[r]: the log-sum-exp of an anchor's positive and kept negatives.
// minus[r] = -log(exp(still_r) + sum_e exp(a_r . noise_e)), of a panel of anchors.
void log_sums(const Panels& anchors, const Panels& noise, const float* still, int64_t g,
              float* tile, float* minus) {
    Highest top;
    float sums[kLanes];
    for (int64_t lane = 0; lane < kLanes; ++lane) {
        const int64_t r = g * kLanes + lane;
        top.high[lane] = top.before[lane] = r < anchors.held ? still[r] : 0.0f;
        sums[lane] = 1.0f;
    }
    for (int64_t first = 0; first < noise.held; first += kTile) {
        const int64_t count = std::min(kTile, noise.held - first);
        kernels().score(anchors.panel(g), anchors.width, noise.row(first), noise.padded, nullptr,
                        count, tile, top.high);
        if (top.rose()) {
            for (int lane = 0; lane < kLanes; ++lane) sums[lane] *= top.factor[lane];
        }
        kernels().exponentials(tile, count, top.high, sums);
    }
    for (int64_t lane = 0; lane < kLanes && g * kLanes + lane < anchors.held; ++lane) {
        minus[g * kLanes + lane] = -(top.high[lane] + std::log(sums[lane]));
    }
}

// Moves a panel of noise rows by `step` along their directions.
void move(const Panels& anchors, const Panels& noise, const float* minus, int64_t g, float step,
          float* tile, float* direction) {
    Highest top;
    std::fill(top.high, top.high + kLanes, kOut);
    std::fill(top.before, top.before + kLanes, kOut);
    std::fill(direction, direction + kLanes * noise.padded, 0.0f);
    for (int64_t first = 0; first < anchors.held; first += kTile) {
        const int64_t count = std::min(kTile, anchors.held - first);
        kernels().score(noise.panel(g), noise.width, anchors.row(first), anchors.padded,
                        minus + first, count, tile, top.high);
        if (top.rose() && first > 0) {
            for (int64_t i = 0; i < kLanes * noise.padded; ++i) {
                direction[i] *= top.factor[i / noise.padded];
            }
        }
        float unused[kLanes] = {};
        kernels().exponentials(tile, count, top.high, unused);
        kernels().add_to_queries(tile, count, anchors.row(first), anchors.padded, noise.padded,
                                 direction);
    }
    for (int64_t lane = 0; lane < kLanes; ++lane) {
        const float* along = direction + lane * noise.padded;
        const double square = contrast::product(along, along, noise.width);
        const float norm = static_cast<float>(std::sqrt(square));
        if (!(norm > 0.0f) || !std::isfinite(norm)) continue;
        float* row = noise.row(g * kLanes + lane);
        for (int64_t d = 0; d < noise.width; ++d) {
            row[d] += step * (along[d] / norm);
            noise.panel(g)[d * kLanes + lane] = row[d];
        }
    }
}

// losses: [R] those of the anchors' positives and kept negatives, without noise.  moved: [E, D].
void ascend_noise(const Tensor& anchors, const Tensor& positives, const Tensor& losses,
                  const Tensor& noise, double temperature, int64_t steps, double step_size,
                  const Tensor& moved) {
    const Panels from(Matrix(anchors), static_cast<float>(temperature));
    const Panels to(Matrix(noise), 1.0f);
    const Matrix targets(positives);
    Floats still(from.held), minus(from.held);
    run_tasks(from.held, [&] { return Floats(from.padded); }, [&](int64_t r, Floats& scratch) {
        targets.copy_row(r, scratch.get());
        const double logit = contrast::product(from.row(r), scratch.get(), from.width);
        still[r] = static_cast<float>(logit + numbers<float>(losses)[r]);
    });
    const auto scratch = [&] { return Floats(kLanes * (kTile + to.padded)); };
    for (int64_t step = 0; step < steps; ++step) {
        run_tasks(from.count, scratch, [&](int64_t g, Floats& tile) {
            log_sums(from, to, still.get(), g, tile.get(), minus.get());
        });
        run_tasks(to.count, scratch, [&](int64_t g, Floats& tile) {
            move(from, to, minus.get(), g, static_cast<float>(step_size), tile.get(),
                 tile + kLanes * kTile);
        });
    }
    for (int64_t e = 0; e < to.held; ++e) {
        std::copy_n(to.row(e), to.width, written<float>(moved) + e * to.width);
    }
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(seqrec_native, CPU, m) {
    m.impl("ascend_noise", TORCH_BOX(&ascend_noise));
}

}  // namespace seqrec::cpu
