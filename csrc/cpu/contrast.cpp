// The contrastive losses: row losses and gradients, tile by tile.
//
// An anchor a, its positive p, in-batch negatives n_k and noise e_j have the logits x = phi(s) of their
// dot products s = a . n (positive: margin 0).  With focal scale f, margin m, temperature t
//
//     phi(s) = s (tanh(s/f) + m) / t          plain: s / t
//     phi'(s) = (tanh(s/f) + m + (s/f) (1 - tanh^2(s/f))) / t
//
// and the mixed negative of a kept pair, weighing w, the logit phi(u) + log w of
//
//     u = a . h = |n| (mix |a| + (1 - mix) s / |n|) / D,   D^2 = |mix unit(a) + (1 - mix) unit(n)|^2
//               = mix^2 + (1 - mix)^2 + 2 mix (1 - mix) c,   c = s / (|a| |n|),
//
// so it needs the dot product and two norms.  h is a constant of the gradient:
// du/da = h = mix |n| / D unit(a) + (1 - mix) / D n.  With P the softmax of a row and G = P phi'(s),
// H = P_mixed phi'(u) / D, upstream gradient g:
//
//     d_a = g (sum_k (G + (1 - mix) H) n_k + sum_j G e_j + (sum_k mix H |n_k|) unit(a)
//              + (P_p - 1) phi'(s_p) p)
//     d_p = g (P_p - 1) phi'(s_p) a,      d_n = sum_r g G a_r   (and so for the noise)
//
// Form "paper" has m outside the product, (s tanh(s/f) + m) / t, and none in the mixed logit, whose
// tanh is differentiated in full: with q = P_mixed (u/f) (1 - tanh^2(u/f)) / t,
// u = |a| |n| F(c), F = (mix + (1 - mix) c) / D, F' = (1 - mix)^2 (1 - mix + mix c) / D^3, it adds
//
//     q ((F - F' c) |n| unit(a) + F' n)  to d_a   and   q ((F - F' c) |a| unit(n) + F' a)  to d_n.
//
// One pass.  The exponentials of a panel of kLanes anchors are taken under a shift, which begins at the
// positive's logit (the log-sum-exp is never below it) and is raised, and the tile done again, only
// where a logit is kHeadroom above it.  Coefficients are multiplied into d_a while they are in cache and
// kept, where negatives want a gradient, until the row's sum is known; then they meet the anchors,
// scaled, in d_n.  Recompute.  With shifts and sums known, blocks of columns go the same way.
//
// loss = log(1 + sum of the others relative to the positive), not a difference of a log-sum-exp and a
// logit, so small losses and their gradients keep their digits.
//
// Order.  A panel's sums are its own and run over tiles in order, a tile of negatives is owned by one
// task and meets panels in order, and how they are cut depends on shapes alone: results do not depend
// on the number of threads.

#include <torch/csrc/stable/library.h>

#include "../common/philox.h"
#include "contrast_group.h"

namespace seqrec::cpu {

extern const ContrastKernels kContrastPortable;
#if defined(__x86_64__)
extern const ContrastKernels kContrastAvx2;
extern const ContrastKernels kContrastAvx512;
#endif

const ContrastKernels& contrast_kernels() {
#if defined(__x86_64__)
    return version_of({&kContrastAvx512, &kContrastAvx2}, kContrastPortable);
#else
    return kContrastPortable;
#endif
}

namespace {

using namespace contrast;

// The contract's known answers, seed 3, (r, k) = (0, 0), (0, 1), (1, 0), (5, 7), as multiples of 2^-24.
constexpr bool known(uint32_t k, uint32_t r, float answer) {
    return uniform(philox(3, kStreamMix, k, r)) == answer;
}
static_assert(known(0, 0, 0.08167261f) && known(1, 0, 0.67114049f) && known(0, 1, 0.15195173f) &&
              known(7, 5, 0.27169479f));

// Forward, with the gradients of an upstream gradient that is known beforehand or without.
void one_pass(const Problem& problem, const float* upstream, int64_t workspace, float* losses,
              float* state) {
    const int64_t panels = divide_up(problem.anchors.rows, kLanes), tiles = problem.tiles();
    const int64_t kept = problem.kept_tiles();
    const bool gradients = problem.d_anchors != nullptr || kept > 0;
    const int64_t numbers = kept * kTile * (problem.units_kept() ? 2 : 1) +
                            3 * problem.anchors.padded();
    const int64_t fit = workspace / (numbers * kLanes * static_cast<int64_t>(sizeof(float)));
    const int64_t size = std::max<int64_t>(1, std::min(panels, fit));
    Group group(problem, size, kept);
    for (int64_t first = 0; first < panels; first += size) {
        group.start(first * kLanes, std::min(size, panels - first), nullptr);
        group.sweep(0, tiles, gradients, false);
        if (state != nullptr) group.save(state);
        group.finish_losses(losses, upstream);
        if (kept > 0) group.add_to_negatives(0, tiles);
        if (upstream != nullptr) group.finish_anchors();
    }
}

// Gradients, the shifts and sums being known.
void recompute(const Problem& problem, const float* upstream, int64_t workspace,
               const float* state) {
    constexpr int64_t kPanels = 16;
    const int64_t panels = divide_up(problem.anchors.rows, kLanes), tiles = problem.tiles();
    const int64_t size = std::max<int64_t>(1, std::min(panels, kPanels));
    const int64_t tile_bytes = kTile * kLanes * static_cast<int64_t>(sizeof(float)) *
                               (problem.units_kept() ? 2 : 1);
    const bool gradients = problem.d_anchors != nullptr || problem.kept_tiles() > 0;
    const int64_t block = std::max<int64_t>(1, workspace / (size * tile_bytes));
    Group group(problem, size, std::min(block, problem.kept_tiles()));
    for (int64_t first = 0; first < panels; first += size) {
        group.start(first * kLanes, std::min(size, panels - first), state);
        group.finish_losses(nullptr, upstream);
        for (int64_t begin = 0; gradients && begin < tiles; begin += block) {
            const int64_t end = std::min(tiles, begin + block);
            group.sweep(begin, end, true, true);
            group.add_to_negatives(begin, end);
        }
        group.finish_anchors();
    }
}

ContrastNumbers logit_numbers(double temperature, std::optional<double> focal_scale, double margin,
                              double mix_weight, bool paper) {
    ContrastNumbers n{};
    n.over_temperature = static_cast<float>(1.0 / temperature);
    n.over_focal = static_cast<float>(focal_scale.has_value() ? 1.0 / *focal_scale : 0.0);
    n.log_weight = static_cast<float>(std::log(mix_weight));
    if (paper) {
        n.offset = static_cast<float>(margin / temperature);
    } else {
        n.margin = n.mixed_margin = static_cast<float>(margin);
    }
    return n;
}

void run(const Tensor& anchors, const Tensor& positives, const Tensor& negatives,
         const std::optional<Tensor>& noise, const std::optional<Tensor>& anchor_ids,
         const std::optional<Tensor>& negative_ids, const Tensor& seed, double temperature,
         std::optional<double> focal_scale, double margin, double mix_low, double mix_high,
         double mix_weight, bool paper, const std::optional<Tensor>& upstream,
         int64_t workspace, const std::optional<Tensor>& losses, const std::optional<Tensor>& state,
         const std::optional<Tensor>& d_anchors, const std::optional<Tensor>& d_positives,
         const std::optional<Tensor>& d_negatives, const std::optional<Tensor>& d_noise) {
    Problem problem{Matrix(anchors), Matrix(positives), {}};
    problem.focal = focal_scale.has_value();
    problem.numbers = logit_numbers(temperature, focal_scale, margin, mix_weight, paper);
    problem.ids = numbers<int64_t>(anchor_ids);
    problem.seed = *numbers<int64_t>(seed);
    problem.mix_low = static_cast<float>(mix_low);
    problem.mix_span = static_cast<float>(mix_high - mix_low);
    problem.d_anchors = written<float>(d_anchors);
    problem.d_positives = written<float>(d_positives);
    Side& batch = problem.sides.emplace_back(negatives);
    batch.ids = numbers<int64_t>(negative_ids);
    batch.gradient = written<float>(d_negatives);
    batch.mixed = mix_weight == 0.0 ? kNoMixed : paper ? kPaper : kOfficial;
    if (batch.mixed != kNoMixed) batch.measure();
    if (noise.has_value()) {
        Side& last = problem.sides.emplace_back(*noise);
        last.gradient = written<float>(d_noise);
        last.first_tile = problem.sides[0].tiles;
        last.first_kept = problem.sides[0].kept_tiles();
    }

    if (losses.has_value()) {
        one_pass(problem, numbers<float>(upstream), workspace, written<float>(losses),
                 written<float>(state));
    } else {
        recompute(problem, numbers<float>(upstream), workspace, numbers<float>(state));
    }
    if (problem.units_kept()) problem.sides[0].add_units();
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(seqrec_native, CPU, m) { m.impl("contrast", TORCH_BOX(&run)); }

}  // namespace seqrec::cpu
