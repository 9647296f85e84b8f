// The kernels of kmeans.h, written once over `Vec`; included as kernels_body.h is.

static void panel(const float* const* rows, int64_t width, float* out) {
    // eight numbers of each row at a time: a whole column would take a line of cache for each number
    for (int64_t begin = 0; begin < width; begin += 8) {
        const int64_t end = begin + 8 < width ? begin + 8 : width;
        for (int lane = 0; lane < kLanes; ++lane) {
            for (int64_t d = begin; d < end; ++d) out[d * kLanes + lane] = rows[lane][d];
        }
    }
}

static void best_two(const float* scores, int64_t count, float* first, float* second,
                     float* place) {
    constexpr int kVecs = 4;  // of a register's width each: as many chains as hide a latency
    const float none = -__builtin_inff();
    for (int lane = 0; lane < kLanes; lane += kVecs * Vec::width) {
        Vec high[kVecs], next[kVecs], where[kVecs];
#pragma GCC unroll 4
        for (int j = 0; j < kVecs; ++j) {
            high[j] = next[j] = all(none);
            where[j] = all(0.0f);
        }
        for (int64_t i = 0; i < count; ++i) {
            const Vec here = all(static_cast<float>(i));
#pragma GCC unroll 4
            for (int j = 0; j < kVecs; ++j) {
                const Vec s = load(scores + i * kLanes + lane + j * Vec::width);
                const uint64_t better = greater_bits(s, high[j]);
                next[j] = greater_or_second(choose_bits(better, high[j], s), next[j]);
                high[j] = choose_bits(better, s, high[j]);
                where[j] = choose_bits(better, here, where[j]);
            }
        }
#pragma GCC unroll 4
        for (int j = 0; j < kVecs; ++j) {
            store(first + lane + j * Vec::width, high[j]);
            store(second + lane + j * Vec::width, next[j]);
            store(place + lane + j * Vec::width, where[j]);
        }
    }
}

static float dot(const float* x, const float* c, int64_t width) {
    Vec sums[2] = {all(0.0f), all(0.0f)};
    int64_t d = 0;
    for (; d + 2 * Vec::width <= width; d += 2 * Vec::width) {
        sums[0] = fma(load(x + d), load(c + d), sums[0]);
        sums[1] = fma(load(x + d + Vec::width), load(c + d + Vec::width), sums[1]);
    }
    float parts[Vec::width];
    store(parts, add(sums[0], sums[1]));
    float total = 0.0f;
    for (int j = 0; j < Vec::width; ++j) total += parts[j];
    for (; d < width; ++d) total += x[d] * c[d];
    return total;
}

static void add(const float* x, int64_t width, float* out) {
    int64_t d = 0;
    for (; d + Vec::width <= width; d += Vec::width) store(out + d, add(load(out + d), load(x + d)));
    for (; d < width; ++d) out[d] += x[d];
}
