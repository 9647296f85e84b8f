// One iteration of Lloyd's algorithm: every point's nearest centroid, and the sums of the clusters.
//
// The nearest centroid of x is the one with the largest score x . c - |c|^2 / 2, the lowest among
// equals.  A point is spared its scores where bounds say that they would change nothing (Hamerly,
// "Making k-means even faster", SDM 2010): `near`, an upper bound of its distance to the centroid it
// has, and `far`, a lower bound of that to every other.  A centroid that moves widens the bounds by
// how far it went.
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

#include <cmath>

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

// Whether point i surely keeps its centroid; its bounds are widened by what moved.
bool keeps(const Clustering& a, int64_t i) {
    const int64_t own = a.chosen[i];
    double near = a.near[i] += a.moved[own];
    const double far = a.far[i] -= own == a.most_moved ? a.second_most : a.most;
    const double error = a.error(a.lengths[i]);
    const auto apart = [&] { return far > near && far * far - near * near > 4.0 * error; };
    if (apart()) return true;
    const double score = kmeans_kernels().dot(a.point(i), a.centroid(own), a.width) + a.half[own];
    const double square = a.lengths[i] * a.lengths[i];
    near = a.near[i] = std::sqrt(std::max(0.0, square - 2.0 * score + 2.0 * error));
    return apart();
}

struct Scratch {
    Buffer<float> panel, scores;
    int64_t waiting[kLanes];
    int64_t held = 0;

    Scratch(int64_t width, int64_t count) : panel(width * kLanes), scores(count * kLanes) {}
};

// Scores the waiting points against all centroids.
void score(const Clustering& a, Scratch& own) {
    const float* rows[kLanes];
    float first[kLanes], second[kLanes], place[kLanes];
    for (int lane = 0; lane < kLanes; ++lane) {
        // lanes past the last repeat it
        rows[lane] = a.point(own.waiting[std::min<int64_t>(lane, own.held - 1)]);
    }
    kmeans_kernels().panel(rows, a.width, own.panel.get());
    kernels().score(own.panel.get(), a.width, a.centroids, a.width, a.half, a.count,
                    own.scores.get(), nullptr);
    kmeans_kernels().best_two(own.scores.get(), a.count, first, second, place);
    for (int64_t lane = 0; lane < own.held; ++lane) {
        const int64_t i = own.waiting[lane];
        if (a.fresh) a.lengths[i] = length_of(a.point(i), a.width);
        const double square = a.lengths[i] * a.lengths[i], slack = 2.0 * a.error(a.lengths[i]);
        a.chosen[i] = static_cast<int64_t>(place[lane]);
        a.near[i] = std::sqrt(std::max(0.0, square - 2.0 * first[lane] + slack));
        a.far[i] = std::sqrt(std::max(0.0, square - 2.0 * second[lane] - slack));
    }
    own.held = 0;
}

// Assigns the points begin to end - 1 and adds them to `sums` [C, D] and `sizes` [C].
void assign(const Clustering& a, int64_t begin, int64_t end, Scratch& own, float* sums,
            int64_t* sizes) {
    for (int64_t i = begin; i < end; ++i) {
        if (!a.fresh && keeps(a, i)) continue;
        own.waiting[own.held++] = i;
        if (own.held == kLanes) score(a, own);
    }
    if (own.held > 0) score(a, own);
    for (int64_t i = begin; i < end; ++i) {
        kmeans_kernels().add(a.point(i), a.width, sums + a.chosen[i] * a.width);
        ++sizes[a.chosen[i]];
    }
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
