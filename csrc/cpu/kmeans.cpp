// One iteration of Lloyd's algorithm: every point's nearest centroid, and the sums of the clusters.
//
// The nearest centroid of x is the one with the largest score x . c - |c|^2 / 2, the lowest among
// equals.  A point is spared its scores where bounds say that they would change nothing (Hamerly,
// "Making k-means even faster", SDM 2010): `near`, an upper bound of its distance to the centroid it
// has, and `far`, a lower bound of that to every other.  A centroid that moves widens the bounds by
// how far it went.  A few centroids go much further than the rest and would widen every `far`: where
// the bound holds as far as the rest went, a point meets the few alone, an eighth of all.
//
// Sparing a point never changes a bit.  The float32 scores of x are off by less than some e, known
// from the width and the norms, and (far^2 - near^2) / 2 is a lower bound of how far the exact scores
// are apart; so beyond 2 e the comparison of the computed ones has one possible outcome.  The bounds
// themselves are float64, and begin with e as slack.
//
// Points are cut into chunks by shapes alone.  Each adds its points in order to sums of its own, and
// these are added in the order of chunks: the number of threads changes no bit.

#include "kmeans.h"

#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <utility>
#include <vector>

#include "operands.h"

namespace seqrec::cpu {

extern const KMeansKernels kKMeansPortable;
#if defined(__x86_64__)
extern const KMeansKernels kKMeansAvx2;
extern const KMeansKernels kKMeansAvx512;
#endif

namespace {

const KMeansKernels& kmeans_kernels() {
#if defined(__x86_64__)
    return version_of({&kKMeansAvx2, &kKMeansAvx512}, kKMeansPortable);
#else
    return kKMeansPortable;
#endif
}

constexpr int64_t kChunk = 4096;  // points, at least
constexpr int64_t kPerCentroid = 16;  // points of a chunk: its sums cost little beside its scores

constexpr int64_t kFewOf = 8;   // one centroid in so many is among the few that went furthest
constexpr int64_t kFewest = 4;  // fewer are not worth a panel

// The centroids that went furthest, gathered in the order of their ids.
struct Few {
    std::vector<int64_t> ids;
    std::vector<int64_t> places;  // of each centroid among them, or -1
    std::vector<float> rows, half;
    double rest = 0.0;  // no other went further

    int64_t count() const { return static_cast<int64_t>(ids.size()); }
};

struct Clustering {
    const float *points, *centroids, *half;  // [M, D], [C, D], [C]: -|c|^2 / 2
    int64_t rows, width, count;
    const double* moved;            // [C], since the bounds were widened last
    bool fresh;                     // nothing has bounds yet
    double *near, *far, *lengths;   // [M]; of the points the last
    int64_t* chosen;                // [M]
    double longest = 0.0;           // of the centroids
    double most = 0.0, second_most = 0.0;  // of `moved`
    int64_t most_moved = 0;
    Few few;

    const float* point(int64_t i) const { return points + i * width; }
    const float* centroid(int64_t c) const { return centroids + c * width; }

    // What the score of a point of this length is off by, at most: a sum of D products in any order,
    // and half the square of a centroid.
    double error(double length) const {
        return 0x1p-23 * static_cast<double>(width + 8) * (length + longest) * longest;
    }
};

double length_of(const float* x, int64_t width) {
    double square = 0.0;
    for (int64_t d = 0; d < width; ++d) square += static_cast<double>(x[d]) * x[d];
    return std::sqrt(square);
}

// Whether no centroid at least `far` away can score as high as the one `near` by.
bool apart(const Clustering& a, int64_t i, double near, double far) {
    return far > near && far * far - near * near > 4.0 * a.error(a.lengths[i]);
}

// Bounds of the distance at which point i has a score.
double at_most(const Clustering& a, int64_t i, double score) {
    const double square = a.lengths[i] * a.lengths[i];
    return std::sqrt(std::max(0.0, square - 2.0 * score + 2.0 * a.error(a.lengths[i])));
}
double at_least(const Clustering& a, int64_t i, double score) {
    const double square = a.lengths[i] * a.lengths[i];
    return std::sqrt(std::max(0.0, square - 2.0 * score - 2.0 * a.error(a.lengths[i])));
}

double own_score(const Clustering& a, int64_t i) {
    const int64_t own = a.chosen[i];
    return kmeans_kernels().dot(a.point(i), a.centroid(own), a.width) + a.half[own];
}

enum class Meets { kNone, kFew, kAll };

// Which centroids point i must be scored against; its bounds are widened by what moved.  For the few
// `far` is left as it bounds the distance to the rest.
Meets meets(const Clustering& a, int64_t i) {
    const int64_t own = a.chosen[i];
    const double before = a.far[i];
    const double far = before - (own == a.most_moved ? a.second_most : a.most);
    a.near[i] += a.moved[own];
    if (!apart(a, i, a.near[i], far)) {
        a.near[i] = at_most(a, i, own_score(a, i));
        if (!apart(a, i, a.near[i], far)) {
            if (a.few.count() == 0 || !apart(a, i, a.near[i], before - a.few.rest)) return Meets::kAll;
            a.far[i] = before - a.few.rest;
            return Meets::kFew;
        }
    }
    a.far[i] = far;
    return Meets::kNone;
}

// Points that wait until there are enough of them for a panel.
struct Waiting {
    int64_t points[kLanes];
    int64_t held = 0;

    bool push(int64_t point) {
        points[held++] = point;
        return held == kLanes;
    }
};

struct Scratch {
    Buffer<float> panel, scores;
    Waiting all, few;

    Scratch(int64_t width, int64_t count) : panel(width * kLanes), scores(count * kLanes) {}
};

// Scores [count, kLanes] of the waiting points against `count` centroids.
void score(const Clustering& a, const Waiting& waiting, const float* centroids, const float* half,
           int64_t count, Scratch& own) {
    const float* rows[kLanes];
    for (int lane = 0; lane < kLanes; ++lane) {
        // lanes past the last repeat it
        rows[lane] = a.point(waiting.points[std::min<int64_t>(lane, waiting.held - 1)]);
    }
    kmeans_kernels().panel(rows, a.width, own.panel.get());
    kernels().score(own.panel.get(), a.width, centroids, a.width, half, count, own.scores.get(),
                    nullptr);
}

void meet_all(const Clustering& a, Scratch& own) {
    if (own.all.held == 0) return;
    float first[kLanes], second[kLanes], place[kLanes];
    score(a, own.all, a.centroids, a.half, a.count, own);
    kmeans_kernels().best_two(own.scores.get(), a.count, first, second, place);
    for (int64_t lane = 0; lane < own.all.held; ++lane) {
        const int64_t i = own.all.points[lane];
        if (a.fresh) a.lengths[i] = length_of(a.point(i), a.width);
        a.chosen[i] = static_cast<int64_t>(place[lane]);
        a.near[i] = at_most(a, i, first[lane]);
        a.far[i] = at_least(a, i, second[lane]);
    }
    own.all.held = 0;
}

// The waiting points against the few.  A point's own centroid is compared by another sum than theirs,
// so where the two are closer than that could be off, the point goes on to meet all.
void meet_few(const Clustering& a, Scratch& own) {
    if (own.few.held == 0) return;
    const Waiting waiting = std::exchange(own.few, Waiting{});
    float first[kLanes], second[kLanes], place[kLanes];
    score(a, waiting, a.few.rows.data(), a.few.half.data(), a.few.count(), own);
    for (int64_t lane = 0; lane < waiting.held; ++lane) {
        const int64_t among = a.few.places[a.chosen[waiting.points[lane]]];
        if (among >= 0) own.scores[among * kLanes + lane] = -__builtin_inff();
    }
    kmeans_kernels().best_two(own.scores.get(), a.few.count(), first, second, place);
    for (int64_t lane = 0; lane < waiting.held; ++lane) {
        const int64_t i = waiting.points[lane];
        const double mine = own_score(a, i), off = 2.0 * a.error(a.lengths[i]);
        if (mine - off > first[lane]) {
            a.far[i] = std::min(a.far[i], at_least(a, i, first[lane]));
        } else if (first[lane] > mine + off) {
            a.chosen[i] = a.few.ids[static_cast<size_t>(place[lane])];
            a.near[i] = at_most(a, i, first[lane]);
            a.far[i] = std::min({a.far[i], at_least(a, i, mine), at_least(a, i, second[lane])});
        } else if (own.all.push(i)) {
            meet_all(a, own);
        }
    }
}

// Assigns the points begin to end - 1 and adds them to `sums` [C, D] and `sizes` [C].
void assign(const Clustering& a, int64_t begin, int64_t end, Scratch& own, float* sums,
            int64_t* sizes) {
    for (int64_t i = begin; i < end; ++i) {
        const Meets whom = a.fresh ? Meets::kAll : meets(a, i);
        if (whom == Meets::kFew && own.few.push(i)) meet_few(a, own);
        if (whom == Meets::kAll && own.all.push(i)) meet_all(a, own);
    }
    meet_few(a, own);
    meet_all(a, own);
    for (int64_t i = begin; i < end; ++i) {
        kmeans_kernels().add(a.point(i), a.width, sums + a.chosen[i] * a.width);
        ++sizes[a.chosen[i]];
    }
}

// The few of this iteration; none where there are too few centroids.
Few few_of(const Clustering& a) {
    Few few;
    const int64_t count = a.count / kFewOf;
    if (count < kFewest) return few;
    std::vector<int64_t> order(a.count);
    std::iota(order.begin(), order.end(), 0);
    std::nth_element(order.begin(), order.begin() + count, order.end(), [&](int64_t b, int64_t c) {
        return a.moved[b] > a.moved[c] || (a.moved[b] == a.moved[c] && b < c);
    });
    few.rest = a.moved[order[count]];
    few.ids.assign(order.begin(), order.begin() + count);
    std::sort(few.ids.begin(), few.ids.end());  // of equal scores the lowest id wins
    few.places.assign(a.count, -1);
    for (const int64_t id : few.ids) {
        few.places[id] = static_cast<int64_t>(few.half.size());
        few.rows.insert(few.rows.end(), a.centroid(id), a.centroid(id) + a.width);
        few.half.push_back(a.half[id]);
    }
    return few;
}

void kmeans_step(const Tensor& points, const Tensor& centroids, const Tensor& half,
                 const Tensor& moved, bool fresh, const Tensor& bounds, const Tensor& chosen,
                 const Tensor& sums, const Tensor& sizes) {
    Clustering a{};
    a.points = numbers<float>(points);
    a.centroids = numbers<float>(centroids);
    a.half = numbers<float>(half);
    a.rows = points.size(0);
    a.width = points.size(1);
    a.count = centroids.size(0);
    a.moved = numbers<double>(moved);
    a.fresh = fresh;
    a.near = written<double>(bounds);
    a.far = a.near + a.rows;
    a.lengths = a.far + a.rows;
    a.chosen = written<int64_t>(chosen);
    for (int64_t c = 0; c < a.count; ++c) {
        a.longest = std::max(a.longest, length_of(a.centroid(c), a.width));
        if (a.moved[c] > a.most) {
            a.second_most = a.most;
            a.most = a.moved[c];
            a.most_moved = c;
        } else {
            a.second_most = std::max(a.second_most, a.moved[c]);
        }
    }

    if (!fresh) a.few = few_of(a);
    const int64_t chunk = std::max(kChunk, kPerCentroid * a.count);
    const int64_t chunks = divide_up(a.rows, chunk), numbers_each = a.count * a.width;
    Buffer<float> parts(chunks * numbers_each);
    Buffer<int64_t> counts(chunks * a.count);
    run_tasks(chunks, [&] { return Scratch(a.width, a.count); }, [&](int64_t task, Scratch& own) {
        float* part = parts + task * numbers_each;
        std::fill(part, part + numbers_each, 0.0f);
        std::fill(counts + task * a.count, counts + (task + 1) * a.count, 0);
        assign(a, task * chunk, std::min(a.rows, (task + 1) * chunk), own, part,
               counts + task * a.count);
    });
    float* total = written<float>(sums);
    int64_t* size = written<int64_t>(sizes);
    std::fill(total, total + numbers_each, 0.0f);
    std::fill(size, size + a.count, 0);
    for (int64_t task = 0; task < chunks; ++task) {
        for (int64_t c = 0; c < a.count; ++c) size[c] += counts[task * a.count + c];
        for (int64_t k = 0; k < numbers_each; ++k) total[k] += parts[task * numbers_each + k];
    }
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(seqrec_native, CPU, m) { m.impl("kmeans_step", TORCH_BOX(&kmeans_step)); }

}  // namespace seqrec::cpu
