// A few panels of anchors, and what they do with tiles of negatives; told in contrast.cpp.

#pragma once

#include <cstring>

#include "contrast.h"

namespace seqrec::cpu::contrast {

// A panel's shift is raised where a logit is this far above it.
constexpr float kHeadroom = 32.0f;
constexpr int64_t kPeek = 8;
constexpr float kFar = 1.7e38f;  // above every logit, yet finite

// A few panels of anchors and all tiles.
class Group {
  public:
    Group(const Problem& problem, int64_t panels, int64_t kept_tiles)
        : problem_(problem),
          padded_(problem.anchors.padded()),
          slots_(kept_tiles),
          panels_(panels),
          rows_(panels * kLanes * padded_),
          turned_(panels * kLanes * problem.anchors.width),
          sums_(problem.d_anchors ? panels * kLanes * padded_ : 1),
          kept_(panels * kept_tiles * kTile * kLanes),
          units_(problem.units_kept() ? panels * kept_tiles * kTile * kLanes : 1),
          shifts_(panels * kept_tiles * kLanes) {}

    // Reads the anchors from row `top` on.  state: shifts and sums, where they are known, or null.
    void start(int64_t top, int64_t count, const float* state) {
        top_ = top;
        count_ = count;
        run_tasks(count, [&] { return Floats(padded_); }, [&](int64_t g, Floats& scratch) {
            Panel& panel = panels_[g];
            const int64_t first = row_of(g), held = held_in(g);
            read_panel(problem_.anchors, first, 1.0f, rows(g), turned(g));
            std::memset(&panel, 0, sizeof panel);
            // past the last row every exponential is 0, whatever is added to a logit
            std::fill(panel.shift + held, panel.shift + kLanes, kFar);
            for (int64_t lane = 0; lane < held; ++lane) {
                if (problem_.ids != nullptr) panel.ids[lane] = problem_.ids[first + lane];
                norm_of(rows(g) + lane * padded_, padded_, panel.norms[lane], panel.inverses[lane]);
                int64_t stride;
                const float* positive =
                    problem_.positives.read(first + lane, 1, scratch.get(), stride);
                const double s =
                    product(rows(g) + lane * padded_, positive, problem_.anchors.width);
                positive_logit(static_cast<float>(s), problem_.focal, problem_.numbers,
                               panel.positive[lane], panel.slope[lane]);
                panel.shift[lane] = panel.positive[lane];
                if (state == nullptr) continue;
                panel.shift[lane] = state[first + lane];
                panel.sum[lane] = state[problem_.anchors.rows + first + lane];
            }
            if (problem_.d_anchors != nullptr) std::fill(sums(g), sums(g + 1), 0.0f);
        });
    }

    // Meets the tiles begin .. end - 1; their coefficients are kept.
    void sweep(int64_t begin, int64_t end, bool gradients, bool known) {
        begin_ = problem_.kept_before(begin);
        run_tasks(count_, [&] { return Scratch(padded_); }, [&](int64_t g, Scratch& scratch) {
            for (int64_t tile = begin; tile < end; ++tile) {
                meet(g, problem_.place(tile), gradients, known, scratch);
            }
        });
    }

    // Writes the shifts and sums of all rows, [2, R].
    void save(float* state) const {
        float* sums = state + problem_.anchors.rows;
        for (int64_t g = 0; g < count_; ++g) {
            std::copy_n(panels_[g].shift, held_in(g), state + row_of(g));
            std::copy_n(panels_[g].sum, held_in(g), sums + row_of(g));
        }
    }

    // Row losses, and what an upstream gradient makes of them.
    void finish_losses(float* losses, const float* upstream) {
        for (int64_t g = 0; g < count_; ++g) {
            Panel& panel = panels_[g];
            for (int64_t lane = 0; lane < held_in(g); ++lane) {
                const int64_t row = row_of(g) + lane;
                const float over = panel.shift[lane] - panel.positive[lane], sum = panel.sum[lane];
                const float total = sum + std::exp(-over);
                if (losses != nullptr) {
                    losses[row] = over == 0.0f ? std::log1p(sum) : over + std::log(total);
                }
                if (upstream == nullptr) continue;
                panel.weight[lane] = upstream[row] / total;
                panel.pull[lane] = -panel.weight[lane] * sum * panel.slope[lane];
            }
        }
    }

    // Adds the kept tiles among begin .. end - 1 to the gradients of their negatives.
    void add_to_negatives(int64_t begin, int64_t end) {
        const int64_t width = problem_.anchors.width;
        run_tasks(end - begin, [&] { return Floats((kLanes + kTile) * padded_); },
                  [&](int64_t i, Floats& scratch) {
            const Place at = problem_.place(begin + i);
            if (at.side.gradient == nullptr) return;
            float* to = at.side.gradient + at.first * width;
            float* out = width == padded_ ? to : scratch + kLanes * padded_;
            if (out != to && top_ > 0) {
                for (int64_t k = 0; k < at.count; ++k) {
                    std::copy(to + k * width, to + (k + 1) * width, out + k * padded_);
                    std::fill(out + k * padded_ + width, out + (k + 1) * padded_, 0.0f);
                }
            }
            for (int64_t g = 0; g < count_; ++g) {
                float factor[kLanes];
                scale(rows(g), weights(g, at, factor), scratch.get());
                kernels().add_to_items(kept(g, at), at.count, scratch.get(), padded_, out, padded_,
                                       top_ == 0 && g == 0);
                if (!problem_.units_kept() || at.side.mixed == kNoMixed) continue;
                kernels().weighted_sums(units(g, at), at.count, factor, at.side.units + at.first,
                                        false);
            }
            for (int64_t k = 0; out != to && k < at.count; ++k) {
                std::copy(out + k * padded_, out + k * padded_ + width, to + k * width);
            }
        });
    }

    // Writes the gradients of anchors and positives.
    void finish_anchors() {
        const int64_t width = problem_.anchors.width;
        run_tasks(count_, [&] { return Floats(padded_); }, [&](int64_t g, Floats& scratch) {
            const Panel& panel = panels_[g];
            for (int64_t lane = 0; lane < held_in(g); ++lane) {
                const int64_t r = row_of(g) + lane;
                const float* a = rows(g) + lane * padded_;
                const float pull = panel.pull[lane], weight = panel.weight[lane];
                if (problem_.d_positives != nullptr) {
                    float* out = problem_.d_positives + r * width;
                    for (int64_t d = 0; d < width; ++d) out[d] = pull * a[d];
                }
                if (problem_.d_anchors == nullptr) continue;
                int64_t stride;
                const float* p = problem_.positives.read(r, 1, scratch.get(), stride);
                const float* sum = sums(g) + lane * padded_;
                const float along = panel.along[lane] * panel.inverses[lane];
                float* out = problem_.d_anchors + r * width;
                for (int64_t d = 0; d < width; ++d) {
                    out[d] = weight * (sum[d] + along * a[d]) + pull * p[d];
                }
            }
        });
    }

  private:
    struct Scratch {
        Floats rows, scores, coefficients, others, mix;
        Buffer<uint64_t> left_out{kTile};
        explicit Scratch(int64_t padded)
            : rows(kTile * padded),
              scores(kTile * kLanes),
              coefficients(kTile * kLanes),
              others(2 * kTile * kLanes),
              mix(kTile * kLanes) {}
    };

    int64_t row_of(int64_t g) const { return top_ + g * kLanes; }
    int64_t held_in(int64_t g) const {
        return std::min<int64_t>(kLanes, problem_.anchors.rows - row_of(g));
    }
    float* rows(int64_t g) const { return rows_ + g * kLanes * padded_; }
    float* turned(int64_t g) const { return turned_ + g * kLanes * problem_.anchors.width; }
    float* sums(int64_t g) const { return sums_ + g * kLanes * padded_; }
    int64_t slot(int64_t g, const Place& at) const { return g * slots_ + at.kept - begin_; }
    float* kept(int64_t g, const Place& at) const {
        return kept_ + slot(g, at) * kTile * kLanes;
    }
    float* units(int64_t g, const Place& at) const {
        return units_ + slot(g, at) * kTile * kLanes;
    }

    void meet(int64_t g, const Place& at, bool gradients, bool known, Scratch& scratch) {
        const Side& side = at.side;
        Panel& panel = panels_[g];
        int64_t stride;
        const float* rows = side.rows.read(at.first, at.count, scratch.rows.get(), stride);
        kernels().score(turned(g), side.rows.width, rows, stride, nullptr, at.count,
                        scratch.scores.get(), nullptr);

        const bool keep = gradients && side.gradient != nullptr;
        float high[kLanes], sum[kLanes], along[kLanes] = {};
        ContrastTile tile{};
        tile.scores = scratch.scores.get();
        tile.count = at.count;
        tile.shift = panel.shift;
        tile.high = high;
        tile.sum = sum;
        tile.along = along;
        tile.to_anchors = scratch.coefficients.get();
        tile.to_negatives = keep ? kept(g, at) : scratch.others.get();
        tile.to_units = keep && problem_.units_kept() ? units(g, at)
                                                      : scratch.others + kTile * kLanes;
        if (side.ids != nullptr) {
            contrast_kernels().equal(panel.ids, side.ids + at.first, at.count,
                                     scratch.left_out.get());
            tile.left_out = scratch.left_out.get();
        }
        if (side.mixed == kNoMixed) {
            if (keep) tile.to_anchors = kept(g, at);
        } else {
            tile.anchor_norms = panel.norms;
            tile.anchor_inverses = panel.inverses;
            tile.norms = side.norms + at.first;
            tile.inverses = side.inverses + at.first;
            tile.mix = scratch.mix.get();
            if (problem_.mix_span == 0.0f) {
                std::fill(scratch.mix.get(), scratch.mix + kLanes, problem_.mix_low);
            } else {
                contrast_kernels().draw(problem_.seed, row_of(g), at.first, at.count,
                                        problem_.mix_low, problem_.mix_span, scratch.mix.get());
                tile.mix_stride = kLanes;
            }
        }
        if (!known && at.side.first_tile + at.first == 0) {
            // a look at a few pairs spares doing the first tile twice
            tile.count = std::min(kPeek, at.count);
            problem_.pairs(side, false)(tile, problem_.numbers);
            raise(g, high);
            tile.count = at.count;
        }
        const auto pairs = problem_.pairs(side, gradients);
        pairs(tile, problem_.numbers);
        if (!known && raise(g, high)) pairs(tile, problem_.numbers);
        for (int lane = 0; lane < kLanes; ++lane) {
            if (!known) panel.sum[lane] += sum[lane];
            panel.along[lane] += along[lane];
        }
        if (gradients && problem_.d_anchors != nullptr) {
            kernels().add_to_queries(tile.to_anchors, at.count, rows, stride, padded_, sums(g));
        }
        if (keep) {
            std::copy(panel.shift, panel.shift + kLanes, shifts_ + slot(g, at) * kLanes);
        }
    }

    // Raises the shifts that are too far below `high` and what was summed under them.
    bool raise(int64_t g, const float* high) {
        Panel& panel = panels_[g];
        bool raised = false;
        for (int64_t lane = 0; lane < kLanes; ++lane) {
            if (!(high[lane] > panel.shift[lane] + kHeadroom)) continue;
            const float by = std::exp(panel.shift[lane] - high[lane]);
            panel.shift[lane] = high[lane];
            panel.sum[lane] *= by;
            panel.along[lane] *= by;
            if (problem_.d_anchors != nullptr) {
                float* sum = sums(g) + lane * padded_;
                for (int64_t d = 0; d < padded_; ++d) sum[d] *= by;
            }
            raised = true;
        }
        return raised;
    }

    // What the anchors of a panel weigh for a tile that was kept.
    const float* weights(int64_t g, const Place& at, float* factor) const {
        const float* shift = shifts_ + slot(g, at) * kLanes;
        const Panel& panel = panels_[g];
        float unused[kLanes] = {};
        std::copy(shift, shift + kLanes, factor);
        kernels().exponentials(factor, 1, panel.shift, unused);
        for (int lane = 0; lane < kLanes; ++lane) factor[lane] *= panel.weight[lane];
        return factor;
    }

    void scale(const float* in, const float* factor, float* out) const {
        for (int64_t lane = 0; lane < kLanes; ++lane) {
            const float by = factor[lane];
            for (int64_t d = 0; d < padded_; ++d) {
                out[lane * padded_ + d] = in[lane * padded_ + d] * by;
            }
        }
    }

    const Problem& problem_;
    const int64_t padded_, slots_;
    int64_t top_ = 0, count_ = 0, begin_ = 0;
    Buffer<Panel> panels_;
    Floats rows_, turned_, sums_, kept_, units_, shifts_;
};

}  // namespace seqrec::cpu::contrast
